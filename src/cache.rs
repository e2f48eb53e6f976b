//! Cached answers, fetches in progress, and the fence between the two.
//!
//! Everything goes through the stripe of its subject, except for a hit by reference: under its lock an answer is looked up, a flight
//! is joined or begun, an answer is stored, and a write invalidates both. A flight may store its answer only while it is in its stripe,
//! and an answer may be served by reference only until it is marked as invalid: that is the whole fence. It gives read-your-writes: a
//! read that starts after a write was answered never sees data fetched before it.
//!
//! moka decides which answers to evict: it is notified when one is stored, removed, or used. No call to moka is made under a stripe's
//! lock, since any of them may run moka's maintenance, which locks stripes.

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
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use foldhash::quality::RandomState;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use parking_lot::MutexGuard;
use prometheus::{IntCounter, IntGauge};

pub use self::entry::{AnswerRef, CachedAnswer, Generation, MAX_ANSWERS, Question, SharedAnswer, Subject};
use self::entry::{Held, TenantState};
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
    pub rules: u32,
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

/// A full sweep takes this many calls of [`Cache::run_maintenance`].
const SWEEPS: usize = 16;

/// The cache; `F` is what waiters get if a fetch fails.
#[derive(Debug)]
pub struct Cache<F> {
    stripes: Arc<Stripes<F, CachedAnswer>>,
    /// Decides what to evict; answers by their ids.
    eviction: moka::sync::Cache<usize, Arc<CachedAnswer>, RandomState>,
    tenants: boxcar::Vec<Arc<TenantState>>,
    /// Calls of [`Cache::run_maintenance`] so far.
    sweeps: AtomicUsize,
    /// Those in force.
    rules: AtomicU32,
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
        let eviction = moka::sync::Cache::builder()
            // With a capacity of 0 moka would do nothing, and evict nothing.
            .max_capacity(options.max_bytes.saturating_sub(fixed_bytes).max(1))
            .weigher(|_, cached: &Arc<CachedAnswer>| cached.weight())
            // The default policy rejects new entries while old ones are asked for more often, and `stored` would lie.
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |_, cached: Arc<CachedAnswer>, cause| {
                if cause == RemovalCause::Size && evicting.of(&cached.subject).evict(&cached) {
                    evicted.size.inc();
                    evicted.entries.dec();
                }
            })
            .build_with_hasher(RandomState::default());
        let cache = Self {
            stripes,
            eviction,
            tenants: boxcar::Vec::new(),
            sweeps: AtomicUsize::default(),
            rules: AtomicU32::default(),
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
    pub fn generation(&self, tenant: usize, rules: u32) -> Generation {
        let tenant = self.tenants.get(tenant).map_or(0, |state| state.generation());
        Generation { tenant, rules }
    }

    /// The valid answer to a question.
    fn find(&self, question: &Question, is_wanted: impl Fn(Generation) -> bool) -> Option<Arc<CachedAnswer>> {
        find(&self.stripe(&question.subject), question, is_wanted).cloned()
    }

    /// Looks a question up.
    pub fn lookup(
        &self,
        question: &Question,
        generation: Generation,
        cache_control: &RequestCacheControl,
        now: Now,
    ) -> Lookup {
        let Some(cached) = self.find(question, |other| other == generation) else { return Lookup::Miss };
        let found = cached.found(cache_control, now);
        if let Lookup::Fresh(Hit { cached, .. }) | Lookup::Stale(StaleHit { cached, .. }, _) = &found {
            self.touch(cached, now);
        }
        found
    }

    /// Reports the use of an answer to moka, if that is due.
    fn touch(&self, cached: &Arc<CachedAnswer>, now: Now) {
        if cached.claim_touch(now.boot) {
            self.eviction.get(&cached.id());
        }
    }

    /// A reference to the answer of a hit: the next hit needs no lookup. `None` if its tenant is not known here.
    pub fn reference(&self, hit: &Hit) -> Option<AnswerRef> {
        let tenant = Arc::clone(self.tenants.get(hit.subject().tenant)?);
        Some(AnswerRef { cached: Arc::downgrade(&hit.cached), tenant })
    }

    /// The fresh answer to a question, if there is one; a stale one is left to [`Cache::lookup`].
    pub fn fresh(
        &self,
        question: &Question,
        generation: Generation,
        cache_control: &RequestCacheControl,
        now: Now,
    ) -> Option<Hit> {
        self.find(question, |other| other == generation)?.hit(cache_control, now).ok()
    }

    /// Whether the caller is the one that refreshes a stale answer.
    pub fn claim_refresh(&self, question: &Question, generation: Generation, now: Now) -> bool {
        self.find(question, |other| other == generation).is_some_and(|cached| cached.refresh.claim(now.boot))
    }

    /// What is held of a tenant's answers: those since it was last invalidated for certain, under the rules in force.
    fn held_generations(&self, tenant: usize) -> Held {
        let since = self.tenants.get(tenant).map_or(0, |state| state.held_since());
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
        let held = self.held_generations(question.subject.tenant);
        let cached = self.find(question, |generation| held.contains(generation))?;
        let stale = match cached.freshness.remaining(now) {
            Some(_) => Staleness { past: Duration::ZERO, revalidate: false, if_error: true },
            None => cached.freshness.stale(now).filter(|stale| stale.if_error)?,
        };
        self.touch(&cached, now);
        Some(StaleHit { cached, stale })
    }

    /// The stale answer that may be served in place of a failure.
    pub fn stale_for_error(&self, question: &Question, generation: Generation, now: Now) -> Option<StaleHit> {
        let cached = self.find(question, |other| other == generation)?;
        let stale = cached.freshness.stale(now).filter(|stale| stale.if_error)?;
        self.touch(&cached, now);
        Some(StaleHit { cached, stale })
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
        let cached = find(&stripe, question, |other| other == generation).filter(|_| !cache_control.wants_new());
        if let Some(Ok(hit)) = cached.map(|cached| Arc::clone(cached).hit(cache_control, now)) {
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
        self.untrack(&dropped);
        dropped.iter().filter(|cached| cached.is_servable(generation, now)).count()
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
        for mut stripe in self.stripes.all() {
            // What was stored since is of the new generation, and stays.
            let is_old = |cached: &CachedAnswer| {
                cached.subject.tenant == tenant && generation.is_since(cached.generation.tenant)
            };
            let removed = stripe.sweep(is_old);
            drop(stripe);
            self.untrack(&removed);
            dropped += removed.iter().filter(|cached| cached.is_servable(generation, now)).count();
        }
        dropped
    }

    /// A cached answer takes more memory than when it was stored: weighs it again.
    pub fn reweigh(&self, cached: &Arc<CachedAnswer>) {
        self.track(cached);
    }

    /// Removes answers that are not retained any longer from a part of the stripes, and frees what was evicted.
    pub fn run_maintenance(&self, now: Now) {
        let part = self.sweeps.fetch_add(1, Ordering::Relaxed) % SWEEPS;
        for mut stripe in self.stripes.part(part, SWEEPS) {
            let removed = stripe.sweep(|cached| now.boot >= cached.freshness.retain_until());
            drop(stripe);
            self.untrack(&removed);
            self.metrics.expired.inc_by(removed.len() as u64);
        }
        self.eviction.run_pending_tasks();
    }

    /// How many callers wait for the fetch for which most of them wait.
    pub fn most_waiters(&self) -> usize {
        self.stripes.all().flat_map(|stripe| stripe.most_waiters()).max().unwrap_or_default()
    }

    /// Bytes of memory in use, as weighed.
    pub fn bytes(&self) -> u64 {
        self.eviction.weighted_size() + self.stripes.fixed_bytes()
    }

    /// Adds an answer, which is in its stripe, to moka's order of eviction.
    fn track(&self, cached: &Arc<CachedAnswer>) {
        self.eviction.insert(cached.id(), Arc::clone(cached));
        // If it was removed from its stripe in the meantime, it may have been removed from moka before it was added.
        if !cached.is_valid() {
            self.eviction.invalidate(&cached.id());
        }
    }

    /// Removes answers, which were removed from their stripe, from moka's order of eviction.
    fn untrack(&self, answers: &[Arc<CachedAnswer>]) {
        self.metrics.entries.sub(i64::try_from(answers.len()).unwrap_or(i64::MAX));
        answers.iter().for_each(|cached| self.eviction.invalidate(&cached.id()));
    }

    /// Whether the platform may still have answered from before a tenant-wide write at that moment.
    fn tenant_settles(&self, tenant: usize, sent: Boot) -> bool {
        self.tenants.get(tenant).is_some_and(|state| sent.millis() < state.settle_until.load(Ordering::SeqCst))
    }

    fn stripe(&self, subject: &Subject) -> MutexGuard<'_, Stripe<F, CachedAnswer>> {
        self.stripes.of(subject)
    }
}

/// The answer to a question in its stripe, if it is of a generation that is wanted.
fn find<'a, F>(
    stripe: &'a Stripe<F, CachedAnswer>,
    question: &Question,
    is_wanted: impl Fn(Generation) -> bool,
) -> Option<&'a Arc<CachedAnswer>> {
    let is_same =
        |cached: &&Arc<CachedAnswer>| *cached.key() == *question.key.as_bytes() && is_wanted(cached.generation);
    stripe.answers(&question.subject).find(is_same)
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod model;

#[cfg(test)]
mod oracle;
