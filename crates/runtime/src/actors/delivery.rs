//! Deliveries: an entity's outbox rows in memory, delivered in order per receiver, and to receivers in turn.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::Rng;
use serde_json::Value;
use tokio::task::AbortHandle;

use crate::actors::runs::{Asker, Ran};
use crate::actors::runtime::Runtime;
use crate::cluster::{CommandMeta, WeakEntities};
use crate::kernel::clock::doubled;
use crate::kernel::entity::{Caller, Principal, RunOutcome, SendFailure};
use crate::kernel::error::AskError;
use crate::kernel::private::{EncryptionContext, Trouble};
use crate::persistence::commit::{OutboxChange, OutboxRow};
use crate::persistence::loader::{OWED_PAGE, PendingOutbox};
use crate::persistence::store::from_micros;
use crate::persistence::vault::outbox_field;

/// The longest time for which a command that its receiver's node cannot read is retried: during an upgrade the receiver
/// may move to a node that can, and rows behind it wait as long.
const UNREADABLE: SignedDuration = SignedDuration::from_hours(1);

const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The first delay for such a command: it does not become readable soon, and each attempt is a commit.
const FIRST_UNREADABLE: Duration = Duration::from_secs(5);
/// After the first time that a run had no turn.
const FIRST_PUT_OFF: Duration = Duration::from_secs(1);

/// The most bytes that are stored of an error, for operators.
const MAX_ERROR_BYTES: usize = 2_000;

/// The most rows in memory: beyond them no more are read, even if none of these can be delivered now.
const MAX_KEPT: usize = 10 * OWED_PAGE;

/// The kind and key of a receiver. Runs have no order among themselves: each is its own receiver.
type Receiver = Arc<(String, String)>;

#[derive(Default)]
pub struct Outgoing {
    queues: HashMap<Receiver, Queue>,
    /// The number of rows in all queues.
    kept: usize,
    /// The position after which rows are in the store only.
    rest: Option<i64>,
    /// Receivers whose first row is not in flight, by the time from which they may be served, and by turn: the one that has
    /// waited longest is served first.
    waiting: BTreeMap<(Timestamp, u64), Receiver>,
    turn: u64,
    in_flight: usize,
    wake_at: Option<Timestamp>,
}

#[derive(Default)]
struct Queue {
    rows: VecDeque<Row>,
    on_its_way: Option<Way>,
}

struct Row {
    row: OutboxRow,
    attempts: i32,
    /// The time at which it was written, or put back by an operator.
    since: Timestamp,
    /// This activation has written it, and has not begun it yet.
    is_new: bool,
    due: Timestamp,
    /// How often it was put off since it was last tried.
    put_off: i32,
    /// The tag of a run, once its body was opened: that may be sealed.
    tag: Option<String>,
}

/// A row's delivery in flight. A run is cancelled with it, since nobody waits for its outcome any more.
struct Way {
    id: String,
    run: Option<AbortHandle>,
}

impl Drop for Way {
    fn drop(&mut self) {
        if let Some(run) = &self.run {
            run.abort();
        }
    }
}

pub struct Delivered {
    id: String,
    receiver: Receiver,
    outcome: Outcome,
}

enum Outcome {
    Sent(Result<Result<Value, String>, AskError>),
    /// With its tag.
    Ran(Ran, String),
    /// The person whom it concerns was erased, and its content with them.
    Erased,
}

/// The outcome of one row: what to write, and what to tell the entity.
pub struct End {
    pub change: Option<OutboxChange>,
    pub notice: Option<Notice>,
}

/// The entity's notice of a delivery's outcome.
pub enum Notice {
    Run(RunOutcome),
    Failed(SendFailure),
}

/// A callback for the end of a delivery. `None`: it is time to look for due rows again.
pub type OnDelivered = Arc<dyn Fn(Option<Delivered>) + Send + Sync>;

impl Outgoing {
    /// The deliveries left from the entity's last activation: their first page.
    pub fn resume(rows: Vec<PendingOutbox>, now: Timestamp) -> Option<Box<Self>> {
        let mut outgoing = Self::default();
        outgoing.go_on(rows, now);
        (!outgoing.is_empty()).then(|| Box::new(outgoing))
    }

    /// Adds the next page. If it is full there may be more.
    pub fn go_on(&mut self, rows: Vec<PendingOutbox>, now: Timestamp) {
        let last = rows.last().map(|last| last.row.position);
        self.rest = last.filter(|_| rows.len() == OWED_PAGE);
        for PendingOutbox { row, attempts, due_us, since_us } in rows {
            let (due, since) = (from_micros(due_us), from_micros(since_us));
            let row = Row { row, attempts, since, is_new: false, due, put_off: 0, tag: None };
            self.push(row, now);
        }
    }

    /// The position after which to read the next page, if it is time for that: much has been delivered, or none of the rows
    /// in memory can be delivered now.
    pub fn reads_on_after(&self, now: Timestamp) -> Option<i64> {
        let idles = || self.kept < MAX_KEPT && !self.is_due_within_s(0, now);
        self.rest.filter(|_| self.kept < OWED_PAGE / 2 || idles())
    }

    /// Adds rows that were just written. While older rows are in the store only, new ones are read from there after them.
    pub fn add(&mut self, rows: Vec<OutboxRow>, now: Timestamp) {
        if self.rest.is_none() {
            for row in rows {
                let (since, due) = (now, now);
                let row = Row { row, attempts: 0, since, is_new: true, due, put_off: 0, tag: None };
                self.push(row, now);
            }
        }
    }

    fn push(&mut self, row: Row, now: Timestamp) {
        let receiver = Arc::new(match row.row.target_kind.as_str() {
            "run" => ("run".to_owned(), row.row.id.clone()),
            kind => (kind.to_owned(), row.row.target_key.clone()),
        });
        let queue = self.queues.entry(receiver.clone()).or_default();
        queue.rows.push_back(row);
        self.kept += 1;
        if queue.rows.len() == 1 {
            self.enqueue(&receiver, now);
        }
    }

    /// Queues a receiver behind those that wait already.
    fn enqueue(&mut self, receiver: &Receiver, now: Timestamp) {
        let Some(queue) = self.queues.get(receiver) else { return };
        match queue.rows.front() {
            None => drop(self.queues.remove(receiver)),
            Some(_) if queue.on_its_way.is_some() => {}
            Some(row) => {
                self.turn += 1;
                self.waiting.insert((row.due.max(now), self.turn), receiver.clone());
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.queues.is_empty() && self.rest.is_none()
    }

    pub fn is_due_within_s(&self, seconds: i64, now: Timestamp) -> bool {
        let until = now + SignedDuration::from_secs(seconds);
        self.in_flight > 0
            || self.waiting.first_key_value().is_some_and(|((at, _), _)| *at <= until)
    }

    /// Keeps rows in flight after all rows were read again.
    pub fn keep_in_flight(&mut self, mut before: Self) {
        for (receiver, queue) in &mut self.queues {
            let way = before.queues.get_mut(receiver).and_then(|queue| queue.on_its_way.take());
            if let Some(way) = way.filter(|way| queue.rows.iter().any(|row| row.row.id == way.id)) {
                queue.on_its_way = Some(way);
                self.in_flight += 1;
            }
        }
        let queues = &self.queues;
        self.waiting.retain(|_, receiver| queues[receiver].on_its_way.is_none());
    }

    /// Sends what is due: the first row of each receiver, a bounded number at a time.
    pub fn pump(
        &mut self,
        rt: &Arc<Runtime>,
        kind: &'static str,
        key: &Arc<str>,
        report: OnDelivered,
    ) {
        let now = rt.clock.now();
        while let Some(first) = self.waiting.first_entry() {
            if self.in_flight >= rt.options.max_deliveries {
                // The end of any delivery pumps again.
                return;
            }
            let at = first.key().0;
            if at > now {
                self.wake(at, now, report);
                return;
            }
            let receiver = first.remove();
            let Some(queue) = self.queues.get_mut(&receiver) else { continue };
            match queue.rows.front() {
                // Another row came to the front while it waited.
                Some(row) if row.due > now => self.enqueue(&receiver, now),
                Some(row) => {
                    queue.on_its_way = deliver(rt, kind, key, &receiver, row, &report);
                    self.in_flight += usize::from(queue.on_its_way.is_some());
                }
                None => {}
            }
        }
    }

    fn wake(&mut self, at: Timestamp, now: Timestamp, report: OnDelivered) {
        if self.wake_at.is_some_and(|wake| wake > now && wake <= at) {
            return;
        }
        self.wake_at = Some(at);
        let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
        // The recovery scan finds a later row, after the entity has become passive.
        if wait < Duration::from_secs(60) {
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                report(None);
            });
        }
    }

    /// Takes the outcome of a delivery. `None`: the row is no longer known here.
    pub fn settle(
        &mut self,
        delivered: Delivered,
        give_up_after: Duration,
        now: Timestamp,
    ) -> Option<End> {
        let receiver = delivered.receiver;
        let queue = self.queues.get_mut(&receiver)?;
        let was_on_its_way = queue.on_its_way.take_if(|way| way.id == delivered.id).is_some();
        self.in_flight -= usize::from(was_on_its_way);
        let before = queue.rows.len();
        let end = queue
            .rows
            .iter()
            .position(|row| row.row.id == delivered.id)
            .map(|at| queue.settle(at, delivered.outcome, give_up_after, now));
        self.kept -= before - queue.rows.len();
        if was_on_its_way || queue.rows.is_empty() {
            self.enqueue(&receiver, now);
        }
        end
    }
}

impl Queue {
    fn settle(
        &mut self,
        at: usize,
        outcome: Outcome,
        give_up_after: Duration,
        now: Timestamp,
    ) -> End {
        let row = &mut self.rows[at];
        let id = row.row.id.clone();
        let done = Some(OutboxChange::Done { id: id.clone() });
        let given_up = signed(give_up_after);
        if let Outcome::Ran(_, tag) = &outcome {
            row.tag = Some(tag.clone());
        }
        row.is_new &= matches!(outcome, Outcome::Ran(Ran::PutOff { .. }, _));
        let (change, notice) = match outcome {
            // The receiver has the command; its answer did not fit between the nodes.
            Outcome::Sent(Ok(Ok(_)) | Err(AskError::TooLarge)) | Outcome::Erased => (done, None),
            Outcome::Sent(Ok(Err(reason))) => (done, Some(failure(row, reason))),
            Outcome::Ran(Ran::Ended(result), _) => (done, Some(ran(row, result))),
            Outcome::Ran(Ran::PutOff { give_up_after }, _) => {
                row.put_off(given_up.min(signed(give_up_after)), now)
            }
            Outcome::Ran(Ran::Gone, _) => (None, None),
            Outcome::Ran(Ran::GivenUp, _) => {
                let error = "it was begun too often, and what came of it was never taken";
                give_up(row, error);
                (None, Some(ran(row, Err(error.into()))))
            }
            Outcome::Ran(Ran::Again { error, tries, give_up_after }, _) => {
                let age = given_up.min(signed(give_up_after));
                let age =
                    if row.attempts.saturating_add(1) >= i32::try_from(tries).unwrap_or(i32::MAX) {
                        SignedDuration::ZERO
                    } else {
                        age
                    };
                row.fail(error, age, FIRST_RETRY, now)
            }
            Outcome::Sent(Err(error @ AskError::BadCommand(_))) => {
                row.fail(error.to_string(), given_up.min(UNREADABLE), FIRST_UNREADABLE, now)
            }
            Outcome::Sent(Err(error)) => row.fail(error.to_string(), given_up, FIRST_RETRY, now),
        };
        if !matches!(change, Some(OutboxChange::Retry { .. })) {
            self.rows.remove(at);
        }
        End { change, notice }
    }
}

impl Row {
    /// Schedules the next attempt, or makes the row a dead letter once it is older than `limit`.
    fn fail(
        &mut self,
        mut error: String,
        limit: SignedDuration,
        first_retry: Duration,
        now: Timestamp,
    ) -> (Option<OutboxChange>, Option<Notice>) {
        error.truncate(error.floor_char_boundary(MAX_ERROR_BYTES));
        self.attempts += 1;
        let (id, attempts) = (self.row.id.clone(), self.attempts);
        if now.duration_since(self.since) >= limit {
            give_up(self, &error);
            let notice = match self.row.target_kind.as_str() {
                "run" => ran(self, Err(error.clone())),
                _ => failure(self, "dead_letter".into()),
            };
            return (Some(OutboxChange::Dead { id, attempts, error }), Some(notice));
        }
        metrics::counter!("proxie_delivery_retries_total", "of" => self.sort()).increment(1);
        self.due = now + retry_delay(attempts, first_retry);
        self.put_off = 0;
        (Some(OutboxChange::Retry { id, attempts, due: self.due, error }), None)
    }

    /// Later, as it has not been tried; or the end of it, once it is older than `limit`.
    fn put_off(
        &mut self,
        limit: SignedDuration,
        now: Timestamp,
    ) -> (Option<OutboxChange>, Option<Notice>) {
        let error = "it waits for its turn, as its runner has much to do".to_owned();
        if now.duration_since(self.since) >= limit {
            return self.fail(error, limit, FIRST_PUT_OFF, now);
        }
        self.put_off += 1;
        self.due = now + retry_delay(self.put_off, FIRST_PUT_OFF);
        let (id, attempts) = (self.row.id.clone(), self.attempts);
        metrics::counter!("proxie_runs_put_off_total").increment(1);
        (Some(OutboxChange::Retry { id, attempts, due: self.due, error }), None)
    }

    fn sort(&self) -> &'static str {
        if self.row.target_kind == "run" { "run" } else { "send" }
    }
}

fn give_up(row: &Row, error: &str) {
    let OutboxRow { id, target_kind, target_key, .. } = &row.row;
    let to = format!("{target_kind}/{target_key}");
    tracing::error!(
        id,
        to,
        attempts = row.attempts,
        error,
        "a delivery is given up: `proxie dead-letter list`"
    );
    metrics::counter!("proxie_dead_letters_total", "of" => row.sort()).increment(1);
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// The delay before the next attempt: `first` doubled each time, at most 5 minutes, with a jitter of a quarter.
fn retry_delay(attempts: i32, first: Duration) -> SignedDuration {
    let times = u32::try_from(attempts - 1).unwrap_or(0);
    let base = doubled(first, times, Duration::from_secs(300));
    let delay = base.mul_f64(rand::rng().random_range(0.75..=1.25));
    SignedDuration::try_from(delay).expect("at most 375 s")
}

fn failure(row: &Row, reason: String) -> Notice {
    Notice::Failed(SendFailure {
        kind: row.row.target_kind.clone(),
        key: row.row.target_key.clone(),
        command: serde_json::from_str(&row.row.body).unwrap_or_default(),
        reason,
    })
}

fn ran(row: &Row, result: Result<Value, String>) -> Notice {
    let tag = row.tag.clone().unwrap_or_else(|| run_body(&row.row.body).0);
    Notice::Run(RunOutcome { runner: row.row.target_key.clone(), tag, result })
}

fn run_body(body: &str) -> (String, Value) {
    let mut body: Value = serde_json::from_str(body).unwrap_or_default();
    let tag = body["tag"].as_str().unwrap_or_default().to_owned();
    // One that is still sealed is a text.
    (tag, body.get_mut("input").map(Value::take).unwrap_or_default())
}

fn principal(row: &OutboxRow) -> Result<Option<Principal>, serde_json::Error> {
    row.principal.as_deref().map(serde_json::from_str).transpose()
}

fn deliver(
    rt: &Arc<Runtime>,
    kind: &'static str,
    key: &Arc<str>,
    receiver: &Receiver,
    row: &Row,
    report: &OnDelivered,
) -> Option<Way> {
    let entities = rt.entities.get().and_then(WeakEntities::upgrade)?;
    let (rt, key, receiver, report) = (rt.clone(), key.clone(), receiver.clone(), report.clone());
    let (is_new, row) = (row.is_new, row.row.clone());
    let (id, is_run) = (row.id.clone(), row.target_kind == "run");
    let task = tokio::spawn(async move {
        let OutboxRow { id, target_kind, target_key, body, .. } = &row;
        let place = EncryptionContext { kind: kind.into(), key: key.clone() };
        let body = rt.vault.open_text(body, &place, &outbox_field(target_kind, target_key)).await;
        let outcome = match (body, principal(&row)) {
            // The principal is of a newer release. Without it the receiver would take the sender for somebody else.
            (_, Err(error)) => {
                Outcome::Sent(Err(AskError::BadCommand(format!("for whom it is: {error}"))))
            }
            (Ok(Some(body)), Ok(principal)) if is_run => {
                let (tag, input) = run_body(&body);
                let asker = Asker { kind, key, principal, topics: rt.topics.clone() };
                let now = || rt.clock.now();
                let row = (id.as_str(), is_new);
                Outcome::Ran(rt.runners.run(target_key, row, asker, input, now).await, tag)
            }
            (Ok(Some(body)), Ok(for_user)) => {
                let (kind, key) = (kind.to_owned(), key.to_string());
                let meta = CommandMeta::new(Caller::Entity { kind, key, for_user }).id(id.clone());
                let sent = entities.ask_json(target_kind, target_key, &body, meta);
                Outcome::Sent(sent.await)
            }
            // There is nothing left of it to deliver.
            (Ok(None), _) => Outcome::Erased,
            (Err(Trouble::Needs(_)), _) => {
                Outcome::Sent(Err(AskError::unavailable("its key cannot be read")))
            }
            (Err(Trouble::Broken(why)), _) => Outcome::Sent(Err(AskError::BadCommand(why))),
        };
        report(Some(Delivered { id: row.id, receiver, outcome }));
    });
    Some(Way { id, run: is_run.then(|| task.abort_handle()) })
}
