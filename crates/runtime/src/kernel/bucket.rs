//! A rate: of a connection, of an application topic, or of a runner.

use std::time::{Duration, Instant};

use crate::kernel::clock::Timestamp;

/// The time after which whoever waits looks again, however slow the rate is.
const LONGEST_WAIT: Duration = Duration::from_secs(3_600);

/// A reading of the clock that a rate is measured by.
pub trait Moment: Copy {
    /// The time since an earlier reading; zero where that is later.
    fn since(self, earlier: Self) -> Duration;
}

impl Moment for Instant {
    fn since(self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

impl Moment for Timestamp {
    fn since(self, earlier: Self) -> Duration {
        self.duration_since(earlier).try_into().unwrap_or_default()
    }
}

/// A token bucket: a steady rate on average, and a burst at once.
pub struct Bucket<M = Instant> {
    per_s: f64,
    burst: f64,
    left: f64,
    at: M,
}

impl<M: Moment> Bucket<M> {
    pub fn new(per_s: u32, burst: u32, now: M) -> Self {
        Self::every(Duration::from_secs(1), per_s, burst, now)
    }

    /// A bucket that earns `n` over each `per`.
    pub fn every(per: Duration, n: u32, burst: u32, now: M) -> Self {
        let per_s = f64::from(n) / per.as_secs_f64();
        Self { per_s, burst: f64::from(burst), left: f64::from(burst), at: now }
    }

    fn earn(&mut self, now: M) {
        let earned = now.since(self.at).as_secs_f64() * self.per_s;
        self.left = (self.left + earned).min(self.burst);
        self.at = now;
    }

    /// Counts what has been taken without asking. What is owed is a burst at most.
    pub fn owe(&mut self, n: u32) {
        self.left = (self.left - f64::from(n)).max(-self.burst);
    }

    /// Until one may be taken; zero: now.
    pub fn wait(&mut self, now: M) -> Duration {
        self.earn(now);
        let missing = (1.0 - self.left).max(0.0);
        let wait = Duration::try_from_secs_f64(missing / self.per_s);
        wait.map_or(LONGEST_WAIT, |wait| wait.min(LONGEST_WAIT))
    }

    pub fn take(&mut self, now: M) -> bool {
        self.take_many(now, 1)
    }

    /// All of them, or none.
    pub fn take_many(&mut self, now: M, n: u32) -> bool {
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
    fn a_slow_rate_is_one_of_minutes_on_any_clock() {
        let start = Timestamp::UNIX_EPOCH;
        let at = |s: i64| start + jiff::SignedDuration::from_secs(s);
        let mut bucket = Bucket::every(Duration::from_secs(60), 2, 2, start);
        assert!(bucket.take(start) && bucket.take(start) && !bucket.take(start));
        assert_eq!(bucket.wait(start), Duration::from_secs(30));
        assert!(!bucket.take(at(29)) && bucket.take(at(30)) && !bucket.take(at(31)));
        // Set back, the clock goes on from there.
        assert!(!bucket.take(at(-100)) && bucket.take(at(-70)));
        assert_eq!(Bucket::new(0, 0, start).wait(start), LONGEST_WAIT);
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
