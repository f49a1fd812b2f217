//! Configuration: `config.toml`, overridden by `PROXIE__SECTION__KEY`, `DATABASE_URL` and `REDIS_URL`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use crate::domain::sync::shared::Limits as Sync;
use crate::gateway::Allowed;
pub use crate::gateway::ws::Limits as WebSocket;
use crate::gateway::ws::protocol::split_topic;
pub use crate::gateway::{Grant as TopicGrant, Tier};

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty = $default:expr),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $(pub $field: $type),* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default),* }
            }
        }
    };
}

section!(Config {
    node: Node = Node::default(),
    gateway: Gateway = Gateway::default(),
    websocket: WebSocket = WebSocket::default(),
    topics: Topics = Topics::default(),
    sync: Sync = Sync::default(),
    playback: Playback = Playback::default(),
    tiers: BTreeMap<String, Tier> = tiers(),
    auth: Auth = Auth::default(),
    persistence: Persistence = Persistence::default(),
    redis: Redis = Redis::default(),
    cluster: Cluster = Cluster::default(),
    entities: Entities = Entities::default(),
    seed: Seed = Seed::default(),
    log: Log = Log::default(),
});

fn tiers() -> BTreeMap<String, Tier> {
    let premium = Tier { devices: 20, streams: 4 };
    BTreeMap::from([("free".into(), Tier::default()), ("premium".into(), premium)])
}

section!(Node { name: String = "node-1".into(), data_dir: PathBuf = "data".into() });

section!(Gateway {
    listen: String = "127.0.0.1:8080".into(),
    admin_listen: String = String::new(),
    allowed_origins: Vec<String> = Vec::new(),
    allow_credentials: bool = false,
    trusted_proxies: Vec<String> = Vec::new(),
    max_body_bytes: usize = 262_144,
    request_timeout_ms: u64 = 15_000,
    requests_per_minute: u32 = 1_200,
    max_connections: usize = 200_000,
    max_connections_per_address: usize = 4_096,
    accepts_per_s: u32 = 5_000,
    header_timeout_ms: u64 = 10_000,
    drain_ms: u64 = 2_000,
});

section!(Topics {
    history_limit: i32 = 1_000,
    history_bytes: i64 = 4_194_304,
    history_s: i64 = 604_800,
    grants: Vec<TopicGrant> = Vec::new(),
});

section!(Playback { idle_s: u32 = 14_400, platforms: PathBuf = PathBuf::new() });

section!(Auth { token_s: i64 = 86_400, dev_tokens: Option<bool> = None });

section!(Persistence {
    database_url: String = String::new(),
    postgres_bin_dir: PathBuf = PathBuf::new(),
    shared_buffers: String = "256MB".into(),
    max_connections: u32 = 24,
    lanes: u16 = 2,
    max_batch_items: usize = 1_024,
    max_queued: usize = 8_192,
    dedupe_s: i64 = 86_400,
    allow_fsync_off: bool = false,
});

section!(Redis { url: String = String::new() });

section!(Cluster {
    enabled: bool = false,
    listen: String = "127.0.0.1:9090".into(),
    advertise: String = String::new(),
    cookie: String = String::new(),
    tls_cert: PathBuf = PathBuf::new(),
    tls_key: PathBuf = PathBuf::new(),
    tls_ca: PathBuf = PathBuf::new(),
    transport: Transport = Transport::Framed,
    weight: u32 = 1,
    window_mb: usize = 16,
    hand_over_s: u64 = 30,
    lease_s: f64 = 4.0,
    read_ttl_ms: u64 = 1_000,
});

/// What carries messages between nodes: the same on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    Framed,
    RactorCluster,
}

section!(Entities {
    max_in_flight: u32 = 2_048,
    snapshot_every: i64 = 100,
    idle_s: u32 = 300,
    max_live: usize = 500_000,
    memory_limit_mb: u64 = 6_144,
    park_after: u32 = 5,
    max_attempts: i32 = 12,
});

section!(Seed { demo: Option<bool> = None });

section!(Log { level: String = "info".into(), format: Option<LogFormat> = None });

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Pretty,
    Json,
}

impl Config {
    /// `file`: the one named on the command line, which must exist; else `config.toml` where there is one.
    pub fn load(file: Option<&Path>) -> Result<Self, String> {
        let builder = config::Config::builder();
        let builder = match file {
            Some(file) => {
                builder.add_source(config::File::from(file).format(config::FileFormat::Toml))
            }
            None => builder.add_source(
                config::File::from(Path::new("config.toml"))
                    .format(config::FileFormat::Toml)
                    .required(false),
            ),
        };
        let environment = config::Environment::with_prefix("PROXIE")
            .prefix_separator("__")
            .separator("__")
            .list_separator(",")
            .with_list_parse_key("gateway.allowed_origins")
            .with_list_parse_key("gateway.trusted_proxies")
            .try_parsing(true);
        let mut config: Self = builder
            .add_source(environment)
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|e| format!("the configuration is not valid: {e}"))?;
        let secret = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        if let Some(url) = secret("DATABASE_URL") {
            config.persistence.database_url = url;
        }
        if let Some(url) = secret("REDIS_URL") {
            config.redis.url = url;
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let origins = self.gateway.origins()?;
        let grants = &self.topics.grants;
        let problem = if self.cluster.enabled && self.cluster.cookie.is_empty() {
            "cluster.enabled needs a cluster.cookie: set PROXIE__CLUSTER__COOKIE to the same secret on every node"
        } else if self.cluster.enabled && self.embedded() {
            "cluster.enabled needs DATABASE_URL: nodes find each other through the database they share"
        } else if !(1..=64).contains(&self.persistence.lanes) {
            "persistence.lanes must be between 1 and 64"
        } else if self.persistence.max_connections < u32::from(self.persistence.lanes) + 6 {
            "persistence.max_connections must exceed persistence.lanes by at least 6"
        } else if !crate::kernel::ids::is_valid_id(&self.node.name) {
            "node.name must be 1 to 64 letters, digits, - or _"
        } else if self.gateway.listen.parse::<std::net::SocketAddr>().is_err() {
            "gateway.listen must be an address with a port, such as 127.0.0.1:8080"
        } else if !self.gateway.admin_listen.is_empty()
            && self.gateway.admin_listen.parse::<std::net::SocketAddr>().is_err()
        {
            "gateway.admin_listen must be an address with a port, such as 127.0.0.1:9464, or empty"
        } else if self.gateway.allow_credentials && origins.contains(&Allowed::All) {
            "gateway.allow_credentials needs gateway.allowed_origins to be named: browsers refuse both with \"*\""
        } else if self.cluster.enabled
            && self.cluster.advertise.is_empty()
            && !is_reachable(&self.cluster.listen)
        {
            "cluster.advertise is needed where cluster.listen names no address that others can reach"
        } else if [&self.cluster.tls_key, &self.cluster.tls_ca]
            .iter()
            .any(|path| path.as_os_str().is_empty() != self.cluster.tls_cert.as_os_str().is_empty())
        {
            "cluster.tls_cert, cluster.tls_key and cluster.tls_ca go together: all three, or none"
        } else if !(1..=1_024).contains(&self.cluster.window_mb) || self.cluster.weight > 1_000 {
            "cluster.window_mb must be between 1 and 1024, cluster.weight at most 1000"
        } else if self.cluster.lease_s * 1_000.0 <= 2.0 * self.cluster.read_ttl_ms as f64 {
            "cluster.lease_s must be more than twice cluster.read_ttl_ms"
        } else if self.topics.history_limit < 1 || self.topics.history_bytes < 1 {
            "topics.history_limit and topics.history_bytes must be at least 1"
        } else if let Some(why) = grants.iter().find_map(wrong_grant) {
            why
        } else if (1..grants.len()).any(|n| grants[..n].iter().any(|g| g.topic == grants[n].topic))
        {
            "topics.grants: a topic has two grants: make them one"
        } else if self.playback.idle_s < 60 {
            "playback.idle_s must be at least 60"
        } else if self.entities.snapshot_every < 1 || self.entities.max_in_flight < 1 {
            "entities.snapshot_every and entities.max_in_flight must be at least 1"
        } else {
            return Ok(());
        };
        Err(problem.into())
    }

    pub fn embedded(&self) -> bool {
        self.persistence.database_url.is_empty()
    }

    /// Demonstration providers: by default on the embedded store only.
    pub fn seeds_demo(&self) -> bool {
        self.seed.demo.unwrap_or(self.embedded())
    }

    /// `proxie token` hands out tokens without asking who you are: fine on a throw-away store, not elsewhere.
    pub fn dev_tokens(&self) -> bool {
        self.auth.dev_tokens.unwrap_or(self.embedded())
    }
}

impl Gateway {
    /// What `allowed_origins` stands for. An empty one is none, as a variable that is set to nothing makes it.
    pub fn origins(&self) -> Result<Vec<Allowed>, String> {
        let named = self.allowed_origins.iter().filter(|origin| !origin.is_empty());
        named
            .map(|origin| origin.parse())
            .collect::<Result<_, _>>()
            .map_err(|error| format!("gateway.allowed_origins: {error}"))
    }
}

fn wrong_grant(grant: &TopicGrant) -> Option<&'static str> {
    match split_topic(&grant.topic) {
        Ok(("app", _)) if grant.durable && grant.latest_only => {
            Some("topics.grants: durable and latest_only exclude each other")
        }
        Ok(("app", _)) => None,
        _ => Some("topics.grants: a topic must look like app:lobby, in visible characters"),
    }
}

/// Others can be told to find this node there.
fn is_reachable(listen: &str) -> bool {
    let address = listen.parse::<std::net::SocketAddr>();
    address.is_ok_and(|address| !address.ip().is_unspecified() && address.port() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_shows_the_defaults() {
        let file = config::Config::builder()
            .add_source(config::File::from_str(
                include_str!("../config.toml"),
                config::FileFormat::Toml,
            ))
            .build()
            .unwrap();
        assert_eq!(file.try_deserialize::<Config>().unwrap(), Config::default());
    }

    #[test]
    fn the_file_names_every_key() {
        // A key that has a default but is not in the file would be invisible.
        let file = include_str!("../config.toml");
        for line in include_str!("config.rs")
            .split("#[cfg(test)]")
            .next()
            .unwrap()
            .split("section!(")
            .skip(2)
        {
            for field in line.split('{').nth(1).unwrap_or_default().split(',') {
                if let Some((name, rest)) = field.split_once(':')
                    && rest.contains('=')
                {
                    assert!(
                        file.contains(name.trim()),
                        "config.toml does not name {}",
                        name.trim()
                    );
                }
            }
        }
    }

    #[test]
    fn the_file_names_the_keys_of_websocket() {
        let file = include_str!("../config.toml");
        for key in serde_json::to_value(WebSocket::default()).unwrap().as_object().unwrap().keys() {
            assert!(file.contains(&format!("\n{key} = ")), "config.toml does not name {key}");
        }
    }

    #[test]
    fn origins_are_checked() {
        let check = |origins: &[&str], allow_credentials| {
            let mut config = Config::default();
            config.gateway.allowed_origins = origins.iter().map(|&o| o.into()).collect();
            config.gateway.allow_credentials = allow_credentials;
            config.check()
        };
        assert_eq!(check(&["https://app.example/", "https://*.example.org", ""], true), Ok(()));
        assert_eq!(check(&["*"], false), Ok(()));
        assert!(check(&["*"], true).unwrap_err().contains("allow_credentials"));
        for bad in ["app.example", "https://app.*", "https://app.example/app"] {
            let error = check(&[bad], false).unwrap_err();
            assert!(
                error.starts_with("gateway.allowed_origins: ") && error.contains(bad),
                "{error}"
            );
        }
    }

    #[test]
    fn grants_are_checked() {
        let grant = |topic: &str, durable: bool, latest_only: bool| TopicGrant {
            topic: topic.into(),
            publish: Vec::new(),
            subscribe: Vec::new(),
            durable,
            latest_only,
            max_per_s: 0,
        };
        for (grant, good) in [
            (grant("app:lobby", false, true), true),
            (grant("app:lobby:7", true, false), true),
            (grant("app:lobby", true, true), false),
            (grant("app:", false, false), false),
            (grant("lobby", false, false), false),
            (grant("user:alice", false, false), false),
            (grant("app:two words", false, false), false),
        ] {
            let mut config = Config::default();
            config.topics.grants = vec![grant.clone()];
            assert_eq!(config.check().is_ok(), good, "{:?}", config.topics.grants);
            config.topics.grants.push(grant);
            assert!(config.check().is_err(), "the same topic twice");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        let typo = config::Config::builder()
            .add_source(config::File::from_str(
                "[gateway]\nlissten = \"x\"",
                config::FileFormat::Toml,
            ))
            .build()
            .unwrap();
        assert!(typo.try_deserialize::<Config>().is_err());
    }

    #[test]
    fn a_cluster_needs_its_cookie() {
        let mut config = Config::default();
        config.cluster.enabled = true;
        assert!(config.check().unwrap_err().contains("cookie"));
    }
}
