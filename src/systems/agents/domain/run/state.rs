//! A run's state after each of its events, and what it says about the conversation.

use jiff::Timestamp;

use super::{
    Event, HandOver, NewUse, PeerTask, Phase, Reply, RunStatus, State, StoredMessage, ToolUse,
    TurnWork, UseWork,
};
use crate::kernel::chat::{Cost, PromptMessage, Usage};
use crate::kernel::entity::{Role, to_value};
use crate::kernel::ids::{digest, stable_hash};
use crate::kernel::outward::OutwardEffect;

/// Conversations with agents of others. Of more the oldest is forgotten: what is said in it begins another task.
const MAX_TASKS: usize = 64;

impl State {
    /// Whether the last message is one that the model has not answered.
    pub(super) fn owes_an_answer(&self) -> bool {
        let last = self.messages.last().and_then(|last| last.reveal());
        !matches!(last, Some(PromptMessage::Assistant { calls, .. }) if calls.is_empty())
            && !self.messages.is_empty()
    }

    /// What the agent said last.
    pub(super) fn last_words(&self) -> String {
        match self.messages.last().and_then(|last| last.reveal()) {
            Some(PromptMessage::Assistant { text, .. }) => text.clone(),
            _ => String::new(),
        }
    }

    /// The number of oldest messages that a summary takes the place of, where the conversation is too long. A call is not
    /// torn from its results, and what was said last is kept.
    pub(super) fn too_much(&self) -> Option<u32> {
        let tokens =
            |message: &StoredMessage| message.reveal().map_or(0, PromptMessage::estimated_tokens);
        let limit = u64::from(self.terms.context_tokens);
        if self.messages.iter().map(tokens).sum::<u64>() <= limit {
            return None;
        }
        let mut kept = 0;
        let mut cut = None;
        for (n, message) in self.messages.iter().enumerate().rev() {
            kept += tokens(message);
            let is_result = matches!(message.reveal(), Some(PromptMessage::Tool { .. }));
            if !is_result && n > 1 && (kept <= limit / 2 || cut.is_none()) {
                cut = Some(n as u32);
            }
        }
        // One message that is too long by itself does not become shorter.
        cut
    }

    fn add_use(&mut self, new: &NewUse) {
        self.used += 1;
        if let Some(call) = new.call.reveal() {
            let arguments = to_value(&call.arguments).to_string();
            let same = stable_hash(&[new.tool.as_bytes(), arguments.as_bytes()]);
            *self.same.entry(same).or_default() += 1;
        }
        self.uses.push(ToolUse {
            id: self.used,
            tool: new.tool.clone(),
            call: new.call.clone(),
            guarantee: new.guarantee,
            effect: new.effect,
            until: new.until,
            result: new.refused.clone(),
        });
    }

    /// Once all calls have their results these follow the answer that asked for them, in its order.
    fn results_become_messages(&mut self) {
        if self.phase == Phase::Acting && self.uses.iter().all(|one| one.effect.is_over()) {
            let results = self.uses.iter().filter_map(|one| one.result.clone());
            self.messages.extend(results);
            self.uses.clear();
            self.phase = Phase::Idle;
        }
    }

    fn keep_task(&mut self, conversation: &str, task: &PeerTask) {
        if self.tasks.len() >= MAX_TASKS && !self.tasks.contains_key(conversation) {
            let oldest = self.tasks.iter().min_by_key(|(_, task)| task.use_id);
            let oldest = oldest.map(|(name, _)| name.clone());
            oldest.and_then(|name| self.tasks.remove(&name));
        }
        self.tasks.insert(conversation.to_owned(), task.clone());
    }

    fn waits(&self) -> bool {
        let is_dispatched = |one: &ToolUse| one.effect == OutwardEffect::Dispatched;
        self.waits_for_a_person().next().is_some() && !self.uses.iter().any(is_dispatched)
    }

    fn becomes(&mut self, use_id: u32, next: OutwardEffect, until: Option<Timestamp>) -> bool {
        let Some(one) = self.uses.iter_mut().find(|one| one.id == use_id) else { return false };
        let may = one.effect.may_become(next);
        if may {
            (one.effect, one.until) = (next, until);
        }
        may
    }
}

/// What a call to an agent of others is a part of: the tool, and the model's own name for it.
pub(super) fn conversation_of(one: &ToolUse) -> Option<String> {
    let call = one.call.reveal()?;
    let name = call.arguments["conversation"].as_str().unwrap_or_default();
    Some(format!("{} {}", one.tool, digest(name)))
}

pub fn evolve(state: &mut State, event: &Event) {
    match event {
        Event::Started { owner, role, scopes, agent, version, terms, words, follower, at } => {
            state.follower.clone_from(follower);
            state.said = 1;
            state.owner.clone_from(owner);
            state.role = Some(*role);
            state.scopes = scopes.clone();
            (state.agent, state.version) = (agent.clone(), version.clone());
            state.terms = *terms;
            state.messages = vec![words.clone()];
            (state.created_at, state.updated_at) = (*at, *at);
        }
        Event::Said { words, at } => {
            state.said += 1;
            state.queue.push(words.clone());
            if state.status == RunStatus::Answered {
                state.status = RunStatus::Running;
            }
            state.updated_at = *at;
        }
        Event::TurnBegan { turn, takes, summarises, at } => {
            let takes = (*takes as usize).min(state.queue.len());
            state.messages.extend(state.queue.drain(..takes));
            state.turn = *turn;
            state.phase = Phase::Thinking { summarises: *summarises };
            state.updated_at = *at;
        }
        Event::Thought { answer, uses, model, usage, cost, repeated, at, .. } => {
            state.model = Some(model.clone());
            state.messages.push(answer.clone());
            state.phase = if uses.is_empty() { Phase::Idle } else { Phase::Acting };
            state.spend(usage, *cost, *repeated);
            state.uses.clear();
            uses.iter().for_each(|new| state.add_use(new));
            state.results_become_messages();
            if state.waits() {
                state.status = RunStatus::Waiting;
            }
            state.updated_at = *at;
        }
        Event::Summarised { summary, usage, cost, repeated, at, .. } => {
            if let Phase::Thinking { summarises: Some(through) } = state.phase {
                let through = (through as usize).min(state.messages.len());
                state.messages.splice(..through, [summary.clone()]);
            }
            state.phase = Phase::Idle;
            state.spend(usage, *cost, *repeated);
            state.updated_at = *at;
        }
        Event::Interrupted { at, .. } => {
            state.phase = Phase::Idle;
            state.updated_at = *at;
        }
        Event::Allowed { use_id, at } => {
            if state.becomes(*use_id, OutwardEffect::Dispatched, None) {
                state.status = RunStatus::Running;
            }
            state.updated_at = *at;
        }
        Event::Returned { use_id, result, effect, at, .. } => {
            if state.becomes(*use_id, *effect, None)
                && let Some(one) = state.uses.iter_mut().find(|one| one.id == *use_id)
            {
                one.result = Some(result.clone());
            }
            state.results_become_messages();
            if !state.is_over() {
                state.status = if state.waits() { RunStatus::Waiting } else { RunStatus::Running };
            }
            state.updated_at = *at;
        }
        Event::Delivered { conversation, task, at } => {
            state.keep_task(conversation, task);
            state.updated_at = *at;
        }
        Event::OutcomeUnknown { use_id, until, at } => {
            state.becomes(*use_id, OutwardEffect::Unknown, Some(*until));
            if !state.is_over() && state.waits() {
                state.status = RunStatus::Waiting;
            }
            state.updated_at = *at;
        }
        Event::HandedOver { to, at } => {
            let HandOver { agent, version, terms } = to;
            (state.agent, state.version) = (agent.clone(), version.clone());
            state.terms = *terms;
            state.updated_at = *at;
        }
        Event::Ended { status, reason, cost, at } => {
            state.status = *status;
            state.reason.clone_from(reason);
            state.phase = if state.uses.is_empty() { Phase::Idle } else { Phase::Acting };
            state.cost = state.cost.saturating_add(*cost);
            state.updated_at = *at;
        }
    }
}

impl State {
    fn spend(&mut self, usage: &Usage, cost: Cost, repeated: u32) {
        self.usage += *usage;
        self.cost = self.cost.saturating_add(cost);
        self.repeated += repeated;
    }
}

impl State {
    pub(super) fn turn_work(&self, turn: u32) -> Reply {
        let Phase::Thinking { summarises } = self.phase else { return Reply::Over };
        if !self.is_thinking(turn) {
            return Reply::Over;
        }
        Reply::Turn(Box::new(TurnWork {
            agent: self.agent.clone(),
            version: self.version.clone(),
            owner: self.owner.clone(),
            messages: self.messages.clone(),
            summarises,
            left: self.terms.max_cost.saturating_sub(self.cost),
            is_awaited: self.follower.is_some(),
        }))
    }

    pub(super) fn use_work(&self, use_id: u32) -> Reply {
        let wanted = self.use_of(use_id).filter(|one| one.effect == OutwardEffect::Dispatched);
        let Some(one) = wanted.filter(|_| !self.is_over()) else { return Reply::Over };
        Reply::Use(Box::new(UseWork {
            version: self.version.clone(),
            owner: self.owner.clone(),
            role: self.role.unwrap_or(Role::Consumer),
            scopes: self.scopes.clone(),
            call: one.call.clone(),
            guarantee: one.guarantee,
            task: conversation_of(one).and_then(|name| self.tasks.get(&name).cloned()),
            follower: self.follower.clone(),
        }))
    }
}
