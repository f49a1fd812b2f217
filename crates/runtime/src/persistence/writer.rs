//! The group-commit writer actors: one for each lane, each with one batch in flight.
//!
//! A lane commits everything that waits: the first item goes at once, and items that arrive while it is being written
//! form the next batch. So the batch grows with the load, and no item waits for a timer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use sqlx::postgres::PgPool;
use tokio::sync::{oneshot, watch};

use crate::kernel::clock::Clock;
use crate::persistence::commit::{CommitItem, CommitResult, PublicationRetention};

mod batch;

use batch::Writer;

#[derive(Clone, Debug)]
pub struct Options {
    pub lanes: u16,
    pub max_batch_items: usize,
    pub max_batch_bytes: usize,
    /// The number of items that may wait in one lane; beyond it the entity answers `overloaded`.
    pub max_queued: usize,
    pub keep: PublicationRetention,
    /// The time that callers wait for a batch whose answer was lost, before they get `unavailable`.
    pub resolve_patience_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lanes: 2,
            max_batch_items: 1_024,
            max_batch_bytes: 2 * 1024 * 1024,
            max_queued: 8_192,
            keep: PublicationRetention { publications: 1_000, bytes: 4 << 20 },
            resolve_patience_ms: 1_000,
        }
    }
}

/// A callback with the kind and key of an entity whose publications were committed after its callers had been told that
/// the outcome was unknown, and which therefore were not published.
pub type Late = Arc<dyn Fn(&'static str, &str) + Send + Sync>;

/// A cheap handle to all lanes.
#[derive(Clone)]
pub struct Lanes {
    lanes: Arc<[Lane]>,
    fenced: Arc<watch::Sender<bool>>,
    /// Whether the store cannot be reached, as the renewals of the lease have found.
    away: Arc<watch::Sender<bool>>,
    is_away: Arc<AtomicBool>,
    /// The number of finished batches.
    written: Arc<AtomicUsize>,
    max_queued: usize,
}

struct Lane {
    actor: ActorRef<Message>,
    queued: Arc<AtomicUsize>,
    up: Arc<AtomicBool>,
}

/// The refusal of an item, which is returned unwritten.
pub enum SubmitError {
    Overloaded(Box<CommitItem>),
    Unavailable(Box<CommitItem>),
}

impl Lanes {
    /// Starts the lanes of an incarnation whose lane rows exist.
    pub async fn start(
        pool: PgPool,
        incarnation: i64,
        clock: Clock,
        options: Options,
        late: Late,
    ) -> anyhow::Result<Self> {
        let fenced = Arc::new(watch::Sender::new(false));
        let written = Arc::new(AtomicUsize::new(0));
        let mut lanes = Vec::new();
        for lane in 0..options.lanes {
            let queued = Arc::new(AtomicUsize::new(0));
            let up = Arc::new(AtomicBool::new(true));
            let writer = Writer::new(
                pool.clone(),
                incarnation,
                i32::from(lane),
                clock.clone(),
                options.clone(),
                up.clone(),
                late.clone(),
            );
            let lane = State {
                writer: Some(writer),
                options: options.clone(),
                up: up.clone(),
                queued: queued.clone(),
                fenced: fenced.clone(),
                written: written.clone(),
                waiting: VecDeque::new(),
                barriers: Vec::new(),
            };
            let (actor, _) = Actor::spawn(None, LaneActor, lane).await?;
            lanes.push(Lane { actor, queued, up });
        }
        Ok(Self {
            lanes: lanes.into(),
            fenced,
            away: Arc::new(watch::Sender::new(false)),
            is_away: Arc::default(),
            written,
            max_queued: options.max_queued,
        })
    }

    fn lane(&self, slot: u16) -> &Lane {
        &self.lanes[usize::from(slot) % self.lanes.len()]
    }

    /// Items of one slot are written in the order they are submitted.
    pub fn submit(&self, item: Box<CommitItem>) -> Result<(), SubmitError> {
        let lane = self.lane(item.slot);
        if !lane.up.load(Ordering::Acquire) {
            return Err(SubmitError::Unavailable(item));
        }
        if lane.queued.fetch_add(1, Ordering::AcqRel) >= self.max_queued {
            lane.queued.fetch_sub(1, Ordering::AcqRel);
            return Err(SubmitError::Overloaded(item));
        }
        match lane.actor.cast(Message::Item(item)) {
            Ok(()) => Ok(()),
            Err(ractor::MessagingErr::SendErr(Message::Item(item))) => {
                Err(SubmitError::Unavailable(item))
            }
            Err(_) => unreachable!("a failed cast of an item returns it"),
        }
    }

    /// Whether the slot's lane can commit. If it cannot, nothing should be decided.
    pub fn is_up(&self, slot: u16) -> bool {
        self.lane(slot).up.load(Ordering::Acquire) && !self.is_away.load(Ordering::Acquire)
    }

    pub fn all_up(&self) -> bool {
        !self.is_away.load(Ordering::Acquire)
            && self.lanes.iter().all(|lane| lane.up.load(Ordering::Acquire))
    }

    /// Reports whether the store can be reached, because idle lanes do not notice.
    pub fn set_away(&self, away: bool) {
        self.is_away.store(away, Ordering::Release);
        self.away.send_if_modified(|was| std::mem::replace(was, away) != away);
    }

    /// True while the store cannot be reached.
    pub fn away(&self) -> watch::Receiver<bool> {
        self.away.subscribe()
    }

    /// The number of finished batches, which grows while the lanes make progress.
    pub fn written(&self) -> usize {
        self.written.load(Ordering::Relaxed)
    }

    pub fn queued(&self) -> usize {
        self.lanes.iter().map(|lane| lane.queued.load(Ordering::Relaxed)).sum()
    }

    /// Resolves when every item submitted to the slot's lane before this call is written or refused.
    pub async fn barrier(&self, slot: u16) {
        let (tx, rx) = oneshot::channel();
        if self.lane(slot).actor.cast(Message::Barrier(tx)).is_ok() {
            let _ = rx.await;
        }
    }

    pub async fn flush(&self) {
        for slot in 0..self.lanes.len() {
            self.barrier(slot as u16).await;
        }
    }

    /// Turns true when a successor has fenced this node: it can never commit again under this incarnation.
    pub fn fenced(&self) -> watch::Receiver<bool> {
        self.fenced.subscribe()
    }

    pub async fn stop(&self) {
        self.flush().await;
        for lane in self.lanes.iter() {
            lane.actor.stop(None);
        }
    }
}

enum Message {
    Item(Box<CommitItem>),
    Barrier(oneshot::Sender<()>),
    /// Outcomes of items of the batch in flight, while the rest of the batch continues.
    Ended(Vec<Ended>),
    /// The batch has finished: the remaining outcomes, and the writer. Without the writer the lane is fenced.
    Through(Vec<Ended>, Option<Box<Writer>>),
}

impl ractor::Message for Message {}

/// An item and its outcome. Only the lane's actor reports outcomes to callers, and so in the order of submission.
type Ended = (Box<CommitItem>, CommitResult);

struct State {
    /// The writer; absent while a batch is in flight, and for good once the lane is fenced.
    writer: Option<Box<Writer>>,
    options: Options,
    up: Arc<AtomicBool>,
    queued: Arc<AtomicUsize>,
    fenced: Arc<watch::Sender<bool>>,
    written: Arc<AtomicUsize>,
    waiting: VecDeque<Box<CommitItem>>,
    barriers: Vec<oneshot::Sender<()>>,
}

struct LaneActor;

impl Actor for LaneActor {
    type Msg = Message;
    type State = State;
    type Arguments = State;

    async fn pre_start(
        &self,
        _: ActorRef<Message>,
        state: State,
    ) -> Result<State, ActorProcessingErr> {
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let mut ended = Vec::new();
        match message {
            Message::Item(item) => state.waiting.push_back(item),
            Message::Barrier(done) => state.barriers.push(done),
            Message::Ended(items) => ended = items,
            Message::Through(items, writer) => {
                ended = items;
                state.writer = writer;
                state.written.fetch_add(1, Ordering::Relaxed);
                if state.writer.is_none() {
                    let _ = state.fenced.send(true);
                }
            }
        }
        if !state.up.load(Ordering::Acquire) {
            state.refuse_waiting(&mut ended);
        }
        // The next batch is under way before the last one's answers are handed out.
        if state.next(&myself, &mut ended) && ended.len() > 1 {
            tokio::task::yield_now().await;
        }
        for (item, result) in ended {
            item.finish(result);
        }
        if state.writer.is_some() || *state.fenced.borrow() {
            // The lane is idle: every item submitted before the barrier has finished.
            state.barriers.drain(..).for_each(|done| {
                let _ = done.send(());
            });
        }
        Ok(())
    }
}

impl State {
    fn refuse_waiting(&mut self, ended: &mut Vec<Ended>) {
        self.queued.fetch_sub(self.waiting.len(), Ordering::AcqRel);
        ended.extend(self.waiting.drain(..).map(|item| (item, CommitResult::Unavailable)));
    }

    /// Starts a batch if an item waits and no batch is in flight.
    fn next(&mut self, myself: &ActorRef<Message>, ended: &mut Vec<Ended>) -> bool {
        let Some(mut writer) = self.writer.take() else { return false };
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < self.options.max_batch_items && bytes < self.options.max_batch_bytes {
            let Some(item) = self.waiting.pop_front() else { break };
            self.queued.fetch_sub(1, Ordering::AcqRel);
            if item.failed.load(Ordering::SeqCst) {
                ended.push((item, CommitResult::Refused));
                continue;
            }
            bytes += item.bytes();
            batch.push(item);
        }
        if batch.is_empty() {
            self.writer = Some(writer);
            return false;
        }
        metrics::histogram!("proxie_commit_batch_items").record(batch.len() as f64);
        let myself = myself.clone();
        tokio::spawn(async move {
            let _whole = AbortOnPanic;
            let tell = |ended| drop(myself.cast(Message::Ended(ended)));
            let (ended, lives) = writer.write(batch, tell).await;
            let _ = myself.cast(Message::Through(ended, lives.then_some(writer)));
        });
        true
    }
}

/// A writer that panics leaves the outcome of its batch unknown. Only a new process can find out.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a writer panicked: the process ends, so that its lanes are settled");
            std::process::abort();
        }
    }
}
