//! The group-commit writer actors: one a lane, one batch in flight each.
//!
//! A lane commits whatever waits: the first item goes at once, and what arrives while it is being written goes together
//! in the next batch. So the batch grows with the load and nothing waits for a timer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use rand::Rng;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgPool, Postgres};
use tokio::sync::{oneshot, watch};

use crate::kernel::clock::Clock;
use crate::persistence::commit::{self, CommitItem, CommitResult, Resolution};

#[derive(Clone, Debug)]
pub struct Options {
    pub lanes: u16,
    pub max_batch_items: usize,
    pub max_batch_bytes: usize,
    /// Items that may wait in one lane; beyond it the entity answers `overloaded`.
    pub max_queued: usize,
    /// Publications kept per topic.
    pub keep_publications: i32,
    /// How long callers wait for a batch whose answer was lost, before they hear `unavailable`.
    pub resolve_patience_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lanes: 2,
            max_batch_items: 512,
            max_batch_bytes: 2 * 1024 * 1024,
            max_queued: 8_192,
            keep_publications: 1_000,
            resolve_patience_ms: 1_000,
        }
    }
}

/// A cheap handle to all lanes.
#[derive(Clone)]
pub struct Lanes {
    lanes: Arc<[Lane]>,
    fenced: Arc<watch::Sender<bool>>,
    max_queued: usize,
}

struct Lane {
    actor: ActorRef<Message>,
    queued: Arc<AtomicUsize>,
    up: Arc<AtomicBool>,
}

/// Why an item was not taken. It comes back, unwritten.
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
    ) -> anyhow::Result<Self> {
        let fenced = Arc::new(watch::Sender::new(false));
        let mut lanes = Vec::new();
        for lane in 0..options.lanes {
            let queued = Arc::new(AtomicUsize::new(0));
            let up = Arc::new(AtomicBool::new(true));
            let writer = Writer {
                pool: pool.clone(),
                incarnation,
                lane: i32::from(lane),
                clock: clock.clone(),
                options: options.clone(),
                queued: queued.clone(),
                up: up.clone(),
                fenced: fenced.clone(),
                connection: tokio::sync::Mutex::default(),
            };
            let (actor, _) = Actor::spawn(None, LaneActor, writer).await?;
            lanes.push(Lane { actor, queued, up });
        }
        Ok(Self { lanes: lanes.into(), fenced, max_queued: options.max_queued })
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

    /// False while a lane of the slot cannot commit: nothing should be decided then.
    pub fn is_up(&self, slot: u16) -> bool {
        self.lane(slot).up.load(Ordering::Acquire)
    }

    pub fn all_up(&self) -> bool {
        self.lanes.iter().all(|lane| lane.up.load(Ordering::Acquire))
    }

    pub fn queued(&self) -> usize {
        self.lanes.iter().map(|lane| lane.queued.load(Ordering::Relaxed)).sum()
    }

    /// Resolves when everything that was submitted to the slot's lane before is written or refused.
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
    Finished { next_batch: i64 },
    Fenced,
}

impl ractor::Message for Message {}

struct Writer {
    pool: PgPool,
    incarnation: i64,
    lane: i32,
    clock: Clock,
    options: Options,
    queued: Arc<AtomicUsize>,
    up: Arc<AtomicBool>,
    fenced: Arc<watch::Sender<bool>>,
    /// The lane's own: its plans are made, and one backend keeps them warm. Dropped with the first error on it.
    connection: tokio::sync::Mutex<Option<PoolConnection<Postgres>>>,
}

struct State {
    writer: Arc<Writer>,
    waiting: VecDeque<CommitItem>,
    barriers: Vec<oneshot::Sender<()>>,
    next_batch: i64,
    in_flight: bool,
}

struct LaneActor;

impl Actor for LaneActor {
    type Msg = Message;
    type State = State;
    type Arguments = Writer;

    async fn pre_start(
        &self,
        _: ActorRef<Message>,
        writer: Writer,
    ) -> Result<State, ActorProcessingErr> {
        Ok(State {
            writer: Arc::new(writer),
            waiting: VecDeque::new(),
            barriers: Vec::new(),
            next_batch: 1,
            in_flight: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Item(item) => state.waiting.push_back(*item),
            Message::Barrier(done) => state.barriers.push(done),
            Message::Finished { next_batch } => {
                state.in_flight = false;
                state.next_batch = next_batch;
            }
            Message::Fenced => {
                // For good: the lane stays down and refuses what still arrives.
                state.in_flight = true;
                let _ = state.writer.fenced.send(true);
            }
        }
        if !state.writer.up.load(Ordering::Acquire) {
            state.refuse_waiting();
        }
        if !state.in_flight {
            state.next(myself);
        }
        if !state.in_flight || *state.writer.fenced.borrow() {
            // Idle: whatever was submitted before the barrier is done.
            state.barriers.drain(..).for_each(|done| {
                let _ = done.send(());
            });
        }
        Ok(())
    }
}

impl State {
    fn refuse_waiting(&mut self) {
        let n = self.waiting.len();
        for item in self.waiting.drain(..) {
            item.finish(CommitResult::Unavailable);
        }
        self.writer.queued.fetch_sub(n, Ordering::AcqRel);
    }

    fn next(&mut self, myself: ActorRef<Message>) {
        let options = &self.writer.options;
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < options.max_batch_items && bytes < options.max_batch_bytes {
            let Some(item) = self.waiting.pop_front() else { break };
            self.writer.queued.fetch_sub(1, Ordering::AcqRel);
            if item.failed.load(Ordering::SeqCst) {
                item.finish(CommitResult::Refused);
                continue;
            }
            bytes += item.bytes();
            batch.push(item);
        }
        if batch.is_empty() {
            return;
        }
        self.in_flight = true;
        metrics::histogram!("proxie_commit_batch_items").record(batch.len() as f64);
        let writer = self.writer.clone();
        let number = self.next_batch;
        tokio::spawn(async move {
            let end = writer.write(number, batch).await;
            let _ = myself.cast(match end {
                Some(next_batch) => Message::Finished { next_batch },
                None => Message::Fenced,
            });
        });
    }
}

/// What went wrong with a call.
enum Failure {
    /// The statement failed and was rolled back; the batch number is still free.
    Item(CommitResult),
    Conflict,
    Fenced,
    /// Whether it committed is not known.
    Unknown(String),
    /// Rolled back for want of something (disk, memory, connections): later it may succeed.
    Starved(String),
}

fn classify(error: &sqlx::Error) -> Failure {
    let sqlx::Error::Database(db) = error else {
        return match error {
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => {
                Failure::Starved(error.to_string())
            }
            sqlx::Error::Encode(_) => Failure::Item(CommitResult::Invalid {
                constraint: None,
                message: error.to_string(),
            }),
            _ => Failure::Unknown(error.to_string()),
        };
    };
    let code = db.code().unwrap_or_default().into_owned();
    match code.as_str() {
        "PX001" => Failure::Fenced,
        "57014" => Failure::Starved(db.message().to_owned()),
        code if code.starts_with("40") => Failure::Conflict,
        // 08 connection, 57 operator intervention (terminated backend, shutdown, starting up), 58 system error
        code if code.starts_with("08")
            || code.starts_with("57")
            || code.starts_with("58")
            || code.starts_with("XX") =>
        {
            Failure::Unknown(db.message().to_owned())
        }
        // 53 insufficient resources, 25 read-only transaction (a demoted primary)
        code if code.starts_with("53") || code.starts_with("25") => {
            Failure::Starved(db.message().to_owned())
        }
        _ => Failure::Item(CommitResult::Invalid {
            constraint: db.constraint().map(str::to_owned),
            message: format!("{code}: {}", db.message()),
        }),
    }
}

fn backoff(attempt: u32) -> Duration {
    let base = Duration::from_millis(10 << attempt.min(6));
    base.mul_f64(rand::rng().random_range(0.5..1.5))
}

impl Writer {
    /// Writes the items, tells each how it ended, and returns the next batch number; `None` when fenced.
    async fn write(&self, mut number: i64, items: Vec<CommitItem>) -> Option<i64> {
        let started = Instant::now();
        let mut queue = VecDeque::from([items]);
        while let Some(mut items) = queue.pop_front() {
            // Parts of a split batch come after what made them invalid.
            let mut rest = Vec::with_capacity(items.len());
            for item in items {
                if item.failed.load(Ordering::SeqCst) {
                    item.finish(CommitResult::Refused);
                } else {
                    rest.push(item);
                }
            }
            items = rest;
            if items.is_empty() {
                continue;
            }
            match self.write_one(&mut number, &items).await {
                Written::Results(results) => {
                    for (item, result) in items.into_iter().zip(results) {
                        item.finish(result);
                    }
                }
                Written::Split => {
                    for item in items.into_iter().rev() {
                        queue.push_front(vec![item]);
                    }
                }
                Written::Away { unresolved } => {
                    self.up.store(false, Ordering::Release);
                    for item in items.into_iter().chain(queue.drain(..).flatten()) {
                        item.finish(CommitResult::Unavailable);
                    }
                    if !self.wait_for_store(&mut number, unresolved).await {
                        return None;
                    }
                    self.up.store(true, Ordering::Release);
                }
                Written::Fenced => {
                    self.up.store(false, Ordering::Release);
                    for item in items.into_iter().chain(queue.drain(..).flatten()) {
                        item.finish(CommitResult::Unavailable);
                    }
                    return None;
                }
            }
        }
        metrics::histogram!("proxie_commit_seconds").record(started.elapsed().as_secs_f64());
        Some(number)
    }

    async fn call(
        &self,
        number: i64,
        items: &[CommitItem],
    ) -> Result<Vec<CommitResult>, sqlx::Error> {
        let mut slot = self.connection.lock().await;
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => self.pool.acquire().await?,
        };
        let (now, keep) = (self.clock.now(), self.options.keep_publications);
        let called =
            commit::call(&mut connection, self.incarnation, self.lane, number, now, items, keep)
                .await;
        let usable = match &called {
            Ok(_) => true,
            Err(error) => !matches!(classify(error), Failure::Unknown(_) | Failure::Starved(_)),
        };
        if usable {
            *slot = Some(connection);
        } else {
            // Not back into the pool: it may be half dead.
            drop(connection.detach());
        }
        called
    }

    async fn write_one(&self, number: &mut i64, items: &[CommitItem]) -> Written {
        let patience = Instant::now() + Duration::from_millis(self.options.resolve_patience_ms);
        let mut attempt = 0;
        loop {
            let called = self.call(*number, items).await;
            let failure = match called {
                Ok(results) => {
                    *number += 1;
                    return Written::Results(results);
                }
                Err(error) => classify(&error),
            };
            attempt += 1;
            match failure {
                Failure::Fenced => return Written::Fenced,
                Failure::Item(result) if items.len() == 1 => return Written::Results(vec![result]),
                Failure::Item(_) => return Written::Split,
                Failure::Conflict if attempt <= 8 => tokio::time::sleep(backoff(attempt)).await,
                Failure::Conflict => return Written::Away { unresolved: false },
                Failure::Starved(reason) => {
                    tracing::warn!(lane = self.lane, reason, "the store did not take a batch");
                    if Instant::now() > patience {
                        return Written::Away { unresolved: false };
                    }
                    tokio::time::sleep(backoff(attempt)).await;
                }
                Failure::Unknown(reason) => {
                    tracing::warn!(
                        lane = self.lane,
                        batch = *number,
                        reason,
                        "the answer to a commit was lost; resolving it"
                    );
                    metrics::counter!("proxie_commit_unknown_total").increment(1);
                    loop {
                        match commit::resolve(
                            &self.pool,
                            self.incarnation,
                            self.lane,
                            *number,
                            items.len(),
                        )
                        .await
                        {
                            Ok(Resolution::Committed(results)) => {
                                *number += 1;
                                return Written::Results(results);
                            }
                            Ok(Resolution::Burned) => {
                                *number += 1;
                                break;
                            }
                            Ok(Resolution::Fenced) => return Written::Fenced,
                            Err(_) if Instant::now() < patience => {
                                tokio::time::sleep(backoff(attempt)).await
                            }
                            Err(_) => return Written::Away { unresolved: true },
                        }
                        attempt += 1;
                    }
                    if Instant::now() > patience {
                        return Written::Away { unresolved: false };
                    }
                }
            }
        }
    }

    /// Waits until the store answers again and the lost batch, if any, is settled. Nothing is loaded or decided in
    /// this lane before: what a later activation reads is final.
    async fn wait_for_store(&self, number: &mut i64, unresolved: bool) -> bool {
        tracing::error!(
            lane = self.lane,
            "the store is away: commands are answered `unavailable` until it returns"
        );
        let mut attempt = 0;
        loop {
            attempt += 1;
            // Settling a batch that was never sent burns its number, which is harmless and proves that writing works.
            match commit::resolve(&self.pool, self.incarnation, self.lane, *number, 0).await {
                Ok(Resolution::Fenced) => return false,
                Ok(Resolution::Burned | Resolution::Committed(_)) => {
                    *number += 1;
                    tracing::info!(lane = self.lane, unresolved, "the store is back");
                    return true;
                }
                Err(_) => tokio::time::sleep(backoff(attempt.min(5))).await,
            }
        }
    }
}

enum Written {
    Results(Vec<CommitResult>),
    /// One of several items is at fault: try them one by one.
    Split,
    Away {
        unresolved: bool,
    },
    Fenced,
}
