//! The steps of a request's commands.

use super::draft::{Draft, in_seconds, offer_timer};
use super::*;
use crate::kernel::entity::Rejection as _;
use crate::kernel::ids::is_valid_id;
use crate::kernel::task::TASK;
use crate::kernel::text::cleaned;
use crate::systems::marketplace::domain::matching::Score;
use crate::systems::marketplace::domain::rejection::FieldError;

mod ending;

pub(super) use ending::booking_cancelled;

pub(super) fn create(
    state: &State,
    mut asked: Asked,
    photos: Vec<String>,
    cx: &DecideCx<'_>,
) -> Decided<Request> {
    if !is_consumers(&asked, cx.caller, "request") {
        return Err(Rejection::NotYours);
    }
    // What the agent heard is not the form in which it was said.
    if cx.caller.user_id().is_none() {
        asked.details = cleaned(&asked.details);
    }
    let mut check = Check::default();
    let are_ids = photos.iter().all(|id| is_valid_id(id));
    let few = format!("must be {MAX_PHOTOS} ids at most");
    check.that(photos.len() <= MAX_PHOTOS && are_ids, "/photos", few);
    check.finish(|errors| Rejection::Invalid { errors })?;
    let mut draft = begin(state, asked, cx)?;
    if !photos.is_empty() {
        draft.event(Event::PhotosShown { photos, at: cx.now });
    }
    draft.run_match();
    Ok(begun(draft))
}

/// A request that a task asks for: of one provider, or of all that fit.
pub(super) fn create_for_task(state: &State, ask: AskFor, cx: &DecideCx<'_>) -> Decided<Request> {
    let AskFor { mut asked, provider_id, task_id } = ask;
    let by_the_task = cx.caller.is_the(TASK, &task_id);
    if !by_the_task || !is_consumers(&asked, cx.caller, "request") {
        return Err(Rejection::NotYours);
    }
    asked.details = cleaned(&asked.details);
    let mut draft = begin(state, asked, cx)?;
    draft.event(Event::FollowedByTask { task_id, at: cx.now });
    match provider_id {
        None => draft.run_match(),
        Some(provider_id) => ask_providers(&mut draft, vec![(provider_id, Score::default())]),
    }
    Ok(begun(draft))
}

fn begin<'a>(
    state: &State,
    mut asked: Asked,
    cx: &'a DecideCx<'a>,
) -> Result<Draft<'a>, Rejection> {
    may_be_asked(&asked, cx.now).map_err(|errors| Rejection::Invalid { errors })?;
    asked.when.earliest = asked.when.earliest.max(cx.now);
    let mut draft = Draft::new(state, cx);
    draft.event(Event::Created { asked, at: cx.now });
    Ok(draft)
}

fn begun(mut draft: Draft<'_>) -> Decision<Request> {
    let day = in_seconds(draft.cx.now, LIFETIME_H * 3_600);
    let expires_at = day.min(draft.asked().when.latest);
    draft.schedule("expiry", expires_at, &Command::Expire);
    draft.announce_request();
    draft.reply_request()
}

/// What is wrong with a request, if anything is.
pub fn may_be_asked(asked: &Asked, now: Timestamp) -> Result<(), Vec<FieldError>> {
    let mut check = Check::default();
    let horizon = in_seconds(now, MAX_DAYS_AHEAD * 86_400);
    check.that(asked.when.latest > now, "/when/latest", "must not be in the past");
    check.that(
        asked.when.earliest <= asked.when.latest,
        "/when/latest",
        "must not be before the earliest time",
    );
    let ahead = format!("must be within {MAX_DAYS_AHEAD} days");
    check.that(asked.when.latest <= horizon, "/when/latest", ahead);
    check.text(&asked.details, 2_000, "/details");
    check.place(&asked.place, "/place");
    check.zone(&asked.time_zone, "/time_zone");
    if let Some(budget) = &asked.budget {
        check.money(budget, "/budget");
    }
    check.finish(|errors| errors)
}

pub(super) fn take_matches(mut draft: Draft<'_>, candidates: Vec<Scored>) -> Decision<Request> {
    let next = &draft.next;
    if next.status != Status::Matching || !next.leads.is_empty() {
        return draft.decision;
    }
    let best: Vec<Scored> = candidates.into_iter().take(MAX_LEADS).collect();
    if best.is_empty() {
        draft.unmatched("no_providers");
        return draft.decision;
    }
    let best = best.into_iter().map(|scored| (scored.provider_id, scored.score)).collect();
    ask_providers(&mut draft, best);
    draft.decision
}

fn ask_providers(draft: &mut Draft<'_>, providers: Vec<(String, Score)>) {
    let provider_ids = providers.iter().map(|(id, _)| id.clone()).collect();
    draft.event(Event::ProvidersMatched { provider_ids, at: draft.cx.now });
    draft.tell(Progress::Matched { providers: providers.len() as u32 });
    for (provider_id, score) in providers {
        let asked = draft.asked().clone();
        let lead = Lead {
            request_id: draft.cx.key.into(),
            service: asked.service,
            details: asked.details,
            place: asked.place,
            when: asked.when,
            budget: asked.budget,
            score,
        };
        draft.effect(Effect::send(provider_id, &ConsiderLead { lead }));
    }
}

pub(super) fn match_failed(mut draft: Draft<'_>, error: String) -> Decision<Request> {
    if draft.next.status != Status::Matching || !draft.next.leads.is_empty() {
        return draft.decision;
    }
    // The error is for operators, and its length is bounded.
    let error = error.chars().take(500).collect();
    draft.event(Event::MatchingFailed { error, at: draft.cx.now });
    if draft.next.match_failures < MATCH_TRIES {
        let at = in_seconds(draft.cx.now, MATCH_RETRY_S);
        draft.schedule("match_retry", at, &Command::RetryMatch);
    } else {
        draft.unmatched("matching_unavailable");
    }
    draft.decision
}

pub(super) fn retry_match(mut draft: Draft<'_>) -> Decision<Request> {
    if draft.next.status == Status::Matching && draft.next.leads.is_empty() {
        draft.run_match();
    }
    draft.decision
}

pub(super) fn receive_offer(mut draft: Draft<'_>, offer: Offer) -> Decided<Request> {
    let provider_id = offer.provider.id.clone();
    let lead = draft.next.leads.iter().find(|lead| lead.provider_id == provider_id);
    let pending = lead.ok_or(Rejection::NotAsked)?.answer == Answer::Pending;
    if !pending {
        return Ok(draft.decision);
    }
    let wanted = draft.next.status.is_searching() || draft.next.status == Status::Accepting;
    if !wanted {
        let offer_id = offer.id;
        draft.effect(Effect::send(provider_id, &DropOffer { offer_id }));
        return Ok(draft.decision);
    }
    let offer = Offer { status: OfferStatus::Open, ..offer };
    let (id, expires_at) = (offer.id.clone(), offer.expires_at);
    let first = draft.next.offers.is_empty();
    let was = draft.next.status;
    draft.event(Event::OfferReceived { offer: offer.clone(), at: draft.cx.now });
    draft.schedule(offer_timer(&id), expires_at, &Command::ExpireOffer { offer_id: id.clone() });
    if draft.next.status != was {
        draft.announce_request();
    }
    draft.announce_new_offer(&id);
    if first {
        let zone = draft.asked().place.time_zone.clone();
        draft.tell(Progress::FirstOffer { offer: OfferSummary::of(&offer, &zone) });
    }
    tell_when_all_answered(&mut draft);
    Ok(draft.decision)
}

pub(super) fn receive_decline(
    mut draft: Draft<'_>,
    provider_id: String,
    decline: Decline,
) -> Decided<Request> {
    let lead = draft.next.leads.iter().find(|lead| lead.provider_id == provider_id);
    if lead.ok_or(Rejection::NotAsked)?.answer != Answer::Pending {
        return Ok(draft.decision);
    }
    draft.event(Event::LeadDeclined { provider_id, decline, at: draft.cx.now });
    tell_when_all_answered(&mut draft);
    draft.settle();
    Ok(draft.decision)
}

fn tell_when_all_answered(draft: &mut Draft<'_>) {
    let next = &draft.next;
    if next.status != Status::Open || next.pending_leads() > 0 || next.leads.len() < 2 {
        return;
    }
    let open = next.open_offers().count() as u32;
    let zone = &draft.asked().place.time_zone;
    let cheapest = picked(next, Pick::Cheapest).and_then(|id| next.offer(&id).cloned());
    if let Some(cheapest) = cheapest {
        let cheapest = OfferSummary::of(&cheapest, zone);
        let shown = next.open_offers().map(|offer| OfferSummary::of(offer, zone)).collect();
        draft.tell(Progress::AllAnswered { offers: open, cheapest, open: shown });
    }
}

/// Ends an open offer. If it is being accepted, the acceptance decides instead.
pub(super) fn end_offer(
    mut draft: Draft<'_>,
    offer_id: String,
    event: impl FnOnce(String, Timestamp) -> Event,
) -> Decision<Request> {
    let open = draft.next.offer(&offer_id).is_some_and(|offer| offer.status == OfferStatus::Open);
    if !open || draft.next.booking_of(&offer_id).is_some() {
        return draft.decision;
    }
    draft.event(event(offer_id.clone(), draft.cx.now));
    draft.effect(Effect::cancel(offer_timer(&offer_id)));
    draft.announce_offer(&offer_id);
    draft.settle();
    draft.decision
}

pub(super) fn decline_offer(mut draft: Draft<'_>, offer_id: &str) -> Decided<Request> {
    let offer = draft.next.offer(offer_id).ok_or(Rejection::OfferNotFound)?;
    let provider_id = offer.provider.id.clone();
    match offer.status {
        OfferStatus::Declined => return Ok(draft.reply_request()),
        OfferStatus::Open => {}
        OfferStatus::Expired => return Err(Rejection::OfferExpired),
        OfferStatus::Unavailable => return Err(draft.next.unavailable(offer_id)),
        OfferStatus::Accepted | OfferStatus::Withdrawn => {
            return Err(Rejection::Closed { status: draft.next.status });
        }
    }
    if draft.next.booking_of(offer_id).is_some() {
        return Err(Rejection::AlreadyAccepting);
    }
    let id = offer_id.to_owned();
    draft.event(Event::OfferDeclined { offer_id: id.clone(), at: draft.cx.now });
    draft.effect(Effect::cancel(offer_timer(offer_id)));
    draft.effect(Effect::send(provider_id, &DropOffer { offer_id: id }));
    draft.announce_offer(offer_id);
    draft.settle();
    Ok(draft.reply_request())
}

pub(super) fn accept(mut draft: Draft<'_>, offer_id: &str) -> Decided<Request> {
    let next = &draft.next;
    let offer = next.offer(offer_id).ok_or(Rejection::OfferNotFound)?;
    let booking_id = next.booking_of(offer_id).map(str::to_owned);
    match (next.status, booking_id) {
        (Status::Accepting, Some(booking_id)) => {
            return Ok(draft.reply(Reply::Accepting { booking_id }));
        }
        (Status::Booked, Some(booking_id)) => {
            return Ok(draft.reply(Reply::Accepted { booking_id }));
        }
        (Status::Accepting, None) => return Err(Rejection::AlreadyAccepting),
        (Status::Booked, None) => return Err(Rejection::AlreadyBooked),
        _ => {}
    }
    match offer.status {
        OfferStatus::Open if offer.expires_at > draft.cx.now => {}
        OfferStatus::Open | OfferStatus::Expired => return Err(Rejection::OfferExpired),
        OfferStatus::Unavailable => return Err(next.unavailable(offer_id)),
        OfferStatus::Declined => return Err(Rejection::OfferDeclined),
        OfferStatus::Accepted | OfferStatus::Withdrawn => {
            return Err(Rejection::Closed { status: next.status });
        }
    }
    let booking_id = draft.cx.ids.mint("bkg");
    draft.event(Event::AcceptanceStarted {
        offer_id: offer_id.into(),
        booking_id: booking_id.clone(),
        at: draft.cx.now,
    });
    ask_to_hold(&mut draft);
    draft.announce_request();
    Ok(draft.reply(Reply::Accepting { booking_id }))
}

/// Sends, or repeats, the hold that the acceptance under way waits for. The provider holds a booking id only once.
fn ask_to_hold(draft: &mut Draft<'_>) {
    let Some(Acceptance { offer_id, booking_id, .. }) = draft.next.acceptance.clone() else {
        return;
    };
    let Some(offer) = draft.next.offer(&offer_id).cloned() else { return };
    let asked = draft.asked().clone();
    let hold = HoldSlot {
        booking_id: booking_id.clone(),
        offer_id,
        request_id: draft.cx.key.into(),
        consumer_id: asked.consumer_id,
        service: asked.service,
        details: asked.details,
        place: asked.place,
        price: offer.price,
        starts_at: offer.starts_at,
        ends_at: offer.ends_at,
        expires_at: offer.expires_at,
    };
    draft.effect(Effect::send(offer.provider.id, &hold));
    let at = in_seconds(draft.cx.now, ACCEPTANCE_TIMEOUT_S);
    draft.schedule("acceptance", at, &Command::AcceptanceOverdue { booking_id });
}

pub(super) fn await_acceptance(state: &State, offer_id: &str) -> Decided<Request> {
    let offer = state.offer(offer_id).ok_or(Rejection::OfferNotFound)?;
    match (state.status, state.booking_of(offer_id)) {
        (Status::Accepting, Some(_)) => Ok(Decision::wait()),
        (Status::Booked, Some(booking_id)) => {
            Ok(Decision::reply(Reply::Accepted { booking_id: booking_id.into() }))
        }
        _ if offer.status == OfferStatus::Unavailable => Err(state.unavailable(offer_id)),
        (Status::Booked, None) => Err(Rejection::AlreadyBooked),
        _ => Err(Rejection::NotAccepting),
    }
}

pub(super) fn refuse_acceptance(
    mut draft: Draft<'_>,
    booking_id: &str,
    reason: String,
) -> Decision<Request> {
    let Some(acceptance) = under_way(&draft.next, booking_id) else { return draft.decision };
    let offer_id = acceptance.offer_id;
    draft.event(Event::AcceptanceRefused {
        offer_id: offer_id.clone(),
        booking_id: booking_id.into(),
        reason,
        at: draft.cx.now,
    });
    draft.effect(Effect::cancel("acceptance"));
    draft.effect(Effect::cancel(offer_timer(&offer_id)));
    draft.announce_request();
    draft.announce_offer(&offer_id);
    let offers = draft.next.open_offers().count() as u32;
    let reason = draft.next.unavailable(&offer_id).reason().into();
    draft.tell(Progress::OfferRefused { offers, reason });
    draft.settle();
    draft.decision
}

fn under_way(state: &State, booking_id: &str) -> Option<Acceptance> {
    let accepting = state.status == Status::Accepting && state.accepts(booking_id);
    state.acceptance.clone().filter(|_| accepting)
}

pub(super) fn overdue(mut draft: Draft<'_>, booking_id: String) -> Decision<Request> {
    match under_way(&draft.next, &booking_id) {
        None => draft.decision,
        Some(acceptance) if acceptance.tries < ACCEPTANCE_TRIES => {
            draft.event(Event::AcceptanceRetried { booking_id, at: draft.cx.now });
            ask_to_hold(&mut draft);
            draft.decision
        }
        Some(_) => abandon(draft, &booking_id, "no_answer".into()),
    }
}

/// Gives up an acceptance. It is unknown whether the time was held, so it is released too: if the provider had held it,
/// the provider also cancels the booking.
pub(super) fn abandon(mut draft: Draft<'_>, booking_id: &str, reason: String) -> Decision<Request> {
    let Some(acceptance) = under_way(&draft.next, booking_id) else { return draft.decision };
    let offer = draft.next.offer(&acceptance.offer_id);
    if let Some(provider_id) = offer.map(|offer| offer.provider.id.clone()) {
        let booking_id = booking_id.into();
        draft.effect(Effect::send(provider_id, &ReleaseSlot { booking_id }));
    }
    refuse_acceptance(draft, booking_id, reason)
}

pub(super) fn confirm(
    mut draft: Draft<'_>,
    booking_id: String,
    offer_id: String,
) -> Decision<Request> {
    if under_way(&draft.next, &booking_id).is_none() {
        let ours = draft.next.status == Status::Booked && draft.next.accepts(&booking_id);
        if !ours {
            // The acceptance was already given up, so the booking must not stand.
            let cancel = BookingCancellation { reason: Some("acceptance_abandoned".into()) };
            draft.effect(Effect::send(booking_id, &cancel));
        }
        return draft.decision;
    }
    draft.effect(Effect::cancel("acceptance"));
    draft.close(Event::Booked {
        offer_id: offer_id.clone(),
        booking_id: booking_id.clone(),
        at: draft.cx.now,
    });
    if let Some(offer) = draft.next.offer(&offer_id) {
        let offer = OfferSummary::of(offer, &draft.asked().place.time_zone);
        draft.tell(Progress::Booked { booking_id, offer });
    }
    draft.decision
}

pub(super) fn cancel(mut draft: Draft<'_>, reason: Option<String>) -> Decided<Request> {
    match draft.next.status {
        Status::Matching | Status::Open => {}
        Status::Cancelled => return Ok(draft.reply_request()),
        Status::Accepting => return Err(Rejection::AlreadyAccepting),
        Status::Booked => return Err(Rejection::AlreadyBooked),
        status @ (Status::Expired | Status::Unmatched) => return Err(Rejection::Closed { status }),
    }
    let mut check = Check::default();
    check.text(reason.as_deref().unwrap_or_default(), 500, "/reason");
    check.finish(|errors| Rejection::Invalid { errors })?;
    draft.close(Event::Cancelled { reason, at: draft.cx.now });
    draft.tell(Progress::Cancelled);
    Ok(draft.reply_request())
}

pub(super) fn expire(mut draft: Draft<'_>) -> Decision<Request> {
    match draft.next.status {
        Status::Matching | Status::Open => {
            draft.close(Event::Expired { at: draft.cx.now });
            draft.tell(Progress::Expired);
        }
        // The acceptance will end by itself soon.
        Status::Accepting => {
            let at = in_seconds(draft.cx.now, ACCEPTANCE_TIMEOUT_S);
            draft.schedule("expiry", at, &Command::Expire);
        }
        Status::Booked | Status::Cancelled | Status::Expired | Status::Unmatched => {}
    }
    draft.decision
}

/// The picked offer among the open ones.
pub(super) fn picked(state: &State, pick: Pick) -> Option<String> {
    let offer = match pick {
        // Among equals, the first to arrive.
        Pick::Best => state
            .open_offers()
            .reduce(|best, offer| if offer.score.total > best.score.total { offer } else { best }),
        Pick::Cheapest => state.open_offers().min_by_key(|offer| offer.price.amount_minor),
        Pick::Nth(n) => state.open_offers().nth(usize::from(n).checked_sub(1)?),
    };
    offer.map(|offer| offer.id.clone())
}
