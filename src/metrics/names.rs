//! Series of names that left the configuration are removed, so that reloads do not fill the memory.

use std::collections::HashMap;

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};

use super::Vecs;

/// The names of a configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names<'a> {
    pub(super) tenants: &'a [&'a str],
    pub(super) routes: &'a [&'a str],
    pub(super) callers: &'a [&'a str],
}

impl Names<'_> {
    /// Whether a label's value is still a name, or is none.
    fn has(&self, label: &str, value: &str) -> bool {
        match label {
            "tenant" => self.tenants.contains(&value),
            "route" => self.routes.contains(&value),
            "caller" => self.callers.contains(&value),
            _ => true,
        }
    }

    /// Removes the series of other names.
    fn retain<T: MetricVecBuilder>(&self, metrics: &MetricVec<T>) {
        for family in metrics.collect() {
            for metric in family.get_metric() {
                let labels: HashMap<&str, &str> =
                    metric.get_label().iter().map(|pair| (pair.name(), pair.value())).collect();
                if !labels.iter().all(|(label, value)| self.has(label, value)) {
                    // Somebody else may have removed it.
                    let _ = metrics.remove(&labels);
                }
            }
        }
    }
}

impl Vecs {
    /// Removes the series of names that are not in the configuration.
    pub(super) fn retain(&self, names: &Names<'_>) {
        names.retain(&self.requests);
        names.retain(&self.duration);
        names.retain(&self.lookups);
        names.retain(&self.refetches);
        names.retain(&self.attempts);
        names.retain(&self.retries);
        names.retain(&self.outcome_unknown);
        names.retain(&self.upstream_duration);
        names.retain(&self.saved);
        names.retain(&self.wait);
        names.retain(&self.rate);
        names.retain(&self.inflight);
        names.retain(&self.key_suspect);
        names.retain(&self.breaker_open);
        names.retain(&self.breaker_transitions);
        names.retain(&self.limited);
    }
}
