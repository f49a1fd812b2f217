//! The runtime of a node without its edges: store, lease, writers, entities, services, and its part in the cluster.
//! Tests and benchmarks start it with kinds of their own.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use sqlx::postgres::PgPool;
use tokio::sync::{Notify, mpsc::UnboundedReceiver, oneshot, watch};
use tokio::task::JoinHandle;

use crate::actors::registry::Registry;
use crate::actors::runs::Runners;
use crate::actors::{AnyRunner, Options, ParkNotice, Runtime, Witness, services};
use crate::app::member::{self, ClusterStatus, Membership};
use crate::app::renewal::Renewal;
use crate::cluster::lease::boottime_ms;
use crate::cluster::skew::{self, Skew};
use crate::cluster::{Entities, Lease, Presence, Router, Slots, Topics};
use crate::contract::System;
use crate::kernel::clock::Clock;
use crate::persistence::loader::Loader;
use crate::persistence::members::{self, Beat};
use crate::persistence::membership::{self, NodeInfo};
use crate::persistence::outbox::Begins;
use crate::persistence::store::{self, Identity, StoreError};
use crate::persistence::sweep::{self, RowRetention};
use crate::persistence::vault::{self, Vault};
use crate::persistence::writer::{self, Lanes};

pub struct CoreSettings {
    pub node: NodeInfo,
    /// Whose tables the store has.
    pub systems: &'static [&'static System],
    /// The caller holds the lock of the data directory the database lives in.
    pub data_lock_held: bool,
    pub read_ttl: Duration,
    pub clock: Clock,
    pub clock_limits: skew::SkewLimits,
    pub writer: writer::Options,
    pub entities: Options,
    pub runners: Vec<AnyRunner>,
    pub vault: vault::Options,
    pub dedupe_s: i64,
    pub history_s: i64,
    pub witness: Option<Arc<dyn Witness>>,
    /// Is told what the start waits for.
    pub waits: Arc<dyn Fn(String) + Send + Sync>,
    /// `None`: one node, which owns every slot.
    pub cluster: Option<member::Options>,
}

/// A node that is registered in the store, and whose kinds are being registered.
pub struct Prepared {
    pub registry: Registry,
    notices: UnboundedReceiver<ParkNotice>,
    runtime: Arc<Runtime>,
    pool: PgPool,
    identity: Arc<Identity>,
    settings_rest: Rest,
}

struct Rest {
    name: String,
    lease_s: f64,
    read_ttl: Duration,
    kept: RowRetention,
    cluster: Option<member::Options>,
}

/// Why a node cannot go on and its process should end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Living,
    /// A successor has taken over.
    Evicted,
    /// The database is not the one it was: another server, or another timeline. What it is, for people.
    StoreReplaced(String),
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
    pub identity: Arc<Identity>,
    /// Open client connections: the gateway sets it, the lease renewal reports it.
    pub connections: Arc<AtomicUsize>,
    fate: watch::Receiver<Fate>,
    standing: watch::Receiver<ClusterStatus>,
    leaving: Arc<watch::Sender<bool>>,
    renewing: Option<oneshot::Sender<()>>,
    tasks: Vec<JoinHandle<()>>,
}

/// Brings the tables of the runtime and of these systems up to date.
pub async fn migrate(pool: &PgPool, systems: &[&System]) -> Result<(), StoreError> {
    let migrations: Vec<_> = systems.iter().flat_map(|one| one.migrations).copied().collect();
    let tables: Vec<_> = systems.iter().flat_map(|one| one.views).map(|table| table()).collect();
    store::migrate(pool, &migrations, &tables).await
}

/// Migrates, identifies the store, registers a new incarnation and starts its writers.
pub async fn prepare(pool: PgPool, settings: CoreSettings) -> anyhow::Result<Prepared> {
    migrate(&pool, settings.systems).await?;
    let vault = Vault::start(pool.clone(), settings.vault).await?;
    let skew = Skew::new(settings.clock_limits);
    check_clock(&pool, &settings.clock, &skew).await?;
    let identity = store::identify(&pool, &format!("ep{:x}", rand::random::<u64>())).await?;
    let lease_s = settings.node.lease_s;
    let sent = boottime_ms();
    let node = &settings.node;
    let slots = match &settings.cluster {
        None => {
            let (held, ttl) = (settings.data_lock_held, settings.read_ttl);
            let all = membership::register(&pool, node, held, ttl, &*settings.waits).await?;
            Slots::all_mine(all.incarnation, all.epoch)
        }
        Some(cluster) => {
            let (address, weight) = (&cluster.advertise, cluster.weight);
            let joined = members::join(&pool, node, address, weight, &*settings.waits).await?;
            Slots::unknown(joined)
        }
    };
    let lease = Lease::new(slots.me(), settings.read_ttl.as_millis() as i64);
    lease.renewed(sent);
    let topics = Topics::default();
    let late = topics.clone();
    let late = Arc::new(move |kind: &'static str, key: &str| late.missed(kind, key));
    let clock = settings.clock.clone();
    let runners = Runners::new(Begins::new(pool.clone()), settings.runners, settings.clock.now());
    let lanes = Lanes::start(pool.clone(), slots.me(), clock, settings.writer, late).await?;
    let runtime = Arc::new(Runtime {
        loader: Loader::start(pool.clone(), 2, lanes.away()),
        lanes,
        lease,
        slots,
        clock: settings.clock,
        skew,
        topics,
        vault,
        runners,
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
        identity: Arc::new(identity),
        settings_rest: Rest {
            name: settings.node.name,
            lease_s,
            read_ttl: settings.read_ttl,
            kept: RowRetention { dedupe_s: settings.dedupe_s, publications_s: settings.history_s },
            cluster: settings.cluster,
        },
    })
}

impl Prepared {
    /// Opens the door to the entities, to other nodes, and starts the services.
    pub async fn run(self) -> anyhow::Result<Core> {
        let Self { registry, notices, runtime, pool, identity, settings_rest: rest } = self;
        let registry = Arc::new(registry);
        let kinds: Vec<&str> = registry.kinds().map(|(kind, _)| kind).collect();
        members::knows(&pool, runtime.slots.me(), &kinds).await?;
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
            Some(_) => ClusterStatus::joining(),
            None => ClusterStatus::alone(runtime.lease.incarnation()),
        });
        let mut tasks = vec![
            tokio::spawn(presence.clone().run()),
            tokio::spawn(services::fire_timers(pool.clone(), runtime.clone(), registry.clone())),
            tokio::spawn(services::wake_owing(pool.clone(), runtime.clone(), registry.clone())),
            tokio::spawn(services::passivate(runtime.clone(), registry.clone())),
            tokio::spawn(services::sync_parked(pool.clone(), registry.clone(), notices)),
            tokio::spawn(sweep(pool.clone(), runtime.clone(), rest.kept)),
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
    pub fn standing(&self) -> watch::Receiver<ClusterStatus> {
        self.standing.clone()
    }

    /// Gives every slot to other nodes, as far as there are any, and waits until that is done or `limit` has passed.
    /// Commands are answered meanwhile, here or there.
    pub async fn hand_over(&self, limit: Duration) {
        self.leaving.send_replace(true);
        let mut standing = self.standing.clone();
        let done = standing.wait_for(|standing| !standing.owes_slots);
        let hopeless = async {
            // Nothing is handed over behind its back.
            let mut away = self.lanes.away();
            loop {
                let _ = away.wait_for(|away| *away).await;
                let back = tokio::time::timeout(AWAY_PATIENCE, away.wait_for(|away| !*away)).await;
                if back.is_err() {
                    return;
                }
            }
        };
        let moved = async {
            tokio::select! {
                _ = done => true,
                () = hopeless => false,
                () = tokio::time::sleep(limit) => false,
            }
        };
        if !moved.await {
            tracing::warn!(
                "not every slot was handed over in time; others take them when this node has left"
            );
        }
    }

    pub async fn stop(self) {
        self.stop_within(Duration::from_secs(15)).await;
    }

    /// Writes what is waiting, releases the slots, and lets the next start begin at once. A store that says nothing holds
    /// it up for `limit` at most.
    pub async fn stop_within(mut self, limit: Duration) {
        let end = Instant::now() + limit;
        let within = |limit: Duration| limit.min(end.saturating_duration_since(Instant::now()));
        let away = *self.lanes.away().borrow();
        let patience = if away { AWAY_PATIENCE } else { limit.mul_f64(0.6) };
        if tokio::time::timeout(within(patience), self.lanes.stop()).await.is_err() {
            tracing::warn!(
                "the writers did not finish in time; what they had not acknowledged is not promised"
            );
        }
        drop(self.renewing.take());
        for task in &self.tasks {
            task.abort();
        }
        if *self.fate.borrow() == Fate::Living {
            let leaving = membership::leave(&self.pool, self.lease.incarnation());
            let error = match tokio::time::timeout(within(AWAY_PATIENCE), leaving).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("the store says nothing".into()),
            };
            if let Some(error) = error {
                tracing::warn!(
                    error,
                    "the lease could not be given back; the next start may wait for it"
                );
            }
        }
        // Connections that hang are cut when the process ends.
        let _ = tokio::time::timeout(within(AWAY_PATIENCE), self.pool.close()).await;
    }
}

/// What a stop gives a store that is away.
const AWAY_PATIENCE: Duration = Duration::from_secs(2);

/// A node whose clock is far from the database's would let live things expire, and keep dead ones.
async fn check_clock(pool: &PgPool, clock: &Clock, skew: &Skew) -> anyhow::Result<()> {
    let before = clock.now();
    let theirs = store::now(pool).await.context("the database's clock cannot be read")?;
    let ms = skew.compare(before, theirs, clock.now());
    anyhow::ensure!(
        !skew.is_too_much(),
        "this machine's clock is {} the database's, and node.clock_limit_ms allows {} ms: set both right (NTP), then start again",
        skew::words(ms),
        skew.limits().limit_ms
    );
    Ok(())
}

/// Deletes what is too old, each minute, on the node that owns the first slot: one of all. By the database's time: it
/// dated what is swept, and so did nodes with other clocks.
async fn sweep(pool: PgPool, runtime: Arc<Runtime>, kept: RowRetention) {
    let mut tick = tokio::time::interval(Duration::from_secs(60));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if runtime.slots.owned(0).owner != Some(runtime.slots.me()) || runtime.skew.is_too_much() {
            continue;
        }
        let now = match &runtime.clock {
            Clock::System => None,
            moved @ Clock::Manual(_) => Some(moved.now()),
        };
        // A failure is in the log and counted by `within`; the next minute tries again.
        if sweep::sweep(&pool, now, kept).await.is_ok() {
            metrics::gauge!("proxie_last_sweep_timestamp_seconds")
                .set(Clock::System.now().as_second() as f64);
        }
    }
}
