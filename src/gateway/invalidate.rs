//! Invalidation: by writes, by callers that learn of a change made elsewhere, and by operators.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;

use super::time::Time;
use crate::cache::{Cache, Subject};
use crate::metrics::{Invalidation, Per};
use crate::reply::GatewayError;

/// Invalidates what is cached, and counts that by cause.
pub(super) struct Invalidator {
    pub(super) cache: Arc<Cache<GatewayError>>,
    pub(super) time: Arc<Time>,
    pub(super) counters: Per<Invalidation, IntCounter>,
}

impl Invalidator {
    /// Invalidates the answers for a customer, behind which the platform may lag for `settle`. Returns how many answers were
    /// dropped that could still be served.
    pub(super) fn customer(&self, tenant: usize, customer: &str, settle: Duration, cause: Invalidation) -> usize {
        let now = self.time.now();
        self.counters.of(cause).inc();
        self.cache.invalidate(&Subject::customer(tenant, customer), now.boot + settle, now)
    }

    /// Invalidates all answers of a tenant.
    pub(super) fn tenant(&self, tenant: usize, settle: Duration, cause: Invalidation) {
        self.counters.of(cause).inc();
        self.cache.invalidate_tenant(tenant, self.time.boot() + settle);
    }

    /// The same, and frees their memory. Returns how many answers were dropped that could still be served.
    pub(super) fn purge_tenant(&self, tenant: usize, settle: Duration) -> usize {
        let now = self.time.now();
        self.counters.of(Invalidation::Purge).inc();
        self.cache.purge_tenant(tenant, now.boot + settle, now)
    }
}
