//! The steps of a task's commands.

use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::*;
use crate::kernel::entity::{Effect, to_value};
use crate::kernel::task::TaskAuthor;
use crate::systems::marketplace::domain::language::{self, Home, Intent};
use crate::systems::marketplace::domain::messages::Progress;
use crate::systems::marketplace::domain::offer::{OfferStatus, OfferView};
use crate::systems::marketplace::domain::request;

/// A decision under construction, together with the state after it.
struct Turn<'a> {
    cx: &'a DecideCx<'a>,
    next: State,
    decision: Decision<Task>,
}

impl<'a> Turn<'a> {
    fn new(state: &State, cx: &'a DecideCx<'a>) -> Self {
        Self { cx, next: state.clone(), decision: Decision::reply(Reply::Done) }
    }

    fn event(mut self, event: Event) -> Self {
        Task::evolve(&mut self.next, &event);
        self.decision.events.push(event);
        self
    }

    fn send(mut self, effect: Effect) -> Self {
        self.decision.effects.push(effect);
        self
    }

    /// The agent says something, and where the task stands.
    fn say(self, state: TaskState, words: impl Into<String>, data: Option<Value>) -> Self {
        let mut parts = vec![TaskPart::Text(words.into())];
        parts.extend(data.map(TaskPart::Data));
        let id = self.cx.ids.mint("msg");
        let message = TaskMessage { id, by: TaskAuthor::Agent, parts };
        let message = Private::new(&self.next.owner_id, message);
        let at = self.cx.now;
        self.event(Event::StateChanged { state, message, at })
    }

    fn artifact(self, id: &str, name: &str, data: Value) -> Self {
        let known = self.next.artifacts.iter().find(|(known, _)| known == id);
        let parts = vec![TaskPart::Data(data)];
        let same = known.and_then(|(_, one)| one.reveal()).is_some_and(|one| one.parts == parts);
        if same {
            return self;
        }
        let version = self.next.version + 1;
        let artifact = TaskArtifact { id: id.into(), name: name.into(), parts, version };
        let artifact = Private::new(&self.next.owner_id, artifact);
        let at = self.cx.now;
        self.event(Event::ArtifactMade { artifact, at })
    }

    fn offers(mut self, offers: &[OfferView]) -> Self {
        let directed = self.next.provider_id.is_some();
        for offer in offers {
            let mut data = to_value(offer);
            // Nobody has been compared with anybody.
            if let Some(fields) = data.as_object_mut().filter(|_| directed) {
                fields.remove("score");
            }
            self = self.artifact(&offer.id, "offer", json!({"offer": data}));
        }
        self
    }

    /// The decision; a change of what others see is sent to the addresses that wait for it.
    fn done(mut self, before: &State) -> Decision<Task> {
        if self.next.version > before.version
            && let Some(task) = self.next.row(self.cx.key)
        {
            for (_, push) in &self.next.pushes {
                let notification = Notification { task: task.clone(), push: push.clone() };
                self.decision.effects.push(Effect::run::<NotifyAgent>("notify", &notification));
            }
        }
        self.decision
    }

    fn start(self, asked: Asked) -> Self {
        let request_id = self.cx.ids.mint("req");
        let words = words::asking(&asked, self.next.provider_id.is_some());
        let ask = AskFor {
            asked,
            provider_id: self.next.provider_id.clone(),
            task_id: self.cx.key.into(),
        };
        let turn = self.give_up_request();
        turn.event(Event::RequestStarted { request_id: request_id.clone() })
            .send(Effect::send(request_id.as_str(), &ask))
            .say(TaskState::Working, words, Some(json!({"request_id": request_id})))
    }

    /// Another request takes the place of the one before.
    fn give_up_request(self) -> Self {
        match self.next.request_id.clone() {
            None => self,
            Some(old) => {
                let cancel = RequestCancellation { reason: Some("changed".into()) };
                self.send(Effect::send(old, &cancel))
            }
        }
    }

    fn ask(self, mut asked: Asked) -> Result<Self, Rejection> {
        asked.consumer_id.clone_from(&self.next.owner_id);
        asked.session_id = None;
        request::may_be_asked(&asked, self.cx.now)
            .map_err(|errors| Rejection::Invalid { errors })?;
        Ok(self.start(asked))
    }

    /// Words: what they ask for is looked for, and what they leave open is asked back. They accept nothing.
    fn listen(self, text: &str) -> Result<Self, Rejection> {
        let tz = TimeZone::UTC;
        let home = Home::of(&tz);
        let now = self.cx.now;
        if text.trim().is_empty() || language::is_too_long(text) {
            return Ok(self.say(TaskState::InputRequired, words::unread(), Some(words::forms())));
        }
        let heard = language::understand(text, now, &home);
        let known = match &self.next.draft {
            Some(draft) => language::answer((**draft).clone(), text, now, &home),
            None if heard.intent == Intent::Request && heard.says_something() => heard,
            None => {
                return Ok(self.say(
                    TaskState::InputRequired,
                    words::unread(),
                    Some(words::forms()),
                ));
            }
        };
        let known = Understanding { intent: Intent::Request, bare: false, aside: None, ..known };
        let missing = language::missing(&known);
        let asked = asked(&known).filter(|_| missing.is_empty());
        match asked {
            Some(asked) => self.ask(asked),
            None => {
                let question = language::question(&known);
                let turn = self.event(Event::Drafted { draft: Some(known.into()) });
                Ok(turn.say(TaskState::InputRequired, question, Some(json!({"missing": missing}))))
            }
        }
    }

    fn push(self, push: TaskPush) -> Result<Self, Rejection> {
        let pushes = &self.next.pushes;
        if !pushes.iter().any(|(id, _)| *id == push.id) && pushes.len() >= MAX_PUSHES {
            return Err(Rejection::TooManyPushes);
        }
        let id = push.id.clone();
        let push = Private::new(&self.next.owner_id, push);
        Ok(self.event(Event::PushPut { id, push }))
    }

    fn accept(self, offer_id: String) -> Result<Self, Rejection> {
        let open = self
            .next
            .artifacts
            .iter()
            .any(|(id, artifact)| *id == offer_id && artifact.reveal().is_some_and(is_open));
        let request_id = self.next.request_id.clone().filter(|_| open);
        let request_id = request_id.ok_or(Rejection::NoSuchOffer)?;
        let accept = AcceptOffer { offer_id: offer_id.clone() };
        let data = json!({"offer_id": offer_id});
        Ok(self
            .event(Event::AcceptanceSent { offer_id })
            .send(Effect::send(request_id, &accept))
            .say(TaskState::Working, words::accepting(), Some(data)))
    }
}

fn is_open(artifact: &TaskArtifact) -> bool {
    artifact.parts.iter().any(|part| match part {
        TaskPart::Data(data) => data["offer"]["status"] == to_value(&OfferStatus::Open),
        TaskPart::Text(_) => false,
    })
}

fn asked(known: &Understanding) -> Option<Asked> {
    let place = known.place.clone()?;
    Some(Asked {
        consumer_id: String::new(),
        session_id: None,
        service: known.service?,
        details: known.details.chars().take(2_000).collect(),
        time_zone: place.time_zone.clone(),
        place,
        when: known.when?,
        budget: known.budget.clone(),
    })
}

pub(super) fn take(state: &State, command: Command, cx: &DecideCx<'_>) -> Decided<Task> {
    let Command::Take { agent, provider_id, context_id, message_id, parts, act, push, .. } =
        command
    else {
        unreachable!("`decide` passes `Take` only")
    };
    let mut turn = Turn::new(state, cx);
    if state.created_at.is_none() {
        let owner_id = cx.caller.user_id().ok_or(Rejection::NotFound)?.to_owned();
        turn = turn.event(Event::Begun { owner_id, agent, provider_id, context_id, at: cx.now });
    } else if state.agent != agent {
        return Err(Rejection::NotFound);
    } else if state.has_heard(&message_id) {
        // Said again, after its id was forgotten.
        return Ok(turn.decision);
    } else if state.state.is_over() {
        return Err(Rejection::Over);
    } else if state.turns >= MAX_TURNS {
        return Err(Rejection::Full);
    } else if state.accepting.is_some() || state.canceling {
        return Err(Rejection::Busy);
    }
    let message = TaskMessage { id: message_id, by: TaskAuthor::Client, parts };
    let message = Private::new(&turn.next.owner_id, message);
    let mut turn = turn.event(Event::Received { message, at: cx.now });
    if let Some(push) = push {
        turn = turn.push(push)?;
    }
    let turn = match act {
        TaskAct::Say(text) => turn.listen(&text)?,
        TaskAct::Ask(asked) => turn.ask(*asked)?,
        TaskAct::Accept { offer_id } => turn.accept(offer_id)?,
    };
    Ok(turn.done(state))
}

pub(super) fn cancel(state: &State, cx: &DecideCx<'_>) -> Decided<Task> {
    if state.state.is_over() || state.accepting.is_some() {
        return Err(Rejection::NotCancelable);
    }
    let turn = Turn::new(state, cx);
    if state.canceling {
        return Ok(turn.decision);
    }
    let turn = match state.request_id.clone() {
        Some(request_id) => {
            let cancel = RequestCancellation { reason: None };
            turn.event(Event::CancelSent).send(Effect::send(request_id, &cancel))
        }
        None => turn.say(TaskState::Canceled, words::canceled(), None),
    };
    Ok(turn.done(state))
}

pub(super) fn put_push(state: &State, push: TaskPush, cx: &DecideCx<'_>) -> Decided<Task> {
    Ok(Turn::new(state, cx).push(push)?.decision)
}

/// Word from the request. One that another has taken the place of is heard no more.
pub(super) fn told(state: &State, told: RequestTold, cx: &DecideCx<'_>) -> Decision<Task> {
    let RequestTold { request_id, progress, offers, pending } = told;
    let turn = Turn::new(state, cx);
    if state.state.is_over() || state.request_id.as_ref() != Some(&request_id) {
        return turn.decision;
    }
    let directed = state.provider_id.is_some();
    let turn = turn.offers(&offers);
    let open = offers.iter().filter(|offer| offer.status == OfferStatus::Open).count();
    let ids: Vec<&str> = offers.iter().map(|offer| offer.id.as_str()).collect();
    let shown = json!({"request_id": request_id, "offers": ids});
    let turn = match progress {
        Progress::Matched { .. } if directed => turn,
        Progress::Matched { providers } => {
            turn.say(TaskState::Working, words::matched(providers), None)
        }
        // Others may still answer.
        Progress::FirstOffer { offer } if pending > 0 => {
            turn.say(TaskState::Working, words::offer(&offer), Some(shown))
        }
        Progress::FirstOffer { offer } => {
            turn.say(TaskState::InputRequired, words::offer(&offer), Some(shown))
        }
        Progress::AllAnswered { offers, cheapest, .. } => {
            turn.say(TaskState::InputRequired, words::all_answered(offers, &cheapest), Some(shown))
        }
        Progress::Unmatched { reason, reasons, lowest_price: Some(price) } => {
            let data = json!({
                "counter": {"lowest_price": price}, "reason": reason, "reasons": reasons,
            });
            turn.say(TaskState::InputRequired, words::counter(&price, directed), Some(data))
        }
        Progress::Unmatched { reason, reasons, lowest_price: None } => {
            let state = match reason.as_str() {
                "matching_unavailable" => TaskState::Failed,
                _ => TaskState::Rejected,
            };
            let data = json!({"declined": {"reason": reason, "reasons": reasons}});
            turn.say(state, words::declined(&reason, &reasons), Some(data))
        }
        Progress::OfferRefused { reason, .. } => {
            let turn = turn.event(Event::AcceptanceEnded);
            let data = json!({"refused": {"reason": reason}});
            // With nothing left the request ends, and says so next.
            let state = if open > 0 { TaskState::InputRequired } else { TaskState::Working };
            turn.say(state, words::refused(&reason), Some(data))
        }
        Progress::Booked { booking_id, offer } => {
            let booked = json!({"booking": {
                "id": booking_id, "request_id": request_id, "offer_id": offer.offer_id,
                "price": offer.price, "starts_at": offer.starts_at,
            }});
            let turn = turn.artifact(&booking_id, "booking", booked);
            turn.say(TaskState::Completed, words::booked(&offer), None)
        }
        Progress::Cancelled | Progress::BookingCancelled { .. } => {
            turn.say(TaskState::Canceled, words::canceled(), None)
        }
        Progress::Expired => turn.say(TaskState::Failed, words::expired(), None),
    };
    turn.done(state)
}

pub(super) fn refused(
    state: &State,
    request_id: &str,
    asked: AskedOfRequest,
    reason: &str,
    cx: &DecideCx<'_>,
) -> Decision<Task> {
    let turn = Turn::new(state, cx);
    let data = json!({"refused": {"reason": reason}});
    if state.state.is_over() || state.request_id.as_deref() != Some(request_id) {
        return turn.decision;
    }
    let turn = match asked {
        AskedOfRequest::Create => turn.say(TaskState::Failed, words::not_asked(reason), Some(data)),
        AskedOfRequest::Accept => {
            let turn = turn.event(Event::AcceptanceEnded);
            turn.say(TaskState::InputRequired, words::refused(reason), Some(data))
        }
        // It is being booked, or was: what becomes of that is told.
        AskedOfRequest::Cancel if state.canceling => turn.event(Event::CancelRefused),
        AskedOfRequest::Cancel => turn,
    };
    turn.done(state)
}
