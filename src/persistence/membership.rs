//! The rows behind the lease: registering a node's incarnation, taking over from a dead one, renewing.

use std::time::{Duration, Instant};

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgPool};

use crate::kernel::ids::SLOTS;

#[derive(Clone, Debug)]
pub struct NodeInfo {
    pub name: String,
    pub address: String,
    pub version: String,
    /// Where `pid` means something: boot id, host name, pid namespace.
    pub host: String,
    pub pid: i32,
    pub lease_s: f64,
    pub lanes: u16,
}

#[derive(Clone, Copy, Debug)]
pub struct Registered {
    pub incarnation: i64,
    /// The epoch under which all slots were claimed.
    pub epoch: i64,
}

#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error(
        "another node ({name}, pid {pid}) is live on this database. Stop it first, or use another database: without the cluster one node owns all"
    )]
    AnotherIsLive { name: String, pid: i32 },
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

struct Other {
    incarnation: i64,
    name: String,
    host: String,
    pid: i32,
    lease_left_s: f64,
}

/// Registers a new incarnation and claims every slot. An older node that is provably gone is fenced at once, else its
/// lease is waited for; one that renews meanwhile is live and wins. `data_lock_held` says that the caller holds the
/// lock of the data directory that the database lives in, so no other process can be using it.
pub async fn register(
    pool: &PgPool,
    node: &NodeInfo,
    data_lock_held: bool,
    read_ttl: Duration,
) -> Result<Registered, RegisterError> {
    let started = Instant::now();
    let mut waited_for: Option<(i64, f64)> = None;
    let mut fenced_a_silent_one = false;
    loop {
        let others = live_nodes(pool).await?;
        let mut wait: Option<&Other> = None;
        for other in &others {
            let gone = data_lock_held || (other.host == node.host && !process_exists(other.pid));
            if !gone && other.lease_left_s > 0.0 {
                wait = Some(other);
            }
            fenced_a_silent_one |= !gone;
        }
        let Some(other) = wait else { break };
        match waited_for {
            // A second reading that is not lower means that it renewed.
            Some((incarnation, left))
                if incarnation == other.incarnation && other.lease_left_s > left =>
            {
                return Err(RegisterError::AnotherIsLive {
                    name: other.name.clone(),
                    pid: other.pid,
                });
            }
            None => tracing::warn!(
                node = other.name,
                pid = other.pid,
                seconds = other.lease_left_s,
                "an older node's lease has not run out; waiting for it"
            ),
            _ => {}
        }
        if started.elapsed().as_secs_f64() > 3.0 * node.lease_s {
            return Err(RegisterError::AnotherIsLive { name: other.name.clone(), pid: other.pid });
        }
        waited_for = Some((other.incarnation, other.lease_left_s));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    let mut tx = pool.begin().await?;
    // One registration at a time; the state is read again under the lock.
    sqlx::query("select pg_advisory_xact_lock(hashtext('proxie:register'))")
        .execute(&mut *tx)
        .await?;
    let racer = sqlx::query(
        "select n.name, n.pid from nodes n join leases l using (incarnation)
         where n.state <> 'dead' and l.lease_until > now() and n.started_at > now() - $1 * interval '1 second'",
    )
    .bind(started.elapsed().as_secs_f64() + 0.001)
    .fetch_optional(&mut *tx)
    .await?;
    if let Some(racer) = racer {
        return Err(RegisterError::AnotherIsLive { name: racer.get(0), pid: racer.get(1) });
    }
    // The linearisation point of the takeover: after it no batch of an older incarnation can commit. It waits for the
    // one that is being written.
    sqlx::query("update lanes set live = false where live").execute(&mut *tx).await?;
    sqlx::query("update nodes set state = 'dead', ended_at = now() where state <> 'dead'")
        .execute(&mut *tx)
        .await?;
    let incarnation = enrol(&mut tx, node, "", 1, "active").await?;
    let epoch: i64 =
        sqlx::query_scalar("select max(epoch) + 1 from slots").fetch_one(&mut *tx).await?;
    let claimed = sqlx::query("update slots set incarnation = $1, epoch = $2")
        .bind(incarnation)
        .bind(epoch)
        .execute(&mut *tx)
        .await?
        .rows_affected();
    debug_assert_eq!(claimed, u64::from(SLOTS));
    tx.commit().await?;
    if fenced_a_silent_one {
        // It may believe in its lease, and answer reads, for `read_ttl` after its last renewal.
        tokio::time::sleep(read_ttl + Duration::from_millis(100)).await;
    }
    Ok(Registered { incarnation, epoch })
}

/// A new incarnation with its lease and its lanes.
pub async fn enrol(
    connection: &mut PgConnection,
    node: &NodeInfo,
    peer_address: &str,
    weight: u32,
    state: &str,
) -> Result<i64, sqlx::Error> {
    let incarnation: i64 = sqlx::query_scalar(
        "insert into nodes (incarnation, name, address, peer_address, weight, version, state, host, pid)
         values (nextval('incarnations'), $1, $2, $3, $4, $5, $6, $7, $8) returning incarnation",
    )
    .bind(&node.name)
    .bind(&node.address)
    .bind(peer_address)
    .bind(weight as i32)
    .bind(&node.version)
    .bind(state)
    .bind(&node.host)
    .bind(node.pid)
    .fetch_one(&mut *connection)
    .await?;
    sqlx::query("insert into leases (incarnation, lease_until) values ($1, now() + $2 * interval '1 second')")
        .bind(incarnation)
        .bind(node.lease_s)
        .execute(&mut *connection)
        .await?;
    sqlx::query("insert into lanes (incarnation, lane) select $1, generate_series(0, $2 - 1)")
        .bind(incarnation)
        .bind(i32::from(node.lanes))
        .execute(&mut *connection)
        .await?;
    Ok(incarnation)
}

async fn live_nodes(pool: &PgPool) -> Result<Vec<Other>, sqlx::Error> {
    let rows = sqlx::query(
        "select n.incarnation, n.name, n.host, n.pid, extract(epoch from l.lease_until - now())::float8
         from nodes n join leases l using (incarnation) where n.state <> 'dead'",
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .iter()
        .map(|row| Other {
            incarnation: row.get(0),
            name: row.get(1),
            host: row.get(2),
            pid: row.get(3),
            lease_left_s: row.get(4),
        })
        .collect())
}

pub fn process_exists(pid: i32) -> bool {
    rustix::process::Pid::from_raw(pid)
        .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

/// This machine, boot and pid namespace.
pub fn host_id() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let namespace = std::fs::read_link("/proc/self/ns/pid")
        .map(|p| p.display().to_string())
        .unwrap_or_default();
    format!(
        "{}/{}/{namespace}",
        read("/proc/sys/kernel/random/boot_id"),
        read("/proc/sys/kernel/hostname")
    )
}

pub const CHANNEL: &str = "proxie_cluster";

/// Tells all nodes that members or slots are not what they were.
pub async fn changed(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("with c as (update cluster set version = version + 1) select pg_notify($1, '')")
        .bind(CHANNEL)
        .execute(connection)
        .await
        .map(drop)
}

/// An orderly end: the next start need not wait.
pub async fn leave(pool: &PgPool, incarnation: i64) -> Result<(), sqlx::Error> {
    let mut tx = pool.begin().await?;
    sqlx::query("update lanes set live = false where incarnation = $1")
        .bind(incarnation)
        .execute(&mut *tx)
        .await?;
    sqlx::query("update nodes set state = 'dead', ended_at = now() where incarnation = $1")
        .bind(incarnation)
        .execute(&mut *tx)
        .await?;
    sqlx::query("update slots set incarnation = null where incarnation = $1")
        .bind(incarnation)
        .execute(&mut *tx)
        .await?;
    changed(&mut tx).await?;
    tx.commit().await
}

#[derive(Debug, serde::Serialize)]
pub struct NodeRow {
    pub id: String,
    pub incarnation: i64,
    pub address: String,
    pub version: String,
    pub state: String,
    pub lease_left_ms: i64,
    pub slots: i64,
    pub entities: i64,
    pub connections: i64,
}

pub async fn nodes(pool: &PgPool) -> Result<Vec<NodeRow>, sqlx::Error> {
    let rows = sqlx::query(
        "select n.name, n.incarnation, n.address, n.version, n.state,
                (extract(epoch from l.lease_until - now()) * 1000)::bigint,
                (select count(*) from slots s where s.incarnation = n.incarnation),
                coalesce((n.live ->> 'entities')::bigint, 0), coalesce((n.live ->> 'connections')::bigint, 0)
         from nodes n join leases l using (incarnation) where n.state <> 'dead' order by n.incarnation",
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .iter()
        .map(|row| NodeRow {
            id: row.get(0),
            incarnation: row.get(1),
            address: row.get(2),
            version: row.get(3),
            state: row.get(4),
            lease_left_ms: row.get(5),
            slots: row.get(6),
            entities: row.get(7),
            connections: row.get(8),
        })
        .collect())
}
