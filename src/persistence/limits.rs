//! How often somebody may ask: one trait, and the implementation of a single node.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use moka::sync::Cache;

/// So many hits in any `window_s` seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub quota: u32,
    pub window_s: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub allowed: bool,
    pub remaining: u32,
    /// When there will be more quota again.
    pub reset_s: u32,
}

pub trait RateLimiter: Send + Sync {
    /// Counts one hit of `key`, unless it is over its quota: refused hits cost nothing.
    fn hit(&self, key: String, policy: Policy) -> BoxFuture<'_, Verdict>;
}

/// A sliding window of two counters: the last window counts for the share of it that is still within reach.
struct Window {
    started: Instant,
    previous: u32,
    current: u32,
}

/// Bounded: the keys that were idle longest are forgotten first.
pub struct LocalLimiter {
    windows: Cache<String, Arc<Mutex<Window>>>,
}

impl LocalLimiter {
    pub fn new(max_keys: u64, max_window: Duration) -> Self {
        Self {
            windows: Cache::builder().max_capacity(max_keys).time_to_idle(max_window * 2).build(),
        }
    }

    fn hit_at(&self, key: String, policy: Policy, now: Instant) -> Verdict {
        let window = self.windows.get_with(key, || {
            Arc::new(Mutex::new(Window { started: now, previous: 0, current: 0 }))
        });
        let mut window = window.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let length = Duration::from_secs(u64::from(policy.window_s.max(1)));
        let mut age = now.saturating_duration_since(window.started);
        if age >= length * 2 {
            *window = Window { started: now, previous: 0, current: 0 };
            age = Duration::ZERO;
        } else if age >= length {
            *window = Window { started: window.started + length, previous: window.current, current: 0 };
            age -= length;
        }
        let within_reach = 1.0 - age.as_secs_f64() / length.as_secs_f64();
        let used = (f64::from(window.previous) * within_reach).ceil() as u32 + window.current;
        let allowed = used < policy.quota;
        if allowed {
            window.current += 1;
        }
        let left = length - age;
        Verdict {
            allowed,
            remaining: policy.quota.saturating_sub(used + u32::from(allowed)),
            reset_s: (left.as_millis().div_ceil(1_000) as u32).max(1),
        }
    }
}

impl RateLimiter for LocalLimiter {
    fn hit(&self, key: String, policy: Policy) -> BoxFuture<'_, Verdict> {
        let verdict = self.hit_at(key, policy, Instant::now());
        Box::pin(std::future::ready(verdict))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_holds_in_every_window() {
        let limiter = LocalLimiter::new(100, Duration::from_secs(60));
        let policy = Policy { quota: 10, window_s: 60 };
        let start = Instant::now();
        let hit = |s: u64| limiter.hit_at("a".into(), policy, start + Duration::from_secs(s));
        for n in 0..10 {
            let verdict = hit(50);
            assert!(verdict.allowed);
            assert_eq!(verdict.remaining, 9 - n);
        }
        let refused = hit(50);
        assert!(!refused.allowed && refused.reset_s > 0);
        // Just over the edge of a fixed window the old hits still count.
        assert!(!hit(61).allowed);
        assert!(limiter.hit_at("b".into(), policy, start).allowed, "others are not concerned");
        assert!(hit(50 + 121).allowed);
    }
}
