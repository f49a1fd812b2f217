//! Reads what an activation starts from: snapshot, the events after it, and the outbox rows it still owes.
//! Loads that wait are read together.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::Row;
use sqlx::postgres::PgPool;
use tokio::sync::{mpsc, oneshot, watch};

use crate::persistence::commit::OutboxRow;

/// What Postgres knows of one entity.
#[derive(Debug, Default)]
pub struct Loaded {
    pub snapshot: Option<Snapshot>,
    pub events: Vec<StoredEvent>,
    pub outbox: Vec<PendingOutbox>,
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
    pub dead: bool,
}

/// Events of one entity that are read at once; a longer journal is read in pages.
const EVENT_PAGE: i64 = 5_000;
const MAX_BATCH: usize = 256;
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
    /// The store cannot be reached: nobody waits for it.
    away: watch::Receiver<bool>,
}

impl Loader {
    /// `readers` batches are read at the same time.
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

    /// The whole journal, for an entity whose snapshot cannot be used, or the next page of a long one.
    pub async fn events_after(
        &self,
        kind: &str,
        key: &str,
        after: i64,
    ) -> Result<Vec<StoredEvent>, String> {
        let mut events = Vec::new();
        let mut from = after;
        loop {
            let page = sqlx::query(
                "select seq, version, topic_head, event::text from journal
                 where kind = $1 and key = $2 and seq > $3 order by seq limit $4",
            )
            .bind(kind)
            .bind(key)
            .bind(from)
            .bind(EVENT_PAGE)
            .fetch_all(&self.pool)
            .await
            .map_err(|e| e.to_string())?;
            let full = page.len() as i64 == EVENT_PAGE;
            events.extend(page.iter().map(|row| stored(row, 0)));
            match events.last() {
                Some(last) if full => from = last.seq,
                _ => return Ok(events),
            }
        }
    }
}

fn stored(row: &sqlx::postgres::PgRow, at: usize) -> StoredEvent {
    StoredEvent {
        seq: row.get(at),
        version: row.get::<i16, _>(at + 1) as u16,
        topic_head: row.get(at + 2),
        event: row.get(at + 3),
    }
}

async fn read_batch(pool: &PgPool, batch: Vec<Job>) {
    match try_read(pool, &batch).await {
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

async fn try_read(pool: &PgPool, batch: &[Job]) -> Result<HashMap<i64, Loaded>, sqlx::Error> {
    let kinds: Vec<&str> = batch.iter().map(|job| job.kind).collect();
    let keys: Vec<&str> = batch.iter().map(|job| &*job.key).collect();
    let mut loaded: HashMap<i64, Loaded> = HashMap::with_capacity(batch.len());
    let mut connection = pool.acquire().await?;
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
    .bind(EVENT_PAGE)
    .fetch_all(&mut *connection)
    .await?
    {
        loaded.entry(row.get(0)).or_default().events.push(stored(&row, 1));
    }
    for row in sqlx::query(
        "select u.n, o.id, o.position, o.target_kind, o.target_key, o.body, o.attempts, micros(o.due_at), o.dead_at is not null
         from unnest($1::text[], $2::text[]) with ordinality u(kind, key, n)
         join outbox o on o.sender_kind = u.kind and o.sender_key = u.key order by u.n, o.position",
    )
    .bind(&kinds)
    .bind(&keys)
    .fetch_all(&mut *connection)
    .await?
    {
        loaded.entry(row.get(0)).or_default().outbox.push(PendingOutbox {
            row: OutboxRow {
                id: row.get(1),
                position: row.get(2),
                target_kind: row.get(3),
                target_key: row.get(4),
                body: row.get(5),
            },
            attempts: row.get(6),
            due_us: row.get(7),
            dead: row.get(8),
        });
    }
    Ok(loaded)
}

impl Loaded {
    /// The page was full: there may be more events than these.
    pub fn may_have_more(&self) -> bool {
        self.events.len() as i64 == EVENT_PAGE
    }
}
