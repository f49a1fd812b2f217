//! The loader reads the data that an activation starts from: the snapshot, the events after it, and the outbox rows it
//! still owes. Waiting loads are read together; a long journal is read in pages, each of which is dropped before the
//! next.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgPool};
use tokio::sync::{mpsc, oneshot, watch};

use crate::persistence::commit::{OutboxRow, SnapshotRow};
use crate::persistence::patience::{PATIENCE, rows, within};

/// The data of one entity in PostgreSQL.
#[derive(Debug, Default)]
pub struct Loaded {
    pub snapshot: Option<Snapshot>,
    pub events: Vec<StoredEvent>,
    /// The first page of the outbox rows that it owes, in order.
    pub outbox: Vec<PendingOutbox>,
    /// The position of the last row that it owes, even beyond the page. 0: it owes nothing.
    pub last_position: i64,
}

#[derive(Debug)]
pub struct Snapshot {
    pub seq: i64,
    pub topic_head: i64,
    pub data: Vec<u8>,
}

#[derive(Debug)]
pub struct StoredEvent {
    pub seq: i64,
    pub version: u16,
    pub topic_head: i64,
    pub event: String,
}

#[derive(Debug)]
pub struct PendingOutbox {
    pub row: OutboxRow,
    pub attempts: i32,
    pub due_us: i64,
    /// The time when the row was written, or put back by an operator.
    pub since_us: i64,
}

/// Most events of one entity that are read together with those of others: more than there are between two snapshots.
const FIRST_PAGE: i64 = 256;
/// Events in one page of a longer journal.
const EVENT_PAGE: i64 = 1_000;
/// Rows in one page of an entity's outbox.
pub const OWED_PAGE: usize = 1_000;
const MAX_BATCH: usize = 256;
/// Time limit of a batch, which reads as many rows as many statements.
const BATCH_PATIENCE: Duration = Duration::from_secs(6);
const MAX_WAITING: usize = 65_536;

struct Job {
    kind: &'static str,
    key: Arc<str>,
    done: oneshot::Sender<Result<Loaded, String>>,
}

#[derive(Clone)]
pub struct Loader {
    jobs: mpsc::Sender<Job>,
    pool: PgPool,
    /// Whether the store is unreachable. Loads then fail at once instead of waiting.
    away: watch::Receiver<bool>,
}

impl Loader {
    /// Starts the loader, which reads up to `readers` batches concurrently.
    pub fn start(pool: PgPool, readers: usize, away: watch::Receiver<bool>) -> Self {
        let (jobs, waiting) = mpsc::channel(MAX_WAITING);
        let waiting = Arc::new(tokio::sync::Mutex::new(waiting));
        for _ in 0..readers {
            let waiting = waiting.clone();
            let pool = pool.clone();
            tokio::spawn(async move {
                loop {
                    let mut batch: Vec<Job> = Vec::new();
                    if waiting.lock().await.recv_many(&mut batch, MAX_BATCH).await == 0 {
                        return;
                    }
                    metrics::histogram!("proxie_load_batch_entities").record(batch.len() as f64);
                    read_batch(&pool, batch).await;
                }
            });
        }
        Self { jobs, pool, away }
    }

    pub async fn load(&self, kind: &'static str, key: Arc<str>) -> Result<Loaded, String> {
        let (done, rx) = oneshot::channel();
        self.jobs
            .try_send(Job { kind, key, done })
            .map_err(|_| "too many entities are being loaded".to_owned())?;
        let mut away = self.away.clone();
        tokio::select! {
            loaded = rx => loaded.map_err(|_| "the loader has stopped".to_owned())?,
            Ok(_) = away.wait_for(|away| *away) => Err("the store is away".into()),
        }
    }

    /// The next page of a long journal. The last page is not full.
    pub async fn events_after(
        &self,
        kind: &str,
        key: &str,
        after: i64,
    ) -> Result<Vec<StoredEvent>, String> {
        let page = sqlx::query(
            "select seq, version, topic_head, event::text from journal
             where kind = $1 and key = $2 and seq > $3 order by seq limit $4",
        )
        .bind(kind)
        .bind(key)
        .bind(after)
        .bind(EVENT_PAGE);
        let rows = rows(&self.pool, "read a journal", page).await.map_err(|e| e.to_string())?;
        Ok(rows.iter().map(|row| stored(row, 0)).collect())
    }

    /// The next page of the outbox rows that an entity owes. The last page is not full.
    pub async fn owed_after(
        &self,
        kind: &str,
        key: &str,
        after: i64,
    ) -> Result<Vec<PendingOutbox>, String> {
        let page = sqlx::query(
            "select id, position, target_kind, target_key, body, principal, attempts, micros(due_at), micros(since) from outbox
             where sender_kind = $1 and sender_key = $2 and dead_at is null and position > $3
             order by position limit $4",
        )
        .bind(kind)
        .bind(key)
        .bind(after)
        .bind(OWED_PAGE as i64);
        let rows = rows(&self.pool, "read an outbox", page).await.map_err(|e| e.to_string())?;
        Ok(rows.iter().map(|row| owed(row, 0)).collect())
    }

    /// Stores the state that a long journal has been folded to, so that the next start need not begin anew. It follows
    /// from the journal alone, so it may be written outside the lanes; `dropped` is the snapshot that could not be
    /// read.
    pub async fn keep_snapshot(
        &self,
        kind: &str,
        key: &str,
        row: &SnapshotRow,
        dropped: Option<i64>,
    ) -> Result<(), String> {
        let keep = sqlx::query(
            "insert into snapshots (kind, key, seq, topic_head, data) values ($1, $2, $3, $4, $5)
             on conflict (kind, key) do update
             set seq = excluded.seq, topic_head = excluded.topic_head, data = excluded.data
             where snapshots.seq < excluded.seq or snapshots.seq = $6",
        )
        .bind(kind)
        .bind(key)
        .bind(row.seq)
        .bind(row.topic_head)
        .bind(&row.data)
        .bind(dropped);
        within(&self.pool, "keep a snapshot", PATIENCE, async |connection| {
            keep.execute(connection).await.map(drop)
        })
        .await
        .map_err(|e| e.to_string())
    }
}

/// Whether there may be more events than those of a full page.
pub fn is_full(page: &[StoredEvent]) -> bool {
    page.len() as i64 == EVENT_PAGE
}

fn stored(row: &sqlx::postgres::PgRow, at: usize) -> StoredEvent {
    StoredEvent {
        seq: row.get(at),
        version: row.get::<i16, _>(at + 1) as u16,
        topic_head: row.get(at + 2),
        event: row.get(at + 3),
    }
}

fn owed(row: &sqlx::postgres::PgRow, at: usize) -> PendingOutbox {
    PendingOutbox {
        row: OutboxRow {
            id: row.get(at),
            position: row.get(at + 1),
            target_kind: row.get(at + 2),
            target_key: row.get(at + 3),
            body: row.get(at + 4),
            principal: row.get::<Option<&str>, _>(at + 5).map(Into::into),
        },
        attempts: row.get(at + 6),
        due_us: row.get(at + 7),
        since_us: row.get(at + 8),
    }
}

async fn read_batch(pool: &PgPool, batch: Vec<Job>) {
    let read = within(pool, "read entities", BATCH_PATIENCE, async |connection| {
        try_read(connection, &batch).await
    });
    match read.await {
        Ok(mut loaded) => {
            for (n, job) in batch.into_iter().enumerate() {
                let _ = job.done.send(Ok(loaded.remove(&(n as i64 + 1)).unwrap_or_default()));
            }
        }
        Err(error) => {
            let error = error.to_string();
            for job in batch {
                let _ = job.done.send(Err(error.clone()));
            }
        }
    }
}

async fn try_read(
    connection: &mut PgConnection,
    batch: &[Job],
) -> Result<HashMap<i64, Loaded>, sqlx::Error> {
    let kinds: Vec<&str> = batch.iter().map(|job| job.kind).collect();
    let keys: Vec<&str> = batch.iter().map(|job| &*job.key).collect();
    let mut loaded: HashMap<i64, Loaded> = HashMap::with_capacity(batch.len());
    let mut after = vec![0_i64; batch.len()];
    for row in sqlx::query(
        "select u.n, s.seq, s.topic_head, s.data from unnest($1::text[], $2::text[]) with ordinality u(kind, key, n)
         join snapshots s on s.kind = u.kind and s.key = u.key",
    )
    .bind(&kinds)
    .bind(&keys)
    .fetch_all(&mut *connection)
    .await?
    {
        let n: i64 = row.get(0);
        let snapshot = Snapshot { seq: row.get(1), topic_head: row.get(2), data: row.get(3) };
        after[n as usize - 1] = snapshot.seq;
        loaded.entry(n).or_default().snapshot = Some(snapshot);
    }
    for row in sqlx::query(
        "select u.n, j.seq, j.version, j.topic_head, j.event::text
         from unnest($1::text[], $2::text[], $3::bigint[]) with ordinality u(kind, key, after, n),
         lateral (select * from journal j where j.kind = u.kind and j.key = u.key and j.seq > u.after
                  order by j.seq limit $4) j
         order by u.n, j.seq",
    )
    .bind(&kinds)
    .bind(&keys)
    .bind(&after)
    .bind(FIRST_PAGE)
    .fetch_all(&mut *connection)
    .await?
    {
        loaded.entry(row.get(0)).or_default().events.push(stored(&row, 1));
    }
    for row in sqlx::query(
        "select u.n, o.id, o.position, o.target_kind, o.target_key, o.body, o.principal, o.attempts, micros(o.due_at), micros(o.since)
         from unnest($1::text[], $2::text[]) with ordinality u(kind, key, n),
         -- Dead letters wait for an operator.
         lateral (select * from outbox o where o.sender_kind = u.kind and o.sender_key = u.key and o.dead_at is null
                  order by o.position limit $3) o
         order by u.n, o.position",
    )
    .bind(&kinds)
    .bind(&keys)
    .bind(OWED_PAGE as i64)
    .fetch_all(&mut *connection)
    .await?
    {
        let (entity, row) = (loaded.entry(row.get(0)).or_default(), owed(&row, 1));
        entity.last_position = row.row.position;
        entity.outbox.push(row);
    }
    for (n, entity) in loaded.iter_mut().filter(|(_, entity)| entity.outbox.len() == OWED_PAGE) {
        let job = &batch[*n as usize - 1];
        entity.last_position = sqlx::query_scalar(
            "select position from outbox where sender_kind = $1 and sender_key = $2 and dead_at is null
             order by position desc limit 1",
        )
        .bind(job.kind)
        .bind(&*job.key)
        .fetch_optional(&mut *connection)
        .await?
        .unwrap_or(entity.last_position)
        // Rows that were delivered meanwhile had already been read.
        .max(entity.last_position);
    }
    Ok(loaded)
}

impl Loaded {
    /// Whether the page was full, so there may be more events than these.
    pub fn may_have_more(&self) -> bool {
        self.events.len() as i64 == FIRST_PAGE
    }
}
