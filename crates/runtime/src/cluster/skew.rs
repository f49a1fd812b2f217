//! The difference between this node's clock and the database's, and its limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::kernel::clock::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkewLimits {
    /// The difference from which the node warns.
    pub warn_ms: i64,
    /// The difference beyond which this node's clock decides nothing that another clock has dated: the node does not
    /// start, sweep, or let anything expire.
    pub limit_ms: i64,
}

impl Default for SkewLimits {
    fn default() -> Self {
        Self { warn_ms: 500, limit_ms: 5_000 }
    }
}

/// The last measured difference. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Skew {
    ms: Arc<AtomicI64>,
    limits: SkewLimits,
}

impl Skew {
    pub fn new(limits: SkewLimits) -> Self {
        Self { ms: Arc::default(), limits }
    }

    /// Takes a measurement: the database's clock was at `theirs` between `before` and `after` on this node's clock.
    /// Returns the new difference in milliseconds, positive if this node is ahead.
    pub fn compare(&self, before: Timestamp, theirs: Timestamp, after: Timestamp) -> i64 {
        let ms = proven_ms(before, theirs, after);
        self.ms.store(ms, Ordering::Release);
        ms
    }

    pub fn ms(&self) -> i64 {
        self.ms.load(Ordering::Acquire)
    }

    pub fn is_notable(&self) -> bool {
        self.ms().saturating_abs() >= self.limits.warn_ms
    }

    pub fn is_too_much(&self) -> bool {
        self.ms().saturating_abs() >= self.limits.limit_ms
    }

    pub fn limits(&self) -> SkewLimits {
        self.limits
    }
}

/// The part of the difference that the round trip cannot explain: a slow answer proves nothing.
fn proven_ms(before: Timestamp, theirs: Timestamp, after: Timestamp) -> i64 {
    if theirs < before {
        before.duration_since(theirs).as_millis() as i64
    } else if theirs > after {
        -(theirs.duration_since(after).as_millis() as i64)
    } else {
        0
    }
}

/// The difference for people: "7.5 s ahead of".
pub fn words(ms: i64) -> String {
    let side = if ms < 0 { "behind" } else { "ahead of" };
    format!("{:.1} s {side}", ms.saturating_abs() as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_there_and_back_is_no_difference_of_clocks() {
        let at = |ms: i64| Timestamp::from_millisecond(ms).unwrap();
        let skew = Skew::default();
        let compare = |before, theirs, after| skew.compare(at(before), at(theirs), at(after));
        assert_eq!(compare(1_000, 1_000, 1_000), 0);
        assert_eq!(compare(1_000, 8_900, 9_000), 0, "a slow answer");
        assert_eq!(compare(9_000, 1_000, 9_010), 8_000);
        assert!(skew.is_too_much());
        assert_eq!(words(skew.ms()), "8.0 s ahead of");
        assert_eq!(compare(1_000, 1_610, 1_010), -600);
        assert!(skew.is_notable() && !skew.is_too_much());
        assert_eq!(words(skew.ms()), "0.6 s behind");
        assert_eq!(compare(1_000, 1_400, 1_010), -390);
        assert!(!skew.is_notable());
    }
}
