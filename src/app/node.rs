//! A whole node: store, core, gateway, listener; started and drained in this order and its reverse.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use sqlx::postgres::{PgConnectOptions, PgPool};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::actors::Options;
use crate::app::core::{self, Core, CoreSettings, Fate};
use crate::app::settings;
use crate::cluster::skew;
use crate::config::Config;
use crate::contract::System;
use crate::contract::runner::{LateServices, RunnerParts};
use crate::gateway::auth::{Auth, fresh_key};
use crate::gateway::door::Door;
use crate::gateway::{self, Details, Gateway, Parts, Readiness, accept};
use crate::kernel::clock::Clock;
use crate::persistence::commit::PublicationRetention;
use crate::persistence::embedded::{self, DataLock, Embedded};
use crate::persistence::limits::Nodes;
use crate::persistence::membership::{NodeInfo, host_id, process_start};
use crate::persistence::patience::{self, PATIENCE};
use crate::persistence::publications::Histories;
use crate::persistence::views::Views;
use crate::persistence::{keys, store, writer};
use crate::systems;
use crate::systems::agents::definitions::Agents;
use crate::telemetry;

pub struct Node {
    pub address: SocketAddr,
    /// Where `/metrics` is, where operators have a listener of their own.
    pub operators: Option<SocketAddr>,
    pub core: Core,
    gateway: Arc<Gateway>,
    reads: PgPool,
    door: Door,
    embedded: Option<Embedded>,
    _serving: Vec<Serving>,
    /// The epoch of a store does not change while a node lives: a replaced store ends it.
    _epoch: watch::Sender<Arc<str>>,
    tasks: Vec<JoinHandle<()>>,
    limits: StopLimits,
}

/// Accepts connections until it is dropped.
struct Serving(JoinHandle<()>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What each step of a stop may take, and all of them together.
struct StopLimits {
    all: Duration,
    grace: Duration,
    hand_over: Duration,
    drain: Duration,
}

impl StopLimits {
    fn of(config: &Config) -> Self {
        Self {
            all: Duration::from_secs(config.node.stop_s),
            grace: config.drain_grace(),
            hand_over: Duration::from_secs(config.cluster.hand_over_s),
            drain: Duration::from_millis(config.gateway.drain_ms + 500),
        }
    }
}

/// What is kept for the steps after moving slots and sending clients away: answering what was asked, writing what waits,
/// leaving the members, stopping the server.
const LAST_STEPS: Duration = Duration::from_secs(10);

/// Why a node ends by itself.
#[derive(Debug)]
pub enum ExitReason {
    /// Other nodes have declared it dead. It may come back as a new incarnation.
    Evicted,
    Other(String),
}

/// Where the database is: the user's, or the embedded one, which this starts.
pub async fn open_store(config: &Config) -> anyhow::Result<(PgConnectOptions, Option<Embedded>)> {
    if !config.embedded() {
        return Ok((settings::database(config)?, None));
    }
    let lock = DataLock::acquire(&config.node.data_dir)?;
    let installed = &config.persistence.postgres_bin_dir;
    let options = embedded::Options {
        installed: (!installed.as_os_str().is_empty()).then(|| installed.clone()),
        shared_buffers: config.persistence.shared_buffers.clone(),
        max_connections: config.persistence.max_connections
            + config.persistence.read_connections
            + 16,
        ..embedded::Options::new(&config.node.data_dir)
    };
    let server = Embedded::start(options, lock).await?;
    Ok((server.connect_options(), Some(server)))
}

impl Node {
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        Self::start_with(config, Clock::System).await
    }

    /// With the time of this clock, which tests move by hand.
    pub async fn start_with(config: &Config, clock: Clock) -> anyhow::Result<Self> {
        Self::start_systems(config, clock, systems::ALL).await
    }

    /// With these systems, which tests make up.
    pub async fn start_systems(
        config: &Config,
        clock: Clock,
        systems: &'static [&'static System],
    ) -> anyhow::Result<Self> {
        // The port first: it is the likeliest thing to be taken, and costs nothing to find out.
        let listener = accept::listen(&config.gateway.listen).await.with_context(|| {
            format!(
                "cannot listen on {}: set PROXIE__GATEWAY__LISTEN to a free address",
                config.gateway.listen
            )
        })?;
        let address = listener.local_addr()?;
        let operators = match config.gateway.admin_listen.as_str() {
            "" => None,
            admin => Some(accept::listen(admin).await.with_context(|| {
                format!(
                    "cannot listen on {admin}: set PROXIE__GATEWAY__ADMIN_LISTEN to a free address"
                )
            })?),
        };
        let operators_address = operators.as_ref().map(|listener| listener.local_addr());
        let operators_address = operators_address.transpose()?;
        let options = settings::gateway(config)?;
        // From here on somebody answers, if only what is being waited for.
        let door = Door::new(&config.node.name, telemetry::metrics(), clock.clone());
        let proxies = options.trusted_proxies.clone();
        let accepting = accept::serve(listener, door.clone(), options.accept, proxies);
        let mut serving = vec![Serving(tokio::spawn(accepting))];
        let operators_door = operators.map(|listener| {
            let door = door.beside();
            let accepting = accept::serve(listener, door.clone(), options.accept, Vec::new());
            serving.push(Serving(tokio::spawn(accepting)));
            door
        });
        let (connect, embedded) = open_store(config).await?;
        let pool = store::connect(connect, &settings::store(config)).await?;
        let held = embedded.is_some();
        let late = LateServices::default();
        let (views, services) = (Views::new(pool.clone()), late.clone());
        let parts = RunnerParts { views, clock: clock.clone(), services };
        let core = start_core(config, systems, &pool, parts, held, address, &door).await?;
        let keys = keys::signing_keys(&pool, fresh_key(), config.auth.token_s).await?;
        let auth = Arc::new(Auth::new(keys.first().context("the store has no signing key")?));
        // Before anything is answered: what was revoked in an earlier life stays so.
        learn_tokens(&pool, &auth, Duration::from_secs(30)).await?;
        settled(&core, &door).await?;
        if config.seeds_demo() {
            door.waits_for("its demonstration data");
            let views = Views::new(core.pool.clone());
            for seed in systems.iter().filter_map(|system| system.seed) {
                seed(&core.entities, &views).await.map_err(anyhow::Error::msg)?;
            }
        }
        let (lanes, standing) = (core.lanes.clone(), core.standing());
        // One that drains answers until it has gone.
        let serves = move || {
            let standing = standing.borrow();
            lanes.all_up() && (standing.active || standing.draining)
        };
        let readiness = Arc::new(Readiness::new(core.lease.clone(), serves, details(&core)));
        let store: Arc<str> = core.identity.epoch.as_str().into();
        let (epoch, watched_epoch) = watch::channel(store.clone());
        let members = core.standing();
        let this = core.lease.incarnation();
        // What users read has connections of its own: it takes none from commits, loads and timers.
        let reads = store::beside(&pool, config.persistence.read_connections);
        let nodes = move || {
            let living = members.borrow().living.clone();
            Nodes { store: store.clone(), this, living }
        };
        let gateway = Gateway::start(Parts {
            entities: core.entities.clone(),
            topics: core.topics.clone(),
            presence: core.presence.clone(),
            views: Views::new(reads.clone()).opened_by(core.runtime.vault.clone()),
            histories: Histories::start(reads.clone(), core.runtime.vault.clone()),
            sealed_cache: settings::sealed_cache(config, core.runtime.vault.clone()).await?,
            objects: settings::objects(config)?,
            auth: auth.clone(),
            limiter: settings::limiter(config).await?,
            nodes: Box::new(nodes),
            epoch: watched_epoch,
            readiness: readiness.clone(),
            metrics: telemetry::metrics(),
            clock,
            options,
            settings: config.systems.prepare().map_err(anyhow::Error::msg)?,
            connection_lease_s: settings::connection_lease_s(config),
            systems,
        })
        .await?;
        late.set(&gateway.services);
        if let Some(agents) = gateway.services.settings.get::<Agents>() {
            agents.all(&gateway.services).map_err(|why| anyhow::anyhow!("{why}"))?;
        }
        let mut tasks = vec![
            tokio::spawn(watch_tokens(pool.clone(), auth.clone())),
            tokio::spawn(report_connections(gateway.clone(), core.connections.clone())),
        ];
        let of_systems = systems.iter().flat_map(|system| system.tasks);
        tasks.extend(of_systems.map(|task| tokio::spawn(task(gateway.services.clone()))));
        readiness.start();
        if let Some(door) = operators_door {
            door.open(gateway::operators(gateway.clone()));
        }
        door.open(gateway::router(gateway.clone()));
        Ok(Self {
            address,
            operators: operators_address,
            core,
            gateway,
            reads,
            door,
            embedded,
            _serving: serving,
            _epoch: epoch,
            tasks,
            limits: StopLimits::of(config),
        })
    }

    /// The edges of this node, for whoever runs it inside another process: tests and examples.
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Resolves with the reason when the node cannot go on.
    pub async fn doomed(&self) -> ExitReason {
        let store_gone = async {
            match &self.embedded {
                Some(server) => server.exited().await,
                None => std::future::pending().await,
            }
        };
        let mut fate = self.core.fate();
        let evicted = fate.wait_for(|fate| *fate != Fate::Living);
        tokio::select! {
            reason = store_gone => ExitReason::Other(format!("the embedded PostgreSQL is gone: {reason}")),
            fate = evicted => match fate.as_deref() {
                Ok(Fate::StoreReplaced(what)) => ExitReason::Other(format!("the database is not the one it was: {what}. Start this node again: topics get a new epoch")),
                _ => ExitReason::Evicted,
            },
        }
    }

    /// Resolves when an operator wants this node to leave.
    pub async fn asked_to_leave(&self) {
        let mut standing = self.core.standing();
        if standing.wait_for(|standing| standing.draining).await.is_err() {
            std::future::pending().await
        }
    }

    /// Sends everybody away who is connected to a node that was declared dead. Nothing is flushed: it could not be.
    pub async fn abandon(&self) {
        self.gateway.evict(Duration::from_secs(1)).await;
    }

    /// Gives its slots to other nodes, asks clients to reconnect, finishes what was accepted, and leaves no server behind.
    /// Takes no longer than `node.stop_s`, also where the store says nothing.
    pub async fn stop(self) {
        let end = Instant::now() + self.limits.all;
        let within = |limit: Duration, kept: Duration| {
            limit.min(end.saturating_duration_since(Instant::now()).saturating_sub(kept))
        };
        // Load balancers see it, and send nobody here any more. Whoever comes all the same is answered.
        self.gateway.readiness.announce();
        self.door.leave();
        let grace = within(self.limits.grace, LAST_STEPS);
        let hand_over = within(self.limits.hand_over, LAST_STEPS);
        // Commands are answered meanwhile, so nobody has to notice.
        tokio::join!(tokio::time::sleep(grace), self.core.hand_over(hand_over));
        // Requests in flight are answered meanwhile; the sockets go one by one.
        self.gateway.drain(within(self.limits.drain, LAST_STEPS)).await;
        self.door.close(within(LAST_STEPS / 4, LAST_STEPS / 2)).await;
        for task in &self.tasks {
            task.abort();
        }
        // A read that hangs is given up by its own limit, or with the process.
        let reads = within(LAST_STEPS / 10, LAST_STEPS / 2);
        let _ = tokio::time::timeout(reads, self.reads.close()).await;
        let server = if self.embedded.is_some() { LAST_STEPS / 2 } else { LAST_STEPS / 10 };
        self.core.stop_within(within(2 * LAST_STEPS, server)).await;
        if let Some(server) = self.embedded {
            let patience = within(3 * LAST_STEPS, LAST_STEPS / 10);
            if let Err(error) = server.stop_within(patience).await {
                tracing::warn!(%error, "the embedded PostgreSQL did not stop in order");
            }
        }
    }
}

/// What `/readyz` says about a node that serves.
fn details(core: &Core) -> impl Fn() -> Details + Send + Sync + 'static {
    let (lanes, standing, skew) = (core.lanes.clone(), core.standing(), core.runtime.skew.clone());
    move || Details {
        store: if *lanes.away().borrow() {
            Some("the store is away: it cannot be reached, or says nothing".into())
        } else if !lanes.all_up() {
            Some("the store is away: it does not take what is written".into())
        } else {
            None
        },
        member: {
            let standing = standing.borrow();
            let left = if standing.draining { "it is leaving" } else { "it is not active" };
            let waits = standing.waits_for.clone();
            (!standing.active)
                .then(|| waits.map_or(left.into(), |what| format!("it waits for {what}")))
        },
        clock: skew.is_notable().then(|| {
            let what =
                if skew.is_too_much() { "; nothing is swept and no timer fires" } else { "" };
            format!("this node's clock is {} the database's{what}", skew::words(skew.ms()))
        }),
    }
}

async fn start_core(
    config: &Config,
    systems: &'static [&'static System],
    pool: &PgPool,
    parts: RunnerParts,
    data_lock_held: bool,
    address: SocketAddr,
    door: &Door,
) -> anyhow::Result<Core> {
    let runners = systems.iter().flat_map(|system| system.runners);
    let runners = runners.map(|runner| (runner.make)(&parts)).collect();
    let cluster = match config.cluster.enabled {
        true => Some(settings::cluster(config).await?),
        false => None,
    };
    let told = door.clone();
    let settings = CoreSettings {
        systems,
        node: NodeInfo {
            name: config.node.name.clone(),
            address: address.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            host: host_id(),
            pid: std::process::id() as i32,
            process_start: process_start(std::process::id() as i32).unwrap_or(0),
            lease_s: config.cluster.lease_s,
            lanes: config.persistence.lanes,
            seals: config.vault.seal,
        },
        data_lock_held,
        read_ttl: Duration::from_millis(config.cluster.read_ttl_ms),
        clock: parts.clock,
        clock_limits: skew::SkewLimits {
            warn_ms: config.node.clock_warn_ms,
            limit_ms: config.node.clock_limit_ms,
        },
        waits: Arc::new(move |what: String| told.waits_for(what)),
        writer: writer::Options {
            lanes: config.persistence.lanes,
            max_batch_items: config.persistence.max_batch_items,
            max_queued: config.persistence.max_queued,
            keep: PublicationRetention {
                publications: config.topics.history_limit,
                bytes: config.topics.history_bytes,
            },
            ..writer::Options::default()
        },
        entities: Options {
            max_in_flight: config.entities.max_in_flight,
            snapshot_every: config.entities.snapshot_every,
            idle_s: config.entities.idle_s,
            max_live: config.entities.max_live,
            memory_limit: config.entities.memory_limit_mb << 20,
            park_after: config.entities.park_after,
            give_up_after: Duration::from_secs(3_600 * u64::from(config.entities.delivery_hours)),
            ..Options::default()
        },
        runners,
        witness: None,
        cluster,
        vault: settings::vault(config),
        dedupe_s: config.persistence.dedupe_s,
        history_s: config.topics.history_s,
    };
    let mut prepared = core::prepare(pool.clone(), settings).await?;
    for kind in systems.iter().flat_map(|system| system.entities) {
        (kind.register)(&mut prepared.registry).await?;
    }
    prepared.run().await
}

/// Until this node takes part and every slot has an owner: from then on commands are answered.
async fn settled(core: &Core, door: &Door) -> anyhow::Result<()> {
    let mut standing = core.standing();
    let mut fate = core.fate();
    let ready = async {
        let mut said = Instant::now();
        let mut patience = Duration::from_secs(2);
        loop {
            let what = {
                let standing = standing.borrow_and_update();
                if standing.active && standing.settled {
                    return;
                }
                standing.waits_for.clone().unwrap_or_else(|| "its cluster".into())
            };
            door.waits_for(what.as_str());
            if said.elapsed() >= patience {
                tracing::warn!(
                    "this node is not yet part of the cluster: it waits for {what} (cluster.advertise, cluster.cookie, cluster.tls_*, cluster.transport, firewalls; see `proxie cluster status`)"
                );
                (said, patience) = (Instant::now(), Duration::from_secs(10));
            }
            let _ = tokio::time::timeout(Duration::from_secs(1), standing.changed()).await;
        }
    };
    tokio::select! {
        () = ready => Ok(()),
        fate = fate.wait_for(|fate| *fate != Fate::Living) => match fate.as_deref() {
            Ok(Fate::StoreReplaced(what)) => anyhow::bail!("the database is not the one it was: {what}"),
            _ => anyhow::bail!("this node was declared dead while it was joining: start it again"),
        }
    }
}

/// Every node learns of a revocation, or of a new key, within a second; two are promised.
async fn watch_tokens(pool: PgPool, auth: Arc<Auth>) {
    let mut tick = tokio::time::interval(Duration::from_millis(700));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        // A failure is in the log; what was revoked before stays so.
        let _ = learn_tokens(&pool, &auth, PATIENCE).await;
    }
}

async fn learn_tokens(pool: &PgPool, auth: &Auth, limit: Duration) -> Result<(), sqlx::Error> {
    let (keys, revoked) =
        patience::within(pool, "say which tokens are revoked", limit, async |connection| {
            Ok((keys::verifying(connection).await?, keys::revocations(connection).await?))
        })
        .await?;
    auth.set_keys(&keys);
    auth.set_revocations(revoked);
    Ok(())
}

async fn report_connections(gateway: Arc<Gateway>, connections: Arc<AtomicUsize>) {
    loop {
        connections.store(gateway.connections(), Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
