//! What operators see of the cache: nothing changes by it.

use std::sync::atomic::Ordering;

use super::freshness::Freshness;
use super::{Cache, Generation, Lookup, Question, RequestCacheControl, Subject, find};
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
        let cached = find(&stripe, question, |other| other == generation).cloned();
        let lookup = cached.map_or(Lookup::Miss, |cached| cached.found(cache_control, now));
        Peek { lookup, flight, settle_until }
    }

    /// What is cached for a subject and may still be served in any way: keys and freshness, the oldest first.
    pub fn inspect(&self, subject: &Subject, now: Now) -> Vec<(String, Freshness)> {
        let (stripe, generation) = (self.stripe(subject), self.current_generation(subject.tenant));
        let servable = stripe.answers(subject).filter(|cached| cached.is_servable(generation, now));
        let mut found: Vec<_> =
            servable.map(|cached| (String::from_utf8_lossy(cached.key()).into_owned(), cached.freshness)).collect();
        found.sort_by_key(|(_, freshness)| freshness.received);
        found
    }
}
