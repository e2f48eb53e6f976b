//! What was answered and is still true, what is being asked, and the fence between the two.
//!
//! Hits look up a shelf and read two clocks; they take no lock. Misses meet in a stripe, by subject: under its lock a
//! flight is joined or begun, its answer is kept, and a write ends both. A flight may keep its answer only while it is
//! still in its stripe, and a write takes it out: that is the whole fence. There is no generation to count or to forget.

mod flight;
mod freshness;
mod landing;
mod renewal;
mod shelf;
mod stripe;

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use foldhash::quality::RandomState;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge};

use self::flight::Flight;
pub use self::flight::{Landed, Waiter};
pub use self::freshness::{Bound, Fate, Life, Lifetimes, Stale};
pub use self::landing::{Landing, Settled};
use self::shelf::Shelf;
pub use self::shelf::{Question, Subject};
use self::stripe::Stripe;
use crate::answer::Answer;
use crate::clock::{Boot, Now};

/// Misses of different subjects seldom meet in one of so many stripes; each is some 250 bytes.
const STRIPES: usize = 1024;

/// Memory of the stripes, which counts as the cache's.
const LOOKASIDE_BYTES: u64 = (STRIPES * size_of::<Section<()>>()) as u64;

/// What a cache of a given size is made with.
#[derive(Debug)]
pub struct Options {
    /// Memory for keys, bodies and overhead, in bytes.
    pub max_bytes: u64,
    /// Callers who may share one call.
    pub max_waiters: usize,
    /// How many tenants there are.
    pub tenants: usize,
    /// How long an answer lives at most that was asked for while upstream settled after a write.
    pub unsettled_ttl: Duration,
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

    /// Whether an answer past its freshness would do: not for who asks for one of a certain age (RFC 9111, 5.2.1.1).
    pub const fn takes_stale(&self) -> bool {
        !self.no_cache && self.max_age.is_none()
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

/// An answer from the cache that is past its freshness.
#[derive(Clone, Debug)]
pub struct StaleHit {
    /// The answer.
    pub answer: Arc<Answer>,
    /// Its life.
    pub life: Life,
    /// How it may be told.
    pub stale: Stale,
}

/// What is found of a question without waiting.
#[derive(Clone, Debug)]
pub enum Found {
    /// A fresh answer.
    Fresh(Hit),
    /// One past its freshness, to be told at once, and whether it is this caller's turn to refresh it.
    Stale(StaleHit, bool),
    /// Nothing.
    Nothing,
}

/// What was so when an answer was found: as long as it holds, nothing came between that answer and its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    section: usize,
    changes: u64,
    tenant: usize,
    era: u64,
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

/// The cache; `F` is what a failed flight tells its waiters.
#[derive(Debug)]
pub struct Cache<F> {
    shelves: moka::sync::Cache<Subject, Arc<Shelf>>,
    sections: Box<[Section<F>]>,
    hasher: RandomState,
    tenants: ArcSwap<Vec<Arc<Era>>>,
    max_waiters: AtomicUsize,
    /// In milliseconds.
    unsettled_ttl: AtomicU64,
    tally: Tally,
}

impl<F: Clone> Cache<F> {
    /// An empty cache.
    pub fn new(options: &Options, tally: Tally) -> Self {
        let gone = tally.clone();
        let shelves = moka::sync::Cache::builder()
            .max_capacity(options.max_bytes.saturating_sub(LOOKASIDE_BYTES))
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
        let cache = Self {
            shelves,
            sections: (0..STRIPES).map(|_| Section::default()).collect(),
            hasher: RandomState::default(),
            tenants: ArcSwap::default(),
            max_waiters: AtomicUsize::default(),
            unsettled_ttl: AtomicU64::default(),
            tally,
        };
        cache.adopt(options);
        cache
    }

    /// Takes other options over, but for the memory, and forgets nothing. Tenants only become more.
    pub fn adopt(&self, options: &Options) {
        self.max_waiters.store(options.max_waiters, Ordering::Relaxed);
        let unsettled_ttl = u64::try_from(options.unsettled_ttl.as_millis()).unwrap_or(u64::MAX);
        self.unsettled_ttl.store(unsettled_ttl, Ordering::Relaxed);
        self.tenants.rcu(|known| {
            let mut tenants = Vec::clone(known);
            tenants.resize_with(options.tenants.max(known.len()), Arc::default);
            tenants
        });
    }

    fn unsettled_ttl(&self) -> Duration {
        Duration::from_millis(self.unsettled_ttl.load(Ordering::Relaxed))
    }

    /// Answers from the cache, where it can.
    pub fn look(&self, question: &Question, demand: &Demand, now: Now) -> Found {
        let Some(shelf) = self.shelves.get(&question.subject) else { return Found::Nothing };
        let era = self.era(question.subject.tenant);
        let Some(kept) = shelf.find(&question.key, era) else { return Found::Nothing };
        if let Some(left) = kept.life.left(now) {
            let hit = || Hit { answer: Arc::clone(&kept.answer), life: kept.life, left };
            return if demand.takes(&kept.life, now) { Found::Fresh(hit()) } else { Found::Nothing };
        }
        match kept.life.stale(now).filter(|stale| stale.revalidate && demand.takes_stale()) {
            None => Found::Nothing,
            Some(stale) => {
                let hit = StaleHit { answer: Arc::clone(&kept.answer), life: kept.life, stale };
                Found::Stale(hit, kept.renewal.claim(now.boot))
            }
        }
    }

    /// The answer that may stand in for a failing upstream's.
    pub fn stand_in(&self, question: &Question, now: Now) -> Option<StaleHit> {
        let shelf = self.shelves.get(&question.subject)?;
        let kept = shelf.find(&question.key, self.era(question.subject.tenant))?;
        let stale = kept.life.stale(now).filter(|stale| stale.if_error)?;
        Some(StaleHit { answer: Arc::clone(&kept.answer), life: kept.life, stale })
    }

    /// Joins the flight of a question, or begins one, in an era of its tenant. Nobody who demands a new call joins an old one.
    /// `looked` is the mark of when the caller looked and found nothing, if it did.
    pub fn join(
        self: &Arc<Self>,
        question: &Question,
        demand: &Demand,
        era: u64,
        looked: Option<&Mark>,
        now: Now,
    ) -> Entry<F> {
        let max_waiters = self.max_waiters.load(Ordering::Relaxed);
        let mut stripe = self.stripe(&question.subject).lock();
        if !demand.no_cache {
            // A flight may have landed since the caller looked.
            if !looked.is_some_and(|mark| self.holds(mark))
                && let Found::Fresh(hit) = self.look(question, demand, now)
            {
                return Entry::Hit(hit);
            }
            if let Some(flight) = stripe.flights.get(question).filter(|flight| flight.era == era) {
                return flight.join(max_waiters).map_or(Entry::Crowded, Entry::Joined);
            }
        }
        let flight = Flight::new(era, stripe.settle_until(&question.subject));
        let Some(waiter) = flight.join(max_waiters) else { return Entry::Crowded };
        stripe.flights.insert(question.clone(), Arc::clone(&flight));
        Entry::Begun(Landing::new(Arc::clone(self), question.clone(), flight, demand.no_cache), waiter)
    }

    /// Ends all that is known of a subject: what is kept goes, and what is being asked will not be kept or joined. What
    /// is asked for until `settled` lives shortly. Answers how many answers went that could still be told.
    pub fn invalidate(&self, subject: &Subject, settled: Boot, now: Now) -> usize {
        let era = self.era(subject.tenant);
        let mut stripe = self.stripe(subject).lock();
        stripe.fence(subject, settled, now.boot);
        let gone = self.shelves.remove(subject);
        self.changed(subject);
        gone.map_or(0, |shelf| shelf.tellable(era, now).count())
    }

    /// The mark of a subject. Made before an answer is looked for, it holds as long as that answer is the one to tell.
    pub fn mark(&self, subject: &Subject) -> Mark {
        let (section, tenant) = (self.section_of(subject), subject.tenant);
        Mark { section, changes: self.section(section).changes.load(Ordering::SeqCst), tenant, era: self.era(tenant) }
    }

    /// Whether nothing has come between since a mark was made.
    pub fn holds(&self, mark: &Mark) -> bool {
        self.section(mark.section).changes.load(Ordering::SeqCst) == mark.changes && self.era(mark.tenant) == mark.era
    }

    /// Voids the marks of a subject: under its stripe's lock, once the shelf is as it shall be.
    fn changed(&self, subject: &Subject) {
        self.section(self.section_of(subject)).changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends all that is known of a tenant.
    pub fn invalidate_tenant(&self, tenant: usize, settled: Boot) {
        if let Some(era) = self.tenants.load().get(tenant) {
            era.settled.fetch_max(settled.millis(), Ordering::SeqCst);
            era.number.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Ends all that is known of a tenant; answers how many answers went that could still be told.
    pub fn purge_tenant(&self, tenant: usize, settled: Boot, now: Now) -> usize {
        let era = self.era(tenant);
        self.invalidate_tenant(tenant, settled);
        let mut count = 0;
        for (subject, shelf) in self.shelves.iter().filter(|(subject, _)| subject.tenant == tenant) {
            count += shelf.tellable(era, now).count();
            // What is kept since is of the new era, and stays.
            if shelf.iter().all(|kept| kept.era <= era) {
                self.shelves.invalidate(&*subject);
            }
        }
        count
    }

    /// What is kept for a subject, and may still be told in any way.
    pub fn inspect(&self, subject: &Subject, now: Now) -> Vec<(Arc<str>, Life)> {
        let Some(shelf) = self.shelves.get(subject) else { return Vec::new() };
        let tellable = shelf.tellable(self.era(subject.tenant), now);
        tellable.map(|kept| (Arc::clone(&kept.key), kept.life)).collect()
    }

    /// Frees what is over, and what was evicted.
    pub fn tidy(&self) {
        self.shelves.run_pending_tasks();
    }

    /// Bytes of memory in use, as weighed.
    pub fn bytes(&self) -> u64 {
        self.shelves.weighted_size() + LOOKASIDE_BYTES
    }

    /// How often all that was known of a tenant became void: what was asked for in one era is void in the next.
    pub fn era(&self, tenant: usize) -> u64 {
        self.tenants.load().get(tenant).map_or(0, |era| era.number.load(Ordering::SeqCst))
    }

    /// Whether upstream may still have answered from before a tenant-wide write at that moment.
    fn tenant_settles(&self, tenant: usize, sent: Boot) -> bool {
        self.tenants.load().get(tenant).is_some_and(|era| sent.millis() < era.settled.load(Ordering::SeqCst))
    }

    fn section_of(&self, subject: &Subject) -> usize {
        usize::try_from(self.hasher.hash_one(subject) % STRIPES as u64).unwrap_or_default()
    }

    fn section(&self, index: usize) -> &Section<F> {
        self.sections.get(index).expect("a remainder by their number is the index of a section")
    }

    fn stripe(&self, subject: &Subject) -> &Mutex<Stripe<F>> {
        &self.section(self.section_of(subject)).stripe
    }
}

/// Where misses and writes of some subjects meet, and how often something was kept or ended there.
#[derive(Debug)]
struct Section<F> {
    stripe: Mutex<Stripe<F>>,
    changes: AtomicU64,
}

impl<F> Default for Section<F> {
    fn default() -> Self {
        Self { stripe: Mutex::default(), changes: AtomicU64::default() }
    }
}

/// A tenant's state beyond its customers'.
#[derive(Debug, Default)]
struct Era {
    /// How often all that was known of the tenant became void.
    number: AtomicU64,
    /// Until when upstream may lag behind a write to nobody knows whom, in milliseconds since boot.
    settled: AtomicU64,
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

#[cfg(test)]
mod model;

#[cfg(test)]
mod oracle;
