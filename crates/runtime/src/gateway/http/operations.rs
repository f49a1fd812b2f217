//! The operations over HTTP: the routes under `/v1` that the systems declare.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body as AxumBody;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::events::event_stream;
use super::extract::{AuthenticatedUser, Body};
use crate::contract::bytes::{Download, DownloadSlot, Upload};
use crate::contract::input::from_text;
use crate::contract::operation::{Method, Route, WithBytes};
use crate::contract::{Call, Declared, Outcome, Problem};
use crate::gateway::Gateway;
use crate::kernel::entity::to_value;
use crate::kernel::error::ErrorCode;

/// An operation at one of its routes.
struct Served {
    operation: &'static Declared,
    route: Route,
    /// The schemas of the input's fields, to parse values that arrive as text.
    fields: Map<String, Value>,
}

/// The fields of an answer that go into the response's headers.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    id: Option<String>,
    version: Option<u64>,
}

/// The routes of all operations, with their full paths.
pub fn routes(gateway: &Gateway) -> Router<Arc<Gateway>> {
    let mut paths: BTreeMap<&'static str, MethodRouter<Arc<Gateway>>> = BTreeMap::new();
    for operation in gateway.operations.all() {
        let schema = operation.input_schema();
        for route in operation.meta.routes() {
            let fields = schema["properties"].as_object().cloned().unwrap_or_default();
            let served = Arc::new(Served { operation, route, fields });
            let filter = match route.method {
                Method::Get => MethodFilter::GET,
                Method::Post => MethodFilter::POST,
                Method::Put => MethodFilter::PUT,
                Method::Patch => MethodFilter::PATCH,
                Method::Delete => MethodFilter::DELETE,
            };
            let handler = move |State(gateway): State<Arc<Gateway>>, request: Request| async move {
                served.answer(&gateway, request).await
            };
            let path = paths.remove(route.path).unwrap_or_default();
            paths.insert(route.path, path.on(filter, handler));
        }
    }
    paths.into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods))
}

impl Served {
    async fn answer(&self, gateway: &Arc<Gateway>, request: Request) -> Outcome<Response> {
        let meta = &self.operation.meta;
        let (mut parts, body) = request.into_parts();
        let user = AuthenticatedUser::from_request_parts(&mut parts, gateway).await?;
        let mut given = self.of_head(&mut parts, gateway, &user).await?;
        let headers = parts.headers.clone();
        let mut upload = None;
        if meta.bytes == Some(WithBytes::Taken) {
            upload = Some(uploaded(&headers, body));
        } else if self.route.method != Method::Get {
            let Body(body) = Body::from_request(Request::from_parts(parts, body), gateway).await?;
            let Value::Object(body) = body else {
                return Err(Problem::field("", "must be a JSON object"));
            };
            for (name, value) in body {
                given.entry(name).or_insert(value);
            }
        }
        let mut call = gateway.call(&user.claims, user.command_id);
        call.upload = upload;
        let slot = (meta.bytes == Some(WithBytes::Given)).then(DownloadSlot::default);
        call.download = slot.clone();
        if meta.is_streamed && wants_stream(&headers) {
            return Ok(streamed(self.operation, call, Value::Object(given)));
        }
        let answer = self.operation.run(call, Value::Object(given)).await;
        let answer = answer.map_err(|problem| match problem.reason.as_deref() {
            Some("version_mismatch") if meta.if_match.is_some() => {
                problem.status(StatusCode::PRECONDITION_FAILED.as_u16())
            }
            _ => problem,
        })?;
        if let Some(download) = slot.and_then(|slot| slot.take()) {
            return Ok(downloaded(download));
        }
        Ok(self.response(&headers, answer))
    }

    /// The fields that path, query and headers carry.
    async fn of_head(
        &self,
        parts: &mut Parts,
        gateway: &Arc<Gateway>,
        user: &AuthenticatedUser,
    ) -> Outcome<Map<String, Value>> {
        let mut given = Map::new();
        let text =
            |name: &str, text: &str| from_text(self.fields.get(name).unwrap_or(&Value::Null), text);
        if self.route.method == Method::Get {
            let query = Query::<HashMap<String, String>>::from_request_parts(parts, gateway);
            let Query(query) =
                query.await.map_err(|_| Problem::bad_request("the query is malformed"))?;
            for (name, value) in query.iter().filter(|(_, value)| !value.is_empty()) {
                if value.contains('\0') {
                    return Err(Problem::bad_request("the query contains U+0000"));
                }
                given.insert(name.clone(), text(name, value));
            }
        }
        if self.route.path.contains('{') {
            let path = Path::<HashMap<String, String>>::from_request_parts(parts, gateway).await;
            let nothing = || Problem::new(ErrorCode::NotFound, "there is nothing at this path");
            let Path(path) = path.map_err(|_| nothing())?;
            for (name, value) in path {
                if name == "user_id" {
                    if value != "me" && value != user.claims.sub {
                        return Err(Problem::not_found("user"));
                    }
                    continue;
                }
                given.insert(name.clone(), text(&name, &value));
            }
        }
        if let Some(field) = self.operation.meta.if_match
            && let Some(versions) = seen_versions(&parts.headers)?
        {
            given.insert(field.into(), versions.into());
        }
        Ok(given)
    }

    fn response(&self, headers: &HeaderMap, answer: Box<RawValue>) -> Response {
        let meta = &self.operation.meta;
        if self.route.method == Method::Delete {
            return StatusCode::NO_CONTENT.into_response();
        }
        let head: Head = if meta.creates.is_some() || meta.is_versioned {
            serde_json::from_str(answer.get()).unwrap_or_default()
        } else {
            Head::default()
        };
        let tag = head
            .version
            .filter(|_| meta.is_versioned)
            .and_then(|version| HeaderValue::from_str(&format!("\"{version}\"")).ok());
        let known = |seen: &str| {
            let seen = seen.strip_prefix("W/").unwrap_or(seen);
            seen == "*" || tag.as_ref().is_some_and(|tag| tag == seen)
        };
        if self.route.method == Method::Get
            && tag.is_some()
            && tags(headers, header::IF_NONE_MATCH).any(known)
        {
            let mut response = StatusCode::NOT_MODIFIED.into_response();
            response.headers_mut().extend(tag.map(|tag| (header::ETAG, tag)));
            return response;
        }
        let body = String::from(Box::<str>::from(answer));
        let json = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut response = ([json], body).into_response();
        if let Some(collection) = meta.creates.filter(|_| self.route.method == Method::Post) {
            *response.status_mut() = StatusCode::CREATED;
            let location = head.id.map(|id| format!("{collection}{id}"));
            let location = location.and_then(|at| HeaderValue::from_str(&at).ok());
            response.headers_mut().extend(location.map(|at| (header::LOCATION, at)));
        }
        response.headers_mut().extend(tag.map(|tag| (header::ETAG, tag)));
        response
    }
}

fn uploaded(headers: &HeaderMap, body: AxumBody) -> Upload {
    let announced = headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
    let pieces = body.into_data_stream().map(|piece| {
        // The client's connection is gone, and nobody reads this.
        piece.map_err(|_| Problem::bad_request("the body broke off"))
    });
    Upload::new(announced, pieces.boxed())
}

/// Somebody's bytes, which no browser runs or shows as a page of ours.
fn downloaded(download: Download) -> Response {
    let Download { media_type, name, bytes } = download;
    let headers = [
        (header::CONTENT_TYPE, media_type),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::CACHE_CONTROL, "private, no-store".to_owned()),
    ];
    (headers, bytes).into_response()
}

/// What an operation has said that nobody has read yet.
const UNREAD: usize = 16;

fn wants_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).into_iter().filter_map(|one| one.to_str().ok());
    accepted
        .flat_map(|list| list.split(','))
        .any(|kind| kind.trim().starts_with("text/event-stream"))
}

/// The answer as it comes: `progress` events, then one `answer` or one `problem`. The operation runs in the connection's
/// task, so it ends with the connection.
fn streamed(operation: &'static Declared, mut call: Call, given: Value) -> Response {
    let (progress, said) = mpsc::channel(UNREAD);
    call.progress = Some(progress);
    let running = operation.run(call, given);
    let events = stream::unfold((Some(running), said), async |(running, mut said)| {
        let mut running = running?;
        let next = tokio::select! {
            biased;
            Some(piece) = said.recv() => Event::default().event("progress").data(piece.to_string()),
            outcome = &mut running => {
                // What was said before the end comes before it.
                let mut last = Vec::new();
                while let Ok(piece) = said.try_recv() {
                    last.push(Event::default().event("progress").data(piece.to_string()));
                }
                last.push(match outcome {
                    Ok(answer) => Event::default().event("answer").data(answer.get()),
                    Err(problem) => {
                        let details = to_value(&problem.details(None)).to_string();
                        Event::default().event("problem").data(details)
                    }
                });
                return Some((last, (None, said)));
            }
        };
        Some((vec![next], (Some(running), said)))
    });
    let events = events.flat_map(stream::iter).map(Ok::<_, Infallible>);
    event_stream(events, Duration::from_secs(15))
}

/// Most versions in one `If-Match`.
const MAX_VERSIONS: usize = 64;

/// The entity tags in a header. Splitting at commas is safe: our tags have none, and no part of a foreign tag looks
/// like ours.
fn tags(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lists = headers.get_all(name).into_iter().filter_map(|list| list.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(str::trim)
}

/// The versions that `If-Match` allows; `None`: any version.
fn seen_versions(headers: &HeaderMap) -> Outcome<Option<Vec<u64>>> {
    if !headers.contains_key(header::IF_MATCH) {
        return Err(Problem::bad_request("If-Match is needed: the ETag of what you edit, or *")
            .status(StatusCode::PRECONDITION_REQUIRED.as_u16()));
    }
    if tags(headers, header::IF_MATCH).any(|seen| seen == "*") {
        return Ok(None);
    }
    // A tag that is not ours matches no version, and neither does a weak one.
    let version = |seen: &str| {
        let quoted = seen.strip_prefix('"')?.strip_suffix('"')?;
        quoted.parse().ok().filter(|version: &u64| version.to_string() == quoted)
    };
    let versions: Vec<u64> = tags(headers, header::IF_MATCH).filter_map(version).collect();
    if versions.len() > MAX_VERSIONS {
        return Err(Problem::bad_request(format!("If-Match lists more than {MAX_VERSIONS} tags")));
    }
    Ok(Some(versions))
}
