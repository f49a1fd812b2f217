//! The outbox as operators and the recovery scan see it. Entities deliver their own rows (`actors::entity`).

use serde::Serialize;
use sqlx::Row;
use sqlx::postgres::PgPool;

/// Entities of this incarnation's slots that owe a delivery which is due for a while: their activation is gone.
pub async fn owing(
    pool: &PgPool,
    incarnation: i64,
    limit: i64,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    let rows = sqlx::query(
        "select distinct o.sender_kind, o.sender_key from (
             select sender_kind, sender_key, slot from outbox
             where dead_at is null and due_at < now() - interval '1 second' order by due_at limit $2) o
         join slots s on s.slot = o.slot and s.incarnation = $1",
    )
    .bind(incarnation)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

#[derive(Debug, Serialize)]
pub struct DeadLetter {
    pub id: String,
    pub from: String,
    pub to: String,
    pub attempts: i32,
    pub last_error: Option<String>,
    pub dead_at: String,
    pub body: serde_json::Value,
}

pub async fn dead_letters(pool: &PgPool, limit: i64) -> Result<Vec<DeadLetter>, sqlx::Error> {
    let rows = sqlx::query(
        "select id, sender_kind || '/' || sender_key, target_kind || '/' || target_key, attempts, last_error,
                micros(dead_at), body from outbox where dead_at is not null order by dead_at, id limit $1",
    )
    .bind(limit)
    .fetch_all(pool)
    .await?;
    Ok(rows
        .iter()
        .map(|row| DeadLetter {
            id: row.get(0),
            from: row.get(1),
            to: row.get(2),
            attempts: row.get(3),
            last_error: row.get(4),
            dead_at: super::store::from_micros(row.get(5)).to_string(),
            body: serde_json::from_str(row.get(6)).unwrap_or_default(),
        })
        .collect())
}

/// Puts a dead letter back in the queue; the recovery scan wakes its sender. False: there is none of that id.
pub async fn retry_dead_letter(pool: &PgPool, id: &str) -> Result<bool, sqlx::Error> {
    let done = sqlx::query(
        "update outbox set dead_at = null, attempts = 0, due_at = now() - interval '2 seconds' where id = $1 and dead_at is not null",
    )
    .bind(id)
    .execute(pool)
    .await?;
    Ok(done.rows_affected() == 1)
}

#[derive(Debug, Serialize)]
pub struct Parked {
    pub kind: String,
    pub key: String,
    pub reason: String,
    pub failures: i32,
    pub at: String,
}

pub async fn park(
    pool: &PgPool,
    kind: &str,
    key: &str,
    reason: &str,
    failures: i32,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into parked (kind, key, reason, failures) values ($1, $2, $3, $4)
         on conflict (kind, key) do update set reason = excluded.reason, failures = excluded.failures, at = now()",
    )
    .bind(kind)
    .bind(key)
    .bind(reason)
    .bind(failures)
    .execute(pool)
    .await?;
    Ok(())
}

pub async fn parked(pool: &PgPool, limit: i64) -> Result<Vec<Parked>, sqlx::Error> {
    let rows = sqlx::query(
        "select kind, key, reason, failures, micros(at) from parked order by at limit $1",
    )
    .bind(limit)
    .fetch_all(pool)
    .await?;
    Ok(rows
        .iter()
        .map(|row| Parked {
            kind: row.get(0),
            key: row.get(1),
            reason: row.get(2),
            failures: row.get(3),
            at: super::store::from_micros(row.get(4)).to_string(),
        })
        .collect())
}

/// Lets a parked entity start again. False: it was not parked.
pub async fn unpark(pool: &PgPool, kind: &str, key: &str) -> Result<bool, sqlx::Error> {
    let done = sqlx::query("delete from parked where kind = $1 and key = $2")
        .bind(kind)
        .bind(key)
        .execute(pool)
        .await?;
    Ok(done.rows_affected() == 1)
}
