//! A circuit breaker: whether a model is asked at all after it has failed.

/// A model that fails again and again is left alone for a while, then tried by one call.
#[derive(Debug, Default)]
pub struct Breaker {
    failures: u32,
    trips: u32,
    open_until_ms: i64,
    is_probed: bool,
}

/// Failures in a row after which a model is left alone.
const FAILURES: u32 = 5;
/// The first pause. Each one after it, without a success between, is twice as long.
const FIRST_PAUSE_MS: i64 = 1_000;
const LONGEST_PAUSE_MS: i64 = 60_000;

impl Breaker {
    /// `Err`: not before that time.
    pub fn admit(&mut self, now_ms: i64) -> Result<(), i64> {
        if self.trips == 0 {
            return Ok(());
        }
        if now_ms < self.open_until_ms {
            return Err(self.open_until_ms);
        }
        if self.is_probed {
            return Err(now_ms + FIRST_PAUSE_MS);
        }
        self.is_probed = true;
        Ok(())
    }

    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// `pause_ms`: for how long the provider wants to be left alone, if it has said so.
    pub fn failed(&mut self, now_ms: i64, pause_ms: Option<i64>) {
        self.failures += 1;
        let was_probe = std::mem::take(&mut self.is_probed);
        if pause_ms.is_none() && self.failures < FAILURES && !was_probe {
            return;
        }
        let doubled = FIRST_PAUSE_MS << self.trips.min(6);
        let pause = pause_ms.unwrap_or(doubled).clamp(0, LONGEST_PAUSE_MS);
        self.open_until_ms = self.open_until_ms.max(now_ms + pause);
        self.trips += 1;
    }

    /// The call ended without a word about the model: its caller has gone.
    pub fn abandoned(&mut self) {
        self.is_probed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_failures_in_a_row_open_it_and_one_call_tries_again() {
        let mut breaker = Breaker::default();
        for _ in 0..4 {
            breaker.failed(0, None);
        }
        assert_eq!(breaker.admit(0), Ok(()));
        breaker.failed(0, None);
        assert_eq!(breaker.admit(999), Err(1_000));
        assert_eq!(breaker.admit(1_000), Ok(()));
        assert_eq!(breaker.admit(1_000), Err(2_000), "one call at a time");
        breaker.failed(1_000, None);
        assert_eq!(breaker.admit(2_999), Err(3_000), "twice as long");
        assert_eq!(breaker.admit(3_000), Ok(()));
        breaker.succeeded();
        assert_eq!((breaker.admit(3_000), breaker.admit(3_000)), (Ok(()), Ok(())));
    }

    #[test]
    fn a_provider_that_asks_for_a_pause_gets_it_at_once_but_not_for_ever() {
        let mut breaker = Breaker::default();
        breaker.failed(0, Some(2_500));
        assert_eq!(breaker.admit(2_499), Err(2_500));
        breaker.failed(2_500, Some(86_400_000));
        assert_eq!(breaker.admit(2_500), Err(62_500));
    }

    #[test]
    fn a_probe_that_was_given_up_lets_the_next_one_try() {
        let mut breaker = Breaker::default();
        breaker.failed(0, Some(10));
        assert_eq!(breaker.admit(10), Ok(()));
        breaker.abandoned();
        assert_eq!(breaker.admit(10), Ok(()));
    }
}
