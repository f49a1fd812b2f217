//! The lease that permits this node to answer: a reply that is not proven by a commit needs a renewal that was *sent*
//! less than `read_ttl` ago.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds on a clock that also runs while the machine is suspended.
pub fn boottime_ms() -> i64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec * 1_000 + now.tv_nsec / 1_000_000
}

/// A cheap handle to the lease; the renewal loop (`app`) moves it forward.
#[derive(Clone, Debug)]
pub struct Lease {
    incarnation: i64,
    fresh_until_ms: Arc<AtomicI64>,
    read_ttl_ms: i64,
    now_ms: fn() -> i64,
}

impl Lease {
    pub fn new(incarnation: i64, read_ttl_ms: i64) -> Self {
        Self::on_clock(incarnation, read_ttl_ms, boottime_ms)
    }

    /// A lease on another clock, for simulations.
    pub fn on_clock(incarnation: i64, read_ttl_ms: i64, now_ms: fn() -> i64) -> Self {
        let fresh_until_ms = Arc::new(AtomicI64::new(i64::MIN));
        Self { incarnation, fresh_until_ms, read_ttl_ms, now_ms }
    }

    pub fn incarnation(&self) -> i64 {
        self.incarnation
    }

    /// Records that a renewal sent at `sent_ms` has been confirmed.
    pub fn renewed(&self, sent_ms: i64) {
        self.fresh_until_ms.fetch_max(sent_ms + self.read_ttl_ms, Ordering::AcqRel);
    }

    /// Milliseconds since the last confirmed renewal was sent.
    pub fn age_ms(&self) -> i64 {
        boottime_ms() - (self.fresh_until_ms.load(Ordering::Acquire) - self.read_ttl_ms)
    }

    /// Whether this node may answer without a commit.
    pub fn is_fresh(&self) -> bool {
        (self.now_ms)() < self.fresh_until_ms.load(Ordering::Acquire)
    }
}
