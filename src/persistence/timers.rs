//! Due timers of the slots that this incarnation owns.

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgPool;

use crate::persistence::store::micros;

#[derive(Debug)]
pub struct DueTimer {
    pub kind: String,
    pub key: String,
    pub name: String,
    pub id: String,
    pub command: String,
}

/// The earliest first. A row stays until the commit that handles it, so a fire that failed is found again.
pub async fn due(
    pool: &PgPool,
    incarnation: i64,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<DueTimer>, sqlx::Error> {
    let rows = sqlx::query(
        "select t.kind, t.key, t.name, t.id, t.command from timers t
         join slots s on s.slot = t.slot and s.incarnation = $1
         where t.due_at <= micros($2)
           -- those of parked entities would fill the window and keep out all others
           and not exists (select from parked p where p.kind = t.kind and p.key = t.key)
         order by t.due_at limit $3",
    )
    .bind(incarnation)
    .bind(micros(now))
    .bind(limit)
    .fetch_all(pool)
    .await?;
    Ok(rows
        .iter()
        .map(|row| DueTimer {
            kind: row.get(0),
            key: row.get(1),
            name: row.get(2),
            id: row.get(3),
            command: row.get(4),
        })
        .collect())
}
