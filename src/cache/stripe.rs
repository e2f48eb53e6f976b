//! The shared state of some subjects, under one lock: what is cached for them, what is being fetched, and what settles.
//!
//! This state is the truth. moka only decides what to evict, and lets readers find an entry without this lock.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::{Mutex, MutexGuard};

use super::entry::{Question, Subject};
use super::flight::Flight;
use crate::clock::Boot;

/// With so many stripes, misses of different subjects seldom wait for one another. A small cache has fewer.
const STRIPES: RangeInclusive<u64> = 16..=1024;
/// One stripe for so much of the cache's memory.
const BYTES_PER_STRIPE: u64 = 64 << 10;

/// All stripes of a cache.
#[derive(Debug)]
pub(super) struct Stripes<F, E> {
    all: Box<[Mutex<Stripe<F, E>>]>,
    hasher: RandomState,
}

impl<F, E> Stripes<F, E> {
    /// Those of a cache of so many bytes.
    pub(super) fn new(cache_bytes: u64) -> Self {
        let number = (cache_bytes / BYTES_PER_STRIPE).clamp(*STRIPES.start(), *STRIPES.end());
        Self { all: (0..number).map(|_| Mutex::default()).collect(), hasher: RandomState::default() }
    }

    /// Memory that they take however little is cached, in bytes.
    pub(super) fn fixed_bytes(&self) -> u64 {
        size_of_val(&*self.all) as u64
    }

    /// The stripe of a subject.
    pub(super) fn of(&self, subject: &Subject) -> MutexGuard<'_, Stripe<F, E>> {
        let index = usize::try_from(self.hasher.hash_one(subject) % self.all.len().max(1) as u64).unwrap_or_default();
        self.all.get(index).expect("a remainder by their number is the index of a stripe").lock()
    }

    /// All stripes, one after another.
    pub(super) fn all(&self) -> impl Iterator<Item = MutexGuard<'_, Stripe<F, E>>> {
        self.all.iter().map(Mutex::lock)
    }

    /// Whether two subjects are taken for one another by the settle table.
    #[cfg(test)]
    pub(super) fn share_settle_slot(&self, one: &Subject, other: &Subject) -> bool
    where
        E: Replaceable,
    {
        let place = |subject: &Subject| {
            let stripe = self.of(subject);
            (std::ptr::from_ref(&*stripe), stripe.settle_slot(subject))
        };
        place(one) == place(other)
    }

    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.all.iter().map(|stripe| stripe.lock().entries.len()).sum()
    }
}

/// An entry that readers may hold without the lock.
pub(super) trait Replaceable {
    /// From now on nobody is served from it, apart from what it shares with the entry that replaces it.
    fn replaced_by(&self, new: Option<&Self>);
}

/// The state of a stripe's subjects: `F` is why a fetch failed, `E` what is cached for a subject.
#[derive(Debug)]
pub(super) struct Stripe<F, E> {
    /// A flight in here may be joined, and may store its answer.
    flights: HashMap<Question, Arc<Flight<F>>, RandomState>,
    /// What is cached.
    entries: HashMap<Subject, Arc<E>, RandomState>,
    /// Until when the platform may lag behind a write, by a hash of the subject. Subjects that share a slot only make each
    /// other's answers live shortly, and no number of invalidations makes the table larger or slower.
    settle: [Tenths; SETTLE_SLOTS],
    hasher: RandomState,
}

/// With 1024 stripes together 128 KiB. While 300 customers settle, as many as a usual rate of writes and
/// `cache.settle_unknown` amount to, one in 100 others is taken for one of them.
const SETTLE_SLOTS: usize = 32;

/// Tenths of a second since boot, rounded up: thirteen years fit.
type Tenths = u32;

fn tenths(at: Boot) -> Tenths {
    u32::try_from(at.millis().div_ceil(100)).unwrap_or(u32::MAX)
}

impl<F, E> Default for Stripe<F, E> {
    fn default() -> Self {
        Self {
            flights: HashMap::default(),
            entries: HashMap::default(),
            settle: [0; SETTLE_SLOTS],
            hasher: RandomState::default(),
        }
    }
}

impl<F, E: Replaceable> Stripe<F, E> {
    /// Invalidates a subject: what is cached for it is removed and returned, what is being fetched will not be stored, and
    /// what is fetched before `settle_until` lives shortly.
    pub(super) fn invalidate(&mut self, subject: &Subject, settle_until: Boot, now: Boot) -> Option<Arc<E>> {
        self.remove_flights(subject);
        let slot = self.settle_slot(subject);
        if let Some(until) = self.settle.get_mut(slot).filter(|_| settle_until > now) {
            *until = tenths(settle_until).max(*until);
        }
        self.replace(subject, None)
    }

    /// What is cached for a subject.
    pub(super) fn entry(&self, subject: &Subject) -> Option<&Arc<E>> {
        self.entries.get(subject)
    }

    /// Replaces what is cached for a subject, and returns what was.
    pub(super) fn replace(&mut self, subject: &Subject, new: Option<&Arc<E>>) -> Option<Arc<E>> {
        let old = match new {
            Some(new) => self.entries.insert(subject.clone(), Arc::clone(new)),
            None => self.entries.remove(subject),
        };
        old.iter().for_each(|old| old.replaced_by(new.map(Arc::as_ref)));
        old
    }

    /// Removes an entry that was evicted, unless another one has replaced it.
    pub(super) fn evict(&mut self, subject: &Subject, evicted: &Arc<E>) {
        if self.entry(subject).is_some_and(|entry| Arc::ptr_eq(entry, evicted)) {
            self.replace(subject, None);
        }
    }

    /// How many callers wait for the flight for which most of them wait.
    pub(super) fn most_waiters(&self) -> Option<usize> {
        self.flights.values().map(|flight| flight.waiters()).max()
    }

    /// The flight that fetches the answer to a question.
    pub(super) fn flight(&self, question: &Question) -> Option<&Arc<Flight<F>>> {
        self.flights.get(question)
    }

    /// Adds a flight, in place of an older one.
    pub(super) fn add_flight(&mut self, question: Question, flight: Arc<Flight<F>>) {
        self.flights.insert(question, flight);
    }

    /// Removes a flight, unless a newer one replaced it or an invalidation removed it; returns whether it did.
    pub(super) fn remove_flight(&mut self, question: &Question, flight: &Arc<Flight<F>>) -> bool {
        let is_same = self.flight(question).is_some_and(|current| Arc::ptr_eq(current, flight));
        if is_same {
            self.flights.remove(question);
        }
        is_same
    }

    /// Removes every flight of a subject.
    pub(super) fn remove_flights(&mut self, subject: &Subject) {
        self.flights.retain(|question, _| question.subject != *subject);
    }

    /// Until when the platform may answer a subject's questions with data from before a write. A flight takes this along
    /// when it begins: a later write removes the flight.
    pub(super) fn settle_until(&self, subject: &Subject) -> Boot {
        let tenths = self.settle.get(self.settle_slot(subject)).copied().unwrap_or(Tenths::MAX);
        Boot::from_duration(Duration::from_millis(100).saturating_mul(tenths))
    }

    fn settle_slot(&self, subject: &Subject) -> usize {
        usize::try_from(self.hasher.hash_one(subject) % SETTLE_SLOTS as u64).unwrap_or_default()
    }
}
