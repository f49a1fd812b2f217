//! Deleting what nobody can ask for any more, in bounded steps. A step reads what it deletes, by an index on its age,
//! and little else: however old the store is, its cost does not grow.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::postgres::PgPool;

use crate::persistence::patience::within;
use crate::persistence::store::micros;

/// Rows of one step.
const STEP: i64 = 5_000;
/// A step takes milliseconds; this is for a server that is busy with something else.
const LIMIT: Duration = Duration::from_secs(20);

/// How long the outcome of a delivery is remembered after it was made. A delivery is repeated only while its outbox row
/// exists, and as long as that is so its outcome is kept, whatever its age. What may still come later than the row's
/// end is a command on its way, and its deadline is seconds.
const DELIVERY_S: i64 = 3_600;
/// Nodes that are dead for so long are forgotten.
const DEAD_NODE_S: i64 = 86_400;

/// How long rows are kept.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// First outcomes of users' commands.
    pub dedupe_s: i64,
    pub publications_s: i64,
}

/// Sweeps until nothing is left that is too old. `now` is for tests that move the clock by hand: without it the
/// database's time counts, which is the same for all nodes. Returns how many rows went.
pub async fn sweep(pool: &PgPool, now: Option<Timestamp>, kept: Kept) -> Result<u64, sqlx::Error> {
    let deliveries_s = kept.dedupe_s.min(DELIVERY_S);
    Ok(steps(pool, "dedupe", OUTCOMES, now, kept.dedupe_s).await?
        + steps(pool, "deliveries", DELIVERIES, now, deliveries_s).await?
        + steps(pool, "publications", PUBLICATIONS, now, kept.publications_s).await?
        + steps(pool, "revocations", REVOCATIONS, now, 0).await?
        + steps(pool, "keys", KEYS, now, 0).await?
        + steps(pool, "nodes", NODES, now, DEAD_NODE_S).await?)
}

/// Each binds `$1` the time, `$2` the seconds that rows are kept and `$3` the rows of a step, and yields how many rows
/// it looked at and how many of them went.
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

/// Those whose outbox row exists (it waits for its receiver, or is a dead letter) are looked at again a window later.
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

/// Every token that a revocation concerns has ended.
const REVOCATIONS: &str = "with gone as (
    delete from revocations where ctid = any(array(
        select r.ctid from revocations r where r.until < coalesce(micros($1), now()) - $2 * interval '1 second'
         order by r.until limit $3)) returning 1)
    select count(*), count(*) from gone";

/// Every token that a key has signed has ended. There are a handful of keys.
const KEYS: &str = "with gone as (
    delete from signing_keys
     where retired_at + (token_s + $2) * interval '1 second' < coalesce(micros($1), now()) and $3 > 0 returning 1)
    select 0::bigint, count(*) from gone";

/// A dead incarnation never comes back. What is left of it names nothing.
const NODES: &str = "with old as materialized (
    select n.incarnation from nodes n
     where n.ended_at < coalesce(micros($1), now()) - $2 * interval '1 second' order by n.ended_at limit $3),
    l as (delete from lanes where incarnation in (select incarnation from old)),
    e as (delete from leases where incarnation in (select incarnation from old)),
    s as (delete from suspicions where suspect in (select incarnation from old) or by in (select incarnation from old)),
    gone as (delete from nodes where incarnation in (select incarnation from old) returning 1)
    select count(*), count(*) from gone";
