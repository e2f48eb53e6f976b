//! What the gateway does every second, and for each scrape of its metrics.

use std::collections::HashMap;

use super::policy::Policy;
use super::{Gateway, call_log};
use crate::budget::Counts;
use crate::upstream::BreakerPosition;

impl Gateway {
    /// The metrics as a page.
    pub fn metrics_page(&self) -> String {
        self.run_maintenance();
        let policy = self.policy.load();
        let breaker = &policy.settings.attempts.breaker;
        for tenant in policy.tenants.all() {
            policy.handles.tenant(tenant.index).key_suspect.set(self.upstream.is_key_suspect(tenant).into());
            for route in policy.routes.all() {
                // Wildcards share a label: the slowest of them is shown, and a breaker that is open in any.
                let same_label = || policy.routes.all().iter().filter(|other| other.label == route.label);
                let usages: Vec<_> = same_label().map(|other| self.paces.usage(tenant, other, None)).collect();
                let allowed = usages.iter().map(|usage| usage.allowed).fold(f64::INFINITY, f64::min);
                let waiting: usize = usages.iter().map(|usage| usage.waiting).sum();
                let is_open = same_label()
                    .any(|other| self.upstream.breaker(breaker, tenant, other, None) != BreakerPosition::Closed);
                let handles = policy.handles.call(tenant.index, route.index);
                handles.rate.set(allowed);
                handles.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
                handles.breaker_open.set(is_open.into());
            }
        }
        let skew = self.time.skew.ahead(self.time.clock.now()).unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "a gauge in seconds")]
        self.metrics.clock_skew.set(skew as f64 / 1000.0);
        self.metrics.set_certificate_expiry(policy.tls.as_ref().and_then(|tls| tls.expires()));
        self.set_limits(&policy);
        self.metrics.page()
    }

    /// Sets the gauges of limits and of the budget.
    fn set_limits(&self, policy: &Policy) {
        let (limits, metrics) = (&self.metrics.limits, &self.metrics);
        let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        limits.cache_max_bytes.set(gauge(policy.cache_max_bytes.0));
        limits.max_inflight.set(self.fixed.client.max_inflight.into());
        limits.max_connections.set(self.fixed.listeners.max_connections.into());
        limits.waiters.set(gauge(self.cache.most_waiters() as u64));
        limits.max_waiters.set(policy.settings.limits.max_waiters.into());
        let month = self.spending.today(policy).month();
        let billed: HashMap<String, Counts> = self.spending.budget.tenants(month).into_iter().collect();
        for tenant in policy.tenants.all() {
            let billed = billed.get(&tenant.name).map_or(0, |counts| counts.billed);
            policy.handles.tenant(tenant.index).billed_month.set(gauge(billed));
        }
        let thresholds = policy.settings.budget.warn_calls.as_ref();
        metrics.set_budget_warn_calls(thresholds.and_then(|thresholds| thresholds.0.first().copied()));
        metrics.dns_success.set((!self.upstream.is_dns_failing()).into());
        metrics.budget_store_success.set((!self.spending.budget.has_failed()).into());
    }

    /// Frees memory and connections that have expired, which nothing else does while there are no requests.
    pub fn run_maintenance(&self) {
        self.cache.run_maintenance(self.time.now());
        self.metrics
            .cache_bytes
            .set(i64::try_from(self.cache.bytes() + self.policy.load().table_bytes()).unwrap_or(i64::MAX));
        self.upstream.close_expired();
        self.dropped_lines.report(&self.metrics.log_lines_dropped);
        if self.log_levels.restore(self.time.boot()) {
            tracing::info!("log level returned to the configured one");
        }
        let policy = self.policy.load();
        self.spending.count_saved(&policy);
        self.spending.warn(&policy);
        let now = self.time.boot();
        if self.watch.history.is_due(now) {
            self.watch.history.add(self.metrics.totals(), now);
        }
        for (merchant, path, ended) in self.paces.ended_throttling() {
            // Those of one merchant share its paces.
            let tenants = policy.tenants.all().iter().filter(|tenant| tenant.merchant == merchant);
            let names: Vec<&str> = tenants.map(|tenant| tenant.name.as_str()).collect();
            call_log::throttling_ended(&names.join(","), &path, ended);
        }
        for tenant in policy.tenants.all() {
            for (path, episode) in self.upstream.ended_failures(tenant) {
                call_log::failures_ended(tenant, &path, &episode);
            }
            self.upstream.ended_denial(tenant).iter().for_each(|episode| call_log::denial_ended(tenant, episode));
        }
    }
}
