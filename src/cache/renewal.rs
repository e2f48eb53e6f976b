//! Whose turn it is to refresh an answer past its freshness, and how soon after a refresh that failed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Boot;

/// Pause after the first refresh that brought nothing; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// The refreshes of one kept answer. A refresh that succeeds replaces the answer, and this with it.
#[derive(Debug, Default)]
pub(super) struct Renewal {
    tried: AtomicU64,
    /// No refresh begins before this, in milliseconds since boot.
    not_before: AtomicU64,
}

impl Renewal {
    /// Gives the turn to one caller at a time.
    pub(super) fn claim(&self, now: Boot) -> bool {
        let not_before = self.not_before.load(Ordering::Relaxed);
        if now.millis() < not_before {
            return false;
        }
        let tried = u32::try_from(self.tried.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        let pause = FIRST_PAUSE.saturating_mul(2u32.saturating_pow(tried)).min(LAST_PAUSE);
        let next = (now + pause).millis();
        let won = self.not_before.compare_exchange(not_before, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if won {
            self.tried.fetch_add(1, Ordering::Relaxed);
        }
        won
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_has_the_turn_and_failures_space_the_turns_out() {
        let renewal = Renewal::default();
        let at = |seconds: u64| Boot::from_duration(Duration::from_secs(1000 + seconds));
        let turns: Vec<u64> = (0..100).filter(|second| renewal.claim(at(*second))).collect();
        assert_eq!(turns, [0, 1, 3, 7, 15, 31, 61, 91]);
        assert!(!renewal.claim(at(91)), "nobody else has it at the same time");
    }
}
