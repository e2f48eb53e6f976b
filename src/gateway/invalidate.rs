//! Invalidation, here and in all other replicas: by writes, by callers that learn of a change made elsewhere, and by operators.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;

use super::replica::Merchants;
use super::time::Time;
use crate::cache::{Cache, Subject};
use crate::cluster::{Cluster, Completion};
use crate::metrics::{Invalidation, Per};
use crate::reply::GatewayError;

/// Invalidates what is cached, and counts that by cause.
pub(super) struct Invalidator {
    pub(super) cache: Arc<Cache<GatewayError>>,
    pub(super) time: Arc<Time>,
    pub(super) counters: Per<Invalidation, IntCounter>,
    pub(super) cluster: Cluster,
    pub(super) merchants: Arc<Merchants>,
}

impl Invalidator {
    /// Invalidates the answers for customers of a merchant, behind which the platform may lag for `settle`. Returns how many answers
    /// were dropped here that could still be served, and what completes once no other replica serves one.
    pub(super) fn customers<T: AsRef<str>>(
        &self,
        merchant: usize,
        ids: &[T],
        settle: Duration,
        cause: Invalidation,
    ) -> (usize, Completion) {
        let now = self.time.now();
        let mut dropped = 0;
        let subjects = ids.iter().map(|id| {
            let subject = Subject::customer(merchant, &self.cluster.customer(id.as_ref()));
            self.counters.of(cause).inc();
            dropped += self.cache.invalidate(&subject, now.boot + settle, now);
            subject
        });
        let subjects: Vec<Subject> = subjects.collect();
        (dropped, self.end(merchant, Some(&subjects), settle))
    }

    /// Invalidates all answers of a merchant.
    pub(super) fn merchant(&self, merchant: usize, settle: Duration, cause: Invalidation) -> Completion {
        self.counters.of(cause).inc();
        self.cache.invalidate_tenant(merchant, self.time.boot() + settle);
        self.end(merchant, None, settle)
    }

    /// The same for some merchants, and frees their memory here.
    pub(super) fn purge(&self, merchants: Range<usize>, settle: Duration) -> (usize, Vec<Completion>) {
        let now = self.time.now();
        let purge = |merchant: usize| {
            self.counters.of(Invalidation::Purge).inc();
            let dropped = self.cache.purge_tenant(merchant, now.boot + settle, now);
            (dropped, self.end(merchant, None, settle))
        };
        let (dropped, ended): (Vec<usize>, _) = merchants.map(purge).unzip();
        (dropped.into_iter().sum(), ended)
    }

    /// Newer answers than other replicas may have are about to be served for a subject. Returns what completes once they do not serve
    /// theirs any more.
    pub(super) fn superseded(&self, subject: &Subject) -> Completion {
        self.cluster.supersede(&self.merchants.name(subject.tenant), subject)
    }

    fn end(&self, merchant: usize, subjects: Option<&[Subject]>, settle: Duration) -> Completion {
        self.cluster.end(&self.merchants.name(merchant), subjects, settle)
    }
}
