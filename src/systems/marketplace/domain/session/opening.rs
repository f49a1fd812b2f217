//! The beginning of a session, and its end.

use super::*;
use crate::kernel::conversation::RunCancellation;

pub(super) fn open(
    state: &State,
    time_zone: String,
    locale: String,
    currency: Option<String>,
    cx: &DecideCx<'_>,
) -> Decided<Session> {
    let user_id = cx.caller.user_id().ok_or(Rejection::UserOnly)?.to_owned();
    let mut check = Check::default();
    check.zone(&time_zone, "/time_zone");
    check.length(&locale, 2, 35, "/locale");
    if let Some(currency) = &currency {
        check.that(is_currency(currency), "/currency", "must be an ISO 4217 code such as EUR");
    }
    check.finish(|errors| Rejection::Invalid { errors })?;
    // An opening without a currency leaves it unchanged, as with zone and locale, which the edge fills in.
    let currency = currency.or_else(|| state.currency.clone());
    let created = state.created_at.is_none();
    let same = !created
        && !state.ended
        && (&state.time_zone, &state.locale, &state.currency) == (&time_zone, &locale, &currency);
    let decision = Decision::reply(Reply::Opened { session_id: cx.key.into(), created });
    if same {
        return Ok(decision);
    }
    Ok(decision.event(Event::Opened { user_id, time_zone, locale, currency, at: cx.now }))
}

pub(super) fn close(state: &State, end: bool, cx: &DecideCx<'_>) -> Decision<Session> {
    let decision = Decision::reply(Reply::Done);
    if !end || state.ended {
        return decision;
    }
    let run = state.thinking.as_ref();
    let stop = run.map(|run| Effect::send(run.run_id.as_str(), &RunCancellation));
    decision
        .effects(stop)
        .event(Event::Ended { at: cx.now })
        .effect(Effect::announce(&SessionEnded { session_id: cx.key.into() }))
}
