//! How often a read may be asked again, and after which pause.

use std::time::Duration;

use parking_lot::Mutex;

use super::recent::Recent;
use crate::clock::Boot;

/// First attempts that allow one retry.
const FIRSTS_FOR_A_RETRY: u32 = 5;
/// Retries that are allowed in any case: where little is asked, a share of it is nothing.
const IN_ANY_CASE: u32 = 3;
/// The pause before the first retry is at most this long, and before each further one twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);

/// The retries of one tenant: over any 10 s at most one for five first attempts, and 3 in any case. More of them would
/// double the load of an upstream that fails because of it.
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

    /// A first attempt of a read is made.
    pub(super) fn first(&self, now: Boot) {
        self.0.lock().firsts.add(now);
    }

    /// Takes leave for a retry, if there is some.
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

/// The pause before a retry, the first being number 0: exponential, with full jitter by `chance`, from 0 to 1.
pub fn pause_before(retry: u32, chance: f64) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(1u32.checked_shl(retry).unwrap_or(u32::MAX)).min(LONGEST_PAUSE);
    longest.mul_f64(chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pauses_grow_and_end_somewhere() {
        let longest: Vec<_> = (0..7).map(|retry| pause_before(retry, 1.0).as_millis()).collect();
        assert_eq!(longest, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!((pause_before(40, 1.0), pause_before(3, 0.0)), (LONGEST_PAUSE, Duration::ZERO));
    }

    proptest! {
        /// The budget itself: looking back 10 s from any retry, one for five first attempts, and 3 in any case.
        #[test]
        fn retries_stay_a_fifth_of_first_attempts(
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
