//! The end of a request after it was booked.

use super::*;

/// Handles the cancellation of the booking: the consumer may make a new request.
pub(in crate::systems::marketplace::domain::request) fn booking_cancelled(
    mut draft: Draft<'_>,
    booking_id: String,
    by: Party,
) -> Decision<Request> {
    if draft.next.status != Status::Booked || !draft.next.accepts(&booking_id) {
        return draft.decision;
    }
    let offer = draft.next.acceptance.as_ref().and_then(|a| draft.next.offer(&a.offer_id)).cloned();
    draft.close(Event::BookingCancelled { booking_id, by, at: draft.cx.now });
    let zone = draft.asked().place.time_zone.clone();
    let offer = offer.map(|offer| OfferSummary::of(&offer, &zone));
    draft.tell(Progress::BookingCancelled { by, offer });
    draft.decision
}
