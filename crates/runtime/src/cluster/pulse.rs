//! A failure detector: the permitted silence of a peer is learned from the regularity of its heartbeats, within bounds.

/// A peer's heartbeat as this node hears it. Times are milliseconds on the clock of the lease.
#[derive(Clone, Debug)]
pub struct Pulse {
    last_ms: i64,
    mean_ms: f64,
    deviation_ms: f64,
}

/// Shortest timeout: a shorter one would take a scheduling delay for a death.
const SHORTEST_MS: f64 = 1_200.0;
/// Longest timeout: with a longer one the lease would detect the death first.
const LONGEST_MS: f64 = 3_000.0;
/// A peer counts as silent when it is late by this many deviations.
const DEVIATIONS: f64 = 8.0;
/// The gain of the moving averages, as in TCP's estimate of the round-trip time.
const GAIN: f64 = 1.0 / 8.0;

impl Pulse {
    /// A peer heard for the first time, whose heartbeats are expected every `interval_ms`.
    pub fn new(now_ms: i64, interval_ms: i64) -> Self {
        Self {
            last_ms: now_ms,
            mean_ms: interval_ms as f64,
            deviation_ms: interval_ms as f64 / 4.0,
        }
    }

    pub fn heard(&mut self, now_ms: i64) {
        let interval = (now_ms - self.last_ms).max(0) as f64;
        self.last_ms = now_ms;
        self.deviation_ms += GAIN * ((interval - self.mean_ms).abs() - self.deviation_ms);
        self.mean_ms += GAIN * (interval - self.mean_ms);
    }

    /// Restarts the peer's timeout, because this node itself was not listening.
    pub fn forgive(&mut self, now_ms: i64) {
        self.last_ms = now_ms;
    }

    pub fn timeout_ms(&self) -> i64 {
        (self.mean_ms + DEVIATIONS * self.deviation_ms).clamp(SHORTEST_MS, LONGEST_MS) as i64
    }

    pub fn silent_ms(&self, now_ms: i64) -> i64 {
        now_ms - self.last_ms
    }

    pub fn is_silent(&self, now_ms: i64) -> bool {
        self.silent_ms(now_ms) > self.timeout_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regular_peer_is_missed_soon_and_an_irregular_one_later() {
        let mut regular = Pulse::new(0, 300);
        (1..200).for_each(|n| regular.heard(n * 300));
        assert_eq!(regular.timeout_ms(), 1_200);
        let last = 199 * 300;
        assert!(!regular.is_silent(last + 1_200) && regular.is_silent(last + 1_201));
        let mut now = 0;
        let mut irregular = Pulse::new(now, 300);
        for n in 0..200 {
            now += if n % 4 == 0 { 900 } else { 100 };
            irregular.heard(now);
        }
        assert!(irregular.timeout_ms() > 2_000, "{irregular:?}");
        for _ in 0..50 {
            now += 10_000;
            irregular.heard(now);
        }
        assert_eq!(irregular.timeout_ms(), 3_000, "never longer");
    }

    #[test]
    fn who_was_away_itself_accuses_nobody() {
        let mut pulse = Pulse::new(0, 300);
        assert!(pulse.is_silent(20_000));
        pulse.forgive(20_000);
        assert!(!pulse.is_silent(20_100));
        assert_eq!(pulse.timeout_ms(), 1_200, "and learns nothing from it");
    }
}
