//! Configuration: `config.toml`, overridden by `PROXIE__SECTION__KEY`, `DATABASE_URL` and `REDIS_URL`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::contract::section::{SectionKind, Sections};
pub use crate::gateway::ws::ConnectionLimits as WebSocket;
use crate::gateway::{Allowed, AllowedHost, Hosts};
use crate::kernel::secret::Secret;
use crate::persistence::objects::ObjectOptions;
use crate::systems;

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

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub node: Node,
    pub gateway: Gateway,
    pub websocket: WebSocket,
    pub topics: Topics,
    pub auth: Auth,
    pub persistence: Persistence,
    pub redis: Redis,
    pub objects: ObjectOptions,
    pub vault: Vault,
    pub cluster: Cluster,
    pub entities: Entities,
    pub seed: Seed,
    pub log: Log,
    #[serde(skip)]
    pub systems: Sections,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: Node::default(),
            gateway: Gateway::default(),
            websocket: WebSocket::default(),
            topics: Topics::default(),
            auth: Auth::default(),
            persistence: Persistence::default(),
            redis: Redis::default(),
            objects: ObjectOptions::default(),
            vault: Vault::default(),
            cluster: Cluster::default(),
            entities: Entities::default(),
            seed: Seed::default(),
            log: Log::default(),
            systems: Sections::defaults(sections()),
        }
    }
}

fn sections() -> impl Iterator<Item = SectionKind> {
    systems::ALL.iter().flat_map(|system| system.sections).copied()
}

/// Takes out what the key leads to.
fn remove(table: &mut config::Value, key: &str) {
    let config::ValueKind::Table(table) = &mut table.kind else { return };
    match key.split_once('.') {
        Some((section, key)) => {
            if let Some(section) = table.get_mut(section) {
                remove(section, key);
            }
        }
        None => drop(table.remove(key)),
    }
}

section!(Node {
    name: String = "node-1".into(),
    data_dir: PathBuf = "data".into(),
    stop_s: u64 = 20,
    clock_warn_ms: i64 = 500,
    clock_limit_ms: i64 = 5_000,
});

section!(Gateway {
    listen: String = "127.0.0.1:8080".into(),
    admin_listen: String = String::new(),
    allowed_origins: Vec<String> = Vec::new(),
    allowed_hosts: Vec<String> = Vec::new(),
    allow_credentials: bool = false,
    trusted_proxies: Vec<String> = Vec::new(),
    max_body_bytes: usize = 262_144,
    request_timeout_ms: u64 = 15_000,
    requests_per_minute: u32 = 1_200,
    max_connections: usize = 200_000,
    max_connections_per_address: usize = 4_096,
    accepts_per_s: u32 = 5_000,
    header_timeout_ms: u64 = 10_000,
    drain_grace_ms: Option<u64> = None,
    drain_ms: u64 = 2_000,
});

section!(Topics {
    history_limit: i32 = 1_000,
    history_bytes: i64 = 4_194_304,
    history_s: i64 = 604_800,
});

section!(Auth { token_s: i64 = 86_400, dev_tokens: Option<bool> = None });

section!(Persistence {
    database_url: Secret<String> = Secret::default(),
    postgres_bin_dir: PathBuf = PathBuf::new(),
    shared_buffers: String = "256MB".into(),
    max_connections: u32 = 24,
    read_connections: u32 = 8,
    lanes: u16 = 2,
    max_batch_items: usize = 1_024,
    max_queued: usize = 8_192,
    dedupe_s: i64 = 86_400,
    allow_fsync_off: bool = false,
});

section!(Redis { url: Secret<String> = Secret::default() });

section!(Vault {
    key: Secret<String> = Secret::default(),
    key_file: PathBuf = PathBuf::new(),
    previous_key_file: PathBuf = PathBuf::new(),
    seal: bool = true,
    seal_after_s: u64 = 86_400,
});

section!(Cluster {
    enabled: bool = false,
    listen: String = "127.0.0.1:9090".into(),
    advertise: String = String::new(),
    cookie: Secret<String> = Secret::default(),
    tls_cert: PathBuf = PathBuf::new(),
    tls_key: PathBuf = PathBuf::new(),
    tls_ca: PathBuf = PathBuf::new(),
    transport: TransportKind = TransportKind::Framed,
    weight: u32 = 1,
    window_mb: usize = 16,
    hand_over_s: u64 = 8,
    lease_s: f64 = 4.0,
    read_ttl_ms: u64 = 1_000,
});

/// What carries messages between nodes: the same on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransportKind {
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
    delivery_hours: u32 = 24,
});

section!(Seed { demo: Option<bool> = None });

section!(Log { level: String = "info".into(), format: Option<LogFormat> = None });

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Pretty,
    Json,
}

const PREFIX: &str = "PROXIE__";
/// Keys that hold lists, and whether their items are plain words, which a comma can separate.
const LISTS: &[(&str, bool)] = &[
    ("gateway.allowed_origins", true),
    ("gateway.allowed_hosts", true),
    ("gateway.trusted_proxies", true),
    ("topics.grants", false),
];

/// Why a configuration is not valid, without the values in it: a secret may be where it does not belong.
fn explain(error: &config::ConfigError) -> String {
    use config::ConfigError::{At, FileParse, Type};
    let place = |key: &Option<String>, origin: &Option<String>| {
        let key = key.as_ref().map(|key| format!(" for key `{key}`"));
        let origin = origin.as_ref().map(|origin| format!(" in {origin}"));
        key.unwrap_or_default() + &origin.unwrap_or_default()
    };
    match error {
        Type { origin, expected, key, .. } => {
            format!("expected {expected}{}", place(key, origin))
        }
        At { error, origin, key } => explain(error) + &place(key, origin),
        FileParse { uri, cause } => {
            // It shows the line.
            let cause = cause.to_string();
            let said: Vec<&str> = cause.lines().filter(|line| !line.contains('|')).collect();
            said.join(": ") + &place(&None, uri)
        }
        other => {
            let said = other.to_string();
            match said.rsplit_once(", expected ") {
                Some((found, expected)) if found.starts_with("invalid ") => {
                    format!("expected {expected}")
                }
                _ => said,
            }
        }
    }
}

fn has_prefix(name: &str) -> bool {
    name.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// A value from the environment: a word, which the key's type makes a number or a truth of; or a list, as JSON or with
/// commas.
fn from_environment(name: &str, key: &str, value: String) -> Result<config::Value, String> {
    let Some((_, words)) = LISTS.iter().find(|(list, _)| *list == key) else {
        return Ok(value.into());
    };
    let text = value.trim();
    if *words && !text.starts_with('[') {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        return Ok(items.map(str::to_owned).collect::<Vec<_>>().into());
    }
    let items: Vec<serde_json::Value> = match text {
        "" => Vec::new(),
        text => serde_json::from_str(text).map_err(|e| {
            let commas = if *words { ", or words with commas between them" } else { "" };
            format!("the configuration is not valid: {name} must be a list in JSON{commas}: {e}")
        })?,
    };
    Ok(items.into_iter().map(from_json).collect::<Vec<_>>().into())
}

fn from_json(value: serde_json::Value) -> config::Value {
    use serde_json::Value;
    match value {
        Value::Null => config::Value::new(None, config::ValueKind::Nil),
        Value::Bool(value) => value.into(),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => whole.into(),
            None => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Value::String(text) => text.into(),
        Value::Array(items) => items.into_iter().map(from_json).collect::<Vec<_>>().into(),
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, from_json(value)));
            fields.collect::<std::collections::HashMap<_, _>>().into()
        }
    }
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
        let mut builder = builder;
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| has_prefix(name)) else {
                continue;
            };
            let value = value.into_string().map_err(|_| format!("{name} is not valid UTF-8"))?;
            let key = name[PREFIX.len()..].to_lowercase().replace("__", ".");
            builder = builder
                .set_override(&key, from_environment(name, &key, value)?)
                .map_err(|e| format!("the configuration is not valid: {name}: {}", explain(&e)))?;
        }
        let mut config = builder
            .build()
            .and_then(Self::of)
            .map_err(|e| format!("the configuration is not valid: {}", explain(&e)))?;
        let secret = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        if let Some(url) = secret("DATABASE_URL") {
            config.persistence.database_url = url.into();
        }
        if let Some(url) = secret("REDIS_URL") {
            config.redis.url = url.into();
        }
        config.check()?;
        Ok(config)
    }

    /// The sections of the systems, and our own.
    fn of(mut written: config::Config) -> Result<Self, config::ConfigError> {
        let systems = Sections::read(sections(), &written)?;
        sections().for_each(|section| remove(&mut written.cache, section.name));
        Ok(Self { systems, ..written.cache.try_deserialize()? })
    }

    fn check(&self) -> Result<(), String> {
        let origins = self.gateway.origins()?;
        self.gateway.hosts()?;
        let problem = if self.cluster.enabled && self.cluster.cookie.reveal().is_empty() {
            "cluster.enabled needs a cluster.cookie: set PROXIE__CLUSTER__COOKIE to the same secret on every node"
        } else if self.cluster.enabled && self.embedded() {
            "cluster.enabled needs DATABASE_URL: nodes find each other through the database they share"
        } else if !(1..=64).contains(&self.persistence.lanes) {
            "persistence.lanes must be between 1 and 64"
        } else if self.persistence.max_connections < u32::from(self.persistence.lanes) + 6 {
            "persistence.max_connections must exceed persistence.lanes by at least 6"
        } else if self.persistence.read_connections < 1 {
            "persistence.read_connections must be at least 1"
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
        } else if self.cluster.enabled
            && self.cluster.cookie.reveal().trim() != self.cluster.cookie.reveal()
        {
            "cluster.cookie begins or ends with a space or a line break: leave it out"
        } else if self.cluster.enabled && !has_port(&self.cluster.listen) {
            "cluster.listen must be an address with a port, such as 10.0.0.7:9090"
        } else if self.cluster.enabled
            && !self.cluster.advertise.is_empty()
            && (!has_port(&self.cluster.advertise) || self.cluster.advertise.ends_with(":0"))
        {
            "cluster.advertise must be an address or a name with a port, such as node-1.example:9090"
        } else if self.cluster.enabled
            && self.node.stop_s < self.cluster.hand_over_s + Self::AFTER_HAND_OVER_S
        {
            "node.stop_s must exceed cluster.hand_over_s by at least 12"
        } else if !(1..=3_600).contains(&self.node.stop_s) {
            "node.stop_s must be between 1 and 3600"
        } else if !(1..=self.node.clock_limit_ms).contains(&self.node.clock_warn_ms) {
            "node.clock_warn_ms must be at least 1, and node.clock_limit_ms no less than that"
        } else if !is_size(&self.persistence.shared_buffers) {
            "persistence.shared_buffers must be a size such as 256MB"
        } else if let Some(key) = self.zero() {
            return Err(format!("{key} must be at least 1"));
        } else if self.topics.history_limit < 1 || self.topics.history_bytes < 1 {
            "topics.history_limit and topics.history_bytes must be at least 1"
        } else if self.entities.snapshot_every < 1 || self.entities.max_in_flight < 1 {
            "entities.snapshot_every and entities.max_in_flight must be at least 1"
        } else if self.vault.seal_after_s > 31_536_000 {
            "vault.seal_after_s must be at most 31536000 (a year)"
        } else if !(1..=8_760).contains(&self.entities.delivery_hours) {
            "entities.delivery_hours must be between 1 and 8760 (a year)"
        } else {
            return Ok(());
        };
        Err(problem.into())
    }

    /// What a stop needs besides moving slots.
    const AFTER_HAND_OVER_S: u64 = 12;

    /// A key that means nothing as 0 or less.
    fn zero(&self) -> Option<&'static str> {
        let (http, topics, store) = (&self.gateway, &self.topics, &self.persistence);
        let keys = [
            ("gateway.max_body_bytes", http.max_body_bytes as i64),
            ("gateway.request_timeout_ms", http.request_timeout_ms as i64),
            ("gateway.requests_per_minute", http.requests_per_minute.into()),
            ("gateway.max_connections", http.max_connections as i64),
            ("gateway.max_connections_per_address", http.max_connections_per_address as i64),
            ("gateway.accepts_per_s", http.accepts_per_s.into()),
            ("gateway.header_timeout_ms", http.header_timeout_ms as i64),
            ("topics.history_s", topics.history_s),
            ("auth.token_s", self.auth.token_s),
            ("persistence.max_batch_items", store.max_batch_items as i64),
            ("persistence.max_queued", store.max_queued as i64),
            ("persistence.dedupe_s", store.dedupe_s),
            ("cluster.read_ttl_ms", self.cluster.read_ttl_ms as i64),
            ("entities.max_live", self.entities.max_live as i64),
            ("entities.memory_limit_mb", self.entities.memory_limit_mb as i64),
            ("entities.park_after", self.entities.park_after.into()),
        ];
        keys.into_iter().find(|(_, value)| *value < 1).map(|(key, _)| key)
    }

    /// How long a node that is to leave answers with `/readyz` red. Without a cluster there is nobody to go to.
    pub fn drain_grace(&self) -> Duration {
        let default = if self.cluster.enabled { 5_000 } else { 0 };
        Duration::from_millis(self.gateway.drain_grace_ms.unwrap_or(default))
    }

    pub fn embedded(&self) -> bool {
        self.persistence.database_url.reveal().is_empty()
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

    /// What `allowed_hosts` stands for, with the name of this machine and the address that is listened at.
    pub fn hosts(&self) -> Result<Hosts, String> {
        let named = self.allowed_hosts.iter().filter(|host| !host.is_empty());
        let named: Result<Vec<AllowedHost>, String> = named.map(|host| host.parse()).collect();
        let mut hosts = named.map_err(|error| format!("gateway.allowed_hosts: {error}"))?;
        let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let address = self.listen.rsplit_once(':').map(|(address, _)| address.to_owned());
        // A machine may have a name that is no host's; it is not asked by that one.
        hosts.extend(
            [Some(machine), address].into_iter().flatten().filter_map(|host| host.parse().ok()),
        );
        Ok(Hosts::new(hosts))
    }
}

/// `host:port`, where the host may be a name.
fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(char::is_whitespace) && port.parse::<u16>().is_ok()
    })
}

/// As PostgreSQL writes it.
fn is_size(text: &str) -> bool {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    digits.parse::<u32>().is_ok_and(|n| n > 0)
        && ["", "B", "kB", "MB", "GB", "TB"].contains(&&text[digits.len()..])
}

/// Others can be told to find this node there.
fn is_reachable(listen: &str) -> bool {
    let address = listen.parse::<std::net::SocketAddr>();
    address.is_ok_and(|address| !address.ip().is_unspecified() && address.port() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::systems::app_topics::settings::Grants;

    #[test]
    fn the_file_shows_the_defaults() {
        let file = config::Config::builder()
            .add_source(config::File::from_str(
                include_str!("../config.toml"),
                config::FileFormat::Toml,
            ))
            .build()
            .unwrap();
        assert_eq!(Config::of(file).unwrap(), Config::default());
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
            .skip(1)
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
    fn no_secret_is_shown() {
        let of = |text: &str| {
            let file = config::File::from_str(text, config::FileFormat::Toml);
            let built = config::Config::builder().add_source(file).build();
            built.and_then(Config::of).map_err(|e| explain(&e))
        };
        let config = of("cluster.cookie = \"hunter-1\"\nredis.url = \"redis://:hunter-2@localhost\"
            persistence.database_url = \"postgres://proxie:hunter-3@localhost/x\"\nvault.key = \"hunter-4\"");
        let config = config.unwrap();
        assert_eq!(config.cluster.cookie.reveal(), "hunter-1");
        assert!(config.redis.url.reveal().contains("hunter-2"));
        assert!(config.persistence.database_url.reveal().contains("hunter-3"));
        assert_eq!(config.vault.key.reveal(), "hunter-4");
        let shown = format!("{config:?} {config:#?}");
        assert!(!shown.contains("hunter"), "{shown}");
        assert!(shown.matches("(secret)").count() >= 8, "{shown}");
        // Nor where it is somewhere else than it should be.
        for wrong in [
            "cluster.cookie = hunter",
            "[cluster]\ncookie = \"hunter",
            "redis = \"redis://:hunter@localhost\"",
            "cluster.cookie = [\"hunter\"]",
            "cluster.cookie.hunter = 1",
            "vault = \"hunter\"",
            "cluster.weight = \"hunter\"",
            "persistence.database_url = { hunter = \"hunter\" }",
        ] {
            let error = of(wrong).unwrap_err();
            assert!(!error.contains("hunter") && error.len() > 20, "{wrong}: {error}");
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
        assert!(Config::of(typo).is_err());
    }

    #[test]
    fn lists_of_the_environment_are_those_of_the_file() {
        let read = |key: &str, text: &str| {
            let value = from_environment("PROXIE__X", key, text.into())?;
            let builder = config::Config::builder().set_override(key, value).unwrap();
            Config::of(builder.build().unwrap()).map_err(|e| e.to_string())
        };
        let origins =
            |text: &str| read("gateway.allowed_origins", text).unwrap().gateway.allowed_origins;
        for text in [
            "https://a.example,https://b.example",
            r#"["https://a.example", "https://b.example"]"#,
            " https://a.example , https://b.example, ",
        ] {
            assert_eq!(origins(text), ["https://a.example", "https://b.example"], "{text}");
        }
        assert!(origins("").is_empty() && origins("[]").is_empty());
        assert_eq!(
            read("gateway.trusted_proxies", "10.0.0.0/8").unwrap().gateway.trusted_proxies,
            ["10.0.0.0/8"]
        );
        let grants = r#"[{"topic": "app:lobby", "publish": ["consumer"], "subscribe": [], "max_per_s": 5, "durable": true}]"#;
        let written = read("topics.grants", grants).unwrap();
        let Grants(grants) = written.systems.get().unwrap();
        assert_eq!(
            (grants[0].topic.as_str(), grants[0].max_per_s, grants[0].durable),
            ("app:lobby", 5, true)
        );
        for (key, wrong) in [
            ("gateway.allowed_origins", "[\"a\""),
            ("topics.grants", "app:lobby"),
            ("topics.grants", r#"[{"topic": 1}]"#),
        ] {
            assert!(read(key, wrong).is_err(), "{key} {wrong}");
        }
        // A word stays what it is: a cookie of digits loses none of them.
        assert_eq!(read("cluster.cookie", "007").unwrap().cluster.cookie, "007".into());
        let config = read("cluster.weight", "3").unwrap();
        assert_eq!(config.cluster.weight, 3);
        assert!(read("cluster.enabled", "true").unwrap().cluster.enabled);
        assert_eq!(read("auth.dev_tokens", "false").unwrap().auth.dev_tokens, Some(false));
        assert_eq!(read("log.format", "json").unwrap().log.format, Some(LogFormat::Json));
        assert_eq!(read("cluster.lease_s", "2.5").unwrap().cluster.lease_s, 2.5);
        assert!(read("cluster.weight", "many").is_err());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let refused = |change: fn(&mut Config)| {
            let mut config = Config::default();
            config.persistence.database_url = "postgres://localhost/x".into();
            (config.cluster.enabled, config.cluster.cookie) = (true, "c".into());
            assert_eq!(config.check(), Ok(()));
            change(&mut config);
            config.check().unwrap_err()
        };
        for (change, key) in [
            ((|c| c.cluster.cookie = " c\n".into()) as fn(&mut Config), "cluster.cookie"),
            (|c| c.cluster.listen = "10.0.0.7".into(), "cluster.advertise"),
            (
                |c| (c.cluster.listen, c.cluster.advertise) = ("10.0.0.7".into(), "a:1".into()),
                "cluster.listen",
            ),
            (|c| c.cluster.advertise = "node-1".into(), "cluster.advertise"),
            (|c| c.cluster.hand_over_s = 9, "node.stop_s"),
            (|c| c.node.clock_warn_ms = 6_000, "node.clock_warn_ms"),
            (|c| c.persistence.shared_buffers = "lots".into(), "persistence.shared_buffers"),
            (|c| c.gateway.request_timeout_ms = 0, "gateway.request_timeout_ms"),
            (|c| c.topics.history_s = -1, "topics.history_s"),
        ] {
            let said = refused(change);
            assert!(said.contains(key), "{said}");
        }
    }

    #[test]
    fn a_cluster_needs_its_cookie() {
        let mut config = Config::default();
        config.cluster.enabled = true;
        assert!(config.check().unwrap_err().contains("cookie"));
    }
}
