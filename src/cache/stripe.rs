//! The shared state of some subjects, under one lock: what is cached for them, what is being fetched, and what settles.
//!
//! This state is the truth. moka only decides what to evict.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::ops::RangeInclusive;
use std::sync::Arc;

use foldhash::quality::RandomState;
use hashbrown::HashTable;
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
pub(super) struct Stripes<F, A> {
    all: Box<[Mutex<Stripe<F, A>>]>,
    hasher: RandomState,
}

impl<F, A> Stripes<F, A> {
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
    pub(super) fn of(&self, subject: &Subject) -> MutexGuard<'_, Stripe<F, A>> {
        let index = usize::try_from(self.hasher.hash_one(subject) % self.all.len().max(1) as u64).unwrap_or_default();
        self.all.get(index).expect("a remainder by their number is the index of a stripe").lock()
    }

    /// All stripes, one after another.
    pub(super) fn all(&self) -> impl Iterator<Item = MutexGuard<'_, Stripe<F, A>>> {
        self.part(0, 1)
    }

    /// One of several parts of the stripes, one stripe after another.
    pub(super) fn part(&self, part: usize, parts: usize) -> impl Iterator<Item = MutexGuard<'_, Stripe<F, A>>> {
        self.all.iter().skip(part).step_by(parts).map(Mutex::lock)
    }

    /// Whether two subjects are taken for one another by the settle table.
    #[cfg(test)]
    pub(super) fn share_settle_slot(&self, one: &Subject, other: &Subject) -> bool
    where
        A: Cached,
    {
        let place = |subject: &Subject| {
            let stripe = self.of(subject);
            (std::ptr::from_ref(&*stripe), stripe.settle_slot(subject))
        };
        place(one) == place(other)
    }

    #[cfg(test)]
    pub(super) fn answers(&self) -> usize {
        self.all.iter().map(|stripe| stripe.lock().answers.len()).sum()
    }
}

/// A cached answer, which may be held without the lock.
pub(super) trait Cached {
    /// Its subject.
    fn subject(&self) -> &Subject;
    /// Marks it as invalid: it is not served any more.
    fn invalidate(&self);
}

/// The state of a stripe's subjects: `F` is why a fetch failed, `A` a cached answer.
#[derive(Debug)]
pub(super) struct Stripe<F, A> {
    /// A flight in here may be joined, and may store its answer.
    flights: HashMap<Question, Arc<Flight<F>>, RandomState>,
    /// What is cached, by a hash of the subject: the answers about one are found together.
    answers: HashTable<Arc<A>>,
    /// Until when the platform may lag behind a write, in tenths of a second since boot, by a hash of the subject. Subjects that share a
    /// slot only make each other's answers live shortly, and no number of invalidations makes the table larger or slower.
    settle: [u32; SETTLE_SLOTS],
    hasher: RandomState,
}

/// With 1024 stripes together 128 KiB. While 300 customers settle, as many as a usual rate of writes and
/// `cache.settle_unknown` amount to, one in 100 others is taken for one of them.
const SETTLE_SLOTS: usize = 32;

impl<F, A> Default for Stripe<F, A> {
    fn default() -> Self {
        Self {
            flights: HashMap::default(),
            answers: HashTable::new(),
            settle: [0; SETTLE_SLOTS],
            hasher: RandomState::default(),
        }
    }
}

impl<F, A: Cached> Stripe<F, A> {
    /// Invalidates a subject: what is cached for it is removed and returned, what is being fetched will not be stored, and
    /// what is fetched before `settle_until` lives shortly.
    pub(super) fn invalidate(&mut self, subject: &Subject, settle_until: Boot, now: Boot) -> Vec<Arc<A>> {
        self.remove_flights(subject);
        let slot = self.settle_slot(subject);
        if let Some(until) = self.settle.get_mut(slot).filter(|_| settle_until > now) {
            *until = settle_until.tenths().max(*until);
        }
        self.remove(subject, |_| true)
    }

    /// What is cached for a subject.
    pub(super) fn answers(&self, subject: &Subject) -> impl Iterator<Item = &Arc<A>> {
        self.answers.iter_hash(self.hasher.hash_one(subject)).filter(move |answer| answer.subject() == subject)
    }

    /// Adds an answer.
    pub(super) fn add(&mut self, answer: Arc<A>) {
        let Self { answers, hasher, .. } = self;
        answers.insert_unique(hasher.hash_one(answer.subject()), answer, |other| hasher.hash_one(other.subject()));
    }

    /// Removes some of a subject's answers, and returns them.
    pub(super) fn remove(&mut self, subject: &Subject, is_removed: impl Fn(&Arc<A>) -> bool) -> Vec<Arc<A>> {
        let hash = self.hasher.hash_one(subject);
        let mut removed = Vec::new();
        while let Ok(found) = self.answers.find_entry(hash, |one| one.subject() == subject && is_removed(one)) {
            let (answer, _) = found.remove();
            answer.invalidate();
            removed.push(answer);
        }
        removed
    }

    /// Removes an answer that was evicted, if it is still there; returns whether it was.
    pub(super) fn evict(&mut self, evicted: &Arc<A>) -> bool {
        let hash = self.hasher.hash_one(evicted.subject());
        let found = self.answers.find_entry(hash, |answer| Arc::ptr_eq(answer, evicted));
        found.map(|found| found.remove().0.invalidate()).is_ok()
    }

    /// Removes some of all subjects' answers, and returns them.
    pub(super) fn sweep(&mut self, is_removed: impl Fn(&A) -> bool) -> Vec<Arc<A>> {
        let removed: Vec<_> = self.answers.extract_if(|answer| is_removed(answer)).collect();
        removed.iter().for_each(|answer| answer.invalidate());
        removed
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
        Boot::from_tenths(self.settle.get(self.settle_slot(subject)).copied().unwrap_or(u32::MAX))
    }

    fn settle_slot(&self, subject: &Subject) -> usize {
        usize::try_from(self.hasher.hash_one(subject) % SETTLE_SLOTS as u64).unwrap_or_default()
    }
}
