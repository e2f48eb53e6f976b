//! Counts calls for the budget, and warns when a threshold of it is reached.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::policy::Policy;
use super::request::Job;
use super::time::Time;
use crate::budget::{Budget, Counts, Day, Saved};
use crate::clock::Wall;
use crate::metrics::{AttemptResult, Label};

/// Seconds that must have been counted for a forecast.
const DAY: i64 = 86_400;

/// Counts calls of a gateway.
pub(super) struct Spending {
    pub(super) budget: Budget,
    time: Arc<Time>,
    /// The requests that were answered without a call, as they were last counted, by the names of the tenant and the route, as their
    /// counters are.
    saved: Mutex<HashMap<String, HashMap<String, u64>>>,
}

impl Spending {
    pub(super) fn new(budget: Budget, time: &Arc<Time>) -> Self {
        Self { budget, time: Arc::clone(time), saved: Mutex::default() }
    }

    /// The platform's clock, as far as it is followed: it decides on which day a call is billed.
    pub(super) fn now(&self) -> Wall {
        self.time.skew.signing_time(self.time.clock.now())
    }

    /// Today, by that clock.
    pub(super) fn today(&self, policy: &Policy) -> Day {
        Day::of(self.now(), policy.settings.attempts.utc_offset)
    }

    /// A call was sent on this day, and ended like this.
    pub(super) fn made(&self, job: &Job, day: Day, result: AttemptResult) {
        let is_failure = !matches!(result, AttemptResult::Ok | AttemptResult::Exception);
        let is_billed = job.policy.settings.budget.billed.iter().any(|outcome| outcome == result.name());
        let counts = Counts { made: 1, failed: is_failure.into(), billed: is_billed.into(), saved: 0 };
        self.budget.add(day, &job.call.tenant.name, &job.route.label, counts);
    }

    /// Counts the requests that were answered without a call since this was last called. Their own counters are read, so that a
    /// cache hit has nothing more to do.
    pub(super) fn count_saved(&self, policy: &Policy) {
        let (today, mut before) = (self.today(policy), self.saved.lock());
        // A clock of ours that is wrong for a moment must not cost the counts of a year.
        if let Some(at) = self.time.skew.platform_time(self.time.clock.now()) {
            self.budget.forget_before(Day::of(at, policy.settings.attempts.utc_offset).month());
        }
        for tenant in policy.tenants.all() {
            let before = before.entry(tenant.name.clone()).or_default();
            for route in policy.routes.all() {
                // Routes with the same label share a counter.
                let total = policy.handles.call(tenant.index, route.index).saved.get();
                let last = before.get(&route.label).copied().unwrap_or_default();
                if total == last {
                    continue;
                }
                // A counter that left the configuration and came back begins anew.
                let saved = total.checked_sub(last).unwrap_or(total);
                before.insert(route.label.clone(), total);
                self.budget.add(today, &tenant.name, &route.label, Counts { saved, ..Counts::default() });
            }
        }
    }

    /// Billed calls at the end of the month, if it goes on as since counting began; `None` before a day was counted.
    pub(super) fn forecast(&self, policy: &Policy, counts: Counts) -> Option<u64> {
        let (now, offset) = (self.now(), policy.settings.attempts.utc_offset);
        let (passed, to_come) = Day::of(now, offset).of_month(now, offset);
        let counted = passed.min(now.unix_seconds().saturating_sub(self.budget.since()));
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an estimate of a positive number for people"
        )]
        let more = || (counts.billed as f64 * to_come as f64 / counted as f64) as u64;
        (counted >= DAY).then(|| counts.billed.saturating_add(more()))
    }

    /// Warns of thresholds that have been reached.
    pub(super) fn warn(&self, policy: &Policy) {
        let Some(thresholds) = &policy.settings.budget.warn_calls else { return };
        let month = self.today(policy).month();
        for threshold in self.budget.reached(month, &thresholds.0) {
            let billed = self.budget.total(month).billed;
            tracing::warn!(%month, billed, threshold, "budget threshold reached");
        }
    }

    /// Stores the counts, and reports if that begins or ceases to fail. Writes a file, which may block. `is_last`: another
    /// process may use the file from now on.
    pub(super) fn save(&self, is_last: bool) {
        let saved = if is_last { self.budget.finish() } else { self.budget.save() };
        match saved {
            Saved::AsBefore => {}
            Saved::Failed(error) => tracing::error!(%error, "budget.store: counts cannot be stored"),
            Saved::Recovered => tracing::info!("budget.store: counts are stored again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::metrics::{AttemptResult, Label};
    use crate::settings::SENT_OUTCOMES;

    #[test]
    fn every_outcome_of_a_call_that_was_sent_may_be_billed_and_no_other() {
        let is_sent = |name: &&str| !AttemptResult::UNSENT.contains(name);
        let sent: Vec<&str> = AttemptResult::NAMES.iter().copied().filter(is_sent).collect();
        assert_eq!(sent, SENT_OUTCOMES);
    }
}
