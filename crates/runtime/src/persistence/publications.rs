//! The history of durable topics.
//!
//! When a node dies, thousands of clients come back and ask for the publications that they missed. Their reads are
//! batched: requests that arrive while one batch is read form the next one, and equal requests share one answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgPool};
use tokio::sync::{mpsc, oneshot};

use crate::kernel::private::{self, Trouble};
use crate::persistence::patience::within;
use crate::persistence::vault::{PUBLICATION, Vault};
use crate::persistence::views::ViewError;

/// The number of publications in one page of a topic.
pub const PAGE: i64 = 128;
/// The bytes of data in one page, which has at least one publication.
const PAGE_BYTES: i64 = 128 * 1024;
/// The number of topics in one batch; with full pages a batch takes 16 MiB.
const BATCH: usize = 128;
/// The number of reads that may wait; more are refused.
const QUEUE: usize = 32_768;
/// The time limit of a batch; a store that is silent for longer counts as unreachable.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Stored {
    pub offset: i64,
    pub event: String,
    pub from: Option<String>,
    /// The data, as JSON.
    pub data: String,
}

#[derive(Debug)]
pub struct History {
    /// The newest offset; 0 if nothing was published.
    pub head: i64,
    /// At most [`PAGE`] publications, in order and without a gap from `after + 1` on.
    pub items: Vec<Stored>,
    /// False if a publication after `after` is no longer kept, or `after` is beyond the head.
    pub complete: bool,
}

/// The reader of histories; cheap to clone.
#[derive(Clone)]
pub struct Histories {
    wanted: mpsc::Sender<Wanted>,
}

/// A topic's kind and key, and where to begin.
type Place = (String, String, i64);

struct Wanted {
    place: Place,
    answer: oneshot::Sender<Result<Arc<History>, ViewError>>,
}

/// A position beyond every head, which asks for the head alone.
const HEAD_ONLY: i64 = i64::MAX;

impl Histories {
    /// Starts the reader, which runs until its last handle is dropped. `vault` opens sealed data for authorised
    /// listeners.
    pub fn start(pool: PgPool, vault: Vault) -> Self {
        let (wanted, queue) = mpsc::channel(QUEUE);
        tokio::spawn(read_all(pool, vault, queue));
        Self { wanted }
    }

    /// The first page of a topic's publications after `after`; `complete` applies to all of them.
    pub async fn after(
        &self,
        kind: &str,
        key: &str,
        after: i64,
    ) -> Result<Arc<History>, ViewError> {
        let (answer, answered) = oneshot::channel();
        let wanted = Wanted { place: (kind.into(), key.into(), after), answer };
        let refused = |why: &str| ViewError::Unavailable(why.into());
        self.wanted.try_send(wanted).map_err(|_| refused("too many histories are waited for"))?;
        answered.await.unwrap_or_else(|_| Err(refused("the reader of histories has ended")))
    }

    /// The newest offset of a topic. It comes from the owner's journal, so it is known even after the publications are
    /// deleted.
    pub async fn head(&self, kind: &str, key: &str) -> Result<i64, ViewError> {
        Ok(self.after(kind, key, HEAD_ONLY).await?.head)
    }
}

/// The event that replaces an erased one and keeps its offset.
pub const ERASED: &str = "topic:erased";

async fn open(
    vault: &Vault,
    (kind, key, _): &Place,
    history: &mut History,
) -> Result<(), ViewError> {
    let place = private::EncryptionContext::new(kind, key);
    for at in 0..history.items.len() {
        let item = &mut history.items[at];
        match vault.open_text(&item.data, &place, PUBLICATION).await {
            Ok(Some(data)) => item.data = data,
            Ok(None) => {
                (item.event, item.from, item.data) = (ERASED.into(), None, "{}".into());
            }
            Err(Trouble::Needs(_)) => {
                return Err(ViewError::Unavailable("a person's key cannot be read".into()));
            }
            Err(Trouble::Broken(error)) => {
                tracing::error!(error, offset = item.offset, "a publication cannot be opened");
                // An unreadable publication counts as one that is no longer kept.
                history.items.clear();
                history.complete = false;
                break;
            }
        }
    }
    Ok(())
}

async fn read_all(pool: PgPool, vault: Vault, mut queue: mpsc::Receiver<Wanted>) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let mut askers: HashMap<Place, Vec<_>> = HashMap::new();
        for Wanted { place, answer } in batch.drain(..) {
            askers.entry(place).or_default().push(answer);
        }
        let (places, askers): (Vec<Place>, Vec<_>) = askers.into_iter().unzip();
        metrics::histogram!("proxie_histories_read").record(places.len() as f64);
        let read = within(&pool, "read histories", TIMEOUT, async |connection| {
            read(connection, &places).await
        });
        match read.await.map_err(ViewError::from) {
            Ok(histories) => {
                let answered = places.iter().zip(askers).zip(histories);
                for ((place, answers), mut history) in answered {
                    let opened = open(&vault, place, &mut history).await;
                    let history = opened.map(|()| Arc::new(history));
                    for answer in answers {
                        let _ = answer.send(history.clone());
                    }
                }
            }
            Err(error) => {
                for answer in askers.into_iter().flatten() {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }
}

async fn read(
    connection: &mut PgConnection,
    places: &[Place],
) -> Result<Vec<History>, sqlx::Error> {
    let kinds: Vec<&str> = places.iter().map(|place| place.0.as_str()).collect();
    let keys: Vec<&str> = places.iter().map(|place| place.1.as_str()).collect();
    let heads: Vec<i64> = sqlx::query_scalar(
        "select coalesce((select j.topic_head from journal j where j.kind = w.kind and j.key = w.key
                          order by j.seq desc limit 1), 0)
           from unnest($1::text[], $2::text[]) with ordinality w(kind, key, n) order by w.n",
    )
    .bind(&kinds)
    .bind(&keys)
    .fetch_all(&mut *connection)
    .await?;
    let mut histories: Vec<History> = places
        .iter()
        .zip(&heads)
        .map(|((.., after), head)| History {
            head: *head,
            items: Vec::new(),
            complete: after <= head,
        })
        .collect();
    let behind: Vec<usize> = (0..places.len()).filter(|n| places[*n].2 < heads[*n]).collect();
    if behind.is_empty() {
        return Ok(histories);
    }
    let topic = |n: &usize| format!("{}:{}", places[*n].0, places[*n].1);
    let rows = sqlx::query(
        "select w.n, p.\"offset\", p.event, p.\"from\", p.data
           from unnest($1::text[], $2::bigint[], $3::bigint[]) with ordinality w(topic, after, head, n),
                lateral (select *, sum(octet_length(p.data)) over (order by p.\"offset\") as bytes
                           from (select * from publications p
                                  where p.topic = w.topic and p.\"offset\" > w.after and p.\"offset\" <= w.head
                                  order by p.\"offset\" limit $4) p) p
          where p.bytes - octet_length(p.data) < $5
          order by w.n, p.\"offset\"",
    )
    .bind(behind.iter().map(topic).collect::<Vec<_>>())
    .bind(behind.iter().map(|n| places[*n].2).collect::<Vec<_>>())
    .bind(behind.iter().map(|n| heads[*n]).collect::<Vec<_>>())
    .bind(PAGE)
    .bind(PAGE_BYTES)
    .fetch_all(connection)
    .await?;
    for row in rows {
        let n: i64 = row.get(0);
        let items = &mut histories[behind[n as usize - 1]].items;
        items.push(Stored {
            offset: row.get(1),
            event: row.get(2),
            from: row.get(3),
            data: row.get(4),
        });
    }
    for n in behind {
        let (history, after) = (&mut histories[n], places[n].2);
        let items = &history.items;
        let contiguous =
            items.iter().zip(after + 1..).all(|(item, expected)| item.offset == expected);
        let bytes: usize = items.iter().map(|item| item.data.len()).sum();
        let full = items.len() as i64 == PAGE || bytes as i64 >= PAGE_BYTES;
        let reaches = full || after + items.len() as i64 == history.head;
        history.complete = contiguous && reaches;
    }
    Ok(histories)
}
