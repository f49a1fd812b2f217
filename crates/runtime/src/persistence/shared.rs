//! Values that nodes share for a while, in Redis, each sealed for a person. Losing them loses nothing.

use std::sync::Arc;
use std::time::Duration;

use redis::AsyncCommands;
use redis::aio::ConnectionManager;

use crate::kernel::private::{EncryptionContext, SEALED, Trouble};
use crate::persistence::limits::in_time;
use crate::persistence::vault::Vault;

/// The field that these values are bound to, besides their name.
const FIELD: &str = "@shared";

/// Cheap to clone.
#[derive(Clone)]
pub struct SealedCache {
    vault: Vault,
    /// `None`: there is no Redis, and nothing is shared.
    redis: Option<(ConnectionManager, Duration)>,
}

impl SealedCache {
    pub fn new(vault: Vault) -> Self {
        Self { vault, redis: None }
    }

    /// What Redis has not answered within `patience` counts as not there.
    pub async fn connect(self, url: &str, patience: Duration) -> Result<Self, redis::RedisError> {
        let redis = ConnectionManager::new(redis::Client::open(url)?).await?;
        Ok(Self { redis: Some((redis, patience)), ..self })
    }

    /// Grows with each erasure that this node learns of.
    pub fn erasures(&self) -> u64 {
        self.vault.erasures()
    }

    /// A person's value. `None` also where it cannot be had: Redis does not answer, or the person was erased.
    pub async fn get(&self, sort: &str, person: &str, name: &[u8]) -> Option<Vec<u8>> {
        let (redis, patience) = self.redis.as_ref().filter(|_| self.vault.seals())?;
        let person: Arc<str> = person.into();
        let (key, place) = self.key(sort, &person, name).await?;
        let mut redis = redis.clone();
        let found: Option<String> = in_time(*patience, redis.get(&key)).await?;
        let sealed = [SEALED, &found?, ":", &person].concat();
        known(self.vault.open(&sealed, &place, FIELD).await)?
    }

    pub async fn put(&self, sort: &str, person: &str, name: &[u8], value: &[u8], keep: Duration) {
        let Some((redis, patience)) = self.redis.as_ref().filter(|_| self.vault.seals()) else {
            return;
        };
        let person: Arc<str> = person.into();
        let Some((key, place)) = self.key(sort, &person, name).await else { return };
        let Some(sealed) = known(self.vault.seal(&person, &place, FIELD, value).await) else {
            return;
        };
        // Whose it is stays out of Redis.
        let end = sealed.len() - person.len() - 1;
        let (mut redis, ms) = (redis.clone(), keep.as_millis().max(1) as u64);
        let put = redis.pset_ex::<_, _, ()>(&key, &sealed[SEALED.len()..end], ms);
        in_time(*patience, put).await;
    }

    /// The key says neither whose value it is nor its name: only who has the person's key can make it, or try one.
    async fn key(
        &self,
        sort: &str,
        person: &Arc<str>,
        name: &[u8],
    ) -> Option<(String, EncryptionContext)> {
        let blind = known(self.vault.blind(person, name).await)?;
        let hex: String = blind.iter().map(|byte| format!("{byte:02x}")).collect();
        Some((format!("proxie:{sort}:{hex}"), EncryptionContext::new(sort, &hex)))
    }
}

fn known<T>(found: Result<T, Trouble>) -> Option<T> {
    found.inspect_err(|trouble| tracing::warn!(%trouble, "a shared value is not used")).ok()
}
