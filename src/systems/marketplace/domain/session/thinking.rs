//! A model that thinks for the session, by a run of the agent `assistant`.
//!
//! The run hears what the person says, and tells what it answers. What binds waits for the person: the session reads the
//! call back from what it knows itself, and the next "yes" allows that call and nothing else. Sentences of the closed form
//! bind as they do without a model. A run that stops leaves its messages to the local parser.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::talk::{LOCAL, Speaker, Turn, say};
use super::{Author, Current, Event, Line, MessageContent, Pending, Reply, Session, State, words};
use crate::kernel::chat::PromptMessage;
use crate::kernel::conversation::{
    Engage, Engagement, RunCancellation, RunDecision, RunNews, RunTold, SayToRun, WaitingCall,
};
use crate::kernel::entity::{DecideCx, Decision, Effect, Entity, Scopes};
use crate::kernel::private::Private;
use crate::kernel::text::cleaned;
use crate::systems::marketplace::domain::language::{Intent, Understanding};
use crate::systems::marketplace::domain::request::Status;

const AGENT: &str = "assistant";
/// Messages that wait for one answer. One more is answered by the parser.
const MAX_UNANSWERED: usize = 8;
/// Bytes of an answer.
const MAX_ANSWER: usize = 16 << 10;
/// After so many questions to the model another run goes on, which costs less and has terms of its own.
const MAX_TURNS: u32 = 12;

/// The run that thinks for the session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thinking {
    pub run_id: String,
    /// The scopes of the person's token. Under another token another run thinks.
    pub scopes: Scopes,
    /// Whether it is there: what is said before follows once it is.
    pub has_begun: bool,
    /// What the run was told so far.
    pub said: u32,
    pub turn: u32,
    pub unanswered: Vec<Unanswered>,
    /// Whether the person has decided on a call, and has not heard yet how that went.
    pub owes_word: bool,
    /// The messages of the session that it knows.
    pub knows: u64,
}

/// A message that the model has not answered yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unanswered {
    pub content: Private<String, MessageContent>,
    pub at: Timestamp,
}

/// A call of the run that was read back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedCall {
    pub run_id: String,
    pub use_id: u32,
    /// The hash of its arguments.
    pub arguments: String,
}

impl State {
    pub(super) fn thinking_changes(&mut self, event: &Event) {
        let known = self.messages;
        match event {
            Event::MessageReceived { content, at, .. } => {
                let content = content.clone().belonging_to(&self.user_id);
                self.heard = Some(Unanswered { content, at: *at });
            }
            Event::Responded { .. } => self.heard = None,
            Event::RunAsked { run_id, scopes } => {
                if self.thinking.as_ref().is_none_or(|run| run.run_id != *run_id) {
                    self.thinking = Some(Thinking {
                        run_id: run_id.clone(),
                        scopes: scopes.clone(),
                        has_begun: false,
                        said: 0,
                        turn: 0,
                        unanswered: Vec::new(),
                        owes_word: false,
                        knows: 0,
                    });
                }
                if let Some(run) = &mut self.thinking {
                    run.said += 1;
                    run.knows = known;
                    run.unanswered.extend(self.heard.take());
                }
            }
            Event::RunBegun { run_id } => {
                if let Some(run) = self.run(run_id) {
                    run.has_begun = true;
                }
            }
            Event::CallDecided { run_id } => {
                self.heard = None;
                if let Some(run) = self.run(run_id) {
                    run.owes_word = true;
                    run.knows = known;
                }
            }
            Event::RunHeard { run_id, heard, turn } => {
                if let Some(run) = self.run(run_id) {
                    let later = run.said.saturating_sub(*heard) as usize;
                    let answered = run.unanswered.len().saturating_sub(later);
                    run.unanswered.drain(..answered);
                    (run.turn, run.knows, run.owes_word) = (*turn, known, false);
                }
            }
            Event::RunLost { run_id } if self.run(run_id).is_some() => self.thinking = None,
            _ => {}
        }
    }

    fn run(&mut self, run_id: &str) -> Option<&mut Thinking> {
        self.thinking.as_mut().filter(|run| run.run_id == run_id)
    }
}

/// What becomes of a message.
pub(super) enum Goes {
    /// The parser answers: it reads the closed forms, which bind.
    Local,
    Model,
    /// The person's word on a call that was read back.
    Decides(AskedCall, bool),
}

/// Where the message goes. `thinks`: whether there is a model.
pub(super) fn goes(
    turn: &Turn<'_>,
    content: &str,
    heard: Option<&Understanding>,
    thinks: bool,
) -> Goes {
    let state = turn.state;
    let intent = heard.map(|heard| heard.intent);
    if let Some(Pending::Call(asked)) = &state.pending
        && state
            .thinking
            .as_ref()
            .is_some_and(|run| run.run_id == asked.run_id && run.scopes == turn.cx.caller.scopes())
    {
        match intent {
            Some(Intent::Yes) => return Goes::Decides(asked.clone(), true),
            Some(Intent::No | Intent::Drop) => return Goes::Decides(asked.clone(), false),
            _ => {}
        }
    }
    let waits = state.thinking.as_ref().map_or(0, |run| run.unanswered.len());
    if !thinks || content.trim().is_empty() || waits >= MAX_UNANSWERED {
        return Goes::Local;
    }
    let is_read_back = state.pending.as_ref().is_some_and(|it| !matches!(it, Pending::Call(_)));
    match intent {
        Some(Intent::Yes | Intent::No | Intent::Drop | Intent::Nod) if is_read_back => Goes::Local,
        Some(Intent::Accept(..)) if turn.has_offers() => Goes::Local,
        Some(Intent::Cancel(..)) if state.draft.is_some() || turn.has_live() => Goes::Local,
        _ => Goes::Model,
    }
}

impl Turn<'_> {
    /// Leaves the message to the model.
    pub fn think(self, content: &str) -> Decision<Session> {
        let (state, cx) = (self.state, self.cx);
        let scopes = cx.caller.scopes();
        let fits = |run: &&Thinking| run.scopes == scopes && run.turn < MAX_TURNS;
        let run = state.thinking.as_ref();
        let Some(known) = run.filter(|run| fits(run) || !run.unanswered.is_empty()) else {
            let run_id = cx.ids.mint("run");
            let words = Private::new(&state.user_id, spoken(state, 0, content, cx.now));
            let (agent, owner) = (AGENT.into(), None);
            let engagement = Engagement { agent, run_id: run_id.clone(), words, owner };
            let mut next = self
                .event(Event::RunAsked { run_id: run_id.clone(), scopes })
                .effect(Effect::run::<Engage>(run_id, &engagement));
            if let Some(old) = run {
                next = next.effect(Effect::send(old.run_id.as_str(), &RunCancellation));
            }
            return next.silent();
        };
        if known.scopes != scopes {
            // It works under another token. What this one may is for the parser to find out.
            return self.respond(content);
        }
        let run_id = known.run_id.clone();
        let asked = Event::RunAsked { run_id: run_id.clone(), scopes };
        let (has_begun, knows) = (known.has_begun, known.knows);
        let next = self.event(asked);
        if !has_begun {
            return next.silent();
        }
        next.effect(say_to(state, &run_id, spoken(state, knows, content, cx.now))).silent()
    }

    /// Passes the person's word on a call on to the run, which answers.
    pub fn decides(self, asked: &AskedCall, allow: bool) -> Decision<Session> {
        let AskedCall { run_id, use_id, arguments } = asked;
        let decision = RunDecision { use_id: *use_id, arguments: arguments.clone(), allow };
        self.event(Event::CallDecided { run_id: run_id.clone() })
            .effect(Effect::send(run_id.as_str(), &decision))
            .silent()
    }
}

fn say_to(state: &State, run_id: &str, text: PromptMessage) -> Effect {
    Effect::send(run_id, &SayToRun { text }).private_to(&state.user_id)
}

/// What the run is told with a message: where things stand, and what was said that it has not heard.
fn spoken(state: &State, knows: u64, content: &str, now: Timestamp) -> PromptMessage {
    let missed = usize::try_from(state.messages.saturating_sub(knows)).unwrap_or(usize::MAX);
    let skipped = state.recent.len().saturating_sub(missed);
    let said = state.recent[skipped..].iter().filter_map(|Line { author, content }| {
        let who = if *author == Author::User { "person" } else { "you" };
        Some(json!({who: content.reveal()?}))
    });
    let requests = state.requests.iter().filter(|request| request.is_live()).map(|request| {
        json!({
            "request_id": request.request_id,
            "service": request.service,
            "status": request.status,
            "offers": request.shown,
            "booking_id": request.booking_id,
        })
    });
    let situation = json!({
        "now": now.to_zoned(state.tz()).strftime("%A %Y-%m-%d %H:%M %:z").to_string(),
        "time_zone": state.time_zone,
        "locale": state.locale,
        "currency": state.currency,
        "requests": requests.collect::<Vec<_>>(),
        "said_before": said.collect::<Vec<_>>(),
    });
    PromptMessage::user(format!("(Situation, as data: {situation})\n\n{content}"))
}

/// The run is there, or there is none.
pub(super) fn engaged(
    state: &State,
    run_id: &str,
    outcome: Result<(), String>,
    cx: &DecideCx<'_>,
) -> Decision<Session> {
    let done = Decision::reply(Reply::Done);
    let Some(run) = state.thinking.as_ref().filter(|run| run.run_id == run_id) else { return done };
    if let Err(reason) = outcome {
        return fall_back(state, run, &reason, cx);
    }
    let later = run.unanswered.iter().skip(1).filter_map(|one| one.content.reveal());
    let later = later.map(|content| say_to(state, run_id, PromptMessage::user(content.as_str())));
    done.event(Event::RunBegun { run_id: run_id.into() }).effects(later.collect::<Vec<_>>())
}

/// The run tells how it goes.
pub(super) fn told(state: &State, told: RunTold, cx: &DecideCx<'_>) -> Decision<Session> {
    let RunTold { run_id, turn, heard, model, news } = told;
    let done = Decision::reply(Reply::Done);
    let Some(run) = state.thinking.as_ref().filter(|run| run.run_id == run_id) else { return done };
    let model = model.unwrap_or_else(|| LOCAL.model.into());
    let has_heard = Event::RunHeard { run_id: run_id.clone(), heard, turn };
    match news {
        RunNews::Answered { text } if text.trim().is_empty() => {
            fall_back(state, run, "empty_answer", cx)
        }
        RunNews::Answered { text } => {
            let speaker = Speaker { model: &model, fell_back: None };
            let mut text = cleaned(&text);
            text.truncate(text.floor_char_boundary(MAX_ANSWER));
            say(done, text, json!({"run_id": run_id}), speaker, &state.user_id, cx).event(has_heard)
        }
        RunNews::Waits { calls } => asks(state, &run_id, calls, &model, cx, has_heard),
        RunNews::Stopped { reason } => fall_back(state, run, &reason, cx),
    }
}

/// Reads the first call back that the session can describe. One that it knows nothing of is not allowed: nobody can say
/// yes to an id.
fn asks(
    state: &State,
    run_id: &str,
    calls: Vec<WaitingCall>,
    model: &str,
    cx: &DecideCx<'_>,
    has_heard: Event,
) -> Decision<Session> {
    let mut decision = Decision::reply(Reply::Done);
    for call in calls {
        let arguments = call.arguments_hash.clone();
        let Some((content, mut data)) = described(state, &call) else {
            let decided = RunDecision { use_id: call.use_id, arguments, allow: false };
            decision = decision.effect(Effect::send(run_id, &decided));
            continue;
        };
        let asked = AskedCall { run_id: run_id.into(), use_id: call.use_id, arguments };
        let pending = Pending::Call(asked);
        if state.pending.as_ref() == Some(&pending) {
            return decision;
        }
        data["run_id"] = json!(run_id);
        let speaker = Speaker { model, fell_back: None };
        let said = say(decision, content, data, speaker, &state.user_id, cx);
        return said.event(has_heard).event(Event::ReadBack { pending });
    }
    decision
}

/// The question that reads a call back, and its data.
fn described(state: &State, call: &WaitingCall) -> Option<(String, Value)> {
    let id = |field: &str| call.arguments[field].as_str().unwrap_or_default().to_owned();
    let request = |like: &dyn Fn(&Current) -> bool| state.requests.iter().rfind(|one| like(one));
    let offer = |offer_id: &str| {
        let of = |one: &Current| one.shown.iter().any(|offer| offer.offer_id == offer_id);
        let request = request(&|one| one.status == Status::Open && of(one))?;
        Some((request, request.shown.iter().find(|offer| offer.offer_id == offer_id)?))
    };
    let (content, confirm) = match call.tool.as_str() {
        _ if call.is_unknown => (words::shall_i_again(&call.tool, &call.arguments), "again"),
        "accept_offer" => {
            let (request, offer) = offer(&id("offer_id"))?;
            (words::shall_i_accept(request, offer), "accept")
        }
        "decline_offer" => {
            let (_, offer) = offer(&id("offer_id"))?;
            (words::shall_i_decline(offer), "decline")
        }
        "cancel_request" => {
            let wanted = id("request_id");
            let request = request(&|one| one.request_id == wanted && one.status.is_searching())?;
            (words::shall_i_cancel(request), "cancel_request")
        }
        "cancel_booking" => {
            let wanted = id("booking_id");
            let request = request(&|one| one.booking_id.as_ref() == Some(&wanted))?;
            (words::shall_i_cancel_booking(request), "cancel_booking")
        }
        tool => (words::shall_i_call(tool, &call.arguments), "call"),
    };
    Some((content, json!({"confirm": confirm})))
}

/// Answers what the run has not answered, by the parser.
fn fall_back(state: &State, run: &Thinking, reason: &str, cx: &DecideCx<'_>) -> Decision<Session> {
    let lost = Event::RunLost { run_id: run.run_id.clone() };
    let mut next = state.clone();
    Session::evolve(&mut next, &lost);
    let mut decision = Decision::reply(Reply::Done).event(lost);
    if let Some(Pending::Call(_)) = &next.pending {
        let dropped = Event::CallDropped;
        Session::evolve(&mut next, &dropped);
        decision = decision.event(dropped);
    }
    let speaker = Speaker { fell_back: Some(reason), ..LOCAL };
    for Unanswered { content, at } in &run.unanswered {
        let Some(content) = content.reveal() else { continue };
        let turn = Turn::new(&next, cx, Decision::reply(Reply::Done), speaker, *at);
        let Decision { events, effects, .. } = turn.respond(content);
        events.iter().for_each(|event| Session::evolve(&mut next, event));
        decision.events.extend(events);
        decision.effects.extend(effects);
    }
    if run.unanswered.is_empty() && run.owes_word {
        let content = words::agent_stopped(&words::status(next.current(), false));
        return say(decision, content, json!({}), speaker, &state.user_id, cx);
    }
    decision
}
