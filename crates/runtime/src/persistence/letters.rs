//! Dead letters: deliveries, runs and timers that were given up and wait for an operator.

use serde::Serialize;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgPool};

use crate::persistence::store::from_micros;

/// The reason why the recovery scan gives up a row, at the end of its `last_error`.
pub const ASLEEP: &str = "its sender could not be woken";

/// Most letters of one step.
pub const PAGE: i64 = 1_000;

#[derive(Debug, Serialize)]
pub struct DeadLetter {
    pub id: String,
    /// `kind/key`, or `timer/NAME`.
    pub from: String,
    /// `kind/key`, or `run/RUNNER`.
    pub to: String,
    pub attempts: i32,
    pub last_error: Option<String>,
    pub dead_at: String,
    pub body: serde_json::Value,
    #[serde(skip)]
    pub cursor: LetterCursor,
}

/// The position of a letter in the list, which is ordered oldest first.
#[derive(Clone, Debug, Default)]
pub struct LetterCursor {
    dead_us: i64,
    id: String,
}

/// A filter of letters: every given field must match.
#[derive(Clone, Debug, Default)]
pub struct LetterFilter {
    pub id: Option<String>,
    /// The receiver's kind; `run` for runs, whose key is the runner's name.
    pub kind: Option<String>,
    pub key: Option<String>,
    /// A text that the last error contains.
    pub reason: Option<String>,
}

/// The filter for rows of the outbox, with the arguments of [`bound`].
const OF_OUTBOX: &str = "dead_at is not null and ($1::text is null or id = $1)
    and ($2::text is null or target_kind = $2) and ($3::text is null or target_key = $3)
    and ($4::text is null or strpos(last_error, $4) > 0)";

/// The filter for timers.
const OF_TIMERS: &str = "dead_at is not null and tried_id = id and ($1::text is null or id = $1)
    and ($2::text is null or kind = $2) and ($3::text is null or key = $3)
    and ($4::text is null or strpos(last_error, $4) > 0)";

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;

fn bound(sql: String, which: &LetterFilter) -> Query<'static> {
    sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(which.id.clone())
        .bind(which.kind.clone())
        .bind(which.key.clone())
        .bind(which.reason.clone())
}

/// A page of the list.
pub async fn list(
    pool: &PgPool,
    which: &LetterFilter,
    after: &LetterCursor,
    limit: i64,
) -> Result<Vec<DeadLetter>, sqlx::Error> {
    // A page of each table, since each has its own index order.
    let sql = format!(
        "select id, from_, to_, attempts, last_error, micros(dead_at), body from (
             (select id, sender_kind || '/' || sender_key as from_, target_kind || '/' || target_key as to_, attempts,
                     last_error, dead_at, body
              from outbox where {OF_OUTBOX} and (dead_at, id) > (micros($5::bigint), $6)
              order by dead_at, id limit $7)
             union all
             (select id, 'timer/' || name, kind || '/' || key, attempts, last_error, dead_at, command
              from timers where {OF_TIMERS} and (dead_at, id) > (micros($5::bigint), $6)
              order by dead_at, id limit $7)) letters
         order by dead_at, id limit $7"
    );
    let page = bound(sql, which).bind(after.dead_us).bind(&after.id).bind(limit);
    let rows = page.fetch_all(pool).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let body: String = row.get(6);
            DeadLetter {
                id: row.get(0),
                from: row.get(1),
                to: row.get(2),
                attempts: row.get(3),
                last_error: row.get(4),
                dead_at: from_micros(row.get(5)).to_string(),
                // A body that is not JSON is shown as text.
                body: serde_json::from_str(&body).unwrap_or(serde_json::Value::String(body)),
                cursor: LetterCursor { dead_us: row.get(5), id: row.get(0) },
            }
        })
        .collect())
}

/// The assignments that reset a row of the outbox. The recovery scan then wakes its sender.
const FRESH_DELIVERY: &str =
    "dead_at = null, attempts = 0, begun = 0, found = 0, look_at = timestamptz 'epoch',
    since = now(), due_at = timestamptz 'epoch'";
const FRESH_TIMER: &str =
    "dead_at = null, attempts = 0, tried_id = null, due_at = timestamptz 'epoch'";

/// Puts letters back to be tried again, at most [`PAGE`] of each sort. Returns how many.
pub async fn retry(pool: &PgPool, which: &LetterFilter) -> Result<u64, sqlx::Error> {
    step(
        pool,
        which,
        &format!("update outbox set {FRESH_DELIVERY}"),
        &format!("update timers set {FRESH_TIMER}"),
    )
    .await
}

/// Deletes letters, at most [`PAGE`] of each sort. Returns how many.
pub async fn discard(pool: &PgPool, which: &LetterFilter) -> Result<u64, sqlx::Error> {
    step(pool, which, "delete from outbox", "delete from timers").await
}

async fn step(
    pool: &PgPool,
    which: &LetterFilter,
    outbox: &str,
    timers: &str,
) -> Result<u64, sqlx::Error> {
    let mut rows = 0;
    for (what, table, of) in [(outbox, "outbox", OF_OUTBOX), (timers, "timers", OF_TIMERS)] {
        let sql = format!(
            "{what} where ctid = any(array(select ctid from {table} where {of} limit {PAGE} for update skip locked))"
        );
        rows += bound(sql, which).execute(pool).await?.rows_affected();
    }
    Ok(rows)
}

/// Puts back everything that was given up because an entity was parked: letters to it, its timers, and its own
/// deliveries.
pub async fn revive(
    connection: &mut PgConnection,
    kind: &str,
    key: &str,
) -> Result<(), sqlx::Error> {
    let to = format!(
        "update outbox set {FRESH_DELIVERY}
         where dead_at is not null and target_kind = $1 and target_key = $2"
    );
    let from = format!(
        "update outbox set {FRESH_DELIVERY}
         where sender_kind = $1 and sender_key = $2 and dead_at is not null and last_error like '%{ASLEEP}'"
    );
    // Rows that are not given up yet are examined again at once.
    let owed = "update outbox set found = 0, look_at = timestamptz 'epoch'
         where sender_kind = $1 and sender_key = $2 and dead_at is null"
        .to_owned();
    let timers =
        format!("update timers set {FRESH_TIMER} where kind = $1 and key = $2 and tried_id = id");
    for sql in [to, from, owed, timers] {
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(kind)
            .bind(key)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}
