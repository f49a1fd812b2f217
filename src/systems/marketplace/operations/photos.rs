//! Photos of a request, for its consumer and for the providers who were asked.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::cluster::CommandMeta;
use crate::contract::call::known_id;
use crate::contract::{Call, Meta, Operation, Outcome, Problem};
use crate::kernel::error::AskError;
use crate::persistence::views::Cursor;
use crate::systems::marketplace::domain::request::{self, Request, RequestView};
use crate::systems::marketplace::views;
use crate::systems::photos::api::{self as photos, PhotoView};

/// One person has few providers.
const MAX_OWN: usize = 100;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct RequestPhoto {
    request_id: String,
    photo_id: String,
}

/// A photo of a request, as it was sent.
pub struct Show;

impl Operation for Show {
    const META: Meta = Meta::query("request.photo", "A photo of a request itself")
        .get("/v1/requests/{request_id}/photos/{photo_id}")
        .answers_bytes();
    type Input = RequestPhoto;
    type Answer = PhotoView;

    async fn run(call: &Call, input: RequestPhoto) -> Outcome<PhotoView> {
        let RequestPhoto { request_id, photo_id } = input;
        let id = known_id(&request_id, "request")?;
        let request = call.views()?.get::<RequestView>(id).await?;
        let no_photo = || Problem::not_found("photo");
        let request = request.ok_or_else(no_photo)?;
        let may_see = request.photos.contains(&photo_id)
            && (*request.consumer_id == *call.user_id || was_asked(call, id).await?);
        if !may_see {
            return Err(no_photo());
        }
        photos::answer(call, &request.consumer_id, &photo_id, Self::META).await
    }
}

/// Whether the request was sent to a provider of the caller's.
async fn was_asked(call: &Call, request_id: &str) -> Outcome<bool> {
    let (views, caller) = (call.views()?, Some(&*call.user_id));
    let own = views::providers(views, None, None, caller, Cursor::first(), MAX_OWN).await?.items;
    if own.is_empty() {
        return Ok(false);
    }
    let request = call.services.entities.of::<Request>(request_id);
    match request.ask(request::Command::WhoWasAsked, CommandMeta::runtime()).await? {
        Ok(request::Reply::Asked { provider_ids }) => {
            Ok(own.iter().any(|provider| provider_ids.contains(&provider.id)))
        }
        Ok(_) => Err(AskError::Internal.into()),
        Err(rejection) => Err(Problem::rejection(&rejection)),
    }
}
