//! A token bucket: the rate limit of one connection or of one application topic.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket: so many a second on average, and a burst at once.
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

    fn earn(&mut self, now: Instant) {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * self.per_s;
        self.left = (self.left + earned).min(self.burst);
        self.at = now;
    }

    /// Charges for items that were taken without asking. The debt is capped at one burst.
    pub fn owe(&mut self, n: u32) {
        self.left = (self.left - f64::from(n)).max(-self.burst);
    }

    /// The time until one may be taken; zero: now.
    pub fn wait(&mut self, now: Instant) -> Duration {
        self.earn(now);
        let missing = (1.0 - self.left).max(0.0);
        Duration::from_secs_f64(missing / self.per_s.max(1.0))
    }

    pub fn take(&mut self, now: Instant) -> bool {
        self.take_many(now, 1)
    }

    /// Takes all `n` of them, or none.
    pub fn take_many(&mut self, now: Instant, n: u32) -> bool {
        self.earn(now);
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

    #[test]
    fn what_is_owed_is_waited_for_but_no_longer_than_for_a_burst() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100, 500, start);
        bucket.owe(499);
        assert_eq!(bucket.wait(start), Duration::ZERO);
        bucket.owe(1);
        assert_eq!(bucket.wait(start), Duration::from_millis(10));
        bucket.owe(100);
        assert_eq!(bucket.wait(start), Duration::from_millis(1_010));
        bucket.owe(u32::MAX);
        assert_eq!(bucket.wait(start), Duration::from_millis(5_010));
        assert_eq!(bucket.wait(start + Duration::from_secs(6)), Duration::ZERO);
    }
}
