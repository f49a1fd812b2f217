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
    /// The scope in which `pid` is meaningful: boot id, host name, pid namespace.
    pub host: String,
    pub pid: i32,
    /// See [`process_start`]; 0 if it is unknown.
    pub process_start: i64,
    pub lease_s: f64,
    pub lanes: u16,
    /// Whether the node reads sealed values and agrees that they are written.
    pub seals: bool,
}

/// A callback that learns what a start waits for.
pub type Waits<'a> = &'a (dyn Fn(String) + Send + Sync);

#[derive(Clone, Copy, Debug)]
pub struct Registration {
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
    #[error(
        "this cluster has a living node {name} already (incarnation {incarnation}, at {address}): give this one a node.name of its own, or stop that one (`proxie cluster drain {name}`)"
    )]
    NameTaken { name: String, incarnation: i64, address: String },
    #[error(
        "a node without a cluster ({name}, pid {pid}) is live on this database: stop it first, then start the cluster"
    )]
    Single { name: String, pid: i32 },
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
}

/// Another node that is not declared dead.
pub(super) struct Other {
    pub incarnation: i64,
    pub name: String,
    host: String,
    pub pid: i32,
    process_start: i64,
    pub peer_address: String,
    /// Seconds left of its lease, by the database's clock.
    pub lease_left_s: f64,
    pub lease_until_us: i64,
}

impl Other {
    /// Whether its process provably no longer exists. Only a process on the same host, in the same boot and pid
    /// namespace, can tell.
    pub fn is_gone(&self, node: &NodeInfo) -> bool {
        self.host == node.host && !process_exists(self.pid, self.process_start)
    }

    /// Reports that a start waits for its lease to run out.
    pub fn wait(&self, waits: Waits<'_>, said: &mut bool) {
        let Self { incarnation, name, pid, lease_left_s, .. } = self;
        let at = match self.peer_address.as_str() {
            "" => String::new(),
            address => format!(", at {address}"),
        };
        let what = format!(
            "the lease of {name} (incarnation {incarnation}{at}, pid {pid}), which runs out in {lease_left_s:.1} s unless that node lives"
        );
        if !std::mem::replace(said, true) {
            tracing::warn!("waiting for {what}");
        }
        waits(what);
    }
}

/// Registers a new incarnation and claims every slot. An older node that is provably gone is fenced at once; otherwise
/// its lease is waited for, and a node that renews it meanwhile is live and wins. `data_lock_held` says that the caller
/// holds the lock of the data directory that the database lives in, so no other process can be using it.
pub async fn register(
    pool: &PgPool,
    node: &NodeInfo,
    data_lock_held: bool,
    read_ttl: Duration,
    waits: Waits<'_>,
) -> Result<Registration, RegisterError> {
    let started = Instant::now();
    let mut waited_for: Option<(i64, i64)> = None;
    let mut fenced_a_silent_one = false;
    let mut said = false;
    loop {
        let others = others(pool).await?;
        let mut wait: Option<&Other> = None;
        for other in &others {
            let gone = data_lock_held || other.is_gone(node);
            if !gone && other.lease_left_s > 0.0 {
                wait = Some(other);
            }
            fenced_a_silent_one |= !gone;
        }
        let Some(other) = wait else { break };
        // A lease that now ends later was renewed.
        if waited_for.is_some_and(|(incarnation, until)| {
            incarnation == other.incarnation && other.lease_until_us > until
        }) {
            return Err(RegisterError::AnotherIsLive { name: other.name.clone(), pid: other.pid });
        }
        other.wait(waits, &mut said);
        if started.elapsed().as_secs_f64() > 3.0 * node.lease_s {
            return Err(RegisterError::AnotherIsLive { name: other.name.clone(), pid: other.pid });
        }
        waited_for = Some((other.incarnation, other.lease_until_us));
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
    // The linearisation point of the takeover: after it no batch of an older incarnation can commit. It waits for a
    // batch that is being written.
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
        // The old node may still trust its lease, and answer reads, for `read_ttl` after its last renewal.
        tokio::time::sleep(read_ttl + Duration::from_millis(100)).await;
    }
    Ok(Registration { incarnation, epoch })
}

/// Registers a new incarnation with its lease and its lanes.
pub async fn enrol(
    connection: &mut PgConnection,
    node: &NodeInfo,
    peer_address: &str,
    weight: u32,
    state: &str,
) -> Result<i64, sqlx::Error> {
    let incarnation: i64 = sqlx::query_scalar(
        "insert into nodes (incarnation, name, address, peer_address, weight, version, state, host, pid, process_start, seals)
         values (nextval('incarnations'), $1, $2, $3, $4, $5, $6, $7, $8, $9, $10) returning incarnation",
    )
    .bind(&node.name)
    .bind(&node.address)
    .bind(peer_address)
    .bind(weight as i32)
    .bind(&node.version)
    .bind(state)
    .bind(&node.host)
    .bind(node.pid)
    .bind(node.process_start)
    .bind(node.seals)
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

pub(super) async fn others(pool: &PgPool) -> Result<Vec<Other>, sqlx::Error> {
    let rows = sqlx::query(
        "select n.incarnation, n.name, n.host, n.pid, n.process_start, n.peer_address,
                extract(epoch from l.lease_until - now())::float8, micros(l.lease_until)
         from nodes n join leases l using (incarnation) where n.state <> 'dead' order by n.incarnation",
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
            process_start: row.get(4),
            peer_address: row.get(5),
            lease_left_s: row.get(6),
            lease_until_us: row.get(7),
        })
        .collect())
}

/// Whether a process with this pid and start time exists, even if we may not signal it. `started` 0 matches any start
/// time.
pub fn process_exists(pid: i32, started: i64) -> bool {
    use rustix::io::Errno;
    let Some(named) = rustix::process::Pid::from_raw(pid) else { return false };
    match rustix::process::test_kill_process(named) {
        Err(Errno::SRCH) => false,
        // It exists, perhaps as another user's. If its start cannot be read, it is taken to be the same process.
        _ => started == 0 || process_start(pid).is_none_or(|now| now == started),
    }
}

/// The start time of a process, in ticks since the host booted. No other process has the same pid and start time.
pub fn process_start(pid: i32) -> Option<i64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name, which may hold anything; the start is the 22nd.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// An id of this machine, boot and pid namespace. If a part cannot be read, the id is unique, so that pids are not
/// compared.
pub fn host_id() -> String {
    let read = |path: &str| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok().map(|p| p.display().to_string());
    let parts =
        [read("/proc/sys/kernel/random/boot_id"), read("/proc/sys/kernel/hostname"), namespace];
    let unique = || format!("unknown-{:016x}", rand::random::<u64>());
    parts.map(|part| part.filter(|part| !part.is_empty()).unwrap_or_else(unique)).join("/")
}

pub const CHANNEL: &str = "proxie_cluster";

/// Notifies all nodes that members or slots have changed.
pub async fn changed(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("with c as (update cluster set version = version + 1) select pg_notify($1, '')")
        .bind(CHANNEL)
        .execute(connection)
        .await
        .map(drop)
}

/// Ends this incarnation in an orderly way, so that the next start need not wait.
pub async fn leave(pool: &PgPool, incarnation: i64) -> Result<(), sqlx::Error> {
    let mut tx = pool.begin().await?;
    sqlx::query("update lanes set live = false where incarnation = $1")
        .bind(incarnation)
        .execute(&mut *tx)
        .await?;
    sqlx::query("update nodes set state = 'dead', drained = true, ended_at = now() where incarnation = $1 and state <> 'dead'")
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

/// The time, in seconds, for which a node that left in an orderly way is still listed.
const SHOWN_S: f64 = 600.0;

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

/// The live nodes, and the nodes that left in an orderly way recently and have no successor of the same name.
pub async fn nodes(pool: &PgPool) -> Result<Vec<NodeRow>, sqlx::Error> {
    let rows = sqlx::query(
        "select n.name, n.incarnation, n.address, n.version, case n.state when 'dead' then 'drained' else n.state end,
                (extract(epoch from l.lease_until - now()) * 1000)::bigint,
                (select count(*) from slots s where s.incarnation = n.incarnation),
                coalesce((n.live ->> 'entities')::bigint, 0), coalesce((n.live ->> 'connections')::bigint, 0)
         from nodes n join leases l using (incarnation)
         where n.state <> 'dead'
            or (n.drained and n.ended_at > now() - $1 * interval '1 second'
                and not exists (select from nodes m where m.name = n.name and m.incarnation > n.incarnation))
         order by n.incarnation",
    )
    .bind(SHOWN_S)
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
