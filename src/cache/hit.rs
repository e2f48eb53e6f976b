//! What a lookup finds.

use std::sync::Arc;
use std::time::Duration;

use super::entry::{CachedAnswer, SharedAnswer, Subject};
use super::freshness::{Freshness, Staleness};

/// A fresh answer from the cache.
#[derive(Clone, Debug)]
pub struct Hit {
    pub(super) cached: Arc<CachedAnswer>,
    /// How long it is still fresh.
    pub remaining: Duration,
}

impl Hit {
    /// The answer.
    pub fn answer(self) -> SharedAnswer {
        SharedAnswer::Cached(self.cached)
    }

    /// Its freshness.
    pub fn freshness(&self) -> &Freshness {
        &self.cached.freshness
    }

    /// Its subject.
    pub fn subject(&self) -> &Subject {
        &self.cached.subject
    }
}

/// A stale answer from the cache.
#[derive(Clone, Debug)]
pub struct StaleHit {
    pub(super) cached: Arc<CachedAnswer>,
    /// How it may be served.
    pub stale: Staleness,
}

impl StaleHit {
    /// Its subject.
    pub fn subject(&self) -> &Subject {
        &self.cached.subject
    }

    /// The answer.
    pub fn answer(self) -> SharedAnswer {
        SharedAnswer::Cached(self.cached)
    }

    /// Its freshness.
    pub fn freshness(&self) -> &Freshness {
        &self.cached.freshness
    }
}

/// What a lookup found.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// A fresh answer.
    Fresh(Hit),
    /// A stale answer, to be served at once, and whether a refresh is due ([`Cache::claim_refresh`](super::Cache::claim_refresh)).
    Stale(StaleHit, bool),
    /// Nothing that may be served.
    Miss,
}
