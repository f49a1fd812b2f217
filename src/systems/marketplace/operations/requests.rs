//! Requests for a service, which a consumer makes in a sentence or in fields.

use schemars::JsonSchema;
use serde::Deserialize;

use super::asking::{asked_by_fields, asked_by_sentence, request_pointer};
use crate::contract::list::{Page, Paging};
use crate::contract::operation::ToolEffect;
use crate::contract::{Call, Meta, Operation, Outcome, Problem};
use crate::kernel::clock::Timestamp;
use crate::kernel::error::{AskError, ErrorCode};
use crate::systems::marketplace::domain::messages::{Asked, RequestCancellation};
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::request::{self, Request, RequestView};
use crate::systems::marketplace::domain::schedule::When;
use crate::systems::marketplace::domain::service::Service;
use crate::systems::marketplace::domain::session::{self, Session};
use crate::systems::photos::api as photos;

/// A new request: either a sentence, or the fields.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub struct CreateRequest {
    /// One sentence that says what is needed, where, when and for how much. Of the other fields only `time_zone` is used
    /// with it.
    pub(super) text: Option<String>,
    /// The time zone (IANA name) in which "tomorrow at 5 pm" is read. Default: that of the place, or UTC.
    pub(super) time_zone: Option<String>,
    pub(super) service: Option<Service>,
    #[schemars(length(max = 2_000))]
    pub(super) details: Option<String>,
    pub(super) place: Option<PlaceBody>,
    /// The exact start. Otherwise give `earliest` and `latest`.
    pub(super) starts_at: Option<Timestamp>,
    pub(super) earliest: Option<Timestamp>,
    pub(super) latest: Option<Timestamp>,
    pub(super) budget: Option<Money>,
    /// Photos of yours, by their ids. The providers who are asked see them too.
    #[schemars(length(max = 5))]
    pub(super) photos: Option<Vec<String>>,
}

/// The place of the service.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PlaceBody {
    /// A place that the gazetteer knows: "Alexanderplatz, Berlin".
    Name(String),
    Point(PointBody),
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct PointBody {
    #[schemars(range(min = -90, max = 90))]
    pub(super) latitude: f64,
    #[schemars(range(min = -180, max = 180))]
    pub(super) longitude: f64,
    pub(super) name: Option<String>,
    pub(super) city: Option<String>,
    pub(super) country: Option<String>,
    pub(super) time_zone: Option<String>,
}

/// Creates a request. The same command id gives the same request.
pub struct Create;

impl Operation for Create {
    const META: Meta =
        Meta::command("request.create", "Request a service, in a sentence or in fields")
            .post("/v1/requests")
            .creates("/v1/requests/")
            .tool("create_service_request", ToolEffect::Additive);
    type Input = CreateRequest;
    type Answer = RequestView;

    async fn run(call: &Call, input: CreateRequest) -> Outcome<RequestView> {
        let key = call.new_id("req");
        let photos = photos(call, &key, input.photos.as_deref()).await?;
        let Some(text) = &input.text else {
            let asked = asked_by_fields(call, &input)?;
            compare(call, &asked).await?;
            let created = create(call, &key, asked, photos).await;
            return created.map_err(|problem| problem.repoint(|at| request_pointer(at, &input)));
        };
        // The meaning of a sentence depends on the moment. If the request exists already, this call is a retry: it repeats
        // the command that the request remembers.
        if let Some(request) = already_created(call, &key).await? {
            return repeat(call, &key, request).await;
        }
        let asked = asked_by_sentence(call, text, input.time_zone.as_deref())?;
        compare(call, &asked).await?;
        match create(call, &key, asked, photos).await {
            // The same sentence twice at once: the other one was first.
            Err(problem) if problem.code == ErrorCode::IdReused => {
                match already_created(call, &key).await? {
                    Some(request) => repeat(call, &key, request).await,
                    None => Err(problem),
                }
            }
            outcome => outcome.map_err(|problem| problem.repoint(|_| "/text".into())),
        }
    }
}

/// Refuses what an agent asks for in somebody's conversation and they did not say.
async fn compare(call: &Call, asked: &Asked) -> Outcome<()> {
    let Some(session) = &call.session else { return Ok(()) };
    let compare = session::Command::Compare { asked: asked.clone().into() };
    match call.ask::<Session>(session, compare, call.undeduplicated()).await? {
        session::Reply::Compared { differs: None } => Ok(()),
        session::Reply::Compared { differs: Some(what) } => {
            let detail = format!(
                "this differs from what the person said in {what}: use their own words as `text`, or ask them"
            );
            Err(Problem::rejected("not_asked_for", detail))
        }
        _ => Err(AskError::Internal.into()),
    }
}

/// The photos of a new request, which are the caller's.
async fn photos(call: &Call, key: &str, given: Option<&[String]>) -> Outcome<Vec<String>> {
    let given = given.unwrap_or_default();
    // A retry repeats the command, whatever has become of the photos.
    if !given.is_empty() && already_created(call, key).await?.is_none() {
        if given.len() > request::MAX_PHOTOS {
            let few = format!("must be {} at most", request::MAX_PHOTOS);
            return Err(Problem::field("/photos", few));
        }
        photos::check(&call.services, &call.user_id, given, "/photos").await?;
    }
    Ok(given.to_vec())
}

async fn create(call: &Call, key: &str, asked: Asked, photos: Vec<String>) -> Outcome<RequestView> {
    let command = match photos.is_empty() {
        true => request::Command::Create(asked),
        false => request::Command::CreateWithPhotos { asked, photos },
    };
    match call.ask::<Request>(key, command, call.meta()).await? {
        request::Reply::Request(request) => Ok(*request),
        _ => shown(call, key).await,
    }
}

async fn already_created(call: &Call, key: &str) -> Outcome<Option<RequestView>> {
    match call.ask::<Request>(key, request::Command::Get, call.undeduplicated()).await {
        Ok(request::Reply::Request(request)) => Ok(Some(*request)),
        Ok(_) => Ok(None),
        Err(problem) if problem.code == ErrorCode::NotFound => Ok(None),
        Err(problem) => Err(problem),
    }
}

/// The first reply, or the current request where the command differs from the remembered one (its window has been cut to
/// the future): the key proves that the request came from this very command.
async fn repeat(call: &Call, key: &str, request: RequestView) -> Outcome<RequestView> {
    let known = request.clone();
    let asked = Asked {
        consumer_id: known.consumer_id,
        session_id: known.session_id,
        service: known.service,
        details: known.details,
        place: known.place,
        when: When { earliest: known.earliest, latest: known.latest, exact: known.exact },
        budget: known.budget,
        time_zone: known.time_zone,
    };
    match create(call, key, asked, known.photos).await {
        Err(problem) if problem.code == ErrorCode::IdReused => Ok(request),
        outcome => outcome,
    }
}

/// A request of the caller, else `not_found`.
pub async fn shown(call: &Call, id: &str) -> Outcome<RequestView> {
    call.own(id, "request").await
}

/// Lists the caller's requests.
pub struct List;

impl Operation for List {
    const META: Meta = Meta::query("request.list", "List your requests, newest first")
        .get("/v1/requests")
        .tool("list_requests", ToolEffect::ReadOnly)
        .resource("proxie://requests");
    type Input = Paging;
    type Answer = Page<RequestView>;

    async fn run(call: &Call, paging: Paging) -> Outcome<Page<RequestView>> {
        call.own_rows::<Self, _>(paging).await
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "RequestId")]
pub struct RequestById {
    request_id: String,
}

/// Returns a request of the caller.
pub struct Get;

impl Operation for Get {
    const META: Meta = Meta::query("request.get", "Get a request")
        .get("/v1/requests/{request_id}")
        .tool("get_request", ToolEffect::ReadOnly)
        .resource("proxie://requests/{request_id}");
    type Input = RequestById;
    type Answer = RequestView;

    async fn run(call: &Call, RequestById { request_id }: RequestById) -> Outcome<RequestView> {
        shown(call, &request_id).await
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
pub struct CancelRequest {
    request_id: String,
    #[schemars(length(max = 500))]
    reason: Option<String>,
}

/// Cancels a request, which ends the search. The answer is the request after that.
pub struct Cancel;

impl Operation for Cancel {
    const META: Meta = Meta::command("request.cancel", "Cancel a request")
        .post("/v1/requests/{request_id}/cancel")
        .tool("cancel_request", ToolEffect::Destructive);
    type Input = CancelRequest;
    type Answer = RequestView;

    async fn run(call: &Call, input: CancelRequest) -> Outcome<RequestView> {
        let CancelRequest { request_id: id, reason } = input;
        // The read model is asked first, so that unknown ids do not each load an entity.
        shown(call, &id).await?;
        match call
            .ask::<Request>(
                &id,
                request::Command::Cancel(RequestCancellation { reason }),
                call.meta(),
            )
            .await?
        {
            request::Reply::Request(request) => Ok(*request),
            _ => shown(call, &id).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::contract::input::read;

    #[test]
    fn every_wrong_field_is_named() {
        let body = json!({"service": "flying", "earliest": "soon", "details": "x", "unknown": 1});
        let problem = read::<CreateRequest>(&body).unwrap_err();
        let pointers: Vec<&str> = problem.errors.iter().map(|e| e.pointer.as_str()).collect();
        assert_eq!(pointers, ["/service", "/earliest"]);
    }

    #[test]
    fn a_place_is_a_name_or_a_point() {
        let place = |value| read::<CreateRequest>(&json!({"place": value})).map(|b| b.place);
        assert!(matches!(place(json!("Berlin")), Ok(Some(PlaceBody::Name(_)))));
        assert!(matches!(
            place(json!({"latitude": 1, "longitude": 2})),
            Ok(Some(PlaceBody::Point(_)))
        ));
        assert_eq!(place(json!({"latitude": 1})).unwrap_err().errors[0].pointer, "/place");
    }
}
