//! Sums over series, for operators who look at the gateway itself.

use std::collections::BTreeMap;

use prometheus::core::Collector;
use prometheus::proto::Metric;

use super::Metrics;
use super::labels::{AttemptResult, CacheUse, Changed, Label, Limit};
use crate::cache::LimitedBy;

/// Sums over all tenants, routes and callers, since the process began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests by how the cache served them, in the order of [`CacheUse::NAMES`](super::CacheUse).
    pub requests: Vec<u64>,
    /// Requests that took no longer than each bound of `zvgate_request_duration_seconds`.
    pub within: Vec<u64>,
    /// Requests with a status of 5xx, but for those that asked only for what is cached.
    pub failed: u64,
    /// Requests that were rejected by each limit, in the order of [`Limit::NAMES`](super::Limit).
    pub limited: Vec<u64>,
    /// Requests whose task panicked.
    pub panics: u64,
    /// TLS handshakes of callers that failed.
    pub handshake_failures: u64,
    /// Calls that were sent to the platform, by tenant and route.
    pub calls: BTreeMap<[String; 2], u64>,
    /// Writes whose outcome is unknown.
    pub outcome_unknown: u64,
    /// Writes refused for a customer who was served from the cache of late.
    pub stale_shown: u64,
    /// Log lines that were dropped.
    pub log_lines_dropped: u64,
    /// Refetches, by whether the answer had changed, in the order of [`Changed::NAMES`](super::Changed).
    pub refetches: Vec<u64>,
}

/// The lifetimes of stored answers that were limited in one way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lifetimes {
    /// How they were limited.
    pub bound: &'static str,
    /// How many there were.
    pub count: u64,
    /// Their sum, in seconds.
    pub seconds: f64,
}

fn label<'a>(metric: &'a Metric, name: &str) -> &'a str {
    metric.get_label().iter().find(|pair| pair.name() == name).map_or("", |pair| pair.value())
}

/// The series of a metric.
fn series(metric: &impl Collector) -> impl Iterator<Item = Metric> {
    metric.collect().into_iter().flat_map(|family| family.get_metric().to_vec())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counters of events are whole and positive"
)]
fn count(metric: &Metric) -> u64 {
    metric.get_counter().get_value() as u64
}

fn sum(counters: &impl Collector) -> u64 {
    series(counters).map(|metric| count(&metric)).sum()
}

/// The sums of a number in each series, for each value of a label.
fn by<L: Label>(name: &str, series: &[Metric], number: impl Fn(&Metric) -> u64) -> Vec<u64> {
    let mut sums = vec![0; L::NAMES.len()];
    for metric in series {
        let index = L::NAMES.iter().position(|value| *value == label(metric, name));
        index.and_then(|index| sums.get_mut(index)).into_iter().for_each(|sum| *sum += number(metric));
    }
    sums
}

impl Metrics {
    /// The sums now.
    pub fn totals(&self) -> Totals {
        let durations: Vec<Metric> = series(&self.vecs.duration).collect();
        let mut within = Vec::new();
        for metric in &durations {
            let buckets = metric.get_histogram().get_bucket();
            within.resize(within.len().max(buckets.len()), 0);
            within.iter_mut().zip(buckets).for_each(|(sum, bucket)| *sum += bucket.cumulative_count());
        }
        let mut calls = BTreeMap::new();
        let is_sent = |metric: &Metric| !AttemptResult::UNSENT.contains(&label(metric, "outcome"));
        for metric in series(&self.vecs.attempts).filter(is_sent) {
            let pair = ["tenant", "route"].map(|name| label(&metric, name).to_owned());
            *calls.entry(pair).or_default() += count(&metric);
        }
        let refetches: Vec<Metric> = series(&self.vecs.refetches).collect();
        let failed = series(&self.vecs.requests).filter(|metric| label(metric, "status").starts_with('5'));
        let limited: Vec<Metric> = series(&self.vecs.limited).collect();
        Totals {
            failed: failed.map(|metric| count(&metric)).sum::<u64>().saturating_sub(sum(&self.vecs.not_cached)),
            limited: by::<Limit>("limit", &limited, count),
            panics: self.panics.get(),
            handshake_failures: self.handshake_failures.get(),
            requests: by::<CacheUse>("cache", &durations, |metric| metric.get_histogram().get_sample_count()),
            within,
            calls,
            outcome_unknown: sum(&self.vecs.outcome_unknown),
            stale_shown: sum(&self.vecs.stale_shown),
            log_lines_dropped: self.log_lines_dropped.get(),
            refetches: by::<Changed>("changed", &refetches, count),
        }
    }

    /// The lifetimes of stored answers, by what limited them.
    pub fn lifetimes(&self) -> Vec<Lifetimes> {
        let of = |bound: LimitedBy| {
            let histogram = self.cache_ttl.of(bound);
            Lifetimes { bound: bound.name(), count: histogram.get_sample_count(), seconds: histogram.get_sample_sum() }
        };
        [LimitedBy::Ttl, LimitedBy::EndAt, LimitedBy::Negative, LimitedBy::Unsettled].map(of).into()
    }
}
