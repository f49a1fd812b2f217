//! The runtime of a node without its edges: store, lease, writers, entities, services, and its part in the cluster.
//! Tests and benchmarks start it with kinds of their own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool};
use tokio::sync::{Notify, mpsc::UnboundedReceiver, oneshot, watch};
use tokio::task::JoinHandle;

use crate::actors::registry::{ParkNotice, Registry};
use crate::actors::runs::Runners;
use crate::actors::{Options, Runner, Runtime, Witness, services};
use crate::app::member::{self, Membership, Standing};
use crate::cluster::lease::boottime_ms;
use crate::cluster::{Entities, Lease, Presence, Router, Slots, Topics};
use crate::kernel::clock::Clock;
use crate::persistence::loader::Loader;
use crate::persistence::members::{self, Beat};
use crate::persistence::membership::{self, NodeInfo};
use crate::persistence::outbox::Begins;
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
    pub witness: Option<Arc<dyn Witness>>,
    /// `None`: one node, which owns every slot.
    pub cluster: Option<member::Options>,
}

/// A node that is registered in the store, and whose kinds are being registered.
pub struct Prepared {
    pub registry: Registry,
    notices: UnboundedReceiver<ParkNotice>,
    runtime: Arc<Runtime>,
    pool: PgPool,
    identity: Identity,
    settings_rest: Rest,
}

struct Rest {
    name: String,
    lease_s: f64,
    read_ttl: Duration,
    dedupe_s: i64,
    history_s: i64,
    cluster: Option<member::Options>,
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
    pub presence: Arc<Presence>,
    pub lease: Lease,
    pub lanes: Lanes,
    pub identity: Identity,
    /// Open client connections: the gateway sets it, the lease renewal reports it.
    pub connections: Arc<AtomicUsize>,
    fate: watch::Receiver<Fate>,
    standing: watch::Receiver<Standing>,
    leaving: Arc<watch::Sender<bool>>,
    renewing: Option<oneshot::Sender<()>>,
    tasks: Vec<JoinHandle<()>>,
}

/// Migrates, identifies the store, registers a new incarnation and starts its writers.
pub async fn prepare(pool: PgPool, settings: Settings) -> anyhow::Result<Prepared> {
    store::migrate(&pool).await?;
    let identity = store::identify(&pool, &format!("ep{:x}", rand::random::<u64>())).await?;
    let lease_s = settings.node.lease_s;
    let sent = boottime_ms();
    let node = &settings.node;
    let slots = match &settings.cluster {
        None => {
            let all = membership::register(&pool, node, settings.data_lock_held, settings.read_ttl);
            let all = all.await?;
            Slots::all_mine(all.incarnation, all.epoch)
        }
        Some(cluster) => {
            let joined = members::join(&pool, node, &cluster.advertise, cluster.weight).await?;
            Slots::unknown(joined)
        }
    };
    let lease = Lease::new(slots.me(), settings.read_ttl.as_millis() as i64);
    lease.renewed(sent);
    let topics = Topics::default();
    let late = topics.clone();
    let late = Arc::new(move |kind: &'static str, key: &str| late.missed(kind, key));
    let clock = settings.clock.clone();
    let lanes = Lanes::start(pool.clone(), slots.me(), clock, settings.writer, late).await?;
    let runtime = Arc::new(Runtime {
        loader: Loader::start(pool.clone(), 2),
        lanes,
        lease,
        slots,
        clock: settings.clock,
        topics,
        runners: Runners::new(Begins::new(pool.clone()), settings.runners),
        options: settings.entities,
        witness: settings.witness,
        entities: OnceLock::new(),
    });
    let (registry, notices) = Registry::new(runtime.clone());
    Ok(Prepared {
        registry,
        notices,
        runtime,
        pool,
        identity,
        settings_rest: Rest {
            name: settings.node.name,
            lease_s,
            read_ttl: settings.read_ttl,
            dedupe_s: settings.dedupe_s,
            history_s: settings.history_s,
            cluster: settings.cluster,
        },
    })
}

impl Prepared {
    /// Opens the door to the entities, to other nodes, and starts the services.
    pub async fn run(self) -> anyhow::Result<Core> {
        let Self { registry, notices, runtime, pool, identity, settings_rest: rest } = self;
        let registry = Arc::new(registry);
        // Before anything can start.
        services::load_parked(&pool, &registry).await?;
        let router = Router::new(registry.clone(), runtime.slots.clone());
        let entities = Entities::new(router.clone());
        let _ = runtime.entities.set(entities.downgrade());
        let (fate, watched) = watch::channel(Fate::Living);
        let connections = Arc::new(AtomicUsize::new(0));
        let (beats, heard_beats) = watch::channel(Beat::default());
        let beat_now = Arc::new(Notify::new());
        let renewal = Renewal {
            options: pool.connect_options().as_ref().clone(),
            runtime: runtime.clone(),
            registry: registry.clone(),
            identity: identity.clone(),
            lease_s: rest.lease_s,
            connections: connections.clone(),
            fate,
            beats,
            now: beat_now.clone(),
        };
        let renewing = renewal.start()?;
        let slots = runtime.slots.clone();
        let presence = Presence::new(router.clone(), slots, runtime.topics.clone());
        let leaving = Arc::new(watch::Sender::new(false));
        let (standing, stands) = watch::channel(match rest.cluster {
            Some(_) => Standing::joining(),
            None => Standing::alone(runtime.lease.incarnation()),
        });
        let mut tasks = vec![
            tokio::spawn(presence.clone().run()),
            tokio::spawn(services::fire_timers(pool.clone(), runtime.clone(), registry.clone())),
            tokio::spawn(services::wake_owing(pool.clone(), runtime.clone(), registry.clone())),
            tokio::spawn(services::passivate(runtime.clone(), registry.clone())),
            tokio::spawn(services::sync_parked(pool.clone(), registry.clone(), notices)),
            tokio::spawn(sweep(pool.clone(), runtime.clock.clone(), rest.dedupe_s, rest.history_s)),
        ];
        if let Some(options) = rest.cluster {
            let membership = Membership {
                pool: pool.clone(),
                runtime: runtime.clone(),
                registry: registry.clone(),
                router,
                presence: presence.clone(),
                read_ttl: rest.read_ttl,
                beats: heard_beats,
                beat_now,
                leaving: leaving.subscribe(),
                standing,
            };
            tasks.extend(membership.start(rest.name, options).await?);
        }
        Ok(Core {
            pool,
            entities,
            topics: runtime.topics.clone(),
            presence,
            lease: runtime.lease.clone(),
            lanes: runtime.lanes.clone(),
            runtime,
            registry,
            identity,
            connections,
            fate: watched,
            standing: stands,
            leaving,
            renewing: Some(renewing),
            tasks,
        })
    }
}

impl Core {
    pub fn fate(&self) -> watch::Receiver<Fate> {
        self.fate.clone()
    }

    /// Commands will be answered: the store takes commits, the lease is proven, and this node takes part.
    pub fn is_ready(&self) -> bool {
        self.lanes.all_up() && self.lease.is_fresh() && self.standing.borrow().active
    }

    /// What part this node takes in its cluster.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Gives every slot to other nodes, as far as there are any, and waits until that is done or `limit` has passed.
    /// Commands are answered meanwhile, here or there.
    pub async fn hand_over(&self, limit: Duration) {
        self.leaving.send_replace(true);
        let mut standing = self.standing.clone();
        let done = standing.wait_for(|standing| !standing.owes_slots);
        if tokio::time::timeout(limit, done).await.is_err() {
            tracing::warn!(
                "not every slot was handed over in time; others take them when this node has left"
            );
        }
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
    beats: watch::Sender<Beat>,
    /// Members have changed: somebody wants to know at once.
    now: Arc<Notify>,
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
                () = self.now.notified() => {}
                _ = fenced.wait_for(|fenced| *fenced) => {
                    let _ = self.fate.send(Fate::Evicted);
                    return;
                }
            }
            let sent = boottime_ms();
            let renewal = self.renew(&mut connection, was_down);
            match tokio::time::timeout(Duration::from_secs(2), renewal).await {
                Ok(Ok(Ok(beat))) => {
                    was_down = false;
                    self.runtime.lease.renewed(sent);
                    self.beats.send_replace(beat);
                }
                Ok(Ok(Err(fate))) => {
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
    ) -> Result<Result<Beat, Fate>, sqlx::Error> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(PgConnection::connect_with(&self.options).await?),
        };
        let live = serde_json::json!({
            "entities": self.registry.live(),
            "connections": self.connections.load(Ordering::Relaxed),
        });
        let incarnation = self.runtime.lease.incarnation();
        let beat = members::beat(connection, incarnation, self.lease_s, &live).await?;
        let Some(beat) = beat else { return Ok(Err(Fate::Evicted)) };
        if was_down {
            let (system_id, timeline) = store::probe(connection).await?;
            if system_id != self.identity.system_id || timeline != self.identity.timeline {
                return Ok(Err(Fate::StoreReplaced));
            }
        }
        Ok(Ok(beat))
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
