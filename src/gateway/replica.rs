//! What other replicas change in this one, and by which names they know its merchants.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

use super::time::Time;
use crate::cache::{Cache, Subject};
use crate::cluster::{Cluster, Replica};
use crate::limit::Paces;
use crate::reply::GatewayError;
use crate::tenant::Tenant;

/// The names of merchants in the cluster, by the merchants' numbers. Those that left the configuration keep theirs.
#[derive(Debug, Default)]
pub(super) struct Merchants(RwLock<Vec<Arc<str>>>);

impl Merchants {
    /// Learns the names of these tenants' merchants.
    pub(super) fn learn(&self, tenants: &[Arc<Tenant>], cluster: &Cluster) {
        let mut names = self.0.write();
        for tenant in tenants {
            if names.len() <= tenant.merchant {
                names.resize_with(tenant.merchant + 1, Arc::default);
            }
            if let Some(name) = names.get_mut(tenant.merchant) {
                *name = cluster.merchant(&tenant.open_id);
            }
        }
    }

    /// The name of a merchant.
    pub(super) fn name(&self, merchant: usize) -> Arc<str> {
        self.0.read().get(merchant).cloned().unwrap_or_default()
    }

    /// The number of a merchant, if this replica serves it.
    fn number(&self, name: &str) -> Option<usize> {
        self.0.read().iter().position(|known| **known == *name)
    }
}

/// This replica, for the others.
pub(super) struct LocalReplica {
    pub(super) cache: Arc<Cache<GatewayError>>,
    pub(super) paces: Arc<Paces>,
    pub(super) time: Arc<Time>,
    pub(super) merchants: Arc<Merchants>,
}

impl Replica for LocalReplica {
    fn ended(&self, merchant: &str, subjects: Option<&[&str]>, settle: Duration) {
        let Some(merchant) = self.merchants.number(merchant) else { return };
        let now = self.time.now();
        let settle_until = now.boot + settle;
        match subjects {
            None => self.cache.invalidate_tenant(merchant, settle_until),
            Some(subjects) => subjects.iter().for_each(|subject| {
                self.cache.invalidate(&Subject::named(merchant, subject), settle_until, now);
            }),
        }
    }

    fn throttled(&self, pace: &str) {
        self.paces.throttled_elsewhere(pace);
    }

    fn paused(&self, pace: &str, pause: Duration) {
        self.paces.paused_elsewhere(pace, pause);
    }

    fn distrust(&self) {
        self.cache.distrust();
    }

    fn slots_changed(&self) {
        self.paces.source_changed();
    }

    fn has_cooled(&self) -> bool {
        self.paces.have_cooled()
    }
}
