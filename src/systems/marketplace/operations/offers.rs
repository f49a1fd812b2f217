//! Offers, with which providers' agents answer a request.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::requests;
use crate::cluster;
use crate::contract::call::known_id;
use crate::contract::list::{After, Limit, Page, Paging};
use crate::contract::operation::ToolEffect;
use crate::contract::{Call, Meta, Operation, Outcome, Problem};
use crate::kernel::error::AskError;
use crate::systems::marketplace::domain::messages::AcceptOffer;
use crate::systems::marketplace::domain::offer::{OfferStatus, OfferView};
use crate::systems::marketplace::domain::request::{self, OfferRow, Request};

#[derive(Debug, Deserialize, JsonSchema)]
pub struct ListOffers {
    request_id: String,
    limit: Option<Limit>,
    cursor: Option<After>,
}

/// Lists the offers to a request of the caller.
pub struct List;

impl Operation for List {
    const META: Meta =
        Meta::query("offer.list", "List the offers to a request, in order of arrival")
            .get("/v1/requests/{request_id}/offers")
            .tool("get_offers", ToolEffect::ReadOnly)
            .resource("proxie://requests/{request_id}/offers");
    type Input = ListOffers;
    type Answer = Page<OfferView>;

    async fn run(call: &Call, input: ListOffers) -> Outcome<Page<OfferView>> {
        let ListOffers { request_id, limit, cursor } = input;
        requests::shown(call, &request_id).await?;
        let rows = call.rows_of::<Self, OfferRow>(&request_id, false, Paging { limit, cursor });
        Ok(rows.await?.map(|row| row.offer))
    }
}

/// An offer to the caller, else `not_found`.
async fn shown(call: &Call, id: &str) -> Outcome<OfferView> {
    let offer = call.views()?.get::<OfferRow>(known_id(id, "offer")?).await?;
    let own = offer.filter(|offer| *offer.consumer_id == *call.user_id);
    own.map(|own| own.offer).ok_or_else(|| Problem::not_found("offer"))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "OfferId")]
pub struct OfferById {
    offer_id: String,
}

/// Returns an offer to the caller.
pub struct Get;

impl Operation for Get {
    const META: Meta = Meta::query("offer.get", "Get an offer").get("/v1/offers/{offer_id}");
    type Input = OfferById;
    type Answer = OfferView;

    async fn run(call: &Call, OfferById { offer_id }: OfferById) -> Outcome<OfferView> {
        shown(call, &offer_id).await
    }
}

/// The booking that an acceptance led to.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Accepted")]
pub struct OfferAccepted {
    booking_id: String,
}

/// Accepts an offer and waits for the provider's confirmation: the answer is the booking, or the reason why not.
pub struct Accept;

impl Operation for Accept {
    const META: Meta = Meta::command("offer.accept", "Accept an offer and wait for the booking")
        .post("/v1/offers/{offer_id}/accept")
        .tool("accept_offer", ToolEffect::Destructive)
        .tool_description(
            "Accept an offer: binding, it books the appointment. Ask the person first",
        );
    type Input = OfferById;
    type Answer = OfferAccepted;

    async fn run(call: &Call, OfferById { offer_id }: OfferById) -> Outcome<OfferAccepted> {
        let request_id = shown(call, &offer_id).await?.request_id;
        let meta = call.meta();
        let deadline = meta.deadline;
        let accept = request::Command::AcceptOffer(AcceptOffer { offer_id: offer_id.clone() });
        if let request::Reply::Accepted { booking_id } =
            call.ask::<Request>(&request_id, accept, meta).await?
        {
            return Ok(OfferAccepted { booking_id });
        }
        // The acceptance is durable and continues without this call. The query waits for its end.
        let wait = cluster::CommandMeta { deadline, ..call.undeduplicated() };
        let outcome = request::Command::AwaitAcceptance { offer_id };
        match call.ask::<Request>(&request_id, outcome, wait).await? {
            request::Reply::Accepted { booking_id } => Ok(OfferAccepted { booking_id }),
            _ => Err(AskError::Internal.into()),
        }
    }
}

/// An offer that was declined.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Declined {
    offer_id: String,
    request_id: String,
    status: OfferStatus,
}

/// Declines an offer.
pub struct Decline;

impl Operation for Decline {
    const META: Meta = Meta::command("offer.decline", "Decline an offer")
        .post("/v1/offers/{offer_id}/decline")
        .tool("decline_offer", ToolEffect::Destructive);
    type Input = OfferById;
    type Answer = Declined;

    async fn run(call: &Call, OfferById { offer_id }: OfferById) -> Outcome<Declined> {
        let request_id = shown(call, &offer_id).await?.request_id;
        let decline = request::Command::DeclineOffer { offer_id: offer_id.clone() };
        call.ask::<Request>(&request_id, decline, call.meta()).await?;
        Ok(Declined { offer_id, request_id, status: OfferStatus::Declined })
    }
}
