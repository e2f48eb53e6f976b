//! Cached answers, fetches in progress, and the fence between the two.
//!
//! A hit finds its answer by a reference or by moka, and reads two clocks; it takes no lock. Everything else goes through the stripe of its
//! subject: under its lock a flight is joined or begun, an answer is stored, and a write invalidates both. A flight may store
//! its answer only while it is in its stripe, and an answer may be served only until it is marked as invalid: that is the
//! whole fence. It gives read-your-writes: a read that starts after a write was answered never sees data fetched before it.
//!
//! What a stripe holds is the truth, and moka follows it (`Cache::publish`). No call to moka is made under a stripe's lock,
//! since any of them may run moka's maintenance.

mod entry;
mod fetch_guard;
mod flight;
mod freshness;
mod hit;
mod peek;
mod refresh;
mod request_control;
mod stripe;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use parking_lot::MutexGuard;
use prometheus::{IntCounter, IntGauge};

pub use self::entry::{AnswerRef, Generation, MAX_ANSWERS, Question, Subject};
use self::entry::{CustomerEntry, Held, TenantState};
pub use self::fetch_guard::{Elsewhere, FetchGuard, Served, Stored};
use self::flight::Flight;
pub use self::flight::{FetchOutcome, Waiter};
pub use self::freshness::{Deadline, Freshness, LEAST_FRESH, LimitedBy, RelativeFreshness, Staleness, StoreDecision};
pub use self::hit::{Hit, Lookup, StaleHit};
pub use self::peek::{Peek, PeekedFlight};
pub use self::request_control::RequestCacheControl;
use self::stripe::{Stripe, Stripes};
use crate::clock::{Boot, Now};

/// How a cache is configured.
#[derive(Debug)]
pub struct Options {
    /// Memory for keys, bodies, overhead and lookaside tables, in bytes.
    pub max_bytes: u64,
    /// Callers that may share one fetch.
    pub max_waiters: usize,
    /// How many tenants there are.
    pub tenants: usize,
    /// The number of the rules by which answers are parsed and keyed.
    pub rules: u64,
    /// How long an answer is fresh at most that was fetched while the platform settled after a write.
    pub unsettled_ttl: Duration,
}

/// What the cache counts.
#[derive(Clone, Debug)]
pub struct CacheMetrics {
    /// Cached answers.
    pub entries: IntGauge,
    /// Answers evicted because they had expired.
    pub expired: IntCounter,
    /// Answers evicted because the cache was full.
    pub size: IntCounter,
}

/// How a question is answered that a lookup missed.
#[derive(Debug)]
pub enum Join<F: Clone> {
    /// By an answer that was stored in the meantime.
    Hit(Hit),
    /// By a fetch in progress: wait for it.
    Joined(Waiter<F>),
    /// By a new fetch: make it, and wait.
    Started(FetchGuard<F>, Waiter<F>),
    /// Not at all: too many callers wait for the fetch in progress.
    TooManyWaiters,
}

/// The cache; `F` is what waiters get if a fetch fails.
#[derive(Debug)]
pub struct Cache<F> {
    entries: moka::sync::Cache<Subject, Arc<CustomerEntry>, RandomState>,
    stripes: Arc<Stripes<F, CustomerEntry>>,
    tenants: boxcar::Vec<Arc<TenantState>>,
    /// Those in force.
    rules: AtomicU64,
    max_waiters: AtomicUsize,
    /// In milliseconds.
    unsettled_ttl: AtomicU64,
    metrics: CacheMetrics,
}

impl<F: Clone + Send + Sync + 'static> Cache<F> {
    /// An empty cache.
    pub fn new(options: &Options, metrics: CacheMetrics) -> Self {
        let stripes = Arc::new(Stripes::new(options.max_bytes));
        let fixed_bytes = stripes.fixed_bytes();
        let (evicting, evicted) = (Arc::clone(&stripes), metrics.clone());
        let entries = moka::sync::Cache::builder()
            .max_capacity(options.max_bytes.saturating_sub(fixed_bytes))
            .weigher(|subject: &Subject, entry: &Arc<CustomerEntry>| entry.weight(subject))
            // The default policy rejects new entries while old ones are asked for more often, and `stored` would lie.
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(FreeMemory)
            .eviction_listener(move |subject: Arc<Subject>, entry: Arc<CustomerEntry>, cause| {
                let answers = entry.len();
                evicted.entries.sub(i64::try_from(answers).unwrap_or(i64::MAX));
                match cause {
                    RemovalCause::Expired => evicted.expired.inc_by(answers as u64),
                    RemovalCause::Size => evicted.size.inc_by(answers as u64),
                    RemovalCause::Explicit | RemovalCause::Replaced => return,
                }
                evicting.of(&subject).evict(&subject, &entry);
            })
            .build_with_hasher(RandomState::default());
        let cache = Self {
            entries,
            stripes,
            tenants: boxcar::Vec::new(),
            rules: AtomicU64::default(),
            max_waiters: AtomicUsize::default(),
            unsettled_ttl: AtomicU64::default(),
            metrics,
        };
        cache.reconfigure(options);
        cache
    }
}

impl<F: Clone> Cache<F> {
    /// Takes other options over, except for the memory, and forgets nothing. Tenants only become more.
    pub fn reconfigure(&self, options: &Options) {
        self.rules.store(options.rules, Ordering::SeqCst);
        self.max_waiters.store(options.max_waiters, Ordering::Relaxed);
        let unsettled_ttl = u64::try_from(options.unsettled_ttl.as_millis()).unwrap_or(u64::MAX);
        self.unsettled_ttl.store(unsettled_ttl, Ordering::Relaxed);
        while self.tenants.count() < options.tenants {
            self.tenants.push(Arc::default());
        }
    }

    fn unsettled_ttl(&self) -> Duration {
        Duration::from_millis(self.unsettled_ttl.load(Ordering::Relaxed))
    }

    /// The generation of a tenant's answers under the rules in force.
    pub fn current_generation(&self, tenant: usize) -> Generation {
        self.generation(tenant, self.rules.load(Ordering::SeqCst))
    }

    /// The same under rules of this number, by which a request came.
    pub fn generation(&self, tenant: usize, rules: u64) -> Generation {
        let tenant = self.tenants.get(tenant).map_or(0, |state| state.invalidations.load(Ordering::SeqCst));
        Generation { tenant, rules }
    }

    /// Looks a question up.
    pub fn lookup(
        &self,
        question: &Question,
        generation: Generation,
        cache_control: &RequestCacheControl,
        now: Now,
    ) -> Lookup {
        self.entries
            .get(&question.subject)
            .map_or(Lookup::Miss, |entry| entry.lookup(question, generation, cache_control, now))
    }

    /// A reference to the answer of a hit for a question: the next hit needs no lookup. `None` if its tenant is not known here.
    pub fn reference(&self, question: &Question, hit: &Hit) -> Option<AnswerRef> {
        let tenant = Arc::clone(self.tenants.get(question.subject.tenant)?);
        Some(AnswerRef { subject: question.subject.clone(), cached: Arc::downgrade(&hit.cached), tenant })
    }

    /// The fresh answer to a question, if there is one; a stale one is left to [`Cache::lookup`].
    pub fn fresh(
        &self,
        question: &Question,
        generation: Generation,
        cache_control: &RequestCacheControl,
        now: Now,
    ) -> Option<Hit> {
        self.entries.get(&question.subject)?.fresh(question, generation, cache_control, now)
    }

    /// Whether the caller is the one that refreshes a stale answer.
    pub fn claim_refresh(&self, question: &Question, generation: Generation, now: Now) -> bool {
        self.entries.get(&question.subject).is_some_and(|entry| entry.claim_refresh(question, generation, now.boot))
    }

    /// What is held of a tenant's answers: those since it was last invalidated for certain, under the rules in force.
    fn held_generations(&self, tenant: usize) -> Held {
        let since = self.tenants.get(tenant).map_or(0, |state| state.held_since.load(Ordering::SeqCst));
        Held { since, rules: self.rules.load(Ordering::SeqCst) }
    }

    /// Serves nothing any more that is in memory or being fetched, since invalidations may have been missed. It is still held: see
    /// [`Cache::held`].
    pub fn distrust(&self) {
        for (_, state) in &self.tenants {
            state.invalidations.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The answer that is in memory and may be served in place of a failure, although invalidations may have been missed since it was
    /// fetched.
    pub fn held(&self, question: &Question, now: Now) -> Option<StaleHit> {
        let entry = self.stripe(&question.subject).entry(&question.subject).cloned()?;
        let cached = entry.held(&question.key, self.held_generations(question.subject.tenant))?;
        let stale = match cached.freshness.remaining(now) {
            Some(_) => Staleness { past: Duration::ZERO, revalidate: false, if_error: true },
            None => cached.freshness.stale(now).filter(|stale| stale.if_error)?,
        };
        Some(StaleHit { cached: Arc::clone(cached), stale })
    }

    /// The stale answer that may be served in place of a failure.
    pub fn stale_for_error(&self, question: &Question, generation: Generation, now: Now) -> Option<StaleHit> {
        let entry = self.stripe(&question.subject).entry(&question.subject).cloned()?;
        let cached = entry.find(&question.key, generation)?;
        let stale = cached.freshness.stale(now).filter(|stale| stale.if_error)?;
        Some(StaleHit { cached: Arc::clone(cached), stale })
    }

    /// Joins the flight of a question, or begins one. A caller that wants a new fetch joins only one that was not sent yet; if
    /// another such caller's is under way, the new one begins after it: however many want one, there are two at most.
    pub fn join(
        self: &Arc<Self>,
        question: &Question,
        generation: Generation,
        cache_control: &RequestCacheControl,
        now: Now,
    ) -> Join<F> {
        let max_waiters = self.max_waiters.load(Ordering::Relaxed);
        let mut stripe = self.stripe(&question.subject);
        // A flight may have stored its answer since the lookup.
        let entry = stripe.entry(&question.subject).filter(|_| !cache_control.wants_new());
        if let Some(hit) = entry.and_then(|entry| entry.fresh(question, generation, cache_control, now)) {
            return Join::Hit(hit);
        }
        let in_flight = stripe.flight(question).filter(|flight| flight.generation == generation);
        if let Some(flight) = in_flight.filter(|flight| flight.is_joinable(cache_control)) {
            flight.demand(cache_control);
            return flight.join(max_waiters).map_or(Join::TooManyWaiters, Join::Joined);
        }
        let previous = in_flight.filter(|flight| flight.is_forced).cloned();
        let flight = Flight::new(generation, stripe.settle_until(&question.subject), cache_control, now.boot);
        let Some(waiter) = flight.join(max_waiters) else { return Join::TooManyWaiters };
        // One of another generation could neither be joined nor store its answer, and would only displace a current flight.
        if generation == self.current_generation(question.subject.tenant) {
            stripe.add_flight(question.clone(), Arc::clone(&flight));
        }
        Join::Started(FetchGuard::new(Arc::clone(self), question.clone(), flight, previous), waiter)
    }

    /// Invalidates a subject: what is cached is dropped, and what is being fetched is neither stored nor joined. What is
    /// fetched until `settle_until` lives shortly. Returns how many answers were dropped that could still be served.
    pub fn invalidate(&self, subject: &Subject, settle_until: Boot, now: Now) -> usize {
        let generation = self.current_generation(subject.tenant);
        let dropped = self.stripe(subject).invalidate(subject, settle_until, now.boot);
        if dropped.is_some() {
            self.publish(subject);
        }
        dropped.map_or(0, |dropped| dropped.servable(generation, now).count())
    }

    /// Invalidates everything of a tenant.
    pub fn invalidate_tenant(&self, tenant: usize, settle_until: Boot) {
        if let Some(state) = self.tenants.get(tenant) {
            state.settle_until.fetch_max(settle_until.millis(), Ordering::SeqCst);
            let before = state.invalidations.fetch_add(1, Ordering::SeqCst);
            state.held_since.fetch_max(before + 1, Ordering::SeqCst);
        }
    }

    /// Invalidates everything of a tenant and frees its memory. Returns how many answers were dropped that could still be served.
    pub fn purge_tenant(&self, tenant: usize, settle_until: Boot, now: Now) -> usize {
        let generation = self.current_generation(tenant);
        self.invalidate_tenant(tenant, settle_until);
        let mut dropped = 0;
        for (subject, entry) in self.entries.iter().filter(|(subject, _)| subject.tenant == tenant) {
            dropped += entry.servable(generation, now).count();
            // What was stored since is of the new generation, and stays.
            if entry.iter().all(|cached| cached.generation.tenant <= generation.tenant) {
                self.stripe(&subject).evict(&subject, &entry);
                self.publish(&subject);
            }
        }
        dropped
    }

    /// A cached answer about a subject takes more memory than when it was stored: weighs its entry again.
    pub fn reweigh(&self, subject: &Subject) {
        self.publish(subject);
    }

    /// Frees what has expired or was evicted.
    pub fn run_maintenance(&self) {
        self.entries.run_pending_tasks();
    }

    /// How many callers wait for the fetch for which most of them wait.
    pub fn most_waiters(&self) -> usize {
        self.stripes.all().flat_map(|stripe| stripe.most_waiters()).max().unwrap_or_default()
    }

    /// Bytes of memory in use, as weighed.
    pub fn bytes(&self) -> u64 {
        self.entries.weighted_size() + self.stripes.fixed_bytes()
    }

    /// Lets moka hold what the stripe holds. Others may change the stripe at the same time: whoever is last sees to it.
    fn publish(&self, subject: &Subject) {
        let current = || self.stripe(subject).entry(subject).cloned();
        let mut entry = current();
        loop {
            match &entry {
                Some(entry) => {
                    self.metrics.entries.add(i64::try_from(entry.len()).unwrap_or(i64::MAX));
                    self.entries.insert(subject.clone(), Arc::clone(entry));
                }
                None => self.entries.invalidate(subject),
            }
            let now = current();
            if entry.as_ref().map(Arc::as_ptr) == now.as_ref().map(Arc::as_ptr) {
                return;
            }
            entry = now;
        }
    }

    /// Whether the platform may still have answered from before a tenant-wide write at that moment.
    fn tenant_settles(&self, tenant: usize, sent: Boot) -> bool {
        self.tenants.get(tenant).is_some_and(|state| sent.millis() < state.settle_until.load(Ordering::SeqCst))
    }

    fn stripe(&self, subject: &Subject) -> MutexGuard<'_, Stripe<F, CustomerEntry>> {
        self.stripes.of(subject)
    }
}

/// When an entry's memory may be freed. Freshness is not judged by it: moka's clock is not ours.
struct FreeMemory;

impl moka::Expiry<Subject, Arc<CustomerEntry>> for FreeMemory {
    fn expire_after_create(&self, _: &Subject, entry: &Arc<CustomerEntry>, _: Instant) -> Option<Duration> {
        Some(entry.retain_for)
    }

    fn expire_after_update(
        &self,
        _: &Subject,
        entry: &Arc<CustomerEntry>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.retain_for)
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod model;

#[cfg(test)]
mod oracle;
