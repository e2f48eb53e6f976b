//! `Cache-Control` of a request, as far as the cache follows it.

use std::time::Duration;

use super::Freshness;
use crate::clock::Now;

/// What a request asks of the cache: its `Cache-Control` (RFC 9111, section 5.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCacheControl {
    /// `no-cache`: a new fetch, since more than this answer is thought to have changed.
    pub no_cache: bool,
    /// `no-store`: a new fetch whose answer is not stored.
    pub no_store: bool,
    /// `max-age`: an answer no older than this.
    pub max_age: Option<Duration>,
    /// `only-if-cached`: a cached answer or none.
    pub only_if_cached: bool,
}

impl RequestCacheControl {
    /// The same without what bypasses the cache.
    #[must_use]
    pub fn without_bypass(self) -> Self {
        Self { only_if_cached: self.only_if_cached, ..Self::default() }
    }

    /// Whether only a new fetch will do.
    pub const fn wants_new(&self) -> bool {
        self.no_cache || self.no_store
    }

    pub(super) fn allows(&self, freshness: &Freshness, now: Now) -> bool {
        !self.wants_new() && self.max_age.is_none_or(|max| freshness.age(now) <= max)
    }

    /// Whether a stale answer may be served: not if the request limits its age (RFC 9111, section 5.2.1.1).
    pub const fn allows_stale(&self) -> bool {
        !self.wants_new() && self.max_age.is_none()
    }
}
