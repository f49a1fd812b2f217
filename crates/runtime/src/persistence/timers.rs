//! Due timers of the slots that this incarnation owns.

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgPool;

use crate::persistence::patience::{PATIENCE, rows, within};
use crate::persistence::store::micros;

#[derive(Debug)]
pub struct DueTimer {
    pub kind: String,
    pub key: String,
    pub name: String,
    pub id: String,
    pub command: String,
    /// The number of claims of this scheduling, including this one.
    pub attempts: i32,
    /// The error of the previous attempt.
    pub last_error: Option<String>,
    /// Whether the timer was tried for too long and is given up, so it must not be fired.
    pub dead: bool,
}

/// Claims due timers, the earliest first. A timer is found again after a time that grows with its claims, unless the
/// commit that handles it has deleted it. Timers that have been tried for `give_up_s` are given up.
pub async fn claim(
    pool: &PgPool,
    incarnation: i64,
    now: Timestamp,
    give_up_s: i64,
    limit: i64,
) -> Result<Vec<DueTimer>, sqlx::Error> {
    let claim = sqlx::query(
        "with due as materialized (
             select t.kind, t.key, t.name, t.tried_id is not distinct from t.id as again,
                    t.tried_id is not distinct from t.id and t.attempts >= 4
                        and t.tried_since < micros($2) - $3 * interval '1 second' as dead
             -- The limit keeps it one look for each row, never a read of all slots.
             from timers t cross join lateral (
                 select from slots s where s.slot = t.slot and s.incarnation = $1 limit 1) here
             where t.due_at <= micros($2)
             order by t.due_at limit $4
             -- A commit that sets, cancels or handles it comes first, and nobody waits for the other.
             for update of t skip locked)
         update timers t set
             attempts = case when due.again then t.attempts + 1 else 1 end,
             tried_since = case when due.again then t.tried_since else micros($2) end,
             last_error = case when due.again then t.last_error end,
             tried_id = t.id,
             dead_at = case when due.dead then micros($2) end,
             -- Half a second, doubled each time, at most five minutes, give or take a quarter.
             due_at = case when due.dead then 'infinity' else micros($2) + (0.75 + random() / 2) * least(
                 interval '500 milliseconds' * 2 ^ case when due.again then least(t.attempts, 10) else 0 end,
                 interval '5 minutes') end
         from due where t.kind = due.kind and t.key = due.key and t.name = due.name
         returning t.kind, t.key, t.name, t.id, t.command, t.attempts, t.last_error, due.dead",
    )
    .bind(incarnation)
    .bind(micros(now))
    .bind(give_up_s)
    .bind(limit);
    let rows = rows(pool, "claim due timers", claim).await?;
    Ok(rows
        .iter()
        .map(|row| DueTimer {
            kind: row.get(0),
            key: row.get(1),
            name: row.get(2),
            id: row.get(3),
            command: row.get(4),
            attempts: row.get(5),
            last_error: row.get(6),
            dead: row.get(7),
        })
        .collect())
}

/// Deletes a timer that can no longer be fired.
pub async fn forget(pool: &PgPool, timer: &DueTimer) -> Result<(), sqlx::Error> {
    let sql = "delete from timers where kind = $1 and key = $2 and name = $3 and id = $4";
    let forget = sqlx::query(sql).bind(&timer.kind).bind(&timer.key).bind(&timer.name);
    let forget = forget.bind(&timer.id);
    within(pool, "forget a timer", PATIENCE, async |connection| {
        forget.execute(connection).await.map(drop)
    })
    .await
}

/// A failed fire.
#[derive(Debug)]
pub struct Failed {
    pub kind: String,
    pub key: String,
    pub name: String,
    pub id: String,
    pub reason: String,
}

/// Stores the errors of failed fires, for operators.
pub async fn failed(pool: &PgPool, failed: &[Failed]) -> Result<(), sqlx::Error> {
    let column = |of: fn(&Failed) -> &str| failed.iter().map(of).collect::<Vec<_>>();
    let note = sqlx::query(
        "update timers t set last_error = u.reason
         from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[]) u(kind, key, name, id, reason)
         where t.kind = u.kind and t.key = u.key and t.name = u.name and t.id = u.id",
    )
    .bind(column(|f| &f.kind))
    .bind(column(|f| &f.key))
    .bind(column(|f| &f.name))
    .bind(column(|f| &f.id))
    .bind(column(|f| &f.reason));
    within(pool, "note failed timers", PATIENCE, async |connection| {
        note.execute(connection).await.map(drop)
    })
    .await
}
