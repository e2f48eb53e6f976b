//! Series of names that left the configuration are removed, so that reloads do not fill the memory.

use std::collections::HashMap;
use std::fmt::Debug;

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};

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
}

/// A metric whose labels may be names.
pub(super) trait Retain: Debug + Send + Sync {
    /// Removes the series of other names.
    fn retain(&self, names: &Names<'_>);
}

impl<T: MetricVecBuilder + Debug> Retain for MetricVec<T> {
    fn retain(&self, names: &Names<'_>) {
        for family in self.collect() {
            for metric in family.get_metric() {
                let labels: HashMap<&str, &str> =
                    metric.get_label().iter().map(|pair| (pair.name(), pair.value())).collect();
                if !labels.iter().all(|(label, value)| names.has(label, value)) {
                    // Somebody else may have removed it.
                    let _ = self.remove(&labels);
                }
            }
        }
    }
}
