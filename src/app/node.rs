//! A whole node: store, core, gateway, listener; started and drained in this order and its reverse.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use sqlx::postgres::{PgConnectOptions, PgPool};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::actors::{Options, Runner};
use crate::app::core::{self, Core, Fate, Settings};
use crate::app::kinds;
use crate::app::matching::MatchProviders;
use crate::app::member;
use crate::app::seed;
use crate::cluster::transport::{self, tls::Tls};
use crate::config::{Config, Playback, Transport};
use crate::domain::marketplace::matching;
use crate::domain::sync::platforms::Platforms;
use crate::gateway::auth::{Auth, fresh_key};
use crate::gateway::{self, Gateway, Parts, Readiness, accept, playback};
use crate::kernel::clock::Clock;
use crate::persistence::commit::Keep;
use crate::persistence::embedded::{self, DataLock, Embedded};
use crate::persistence::limits::{LocalLimiter, Nodes, Policy, RateLimiter, RedisLimiter};
use crate::persistence::membership::{NodeInfo, host_id};
use crate::persistence::publications::Histories;
use crate::persistence::views::Views;
use crate::persistence::{keys, store, writer};
use crate::telemetry;

pub struct Node {
    pub address: SocketAddr,
    /// Where `/metrics` is, where operators have a listener of their own.
    pub operators: Option<SocketAddr>,
    pub core: Core,
    gateway: Arc<Gateway>,
    embedded: Option<Embedded>,
    serving: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
    drain_ms: u64,
    hand_over: Duration,
}

/// Why a node ends by itself.
#[derive(Debug)]
pub enum Doom {
    /// Other nodes have declared it dead. It may come back as a new incarnation.
    Evicted,
    Other(String),
}

/// Where the database is: the user's, or the embedded one, which this starts.
pub async fn open_store(config: &Config) -> anyhow::Result<(PgConnectOptions, Option<Embedded>)> {
    if !config.embedded() {
        let options = config
            .persistence
            .database_url
            .parse()
            .context("DATABASE_URL is not a PostgreSQL URL")?;
        return Ok((options, None));
    }
    let lock = DataLock::acquire(&config.node.data_dir)?;
    let installed = &config.persistence.postgres_bin_dir;
    let options = embedded::Options {
        installed: (!installed.as_os_str().is_empty()).then(|| installed.clone()),
        shared_buffers: config.persistence.shared_buffers.clone(),
        max_connections: config.persistence.max_connections + 16,
        ..embedded::Options::new(&config.node.data_dir)
    };
    let server = Embedded::start(options, lock).await?;
    Ok((server.connect_options(), Some(server)))
}

pub fn store_options(config: &Config) -> store::Options {
    store::Options {
        max_connections: config.persistence.max_connections,
        allow_fsync_off: config.persistence.allow_fsync_off,
    }
}

impl Node {
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        Self::start_with(config, Clock::System).await
    }

    /// With the time of this clock, which tests move by hand.
    pub async fn start_with(config: &Config, clock: Clock) -> anyhow::Result<Self> {
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
        let (options, embedded) = open_store(config).await?;
        let pool = store::connect(options, &store_options(config)).await?;
        let core = start_core(config, &pool, clock.clone(), embedded.is_some(), address).await?;
        let key = keys::signing_key(&pool, fresh_key()).await?;
        let auth = Arc::new(Auth::new(&key));
        // Before anything is answered: what was revoked in an earlier life stays so.
        auth.set_revocations(revocations(&pool, config.auth.token_s).await?);
        settled(&core).await?;
        if config.seeds_demo() {
            seed::demo(&core).await?;
        }
        let (lanes, standing) = (core.lanes.clone(), core.standing());
        let serves = move || lanes.all_up() && standing.borrow().active;
        let readiness = Arc::new(Readiness::new(core.lease.clone(), serves));
        let store: Arc<str> = core.identity.epoch.as_str().into();
        let (epoch, watched_epoch) = watch::channel(store.clone());
        let members = core.standing();
        let this = core.lease.incarnation();
        let nodes = move || {
            let living = members.borrow().living.clone();
            Nodes { store: store.clone(), this, living }
        };
        let gateway = Gateway::start(Parts {
            entities: core.entities.clone(),
            topics: core.topics.clone(),
            presence: core.presence.clone(),
            views: Views::new(pool.clone()),
            histories: Histories::start(pool.clone()),
            auth: auth.clone(),
            limiter: limiter(config).await?,
            nodes: Box::new(nodes),
            epoch: watched_epoch,
            readiness: readiness.clone(),
            metrics: telemetry::metrics(),
            clock,
            options: gateway_options(config)?,
        })
        .await?;
        let mut tasks = vec![
            tokio::spawn(watch_revocations(pool.clone(), auth.clone(), config.auth.token_s)),
            tokio::spawn(report_connections(gateway.clone(), core.connections.clone())),
        ];
        let router = gateway::router(gateway.clone());
        if let Some(listener) = operators {
            let (pages, edge) = (gateway::operators(gateway.clone()), gateway.clone());
            tasks.push(tokio::spawn(accept::serve(listener, edge, pages)));
        }
        let edge = gateway.clone();
        let serving = tokio::spawn(async move {
            // The epoch of a store does not change while a node lives: a replaced store ends it.
            let _epoch = epoch;
            gateway::accept::serve(listener, edge, router).await;
        });
        readiness.start();
        Ok(Self {
            address,
            operators: operators_address,
            core,
            gateway,
            embedded,
            serving,
            tasks,
            drain_ms: config.gateway.drain_ms,
            hand_over: Duration::from_secs(config.cluster.hand_over_s),
        })
    }

    /// The edges of this node, for whoever runs it inside another process: tests and examples.
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    /// Resolves with the reason when the node cannot go on.
    pub async fn doomed(&self) -> Doom {
        let store_gone = async {
            match &self.embedded {
                Some(server) => server.exited().await,
                None => std::future::pending().await,
            }
        };
        let mut fate = self.core.fate();
        let evicted = fate.wait_for(|fate| *fate != Fate::Living);
        tokio::select! {
            reason = store_gone => Doom::Other(format!("the embedded PostgreSQL is gone: {reason}")),
            fate = evicted => match fate.as_deref() {
                Ok(Fate::StoreReplaced) => Doom::Other("the database is not the one it was (another server or timeline): start again".into()),
                _ => Doom::Evicted,
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
    pub async fn stop(self) {
        // Commands are answered meanwhile, so nobody has to notice.
        self.core.hand_over(self.hand_over).await;
        // Requests in flight are answered meanwhile; the sockets go one by one.
        self.gateway.drain(Duration::from_millis(self.drain_ms + 500)).await;
        self.serving.abort();
        for task in &self.tasks {
            task.abort();
        }
        self.core.stop().await;
        if let Some(server) = self.embedded
            && let Err(error) = server.stop().await
        {
            tracing::warn!(%error, "the embedded PostgreSQL did not stop in order");
        }
    }
}

/// What a request waits for Redis at most: it is slower than a hit ever is, and nobody notices it.
const REDIS_PATIENCE: Duration = Duration::from_millis(50);

async fn limiter(config: &Config) -> anyhow::Result<Arc<dyn RateLimiter>> {
    let local = LocalLimiter::new(200_000, Duration::from_secs(60));
    Ok(match config.redis.url.as_str() {
        "" => Arc::new(local),
        url => {
            let connecting = RedisLimiter::connect(url, local, REDIS_PATIENCE);
            let connecting = tokio::time::timeout(Duration::from_secs(5), connecting);
            let redis =
                connecting.await.context("Redis does not answer: check REDIS_URL, or unset it")?;
            Arc::new(redis.context("cannot reach Redis: check REDIS_URL, or unset it")?)
        }
    })
}

fn gateway_options(config: &Config) -> anyhow::Result<gateway::Options> {
    let http = &config.gateway;
    Ok(gateway::Options {
        node_name: config.node.name.clone(),
        metrics_apart: !http.admin_listen.is_empty(),
        allowed_origins: http.origins().map_err(anyhow::Error::msg)?,
        allow_credentials: http.allow_credentials,
        trusted_proxies: http
            .trusted_proxies
            .iter()
            .map(|network| network.parse().map_err(anyhow::Error::msg))
            .collect::<Result<_, _>>()
            .context("gateway.trusted_proxies")?,
        max_body_bytes: http.max_body_bytes,
        request_timeout: Duration::from_millis(http.request_timeout_ms),
        requests: Policy { quota: http.requests_per_minute, window_s: 60 },
        drain: Duration::from_millis(http.drain_ms),
        accept: accept::Limits {
            max_connections: http.max_connections,
            max_connections_per_address: http.max_connections_per_address,
            accepts_per_s: http.accepts_per_s,
            header_timeout: Duration::from_millis(http.header_timeout_ms),
        },
        websocket: config.websocket.clone(),
        grants: config.topics.grants.clone(),
        sync: config.sync,
        playback: playback_options(&config.playback)?,
        tiers: config.tiers.clone(),
    })
}

fn playback_options(config: &Playback) -> anyhow::Result<playback::Options> {
    let platforms = match config.platforms.as_os_str().is_empty() {
        true => Platforms::default(),
        false => std::fs::read_to_string(&config.platforms)
            .map_err(anyhow::Error::from)
            .and_then(|table| Platforms::parse(&table).map_err(anyhow::Error::msg))
            .with_context(|| format!("playback.platforms: {}", config.platforms.display()))?,
    };
    Ok(playback::Options { idle_s: config.idle_s, platforms })
}

async fn start_core(
    config: &Config,
    pool: &PgPool,
    clock: Clock,
    data_lock_held: bool,
    address: SocketAddr,
) -> anyhow::Result<Core> {
    let mut runners: HashMap<&'static str, Arc<dyn Runner>> = HashMap::new();
    runners.insert(
        matching::RUNNER,
        Arc::new(MatchProviders { views: Views::new(pool.clone()), clock: clock.clone() }),
    );
    let cluster = match config.cluster.enabled {
        true => Some(cluster_options(config).await?),
        false => None,
    };
    let settings = Settings {
        node: NodeInfo {
            name: config.node.name.clone(),
            address: address.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            host: host_id(),
            pid: std::process::id() as i32,
            lease_s: config.cluster.lease_s,
            lanes: config.persistence.lanes,
        },
        data_lock_held,
        read_ttl: Duration::from_millis(config.cluster.read_ttl_ms),
        clock,
        writer: writer::Options {
            lanes: config.persistence.lanes,
            max_batch_items: config.persistence.max_batch_items,
            max_queued: config.persistence.max_queued,
            keep: Keep {
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
            max_attempts: config.entities.max_attempts,
            ..Options::default()
        },
        runners,
        witness: None,
        cluster,
        dedupe_s: config.persistence.dedupe_s,
        history_s: config.topics.history_s,
    };
    let mut prepared = core::prepare(pool.clone(), settings).await?;
    kinds::register(&mut prepared.registry).await?;
    prepared.run().await
}

async fn cluster_options(config: &Config) -> anyhow::Result<member::Options> {
    let cluster = &config.cluster;
    let tls = match cluster.tls_cert.as_os_str().is_empty() {
        true => None,
        false => {
            let tls = Tls::load(&cluster.tls_cert, &cluster.tls_key, &cluster.tls_ca)?;
            tls.check_name(&config.node.name)?;
            Some(tls)
        }
    };
    Ok(member::Options {
        listener: transport::bind(&cluster.listen).await?,
        tls,
        advertise: match cluster.advertise.as_str() {
            "" => cluster.listen.clone(),
            advertise => advertise.into(),
        },
        cookie: cluster.cookie.clone(),
        weight: cluster.weight,
        pipe: match cluster.transport {
            Transport::Framed => member::Pipe::Framed,
            Transport::RactorCluster => member::Pipe::RactorCluster,
        },
        limits: transport::Limits {
            window_bytes: cluster.window_mb << 20,
            max_envelope_bytes: (cluster.window_mb << 17).min(1 << 20),
            ..transport::Limits::default()
        },
    })
}

/// Until this node takes part and every slot has an owner: from then on commands are answered.
async fn settled(core: &Core) -> anyhow::Result<()> {
    let mut standing = core.standing();
    let mut fate = core.fate();
    let ready = async {
        loop {
            let ready = standing.wait_for(|standing| standing.active && standing.settled);
            match tokio::time::timeout(Duration::from_secs(10), ready).await {
                Ok(_) => return,
                Err(_) => tracing::warn!(
                    "this node is not yet part of the cluster: it needs links to all active nodes (cluster.advertise, cluster.cookie, firewalls), see `proxie cluster status`"
                ),
            }
        }
    };
    tokio::select! {
        () = ready => Ok(()),
        _ = fate.wait_for(|fate| *fate != Fate::Living) => {
            anyhow::bail!("this node was declared dead while it was joining: start it again")
        }
    }
}

/// Every node learns of a revocation within a second; two are promised.
async fn watch_revocations(pool: PgPool, auth: Arc<Auth>, token_s: i64) {
    let mut tick = tokio::time::interval(Duration::from_millis(700));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Ok(rows) = revocations(&pool, token_s).await {
            auth.set_revocations(rows);
        }
    }
}

/// Those that may still concern a token.
async fn revocations(pool: &PgPool, token_s: i64) -> Result<Vec<(String, i64)>, sqlx::Error> {
    keys::revocations(pool, token_s.max(86_400) + 60).await
}

async fn report_connections(gateway: Arc<Gateway>, connections: Arc<AtomicUsize>) {
    loop {
        connections.store(gateway.connections(), Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_from_a_file() {
        let path = std::env::temp_dir().join(format!("proxie-platforms-{}", std::process::id()));
        let options = |table: &str| {
            std::fs::write(&path, table).unwrap();
            playback_options(&Playback { platforms: path.clone(), ..Playback::default() })
        };
        let table =
            r#"{"cinema": {"name": "Cinema", "links": {"web": "https://cinema.example/{id}"}}}"#;
        let platforms = options(table).unwrap().platforms;
        assert_eq!(platforms.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["cinema"]);
        let wrong = format!("{:#}", options("{}}").unwrap_err());
        assert!(wrong.starts_with("playback.platforms: "), "{wrong}");
        std::fs::remove_file(&path).unwrap();
        assert!(playback_options(&Playback { platforms: path, ..Playback::default() }).is_err());
        assert_eq!(playback_options(&Playback::default()).unwrap().idle_s, 14_400);
    }
}
