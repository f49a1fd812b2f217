//! The unit of a commit ([`CommitItem`]: the rows that one entity writes together), and the call that writes a batch of
//! them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use crate::kernel::view::ViewRow;
use crate::persistence::store::micros;

/// All rows that follow from one command of one entity. They are written as a whole or not at all.
pub struct CommitItem {
    pub slot: u16,
    pub epoch: i64,
    pub kind: &'static str,
    pub key: Arc<str>,
    /// The last sequence number before this item.
    pub head: i64,
    pub events: Vec<JournalRow>,
    pub caller: String,
    pub command_id: Option<String>,
    pub dedupe: Option<DedupeRow>,
    pub snapshot: Option<SnapshotRow>,
    pub outbox: Vec<OutboxRow>,
    pub outbox_changes: Vec<OutboxChange>,
    pub timers: Vec<TimerChange>,
    pub publications: Vec<PublicationRow>,
    pub views: Vec<ViewRow>,
    /// The failure flag, shared by all items of one activation. Once an item fails, the later ones were decided on a
    /// state that does not hold, so the writer refuses them.
    pub failed: Arc<AtomicBool>,
    pub done: Box<dyn FnOnce(CommitResult) + Send + Sync>,
}

/// The items of a batch. Each is boxed, because it is some hundred bytes long and passes through several queues.
#[allow(clippy::vec_box)]
pub type Items = Vec<Box<CommitItem>>;

pub struct JournalRow {
    pub version: u16,
    pub topic_head: i64,
    pub event: String,
}

pub struct DedupeRow {
    pub user_id: String,
    pub id: String,
    pub fingerprint: i64,
    pub outcome: Arc<str>,
}

pub struct SnapshotRow {
    pub seq: i64,
    pub topic_head: i64,
    pub data: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct OutboxRow {
    pub id: String,
    pub position: i64,
    pub target_kind: String,
    pub target_key: String,
    pub body: String,
    /// The principal that the entity acts for, as JSON. `None`: it acts in its own right.
    pub principal: Option<Arc<str>>,
}

#[derive(Debug)]
pub enum OutboxChange {
    /// The receiver has the message, so the row is deleted.
    Done {
        id: String,
    },
    /// This item takes the outcome of a run: the row must still exist.
    Take {
        id: String,
    },
    Retry {
        id: String,
        attempts: i32,
        due: Timestamp,
        error: String,
    },
    Dead {
        id: String,
        attempts: i32,
        error: String,
    },
}

#[derive(Debug)]
pub enum TimerChange {
    Set {
        name: String,
        id: String,
        due: Timestamp,
        command: String,
    },
    Cancel {
        name: String,
    },
    /// This item handles the timer: its row must still exist.
    Fire {
        name: String,
        id: String,
    },
}

pub struct PublicationRow {
    pub offset: i64,
    pub event: String,
    pub from: Option<String>,
    pub data: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitResult {
    Committed,
    /// The command id was used before; nothing of this item was written.
    Duplicate {
        fingerprint: i64,
        outcome: String,
    },
    /// The timer or outbox row that this item was to handle no longer exists.
    Gone,
    /// The journal has advanced beyond this activation's state: another activation has written.
    Stale,
    /// The slot belongs to another node.
    Moved,
    /// The item cannot be written (a NUL, a constraint); its neighbours were.
    Invalid {
        constraint: Option<String>,
        message: String,
    },
    /// The item was not written, because an earlier item of the same activation was not.
    Refused,
    /// The store cannot be reached: the item was not written, or it is unknown whether it was. The command's id makes a
    /// retry safe.
    Unavailable,
}

impl CommitItem {
    /// A rough size, for bounding a batch in bytes.
    pub fn bytes(&self) -> usize {
        256 + self.events.iter().map(|e| e.event.len()).sum::<usize>()
            + self.snapshot.as_ref().map_or(0, |s| s.data.len())
            + self.outbox.iter().map(|o| o.body.len() + 96).sum::<usize>()
            + self.publications.iter().map(|p| p.data.len() + 64).sum::<usize>()
            + self.views.len() * 256
    }

    pub fn finish(self, result: CommitResult) {
        if result != CommitResult::Committed {
            self.failed.store(true, Ordering::SeqCst);
        }
        (self.done)(result);
    }
}

/// The limits of the publications kept for a topic; the smaller one applies.
#[derive(Clone, Copy, Debug)]
pub struct PublicationRetention {
    pub publications: i32,
    /// Bytes of their data.
    pub bytes: i64,
}

/// The batch's lane and number.
pub struct Batch {
    pub incarnation: i64,
    pub lane: i32,
    pub number: i64,
    pub at: Timestamp,
    /// Whether command ids are looked up first. Without the look-up an id that was used before fails the call, which is
    /// cheaper as long as it is rare.
    pub careful: bool,
    pub keep: PublicationRetention,
}

/// One call of `commit_batch`. `Ok` holds a result for every item.
pub async fn call(
    connection: &mut PgConnection,
    batch: &Batch,
    items: &[Box<CommitItem>],
) -> Result<Vec<CommitResult>, sqlx::Error> {
    let at = batch.at;
    let mut entities: HashMap<usize, i32> = HashMap::with_capacity(items.len());
    let mut e = EntityColumns::default();
    let mut i_entity = Vec::with_capacity(items.len());
    let mut j = JournalColumns::default();
    let mut dedupe = Vec::new();
    let mut d = DedupeColumns::default();
    let mut s = SnapshotColumns::default();
    let mut o = OutboxColumns::default();
    let mut c = ChangeColumns::default();
    let mut t = TimerColumns::default();
    let mut p = PublicationColumns::default();
    let mut v = ViewColumns::default();
    for (n, item) in items.iter().enumerate() {
        let n = n as i32 + 1;
        // The items of one activation share `failed`.
        i_entity.push(*entities.entry(Arc::as_ptr(&item.failed) as usize).or_insert_with(|| {
            e.slot.push(i32::from(item.slot));
            e.epoch.push(item.epoch);
            e.kind.push(item.kind);
            e.key.push(&item.key);
            e.head.push(item.head);
            e.slot.len() as i32
        }));
        for (k, row) in item.events.iter().enumerate() {
            j.item.push(n);
            j.seq.push(item.head + 1 + k as i64);
            j.version.push(row.version as i16);
            j.topic_head.push(row.topic_head);
            j.event.push(&row.event);
            j.caller.push(&item.caller);
            j.command.push(item.command_id.as_deref());
        }
        if let Some(row) = &item.dedupe {
            dedupe.push((&row.user_id, &row.id, n, row));
        }
        if let Some(row) = &item.snapshot {
            s.item.push(n);
            s.seq.push(row.seq);
            s.topic_head.push(row.topic_head);
            s.data.push(&row.data);
        }
        for row in &item.outbox {
            o.item.push(n);
            o.id.push(&row.id);
            o.position.push(row.position);
            o.target_kind.push(&row.target_kind);
            o.target_key.push(&row.target_key);
            o.body.push(&row.body);
            o.principal.push(row.principal.as_deref());
        }
        for change in &item.outbox_changes {
            let (op, id, attempts, due, error): (_, _, _, _, Option<&str>) = match change {
                OutboxChange::Done { id } => ("done", id, 0, at, None),
                OutboxChange::Take { id } => ("take", id, 0, at, None),
                OutboxChange::Retry { id, attempts, due, error } => {
                    ("retry", id, *attempts, *due, Some(error))
                }
                OutboxChange::Dead { id, attempts, error } => {
                    ("dead", id, *attempts, at, Some(error))
                }
            };
            c.item.push(n);
            c.op.push(op);
            c.id.push(id);
            c.attempts.push(attempts);
            c.due.push(micros(due));
            c.error.push(error);
        }
        for change in &item.timers {
            let (op, name, id, due, command) = match change {
                TimerChange::Set { name, id, due, command } => {
                    ("set", name, id.as_str(), *due, command.as_str())
                }
                TimerChange::Cancel { name } => ("cancel", name, "", at, ""),
                TimerChange::Fire { name, id } => ("fire", name, id.as_str(), at, ""),
            };
            t.item.push(n);
            t.op.push(op);
            t.name.push(name);
            t.id.push(id);
            t.due.push(micros(due));
            t.command.push(command);
        }
        for row in &item.publications {
            p.item.push(n);
            p.offset.push(row.offset);
            p.event.push(&row.event);
            p.from.push(row.from.as_deref());
            p.data.push(&row.data);
        }
        for row in &item.views {
            v.item.push(n);
            v.view.push(row.view);
            v.row.push(row.row.to_string());
        }
    }
    // The rows are in the order of their keys, as the call requires.
    dedupe.sort_unstable_by_key(|(user, id, n, _)| (*user, *id, *n));
    for (user, id, n, row) in dedupe {
        d.item.push(n);
        d.user.push(user);
        d.id.push(id);
        d.fingerprint.push(row.fingerprint);
        d.outcome.push(&row.outcome);
    }
    let rows = sqlx::query(CALL)
        .bind(batch.incarnation)
        .bind(batch.lane)
        .bind(batch.number)
        .bind(micros(at))
        .bind(batch.careful)
        .bind(e.slot)
        .bind(e.epoch)
        .bind(e.kind)
        .bind(e.key)
        .bind(e.head)
        .bind(i_entity)
        .bind(j.item)
        .bind(j.seq)
        .bind(j.version)
        .bind(j.topic_head)
        .bind(j.event)
        .bind(j.caller)
        .bind(j.command)
        .bind(d.item)
        .bind(d.user)
        .bind(d.id)
        .bind(d.fingerprint)
        .bind(d.outcome)
        .bind(s.item)
        .bind(s.seq)
        .bind(s.topic_head)
        .bind(s.data)
        .bind(o.item)
        .bind(o.id)
        .bind(o.position)
        .bind(o.target_kind)
        .bind(o.target_key)
        .bind(o.body)
        .bind(o.principal)
        .bind(c.item)
        .bind(c.op)
        .bind(c.id)
        .bind(c.attempts)
        .bind(c.due)
        .bind(c.error)
        .bind(t.item)
        .bind(t.op)
        .bind(t.name)
        .bind(t.id)
        .bind(t.due)
        .bind(t.command)
        .bind(p.item)
        .bind(p.offset)
        .bind(p.event)
        .bind(p.from)
        .bind(p.data)
        .bind(v.item)
        .bind(v.view)
        .bind(v.row)
        .bind(batch.keep.publications)
        .bind(batch.keep.bytes)
        .fetch_all(connection)
        .await?;
    let mut results = vec![CommitResult::Committed; items.len()];
    for row in rows {
        set_result(&mut results, row.get(0), row.get(1), row.get(2), row.get(3));
    }
    Ok(results)
}

/// Times travel as microseconds and become `timestamptz` in the call: sqlx needs no date library for that.
const CALL: &str = "select item, status, fingerprint, outcome from commit_batch(
    $1, $2, $3, micros($4), $5,
    $6, $7, $8, $9, $10,
    $11,
    $12, $13, $14, $15, $16, $17, $18,
    $19, $20, $21, $22, $23,
    $24, $25, $26, $27,
    $28, $29, $30, $31, $32, $33, $34,
    $35, $36, $37, $38, micros($39), $40,
    $41, $42, $43, $44, micros($45), $46,
    $47, $48, $49, $50, $51,
    $52, $53, $54,
    $55, $56)";

fn set_result(
    results: &mut [CommitResult],
    item: i32,
    status: &str,
    fingerprint: Option<i64>,
    outcome: Option<String>,
) {
    let place = usize::try_from(item).ok().and_then(|n| n.checked_sub(1));
    let Some(result) = place.and_then(|n| results.get_mut(n)) else { return };
    *result = match status {
        "dup" => CommitResult::Duplicate {
            fingerprint: fingerprint.unwrap_or_default(),
            outcome: outcome.unwrap_or_default(),
        },
        "gone" => CommitResult::Gone,
        "stale" => CommitResult::Stale,
        "moved" => CommitResult::Moved,
        _ => CommitResult::Refused,
    };
}

/// The outcome of a batch whose answer was lost.
#[derive(Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The batch did not commit and never will: its number is used up.
    Burned,
    Committed(Vec<CommitResult>),
    /// The lane no longer belongs to a live incarnation.
    Fenced,
}

/// A lane's record of a number that was used up without a batch. The answer to that call may be lost as well, and a
/// repeated question must not take the number for that of a batch that was written.
const BURNED: &str = r#""burned""#;

/// Runs the fence of batch `batch` again. Either it takes the number, so that the lost call finds it taken, or it waits
/// for the row lock that the lost call still holds, and then reads that call's outcome.
pub async fn resolve(
    connection: &mut PgConnection,
    incarnation: i64,
    lane: i32,
    batch: i64,
    items: usize,
) -> Result<Resolution, sqlx::Error> {
    let burned = sqlx::query(
        "update lanes set batch = $3, result = $4::jsonb where incarnation = $1 and lane = $2 and batch = $3 - 1 and live",
    )
    .bind(incarnation)
    .bind(lane)
    .bind(batch)
    .bind(BURNED)
    .execute(&mut *connection)
    .await?
    .rows_affected();
    if burned == 1 {
        return Ok(Resolution::Burned);
    }
    let row = sqlx::query(
        "select batch, live, result::text from lanes where incarnation = $1 and lane = $2",
    )
    .bind(incarnation)
    .bind(lane)
    .fetch_optional(connection)
    .await?;
    match row {
        Some(row) if row.get::<bool, _>(1) && row.get::<i64, _>(0) == batch => {
            let mut results = vec![CommitResult::Committed; items];
            if let Some(text) = row.get::<Option<String>, _>(2) {
                if text == BURNED {
                    return Ok(Resolution::Burned);
                }
                let rows: Vec<(i32, String, Option<i64>, Option<String>)> =
                    serde_json::from_str(&text).map_err(|e| sqlx::Error::Decode(Box::new(e)))?;
                for (item, status, fingerprint, outcome) in rows {
                    set_result(&mut results, item, &status, fingerprint, outcome);
                }
            }
            Ok(Resolution::Committed(results))
        }
        _ => Ok(Resolution::Fenced),
    }
}

#[derive(Default)]
struct EntityColumns<'a> {
    slot: Vec<i32>,
    epoch: Vec<i64>,
    kind: Vec<&'a str>,
    key: Vec<&'a str>,
    head: Vec<i64>,
}

#[derive(Default)]
struct JournalColumns<'a> {
    item: Vec<i32>,
    seq: Vec<i64>,
    version: Vec<i16>,
    topic_head: Vec<i64>,
    event: Vec<&'a str>,
    caller: Vec<&'a str>,
    command: Vec<Option<&'a str>>,
}

#[derive(Default)]
struct DedupeColumns<'a> {
    item: Vec<i32>,
    user: Vec<&'a str>,
    id: Vec<&'a str>,
    fingerprint: Vec<i64>,
    outcome: Vec<&'a str>,
}

#[derive(Default)]
struct SnapshotColumns<'a> {
    item: Vec<i32>,
    seq: Vec<i64>,
    topic_head: Vec<i64>,
    data: Vec<&'a [u8]>,
}

#[derive(Default)]
struct OutboxColumns<'a> {
    item: Vec<i32>,
    id: Vec<&'a str>,
    position: Vec<i64>,
    target_kind: Vec<&'a str>,
    target_key: Vec<&'a str>,
    body: Vec<&'a str>,
    principal: Vec<Option<&'a str>>,
}

#[derive(Default)]
struct ChangeColumns<'a> {
    item: Vec<i32>,
    op: Vec<&'a str>,
    id: Vec<&'a str>,
    attempts: Vec<i32>,
    due: Vec<i64>,
    error: Vec<Option<&'a str>>,
}

#[derive(Default)]
struct TimerColumns<'a> {
    item: Vec<i32>,
    op: Vec<&'a str>,
    name: Vec<&'a str>,
    id: Vec<&'a str>,
    due: Vec<i64>,
    command: Vec<&'a str>,
}

#[derive(Default)]
struct PublicationColumns<'a> {
    item: Vec<i32>,
    offset: Vec<i64>,
    event: Vec<&'a str>,
    from: Vec<Option<&'a str>>,
    data: Vec<&'a str>,
}

#[derive(Default)]
struct ViewColumns {
    item: Vec<i32>,
    view: Vec<&'static str>,
    row: Vec<String>,
}
