//! The activation of one live entity: it decides commands, and hands the decisions to the writer.
//!
//! An activation keeps deciding while its commits are in flight: `state` is ahead of the journal by the decisions in
//! [`Pending`]. Replies, publications and effects leave in order, each after its commit.
//!
//! ```text
//! ask ──▶ decided ──▶ submitted ──▶ committed ──▶ answered, published, sent
//!  ▲         │             │
//!  │         │             ├──▶ refused ──▶ redo: all that was assumed after it is dropped, the state is read again
//!  │         │             │                  │
//!  └─────────┼─────────────┼──────────────────┘
//!            │             └──▶ moved, or the store is away ──▶ the activation ends, and callers hear why
//!            ├──▶ nothing to write ──▶ waits for the commits before it ──▶ answered, if the lease is fresh
//!            └──▶ a query that waits ──▶ decided again after each event
//! ```
//!
//! Its steps are in `loading` (read), here (decide, submit), `settling` (finished, roll back, end), `owing` (the outbox),
//! `writing` (rows), `memory` (ids and their outcomes), and `keys` (of the vault).

mod keys;
mod loading;
mod memory;
mod owing;
mod settling;
mod writing;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ractor::ActorRef;

use self::memory::{Claim, Memory};
use self::writing::DecisionRows;
use crate::actors::ask::{ActivationMessage, Ask, Origin};
use crate::actors::delivery::Outgoing;
use crate::actors::registry::KindTable;
use crate::actors::runtime::Witnessed;
use crate::cluster::ask::EntityAnswer;
use crate::cluster::topics::Published;
use crate::kernel::entity::{Caller, DecideCx, Decision, Effect, Entity};
use crate::kernel::error::AskError;
use crate::kernel::ids::{IdSource, slot_of, stable_hash};
use crate::kernel::private::{Need, Trouble};
use crate::persistence::commit::{
    CommitItem, CommitResult, DedupeRow, OutboxChange, OutboxRow, TimerChange,
};
use crate::persistence::writer::SubmitError;

const MAX_WAITING: usize = 256;

/// A decided command whose consequences wait for its commit, or, without one, for the commits before it.
struct Pending<E: Entity> {
    ticket: u64,
    ask: Box<Ask<E>>,
    answer: EntityAnswer<E>,
    publish: Vec<Arc<Published>>,
    /// Whether a durable publication was not rendered, since nobody listened. A listener that subscribes before the commit
    /// may have read the history before it too, and would miss the publication.
    unheard: bool,
    outbox: Vec<OutboxRow>,
    claim: Option<Claim>,
    commits: bool,
    /// The head of the journal, this command's events included.
    head: i64,
}

pub struct Activation<E: Entity> {
    table: Arc<KindTable<E>>,
    key: Arc<str>,
    slot: u16,
    /// The slot's epoch when this activation started. If the slot has another epoch now, this activation is obsolete.
    epoch: i64,
    loaded: bool,
    retiring: bool,
    state: E::State,
    head: i64,
    topic_head: i64,
    snapshot_seq: i64,
    next_ticket: u64,
    next_position: i64,
    /// The position up to which rows of the outbox were read from the store.
    owed_to: i64,
    /// Boxed, since a queue keeps its capacity when it is empty.
    pending: VecDeque<Box<Pending<E>>>,
    memory: Memory<E>,
    /// Queries that wait for a change.
    waiting: Vec<Box<Ask<E>>>,
    /// Commands to decide again once the state has been read anew.
    redo: Option<Vec<Box<Ask<E>>>>,
    outgoing: Option<Box<Outgoing>>,
    /// A key that has to be fetched before the activation can continue.
    needs: Option<Box<Need>>,
    /// The number of erasures that this node knew of when the state was read.
    erasures: u64,
    failed: Arc<AtomicBool>,
    _entry: Entry<E>,
}

/// A guard that removes the activation from the registry when it ends, however it ends.
struct Entry<E: Entity> {
    table: Arc<KindTable<E>>,
    key: Arc<str>,
    failed: Arc<AtomicBool>,
    actor: ractor::ActorId,
}

impl<E: Entity> Drop for Entry<E> {
    fn drop(&mut self) {
        self.failed.store(true, Ordering::SeqCst);
        self.table.ended(&self.key, self.actor);
    }
}

/// The reason for which an activation ends.
pub enum Stop {
    /// Passive, or its slot or the store is away: nothing is wrong with the entity.
    Orderly(AskError),
    /// Supervision restarts it, with backoff.
    Failed(String),
}

/// The next step after a message.
pub enum Next {
    GoOn,
    /// Read the state again.
    RollBack,
}

fn away(reason: impl Into<String>) -> Stop {
    Stop::Orderly(AskError::unavailable(reason))
}

impl<E: Entity> Activation<E> {
    /// A new activation. It has read nothing yet: the first message makes it load.
    pub fn new(
        table: Arc<KindTable<E>>,
        key: Arc<str>,
        epoch: i64,
        actor: ractor::ActorId,
    ) -> Self {
        let failed = Arc::new(AtomicBool::new(false));
        let entry = Entry { table: table.clone(), key: key.clone(), failed: failed.clone(), actor };
        Self {
            slot: slot_of(E::KIND, &key),
            table,
            key,
            epoch,
            loaded: false,
            retiring: false,
            state: E::State::default(),
            head: 0,
            topic_head: 0,
            snapshot_seq: 0,
            next_ticket: 0,
            next_position: 0,
            owed_to: 0,
            pending: VecDeque::new(),
            memory: Memory::default(),
            waiting: Vec::new(),
            redo: None,
            outgoing: None,
            needs: None,
            erasures: 0,
            failed,
            _entry: entry,
        }
    }

    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// Ends the activation once its pending commands are finished.
    pub fn retire(&mut self) {
        self.retiring = true;
    }

    pub fn is_retiring(&self) -> bool {
        self.retiring
    }

    /// Whether no command waits for its commit or to be decided.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.redo.is_none()
    }

    fn witnessed(&self) -> Witnessed<'_> {
        Witnessed {
            kind: E::KIND,
            key: &self.key,
            incarnation: self.table.runtime.lease.incarnation(),
            epoch: self.epoch,
        }
    }

    pub fn ask(
        &mut self,
        myself: &ActorRef<ActivationMessage<E>>,
        ask: Box<Ask<E>>,
    ) -> Result<(), Stop> {
        if let Some(redo) = &mut self.redo {
            redo.push(ask);
            return Ok(());
        }
        self.decide(myself, ask)
    }

    /// Decides one command on the state as it will be after all pending commits.
    fn decide(
        &mut self,
        myself: &ActorRef<ActivationMessage<E>>,
        mut ask: Box<Ask<E>>,
    ) -> Result<(), Stop> {
        let rt = self.table.runtime.clone();
        if ask.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            ask.answer(Err(AskError::DeadlineExceeded));
            return Ok(());
        }
        if !rt.slots.is_here(self.slot, self.epoch) {
            // Pending commands run to their end; no new one starts.
            ask.answer(Err(AskError::NotHere));
            return Ok(());
        }
        if !rt.lanes.is_up(self.slot) {
            return Err(away("the store is away"));
        }
        let query = E::is_query(&ask.command);
        let dedupe = if query { None } else { ask.dedupe(&self.key) };
        let id_hash =
            dedupe.as_ref().map(|d| stable_hash(&[d.user_id.as_bytes(), d.id.as_bytes()]));
        if let (Some(hash), Some(dedupe)) = (id_hash, &dedupe) {
            if let Some(ticket) = self.memory.in_flight(hash) {
                self.memory.follow(ticket, dedupe.fingerprint, ask);
                return Ok(());
            }
            if let Some(answer) = self.memory.recall(hash, dedupe.fingerprint) {
                self.push_answer(ask, answer, Vec::new());
                self.release();
                return Ok(());
            }
        }

        let now = rt.clock.now();
        let ids = IdSource::new(now, rand::random::<u128>() >> 48);
        let cx = DecideCx { key: &self.key, now, caller: &ask.caller, ids: &ids };
        let command = ask.command.clone();
        let decided = catch_unwind(AssertUnwindSafe(|| E::decide(&self.state, command, &cx)));
        let decision = match decided {
            Ok(Ok(decision)) => decision,
            Ok(Err(rejection)) => {
                let answer = Ok(Err(rejection));
                return self.submit(myself, ask, answer, Decision::wait(), dedupe, id_hash);
            }
            Err(_) => {
                tracing::error!(
                    kind = E::KIND,
                    key = &*self.key,
                    "a command panicked in decide; the entity restarts"
                );
                if let Origin::Timer { firing, .. } = &mut ask.origin {
                    firing.failed("its command panicked in decide");
                }
                ask.answer(Err(AskError::Internal));
                return Err(Stop::Failed("a command panicked in decide".into()));
            }
        };
        let Some(reply) = decision.reply.clone() else {
            self.waiting.retain(|w| !w.abandoned());
            if !query || !decision.events.is_empty() || self.waiting.len() >= MAX_WAITING {
                ask.answer(Err(if query { AskError::Overloaded } else { AskError::Internal }));
                return Ok(());
            }
            if let Origin::Caller { slip, .. } = &mut ask.origin {
                // From here `MAX_WAITING` bounds it, and it must not keep commands out.
                slip.take();
            }
            self.waiting.push(ask);
            return Ok(());
        };
        let durable = |e: &Effect| !matches!(e, Effect::Publish { durable: false, .. });
        if query && (!decision.events.is_empty() || decision.effects.iter().any(durable)) {
            tracing::error!(kind = E::KIND, command = ?ask.command, "a declared query wants to write");
            ask.answer(Err(AskError::Internal));
            return Ok(());
        }
        let changed = !decision.events.is_empty();
        self.submit(myself, ask, Ok(Ok(reply)), decision, dedupe, id_hash)?;
        if changed {
            for waiting in std::mem::take(&mut self.waiting) {
                self.decide(myself, waiting)?;
            }
        }
        Ok(())
    }

    /// Applies the decision, hands its rows to the writer, and keeps the answer until they are durable.
    fn submit(
        &mut self,
        myself: &ActorRef<ActivationMessage<E>>,
        ask: Box<Ask<E>>,
        answer: EntityAnswer<E>,
        decision: Decision<E>,
        mut dedupe: Option<DedupeRow>,
        id_hash: Option<u64>,
    ) -> Result<(), Stop> {
        let rt = self.table.runtime.clone();
        let mut claim = None;
        if let (Some(row), Some(id_hash), Ok(outcome)) = (&mut dedupe, id_hash, &answer) {
            match serde_json::to_string(outcome) {
                Ok(text) => row.outcome = text.into(),
                Err(error) => {
                    ask.answer(Err(AskError::Internal));
                    return Err(Stop::Failed(format!("a reply cannot be kept: {error}")));
                }
            }
            let (fingerprint, outcome) = (row.fingerprint, row.outcome.clone());
            claim = Some(Claim { id_hash, fingerprint, outcome });
        }
        let head = self.head;
        let written = match self.write(&decision.events, decision.effects) {
            Ok(written) => written,
            Err(Trouble::Needs(need)) => {
                self.wait_for(need, ask);
                return Ok(());
            }
            Err(Trouble::Broken(reason)) => {
                ask.answer(Err(AskError::Internal));
                return Err(Stop::Failed(reason));
            }
        };
        let DecisionRows { events, mut outbox, mut timers, publications, publish, unheard, .. } =
            written;
        if !publications.is_empty() && (events.is_empty() || !E::HAS_TOPIC) {
            return Err(Stop::Failed(
                "a durable publication without an event, or without a topic of its own".into(),
            ));
        }
        (self.topic_head, self.next_position) = (written.topic_head, written.next_position);
        for event in &decision.events {
            E::evolve(&mut self.state, event);
        }
        self.head += decision.events.len() as i64;
        if !outbox.is_empty()
            && let Some(person) = E::acts_for(&self.key, &self.state)
        {
            let person = person.narrowed(&ask.caller);
            let person = serde_json::to_string(&person).expect("a principal is plain data");
            let principal: Option<Arc<str>> = Some(person.into());
            outbox.iter_mut().for_each(|row| row.principal.clone_from(&principal));
        }
        let mut outbox_changes = Vec::new();
        match &ask.origin {
            Origin::Timer { name, id, .. } => {
                timers.insert(0, TimerChange::Fire { name: name.clone(), id: id.clone() });
            }
            Origin::Outbox { id } => outbox_changes.push(OutboxChange::Take { id: id.clone() }),
            Origin::Caller { .. } | Origin::Notice => {}
        }
        let commits = !decision.events.is_empty()
            || dedupe.is_some()
            || !outbox.is_empty()
            || !timers.is_empty()
            || !outbox_changes.is_empty();
        if !commits {
            if self.pending.is_empty() {
                self.settle(*ask, answer, &publish);
            } else {
                self.push_answer(ask, answer, publish);
                self.release();
            }
            return Ok(());
        }
        let publishes = unheard || !publish.is_empty();
        let views = self
            .in_the_vault(|| Ok::<_, String>(E::project(&self.key, &self.state, &decision.events)));
        let views = match views {
            Ok(views) => views,
            // The key was in memory a moment ago. The state is ahead of the journal, and is dropped.
            Err(trouble) => {
                ask.answer(Err(AskError::unavailable(trouble.to_string())));
                return Err(away("a key left the memory during a commit"));
            }
        };
        let due = self.head - self.snapshot_seq >= rt.options.snapshot_every;
        let snapshot = if due { self.snapshot() } else { None };
        let item = CommitItem {
            slot: self.slot,
            epoch: self.epoch,
            kind: E::KIND,
            key: self.key.clone(),
            head,
            events,
            caller: caller_name(&ask.caller),
            command_id: ask.command_id.clone(),
            dedupe,
            snapshot,
            outbox: outbox.clone(),
            outbox_changes,
            timers,
            publications,
            views,
            failed: self.failed.clone(),
            done: self.finish_with(myself, publishes),
        };
        if let Some(hash) = id_hash {
            self.memory.begin(hash, self.next_ticket);
        }
        let ticket = self.take_ticket();
        self.pending.push_back(Box::new(Pending {
            ticket,
            ask,
            answer,
            publish,
            unheard,
            outbox,
            claim,
            commits: true,
            head: self.head,
        }));
        match rt.lanes.submit(Box::new(item)) {
            Ok(()) => Ok(()),
            // The state is ahead of what can be committed: drop it with the activation.
            Err(SubmitError::Overloaded(_)) => Err(Stop::Orderly(AskError::Overloaded)),
            Err(SubmitError::Unavailable(_)) => Err(away("the store is away")),
        }
    }

    /// Finishes an activation that has ended: it cannot publish any more, so its listeners must read the history.
    fn finish_with(
        &self,
        myself: &ActorRef<ActivationMessage<E>>,
        publishes: bool,
    ) -> Box<dyn FnOnce(CommitResult) + Send + Sync> {
        let (myself, ticket, failed) = (myself.clone(), self.next_ticket, self.failed.clone());
        let topic = publishes.then(|| (self.table.clone(), self.key.clone()));
        Box::new(move |result| {
            let committed = result == CommitResult::Committed;
            let told = myself.cast(ActivationMessage::Finished { ticket, result }).is_ok();
            if let Some((table, key)) = topic
                && committed
                && (!told || failed.load(Ordering::SeqCst))
            {
                table.runtime.topics.missed(E::KIND, &key);
            }
        })
    }

    fn take_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket - 1
    }

    fn bare_item(&self, done: Box<dyn FnOnce(CommitResult) + Send + Sync>) -> CommitItem {
        CommitItem {
            slot: self.slot,
            epoch: self.epoch,
            kind: E::KIND,
            key: self.key.clone(),
            head: self.head,
            events: Vec::new(),
            caller: String::new(),
            command_id: None,
            dedupe: None,
            snapshot: None,
            outbox: Vec::new(),
            outbox_changes: Vec::new(),
            timers: Vec::new(),
            publications: Vec::new(),
            views: Vec::new(),
            failed: self.failed.clone(),
            done,
        }
    }

    /// Writes a snapshot if there is something new, and stops. A command that arrives meanwhile keeps it awake.
    pub fn passivate(&mut self, myself: &ActorRef<ActivationMessage<E>>) -> Result<(), Stop> {
        self.waiting.retain(|w| !w.abandoned());
        let busy = !self.is_idle()
            || !self.waiting.is_empty()
            || self
                .outgoing
                .as_ref()
                .is_some_and(|o| o.is_due_within_s(30, self.table.runtime.clock.now()))
            || self.reads_on_after().is_some();
        if busy {
            return Ok(());
        }
        if self.head > self.snapshot_seq && self.table.runtime.lanes.is_up(self.slot) {
            let Some(snapshot) = self.snapshot() else { return Ok(()) };
            let again = myself.clone();
            let done = Box::new(move |result| {
                if result == CommitResult::Committed {
                    let _ = again.cast(ActivationMessage::Passivate);
                }
            });
            let item = CommitItem { snapshot: Some(snapshot), ..self.bare_item(done) };
            let _ = self.table.runtime.lanes.submit(Box::new(item));
            return Ok(());
        }
        if self.table.retire(&self.key, myself.get_id()) {
            metrics::counter!("proxie_passivations_total", "kind" => E::KIND).increment(1);
            myself.stop(None);
        }
        Ok(())
    }
}

fn caller_name(caller: &Caller) -> String {
    match caller {
        Caller::User { id, .. } => format!("user:{id}"),
        Caller::Entity { kind, key, for_user: None } => format!("{kind}:{key}"),
        Caller::Entity { kind, key, for_user: Some(person) } => {
            format!("{kind}:{key} for user:{}", person.user_id)
        }
        Caller::Runtime => "runtime".into(),
    }
}
