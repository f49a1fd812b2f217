//! Deletion of rows that nobody can need any more, in bounded steps. A step reads the rows that it deletes, by an index
//! on their age, and little else, so its cost does not grow with the age of the store.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::postgres::PgPool;

use crate::persistence::patience::within;
use crate::persistence::store::micros;

/// Most rows of one step.
const STEP: i64 = 5_000;
/// Time limit of a step. A step takes milliseconds; the limit allows for a server that is busy otherwise.
const LIMIT: Duration = Duration::from_secs(20);

/// How long the outcome of a delivery is remembered after it was made. A delivery is repeated only while its outbox row
/// exists, and its outcome is kept for as long as that, whatever its age. After the row is gone, only a command on its
/// way may still arrive, and its deadline is a matter of seconds.
const DELIVERY_S: i64 = 3_600;
/// How long dead nodes are remembered.
const DEAD_NODE_S: i64 = 86_400;

/// How long rows are kept.
#[derive(Clone, Copy, Debug)]
pub struct RowRetention {
    /// First outcomes of users' commands.
    pub dedupe_s: i64,
    pub publications_s: i64,
}

/// Sweeps until no expired row is left. `now` is for tests that move the clock by hand: without it the database's time
/// counts, which is the same for all nodes. Returns the number of deleted rows.
pub async fn sweep(
    pool: &PgPool,
    now: Option<Timestamp>,
    kept: RowRetention,
) -> Result<u64, sqlx::Error> {
    let deliveries_s = kept.dedupe_s.min(DELIVERY_S);
    Ok(steps(pool, "dedupe", OUTCOMES, now, kept.dedupe_s).await?
        + steps(pool, "deliveries", DELIVERIES, now, deliveries_s).await?
        + steps(pool, "publications", PUBLICATIONS, now, kept.publications_s).await?
        + steps(pool, "revocations", REVOCATIONS, now, 0).await?
        + steps(pool, "keys", KEYS, now, 0).await?
        + steps(pool, "nodes", NODES, now, DEAD_NODE_S).await?)
}

/// Repeats a statement in steps. It binds `$1` the time, `$2` the seconds that rows are kept and `$3` the rows of a
/// step, and returns how many rows it examined and how many it deleted.
async fn steps(
    pool: &PgPool,
    table: &'static str,
    sql: &'static str,
    now: Option<Timestamp>,
    kept_s: i64,
) -> Result<u64, sqlx::Error> {
    let mut all = 0;
    loop {
        let (seen, gone): (i64, i64) = within(pool, "sweep", LIMIT, async |connection| {
            sqlx::query_as(sql)
                .bind(now.map(micros))
                .bind(kept_s)
                .bind(STEP)
                .fetch_one(connection)
                .await
        })
        .await?;
        metrics::counter!("proxie_swept_rows_total", "table" => table).increment(gone as u64);
        all += gone as u64;
        if seen < STEP {
            return Ok(all);
        }
    }
}

const OUTCOMES: &str = "with gone as (
    delete from dedupe where ctid = any(array(
        select d.ctid from dedupe d
         where d.user_id <> '@outbox' and d.at < coalesce(micros($1), now()) - $2 * interval '1 second'
         order by d.at limit $3)) returning 1)
    select count(*), count(*) from gone";

/// Outcomes of deliveries. If the outbox row still exists (it waits for its receiver, or is a dead letter), the outcome
/// is examined again one window later.
const DELIVERIES: &str = "with old as materialized (
    select d.ctid, exists (select from outbox o where o.id = d.id) as owed from dedupe d
     where d.user_id = '@outbox' and d.at < coalesce(micros($1), now()) - $2 * interval '1 second'
     order by d.at limit $3),
    kept as (update dedupe set at = coalesce(micros($1), now())
              where ctid = any(array(select ctid from old where owed)) returning 1),
    gone as (delete from dedupe where ctid = any(array(select ctid from old where not owed)) returning 1)
    select (select count(*) from old), (select count(*) from gone)";

const PUBLICATIONS: &str = "with gone as (
    delete from publications where ctid = any(array(
        select p.ctid from publications p where p.at < coalesce(micros($1), now()) - $2 * interval '1 second'
         order by p.at limit $3)) returning 1)
    select count(*), count(*) from gone";

/// Revocations whose tokens have all expired.
const REVOCATIONS: &str = "with gone as (
    delete from revocations where ctid = any(array(
        select r.ctid from revocations r where r.until < coalesce(micros($1), now()) - $2 * interval '1 second'
         order by r.until limit $3)) returning 1)
    select count(*), count(*) from gone";

/// Keys whose tokens have all expired. There are only a handful of keys.
const KEYS: &str = "with gone as (
    delete from signing_keys
     where retired_at + (token_s + $2) * interval '1 second' < coalesce(micros($1), now()) and $3 > 0 returning 1)
    select 0::bigint, count(*) from gone";

/// Dead nodes. A dead incarnation never returns, and nothing refers to its rows.
const NODES: &str = "with old as materialized (
    select n.incarnation from nodes n
     where n.ended_at < coalesce(micros($1), now()) - $2 * interval '1 second' order by n.ended_at limit $3),
    l as (delete from lanes where incarnation in (select incarnation from old)),
    e as (delete from leases where incarnation in (select incarnation from old)),
    s as (delete from suspicions where suspect in (select incarnation from old) or by in (select incarnation from old)),
    gone as (delete from nodes where incarnation in (select incarnation from old) returning 1)
    select count(*), count(*) from gone";
