//! The writing of one batch: the call, and the handling of its failures.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::Rng;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgPool, Postgres};

use super::{Ended, Late, Options};
use crate::kernel::clock::{Clock, doubled};
use crate::persistence::commit::{self, Batch, CommitItem, CommitResult, Items, Resolution};
use crate::persistence::patience::within;
use crate::persistence::session;

/// The number of batches that look ids up after an id was repeated: retries come in crowds.
const CAREFUL_BATCHES: u32 = 64;

/// The silence after which a reachable store (a frozen process, a hanging disk) counts as away. Callers are told so,
/// and the outcome of the batch is looked up once the store answers again.
const SILENCE: Duration = Duration::from_secs(3);

/// The least time for a question about a lost batch, however late it is.
const SHORTEST: Duration = Duration::from_millis(100);

fn silent() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

/// The writer of one lane, which writes its batches one after the other.
pub struct Writer {
    pool: PgPool,
    incarnation: i64,
    lane: i32,
    clock: Clock,
    options: Options,
    up: Arc<AtomicBool>,
    late: Late,
    next_batch: i64,
    /// The number of further batches that look ids up.
    careful: u32,
    /// The number of times in a row that the store answered but had no room for a batch.
    starved: u32,
    /// The lane's own connection, whose backend keeps its plans. It is dropped after its first error.
    connection: Option<PoolConnection<Postgres>>,
}

/// The failure of a call.
enum Failure {
    /// The statement failed and was rolled back; the batch number is still free.
    Item(CommitResult),
    Conflict,
    /// A command id was used before, or twice in the batch, and ids were not looked up.
    UsedId,
    Fenced,
    /// It is unknown whether the batch committed.
    Unknown(String),
    /// The batch was rolled back for lack of a resource (disk, memory, connections): it may succeed later.
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
        "23505" if db.constraint() == Some("dedupe_pkey") => Failure::UsedId,
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
    let base = doubled(Duration::from_millis(10), attempt, Duration::from_millis(640));
    base.mul_f64(rand::rng().random_range(0.5..1.5))
}

impl Writer {
    pub fn new(
        pool: PgPool,
        incarnation: i64,
        lane: i32,
        clock: Clock,
        options: Options,
        up: Arc<AtomicBool>,
        late: Late,
    ) -> Box<Self> {
        let (next_batch, careful, starved) = (1, 0, 0);
        Box::new(Self {
            pool,
            incarnation,
            lane,
            clock,
            options,
            up,
            late,
            next_batch,
            careful,
            starved,
            connection: None,
        })
    }

    /// Writes the items and returns their outcomes, and false if the lane is fenced. Outcomes that are known while the
    /// rest waits for the store are reported at once.
    pub async fn write(&mut self, items: Items, tell: impl Fn(Vec<Ended>)) -> (Vec<Ended>, bool) {
        let started = Instant::now();
        let mut ended = Vec::with_capacity(items.len());
        let mut queue = VecDeque::from([items]);
        while let Some(mut items) = queue.pop_front() {
            // Later parts of a split batch may have been invalidated by an earlier one.
            let refused = items.extract_if(.., |item| item.failed.load(Ordering::SeqCst));
            ended.extend(refused.map(|item| (item, CommitResult::Refused)));
            if items.is_empty() {
                continue;
            }
            match self.write_one(&items).await {
                Written::Results(results) => {
                    for (item, result) in items.into_iter().zip(results) {
                        // The flag is set now and not when the outcome is reported: no item that was decided on this
                        // one may get into a batch.
                        if result != CommitResult::Committed {
                            item.failed.store(true, Ordering::SeqCst);
                        }
                        ended.push((item, result));
                    }
                }
                Written::Split => {
                    for item in items.into_iter().rev() {
                        queue.push_front(vec![item]);
                    }
                }
                down @ (Written::Away { .. } | Written::Fenced) => {
                    self.up.store(false, Ordering::Release);
                    let publishes = items.iter().filter(|item| !item.publications.is_empty());
                    let topics: Vec<_> =
                        publishes.map(|item| (item.kind, item.key.clone())).collect();
                    let items = items.into_iter().chain(queue.drain(..).flatten());
                    ended.extend(items.map(|item| (item, CommitResult::Unavailable)));
                    let Written::Away { unresolved } = down else { return (ended, false) };
                    tell(std::mem::take(&mut ended));
                    match self.wait_for_store(unresolved).await {
                        Back::Fenced => return (ended, false),
                        Back::Burned => {}
                        Back::Committed => {
                            topics.iter().for_each(|(kind, key)| (self.late)(kind, key));
                        }
                    }
                    self.up.store(true, Ordering::Release);
                }
            }
        }
        metrics::histogram!("proxie_commit_seconds").record(started.elapsed().as_secs_f64());
        (ended, true)
    }

    async fn call(&mut self, items: &[Box<CommitItem>]) -> Result<Vec<CommitResult>, sqlx::Error> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let batch = Batch {
            incarnation: self.incarnation,
            lane: self.lane,
            number: self.next_batch,
            at: self.clock.now(),
            careful: self.careful > 0,
            keep: self.options.keep,
        };
        let calling = commit::call(&mut connection, &batch, items);
        let called = tokio::time::timeout(SILENCE, calling).await.unwrap_or_else(|_| {
            session::was_silent();
            Err(silent())
        });
        let usable = match &called {
            Ok(_) => true,
            Err(error) => !matches!(classify(error), Failure::Unknown(_) | Failure::Starved(_)),
        };
        if usable {
            self.connection = Some(connection);
        } else {
            // The connection does not go back into the pool: it may be half dead.
            drop(connection.detach());
        }
        called
    }

    /// Opens a connection with a name by which a successor can find it, if it is frozen in the middle of a call.
    async fn connect(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        let patience = Duration::from_millis(self.options.resolve_patience_ms);
        let acquired = tokio::time::timeout(patience, self.pool.acquire()).await;
        let mut connection = acquired.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
        let naming = sqlx::query("select set_config('application_name', $1, false)")
            .bind(format!("proxie lane {}/{}", self.incarnation, self.lane));
        let named = tokio::time::timeout(SILENCE, naming.execute(&mut *connection)).await;
        if let Err(error) = named.unwrap_or_else(|_| Err(silent())) {
            drop(connection.detach());
            return Err(error);
        }
        Ok(connection)
    }

    /// Writes the next batch and returns its outcome.
    async fn resolve(&self, items: usize, limit: Duration) -> Result<Resolution, sqlx::Error> {
        within(&self.pool, "settle a batch", limit, async |connection| {
            let (incarnation, lane, batch) = (self.incarnation, self.lane, self.next_batch);
            commit::resolve(connection, incarnation, lane, batch, items).await
        })
        .await
    }

    async fn write_one(&mut self, items: &[Box<CommitItem>]) -> Written {
        let patience = Instant::now() + Duration::from_millis(self.options.resolve_patience_ms);
        let mut attempt = 0;
        loop {
            let called = self.call(items).await;
            let failure = match called {
                Ok(results) => {
                    self.next_batch += 1;
                    self.careful = self.careful.saturating_sub(1);
                    self.starved = 0;
                    return Written::Results(results);
                }
                Err(error @ sqlx::Error::PoolTimedOut) => {
                    Failure::Starved(session::reason(&self.pool, &error).await)
                }
                Err(error) => classify(&error),
            };
            attempt += 1;
            match failure {
                Failure::Fenced => return Written::Fenced,
                Failure::Item(result) if items.len() == 1 => return Written::Results(vec![result]),
                Failure::Item(_) => return Written::Split,
                Failure::UsedId if attempt <= 8 => self.careful = CAREFUL_BATCHES,
                Failure::Conflict if attempt <= 8 => tokio::time::sleep(backoff(attempt)).await,
                Failure::Conflict | Failure::UsedId => return Written::Away { unresolved: false },
                Failure::Starved(reason) => {
                    tracing::warn!(lane = self.lane, reason, "the store did not take a batch");
                    if Instant::now() > patience || self.starved > 0 {
                        self.starved += 1;
                        return Written::Away { unresolved: false };
                    }
                    tokio::time::sleep(backoff(attempt)).await;
                }
                Failure::Unknown(reason) => {
                    tracing::warn!(
                        lane = self.lane,
                        batch = self.next_batch,
                        reason,
                        "the answer to a commit was lost; resolving it"
                    );
                    metrics::counter!("proxie_commit_unknown_total").increment(1);
                    loop {
                        let left = patience.saturating_duration_since(Instant::now());
                        let limit = left.clamp(SHORTEST, SILENCE);
                        match self.resolve(items.len(), limit).await {
                            Ok(Resolution::Committed(results)) => {
                                self.next_batch += 1;
                                return Written::Results(results);
                            }
                            Ok(Resolution::Burned) => {
                                self.next_batch += 1;
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

    /// Waits until the store answers again and the lost batch, if any, is settled. Until then nothing is loaded or
    /// decided in this lane, so a later activation reads final data.
    async fn wait_for_store(&mut self, unresolved: bool) -> Back {
        tracing::error!(
            lane = self.lane,
            "the store is away: commands are answered `unavailable` until it returns"
        );
        // A store without room still takes the small update below, so only the next batch can prove that there is room.
        // The wait is longer each time.
        if let Some(doublings) = self.starved.checked_sub(1) {
            let pause = doubled(Duration::from_millis(500), doublings, Duration::from_secs(8));
            tokio::time::sleep(pause).await;
        }
        let mut attempt = 0;
        loop {
            attempt += 1;
            // Settling a batch that was never sent burns its number, which is harmless and proves that writing works.
            match self.resolve(0, SILENCE).await {
                Ok(Resolution::Fenced) => return Back::Fenced,
                Ok(settled @ (Resolution::Burned | Resolution::Committed(_))) => {
                    self.next_batch += 1;
                    tracing::info!(lane = self.lane, unresolved, "the store is back");
                    return match settled {
                        Resolution::Committed(_) => Back::Committed,
                        _ => Back::Burned,
                    };
                }
                Err(_) => tokio::time::sleep(backoff(attempt.min(5))).await,
            }
        }
    }
}

/// The outcome of the batch that was under way when the store was lost.
enum Back {
    Committed,
    Burned,
    Fenced,
}

enum Written {
    Results(Vec<CommitResult>),
    /// One of several items is at fault, so they are tried one by one.
    Split,
    Away {
        unresolved: bool,
    },
    Fenced,
}
