//! The booking as clients and read models see it, and its announcements.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cancellation, Review, State, Status};
use crate::kernel::entity::Announcement;
use crate::kernel::view::{Listed, View};
use crate::systems::marketplace::domain::messages::Agreed;
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::places::Place;
use crate::systems::marketplace::domain::profile::ProviderCard;
use crate::systems::marketplace::domain::service::Service;

const TOPICS: &[&str] = &["user", "booking"];

/// The booking as the API, the read model's `detail` and the `booking:` events show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Booking")]
pub struct BookingView {
    pub id: String,
    pub request_id: String,
    pub offer_id: String,
    pub consumer_id: String,
    pub provider: ProviderCard,
    pub service: Service,
    pub details: String,
    pub price: Money,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
    pub place: Place,
    pub status: Status,
    pub review: Option<Review>,
    pub cancellation: Option<Cancellation>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl BookingView {
    /// The view of a booking; `None`: nothing has been agreed yet.
    pub fn of(id: &str, state: &State) -> Option<Self> {
        let agreed = state.agreed.clone()?;
        Some(Self {
            id: id.into(),
            request_id: agreed.request_id,
            offer_id: agreed.offer_id,
            consumer_id: agreed.consumer_id,
            provider: agreed.provider,
            service: agreed.service,
            details: agreed.details,
            price: agreed.price,
            starts_at: agreed.starts_at,
            ends_at: agreed.ends_at,
            place: agreed.place,
            status: state.status,
            review: state.review.clone(),
            cancellation: state.cancellation.clone(),
            created_at: state.created_at?,
            updated_at: state.updated_at?,
        })
    }
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct AppointmentAgreed {
    pub booking: BookingView,
}

impl Announcement for AppointmentAgreed {
    const EVENT: &'static str = "booking:confirmed";
    const SUMMARY: &'static str = "An appointment is agreed";
    const TOPICS: &'static [&'static str] = TOPICS;
}

/// A change of a booking, as it is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BookingChange {
    Started,
    Completed,
    Cancelled,
    Reviewed,
    /// The consumer did not appear.
    NoShow,
    /// The start is `hours_before` hours away.
    Reminder,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct BookingChanged {
    pub kind: BookingChange,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hours_before: Option<u8>,
    pub booking: BookingView,
}

impl Announcement for BookingChanged {
    const EVENT: &'static str = "booking:updated";
    const SUMMARY: &'static str = "A booking has changed, or is near: what happened is its kind";
    const TOPICS: &'static [&'static str] = TOPICS;
}

/// The row of a booking: its view, and the columns that rows are searched by.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct BookingRow {
    pub id: String,
    pub request_id: String,
    pub offer_id: String,
    pub consumer_id: String,
    pub provider_id: String,
    pub provider_owner_id: String,
    pub service: Service,
    pub status: Status,
    pub price: Money,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
    pub place: Place,
    pub detail: BookingView,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl BookingRow {
    pub fn of(agreed: &Agreed, detail: BookingView) -> Self {
        Self {
            id: detail.id.clone(),
            request_id: detail.request_id.clone(),
            offer_id: detail.offer_id.clone(),
            consumer_id: detail.consumer_id.clone(),
            provider_id: detail.provider.id.clone(),
            provider_owner_id: agreed.provider_owner_id.clone(),
            service: detail.service,
            status: detail.status,
            price: detail.price.clone(),
            starts_at: detail.starts_at,
            ends_at: detail.ends_at,
            place: detail.place.clone(),
            created_at: detail.created_at,
            updated_at: detail.updated_at,
            detail,
        }
    }
}

impl View for BookingRow {
    const NAME: &'static str = "bookings";
    const LISTED: Option<Listed> = Listed::by("consumer_id", "created_at");
}
