//! The steps of a provider's commands.

use super::leads::{by_policy, keep_open};
use super::*;

pub(super) fn enroll(
    state: &State,
    owner_id: String,
    profile: Profile,
    standing: Option<Reputation>,
    cx: &DecideCx<'_>,
) -> Decided<Provider> {
    // A caller who acts for a person does not have that person's role, which an enrolment requires.
    if !(cx.caller.is_itself() || cx.caller.user_id() == Some(&*owner_id)) {
        return Err(Rejection::NotYours);
    }
    if standing.is_some() && !cx.caller.is_itself() {
        return Err(Rejection::InternalOnly);
    }
    check(&profile, None, cx.now, "/profile")?;
    let standing = standing.unwrap_or_default();
    Ok(changed(state, Event::Enrolled { owner_id, profile, standing, at: cx.now }, cx))
}

pub(super) fn update(
    state: &State,
    profile: &Profile,
    patch: ProfilePatch,
    seen: Option<(u64, Vec<u64>)>,
    cx: &DecideCx<'_>,
) -> Decided<Provider> {
    if !cx.caller.may_act_for(&state.owner_id, "provider") {
        return Err(Rejection::NotYours);
    }
    let current =
        |(one, others): &(u64, Vec<u64>)| *one == state.version || others.contains(&state.version);
    if seen.is_some_and(|seen| !current(&seen)) {
        return Err(Rejection::VersionMismatch { current: state.version });
    }
    let new = patch.apply(profile);
    check(&new, Some(profile), cx.now, "")?;
    if new == *profile {
        return Ok(shown(cx.key, state));
    }
    let expired = |offer: &&OpenOffer| offer.expires_at <= cx.now;
    let gone = state.offers.iter().filter(|offer| !expired(offer) && !offer.stands(&new));
    let gone: Vec<(String, String)> =
        gone.map(|offer| (offer.id.clone(), offer.request_id.clone())).collect();
    let mut decision = changed(state, Event::Updated { profile: new, at: cx.now }, cx);
    for (offer_id, request_id) in gone {
        let reason = Some("offer_withdrawn".into());
        let withdraw = WithdrawOffer { offer_id: offer_id.clone(), reason };
        decision = decision
            .event(Event::OfferWithdrawn { offer_id, at: cx.now })
            .effect(Effect::send(request_id, &withdraw));
    }
    Ok(decision)
}

fn check(
    profile: &Profile,
    known: Option<&Profile>,
    now: Timestamp,
    pointer: &str,
) -> Result<(), Rejection> {
    let mut check = Check::default();
    profile.check(&mut check);
    if check.errors.is_empty() && known.is_none_or(|known| known.base != profile.base) {
        profile.check_zone(now, &mut check);
    }
    for error in &mut check.errors {
        error.pointer.insert_str(0, pointer);
    }
    check.finish(|errors| Rejection::Invalid { errors })
}

pub(super) fn consider_lead(
    state: &State,
    profile: &Profile,
    lead: Lead,
    cx: &DecideCx<'_>,
) -> Decision<Provider> {
    if let Some(open) = keep_open(state, profile, &lead, cx) {
        return open;
    }
    let decision = Decision::reply(Reply::Done)
        .event(Event::LeadReceived { request_id: lead.request_id.clone(), at: cx.now });
    by_policy(decision, state, profile, lead, cx)
}

/// Makes the offer. Its id comes with the decision.
pub(super) fn offered(
    decision: Decision<Provider>,
    state: &State,
    profile: &Profile,
    lead: Lead,
    terms: Terms,
    cx: &DecideCx<'_>,
) -> (Decision<Provider>, String) {
    let Terms { price, slot, expires_at, message } = terms;
    let id = cx.ids.mint("off");
    let offer = Offer {
        id: id.clone(),
        provider: ProviderCard::new(cx.key, profile, &state.standing),
        price: price.clone(),
        starts_at: slot.starts_at,
        ends_at: slot.ends_at,
        message,
        score: lead.score,
        status: OfferStatus::Open,
        created_at: cx.now,
        expires_at,
    };
    let job = Job {
        service: lead.service,
        latitude: lead.place.latitude,
        longitude: lead.place.longitude,
    };
    let (request_id, job) = (lead.request_id.clone(), Some(job));
    let open = OpenOffer { id: id.clone(), request_id, price, slot, expires_at, job };
    let decision = decision
        .event(Event::OfferMade { offer: open, at: cx.now })
        .effect(Effect::send(lead.request_id, &ReceiveOffer { offer }));
    (decision, id)
}

pub(super) fn declined(
    decision: Decision<Provider>,
    lead: Lead,
    decline: Decline,
    cx: &DecideCx<'_>,
) -> Decision<Provider> {
    let request_id = lead.request_id.clone();
    let answer = ReceiveDecline { provider_id: cx.key.into(), decline: decline.clone() };
    decision
        .event(Event::LeadDeclined { request_id, decline, at: cx.now })
        .effect(Effect::send(lead.request_id, &answer))
}

pub(super) fn hold_slot(
    state: &State,
    profile: &Profile,
    hold: HoldSlot,
    cx: &DecideCx<'_>,
) -> Decision<Provider> {
    let slot = Span { starts_at: hold.starts_at, ends_at: hold.ends_at };
    let refusal = if state.held(&hold.booking_id).is_some() {
        // A repeated hold: confirm to the booking again, which answers the request again.
        return Decision::reply(Reply::Done).effect(confirmation(state, profile, hold, cx));
    } else {
        refusal(state, profile, &hold, &slot, cx.now)
    };
    if let Some(reason) = refusal {
        let HoldSlot { offer_id, booking_id, request_id, .. } = hold;
        let refused = HoldRefused { offer_id, booking_id, reason: reason.into() };
        return Decision::reply(Reply::Done).effect(Effect::send(request_id, &refused));
    }
    let taken = slot.with_travel();
    let impossible = state
        .offers
        .iter()
        .filter(|offer| offer.id != hold.offer_id && offer.slot.overlaps(&taken))
        .map(|offer| {
            let (offer_id, reason) = (offer.id.clone(), Some("slot_taken".into()));
            let withdraw = WithdrawOffer { offer_id, reason };
            Effect::send(offer.request_id.clone(), &withdraw)
        })
        .collect::<Vec<_>>();
    let held = Event::SlotHeld {
        booking_id: hold.booking_id.clone(),
        offer_id: hold.offer_id.clone(),
        slot,
        at: cx.now,
    };
    Decision::reply(Reply::Done)
        .event(held)
        .effect(confirmation(state, profile, hold, cx))
        .effects(impossible)
}

/// The reason why these terms cannot be kept.
fn refusal(
    state: &State,
    profile: &Profile,
    hold: &HoldSlot,
    slot: &Span,
    now: Timestamp,
) -> Option<&'static str> {
    let promise = Promise {
        service: hold.service,
        at: (hold.place.latitude, hold.place.longitude),
        price: &hold.price,
        slot: *slot,
        expires_at: hold.expires_at,
    };
    if hold.consumer_id == state.owner_id {
        Some("own_provider")
    } else if slot.starts_at <= now || now > later(hold.expires_at, ACCEPTANCE_GRACE_MINUTES) {
        Some("offer_expired")
    } else if !profile.calendar(&state.busy()).is_free(slot) {
        Some("slot_taken")
    } else if state.holds.iter().filter(|held| held.slot.ends_at > now).count() >= MAX_HOLDS {
        Some("calendar_full")
    } else if !promise.stands(profile) {
        Some("offer_withdrawn")
    } else {
        None
    }
}

fn confirmation(state: &State, profile: &Profile, hold: HoldSlot, cx: &DecideCx<'_>) -> Effect {
    let agreed = Agreed {
        request_id: hold.request_id,
        offer_id: hold.offer_id,
        consumer_id: hold.consumer_id,
        provider: ProviderCard::new(cx.key, profile, &state.standing),
        provider_owner_id: state.owner_id.clone(),
        service: hold.service,
        details: hold.details,
        place: hold.place,
        price: hold.price,
        starts_at: hold.starts_at,
        ends_at: hold.ends_at,
    };
    Effect::send(hold.booking_id, &agreed)
}

pub(super) fn release_slot(
    state: &State,
    booking_id: String,
    cx: &DecideCx<'_>,
) -> Decision<Provider> {
    let decision = Decision::reply(Reply::Done);
    let Some(held) = state.held(&booking_id) else { return decision };
    let released =
        Event::SlotReleased { booking_id: booking_id.clone(), slot: held.slot, at: cx.now };
    let decision = decision.event(released);
    // The booking that asks for the release knows of its own end.
    if cx.caller.is_the(BOOKING, &booking_id) && !cx.caller.is_itself() {
        return decision;
    }
    let cancel = BookingCancellation { reason: Some("acceptance_abandoned".into()) };
    decision.effect(Effect::send(booking_id, &cancel))
}
