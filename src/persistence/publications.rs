//! The history of durable topics.

use sqlx::Row;
use sqlx::postgres::PgPool;

#[derive(Clone, Debug)]
pub struct Stored {
    pub offset: i64,
    pub event: String,
    /// JSON.
    pub data: String,
}

pub struct History {
    /// The newest offset, 0 where nothing was published.
    pub head: i64,
    /// In order, without a hole, from `after + 1` on.
    pub items: Vec<Stored>,
    /// False when something after `after` is no longer kept, or `after` lies beyond the head.
    pub complete: bool,
}

/// What a topic published after `after`, at most `limit` of it; `complete` speaks of the whole.
pub async fn history(
    pool: &PgPool,
    kind: &str,
    key: &str,
    after: i64,
    limit: i64,
) -> Result<History, sqlx::Error> {
    let head = head(pool, kind, key).await?;
    let rows = sqlx::query(
        "select \"offset\", event, data from publications where topic = $1 and \"offset\" > $2 and \"offset\" <= $3
         order by \"offset\" limit $4",
    )
    .bind(format!("{kind}:{key}"))
    .bind(after)
    .bind(head)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    let items: Vec<Stored> = rows
        .iter()
        .map(|row| Stored { offset: row.get(0), event: row.get(1), data: row.get(2) })
        .collect();
    let contiguous = items.iter().zip(after + 1..).all(|(item, expected)| item.offset == expected);
    let reaches = items.len() as i64 == limit || after + items.len() as i64 == head;
    Ok(History { head, complete: after <= head && contiguous && reaches, items })
}

/// The newest offset of a topic: the journal of its owner knows, even when the publications are gone.
pub async fn head(pool: &PgPool, kind: &str, key: &str) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "select coalesce((select topic_head from journal where kind = $1 and key = $2 order by seq desc limit 1), 0)",
    )
    .bind(kind)
    .bind(key)
    .fetch_one(pool)
    .await
}
