//! What the agent does with a message, and what it says.

use serde_json::{Value, json};

use super::{AskedOf, Current, Event, Progress, Reply, Session, State, words};
use crate::domain::marketplace::language::{self, Intent, Understanding, Which};
use crate::domain::marketplace::request::{self, Asked, Pick, Request, Status};
use crate::kernel::entity::{DecideCx, Decision, Effect};

/// The message is kept and published, then answered.
pub(super) fn answer(
    state: &State,
    content: String,
    media: Vec<String>,
    cx: &DecideCx<'_>,
) -> Decision<Session> {
    let message_id = cx.ids.mint("msg");
    let message = json!({
        "session_id": cx.key,
        "message_id": message_id,
        "role": "user",
        "content": content,
        "media": media,
        "created_at": cx.now,
    });
    let heard = match state.draft.clone() {
        Some(draft) => language::answer(draft, &content, cx.now, &state.tz()),
        None => language::understand(&content, cx.now, &state.tz()),
    };
    let received =
        Event::MessageReceived { message_id: message_id.clone(), content, media, at: cx.now };
    let decision = Decision::reply(Reply::Sent { message_id })
        .event(received)
        .effect(Effect::publish("chat:message", message));
    let current = state.current.as_ref();
    match heard.intent {
        Intent::Greeting => say(decision, words::greeting(), json!({}), cx),
        Intent::Thanks => say(decision, words::welcome(), json!({}), cx),
        Intent::Help => say(decision, words::help(), json!({}), cx),
        Intent::Status => {
            say(decision, words::status(current, state.draft.is_some()), about(current), cx)
        }
        Intent::Cancel => cancel(decision, state, cx),
        Intent::Accept(which) => accept(decision, current, pick(which), cx),
        Intent::Request => understand(decision, state, heard, cx),
    }
}

fn about(current: Option<&Current>) -> Value {
    current.map_or(json!({}), |current| json!({"request_id": current.request_id}))
}

fn to_request(request_id: &str, command: &request::Command) -> Effect {
    Effect::send::<Request>(request_id, command)
}

fn understand(
    decision: Decision<Session>,
    state: &State,
    known: Understanding,
    cx: &DecideCx<'_>,
) -> Decision<Session> {
    let missing = language::missing(&known);
    let (Some(service), Some(place), Some(when), true) =
        (known.service, known.place.clone(), known.when, missing.is_empty())
    else {
        let question = language::question(&known);
        let decision = decision.event(Event::DraftChanged { draft: Some(known) });
        return say(decision, question, json!({"missing": missing}), cx);
    };
    let request_id = cx.ids.mint("req");
    let asked = Asked {
        consumer_id: state.user_id.clone(),
        session_id: Some(cx.key.into()),
        service,
        details: known.details.chars().take(2_000).collect(),
        time_zone: place.time_zone.clone(),
        place,
        when,
        budget: known.budget,
    };
    let content = words::searching(&asked);
    let decision = decision
        .event(Event::RequestStarted { request_id: request_id.clone(), service })
        .effect(to_request(&request_id, &request::Command::Create(asked)));
    say(decision, content, json!({"request_id": request_id}), cx)
}

fn cancel(decision: Decision<Session>, state: &State, cx: &DecideCx<'_>) -> Decision<Session> {
    if state.draft.is_some() {
        let decision = decision.event(Event::DraftChanged { draft: None });
        return say(decision, words::forgotten(), json!({}), cx);
    }
    match &state.current {
        Some(current) if current.status.is_searching() => {
            let command = request::Command::Cancel { reason: None };
            let decision = decision.effect(to_request(&current.request_id, &command));
            say(decision, words::cancelling(), about(Some(current)), cx)
        }
        current => say(decision, words::nothing_to_cancel(), about(current.as_ref()), cx),
    }
}

fn pick(which: Which) -> Pick {
    match which {
        Which::Cheapest => Pick::Cheapest,
        Which::Best => Pick::Best,
        Which::Nth(n) => Pick::Nth(n),
    }
}

fn accept(
    decision: Decision<Session>,
    current: Option<&Current>,
    pick: Pick,
    cx: &DecideCx<'_>,
) -> Decision<Session> {
    match current {
        Some(open) if open.status == Status::Open => {
            let command = request::Command::AcceptPick { pick };
            let decision = decision.effect(to_request(&open.request_id, &command));
            say(decision, words::accepting(), about(current), cx)
        }
        _ => say(decision, words::nothing_to_accept(), about(current), cx),
    }
}

pub(super) fn tell(
    state: &State,
    request_id: String,
    progress: Progress,
    cx: &DecideCx<'_>,
) -> Decision<Session> {
    let offers_before = state.current.as_ref().map_or(0, |current| current.offers);
    let (status, offers) = match &progress {
        Progress::Matched { .. } => (Status::Matching, 0),
        Progress::FirstOffer { .. } => (Status::Open, 1),
        Progress::AllAnswered { offers, .. } | Progress::OfferRefused { offers } => {
            (Status::Open, *offers)
        }
        Progress::Booked { .. } => (Status::Booked, offers_before),
        Progress::Unmatched { .. } => (Status::Unmatched, 0),
        Progress::Cancelled => (Status::Cancelled, 0),
        Progress::Expired => (Status::Expired, 0),
    };
    let mut data = json!({"request_id": request_id, "status": status});
    match &progress {
        Progress::FirstOffer { offer } => data["offer_id"] = json!(offer.offer_id),
        Progress::AllAnswered { cheapest, .. } => data["offer_id"] = json!(cheapest.offer_id),
        Progress::Booked { booking_id, offer } => {
            data["booking_id"] = json!(booking_id);
            data["offer_id"] = json!(offer.offer_id);
        }
        Progress::Unmatched { reason, reasons, lowest_price } => {
            data["reason"] = json!(reason);
            data["reasons"] = json!(reasons);
            data["lowest_price"] = json!(lowest_price);
        }
        _ => {}
    }
    let decision =
        Decision::reply(Reply::Done).event(Event::RequestFollowed { request_id, status, offers });
    say(decision, words::progress(&progress), data, cx)
}

pub(super) fn refused(
    state: &State,
    request_id: String,
    asked: AskedOf,
    reason: &str,
    cx: &DecideCx<'_>,
) -> Decision<Session> {
    let data = json!({"request_id": request_id, "reason": reason});
    let mut decision = Decision::reply(Reply::Done);
    let ours = state.current.as_ref().is_some_and(|current| current.request_id == request_id);
    if asked == AskedOf::Create && ours {
        let status = Status::Unmatched;
        decision = decision.event(Event::RequestFollowed { request_id, status, offers: 0 });
    }
    say(decision, words::refused(asked, reason), data, cx)
}

/// Streams `content` in tokens that add up to it, then publishes it whole under the same message id.
fn say(
    decision: Decision<Session>,
    content: String,
    data: Value,
    cx: &DecideCx<'_>,
) -> Decision<Session> {
    let message_id = cx.ids.mint("msg");
    let tokens = content.split_inclusive(' ').enumerate().map(|(index, token)| {
        let token = json!({
            "session_id": cx.key,
            "message_id": message_id,
            "index": index,
            "token": token,
        });
        Effect::stream("chat:stream", token)
    });
    let response = json!({
        "session_id": cx.key,
        "message_id": message_id,
        "content": content,
        "data": data,
    });
    decision
        .effects(tokens.collect::<Vec<_>>())
        .effect(Effect::publish("chat:response", response))
        .event(Event::Responded { message_id, content, data, at: cx.now })
}
