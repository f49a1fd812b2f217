//! The edges: HTTP and WebSocket. They use commands, entity references, topics and views.
//!
//! **Architecture invariant:** nothing here reads the journal, talks to a writer or names an entity's actor. HTTP
//! routes and WebSocket events run the same operations, so both mean the same and share dedupe ids.

pub mod accept;
pub mod auth;
pub mod door;

mod bodies;
mod hosts;
pub mod http;
mod json;
mod listening;
pub mod mcp;
pub mod operations;
mod origins;
mod outsiders;
mod socketio;
mod sync;
mod users;
pub mod ws;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;

use crate::cluster::{Entities, Lease, Presence, Topics};
use crate::contract::System;
use crate::contract::call::{Services, Settings};
use crate::contract::problem::{Outcome, Problem};
use crate::contract::system::Installed;
use crate::gateway::auth::Auth;
use crate::gateway::operations::Operations;
use crate::gateway::origins::Origins;
use crate::gateway::users::Users;
use crate::kernel::clock::Clock;
use crate::kernel::error::ErrorCode;
use crate::kernel::ids::IdSource;
use crate::persistence::limits::{Nodes, Policy, RateLimiter};
use crate::persistence::objects::Objects;
use crate::persistence::publications::Histories;
use crate::persistence::shared::SealedCache;
use crate::persistence::views::Views;

pub use hosts::{AllowedHost, Hosts};
pub use http::{operators, router};
pub use origins::Allowed;

#[derive(Clone, Debug)]
pub struct Options {
    pub node_name: String,
    /// Whether operators have a separate listener, which then serves the metrics.
    pub metrics_apart: bool,
    /// Origins allowed in addition to our own, for CORS, WebSocket and Socket.IO alike.
    pub allowed_origins: Vec<Allowed>,
    /// The hosts by which agents reach this node.
    pub hosts: Hosts,
    /// Whether pages of these origins may send cookies. These are a load balancer's cookies; we set none.
    pub allow_credentials: bool,
    /// Addresses or networks (`10.0.0.0/8`) whose forwarded headers are believed.
    pub trusted_proxies: Vec<Network>,
    pub max_body_bytes: usize,
    pub request_timeout: Duration,
    /// Rate limit of one user, or of one address without a valid token.
    pub requests: Policy,
    /// Period over which a stopping node spreads its clients' reconnects.
    pub drain: Duration,
    pub accept: accept::AcceptLimits,
    pub websocket: ws::ConnectionLimits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node_name: "node-1".into(),
            metrics_apart: false,
            allowed_origins: Vec::new(),
            hosts: Hosts::default(),
            allow_credentials: false,
            trusted_proxies: Vec::new(),
            max_body_bytes: 262_144,
            request_timeout: Duration::from_secs(15),
            requests: Policy { quota: 1_200, window_s: 60 },
            drain: Duration::from_secs(2),
            accept: accept::AcceptLimits::default(),
            websocket: ws::ConnectionLimits::default(),
        }
    }
}

/// Problems of this node in words; `None`: no problem.
#[derive(Clone, Debug, Default)]
pub struct Details {
    pub store: Option<String>,
    pub member: Option<String>,
    /// A wrong clock does not make a node unready: if the database's clock is the wrong one, every node would be
    /// unready.
    pub clock: Option<String>,
}

/// Whether this node should get traffic. `app` sets it, the edges read it.
pub struct Readiness {
    store_up: Box<dyn Fn() -> bool + Send + Sync>,
    lease: Lease,
    /// The node's problems in words.
    details: Box<dyn Fn() -> Details + Send + Sync>,
    /// Whether seeding and recovery are over. Before that the node is alive, but not ready.
    started: AtomicBool,
    /// Whether the node is about to leave: load balancers that check `readyz` send no more clients here.
    announced: AtomicBool,
    leaving: watch::Sender<Leaving>,
}

/// Whether sockets are to leave this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// One after the other, within the drain's time.
    Draining,
    /// Now: others have taken over.
    Evicted,
}

impl Readiness {
    /// `store_up` is called on every check and must be cheap.
    pub fn new(
        lease: Lease,
        store_up: impl Fn() -> bool + Send + Sync + 'static,
        details: impl Fn() -> Details + Send + Sync + 'static,
    ) -> Self {
        Self {
            store_up: Box::new(store_up),
            details: Box::new(details),
            lease,
            started: AtomicBool::new(false),
            announced: AtomicBool::new(false),
            leaving: watch::channel(Leaving::No).0,
        }
    }

    pub fn start(&self) {
        self.started.store(true, Ordering::Release);
    }

    /// Turns `readyz` red and changes nothing else: load balancers need a moment to notice.
    pub fn announce(&self) {
        self.announced.store(true, Ordering::Release);
    }

    /// Stops taking new work: sockets are told to reconnect elsewhere, and `readyz` turns red.
    pub fn drain(&self) {
        self.leaving.send_replace(Leaving::Draining);
    }

    /// Sends every client elsewhere at once, since this node was declared dead.
    pub fn evict(&self) {
        self.leaving.send_replace(Leaving::Evicted);
    }

    pub fn is_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    pub fn store_up(&self) -> bool {
        (self.store_up)()
    }

    pub fn lease_fresh(&self) -> bool {
        self.lease.is_fresh()
    }

    pub fn lease_age_s(&self) -> f64 {
        self.lease.age_ms() as f64 / 1_000.0
    }

    pub fn details(&self) -> Details {
        (self.details)()
    }

    /// Whether the node is about to drain, or draining.
    pub fn is_leaving(&self) -> bool {
        self.announced.load(Ordering::Acquire) || self.is_draining()
    }

    pub fn is_draining(&self) -> bool {
        *self.leaving.borrow() != Leaving::No
    }

    fn leaving(&self) -> watch::Receiver<Leaving> {
        self.leaving.subscribe()
    }
}

/// The parts that `app` builds the gateway from.
pub struct Parts {
    pub entities: Entities,
    pub topics: Topics,
    pub presence: Arc<Presence>,
    pub views: Views,
    pub histories: Histories,
    pub sealed_cache: SealedCache,
    pub objects: Objects,
    pub auth: Arc<Auth>,
    pub limiter: Arc<dyn RateLimiter>,
    /// The nodes that count shared limits together.
    pub nodes: Box<dyn Fn() -> Nodes + Send + Sync>,
    /// The epoch of the durable topics' offsets.
    pub epoch: watch::Receiver<Arc<str>>,
    pub readiness: Arc<Readiness>,
    pub metrics: PrometheusHandle,
    pub clock: Clock,
    pub options: Options,
    pub settings: Settings,
    /// How long a hold of a connection is valid without renewal, in seconds.
    pub connection_lease_s: i64,
    pub systems: &'static [&'static System],
}

pub struct Gateway {
    /// The services that operations use.
    pub services: Arc<Services>,
    pub auth: Arc<Auth>,
    pub readiness: Arc<Readiness>,
    pub options: Options,
    operations: Operations,
    documents: http::Documents,
    /// The epoch of topics that live only in this process; both end with it.
    local_epoch: Arc<str>,
    metrics: PrometheusHandle,
    /// Counts the readable frames of clients.
    frames: metrics::Counter,
    connections: ws::Connections,
    users: Users,
    origins: Origins,
}

impl Gateway {
    /// Starts the supervisor of the connections.
    pub async fn start(parts: Parts) -> anyhow::Result<Arc<Self>> {
        let connections = ws::Connections::start().await?;
        let local_epoch = format!("lo{:x}", rand::random::<u64>()).into();
        let Parts {
            entities,
            topics,
            presence,
            views,
            histories,
            sealed_cache,
            objects,
            auth,
            limiter,
            nodes,
            epoch,
            readiness,
            metrics,
            clock,
            options,
            settings,
            connection_lease_s,
            systems,
        } = parts;
        let ready = readiness.clone();
        let services = Arc::new(Services {
            entities,
            topics,
            presence,
            clock,
            settings: settings.with(Installed(systems)),
            connection_lease_s,
            may_read: Box::new(move || ready.store_up() && ready.lease_fresh()),
            limiter: limiter.clone(),
            commands: Policy {
                quota: options.websocket.commands_per_minute_per_user,
                window_s: 60,
            },
            epoch,
            views,
            histories,
            sealed_cache,
            objects,
        });
        let users = Users::new(&options.websocket, limiter.clone(), nodes);
        let origins = Origins::new(options.allowed_origins.clone());
        Ok(Arc::new(Self {
            users,
            services,
            auth,
            readiness,
            options,
            operations: Operations::of(systems),
            documents: http::Documents::default(),
            local_epoch,
            metrics,
            frames: metrics::counter!("proxie_ws_frames_total"),
            connections,
            origins,
        }))
    }

    /// Sockets that are open on this node.
    pub fn connections(&self) -> usize {
        self.connections.open()
    }

    /// Tells every socket to reconnect elsewhere, and waits until all have left or `limit` has passed.
    pub async fn drain(&self, limit: Duration) {
        self.readiness.drain();
        self.gone(limit).await;
    }

    /// Closes every socket with 3001.
    pub async fn evict(&self, limit: Duration) {
        self.readiness.evict();
        self.gone(limit).await;
    }

    async fn gone(&self, limit: Duration) {
        let gone = async {
            while self.connections() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(limit, gone).await;
    }

    /// Whether the address is a trusted proxy, whose forwarding headers are believed.
    fn trusts(&self, address: IpAddr) -> bool {
        self.options.trusted_proxies.iter().any(|network| network.contains(address))
    }

    /// Whether connections may be opened here.
    fn takes_connections(&self) -> Outcome<()> {
        if self.readiness.is_draining() {
            return Err(Problem::new(ErrorCode::Unavailable, "this node is draining"));
        }
        Ok(())
    }

    fn mint(&self, prefix: &str) -> String {
        IdSource::new(self.now(), rand::random()).mint(prefix)
    }
}

impl std::ops::Deref for Gateway {
    type Target = Services;

    fn deref(&self) -> &Services {
        &self.services
    }
}

/// An address, or all addresses that share its first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let bad = || format!("{text:?} is neither an address nor a network such as 10.0.0.0/8");
        let address: IpAddr = address.trim().parse().map_err(|_| bad())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(width), str::parse).map_err(|_| bad())?;
        if bits > width { Err(bad()) } else { Ok(Self { address, bits }) }
    }
}

impl Network {
    pub fn contains(&self, address: IpAddr) -> bool {
        let wide = |address: IpAddr| match address.to_canonical() {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
            IpAddr::V6(v6) => (v6.to_bits(), 128),
        };
        let ((a, a_width), (b, b_width)) = (wide(self.address), wide(address));
        a_width == b_width && (self.bits == 0 || (a ^ b) >> (128 - u32::from(self.bits)) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_their_addresses() {
        let contains = |network: &str, address: &str| {
            network.parse::<Network>().unwrap().contains(address.parse().unwrap())
        };
        assert!(contains("10.0.0.0/8", "10.200.3.4"));
        assert!(contains("10.0.0.0/8", "::ffff:10.1.1.1"));
        assert!(!contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("127.0.0.1", "127.0.0.1"));
        assert!(!contains("127.0.0.1", "127.0.0.2"));
        assert!(contains("fd00::/8", "fd12::1"));
        assert!(contains("0.0.0.0/0", "1.2.3.4") && !contains("0.0.0.0/0", "::1"));
        for bad in ["", "10.0.0.0/33", "host", "1.2.3.4/x"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
