//! The one shell around every entity: load, decide, commit, evolve, reply, effects.
//!
//! An activation keeps deciding while its commits are in flight: `state` is ahead of the journal by what [`Pending`]
//! holds. Replies, publications and effects leave in order, each after its commit. When a commit does not go through,
//! everything assumed after it is dropped, the state is read again, and the commands that came later are decided anew.

use std::cell::LazyCell;
use std::collections::{HashMap, VecDeque};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use crate::actors::Witnessed;
use crate::actors::delivery::{Delivered, Outgoing};
use crate::actors::firing::Firing;
use crate::actors::registry::{KindTable, Slip};
use crate::cluster::topics::Published;
use crate::kernel::entity::{
    Caller, DecideCx, Decision, Effect, Entity, RunOutcome, SendFailure, decode_event,
};
use crate::kernel::error::AskError;
use crate::kernel::ids::{IdSource, slot_of, stable_hash};
use crate::persistence::commit::{
    CommitItem, CommitResult, DedupeRow, JournalRow, OutboxChange, OutboxRow, PublicationRow,
    SnapshotRow, TimerChange,
};
use crate::persistence::loader::{StoredEvent, is_full};
use crate::persistence::writer::SubmitError;

/// A command on its way through the shell.
pub struct Ask<E: Entity> {
    pub command: E::Command,
    pub caller: Caller,
    pub command_id: Option<String>,
    pub deadline: Option<Instant>,
    pub origin: Origin<E>,
}

pub enum Origin<E: Entity> {
    /// The slip is given back when the command is answered, or parked as a waiting query.
    Caller {
        reply: oneshot::Sender<Answer<E>>,
        slip: Option<Slip<E>>,
    },
    Timer {
        name: String,
        id: String,
        firing: Firing,
    },
    /// The outcome of an outbox row of this entity, whose row the commit deletes.
    Outbox {
        id: String,
    },
    /// A notice that nobody waits for.
    Notice,
}

pub type Answer<E> = Result<Result<<E as Entity>::Reply, <E as Entity>::Rejection>, AskError>;

pub enum Message<E: Entity> {
    Ask(Box<Ask<E>>),
    Finished {
        ticket: u64,
        result: CommitResult,
    },
    Delivered(Box<Delivered>),
    /// Something in the outbox may be due.
    Wake,
    /// The store knows a delivery that is overdue: if it is not under way here, read the outbox again.
    Owed,
    /// Become passive if nothing is going on.
    Passivate,
    /// The slot is being handed over: finish what has begun, and end.
    Retire,
}

impl<E: Entity> ractor::Message for Message<E> {}

/// A decided command whose consequences wait for its commit, or, without one, for the commits before it.
struct Pending<E: Entity> {
    ticket: u64,
    ask: Box<Ask<E>>,
    answer: Answer<E>,
    publish: Vec<Arc<Published>>,
    /// A durable publication was not rendered, as nobody listened. Somebody may by the time it is committed, and may
    /// have looked at the history before that.
    unheard: bool,
    outbox: Vec<OutboxRow>,
    claim: Option<Claim>,
    commits: bool,
    /// Of the journal, with this command's events.
    head: i64,
}

/// The id under which a command's first outcome is remembered.
struct Claim {
    id_hash: u64,
    fingerprint: i64,
    outcome: Arc<str>,
}

pub struct Activation<E: Entity> {
    table: Arc<KindTable<E>>,
    key: Arc<str>,
    slot: u16,
    /// Of the slot when this activation began. Under another one it is not the one any more.
    epoch: i64,
    loaded: bool,
    retiring: bool,
    state: E::State,
    head: i64,
    topic_head: i64,
    snapshot_seq: i64,
    next_ticket: u64,
    next_position: i64,
    /// Rows of the outbox up to this position were read from the store.
    owed_to: i64,
    /// Boxed, as a queue keeps its room when it is empty.
    pending: VecDeque<Box<Pending<E>>>,
    /// Ids in flight, so that a retry waits for the first outcome: id hash → ticket.
    ids: HashMap<u64, u64>,
    /// Outcomes of the last few ids, so that a quick retry costs no read.
    recent: VecDeque<Claim>,
    /// Retries of commands in flight, and queries that wait for a change.
    followers: Vec<(u64, i64, Box<Ask<E>>)>,
    waiting: Vec<Box<Ask<E>>>,
    /// Commands to decide again once the state has been read anew.
    redo: Option<Vec<Box<Ask<E>>>>,
    outgoing: Option<Box<Outgoing>>,
    failed: Arc<AtomicBool>,
    _entry: Entry<E>,
}

/// Takes the activation out of the registry when it ends, however it ends.
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

const RECENT: usize = 4;
const MAX_WAITING: usize = 256;
/// Pages of a journal that are folded before a snapshot keeps how far that went.
const SNAPSHOT_PAGES: u32 = 10;

pub struct Shell<E>(pub PhantomData<fn() -> E>);

impl<E: Entity> Actor for Shell<E> {
    type Msg = Message<E>;
    /// Boxed: ractor's task holds room for several moves of its state.
    type State = Box<Activation<E>>;
    type Arguments = (Arc<KindTable<E>>, Arc<str>, i64);

    async fn pre_start(
        &self,
        myself: ActorRef<Message<E>>,
        (table, key, epoch): Self::Arguments,
    ) -> Result<Box<Activation<E>>, ActorProcessingErr> {
        let failed = Arc::new(AtomicBool::new(false));
        let entry = Entry {
            table: table.clone(),
            key: key.clone(),
            failed: failed.clone(),
            actor: myself.get_id(),
        };
        Ok(Box::new(Activation {
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
            ids: HashMap::new(),
            recent: VecDeque::new(),
            followers: Vec::new(),
            waiting: Vec::new(),
            redo: None,
            outgoing: None,
            failed,
            _entry: entry,
        }))
    }

    async fn handle(
        &self,
        myself: ActorRef<Message<E>>,
        message: Message<E>,
        a: &mut Box<Activation<E>>,
    ) -> Result<(), ActorProcessingErr> {
        if !a.loaded
            && let Err(stop) = Box::pin(a.load()).await
        {
            return a.end(&myself, Some(message), stop);
        }
        // The rare long ways are boxed: an idle actor's memory holds the largest future that its handler may become.
        let step = match message {
            Message::Ask(ask) => a.ask(&myself, ask),
            Message::Finished { ticket, result } => match a.finished(&myself, ticket, result) {
                Ok(Next::RollBack) => Box::pin(a.roll_back(&myself)).await,
                Ok(Next::GoOn) => Ok(()),
                Err(stop) => Err(stop),
            },
            Message::Delivered(delivered) => a.delivered(&myself, *delivered),
            Message::Wake => {
                a.pump(&myself);
                Ok(())
            }
            Message::Owed => match a.owed(&myself) {
                Next::RollBack => Box::pin(a.roll_back(&myself)).await,
                Next::GoOn => Ok(()),
            },
            Message::Passivate => a.passivate(&myself),
            Message::Retire => {
                a.retiring = true;
                Ok(())
            }
        };
        if step.is_ok() && !a.retiring && a.reads_on_after().is_some() {
            Box::pin(a.read_on(&myself)).await;
        }
        match step {
            Ok(()) if a.retiring && a.pending.is_empty() && a.redo.is_none() => {
                a.end(&myself, None, Stop::Orderly(AskError::NotHere))
            }
            Ok(()) => Ok(()),
            Err(stop) => a.end(&myself, None, stop),
        }
    }
}

/// Why an activation ends.
pub enum Stop {
    /// Passive, or its slot or the store is away: nothing is wrong with the entity.
    Orderly(AskError),
    /// Supervision restarts it, with backoff.
    Failed(String),
}

/// What a message leads to.
enum Next {
    GoOn,
    /// The state is to be read again.
    RollBack,
}

fn away(reason: impl Into<String>) -> Stop {
    Stop::Orderly(AskError::unavailable(reason))
}

impl<E: Entity> Activation<E> {
    /// Ends the activation. Whoever waits hears why; what is not committed never will be.
    fn end(
        &mut self,
        myself: &ActorRef<Message<E>>,
        message: Option<Message<E>>,
        stop: Stop,
    ) -> Result<(), ActorProcessingErr> {
        self.failed.store(true, Ordering::SeqCst);
        self.table.ended(&self.key, myself.get_id());
        let (error, reason) = match stop {
            Stop::Orderly(error) => (error, None),
            Stop::Failed(reason) => (AskError::Internal, Some(reason)),
        };
        // Those whose commit is through already: what is committed from now on is told to be missed by `finish_with`.
        if self.pending.iter().any(|p| p.commits && (p.unheard || !p.publish.is_empty())) {
            self.table.runtime.topics.missed(E::KIND, &self.key);
        }
        let waiting = self.pending.drain(..).map(|p| p.ask);
        let waiting = waiting.chain(self.followers.drain(..).map(|(_, _, ask)| ask));
        let waiting =
            waiting.chain(self.waiting.drain(..)).chain(self.redo.take().into_iter().flatten());
        for ask in waiting.chain(message.and_then(|m| match m {
            Message::Ask(ask) => Some(ask),
            _ => None,
        })) {
            ask.answer(Err(error.clone()));
        }
        match reason {
            None => {
                myself.stop(None);
                Ok(())
            }
            Some(reason) => Err(reason.into()),
        }
    }

    async fn load(&mut self) -> Result<(), Stop> {
        let rt = &self.table.runtime;
        let loaded = rt.loader.load(E::KIND, self.key.clone()).await.map_err(|e| {
            tracing::warn!(
                kind = E::KIND,
                key = &*self.key,
                error = e,
                "an entity could not be read"
            );
            away("the store cannot be read")
        })?;
        self.state = E::State::default();
        (self.head, self.topic_head, self.snapshot_seq) = (0, 0, 0);
        let mut more = loaded.may_have_more();
        let mut events = loaded.events;
        let mut dropped = None;
        if let Some(snapshot) = loaded.snapshot {
            if let Some(state) = self.table.codec.decode(&snapshot.data) {
                self.state = state;
                self.head = snapshot.seq;
                self.topic_head = snapshot.topic_head;
                self.snapshot_seq = snapshot.seq;
            } else {
                tracing::info!(
                    kind = E::KIND,
                    key = &*self.key,
                    "a snapshot of another layout is dropped; replaying"
                );
                (events, more, dropped) = (Vec::new(), true, Some(snapshot.seq));
            }
        }
        self.fold(events)?;
        let mut pages = 0;
        while more {
            if !self.table.runtime.slots.is_here(self.slot, self.epoch) {
                return Err(Stop::Orderly(AskError::NotHere));
            }
            let page = self.table.runtime.loader.events_after(E::KIND, &self.key, self.head);
            let events = page.await.map_err(|_| away("the store cannot be read"))?;
            more = is_full(&events);
            self.fold(events)?;
            pages += 1;
            if more && pages % SNAPSHOT_PAGES == 0 {
                let snapshot = self.snapshot();
                let loader = &self.table.runtime.loader;
                // Without it the next start has more to read, no more.
                let _ = loader.keep_snapshot(E::KIND, &self.key, &snapshot, dropped).await;
            }
        }
        self.owed_to = loaded.outbox.last().map_or(0, |last| last.row.position);
        self.outgoing = Outgoing::resume(loaded.outbox, self.table.runtime.clock.now());
        self.next_position = loaded.last_position + 1;
        self.loaded = true;
        self.table.started(&self.key);
        if let Some(witness) = &self.table.runtime.witness {
            witness.loaded(self.witnessed(), self.head);
        }
        metrics::counter!("proxie_activations_total", "kind" => E::KIND).increment(1);
        Ok(())
    }

    /// Applies what the journal says next.
    fn fold(&mut self, events: Vec<StoredEvent>) -> Result<(), Stop> {
        for stored in events {
            if stored.seq != self.head + 1 {
                return Err(self
                    .start_failed(format!("the journal has a hole before event {}", stored.seq)));
            }
            let event = serde_json::from_str(&stored.event)
                .and_then(|value| decode_event::<E>(stored.version, value));
            let event = match event {
                Ok(event) => event,
                Err(e) => {
                    return Err(
                        self.start_failed(format!("event {} cannot be read: {e}", stored.seq))
                    );
                }
            };
            if catch_unwind(AssertUnwindSafe(|| E::evolve(&mut self.state, &event))).is_err() {
                return Err(self.start_failed(format!("event {} cannot be applied", stored.seq)));
            }
            self.head = stored.seq;
            self.topic_head = stored.topic_head;
        }
        Ok(())
    }

    fn witnessed(&self) -> Witnessed<'_> {
        Witnessed {
            kind: E::KIND,
            key: &self.key,
            incarnation: self.table.runtime.lease.incarnation(),
            epoch: self.epoch,
        }
    }

    fn start_failed(&self, reason: String) -> Stop {
        tracing::error!(kind = E::KIND, key = &*self.key, reason, "an entity cannot start");
        self.table.start_failed(&self.key, &reason);
        Stop::Failed(reason)
    }

    fn ask(&mut self, myself: &ActorRef<Message<E>>, ask: Box<Ask<E>>) -> Result<(), Stop> {
        if let Some(redo) = &mut self.redo {
            redo.push(ask);
            return Ok(());
        }
        self.decide(myself, ask)
    }

    /// One command: decided on the state as it will be when all pending commits are through.
    fn decide(&mut self, myself: &ActorRef<Message<E>>, mut ask: Box<Ask<E>>) -> Result<(), Stop> {
        let rt = self.table.runtime.clone();
        if ask.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            ask.answer(Err(AskError::DeadlineExceeded));
            return Ok(());
        }
        if !rt.slots.is_here(self.slot, self.epoch) {
            // What is under way ends as it will; nothing new begins.
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
            if let Some(ticket) = self.ids.get(&hash) {
                self.followers.push((*ticket, dedupe.fingerprint, ask));
                return Ok(());
            }
            if let Some(claim) = self.recent.iter().find(|claim| claim.id_hash == hash) {
                let answer = claim.recall::<E>(dedupe.fingerprint);
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
                // It is bounded by `MAX_WAITING` now, and must not keep commands out.
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
        myself: &ActorRef<Message<E>>,
        ask: Box<Ask<E>>,
        answer: Answer<E>,
        decision: Decision<E>,
        mut dedupe: Option<DedupeRow>,
        id_hash: Option<u64>,
    ) -> Result<(), Stop> {
        let rt = self.table.runtime.clone();
        let mut claim = None;
        if let (Some(row), Some(id_hash), Ok(outcome)) = (&mut dedupe, id_hash, &answer) {
            row.outcome = serde_json::to_string(outcome).expect("replies are plain data").into();
            let (fingerprint, outcome) = (row.fingerprint, row.outcome.clone());
            claim = Some(Claim { id_hash, fingerprint, outcome });
        }
        let head = self.head;
        // Most commands publish nothing.
        let key = self.key.clone();
        let topic = LazyCell::new(|| [E::KIND, ":", &*key].concat());
        let heard = LazyCell::new(|| rt.topics.has_subscribers(&topic));
        let mut unheard = false;
        let (mut publish, mut publications, mut outbox, mut timers) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for effect in decision.effects {
            match effect {
                Effect::Publish { publication, durable } => {
                    let data = LazyCell::new(|| publication.data.to_string());
                    let offset = durable.then(|| {
                        self.topic_head += 1;
                        self.topic_head
                    });
                    unheard |= durable && !*heard;
                    if *heard {
                        let (event, from) = (&publication.event, publication.from.as_deref());
                        publish.push(Published::said(&topic, offset, event, from, &data));
                    }
                    if let Some(offset) = offset {
                        publications.push(PublicationRow {
                            offset,
                            data: data.clone(),
                            event: publication.event,
                            from: publication.from,
                        });
                    }
                }
                Effect::Send { kind, key, command } => {
                    outbox.push((kind.to_owned(), key, command.to_string()))
                }
                Effect::Notify { kind, key, publication } => outbox.push((
                    kind,
                    key,
                    serde_json::json!({ "@publication": publication }).to_string(),
                )),
                Effect::Run { runner, tag, input } => outbox.push((
                    "run".to_owned(),
                    runner.to_owned(),
                    serde_json::json!({ "tag": tag, "input": input }).to_string(),
                )),
                Effect::Schedule { name, at, command } => timers.push(TimerChange::Set {
                    name,
                    id: ulid::Ulid::generate().to_string(),
                    due: at,
                    command: command.to_string(),
                }),
                Effect::Cancel { name } => timers.push(TimerChange::Cancel { name }),
            }
        }
        if !publications.is_empty() && (decision.events.is_empty() || !E::HAS_TOPIC) {
            return Err(Stop::Failed(
                "a durable publication without an event, or without a topic of its own".into(),
            ));
        }
        let outbox: Vec<OutboxRow> = outbox
            .into_iter()
            .map(|(target_kind, target_key, body)| {
                self.next_position += 1;
                OutboxRow {
                    id: format!("eff_{}", ulid::Ulid::generate()),
                    position: self.next_position,
                    target_kind,
                    target_key,
                    body,
                }
            })
            .collect();
        for event in &decision.events {
            E::evolve(&mut self.state, event);
        }
        self.head += decision.events.len() as i64;
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
        let snapshot =
            (self.head - self.snapshot_seq >= rt.options.snapshot_every).then(|| self.snapshot());
        let item = CommitItem {
            slot: self.slot,
            epoch: self.epoch,
            kind: E::KIND,
            key: self.key.clone(),
            head,
            events: decision
                .events
                .iter()
                .map(|event| JournalRow {
                    version: E::EVENT_VERSION,
                    topic_head: self.topic_head,
                    event: serde_json::to_string(event).expect("events are plain data"),
                })
                .collect(),
            caller: caller_name(&ask.caller),
            command_id: ask.command_id.clone(),
            dedupe,
            snapshot,
            outbox: outbox.clone(),
            outbox_changes,
            timers,
            publications,
            views: E::project(&self.key, &self.state, &decision.events),
            failed: self.failed.clone(),
            done: self.finish_with(myself, publishes),
        };
        if let Some(hash) = id_hash {
            self.ids.insert(hash, self.next_ticket);
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

    /// An activation that has ended publishes nothing, so its listeners are to look at the history.
    fn finish_with(
        &self,
        myself: &ActorRef<Message<E>>,
        publishes: bool,
    ) -> Box<dyn FnOnce(CommitResult) + Send + Sync> {
        let (myself, ticket, failed) = (myself.clone(), self.next_ticket, self.failed.clone());
        let topic = publishes.then(|| (self.table.clone(), self.key.clone()));
        Box::new(move |result| {
            let committed = result == CommitResult::Committed;
            let told = myself.cast(Message::Finished { ticket, result }).is_ok();
            if let Some((table, key)) = topic
                && committed
                && (!told || failed.load(Ordering::SeqCst))
            {
                table.runtime.topics.missed(E::KIND, &key);
            }
        })
    }

    /// From here on the next one is counted, before this one is written: one that is not leads to a fresh load.
    fn snapshot(&mut self) -> SnapshotRow {
        self.snapshot_seq = self.head;
        SnapshotRow {
            seq: self.head,
            topic_head: self.topic_head,
            data: self.table.codec.encode(&self.state),
        }
    }

    fn take_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket - 1
    }

    /// An answer that needs no commit of its own, but waits for those before it.
    fn push_answer(&mut self, ask: Box<Ask<E>>, answer: Answer<E>, publish: Vec<Arc<Published>>) {
        let ticket = self.take_ticket();
        self.pending.push_back(Box::new(Pending {
            ticket,
            ask,
            answer,
            publish,
            unheard: false,
            outbox: Vec::new(),
            claim: None,
            commits: false,
            head: self.head,
        }));
    }

    /// Lets go of what waits at the front and needs no commit.
    fn release(&mut self) {
        while self.pending.front().is_some_and(|p| !p.commits) {
            let pending = self.pending.pop_front().expect("there is a front");
            self.settle(*pending.ask, pending.answer, &pending.publish);
        }
    }

    /// Answers what needs no commit: only a fresh lease, and the slot, prove that this is still the one activation.
    fn settle(&self, ask: Ask<E>, answer: Answer<E>, publish: &[Arc<Published>]) {
        let rt = &self.table.runtime;
        ask.answer(if !rt.slots.is_here(self.slot, self.epoch) {
            Err(AskError::NotHere)
        } else if !rt.lease.is_fresh() {
            Err(AskError::unavailable("the lease is not proven"))
        } else {
            for published in publish {
                rt.topics.publish(published);
            }
            answer
        });
    }

    fn finished(
        &mut self,
        myself: &ActorRef<Message<E>>,
        ticket: u64,
        result: CommitResult,
    ) -> Result<Next, Stop> {
        if self.pending.front().is_none_or(|p| p.ticket != ticket) {
            return Ok(Next::GoOn);
        }
        let mut pending = self.pending.pop_front().expect("there is a front");
        if let Some(claim) = &pending.claim {
            self.ids.remove(&claim.id_hash);
        }
        let followers: Vec<_> = self.followers.extract_if(.., |(t, _, _)| *t == ticket).collect();
        match result {
            CommitResult::Committed => {
                self.table.started(&self.key);
                if let Some(witness) = &self.table.runtime.witness {
                    witness.committed(self.witnessed(), pending.head);
                }
                let topics = &self.table.runtime.topics;
                for published in &pending.publish {
                    topics.publish(published);
                }
                if pending.unheard {
                    topics.missed(E::KIND, &self.key);
                }
                if let Some(claim) = pending.claim.take() {
                    for (_, asked, follower) in followers {
                        follower.answer(claim.recall::<E>(asked));
                    }
                    if self.recent.len() == RECENT {
                        self.recent.pop_front();
                    }
                    self.recent.push_back(claim);
                }
                pending.ask.answer(pending.answer);
                let mut rows = std::mem::take(&mut pending.outbox);
                // Those that were read meanwhile, in a page of the store's, are there already.
                rows.retain(|row| row.position > self.owed_to);
                if !rows.is_empty() {
                    let now = self.table.runtime.clock.now();
                    self.outgoing.get_or_insert_default().add(rows, now);
                    self.pump(myself);
                }
                self.release();
                return Ok(Next::GoOn);
            }
            CommitResult::Duplicate { fingerprint, outcome } => {
                let asked = pending.claim.map_or(0, |claim| claim.fingerprint);
                let first = Claim { id_hash: 0, fingerprint, outcome: outcome.into() };
                for (_, asked, follower) in followers {
                    follower.answer(first.recall::<E>(asked));
                }
                pending.ask.answer(first.recall::<E>(asked));
            }
            CommitResult::Gone => pending.ask.answer(Err(AskError::Internal)),
            CommitResult::Invalid { constraint, message } => {
                let rejection = constraint.as_deref().and_then(E::constraint_violated);
                if rejection.is_none() {
                    tracing::error!(
                        kind = E::KIND,
                        key = &*self.key,
                        message,
                        "a command could not be written"
                    );
                }
                pending.ask.answer(rejection.map(Err).ok_or(AskError::Internal));
            }
            CommitResult::Moved => {
                // Neither this nor anything decided after it was written, nor will be.
                pending.ask.answer(Err(AskError::NotHere));
                for (_, _, follower) in followers {
                    follower.answer(Err(AskError::NotHere));
                }
                return Err(Stop::Orderly(AskError::NotHere));
            }
            CommitResult::Unavailable => {
                pending.ask.answer(Err(AskError::unavailable("the store is away")));
                return Err(away("the store is away"));
            }
            CommitResult::Stale | CommitResult::Refused => {
                self.redo.get_or_insert_default().push(pending.ask);
                self.redo
                    .get_or_insert_default()
                    .extend(followers.into_iter().map(|(_, _, ask)| ask));
            }
        }
        Ok(Next::RollBack)
    }

    /// What was decided after a commit that did not go through is decided again, on what the journal says.
    async fn roll_back(&mut self, myself: &ActorRef<Message<E>>) -> Result<(), Stop> {
        self.redo.get_or_insert_default();
        while self.pending.front().is_some_and(|p| !p.commits) {
            let pending = self.pending.pop_front().expect("there is a front");
            self.redo.get_or_insert_default().push(pending.ask);
        }
        if !self.pending.is_empty() {
            // The writer is about to refuse the rest, in order.
            return Ok(());
        }
        self.failed.store(true, Ordering::SeqCst);
        self.failed = Arc::new(AtomicBool::new(false));
        self._entry.failed = self.failed.clone();
        self.ids.clear();
        let outgoing = self.outgoing.take();
        self.load().await?;
        if let (Some(kept), Some(fresh)) = (outgoing, &mut self.outgoing) {
            fresh.keep_in_flight(*kept);
        }
        for ask in self.redo.take().unwrap_or_default() {
            self.ask(myself, ask)?;
        }
        // The state may be what they wait for.
        for waiting in std::mem::take(&mut self.waiting) {
            self.decide(myself, waiting)?;
        }
        self.pump(myself);
        Ok(())
    }

    /// The outcome of a delivery: takes its row out of the outbox, tells the entity where it asked to know.
    fn delivered(
        &mut self,
        myself: &ActorRef<Message<E>>,
        delivered: Delivered,
    ) -> Result<(), Stop> {
        let rt = self.table.runtime.clone();
        let Some(outgoing) = &mut self.outgoing else { return Ok(()) };
        let end = outgoing.settle(delivered, rt.options.give_up_after, rt.clock.now());
        if outgoing.is_empty() {
            self.outgoing = None;
        }
        let Some(end) = end else {
            self.pump(myself);
            return Ok(());
        };
        if let (Some(Notice::Failed(_)), Some(OutboxChange::Done { id })) =
            (&end.notice, &end.change)
        {
            rt.runners.note(id.clone(), rt.clock.now());
        }
        let notice = match end.notice {
            Some(Notice::Run(outcome)) => E::run_finished(outcome),
            Some(Notice::Failed(failure)) => E::send_failed(failure),
            None => None,
        };
        match (end.change, notice) {
            (Some(OutboxChange::Done { id }), Some(command)) => {
                self.ask(myself, Ask::internal(command, Origin::Outbox { id }))?;
            }
            (change, notice) => {
                if let Some(change) = change {
                    self.change_outbox(change);
                }
                if let Some(command) = notice {
                    self.ask(myself, Ask::internal(command, Origin::Notice))?;
                }
            }
        }
        self.pump(myself);
        Ok(())
    }

    /// Bookkeeping in its own right: nobody waits for it, and nothing is lost when it is.
    fn change_outbox(&mut self, change: OutboxChange) {
        let item = CommitItem { outbox_changes: vec![change], ..self.bare_item(Box::new(|_| {})) };
        let _ = self.table.runtime.lanes.submit(Box::new(item));
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

    fn pump(&mut self, myself: &ActorRef<Message<E>>) {
        if let Some(outgoing) = &mut self.outgoing {
            let myself = myself.clone();
            outgoing.pump(
                &self.table.runtime,
                E::KIND,
                &self.key,
                Arc::new(move |delivered| {
                    let _ = match delivered {
                        Some(delivered) => myself.cast(Message::Delivered(Box::new(delivered))),
                        None => myself.cast(Message::Wake),
                    };
                }),
            );
        }
    }

    fn reads_on_after(&self) -> Option<i64> {
        self.outgoing.as_ref()?.reads_on_after(self.table.runtime.clock.now())
    }

    /// Reads the next page of what it owes. Where that fails, the next message or the recovery scan tries again.
    async fn read_on(&mut self, myself: &ActorRef<Message<E>>) {
        let Some(after) = self.reads_on_after() else { return };
        let rt = self.table.runtime.clone();
        let Ok(rows) = rt.loader.owed_after(E::KIND, &self.key, after).await else { return };
        self.owed_to = rows.last().map_or(after, |last| last.row.position).max(self.owed_to);
        self.outgoing.get_or_insert_default().go_on(rows, rt.clock.now());
        self.outgoing.take_if(|outgoing| outgoing.is_empty());
        self.pump(myself);
    }

    fn owed(&mut self, myself: &ActorRef<Message<E>>) -> Next {
        let idle = self.pending.is_empty() && self.redo.is_none();
        let now = self.table.runtime.clock.now();
        let known = self.outgoing.as_ref().is_some_and(|o| o.is_due_within_s(0, now));
        if idle && !known {
            return Next::RollBack;
        }
        self.pump(myself);
        Next::GoOn
    }

    /// Writes a snapshot if there is something new, and stops. A command that arrives meanwhile keeps it awake.
    fn passivate(&mut self, myself: &ActorRef<Message<E>>) -> Result<(), Stop> {
        self.waiting.retain(|w| !w.abandoned());
        let busy = !self.pending.is_empty()
            || self.redo.is_some()
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
            let snapshot = self.snapshot();
            let again = myself.clone();
            let done = Box::new(move |result| {
                if result == CommitResult::Committed {
                    let _ = again.cast(Message::Passivate);
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

/// What the entity hears of a delivery.
pub enum Notice {
    Run(RunOutcome),
    Failed(SendFailure),
}

impl Claim {
    /// The answer to somebody who asks under this id with the fingerprint `asked`.
    fn recall<E: Entity>(&self, asked: i64) -> Answer<E> {
        if self.fingerprint != asked {
            return Err(AskError::IdReused);
        }
        serde_json::from_str(&self.outcome).map_err(|_| AskError::Internal)
    }
}

fn caller_name(caller: &Caller) -> String {
    match caller {
        Caller::User { id, .. } => format!("user:{id}"),
        Caller::Entity { kind, key } => format!("{kind}:{key}"),
        Caller::Runtime => "runtime".into(),
    }
}

impl<E: Entity> Ask<E> {
    fn internal(command: E::Command, origin: Origin<E>) -> Box<Self> {
        let caller = Caller::Runtime;
        Box::new(Self { command, caller, command_id: None, deadline: None, origin })
    }

    fn answer(self, answer: Answer<E>) {
        match self.origin {
            Origin::Caller { reply, slip } => {
                // Who has heard the answer finds its place free.
                drop(slip);
                let _ = reply.send(answer);
            }
            Origin::Timer { mut firing, .. } => {
                if let Err(error) = answer {
                    firing.failed(error.to_string());
                }
            }
            Origin::Outbox { .. } | Origin::Notice => {}
        }
    }

    fn abandoned(&self) -> bool {
        match &self.origin {
            Origin::Caller { reply, .. } => reply.is_closed(),
            _ => false,
        }
    }

    /// Under which id and fingerprint this command is remembered.
    fn dedupe(&self, key: &str) -> Option<DedupeRow> {
        let id = self.command_id.clone()?;
        let user_id = match &self.caller {
            Caller::User { id, .. } => id.clone(),
            Caller::Entity { .. } => "@outbox".into(),
            Caller::Runtime => "@runtime".into(),
        };
        let command = serde_json::to_vec(&self.command).expect("commands are plain data");
        let fingerprint = stable_hash(&[E::KIND.as_bytes(), key.as_bytes(), &command]) as i64;
        Some(DedupeRow { user_id, id, fingerprint, outcome: "".into() })
    }
}
