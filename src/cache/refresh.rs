//! Which caller refreshes an answer that is past its freshness, and how soon again after a refresh that failed.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::backoff::Backoff;
use crate::clock::Boot;

/// Pauses after refreshes that brought no new answer.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// The refreshes of one cached answer. A refresh that succeeds replaces the answer, and this with it.
#[derive(Debug, Default)]
pub(super) struct RefreshState {
    attempts: AtomicU32,
    /// No refresh begins before this.
    not_before: AtomicU32,
}

impl RefreshState {
    /// Whether a refresh is due: one that cannot begin takes no turn.
    pub(super) fn is_due(&self, now: Boot) -> bool {
        now.tenths() >= self.not_before.load(Ordering::Relaxed)
    }

    /// Whether the caller should refresh: true for at most one caller per backoff interval.
    pub(super) fn claim(&self, now: Boot) -> bool {
        let not_before = self.not_before.load(Ordering::Relaxed);
        if now.tenths() < not_before {
            return false;
        }
        let next = (now + BACKOFF.pause(self.attempts.load(Ordering::Relaxed))).tenths();
        let claimed = self.not_before.compare_exchange(not_before, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if claimed {
            self.attempts.fetch_add(1, Ordering::Relaxed);
        }
        claimed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_refreshes_at_a_time_and_failures_back_off() {
        let refresh = RefreshState::default();
        let at = |seconds: u64| Boot::from_duration(Duration::from_secs(1000 + seconds));
        let claimed: Vec<u64> = (0..100).filter(|second| refresh.claim(at(*second))).collect();
        assert_eq!(claimed, [0, 1, 3, 7, 15, 31, 61, 91]);
        assert!(!refresh.claim(at(91)), "no second caller at the same time");
    }
}
