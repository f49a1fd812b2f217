//! Rate limits behind one trait: counted in this process, or in Redis so that several nodes count together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use moka::sync::Cache;
use parking_lot::Mutex;
use redis::aio::ConnectionManager;

/// A limit of `quota` hits in any `window_s` seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub quota: u32,
    pub window_s: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateVerdict {
    pub allowed: bool,
    pub remaining: u32,
    /// Seconds until there is quota again.
    pub reset_s: u32,
}

/// The nodes that count together: those of one store, by incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nodes {
    /// The store's epoch.
    pub store: Arc<str>,
    pub this: i64,
    /// The living nodes as far as this one knows, with or without itself.
    pub living: Vec<i64>,
}

/// This node's count, and a version that orders its reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionCount {
    pub count: usize,
    pub version: u64,
}

pub trait RateLimiter: Send + Sync {
    /// Counts `n` hits of `key`, unless they would exceed its quota: refused hits cost nothing.
    fn hits(&self, key: String, n: u32, policy: Policy) -> BoxFuture<'_, RateVerdict>;

    fn hit(&self, key: String, policy: Policy) -> BoxFuture<'_, RateVerdict> {
        self.hits(key, 1, policy)
    }

    /// Reports this node's count of `key`, and returns the sum over all living nodes. `None`: the report failed and has
    /// to be repeated.
    fn held(
        &self,
        _key: String,
        here: ConnectionCount,
        _nodes: Nodes,
    ) -> BoxFuture<'_, Option<usize>> {
        Box::pin(std::future::ready(Some(here.count)))
    }

    /// Whether several nodes count together.
    fn is_shared(&self) -> bool {
        false
    }
}

/// A sliding window of two counters: the previous window counts with the share of it that is still inside the sliding
/// one.
struct Window {
    started: Instant,
    previous: u32,
    current: u32,
}

/// The limiter of this process. It is bounded: the keys that were idle longest are forgotten first.
pub struct LocalLimiter {
    windows: Cache<String, Arc<Mutex<Window>>>,
}

impl LocalLimiter {
    pub fn new(max_keys: u64, max_window: Duration) -> Self {
        Self {
            windows: Cache::builder().max_capacity(max_keys).time_to_idle(max_window * 2).build(),
        }
    }

    fn hits_at(&self, key: String, n: u32, policy: Policy, now: Instant) -> RateVerdict {
        let window = self.windows.get_with(key, || {
            Arc::new(Mutex::new(Window { started: now, previous: 0, current: 0 }))
        });
        let mut window = window.lock();
        let length = Duration::from_secs(u64::from(policy.window_s.max(1)));
        let mut age = now.saturating_duration_since(window.started);
        if age >= length * 2 {
            *window = Window { started: now, previous: 0, current: 0 };
            age = Duration::ZERO;
        } else if age >= length {
            *window =
                Window { started: window.started + length, previous: window.current, current: 0 };
            age -= length;
        }
        let within_reach = 1.0 - age.as_secs_f64() / length.as_secs_f64();
        let used = (f64::from(window.previous) * within_reach).ceil() as u32 + window.current;
        let allowed = used.saturating_add(n) <= policy.quota;
        let counted = if allowed { n } else { 0 };
        window.current += counted;
        let left = length - age;
        RateVerdict {
            allowed,
            remaining: policy.quota.saturating_sub(used + counted),
            reset_s: (left.as_millis().div_ceil(1_000) as u32).max(1),
        }
    }
}

impl RateLimiter for LocalLimiter {
    fn hits(&self, key: String, n: u32, policy: Policy) -> BoxFuture<'_, RateVerdict> {
        let verdict = self.hits_at(key, n, policy, Instant::now());
        Box::pin(std::future::ready(verdict))
    }
}

/// Counts in Redis. Losing it degrades to counting here; it never stops a request.
pub struct RedisLimiter {
    redis: ConnectionManager,
    local: LocalLimiter,
    patience: Duration,
}

impl RedisLimiter {
    /// A hit that Redis has not answered within `patience` is counted by `local`.
    pub async fn connect(
        url: &str,
        local: LocalLimiter,
        patience: Duration,
    ) -> Result<Self, redis::RedisError> {
        let redis = ConnectionManager::new(redis::Client::open(url)?).await?;
        Ok(Self { redis, local, patience })
    }
}

impl RedisLimiter {
    /// Checks the syntax of the URL, without connecting.
    pub fn check(url: &str) -> Result<(), redis::RedisError> {
        redis::Client::open(url).map(drop)
    }

    async fn in_time<T>(
        &self,
        asked: impl Future<Output = Result<T, redis::RedisError>>,
    ) -> Option<T> {
        in_time(self.patience, asked).await
    }
}

/// The answer of Redis, if it comes in time.
pub(super) async fn in_time<T>(
    patience: Duration,
    asked: impl Future<Output = Result<T, redis::RedisError>>,
) -> Option<T> {
    match tokio::time::timeout(patience, asked).await {
        Ok(Ok(answer)) => Some(answer),
        _ => {
            metrics::counter!("proxie_redis_failures_total").increment(1);
            None
        }
    }
}

impl RateLimiter for RedisLimiter {
    fn hits(&self, key: String, n: u32, policy: Policy) -> BoxFuture<'_, RateVerdict> {
        Box::pin(async move {
            let shared = self.in_time(shared_hits(self.redis.clone(), &key, n, policy)).await;
            shared.unwrap_or_else(|| self.local.hits_at(key, n, policy, Instant::now()))
        })
    }

    fn held(
        &self,
        key: String,
        here: ConnectionCount,
        nodes: Nodes,
    ) -> BoxFuture<'_, Option<usize>> {
        Box::pin(
            async move { self.in_time(shared_held(self.redis.clone(), &key, here, &nodes)).await },
        )
    }

    fn is_shared(&self) -> bool {
        true
    }
}

/// Reports a node's count, and sums the counts of all nodes. Each node's entry is `<version>:<count>`, a total and not
/// a difference, so reports may be lost or late as long as the last one arrives. Incarnations grow, so a node that is
/// older than the youngest known living one, and is not itself known to live, is dead, and its entry is deleted.
async fn shared_held(
    mut redis: ConnectionManager,
    key: &str,
    here: ConnectionCount,
    nodes: &Nodes,
) -> Result<usize, redis::RedisError> {
    static SCRIPT: std::sync::LazyLock<redis::Script> = std::sync::LazyLock::new(|| {
        redis::Script::new(
            "local me, version, count = ARGV[1], tonumber(ARGV[2]), ARGV[3]
             local living, youngest, all = {[me] = true}, 0, 0
             for i = 4, #ARGV do
                 living[ARGV[i]] = true
                 youngest = math.max(youngest, tonumber(ARGV[i]))
             end
             local before = redis.call('HGET', KEYS[1], me)
             if not before or tonumber(string.match(before, '^%d+')) < version then
                 redis.call('HSET', KEYS[1], me, ARGV[2] .. ':' .. count)
             end
             local held = redis.call('HGETALL', KEYS[1])
             for i = 1, #held, 2 do
                 local n = tonumber(string.match(held[i + 1], '%d+$'))
                 if living[held[i]] then
                     all = all + n
                 elseif tonumber(held[i]) < youngest then
                     redis.call('HDEL', KEYS[1], held[i])
                 end
             end
             redis.call('EXPIRE', KEYS[1], 172800)
             return all",
        )
    });
    let mut call = SCRIPT.key(format!("proxie:held:{{{}:{key}}}", nodes.store));
    call.arg(nodes.this).arg(here.version).arg(here.count);
    for node in &nodes.living {
        call.arg(*node);
    }
    call.invoke_async(&mut redis).await
}

/// Counts hits with the same two counters, by the clock of Redis; they expire by themselves.
async fn shared_hits(
    mut redis: ConnectionManager,
    key: &str,
    n: u32,
    policy: Policy,
) -> Result<RateVerdict, redis::RedisError> {
    static SCRIPT: std::sync::LazyLock<redis::Script> = std::sync::LazyLock::new(|| {
        redis::Script::new(
            "local now = redis.call('TIME')
             local s = tonumber(now[1]) + tonumber(now[2]) / 1000000
             local w = tonumber(ARGV[2])
             local n = math.floor(s / w)
             local cur, prev = KEYS[1] .. ':' .. n, KEYS[1] .. ':' .. (n - 1)
             local used = math.ceil((tonumber(redis.call('GET', prev)) or 0) * (1 - (s - n * w) / w))
                 + (tonumber(redis.call('GET', cur)) or 0)
             local ok = 0
             if used + tonumber(ARGV[3]) <= tonumber(ARGV[1]) then
                 redis.call('INCRBY', cur, ARGV[3])
                 redis.call('EXPIRE', cur, w * 2)
                 ok = 1
             end
             return {ok, used, math.ceil(w - (s - n * w))}",
        )
    });
    let (ok, used, reset_s): (u8, u32, u32) = SCRIPT
        .key(format!("proxie:limit:{{{key}}}"))
        .arg(policy.quota)
        .arg(policy.window_s.max(1))
        .arg(n)
        .invoke_async(&mut redis)
        .await?;
    let remaining = policy.quota.saturating_sub(used + if ok == 1 { n } else { 0 });
    Ok(RateVerdict { allowed: ok == 1, remaining, reset_s: reset_s.max(1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_holds_in_every_window() {
        let limiter = LocalLimiter::new(100, Duration::from_secs(60));
        let policy = Policy { quota: 10, window_s: 60 };
        let start = Instant::now();
        let hit = |s: u64| limiter.hits_at("a".into(), 1, policy, start + Duration::from_secs(s));
        for n in 0..10 {
            let verdict = hit(50);
            assert!(verdict.allowed);
            assert_eq!(verdict.remaining, 9 - n);
        }
        let refused = hit(50);
        assert!(!refused.allowed && refused.reset_s > 0);
        // Just over the edge of a fixed window the old hits still count.
        assert!(!hit(61).allowed);
        assert!(limiter.hits_at("b".into(), 1, policy, start).allowed, "others are not concerned");
        assert!(hit(50 + 121).allowed);
        // Several at once, or none of them.
        let hits = |n: u32| limiter.hits_at("c".into(), n, policy, start);
        assert_eq!(
            [hits(6), hits(6), hits(4), hits(1)].map(|v| v.allowed),
            [true, false, true, false]
        );
    }
}
