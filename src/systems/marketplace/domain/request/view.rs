//! Views of a request: for clients, in announcements to them, and as rows of read models.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::{Event, State, Status};
use crate::kernel::entity::Announcement;
use crate::kernel::view::{Listed, View, ViewRow};
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::offer::{Offer, OfferView};
use crate::systems::marketplace::domain::places::Place;
use crate::systems::marketplace::domain::service::Service;

const USER: &[&str] = &["user"];

/// What the API, the read model and `request:updated` show of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Request")]
pub struct RequestView {
    pub id: String,
    pub consumer_id: String,
    /// Where the agent talks about it.
    pub session_id: Option<String>,
    pub service: Service,
    pub status: Status,
    /// Why it ended.
    pub reason: Option<String>,
    pub details: String,
    pub place: Place,
    pub earliest: Timestamp,
    pub latest: Timestamp,
    pub exact: bool,
    pub time_zone: String,
    pub budget: Option<Money>,
    pub offers_count: u32,
    pub booking_id: Option<String>,
    /// Photos that the providers who were asked see too.
    #[serde(default, deserialize_with = "none_before")]
    pub photos: Vec<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Rows of before have none.
fn none_before<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

impl RequestView {
    /// The view of a request; `None`: it was never created.
    pub fn of(id: &str, state: &State) -> Option<Self> {
        let asked = state.asked.clone()?;
        Some(Self {
            id: id.into(),
            consumer_id: asked.consumer_id,
            session_id: asked.session_id,
            service: asked.service,
            status: state.status,
            reason: state.reason.clone(),
            details: asked.details,
            place: asked.place,
            earliest: asked.when.earliest,
            latest: asked.when.latest,
            exact: asked.when.exact,
            time_zone: asked.time_zone,
            budget: asked.budget,
            offers_count: state.offers.len() as u32,
            photos: state.photos.clone(),
            booking_id: state.acceptance.as_ref().map(|a| a.booking_id.clone()),
            created_at: state.created_at?,
            updated_at: state.updated_at?,
        })
    }
}

impl View for RequestView {
    const NAME: &'static str = "requests";
    const LISTED: Option<Listed> = Listed::by("consumer_id", "created_at");
}

impl Announcement for RequestView {
    const EVENT: &'static str = "request:updated";
    const SUMMARY: &'static str = "A request has changed: the whole of it";
    const TOPICS: &'static [&'static str] = USER;
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct OfferMade {
    pub request_id: String,
    pub offer: OfferView,
}

impl Announcement for OfferMade {
    const EVENT: &'static str = "offer:new";
    const SUMMARY: &'static str = "A provider makes an offer";
    const TOPICS: &'static [&'static str] = USER;
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct OfferChanged {
    pub request_id: String,
    pub offer: OfferView,
}

impl Announcement for OfferChanged {
    const EVENT: &'static str = "offer:updated";
    const SUMMARY: &'static str = "An offer has changed";
    const TOPICS: &'static [&'static str] = USER;
}

/// What clients see of an offer, with the columns that rows are found by.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct OfferRow {
    #[serde(flatten)]
    pub offer: OfferView,
    pub provider_id: String,
    pub consumer_id: String,
}

impl View for OfferRow {
    const NAME: &'static str = "offers";
    const LISTED: Option<Listed> = Listed::by("request_id", "created_at");
}

/// The rows of the request and of the offers that `events` changed.
pub(super) fn rows(key: &str, state: &State, events: &[Event]) -> Vec<ViewRow> {
    let Some(request) = RequestView::of(key, state).filter(|_| !events.is_empty()) else {
        return Vec::new();
    };
    let touched = |offer: &&Offer| events.iter().any(|event| touches(event, &offer.id));
    let offers = state.offers.iter().filter(touched).map(|offer| {
        let row = OfferRow {
            offer: OfferView::new(key, offer, state.booking_of(&offer.id)),
            provider_id: offer.provider.id.clone(),
            consumer_id: request.consumer_id.clone(),
        };
        ViewRow::of(&row)
    });
    let offers: Vec<_> = offers.collect();
    std::iter::once(ViewRow::of(&request)).chain(offers).collect()
}

/// Whether this event changes the row of this offer.
fn touches(event: &Event, id: &str) -> bool {
    match event {
        Event::OfferReceived { offer, .. } => offer.id == id,
        Event::OfferExpired { offer_id, .. }
        | Event::OfferDeclined { offer_id, .. }
        | Event::OfferWithdrawn { offer_id, .. }
        | Event::AcceptanceStarted { offer_id, .. }
        | Event::AcceptanceRefused { offer_id, .. } => offer_id == id,
        Event::Booked { .. }
        | Event::Cancelled { .. }
        | Event::BookingCancelled { .. }
        | Event::Expired { .. }
        | Event::Unmatched { .. } => true,
        Event::Created { .. }
        | Event::FollowedByTask { .. }
        | Event::MatchingFailed { .. }
        | Event::ProvidersMatched { .. }
        | Event::LeadDeclined { .. }
        | Event::PhotosShown { .. }
        | Event::AcceptanceRetried { .. } => false,
    }
}
