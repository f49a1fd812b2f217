//! How a request is shown: to clients, and as rows of read models.

use serde_json::{Value, json};

use super::{Event, State};
use crate::kernel::entity::ViewRow;
use crate::systems::marketplace::domain::offer::{Offer, offer_json};

/// What the API, the read model and `request:updated` show.
pub fn request_json(id: &str, state: &State) -> Value {
    let Some(asked) = &state.asked else { return Value::Null };
    json!({
        "id": id,
        "consumer_id": asked.consumer_id,
        "session_id": asked.session_id,
        "service": asked.service,
        "status": state.status,
        "reason": state.reason,
        "details": asked.details,
        "place": asked.place,
        "earliest": asked.when.earliest,
        "latest": asked.when.latest,
        "exact": asked.when.exact,
        "time_zone": asked.time_zone,
        "budget": asked.budget,
        "offers_count": state.offers.len(),
        "booking_id": state.acceptance.as_ref().map(|a| &a.booking_id),
        "created_at": state.created_at,
        "updated_at": state.updated_at,
    })
}

/// `offer_json` with the columns that rows are found by.
fn offer_row(key: &str, state: &State, offer: &Offer) -> ViewRow {
    let mut row = offer_json(key, offer, state.booking_of(&offer.id));
    row["provider_id"] = json!(offer.provider.id);
    row["consumer_id"] = json!(state.asked.as_ref().map(|asked| &asked.consumer_id));
    ViewRow::new("offers", row)
}

/// The request, and the offers that `events` changed.
pub(super) fn rows(key: &str, state: &State, events: &[Event]) -> Vec<ViewRow> {
    if events.is_empty() || state.asked.is_none() {
        return Vec::new();
    }
    let touched = |offer: &&Offer| events.iter().any(|event| touches(event, &offer.id));
    let offers = state.offers.iter().filter(touched).map(|offer| offer_row(key, state, offer));
    std::iter::once(ViewRow::new("requests", request_json(key, state))).chain(offers).collect()
}

/// Whether the row of this offer is another one after this event.
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
        | Event::MatchingFailed { .. }
        | Event::ProvidersMatched { .. }
        | Event::LeadDeclined { .. }
        | Event::AcceptanceRetried { .. } => false,
    }
}
