//! What an entity still owes others: its outbox rows in memory, delivered in order per receiver.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rand::Rng;
use serde_json::Value;

use crate::actors::entity::Notice;
use crate::actors::{RunError, Runtime};
use crate::cluster::{Meta, WeakEntities};
use crate::kernel::entity::{Caller, RunOutcome, SendFailure};
use crate::kernel::error::AskError;
use crate::persistence::commit::{OutboxChange, OutboxRow};
use crate::persistence::loader::PendingOutbox;
use crate::persistence::store::from_micros;

#[derive(Default)]
pub struct Outgoing {
    /// By receiver. Runs have no order among themselves: each is its own receiver.
    queues: BTreeMap<(String, String), VecDeque<Row>>,
    in_flight: usize,
    wake_at: Option<Timestamp>,
}

struct Row {
    row: OutboxRow,
    attempts: i32,
    due: Timestamp,
    in_flight: bool,
}

pub struct Delivered {
    id: String,
    receiver: (String, String),
    outcome: Outcome,
}

enum Outcome {
    Sent(Result<Result<Value, String>, AskError>),
    Ran(Result<Value, RunError>),
}

/// How one row went on: what to write, and what to tell the entity.
pub struct End {
    pub change: OutboxChange,
    pub notice: Option<Notice>,
}

/// `None`: time to look again.
pub type Report = Arc<dyn Fn(Option<Delivered>) + Send + Sync>;

impl Outgoing {
    /// What was still owed when the entity was last live. Dead letters wait for an operator.
    pub fn resume(rows: Vec<PendingOutbox>) -> Option<Box<Self>> {
        let mut outgoing = Self::default();
        for row in rows.into_iter().filter(|row| !row.dead) {
            outgoing.push(Row {
                row: row.row,
                attempts: row.attempts,
                due: from_micros(row.due_us),
                in_flight: false,
            });
        }
        (!outgoing.is_empty()).then(|| Box::new(outgoing))
    }

    pub fn add(&mut self, rows: Vec<OutboxRow>) {
        for row in rows {
            self.push(Row { row, attempts: 0, due: Timestamp::UNIX_EPOCH, in_flight: false });
        }
    }

    fn push(&mut self, row: Row) {
        let receiver = match row.row.target_kind.as_str() {
            "run" => ("run".to_owned(), row.row.id.clone()),
            kind => (kind.to_owned(), row.row.target_key.clone()),
        };
        self.queues.entry(receiver).or_default().push_back(row);
    }

    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    pub fn last_position(&self) -> i64 {
        self.queues.values().flatten().map(|row| row.row.position).max().unwrap_or(0)
    }

    pub fn is_due_within_s(&self, seconds: i64, now: Timestamp) -> bool {
        let until = now + jiff::SignedDuration::from_secs(seconds);
        self.in_flight > 0
            || self.queues.values().filter_map(|q| q.front()).any(|row| row.due <= until)
    }

    /// After the rows were read again: those that are on their way stay so.
    pub fn keep_in_flight(&mut self, before: &Self) {
        let ids: HashSet<&str> = before
            .queues
            .values()
            .flatten()
            .filter(|r| r.in_flight)
            .map(|r| r.row.id.as_str())
            .collect();
        for row in self.queues.values_mut().flatten().filter(|r| ids.contains(r.row.id.as_str())) {
            row.in_flight = true;
            self.in_flight += 1;
        }
    }

    /// Sends what is due: the first row of each receiver, a bounded number at a time.
    pub fn pump(&mut self, rt: &Arc<Runtime>, kind: &'static str, key: &Arc<str>, report: Report) {
        let now = rt.clock.now();
        let mut next: Option<Timestamp> = None;
        for (receiver, queue) in &mut self.queues {
            if self.in_flight >= rt.options.max_deliveries {
                // The end of any delivery pumps again.
                return;
            }
            let Some(row) = queue.front_mut().filter(|row| !row.in_flight) else { continue };
            if row.due > now {
                next = Some(next.map_or(row.due, |at| at.min(row.due)));
                continue;
            }
            row.in_flight = true;
            self.in_flight += 1;
            deliver(
                rt.clone(),
                kind,
                key.clone(),
                receiver.clone(),
                row.row.clone(),
                report.clone(),
            );
        }
        if let Some(at) = next
            && self.wake_at.is_none_or(|wake| wake <= now || at < wake)
        {
            self.wake_at = Some(at);
            let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
            // A later one is found by the recovery scan, after the entity has become passive.
            if wait < Duration::from_secs(60) {
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    report(None);
                });
            }
        }
    }

    /// Takes the outcome of a delivery. `None`: the row is no longer known here.
    pub fn settle(
        &mut self,
        delivered: Delivered,
        max_attempts: i32,
        now: Timestamp,
    ) -> Option<End> {
        let queue = self.queues.get_mut(&delivered.receiver)?;
        let at = queue.iter().position(|row| row.row.id == delivered.id)?;
        if queue[at].in_flight {
            queue[at].in_flight = false;
            self.in_flight -= 1;
        }
        let id = delivered.id;
        let (error, last) = match delivered.outcome {
            Outcome::Sent(Ok(Ok(_))) => {
                self.remove(&delivered.receiver, at);
                return Some(End { change: OutboxChange::Done { id }, notice: None });
            }
            Outcome::Sent(Ok(Err(reason))) => {
                let row = self.remove(&delivered.receiver, at);
                return Some(End {
                    change: OutboxChange::Done { id },
                    notice: Some(failure(&row, reason)),
                });
            }
            Outcome::Ran(Ok(value)) => {
                let row = self.remove(&delivered.receiver, at);
                return Some(End {
                    change: OutboxChange::Done { id },
                    notice: Some(outcome(&row, Ok(value))),
                });
            }
            Outcome::Ran(Err(RunError::Final(error))) => {
                let row = self.remove(&delivered.receiver, at);
                return Some(End {
                    change: OutboxChange::Done { id },
                    notice: Some(outcome(&row, Err(error))),
                });
            }
            Outcome::Ran(Err(RunError::Retry(error))) => (error, false),
            Outcome::Sent(Err(error)) => {
                (error.to_string(), matches!(error, AskError::BadCommand(_)))
            }
        };
        let row = &mut self.queues.get_mut(&delivered.receiver)?[at];
        row.attempts += 1;
        if last || row.attempts >= max_attempts {
            let row = self.remove(&delivered.receiver, at);
            tracing::error!(id, to = ?delivered.receiver, attempts = row.attempts, error, "a delivery is given up: dead letter");
            metrics::counter!("proxie_dead_letters_total").increment(1);
            let notice = match delivered.receiver.0.as_str() {
                "run" => outcome(&row, Err(error.clone())),
                _ => failure(&row, "dead_letter".into()),
            };
            let change = OutboxChange::Dead { id, attempts: row.attempts, error };
            return Some(End { change, notice: Some(notice) });
        }
        row.due = now + retry_delay(row.attempts);
        let change = OutboxChange::Retry { id, attempts: row.attempts, due: row.due, error };
        Some(End { change, notice: None })
    }

    fn remove(&mut self, receiver: &(String, String), at: usize) -> Row {
        let queue = self.queues.get_mut(receiver).expect("the receiver was just found");
        let row = queue.remove(at).expect("the row was just found");
        if queue.is_empty() {
            self.queues.remove(receiver);
        }
        row
    }
}

/// 100 ms doubled each time, at most 5 minutes, give or take a quarter.
fn retry_delay(attempts: i32) -> jiff::SignedDuration {
    let base_ms = (100_i64 << (attempts - 1).clamp(0, 12)).min(300_000);
    let ms = rand::rng().random_range(base_ms * 3 / 4..=base_ms * 5 / 4);
    jiff::SignedDuration::from_millis(ms)
}

fn failure(row: &Row, reason: String) -> Notice {
    Notice::Failed(SendFailure {
        kind: row.row.target_kind.clone(),
        key: row.row.target_key.clone(),
        command: serde_json::from_str(&row.row.body).unwrap_or_default(),
        reason,
    })
}

fn outcome(row: &Row, result: Result<Value, String>) -> Notice {
    let (tag, _) = run_body(&row.row.body);
    Notice::Run(RunOutcome { runner: row.row.target_key.clone(), tag, result })
}

fn run_body(body: &str) -> (String, Value) {
    let mut body: Value = serde_json::from_str(body).unwrap_or_default();
    (body["tag"].as_str().unwrap_or_default().to_owned(), body["input"].take())
}

fn deliver(
    rt: Arc<Runtime>,
    kind: &'static str,
    key: Arc<str>,
    receiver: (String, String),
    row: OutboxRow,
    report: Report,
) {
    let Some(entities) = rt.entities.get().and_then(WeakEntities::upgrade) else { return };
    tokio::spawn(async move {
        let outcome = if row.target_kind == "run" {
            Outcome::Ran(match rt.runners.get(row.target_key.as_str()) {
                Some(runner) => runner.run(&row.id, run_body(&row.body).1).await,
                None => Err(RunError::Final(format!("there is no runner {}", row.target_key))),
            })
        } else {
            let caller = Caller::Entity { kind: kind.into(), key: key.to_string() };
            let meta = Meta::new(caller).id(row.id.clone());
            Outcome::Sent(
                entities.ask_json(&row.target_kind, &row.target_key, &row.body, meta).await,
            )
        };
        report(Some(Delivered { id: row.id, receiver, outcome }));
    });
}
