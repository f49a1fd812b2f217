//! Time as a parameter: code that needs the time takes a [`Clock`].

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::SignedDuration;
pub use jiff::Timestamp;

/// The time `by` later, or the latest possible time.
pub fn saturating_add(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// Exponential backoff: the first delay doubled `times` times, at most `longest`.
pub fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times)).min(longest)
}

/// The source of "now". Tests use a manual clock and advance it.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    #[default]
    System,
    /// A clock that stands still: milliseconds since the Unix epoch.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    pub fn manual(start: Timestamp) -> Self {
        Self::Manual(Arc::new(AtomicI64::new(start.as_millisecond())))
    }

    /// Wall-clock time, cut to whole microseconds, which PostgreSQL stores and returns unchanged.
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => Timestamp::from_microsecond(Timestamp::now().as_microsecond())
                .expect("the current time is representable"),
            Self::Manual(ms) => Timestamp::from_millisecond(ms.load(Ordering::SeqCst))
                .expect("a manual clock holds a representable time"),
        }
    }

    /// Advances a manual clock; it does nothing to the system clock.
    pub fn advance_ms(&self, by_ms: i64) {
        if let Self::Manual(ms) = self {
            ms.fetch_add(by_ms, Ordering::SeqCst);
        }
    }
}
