//! Translation of the configuration into the options of a node's parts, and its checks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sqlx::postgres::PgConnectOptions;

use crate::app::member;
use crate::cluster::transport::{self, tls::Tls};
use crate::config::{Config, TransportKind};
use crate::gateway::{self, accept};
use crate::persistence::limits::{LocalLimiter, Policy, RateLimiter, RedisLimiter};
use crate::persistence::objects::Objects;
use crate::persistence::shared::SealedCache;
use crate::persistence::store;
use crate::persistence::vault::{self, Master, Masters, Vault};
use crate::telemetry;

/// Checks everything that `serve` would refuse and that can be found out without starting anything. Both `serve` and
/// `check-config` call this first.
pub fn check(config: &Config) -> anyhow::Result<()> {
    telemetry::filter(&config.log).context("log.level")?;
    if !config.embedded() {
        database(config)?;
    } else if !config.persistence.postgres_bin_dir.as_os_str().is_empty() {
        let bin = &config.persistence.postgres_bin_dir;
        anyhow::ensure!(
            bin.join("postgres").is_file(),
            "persistence.postgres_bin_dir: there is no postgres in {}",
            bin.display()
        );
    }
    if !config.redis.url.reveal().is_empty() {
        RedisLimiter::check(config.redis.url.reveal()).context("REDIS_URL")?;
    }
    gateway(config)?;
    objects(config)?;
    config.systems.prepare().map_err(anyhow::Error::msg)?;
    if config.cluster.enabled {
        tls(config)?;
    }
    // A file of its own is made at the first start; any other is there.
    let is_made = config.vault.key_file.as_os_str().is_empty() || !config.vault.key_file.exists();
    if !is_made || !config.vault.key.reveal().is_empty() {
        masters(config, false).map_err(anyhow::Error::msg).context("vault")?;
    }
    Ok(())
}

pub fn database(config: &Config) -> anyhow::Result<PgConnectOptions> {
    let url = config.persistence.database_url.reveal();
    let known = ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
    anyhow::ensure!(known, "DATABASE_URL is not a PostgreSQL URL");
    url.parse().context("DATABASE_URL is not a PostgreSQL URL")
}

pub fn store(config: &Config) -> store::Options {
    store::Options {
        max_connections: config.persistence.max_connections,
        allow_fsync_off: config.persistence.allow_fsync_off,
    }
}

/// Where the vault's master key comes from; `create` says whether a file may be made. `None`: nobody has said, and the
/// database is not this node's own.
pub fn masters(config: &Config, create: bool) -> Result<Option<Masters>, String> {
    let vault = &config.vault;
    let previous = match vault.previous_key_file.as_os_str().is_empty() {
        true => None,
        false => Some(Master::read(&vault.previous_key_file)?),
    };
    let current = if !vault.key.reveal().is_empty() {
        Master::parse(vault.key.reveal())?
    } else if vault.key_file.as_os_str().is_empty() && !config.embedded() {
        return Ok(None);
    } else {
        let path = vault_key_file(config);
        if create {
            Master::create(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        Master::read(&path).map_err(|why| {
            format!(
                "the vault's master key cannot be read ({why}): without it nobody reads what is sealed. Put the file back, \
                 or name it in vault.key_file"
            )
        })?
    };
    Ok(Some(Masters { current, previous }))
}

pub fn vault_key_file(config: &Config) -> PathBuf {
    match config.vault.key_file.as_os_str().is_empty() {
        true => config.node.data_dir.join("vault.key"),
        false => config.vault.key_file.clone(),
    }
}

pub fn seal_after(config: &Config) -> Duration {
    Duration::from_secs(config.vault.seal_after_s)
}

pub fn vault(config: &Config) -> vault::Options {
    let of = config.clone();
    vault::Options {
        masters: Box::new(move |there| masters(&of, !there)),
        seal_after: config.vault.seal.then(|| seal_after(config)),
    }
}

/// What a request waits for Redis at most: it is slower than a hit ever is, and nobody notices it.
const REDIS_PATIENCE: Duration = Duration::from_millis(50);

pub async fn limiter(config: &Config) -> anyhow::Result<Arc<dyn RateLimiter>> {
    let local = LocalLimiter::new(200_000, Duration::from_secs(60));
    Ok(match config.redis.url.reveal().as_str() {
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

/// In a cluster only where all nodes see them.
pub fn objects(config: &Config) -> anyhow::Result<Objects> {
    if config.cluster.enabled && config.objects.url.is_empty() {
        return Ok(Objects::nowhere("in a cluster objects.url names where all nodes see them"));
    }
    let otherwise = config.node.data_dir.join("objects");
    Objects::new(&config.objects, otherwise).map_err(anyhow::Error::msg).context("objects")
}

pub async fn sealed_cache(config: &Config, vault: Vault) -> anyhow::Result<SealedCache> {
    let cache = SealedCache::new(vault);
    match config.redis.url.reveal().as_str() {
        "" => Ok(cache),
        url => {
            let connecting = cache.connect(url, REDIS_PATIENCE);
            let connecting = tokio::time::timeout(Duration::from_secs(5), connecting).await;
            let redis =
                connecting.context("Redis does not answer: check REDIS_URL, or unset it")?;
            redis.context("cannot reach Redis: check REDIS_URL, or unset it")
        }
    }
}

pub fn gateway(config: &Config) -> anyhow::Result<gateway::Options> {
    let http = &config.gateway;
    Ok(gateway::Options {
        node_name: config.node.name.clone(),
        metrics_apart: !http.admin_listen.is_empty(),
        allowed_origins: http.origins().map_err(anyhow::Error::msg)?,
        hosts: http.hosts().map_err(anyhow::Error::msg)?,
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
        accept: accept::AcceptLimits {
            max_connections: http.max_connections,
            max_connections_per_address: http.max_connections_per_address,
            accepts_per_s: http.accepts_per_s,
            header_timeout: Duration::from_millis(http.header_timeout_ms),
        },
        websocket: config.websocket.clone(),
    })
}

/// How long a connection's hold is valid without renewal: as long as three of its pings may take.
pub fn connection_lease_s(config: &Config) -> i64 {
    let (ping, pong) = (config.websocket.ping_ms, config.websocket.pong_timeout_ms);
    i64::try_from((3 * ping + pong).div_ceil(1_000)).unwrap_or(90)
}

/// The TLS settings of links; `None`: links are plain TCP.
fn tls(config: &Config) -> anyhow::Result<Option<Tls>> {
    let cluster = &config.cluster;
    let readable =
        |path: &Path| std::fs::read(path).map(drop).with_context(|| path.display().to_string());
    if cluster.tls_cert.as_os_str().is_empty() {
        return Ok(None);
    }
    readable(&cluster.tls_cert).context("cluster.tls_cert")?;
    readable(&cluster.tls_key).context("cluster.tls_key")?;
    readable(&cluster.tls_ca).context("cluster.tls_ca")?;
    let tls = Tls::load(&cluster.tls_cert, &cluster.tls_key, &cluster.tls_ca)?;
    tls.check_name(&config.node.name)?;
    Ok(Some(tls))
}

pub async fn cluster(config: &Config) -> anyhow::Result<member::Options> {
    let cluster = &config.cluster;
    Ok(member::Options {
        listener: transport::bind(&cluster.listen).await?,
        tls: tls(config)?,
        advertise: match cluster.advertise.as_str() {
            "" => cluster.listen.clone(),
            advertise => advertise.into(),
        },
        cookie: cluster.cookie.clone(),
        weight: cluster.weight,
        pipe: match cluster.transport {
            TransportKind::Framed => member::Pipe::Framed,
            TransportKind::RactorCluster => member::Pipe::RactorCluster,
        },
        limits: transport::TransportLimits {
            window_bytes: cluster.window_mb << 20,
            max_envelope_bytes: (cluster.window_mb << 17).min(1 << 20),
            ..transport::TransportLimits::default()
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_a_cluster_are_where_all_nodes_see_them() {
        let mut config = Config::default();
        assert_eq!(objects(&config).unwrap().refusal(), None);
        config.cluster.enabled = true;
        assert!(objects(&config).unwrap().refusal().is_some());
        config.objects.url = "file:///srv/shared".into();
        assert_eq!(objects(&config).unwrap().refusal(), None);
        for wrong in ["ftp://x", "photos", "file://relative"] {
            config.objects.url = wrong.into();
            assert!(objects(&config).is_err(), "{wrong}");
        }
    }
}
