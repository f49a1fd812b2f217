//! The outbox as the recovery scan and runs see it, and entities that are parked. Entities deliver their own rows
//! (`actors::activation`).

use jiff::Timestamp;
use serde::Serialize;
use sqlx::Row;
use sqlx::postgres::PgPool;

use crate::persistence::letters;
use crate::persistence::patience::{PATIENCE, rows, within};
use crate::persistence::store::{from_micros, micros};

/// An overdue row that the scan has claimed: its sender's activation is gone, or still delivers it.
#[derive(Debug)]
pub struct OverdueDelivery {
    pub kind: String,
    pub key: String,
    /// Whether the scan has given up the row, because waking its sender has had no effect for too long.
    pub dead: bool,
    /// Whether the row is due. False: its sender plans to try it again later.
    pub owed: bool,
}

/// Claims overdue rows of this incarnation's slots, the longest overdue first. The scan finds a row again after a time
/// that grows with its claims. A claim changes nothing for the sender, whose plan (`due_at`) is on its node's clock;
/// all other times are on the database's.
pub async fn owing(
    pool: &PgPool,
    incarnation: i64,
    now: Timestamp,
    give_up_s: i64,
    limit: i64,
) -> Result<Vec<OverdueDelivery>, sqlx::Error> {
    let claim = sqlx::query(
        "with due as materialized (
             select o.id, o.due_at <= micros($2) as owed,
                    o.found >= 4 and o.since < now() - $3 * interval '1 second' as dead
             -- The limit keeps it one look for each row, never a read of all slots.
             from outbox o cross join lateral (
                 select from slots s where s.slot = o.slot and s.incarnation = $1 limit 1) here
             -- What is younger is on its way.
             where o.dead_at is null and o.look_at < now() - interval '500 milliseconds'
             order by o.look_at limit $4
             -- A commit that settles it comes first, and nobody waits for the other.
             for update of o skip locked)
         update outbox o set
             found = o.found + due.owed::int,
             look_at = now() + case when due.owed
                 then least(interval '1 second' * 2 ^ least(o.found, 9), interval '5 minutes')
                 else least(o.due_at - micros($2), interval '5 minutes') end,
             dead_at = case when due.dead then micros($2) end,
             last_error = case when due.dead then coalesce(o.last_error || '; ', '') || $5 else o.last_error end
         from due where o.id = due.id
         returning o.sender_kind, o.sender_key, due.dead, due.owed",
    )
    .bind(incarnation)
    .bind(micros(now))
    .bind(give_up_s)
    .bind(limit)
    .bind(letters::ASLEEP);
    let rows = rows(pool, "find overdue deliveries", claim).await?;
    Ok(rows
        .iter()
        .map(|row| OverdueDelivery {
            kind: row.get(0),
            key: row.get(1),
            dead: row.get(2),
            owed: row.get(3),
        })
        .collect())
}

/// The permission to make a run's outside call.
#[derive(Debug, PartialEq, Eq)]
pub enum Begun {
    /// The call may be made, after this many earlier begins. Of those without an end, the outside calls may have been made.
    Yes { earlier: u32, unfinished: u32 },
    /// The row is gone or given up: another node has recorded the outcome, or an operator has intervened.
    Gone,
    /// The run was begun too often without an end, and has now been given up.
    GivenUp,
}

/// The number of a run's begins without an end after which it is given up.
pub const MAX_UNFINISHED: i32 = 5;

/// The record of begun runs.
pub struct Begins(PgPool);

impl Begins {
    pub fn new(pool: PgPool) -> Self {
        Self(pool)
    }

    /// Records that a run's outside call is about to be made. If the call never ends, because the node dies or its
    /// outcome cannot be recorded, the next call comes later, and only a few follow.
    /// `unnoted`: the first begin was not noted.
    pub async fn begin(
        &self,
        id: &str,
        unnoted: bool,
        now: Timestamp,
    ) -> Result<Begun, sqlx::Error> {
        let begin = sqlx::query(
            "update outbox set
                 begun = begun + 1,
                 due_at = micros($2) + interval '1 second' * 4 ^ greatest(begun - attempts, 0),
                 dead_at = case when begun - attempts >= $3 then micros($2) end,
                 last_error = case when begun - attempts >= $3
                     then 'it was begun ' || $3 || ' times, and what came of it was never taken' else last_error end
             where id = $1 and dead_at is null
             returning dead_at is not null, begun - $4, greatest(begun - $4 - attempts, 0)",
        )
        .bind(id)
        .bind(micros(now))
        .bind(MAX_UNFINISHED)
        .bind(i32::from(!unnoted));
        let row = within(&self.0, "note the begin of a run", PATIENCE, async |connection| {
            begin.fetch_optional(connection).await
        })
        .await?;
        let Some(row) = row else { return Ok(Begun::Gone) };
        if row.get::<bool, _>(0) {
            return Ok(Begun::GivenUp);
        }
        let number = |n| row.get::<i32, _>(n).unsigned_abs();
        Ok(Begun::Yes { earlier: number(1), unfinished: number(2) })
    }
}

#[derive(Debug, Serialize)]
pub struct Parked {
    pub kind: String,
    pub key: String,
    pub reason: String,
    pub failures: i32,
    /// The parking release's knowledge of the kind, which releases before 0012 did not store. It binds only releases
    /// with the same knowledge.
    pub known_as: Option<String>,
    pub at: String,
}

pub async fn park(
    pool: &PgPool,
    kind: &str,
    key: &str,
    reason: &str,
    failures: i32,
    known_as: &str,
) -> Result<(), sqlx::Error> {
    let park = sqlx::query(
        "insert into parked (kind, key, reason, failures, known_as) values ($1, $2, $3, $4, $5)
         on conflict (kind, key) do update set reason = excluded.reason, failures = excluded.failures,
             known_as = excluded.known_as, at = now()",
    )
    .bind(kind)
    .bind(key)
    .bind(reason)
    .bind(failures)
    .bind(known_as);
    within(pool, "park an entity", PATIENCE, async |connection| {
        park.execute(connection).await.map(drop)
    })
    .await
}

/// Removes the parking of an entity that has started on a node with another knowledge of its kind.
pub async fn started(
    pool: &PgPool,
    kind: &str,
    key: &str,
    known_as: &str,
) -> Result<(), sqlx::Error> {
    let sql = "delete from parked where kind = $1 and key = $2 and known_as is distinct from $3";
    let started = sqlx::query(sql).bind(kind).bind(key).bind(known_as);
    within(pool, "note that an entity has started", PATIENCE, async |connection| {
        started.execute(connection).await.map(drop)
    })
    .await
}

/// The number of parked entities and the time of the last parking, which together change with every change of the list.
pub type ParkedVersion = (i64, Option<i64>);

pub async fn parked_version(pool: &PgPool) -> Result<ParkedVersion, sqlx::Error> {
    let row = within(pool, "count parked entities", PATIENCE, async |connection| {
        sqlx::query("select count(*), micros(max(at)) from parked").fetch_one(connection).await
    })
    .await?;
    Ok((row.get(0), row.get(1)))
}

/// A page of the parked entities, in the order of kind and key.
pub async fn parked(
    pool: &PgPool,
    after: (&str, &str),
    limit: i64,
) -> Result<Vec<Parked>, sqlx::Error> {
    let page = sqlx::query(
        "select kind, key, reason, failures, micros(at), known_as from parked
         where (kind, key) > ($1, $2) order by kind, key limit $3",
    )
    .bind(after.0)
    .bind(after.1)
    .bind(limit);
    let rows = rows(pool, "list parked entities", page).await?;
    Ok(rows
        .iter()
        .map(|row| Parked {
            kind: row.get(0),
            key: row.get(1),
            reason: row.get(2),
            failures: row.get(3),
            known_as: row.get(5),
            at: from_micros(row.get(4)).to_string(),
        })
        .collect())
}

/// Lets a parked entity start again, and puts back the letters that were given up meanwhile. False: it was not parked.
pub async fn unpark(pool: &PgPool, kind: &str, key: &str) -> Result<bool, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let done = sqlx::query("delete from parked where kind = $1 and key = $2")
        .bind(kind)
        .bind(key)
        .execute(&mut *transaction)
        .await?;
    if done.rows_affected() == 1 {
        letters::revive(&mut transaction, kind, key).await?;
    }
    transaction.commit().await?;
    Ok(done.rows_affected() == 1)
}
