//! How often a read may be retried, and after which pause.

use std::time::Duration;

use parking_lot::Mutex;

use super::recent::Recent;
use crate::backoff::Backoff;
use crate::clock::Boot;

/// First attempts that earn one retry.
const FIRSTS_FOR_A_RETRY: u32 = 5;
/// Retries that are allowed in any case: a share of few attempts would be none.
const IN_ANY_CASE: u32 = 3;
/// Pauses before retries, with full jitter.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
const SECOND: Duration = Duration::from_secs(1);

/// The retry budget of one tenant: over any 10 s at most one retry for five first attempts, and 3 in any case. More would
/// double the load of a platform that fails because of its load.
#[derive(Debug)]
pub(super) struct RetryBudget(Mutex<Counts>);

/// Whole seconds are counted together: first attempts over at most 10 s, retries over at least as long.
#[derive(Debug)]
struct Counts {
    firsts: Recent<10>,
    retries: Recent<11>,
}

impl RetryBudget {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Counts { firsts: Recent::new(SECOND), retries: Recent::new(SECOND) }))
    }

    /// Counts the first attempt of a read.
    pub(super) fn first(&self, now: Boot) {
        self.0.lock().firsts.add(now);
    }

    /// Takes a retry out of the budget, if one is left.
    pub(super) fn retry(&self, now: Boot) -> bool {
        let mut counts = self.0.lock();
        let allowed = IN_ANY_CASE.max(counts.firsts.count(now) / FIRSTS_FOR_A_RETRY);
        let granted = counts.retries.count(now) < allowed;
        if granted {
            counts.retries.add(now);
        }
        granted
    }
}

/// The pause before a retry, after so many earlier ones. `jitter` is random, from 0 to 1.
pub fn pause_before_retry(earlier: u32, jitter: f64) -> Duration {
    BACKOFF.with_full_jitter(earlier, jitter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// In the 10 s before any retry, there is at most one retry for five first attempts, or 3 if that is more.
        #[test]
        fn retries_stay_within_a_fifth_of_first_attempts(
            steps in proptest::collection::vec((0u64..500, 0u32..4), 1..300),
        ) {
            let budget = RetryBudget::new();
            let (mut now, mut firsts, mut retries) = (1_000_000, Vec::new(), Vec::new());
            let mut refused = 0;
            for (step, kind) in steps {
                now += step;
                let moment = Boot::from_duration(Duration::from_millis(now));
                if kind == 0 {
                    if budget.retry(moment) {
                        retries.push(now);
                        let lately = |events: &[u64]| events.iter().filter(|event| now - **event <= 10_000).count();
                        prop_assert!(lately(&retries) <= 3.max(lately(&firsts) / 5), "{firsts:?} {retries:?}");
                    } else {
                        refused += 1;
                    }
                } else {
                    budget.first(moment);
                    firsts.push(now);
                }
            }
            prop_assert!(refused == 0 || retries.len() >= 3);
        }
    }
}
