//! Members of a cluster and the slots they own: joining, renewing, claiming, handing over, declaring dead.
//!
//! Every change of ownership is a compare-and-swap under one lock, raises the slot's epoch, and tells the others
//! (`notify proxie_cluster`). A slot of a live node is only ever released by its owner.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnection, PgListener, PgPool, PgRow};
use sqlx::{Connection, Row};

use crate::kernel::clock::Timestamp;
use crate::persistence::membership::{
    CHANNEL, NodeInfo, Other, RegisterError, Waits, changed, enrol, others,
};
use crate::persistence::patience::{PATIENCE, within};
use crate::persistence::store::from_micros;

/// The time that a takeover waits for a batch of the dead node that is being written, before it ends that node's backend.
const LANE_PATIENCE: &str = "500ms";
/// The pause before another look at a lease: longer than the interval of renewals, so that a live node has renewed it.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    Joining,
    Active,
    Draining,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub incarnation: i64,
    pub name: String,
    pub peer_address: String,
    pub version: String,
    /// The kinds of entities that the node knows; empty for releases before 0012, which did not report them.
    pub kinds: Vec<String>,
    pub weight: u32,
    pub state: MemberState,
    /// Seconds left of the lease by the database's clock; negative once it has expired.
    pub lease_left_ms: i64,
    /// The number of active members that suspect the node.
    pub suspected_by: u32,
}

/// The live members, as of one renewal.
#[derive(Clone, Debug, Default)]
pub struct Beat {
    pub version: i64,
    pub members: Vec<Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRow {
    /// The owner; `None` if there is none or it is dead.
    pub owner: Option<i64>,
    pub epoch: i64,
    /// Whether the slot was claimed after its owner's death, and not handed over.
    pub claimed: bool,
}

/// The evidence for declaring a member dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The lease has expired.
    Lease,
    /// The node's port refuses connections and its link was reset.
    Refused,
    /// The node is silent, and this many active members must suspect it.
    Suspected { by: u32 },
    /// An operator has declared it.
    Operator,
}

/// Registers a new incarnation as joining. If a node of the same name renews its lease, that is an error; if it does not,
/// this waits for the end of its lease, so that a cluster that died as a whole comes back under its names. Nodes of this
/// host whose process is gone are declared dead on the way, whatever their name: no other node knows it as surely.
pub async fn join(
    pool: &PgPool,
    node: &NodeInfo,
    peer_address: &str,
    weight: u32,
    waits: Waits<'_>,
) -> Result<i64, RegisterError> {
    let started = Instant::now();
    let mut leases: HashMap<i64, i64> = HashMap::new();
    let mut said = false;
    loop {
        let mut wait = None;
        for other in others(pool).await? {
            // A node without a cluster owns all slots, so no other node may exist.
            let rival = other.name == node.name || other.peer_address.is_empty();
            if other.is_gone(node) {
                evict(pool, None, other.incarnation, Evidence::Operator).await?;
            } else if rival && other.lease_left_s <= 0.0 {
                evict(pool, None, other.incarnation, Evidence::Lease).await?;
            } else if rival {
                let before = leases.insert(other.incarnation, other.lease_until_us);
                let renewed = before.is_some_and(|before| other.lease_until_us > before);
                if renewed || started.elapsed().as_secs_f64() > 3.0 * node.lease_s {
                    return Err(taken(other));
                }
                wait = Some(other);
            }
        }
        let Some(other) = wait else { break };
        other.wait(waits, &mut said);
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let mut tx = pool.begin().await?;
    lock(&mut tx).await?;
    // Another node of this name may have registered at the same moment.
    let racer = sqlx::query(
        "select incarnation, pid, peer_address from nodes where state <> 'dead' and (name = $1 or peer_address = '')",
    )
    .bind(&node.name)
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(racer) = racer {
        return Err(refusal(node.name.clone(), racer.get(0), racer.get(1), racer.get(2)));
    }
    let incarnation = enrol(&mut tx, node, peer_address, weight, "joining").await?;
    changed(&mut tx).await?;
    tx.commit().await?;
    Ok(incarnation)
}

fn taken(other: Other) -> RegisterError {
    refusal(other.name, other.incarnation, other.pid, other.peer_address)
}

fn refusal(name: String, incarnation: i64, pid: i32, address: String) -> RegisterError {
    if address.is_empty() {
        return RegisterError::Single { name, pid };
    }
    RegisterError::NameTaken { name, incarnation, address }
}

/// Renews the lease, and returns the live members and the database's time. `None`: this incarnation was declared dead.
pub async fn beat(
    connection: &mut PgConnection,
    incarnation: i64,
    lease_s: f64,
    live: &serde_json::Value,
) -> Result<Option<(Beat, Timestamp)>, sqlx::Error> {
    let rows = sqlx::query(
        "with alive as (update nodes set live = $3::jsonb where incarnation = $1 and state <> 'dead' returning incarnation),
              renewed as (update leases l set lease_until = now() + $2 * interval '1 second' from alive a
                           where l.incarnation = a.incarnation returning 1)
         select (select version from cluster), (select count(*) from renewed), n.incarnation, n.name, n.peer_address,
                n.version, n.weight, n.state, (extract(epoch from l.lease_until - now()) * 1000)::bigint,
                (select count(*) from suspicions s join nodes b on b.incarnation = s.by
                  where s.suspect = n.incarnation and b.state = 'active' and s.at > now() - interval '3 seconds'),
                micros(clock_timestamp()), coalesce(n.kinds, '{}')
           from nodes n join leases l using (incarnation) where n.state <> 'dead' order by n.incarnation",
    )
    .bind(incarnation)
    .bind(lease_s)
    .bind(live.to_string())
    .fetch_all(connection)
    .await?;
    let Some(first) = rows.first() else { return Ok(None) };
    if first.get::<i64, _>(1) == 0 {
        return Ok(None);
    }
    let (version, at) = (first.get(0), from_micros(first.get(10)));
    let members = rows.iter().map(|row| Member {
        incarnation: row.get(2),
        name: row.get(3),
        peer_address: row.get(4),
        version: row.get(5),
        kinds: row.get(11),
        weight: row.get::<i32, _>(6).max(0) as u32,
        state: match row.get::<&str, _>(7) {
            "joining" => MemberState::Joining,
            "draining" => MemberState::Draining,
            _ => MemberState::Active,
        },
        lease_left_ms: row.get(8),
        suspected_by: row.get::<i64, _>(9) as u32,
    });
    Ok(Some((Beat { version, members: members.collect() }, at)))
}

/// All slots in order, with the version of their table.
pub async fn slots(pool: &PgPool) -> Result<(i64, Vec<SlotRow>), sqlx::Error> {
    let sql = "select (select version from cluster), array_agg(coalesce(n.incarnation, 0) order by s.slot),
                array_agg(s.epoch order by s.slot), array_agg(s.claimed order by s.slot)
           from slots s left join nodes n on n.incarnation = s.incarnation and n.state <> 'dead'";
    let row = within(pool, "list the slots", PATIENCE, async |connection| {
        sqlx::query(sql).fetch_one(connection).await
    })
    .await?;
    let (owners, epochs): (Vec<i64>, Vec<i64>) = (row.get(1), row.get(2));
    let rows = owners.into_iter().zip(epochs).zip(row.get::<Vec<bool>, _>(3)).map(
        |((owner, epoch), claimed)| SlotRow {
            owner: (owner != 0).then_some(owner),
            epoch,
            claimed,
        },
    );
    Ok((row.get(0), rows.collect()))
}

/// Claims slots that no live node owns. Returns the claimed ones, with their new epochs.
pub async fn claim(
    pool: &PgPool,
    me: i64,
    wanted: &[(u16, i64)],
) -> Result<Vec<(u16, i64)>, sqlx::Error> {
    within(pool, "hand out slots", PATIENCE, async |connection| {
    let mut tx = connection.begin().await?;
    lock(&mut tx).await?;
    let rows = sqlx::query(
        "update slots s set incarnation = $1, epoch = s.epoch + 1, claimed = true
           from unnest($2::int[], $3::bigint[]) u(slot, epoch)
          where s.slot = u.slot and s.epoch = u.epoch
            and not exists (select from nodes n where n.incarnation = s.incarnation and n.state <> 'dead')
            and exists (select from nodes m join leases l using (incarnation)
                         where m.incarnation = $1 and m.state = 'active' and l.lease_until > now())
         returning s.slot, s.epoch",
    )
    .bind(me)
    .bind(wanted.iter().map(|(slot, _)| i32::from(*slot)).collect::<Vec<_>>())
    .bind(wanted.iter().map(|(_, epoch)| *epoch).collect::<Vec<_>>())
    .fetch_all(&mut *tx)
    .await?;
    moved(tx, rows).await
    }).await
}

/// Gives slots of this node to another one, which may serve them at once, because this node has stopped serving them.
/// Commits that this node still tries for them are refused. Returns the slots and their new epochs.
pub async fn hand_over(
    pool: &PgPool,
    me: i64,
    to: i64,
    leaving: &[(u16, i64)],
) -> Result<Vec<(u16, i64)>, sqlx::Error> {
    within(pool, "move slots", PATIENCE, async |connection| {
        let mut tx = connection.begin().await?;
        lock(&mut tx).await?;
        // A batch that is being written holds its lane's row and has checked its slots, so this waits for its end.
        sqlx::query("select from lanes where incarnation = $1 order by lane for update")
            .bind(me)
            .execute(&mut *tx)
            .await?;
        let rows = sqlx::query(
            "update slots s set incarnation = $2, epoch = s.epoch + 1, claimed = false
           from unnest($3::int[], $4::bigint[]) u(slot, epoch)
          where s.slot = u.slot and s.epoch = u.epoch and s.incarnation = $1
            and exists (select from nodes n where n.incarnation = $2 and n.state = 'active')
         returning s.slot, s.epoch",
        )
        .bind(me)
        .bind(to)
        .bind(leaving.iter().map(|(slot, _)| i32::from(*slot)).collect::<Vec<_>>())
        .bind(leaving.iter().map(|(_, epoch)| *epoch).collect::<Vec<_>>())
        .fetch_all(&mut *tx)
        .await?;
        moved(tx, rows).await
    })
    .await
}

/// The slots that are still this node's, under the epochs that it knows. Waits for a hand-over that is being committed.
pub async fn still_owned(
    pool: &PgPool,
    me: i64,
    slots: &[(u16, i64)],
) -> Result<Vec<u16>, sqlx::Error> {
    within(pool, "say whose slots these are", PATIENCE, async |connection| {
    let mut tx = connection.begin().await?;
    lock(&mut tx).await?;
    let rows = sqlx::query(
        "select s.slot from slots s join unnest($2::int[], $3::bigint[]) u(slot, epoch) using (slot, epoch) where s.incarnation = $1",
    )
    .bind(me)
    .bind(slots.iter().map(|(slot, _)| i32::from(*slot)).collect::<Vec<_>>())
    .bind(slots.iter().map(|(_, epoch)| *epoch).collect::<Vec<_>>())
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(rows.iter().map(|row| row.get::<i32, _>(0) as u16).collect())
    }).await
}

/// Commits a change of slots.
async fn moved(
    mut tx: sqlx::Transaction<'_, sqlx::Postgres>,
    rows: Vec<PgRow>,
) -> Result<Vec<(u16, i64)>, sqlx::Error> {
    if !rows.is_empty() {
        changed(&mut tx).await?;
    }
    tx.commit().await?;
    Ok(rows.iter().map(|row| (row.get::<i32, _>(0) as u16, row.get(1))).collect())
}

/// Stores the kinds of entities that this node knows, before it becomes active.
pub async fn knows(pool: &PgPool, me: i64, kinds: &[&str]) -> Result<(), sqlx::Error> {
    let sql = "update nodes set kinds = $2 where incarnation = $1";
    within(pool, "note a node's kinds", PATIENCE, async |connection| {
        sqlx::query(sql).bind(me).bind(kinds).execute(connection).await.map(drop)
    })
    .await
}

/// Changes the node's state: joining → active, or active → draining. False: it was declared dead meanwhile.
pub async fn set_state(
    pool: &PgPool,
    incarnation: i64,
    state: MemberState,
) -> Result<bool, sqlx::Error> {
    let (name, before) = match state {
        MemberState::Joining => return Ok(false),
        MemberState::Active => ("active", "joining"),
        MemberState::Draining => ("draining", "active"),
    };
    within(pool, "change a node's state", PATIENCE, async |connection| {
        let mut tx = connection.begin().await?;
        lock(&mut tx).await?;
        let done =
            sqlx::query("update nodes set state = $2 where incarnation = $1 and state in ($2, $3)")
                .bind(incarnation)
                .bind(name)
                .bind(before)
                .execute(&mut *tx)
                .await?
                .rows_affected();
        changed(&mut tx).await?;
        tx.commit().await?;
        Ok(done == 1)
    })
    .await
}

pub async fn suspect(pool: &PgPool, me: i64, suspect: i64) -> Result<(), sqlx::Error> {
    let sql = "insert into suspicions (suspect, by) select n.incarnation, $2 from nodes n where n.incarnation = $1 and n.state <> 'dead'
         on conflict (suspect, by) do update set at = now()";
    within(pool, "note a suspicion", PATIENCE, async |connection| {
        sqlx::query(sql).bind(suspect).bind(me).execute(connection).await.map(drop)
    })
    .await
}

/// Declares a member dead for ever. Once this is committed, the member can write nothing: its lanes are fenced. The
/// evictor must itself be active and hold its lease in the same transaction, so that two nodes cannot evict each other.
/// False: another node was quicker, or the evidence does not hold.
pub async fn evict(
    pool: &PgPool,
    by: Option<i64>,
    target: i64,
    evidence: Evidence,
) -> Result<bool, sqlx::Error> {
    for attempt in 0..4 {
        let evicting = within(pool, "declare a node dead", PATIENCE, async |connection| {
            try_evict(connection, by, target, evidence).await
        });
        match evicting.await {
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("55P03") => {
                // A writer that is frozen in the middle of a call must not delay this.
                tracing::warn!(
                    target,
                    attempt,
                    "the dead node's writer holds its lane; its backend is ended"
                );
                let sql = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like $1";
                within(pool, "end a backend", PATIENCE, async |connection| {
                    let name = format!("proxie lane {target}/%");
                    sqlx::query(sql).bind(name).execute(connection).await
                })
                .await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => return done,
        }
    }
    Ok(false)
}

async fn try_evict(
    connection: &mut PgConnection,
    by: Option<i64>,
    target: i64,
    evidence: Evidence,
) -> Result<bool, sqlx::Error> {
    let mut tx = connection.begin().await?;
    lock(&mut tx).await?;
    let rows = sqlx::query(
        "select n.incarnation, n.state, l.lease_until > now(),
                (select count(*) from suspicions s join nodes b on b.incarnation = s.by
                  where s.suspect = n.incarnation and b.state = 'active' and s.at > now() - interval '3 seconds')
           from nodes n join leases l using (incarnation)
          where n.incarnation = any($1) order by n.incarnation for update",
    )
    .bind(by.into_iter().chain([target]).collect::<Vec<_>>())
    .fetch_all(&mut *tx)
    .await?;
    let row = |incarnation| rows.iter().find(|row| row.get::<i64, _>(0) == incarnation);
    // A joining node may act only on an expired lease, which every node can verify: the node that died may have been
    // the last one of the cluster.
    let fit = by.is_none_or(|by| {
        row(by).is_some_and(|r| {
            let state: &str = r.get(1);
            let may = state == "active" || (state == "joining" && evidence == Evidence::Lease);
            may && r.get::<bool, _>(2)
        })
    });
    let holds = row(target).is_some_and(|r| {
        r.get::<&str, _>(1) != "dead"
            && match evidence {
                Evidence::Lease => !r.get::<bool, _>(2),
                Evidence::Suspected { by } => r.get::<i64, _>(3) >= i64::from(by),
                Evidence::Refused | Evidence::Operator => true,
            }
    });
    if !fit || !holds {
        return Ok(false);
    }
    sqlx::query(sqlx::AssertSqlSafe(format!("set local lock_timeout = '{LANE_PATIENCE}'")))
        .execute(&mut *tx)
        .await?;
    sqlx::query("update lanes set live = false where incarnation = $1")
        .bind(target)
        .execute(&mut *tx)
        .await?;
    sqlx::query("update nodes set state = 'dead', ended_at = now() where incarnation = $1")
        .bind(target)
        .execute(&mut *tx)
        .await?;
    sqlx::query("delete from suspicions where suspect = $1 or by = $1")
        .bind(target)
        .execute(&mut *tx)
        .await?;
    changed(&mut tx).await?;
    tx.commit().await?;
    Ok(true)
}

/// The incarnation of the live node of this name.
pub async fn living(pool: &PgPool, name: &str) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "select incarnation from nodes where name = $1 and state <> 'dead' and peer_address <> ''",
    )
    .bind(name)
    .fetch_optional(pool)
    .await
}

/// Listens for changes that other nodes made.
pub async fn listen(pool: &PgPool) -> Result<PgListener, sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    Ok(listener)
}

/// Takes the lock that serialises changes of members and slots.
async fn lock(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_advisory_xact_lock(hashtext('proxie:register'))")
        .execute(connection)
        .await
        .map(drop)
}
