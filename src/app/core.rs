//! The runtime of a node without its edges: store, lease, writers, entities, services. Tests and benchmarks start it
//! with kinds of their own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool};
use tokio::sync::{mpsc::UnboundedReceiver, oneshot, watch};
use tokio::task::JoinHandle;

use crate::actors::registry::{ParkNotice, Registry};
use crate::actors::{Options, Runner, Runtime, services};
use crate::cluster::lease::boottime_ms;
use crate::cluster::{Entities, Lease, Router, Slots, Topics};
use crate::kernel::clock::Clock;
use crate::persistence::loader::Loader;
use crate::persistence::membership::{self, NodeInfo};
use crate::persistence::store::{self, Identity};
use crate::persistence::writer::{self, Lanes};

pub struct Settings {
    pub node: NodeInfo,
    /// The caller holds the lock of the data directory the database lives in.
    pub data_lock_held: bool,
    pub read_ttl: Duration,
    pub clock: Clock,
    pub writer: writer::Options,
    pub entities: Options,
    pub runners: HashMap<&'static str, Arc<dyn Runner>>,
    pub dedupe_s: i64,
    pub history_s: i64,
}

/// A node that owns its slots and whose kinds are being registered.
pub struct Prepared {
    pub registry: Registry,
    notices: UnboundedReceiver<ParkNotice>,
    runtime: Arc<Runtime>,
    pool: PgPool,
    identity: Identity,
    settings_rest: Rest,
}

struct Rest {
    lease_s: f64,
    dedupe_s: i64,
    history_s: i64,
}

/// Why a node cannot go on and its process should end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Living,
    /// A successor has taken over.
    Evicted,
    /// The database is not the one it was: another server, or another timeline.
    StoreReplaced,
}

pub struct Core {
    pub pool: PgPool,
    pub runtime: Arc<Runtime>,
    pub registry: Arc<Registry>,
    pub entities: Entities,
    pub topics: Topics,
    pub lease: Lease,
    pub lanes: Lanes,
    pub identity: Identity,
    /// Open client connections: the gateway sets it, the lease renewal reports it.
    pub connections: Arc<AtomicUsize>,
    fate: watch::Receiver<Fate>,
    renewing: Option<oneshot::Sender<()>>,
    tasks: Vec<JoinHandle<()>>,
}

/// Migrates, identifies the store, registers a new incarnation and starts its writers.
pub async fn prepare(pool: PgPool, settings: Settings) -> anyhow::Result<Prepared> {
    store::migrate(&pool).await?;
    let identity = store::identify(&pool, &format!("ep{:x}", rand::random::<u64>())).await?;
    let lease_s = settings.node.lease_s;
    let sent = boottime_ms();
    let registered =
        membership::register(&pool, &settings.node, settings.data_lock_held, settings.read_ttl)
            .await?;
    let lease = Lease::new(registered.incarnation, settings.read_ttl.as_millis() as i64);
    let slots = Slots::all_mine(registered.incarnation, registered.epoch);
    lease.renewed(sent);
    let lanes =
        Lanes::start(pool.clone(), registered.incarnation, settings.clock.clone(), settings.writer)
            .await?;
    let runtime = Arc::new(Runtime {
        loader: Loader::start(pool.clone(), 2),
        lanes,
        lease,
        slots,
        clock: settings.clock,
        topics: Topics::default(),
        runners: settings.runners,
        options: settings.entities,
        entities: OnceLock::new(),
    });
    let (registry, notices) = Registry::new(runtime.clone());
    Ok(Prepared {
        registry,
        notices,
        runtime,
        pool,
        identity,
        settings_rest: Rest { lease_s, dedupe_s: settings.dedupe_s, history_s: settings.history_s },
    })
}

impl Prepared {
    /// Opens the door to the entities and starts the services.
    pub fn run(self) -> anyhow::Result<Core> {
        let Self { registry, notices, runtime, pool, identity, settings_rest: rest } = self;
        let registry = Arc::new(registry);
        let router = Router::new(registry.clone(), runtime.slots.clone());
        let entities = Entities::new(router);
        let _ = runtime.entities.set(entities.clone());
        let (fate, watched) = watch::channel(Fate::Living);
        let connections = Arc::new(AtomicUsize::new(0));
        let renewal = Renewal {
            options: pool.connect_options().as_ref().clone(),
            runtime: runtime.clone(),
            registry: registry.clone(),
            identity: identity.clone(),
            lease_s: rest.lease_s,
            connections: connections.clone(),
            fate,
        };
        let renewing = renewal.start()?;
        let tasks = vec![
            tokio::spawn(services::fire_timers(pool.clone(), runtime.clone(), registry.clone())),
            tokio::spawn(services::wake_owing(pool.clone(), runtime.clone(), registry.clone())),
            tokio::spawn(services::passivate(runtime.clone(), registry.clone())),
            tokio::spawn(services::sync_parked(pool.clone(), registry.clone(), notices)),
            tokio::spawn(sweep(pool.clone(), runtime.clock.clone(), rest.dedupe_s, rest.history_s)),
        ];
        Ok(Core {
            pool,
            entities,
            topics: runtime.topics.clone(),
            lease: runtime.lease.clone(),
            lanes: runtime.lanes.clone(),
            runtime,
            registry,
            identity,
            connections,
            fate: watched,
            renewing: Some(renewing),
            tasks,
        })
    }
}

impl Core {
    pub fn fate(&self) -> watch::Receiver<Fate> {
        self.fate.clone()
    }

    /// The store takes commits and the lease is proven: commands will be answered.
    pub fn is_ready(&self) -> bool {
        self.lanes.all_up() && self.lease.is_fresh()
    }

    /// Writes what is waiting, releases the slots, and lets the next start begin at once.
    pub async fn stop(mut self) {
        let flushed = tokio::time::timeout(Duration::from_secs(10), self.lanes.stop()).await;
        if flushed.is_err() {
            tracing::warn!(
                "the writers did not finish in time; what they had not acknowledged is not promised"
            );
        }
        drop(self.renewing.take());
        for task in &self.tasks {
            task.abort();
        }
        if *self.fate.borrow() == Fate::Living
            && let Err(error) = membership::leave(&self.pool, self.lease.incarnation()).await
        {
            tracing::warn!(%error, "the lease could not be given back; the next start may wait for it");
        }
        self.pool.close().await;
    }
}

/// Renews the lease on a thread and a connection of its own: a node whose workers or pool are busy is no dead node.
struct Renewal {
    options: PgConnectOptions,
    runtime: Arc<Runtime>,
    registry: Arc<Registry>,
    identity: Identity,
    lease_s: f64,
    connections: Arc<AtomicUsize>,
    fate: watch::Sender<Fate>,
}

impl Renewal {
    /// Ends when the returned sender is dropped.
    fn start(self) -> anyhow::Result<oneshot::Sender<()>> {
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("lease".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! { () = self.run() => {}, _ = stopped => {} }
            });
        })?;
        Ok(stop)
    }

    /// Every third of `read_ttl`, so that one lost renewal does not silence the node.
    async fn run(self) {
        let mut fenced = self.runtime.lanes.fenced();
        let mut tick = tokio::time::interval(Duration::from_millis(300));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut connection = None;
        let mut was_down = false;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                _ = fenced.wait_for(|fenced| *fenced) => {
                    let _ = self.fate.send(Fate::Evicted);
                    return;
                }
            }
            let sent = boottime_ms();
            let renewal = self.renew(&mut connection, was_down);
            match tokio::time::timeout(Duration::from_secs(2), renewal).await {
                Ok(Ok(Fate::Living)) => {
                    was_down = false;
                    self.runtime.lease.renewed(sent);
                }
                Ok(Ok(fate)) => {
                    let _ = self.fate.send(fate);
                    return;
                }
                Ok(Err(error)) => {
                    if !was_down {
                        tracing::warn!(%error, "the lease could not be renewed");
                    }
                    (was_down, connection) = (true, None);
                }
                Err(_) => (was_down, connection) = (true, None),
            }
        }
    }

    async fn renew(
        &self,
        connection: &mut Option<PgConnection>,
        was_down: bool,
    ) -> Result<Fate, sqlx::Error> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(PgConnection::connect_with(&self.options).await?),
        };
        let live = serde_json::json!({
            "entities": self.registry.live(),
            "connections": self.connections.load(Ordering::Relaxed),
        });
        let incarnation = self.runtime.lease.incarnation();
        if !membership::renew(connection, incarnation, self.lease_s, &live).await? {
            return Ok(Fate::Evicted);
        }
        if was_down {
            let (system_id, timeline) = store::probe(connection).await?;
            if system_id != self.identity.system_id || timeline != self.identity.timeline {
                return Ok(Fate::StoreReplaced);
            }
        }
        Ok(Fate::Living)
    }
}

async fn sweep(pool: PgPool, clock: Clock, dedupe_s: i64, history_s: i64) {
    let mut tick = tokio::time::interval(Duration::from_secs(60));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        // Until there is nothing left for now, in bounded steps.
        while matches!(store::sweep(&pool, clock.now(), dedupe_s, history_s).await, Ok(n) if n >= 5_000)
        {
        }
    }
}
