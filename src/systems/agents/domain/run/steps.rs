//! What follows from what: the steps of a run.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::state::{conversation_of, evolve};
use super::view::{RunEnded, RunStep, RunView, RunWaiting, StepKind, arguments_of, row};
use super::{
    APPROVAL, Act, Acted, AgentRun, Command, DEADLINE, Event, HandOver, MAX_CALLS, MAX_QUEUED,
    MAX_WORDS, NewUse, PeerTask, Phase, Rejection, RepeatableAct, Reply, RunOrder, RunStatus,
    State, StoredMessage, Think, Thought, ToolUse, Turn, TurnAnswer, UseOf,
};
use crate::kernel::agent::MessagePolicy;
use crate::kernel::chat::{Cost, PromptMessage};
use crate::kernel::clock::saturating_add;
use crate::kernel::conversation::{RunFollower, RunNews, RunTold, WaitingCall};
use crate::kernel::entity::{
    Announcement, Caller, DecideCx, Decided, Decision, Effect, Role, to_value,
};
use crate::kernel::outward::{Guarantee, OutwardEffect};
use crate::kernel::private::Private;

/// The events and effects of one command, and the run as it is after them.
pub struct Steps<'a> {
    after: State,
    events: Vec<Event>,
    effects: Vec<Effect>,
    key: &'a str,
    now: Timestamp,
}

pub fn start(state: &State, start: RunOrder, cx: &DecideCx<'_>) -> Decided<AgentRun> {
    let (id, role, scopes) = match cx.caller {
        Caller::User { id, role, scopes } => (id, *role, scopes),
        Caller::Entity { for_user: Some(person), .. } => {
            (&person.user_id, Role::Consumer, &person.scopes)
        }
        Caller::Entity { .. } | Caller::Runtime => return Err(Rejection::Internal),
    };
    if !state.owner.is_empty() {
        return Err(if state.owner == *id { Rejection::Busy } else { Rejection::Unknown });
    }
    let RunOrder { agent, version, terms, scopes: agents, words } = start;
    check_words(&words)?;
    // An agent operates nothing, whoever it works for.
    let role = if role == Role::Operator { Role::Consumer } else { role };
    let mut steps = Steps::new(state, cx);
    steps.after.owner = id.clone();
    let (words, at) = (steps.message(words), cx.now);
    let scopes = scopes.and(&agents);
    let owner = id.clone();
    let follower = RunFollower::of(cx.caller);
    steps.take(Event::Started { owner, role, scopes, agent, version, terms, words, follower, at });
    steps.work_begins();
    steps.go_on();
    let shown = steps.view();
    Ok(steps.decision(Reply::Run(shown)))
}

fn check_words(words: &PromptMessage) -> Result<(), Rejection> {
    let PromptMessage::User { .. } = words else { return Err(Rejection::Internal) };
    if to_value(words).to_string().len() > MAX_WORDS { Err(Rejection::TooLong) } else { Ok(()) }
}

impl<'a> Steps<'a> {
    pub fn new(state: &State, cx: &DecideCx<'a>) -> Self {
        let (events, effects) = (Vec::new(), Vec::new());
        Self { after: state.clone(), events, effects, key: cx.key, now: cx.now }
    }

    pub fn decision(self, reply: Reply) -> Decision<AgentRun> {
        let Self { events, effects, .. } = self;
        Decision { events, reply: Some(reply), effects }
    }

    pub fn view(&self) -> RunView {
        row(self.key, &self.after)
    }

    fn take(&mut self, event: Event) {
        evolve(&mut self.after, &event);
        self.events.push(event);
    }

    fn message(&self, message: PromptMessage) -> StoredMessage {
        Arc::new(Private::new(&self.after.owner, message))
    }

    fn announce<A: Announcement>(&mut self, announcement: &A) {
        let effect = Effect::announce(announcement).private_to(&self.after.owner);
        self.effects.push(effect);
    }

    /// Tells the entity in whose conversation this is.
    fn tell(&mut self, news: RunNews) {
        let Some(follower) = &self.after.follower else { return };
        let told = RunTold {
            run_id: self.key.to_owned(),
            turn: self.after.turn,
            heard: self.after.said - self.after.queue.len() as u32,
            model: self.after.model.clone(),
            news,
        };
        self.effects.push(follower.tell(told).private_to(&self.after.owner));
    }

    fn tell_what_waits(&mut self) {
        let calls = self.after.waits_for_a_person().map(|one| WaitingCall {
            use_id: one.id,
            tool: one.tool.clone(),
            arguments: one.call.reveal().map(|call| call.arguments.clone()).unwrap_or_default(),
            arguments_hash: arguments_of(one),
            is_unknown: one.effect == OutwardEffect::Unknown,
        });
        let calls = calls.collect();
        self.tell(RunNews::Waits { calls });
    }

    fn step(&self, step: StepKind, tools: Vec<String>) -> RunStep {
        RunStep {
            run_id: self.key.to_owned(),
            turn: self.after.turn,
            step,
            text: None,
            tools,
            model: None,
            use_id: None,
            is_error: false,
            at: self.now,
        }
    }

    /// Uninterrupted work has a time limit, from here on.
    fn work_begins(&mut self) {
        let longest = SignedDuration::from_secs(i64::from(self.after.terms.max_seconds));
        let at = saturating_add(self.now, longest);
        self.effects.push(Effect::schedule::<AgentRun>(DEADLINE, at, &Command::TimeOut));
    }

    pub fn say(&mut self, words: PromptMessage) -> Result<(), Rejection> {
        check_words(&words)?;
        if self.after.is_over() {
            return Err(Rejection::Ended);
        }
        let policy = self.after.terms.on_message;
        let is_at_work = self.after.status != RunStatus::Answered;
        if is_at_work && policy == MessagePolicy::Reject {
            return Err(Rejection::Busy);
        }
        if self.after.queue.len() >= MAX_QUEUED {
            return Err(Rejection::TooMany);
        }
        let (words, at) = (self.message(words), self.now);
        self.take(Event::Said { words, at });
        if !is_at_work {
            self.work_begins();
        } else if policy.is_taken_soon() {
            // What nobody has allowed yet is not what they want now.
            let open: Vec<_> = self.after.waits_for_a_person().map(|one| one.id).collect();
            for use_id in &open {
                self.decline(
                    *use_id,
                    "The person has said something else instead of allowing this.",
                );
            }
            if !open.is_empty() {
                self.settle_waiting();
            }
            if policy == MessagePolicy::Interrupt
                && matches!(self.after.phase, Phase::Thinking { .. })
            {
                let turn = self.after.turn;
                self.take(Event::Interrupted { turn, at });
            }
        }
        self.go_on();
        Ok(())
    }

    pub fn person_decides(
        &mut self,
        use_id: u32,
        arguments: &str,
        allow: bool,
    ) -> Result<(), Rejection> {
        let waiting = self.after.waits_for_a_person().find(|one| one.id == use_id);
        let waiting = waiting.ok_or(Rejection::NotWaiting)?;
        if self.after.is_over() {
            return Err(Rejection::Ended);
        }
        if arguments_of(waiting) != arguments {
            return Err(Rejection::OtherArguments);
        }
        if allow {
            let allowed = act(waiting);
            self.take(Event::Allowed { use_id, at: self.now });
            self.effects.push(allowed);
        } else {
            self.decline(use_id, "The person does not allow this.");
        }
        self.settle_waiting();
        self.go_on();
        Ok(())
    }

    pub fn approvals_expire(&mut self) {
        let now = self.now;
        let late =
            self.after.waits_for_a_person().filter(|one| one.until.is_some_and(|at| at <= now));
        let late: Vec<_> = late.map(|one| one.id).collect();
        if self.after.is_over() {
            return;
        }
        for use_id in late {
            self.decline(use_id, "Nobody has allowed this in time.");
        }
        self.settle_waiting();
        self.go_on();
    }

    /// Ends a call that waits for a person without making it.
    fn decline(&mut self, use_id: u32, why: &str) {
        let Some(one) = self.after.use_of(use_id) else { return };
        let (effect, content) = match one.effect {
            OutwardEffect::Unknown => {
                let unknown =
                    "It was begun, and nobody knows whether it has happened. It is left as it is.";
                (OutwardEffect::Reconciled, format!("{unknown} {why}"))
            }
            _ => (OutwardEffect::Abandoned, why.to_owned()),
        };
        self.returned(use_id, content, true, effect);
    }

    fn returned(&mut self, use_id: u32, content: String, is_error: bool, effect: OutwardEffect) {
        let Some(one) = self.after.use_of(use_id) else { return };
        let call = one.call.reveal();
        let call_id = call.map(|call| call.id.clone()).unwrap_or_default();
        let name = one.tool.clone();
        let result = self.message(PromptMessage::Tool { call_id, name: name.clone(), content });
        self.take(Event::Returned { use_id, result, is_error, effect, at: self.now });
        let step = self.step(StepKind::Returned, vec![name]);
        self.announce(&RunStep { use_id: Some(use_id), is_error, ..step });
    }

    /// After people have decided: the time limit runs again, unless more calls wait for them.
    fn settle_waiting(&mut self) {
        match self.after.waits_for_a_person().filter_map(|one| one.until).min() {
            Some(first) => {
                let expire = Command::ApprovalsExpire;
                self.effects.push(Effect::schedule::<AgentRun>(APPROVAL, first, &expire));
                self.tell_what_waits();
            }
            None => {
                self.effects.push(Effect::cancel(APPROVAL));
                self.work_begins();
            }
        }
    }

    pub fn thought(&mut self, turn: u32, thought: Thought) {
        // The run has gone on without it.
        if !self.after.is_thinking(turn) {
            return;
        }
        match thought {
            Thought::Over => {}
            Thought::Failed { reason, cost, .. } => {
                self.end(RunStatus::Failed, Some(&reason), cost);
            }
            Thought::Answered(answer) => {
                if matches!(self.after.phase, Phase::Thinking { summarises: Some(_) }) {
                    self.summarised(turn, *answer);
                } else {
                    self.answered(turn, *answer);
                }
                self.go_on();
            }
        }
    }

    fn summarised(&mut self, turn: u32, answer: TurnAnswer) {
        let TurnAnswer { text, usage, cost, repeated, .. } = answer;
        let words = format!("What was said before, in short:\n{text}");
        let (summary, at) = (self.message(PromptMessage::user(words)), self.now);
        self.take(Event::Summarised { turn, summary, usage, cost, repeated, at });
    }

    fn answered(&mut self, turn: u32, answer: TurnAnswer) {
        let TurnAnswer { text, calls, model, usage, cost, repeated, hand_over } = answer;
        let (at, wait) = (self.now, i64::from(self.after.terms.approval_seconds));
        let until = saturating_add(at, SignedDuration::from_secs(wait));
        let mut uses = Vec::new();
        for (n, proposed) in calls.iter().enumerate() {
            let call = proposed.call.clone();
            let refusal = match (&hand_over, n) {
                (_, n) if n >= MAX_CALLS => Some("Too many calls at once."),
                (Some(_), 1..) => Some("Another agent goes on with this conversation."),
                _ => proposed.refusal.as_deref(),
            };
            let content = match (&hand_over, n) {
                (Some(to), 0) => Some(format!("You are {} from here on.", to.agent)),
                _ => refusal.map(str::to_owned),
            };
            let refused = content.map(|content| {
                let (call_id, name) = (call.id.clone(), call.name.clone());
                self.message(PromptMessage::Tool { call_id, name, content })
            });
            let (effect, until) = match (&refused, proposed.asks_first) {
                (Some(_), _) => (OutwardEffect::Abandoned, None),
                (None, true) => (OutwardEffect::Planned, Some(until)),
                (None, false) => (OutwardEffect::Dispatched, None),
            };
            uses.push(NewUse {
                tool: call.name.clone(),
                call: Arc::new(Private::new(&self.after.owner, call)),
                guarantee: proposed.guarantee,
                effect,
                until,
                refused,
            });
        }
        let calls = calls.into_iter().map(|proposed| proposed.call).collect();
        let message = PromptMessage::Assistant { text: text.clone(), calls };
        let answer = self.message(message);
        let tools = uses.iter().map(|one| one.tool.clone()).collect();
        let step = self.step(StepKind::Thought, tools);
        self.announce(&RunStep { text: Some(text), model: Some(model.clone()), ..step });
        self.take(Event::Thought { turn, answer, uses, model, usage, cost, repeated, at });
        if let Some(to) = hand_over {
            self.hand_over(to);
        }
        if self.after.same.values().any(|times| *times >= self.after.terms.max_same_calls) {
            return self.end(RunStatus::Failed, Some("loop"), Cost(0));
        }
        let dispatched = self.after.uses.iter();
        let dispatched = dispatched.filter(|one| one.effect == OutwardEffect::Dispatched);
        let acts: Vec<_> = dispatched.map(act).collect();
        self.effects.extend(acts);
        let waiting: Vec<_> = self.after.waits_for_a_person().map(|one| one.id).collect();
        self.wait_for_a_person(&waiting, until);
    }

    fn hand_over(&mut self, to: HandOver) {
        self.take(Event::HandedOver { to, at: self.now });
    }

    /// People learn of calls that wait for them.
    fn wait_for_a_person(&mut self, uses: &[u32], until: Timestamp) {
        if uses.is_empty() {
            return;
        }
        let run = self.view();
        let owner = self.after.owner.clone();
        let expire = Command::ApprovalsExpire;
        self.effects.push(Effect::schedule::<AgentRun>(APPROVAL, until, &expire));
        self.effects.push(Effect::cancel(DEADLINE));
        let waiting = RunWaiting { run };
        self.announce(&waiting);
        self.effects.push(Effect::announce_to("user", owner, &waiting));
        self.tell_what_waits();
    }

    pub fn acted(&mut self, use_id: u32, acted: Acted) {
        let Some(one) = self.after.use_of(use_id) else { return };
        if one.effect != OutwardEffect::Dispatched {
            return;
        }
        match acted {
            Acted::Over => {}
            Acted::Returned { content, is_error } => {
                self.returned(use_id, content, is_error, OutwardEffect::Settled);
                self.go_on();
            }
            Acted::Unknown => {
                let wait = i64::from(self.after.terms.approval_seconds);
                let (at, until) =
                    (self.now, saturating_add(self.now, SignedDuration::from_secs(wait)));
                self.take(Event::OutcomeUnknown { use_id, until, at });
                if !self.after.is_over() {
                    self.wait_for_a_person(&[use_id], until);
                }
            }
        }
    }

    pub fn delivered(&mut self, use_id: u32, task: PeerTask) {
        let Some(one) = self.after.use_of(use_id) else { return };
        let Some(conversation) = conversation_of(one) else { return };
        self.take(Event::Delivered { conversation, task, at: self.now });
    }

    pub fn end(&mut self, status: RunStatus, reason: Option<&str>, cost: Cost) {
        let reason = reason.map(str::to_owned);
        self.take(Event::Ended { status, reason, cost, at: self.now });
        for timer in [DEADLINE, APPROVAL] {
            self.effects.push(Effect::cancel(timer));
        }
        let ended = RunEnded { run: self.view() };
        self.announce(&ended);
        let news = match status {
            RunStatus::Answered => RunNews::Answered { text: self.after.last_words() },
            _ => {
                RunNews::Stopped { reason: ended.run.reason.unwrap_or_else(|| "cancelled".into()) }
            }
        };
        self.tell(news);
    }

    /// The next turn, where nothing is under way and there is something to say.
    fn go_on(&mut self) {
        let state = &self.after;
        let is_under_way = match state.phase {
            Phase::Thinking { .. } => true,
            Phase::Acting => state.uses.iter().any(|one| !one.effect.is_over()),
            Phase::Idle => false,
        };
        if state.is_over() || is_under_way || state.status == RunStatus::Answered {
            return;
        }
        let has_answered = state.phase == Phase::Idle && !state.owes_an_answer();
        if has_answered && state.queue.is_empty() {
            return self.end(RunStatus::Answered, None, Cost(0));
        }
        if state.turn >= state.terms.max_turns {
            return self.end(RunStatus::Failed, Some("too_many_turns"), Cost(0));
        }
        if state.cost >= state.terms.max_cost && state.cost > Cost(0) {
            return self.end(RunStatus::Failed, Some("too_expensive"), Cost(0));
        }
        let takes = match has_answered || state.terms.on_message.is_taken_soon() {
            true => state.queue.len() as u32,
            false => 0,
        };
        let (turn, summarises) = (state.turn + 1, state.too_much());
        self.take(Event::TurnBegan { turn, takes, summarises, at: self.now });
        self.effects.push(Effect::run::<Think>(turn.to_string(), &Turn { turn }));
    }
}

fn act(of: &ToolUse) -> Effect {
    let use_id = of.id;
    match of.guarantee {
        Guarantee::AtMostOnce => Effect::run::<Act>(use_id.to_string(), &UseOf { use_id }),
        Guarantee::Transactional | Guarantee::Keyed => {
            Effect::run::<RepeatableAct>(use_id.to_string(), &UseOf { use_id })
        }
    }
}
