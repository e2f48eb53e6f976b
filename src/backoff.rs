//! Exponential backoff, as a pure function. Retries, circuit breakers, throttling pauses and refreshes all use it.

use std::time::Duration;

/// Pauses that double from a first one up to a longest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// Pauses from `first` to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest }
    }

    /// The pause that follows after `earlier` pauses.
    pub fn pause(self, earlier: u32) -> Duration {
        self.first.saturating_mul(1u32.checked_shl(earlier).unwrap_or(u32::MAX)).min(self.longest)
    }

    /// The same with full jitter: anything from zero to the pause. `jitter` is random, from 0 to 1.
    pub fn with_full_jitter(self, earlier: u32, jitter: f64) -> Duration {
        self.pause(earlier).mul_f64(jitter.clamp(0.0, 1.0))
    }

    /// The same with equal jitter: anything from half of the pause to the whole of it.
    pub fn with_equal_jitter(self, earlier: u32, jitter: f64) -> Duration {
        self.pause(earlier).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_maximum() {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let pauses: Vec<_> = [0, 1, 2, 3, 4, 40].map(|earlier| backoff.pause(earlier).as_millis()).into();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn full_jitter_shortens_a_pause_to_zero_and_equal_jitter_to_half() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8));
        let full = |jitter| backoff.with_full_jitter(1, jitter);
        assert_eq!([full(-1.0), full(0.5), full(7.0)], [0, 1, 2].map(Duration::from_secs));
        let equal = |jitter| backoff.with_equal_jitter(1, jitter);
        assert_eq!([equal(0.0), equal(1.0)], [1, 2].map(Duration::from_secs));
    }
}
