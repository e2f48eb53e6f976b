//! What was answered and is still true, what is being asked, and the fence between the two.
//!
//! Hits look up a shelf and read two clocks; they take no lock. Misses meet in a stripe, by subject: under its lock a
//! flight is joined or begun, its answer is kept, and a write ends both. A flight may keep its answer only while it is
//! still in its stripe, and a write takes it out: that is the whole fence. There is no generation to count or to forget.

mod flight;
mod freshness;
mod shelf;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};

use self::flight::Flight;
pub use self::flight::{Landed, Waiter};
pub use self::freshness::{Bound, Fate, Life, Lifetimes};
use self::shelf::{Kept, Shelf};
pub use self::shelf::{Question, Subject};
use crate::answer::Answer;
use crate::clock::Now;

/// Misses of different subjects seldom meet in one of so many stripes; each is a few dozen bytes.
const STRIPES: usize = 1024;

/// What a cache of a given size is made with.
#[derive(Debug)]
pub struct Options {
    /// Memory for keys, bodies and overhead, in bytes.
    pub max_bytes: u64,
    /// Callers who may share one call.
    pub max_waiters: usize,
    /// How many tenants there are.
    pub tenants: usize,
}

/// What the cache counts.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Answers kept.
    pub entries: IntGauge,
    /// Answers that went because their time was over.
    pub expired: IntCounter,
    /// Answers that went because others needed the room.
    pub size: IntCounter,
}

/// What a caller asks of freshness: `Cache-Control` of the request (RFC 9111, section 5.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Not from the cache.
    pub no_cache: bool,
    /// Not older than this.
    pub max_age: Option<Duration>,
    /// From the cache or not at all.
    pub only_if_cached: bool,
}

impl Demand {
    fn takes(&self, life: &Life, now: Now) -> bool {
        !self.no_cache && self.max_age.is_none_or(|max| life.age(now) <= max)
    }
}

/// An answer from the cache.
#[derive(Clone, Debug)]
pub struct Hit {
    /// The answer.
    pub answer: Arc<Answer>,
    /// Its life.
    pub life: Life,
    /// How long it is still fresh.
    pub left: Duration,
}

/// What becomes of a question that the cache could not answer at once.
#[derive(Debug)]
pub enum Entry<F: Clone> {
    /// It was answered just now.
    Hit(Hit),
    /// It is being asked: wait.
    Joined(Waiter<F>),
    /// It must be asked: do that, and wait.
    Begun(Landing<F>, Waiter<F>),
    /// It is being asked, and too many wait already.
    Crowded,
}

/// Flights of one stripe's subjects. A flight in here may be joined, and may keep its answer.
type Stripe<F> = HashMap<Question, Arc<Flight<F>>>;

/// The cache; `F` is what a failed flight tells its waiters.
#[derive(Debug)]
pub struct Cache<F> {
    shelves: moka::sync::Cache<Subject, Arc<Shelf>>,
    stripes: Box<[Mutex<Stripe<F>>]>,
    stripe_of: RandomState,
    /// For each tenant, how often all that was known of it became void.
    eras: Box<[AtomicU64]>,
    max_waiters: usize,
    tally: Tally,
}

impl<F: Clone> Cache<F> {
    /// An empty cache.
    pub fn new(options: &Options, tally: Tally) -> Self {
        let gone = tally.clone();
        let shelves = moka::sync::Cache::builder()
            .max_capacity(options.max_bytes)
            .weigher(|subject: &Subject, shelf: &Arc<Shelf>| shelf.weight(subject))
            // The default policy turns new entries away while old ones are asked for more often, and `stored` would lie.
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(FreeMemory)
            .eviction_listener(move |_, shelf: Arc<Shelf>, cause| {
                let answers = shelf.len();
                gone.entries.sub(i64::try_from(answers).unwrap_or(i64::MAX));
                match cause {
                    RemovalCause::Expired => gone.expired.inc_by(answers as u64),
                    RemovalCause::Size => gone.size.inc_by(answers as u64),
                    RemovalCause::Explicit | RemovalCause::Replaced => {}
                }
            })
            .build();
        Self {
            shelves,
            stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
            stripe_of: RandomState::new(),
            eras: (0..options.tenants).map(|_| AtomicU64::new(0)).collect(),
            max_waiters: options.max_waiters,
            tally,
        }
    }

    /// Answers from the cache, where it can.
    pub fn look(&self, question: &Question, demand: &Demand, now: Now) -> Option<Hit> {
        let shelf = self.shelves.get(&question.subject)?;
        let kept = shelf.find(&question.key)?;
        let left = kept.life.left(now)?;
        let usable = demand.takes(&kept.life, now) && kept.era == self.era(question.subject.tenant);
        usable.then(|| Hit { answer: Arc::clone(&kept.answer), life: kept.life, left })
    }

    /// Joins the flight of a question, or begins one. Nobody who demands a new call joins an old one.
    pub fn join(self: &Arc<Self>, question: &Question, demand: &Demand, now: Now) -> Entry<F> {
        let era = self.era(question.subject.tenant);
        let mut stripe = self.stripe(&question.subject).lock();
        if !demand.no_cache {
            // A flight may have landed since the caller looked.
            if let Some(hit) = self.look(question, demand, now) {
                return Entry::Hit(hit);
            }
            if let Some(flight) = stripe.get(question).filter(|flight| flight.era == era) {
                return flight.join(self.max_waiters).map_or(Entry::Crowded, Entry::Joined);
            }
        }
        let flight = Flight::new(era);
        let Some(waiter) = flight.join(self.max_waiters) else { return Entry::Crowded };
        stripe.insert(question.clone(), Arc::clone(&flight));
        let landing = Landing {
            cache: Arc::clone(self),
            question: question.clone(),
            flight,
            renews: demand.no_cache,
            landed: false,
        };
        Entry::Begun(landing, waiter)
    }

    /// Ends all that is known of a subject: what is kept goes, and what is being asked will not be kept or joined.
    pub fn invalidate(&self, subject: &Subject) {
        let mut stripe = self.stripe(subject).lock();
        stripe.retain(|question, _| question.subject != *subject);
        self.shelves.invalidate(subject);
    }

    /// Ends all that is known of a tenant.
    pub fn invalidate_tenant(&self, tenant: usize) {
        if let Some(era) = self.eras.get(tenant) {
            era.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Frees what is over, and what was evicted.
    pub fn tidy(&self) {
        self.shelves.run_pending_tasks();
    }

    /// Bytes of memory in use, as weighed.
    pub fn bytes(&self) -> u64 {
        self.shelves.weighted_size()
    }

    fn era(&self, tenant: usize) -> u64 {
        self.eras.get(tenant).map_or(0, |era| era.load(Ordering::SeqCst))
    }

    fn stripe(&self, subject: &Subject) -> &Mutex<Stripe<F>> {
        let hash = self.stripe_of.hash_one(subject);
        let index = usize::try_from(hash % STRIPES as u64).unwrap_or_default();
        self.stripes.get(index).expect("a remainder by their number is the index of a stripe")
    }
}

/// The duty to end a flight. Dropped without doing so, it tells the waiters, and the next caller begins anew.
#[derive(Debug)]
pub struct Landing<F: Clone> {
    cache: Arc<Cache<F>>,
    question: Question,
    flight: Arc<Flight<F>>,
    /// Whether it was demanded because more than this answer is thought to have changed.
    renews: bool,
    landed: bool,
}

impl<F: Clone> Landing<F> {
    /// Hands the answer to all who wait, and keeps it if that is its fate and no write came between.
    /// Answers the life that it is kept for.
    pub fn answer(mut self, answer: Arc<Answer>, fate: Fate, now: Now) -> Option<Life> {
        let kept = self.settle(&answer, fate, now);
        self.end(Landed::Answer { answer, kept });
        kept
    }

    /// Tells all who wait why there is no answer.
    pub fn fail(mut self, failure: F) {
        self.cache.stripe(&self.question.subject).lock().remove_if_same(&self.question, &self.flight);
        self.end(Landed::Failed(failure));
    }

    fn end(&mut self, outcome: Landed<F>) {
        self.landed = true;
        self.flight.land(outcome);
    }

    fn settle(&self, answer: &Arc<Answer>, fate: Fate, now: Now) -> Option<Life> {
        let Self { cache, question, flight, .. } = self;
        let subject = &question.subject;
        let mut stripe = cache.stripe(subject).lock();
        let in_time = stripe.remove_if_same(question, flight) && flight.era == cache.era(subject.tenant);
        if !in_time || fate == Fate::Ignored {
            return None;
        }
        if self.renews {
            stripe.retain(|other, _| other.subject != *subject);
            cache.shelves.invalidate(subject);
        }
        let shelf = cache.shelves.get(subject);
        let shelf = shelf.as_deref().unwrap_or(const { &Shelf::EMPTY }).without(&question.key, flight.era, now);
        let life = if let Fate::Kept(life) = fate { Some(life) } else { None };
        let shelf = match life {
            Some(life) => {
                let (key, answer) = (Arc::clone(&question.key), Arc::clone(answer));
                shelf.with(Kept { key, answer, life, era: flight.era }, now)
            }
            None => shelf,
        };
        if shelf.len() == 0 {
            cache.shelves.invalidate(subject);
        } else {
            cache.tally.entries.add(i64::try_from(shelf.len()).unwrap_or(i64::MAX));
            cache.shelves.insert(subject.clone(), Arc::new(shelf));
        }
        life
    }
}

impl<F: Clone> Drop for Landing<F> {
    fn drop(&mut self) {
        if !self.landed {
            self.cache.stripe(&self.question.subject).lock().remove_if_same(&self.question, &self.flight);
            self.flight.land(Landed::Abandoned);
        }
    }
}

trait RemoveIfSame<F> {
    /// Takes a flight out, unless a newer one has its place or a write took it out; answers whether it was there.
    fn remove_if_same(&mut self, question: &Question, flight: &Arc<Flight<F>>) -> bool;
}

impl<F> RemoveIfSame<F> for Stripe<F> {
    fn remove_if_same(&mut self, question: &Question, flight: &Arc<Flight<F>>) -> bool {
        let same = self.get(question).is_some_and(|current| Arc::ptr_eq(current, flight));
        if same {
            self.remove(question);
        }
        same
    }
}

/// Tells moka when a shelf's memory is worth nothing any more. Freshness is not judged by it: its clock is not ours.
struct FreeMemory;

impl moka::Expiry<Subject, Arc<Shelf>> for FreeMemory {
    fn expire_after_create(&self, _: &Subject, shelf: &Arc<Shelf>, _: Instant) -> Option<Duration> {
        Some(shelf.keep_for)
    }

    fn expire_after_update(
        &self,
        _: &Subject,
        shelf: &Arc<Shelf>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(shelf.keep_for)
    }
}

#[cfg(test)]
mod tests;
