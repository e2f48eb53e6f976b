//! What operators see of the cache: nothing changes by it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::freshness::Freshness;
use super::{Cache, Generation, Lookup, Question, RequestCacheControl, Subject};
use crate::clock::{Boot, Now};

/// What a lookup would find.
#[derive(Debug)]
pub struct Peek {
    /// What is cached.
    pub lookup: Lookup,
    /// The fetch in progress that the request would wait for.
    pub flight: PeekedFlight,
    /// Until when the platform may lag behind a write.
    pub settle_until: Boot,
}

/// A fetch in progress, as far as a request would wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeekedFlight {
    /// There is none, or the request wants a newer one.
    None,
    /// It would be joined.
    Joinable,
    /// It has as many waiters as are allowed.
    Full,
}

impl<F: Clone> Cache<F> {
    /// What a lookup would find. Nothing changes, neither the order of eviction nor what is due to be refreshed.
    pub fn peek(
        &self,
        question: &Question,
        generation: Generation,
        cache_control: &RequestCacheControl,
        now: Now,
    ) -> Peek {
        let max_waiters = self.max_waiters.load(Ordering::Relaxed);
        let stripe = self.stripe(&question.subject);
        let joined = stripe.flight(question).filter(|flight| flight.generation == generation);
        let joined = joined.filter(|flight| flight.is_joinable(cache_control));
        let flight = match joined {
            None => PeekedFlight::None,
            Some(flight) if flight.waiters() < max_waiters => PeekedFlight::Joinable,
            Some(_) => PeekedFlight::Full,
        };
        let settle_until = stripe.settle_until(&question.subject);
        let entry = stripe.entry(&question.subject);
        let lookup = entry.map_or(Lookup::Miss, |entry| entry.peek(question, generation, cache_control, now));
        Peek { lookup, flight, settle_until }
    }

    /// What is cached for a subject and may still be served in any way: keys and freshness.
    pub fn inspect(&self, subject: &Subject, now: Now) -> Vec<(Arc<str>, Freshness)> {
        let Some(entry) = self.stripe(subject).entry(subject).cloned() else { return Vec::new() };
        let servable = entry.servable(self.current_generation(subject.tenant), now);
        servable.map(|cached| (Arc::clone(&cached.key), cached.freshness)).collect()
    }
}
