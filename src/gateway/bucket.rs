//! A rate: of one connection, or of one application topic.

use tokio::time::Instant;

/// So many a second on average, and a burst at once.
pub struct Bucket {
    per_s: f64,
    burst: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    pub fn new(per_s: u32, burst: u32, now: Instant) -> Self {
        Self { per_s: f64::from(per_s), burst: f64::from(burst), left: f64::from(burst), at: now }
    }

    pub fn take(&mut self, now: Instant) -> bool {
        self.take_many(now, 1)
    }

    /// All of them, or none.
    pub fn take_many(&mut self, now: Instant, n: u32) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * self.per_s;
        self.left = (self.left + earned).min(self.burst);
        self.at = now;
        let allowed = self.left >= f64::from(n);
        if allowed {
            self.left -= f64::from(n);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_allowed_and_a_flood_is_not() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100, 500, start);
        assert!((0..500).all(|_| bucket.take(start)));
        assert!(!bucket.take(start));
        let mut bucket = Bucket::new(100, 500, start);
        let steady = |n: u64| start + Duration::from_millis(n * 10);
        assert!((0..5_000).all(|n| bucket.take(steady(n))));
        let mut bucket = Bucket::new(100, 500, start);
        assert!(bucket.take_many(start, 400) && !bucket.take_many(start, 101));
        assert!(bucket.take_many(start, 100) && bucket.take_many(start, 0));
    }
}
