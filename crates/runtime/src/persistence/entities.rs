//! Inspection of one entity, for operators.

use serde::Serialize;
use sqlx::Row;
use sqlx::postgres::PgPool;

use crate::persistence::store::from_micros;

#[derive(Debug, Serialize)]
pub struct EntityRow {
    pub kind: String,
    pub key: String,
    /// The sequence number of its last event.
    pub version: i64,
    pub slot: u16,
    pub owner_node: Option<String>,
    pub snapshot_version: Option<i64>,
    pub outbox: i64,
    pub timers: i64,
    pub parked: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct JournalEntry {
    pub seq: i64,
    pub version: i16,
    pub at: String,
    pub caller: String,
    pub command_id: Option<String>,
    pub event: serde_json::Value,
}

/// Reads an entity's details; `None`: it has no journal.
pub async fn show(
    pool: &PgPool,
    kind: &str,
    key: &str,
    slot: u16,
) -> Result<Option<EntityRow>, sqlx::Error> {
    let row = sqlx::query(
        "select coalesce((select max(seq) from journal where kind = $1 and key = $2), 0),
                (select n.name from slots s join nodes n using (incarnation) where s.slot = $3),
                (select seq from snapshots where kind = $1 and key = $2),
                (select count(*) from outbox where sender_kind = $1 and sender_key = $2),
                (select count(*) from timers where kind = $1 and key = $2),
                (select reason from parked where kind = $1 and key = $2)",
    )
    .bind(kind)
    .bind(key)
    .bind(i32::from(slot))
    .fetch_one(pool)
    .await?;
    let shown = EntityRow {
        kind: kind.into(),
        key: key.into(),
        version: row.get(0),
        slot,
        owner_node: row.get(1),
        snapshot_version: row.get(2),
        outbox: row.get(3),
        timers: row.get(4),
        parked: row.get(5),
    };
    Ok((shown.version > 0).then_some(shown))
}

/// Reads the entity's first `limit` events.
pub async fn journal(
    pool: &PgPool,
    kind: &str,
    key: &str,
    limit: i64,
) -> Result<Vec<JournalEntry>, sqlx::Error> {
    let rows = sqlx::query(
        "select seq, version, micros(at), caller, command_id, event::text from journal
         where kind = $1 and key = $2 order by seq limit $3",
    )
    .bind(kind)
    .bind(key)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    Ok(rows
        .iter()
        .map(|row| JournalEntry {
            seq: row.get(0),
            version: row.get(1),
            at: from_micros(row.get(2)).to_string(),
            caller: row.get(3),
            command_id: row.get(4),
            event: serde_json::from_str(row.get(5)).unwrap_or_default(),
        })
        .collect())
}
