//! The booking as clients and read models see it.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Agreed, Cancellation, Review, State, Status};
use crate::kernel::view::{Listed, View};
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::places::Place;
use crate::systems::marketplace::domain::profile::ProviderCard;
use crate::systems::marketplace::domain::service::Service;

/// What the API, the read model's `detail` and the `booking:` events show of a booking.
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

/// The row of a booking: what is shown of it, and the columns that rows are found by.
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
        let shown = detail.clone();
        Self {
            id: shown.id,
            request_id: shown.request_id,
            offer_id: shown.offer_id,
            consumer_id: shown.consumer_id,
            provider_id: shown.provider.id,
            provider_owner_id: agreed.provider_owner_id.clone(),
            service: shown.service,
            status: shown.status,
            price: shown.price,
            starts_at: shown.starts_at,
            ends_at: shown.ends_at,
            place: shown.place,
            created_at: shown.created_at,
            updated_at: shown.updated_at,
            detail,
        }
    }
}

impl View for BookingRow {
    const NAME: &'static str = "bookings";
    const LISTED: Option<Listed> = Listed::by("consumer_id", "created_at");
}
