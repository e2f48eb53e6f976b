//! What happened in the last ten minutes, in steps of ten seconds.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use crate::clock::Boot;
use crate::metrics::{CacheUse, DURATIONS, Label, Limit, Totals};

/// The length of a step.
const STEP: Duration = Duration::from_secs(10);
/// Steps that are remembered: ten minutes.
pub const STEPS: usize = 60;

/// Sums at the ends of the last steps.
#[derive(Debug, Default)]
pub(in crate::gateway) struct History(Mutex<VecDeque<(Boot, Totals)>>);

/// What happened in one step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// Its length in seconds.
    pub seconds: f64,
    /// Requests by how the cache served them, in the order of `zvgate_request_duration_seconds`.
    pub requests: Vec<u64>,
    /// The share of reads that the cache served without a call of their own; `None` without reads.
    pub hit_ratio: Option<f64>,
    /// The median of durations in milliseconds, estimated from their buckets; `None` without requests.
    pub p50_ms: Option<f64>,
    /// The 99th percentile.
    pub p99_ms: Option<f64>,
    /// Requests with a status of 5xx.
    pub failed: u64,
    /// Calls that were sent to the platform.
    pub calls: u64,
    /// Those of the tenant and route with most of them.
    pub most_calls: u64,
}

/// What became more in the last ten minutes that should not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Incidents {
    pub(super) outcome_unknown: u64,
    pub(super) stale_shown: u64,
    pub(super) log_lines_dropped: u64,
    /// Connections and waiting requests beyond their limits.
    pub(super) connections: u64,
    pub(super) waiters: u64,
    pub(super) panics: u64,
    pub(super) handshakes: u64,
}

impl History {
    /// Whether a step has ended.
    pub(in crate::gateway) fn is_due(&self, now: Boot) -> bool {
        self.0.lock().back().is_none_or(|(last, _)| now.since(*last) >= STEP)
    }

    /// Ends a step.
    pub(in crate::gateway) fn add(&self, totals: Totals, now: Boot) {
        let mut steps = self.0.lock();
        while steps.len() > STEPS {
            steps.pop_front();
        }
        steps.push_back((now, totals));
    }

    /// The last steps, the current one included, oldest first.
    pub(super) fn steps(&self, totals: &Totals, now: Boot) -> Vec<Step> {
        let steps = self.0.lock();
        let ends = steps.iter().map(|(at, totals)| (*at, totals)).chain([(now, totals)]);
        let begins = steps.iter().map(|(at, totals)| (*at, totals));
        // A step that has just begun says nothing.
        let pairs = begins.zip(ends.skip(1)).filter(|((from, _), (to, _))| to.since(*from) >= Duration::from_secs(1));
        pairs.map(|((from, before), (to, after))| Step::between(before, after, to.since(from))).collect()
    }

    /// What became more since the oldest step.
    pub(super) fn incidents(&self, totals: &Totals) -> Incidents {
        let steps = self.0.lock();
        let Some((_, oldest)) = steps.front() else { return Incidents::default() };
        let more = |number: fn(&Totals) -> u64| number(totals).saturating_sub(number(oldest));
        let limited = |totals: &Totals, limit: Limit| totals.limited.get(limit.index()).copied().unwrap_or_default();
        let rejected = |limit| limited(totals, limit).saturating_sub(limited(oldest, limit));
        Incidents {
            outcome_unknown: more(|totals| totals.outcome_unknown),
            stale_shown: more(|totals| totals.stale_shown),
            log_lines_dropped: more(|totals| totals.log_lines_dropped),
            connections: rejected(Limit::Connections),
            waiters: rejected(Limit::Waiters),
            panics: more(|totals| totals.panics),
            handshakes: more(|totals| totals.handshake_failures),
        }
    }
}

/// How much more there is; what left the configuration does not count.
fn more(after: &[u64], before: &[u64]) -> Vec<u64> {
    let before = before.iter().copied().chain(std::iter::repeat(0));
    after.iter().zip(before).map(|(after, before)| after.saturating_sub(before)).collect()
}

impl Step {
    fn between(before: &Totals, after: &Totals, span: Duration) -> Self {
        let requests = more(&after.requests, &before.requests);
        let within = more(&after.within, &before.within);
        let count: u64 = requests.iter().sum();
        let calls = after
            .calls
            .iter()
            .map(|(pair, calls)| calls.saturating_sub(before.calls.get(pair).copied().unwrap_or_default()));
        let calls: Vec<u64> = calls.collect();
        Self {
            seconds: span.as_secs_f64(),
            hit_ratio: hit_ratio(&requests),
            p50_ms: quantile(0.5, &within, count),
            p99_ms: quantile(0.99, &within, count),
            requests,
            failed: after.failed.saturating_sub(before.failed),
            calls: calls.iter().sum(),
            most_calls: calls.iter().copied().max().unwrap_or_default(),
        }
    }
}

/// Reads that were answered, of requests by how the cache served them.
pub(super) fn reads(requests: &[u64]) -> u64 {
    let of = |used: CacheUse| requests.get(used.index()).copied().unwrap_or_default();
    of(CacheUse::Hit) + of(CacheUse::Stale) + of(CacheUse::Collapsed) + of(CacheUse::Miss)
}

/// The share of reads that were answered without a call of their own.
pub(super) fn hit_ratio(requests: &[u64]) -> Option<f64> {
    let of = |used: CacheUse| requests.get(used.index()).copied().unwrap_or_default();
    let saved = of(CacheUse::Hit) + of(CacheUse::Stale) + of(CacheUse::Collapsed);
    let reads = reads(requests);
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    (reads > 0).then(|| saved as f64 / reads as f64)
}

/// The duration in milliseconds that a share of `count` requests did not exceed, as `histogram_quantile` in Prometheus estimates it.
#[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
fn quantile(share: f64, within: &[u64], count: u64) -> Option<f64> {
    if count == 0 {
        return None;
    }
    let rank = share * count as f64;
    let mut below = (0.0, 0);
    for (bound, within) in DURATIONS.iter().copied().zip(within.iter().copied()) {
        if within as f64 >= rank {
            let ((from, less), inside) = (below, (within - below.1) as f64);
            let part = if inside > 0.0 { (rank - less as f64) / inside } else { 1.0 };
            return Some(1000.0 * (from + (bound - from) * part));
        }
        below = (bound, within);
    }
    Some(1000.0 * below.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Boot {
        Boot::from_duration(Duration::from_secs(1000 + seconds))
    }

    fn totals(hits: u64, misses: u64, calls: u64) -> Totals {
        let mut requests = vec![0; CacheUse::NAMES.len()];
        (requests[CacheUse::Hit.index()], requests[CacheUse::Miss.index()]) = (hits, misses);
        let within = DURATIONS.iter().map(|bound| if *bound < 0.1 { hits } else { hits + misses }).collect();
        let calls = [(["a".to_owned(), "r".to_owned()], calls), (["b".to_owned(), "r".to_owned()], calls / 2)].into();
        Totals { requests, within, calls, ..Totals::default() }
    }

    #[test]
    fn steps_are_differences_of_sums() {
        let history = History::default();
        assert!(history.is_due(at(0)));
        history.add(totals(10, 10, 10), at(0));
        assert!(!history.is_due(at(9)) && history.is_due(at(10)));
        history.add(totals(40, 20, 20), at(10));
        let steps = history.steps(&totals(40, 20, 20), at(15));
        let first = steps.first().unwrap();
        assert_eq!((first.calls, first.most_calls, first.hit_ratio, first.seconds), (15, 10, Some(0.75), 10.0));
        assert_eq!((steps[1].hit_ratio, steps[1].p50_ms, steps[1].seconds), (None, None, 5.0));
        assert!(first.p50_ms.unwrap() < 0.1 && (50.0..=100.0).contains(&first.p99_ms.unwrap()), "{first:?}");
    }

    #[test]
    fn ten_minutes_are_remembered_and_a_restarted_counter_is_no_large_number() {
        let history = History::default();
        for step in 0..100 {
            history.add(totals(step, 0, 0), at(10 * step));
        }
        let steps = history.steps(&totals(0, 0, 0), at(995));
        assert_eq!(steps.len(), STEPS + 1);
        assert_eq!(steps.last().unwrap().requests.iter().sum::<u64>(), 0);
        assert_eq!(history.incidents(&Totals { stale_shown: 2, ..Totals::default() }).stale_shown, 2);
    }
}
