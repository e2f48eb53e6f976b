//! What is cached: answers, each to one question about one subject.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use smol_str::{SmolStr, format_smolstr};

use super::freshness::Freshness;
use super::refresh::RefreshState;
use super::stripe::Cached;
use super::{Hit, Lookup, RequestCacheControl, StaleHit};
use crate::answer::Answer;
use crate::clock::{Boot, Now};

/// Answers cached for one customer at most: a caller that varies `params` without end cannot fill the cache with them.
pub const MAX_ANSWERS: usize = 64;
/// Memory that an answer takes beside its subject, key and body: itself, its place in its stripe, and moka's entry of it.
const OVERHEAD: usize = 530;
/// How often the use of an answer is reported to moka, so that it is not evicted; in seconds.
const TOUCH_EVERY: u32 = 10;

/// Whom an answer is about: the unit of invalidation. The platform's ids, and the names of customers among replicas, are short enough
/// to be stored inline with a letter that says what they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The number of the tenant's `open_id`: the platform's customers are the same under each grant.
    pub tenant: usize,
    text: SmolStr,
}

impl Subject {
    /// A customer of a tenant.
    pub fn customer(tenant: usize, customer: &str) -> Self {
        Self { tenant, text: format_smolstr!("c{customer}") }
    }

    /// A question that is about no customer is its own subject.
    pub fn question(tenant: usize, key: &str) -> Self {
        Self { tenant, text: format_smolstr!("q{key}") }
    }

    /// The customer, unless it is a question.
    pub fn customer_id(&self) -> Option<&str> {
        self.text.strip_prefix('c')
    }

    /// A subject of this name.
    pub fn named(tenant: usize, name: &str) -> Self {
        Self { tenant, text: name.into() }
    }

    /// Its name among those of its tenant.
    pub fn name(&self) -> &str {
        &self.text
    }

    /// Bytes on the heap.
    pub fn heap_size(&self) -> usize {
        if self.text.is_heap_allocated() { self.text.len() } else { 0 }
    }
}

/// What is asked, the cache key: equal questions share one cached answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// Whom it is about.
    pub subject: Subject,
    /// Path and canonical parameters.
    pub key: Arc<str>,
}

/// What an answer belongs to beside its question. A fetch of one generation is neither stored nor joined in another. Both numbers have
/// 32 bits, to keep entries small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// How often everything that was cached of the tenant was invalidated, modulo 2^32.
    pub(super) tenant: u32,
    /// The rules by which answers are parsed and keyed: a configuration with other rules has another number.
    pub(super) rules: u32,
}

impl Generation {
    /// Whether the tenant was invalidated this often, or more often, as long as the two are less than 2^31 apart.
    pub(super) const fn is_since(self, invalidations: u32) -> bool {
        self.tenant.wrapping_sub(invalidations) <= u32::MAX / 2
    }
}

/// The generations whose answers are held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) since: u32,
    pub(super) rules: u32,
}

impl Held {
    pub(super) const fn contains(self, generation: Generation) -> bool {
        generation.rules == self.rules && generation.is_since(self.since)
    }
}

/// What is known of a tenant beyond its subjects.
#[derive(Debug, Default)]
pub(super) struct TenantState {
    /// How often everything of the tenant was invalidated, or could have been without notice.
    pub(super) invalidations: AtomicU64,
    /// That number when it was last invalidated for certain. Answers since then are held, although not all may be served.
    pub(super) held_since: AtomicU64,
    /// Until when the platform may lag behind a write without a known customer, in milliseconds since boot.
    pub(super) settle_until: AtomicU64,
}

impl TenantState {
    /// The number of invalidations, as generations count them.
    pub(super) fn generation(&self) -> u32 {
        low_bits(self.invalidations.load(Ordering::SeqCst))
    }

    /// That number when it was last invalidated for certain.
    pub(super) fn held_since(&self) -> u32 {
        low_bits(self.held_since.load(Ordering::SeqCst))
    }
}

/// The number modulo 2^32.
fn low_bits(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default()
}

/// A cached answer. It never changes, except for what is atomic.
#[derive(Debug)]
pub struct CachedAnswer {
    pub(super) subject: Subject,
    /// With the key of its question as the suffix of its body.
    pub(super) answer: Answer,
    pub(super) freshness: Freshness,
    pub(super) generation: Generation,
    pub(super) refresh: RefreshState,
    /// Set under the stripe's lock when it is removed from its stripe; references check it without that lock.
    invalid: AtomicBool,
    /// When its use was last reported to moka, in seconds since boot.
    touched: AtomicU32,
}

/// With two reference counts 160 bytes, one of the allocator's classes: the next one takes 192.
const _: () = assert!(size_of::<CachedAnswer>() <= 144);

impl Cached for CachedAnswer {
    fn subject(&self) -> &Subject {
        &self.subject
    }

    fn invalidate(&self) {
        self.invalid.store(true, Ordering::SeqCst);
    }
}

impl CachedAnswer {
    /// One of an answer that has the key of its question as the suffix of its body.
    pub(super) fn new(question: &Question, answer: Answer, freshness: Freshness, generation: Generation) -> Self {
        let (refresh, invalid, touched) = (RefreshState::default(), AtomicBool::default(), AtomicU32::default());
        Self { subject: question.subject.clone(), answer, freshness, generation, refresh, invalid, touched }
    }

    /// The key of its question.
    pub(super) fn key(&self) -> &[u8] {
        self.answer.body.suffix()
    }

    /// moka's key: its address, which is unique while the answer is referenced, and moka holds a reference.
    pub(super) fn id(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }

    pub(super) fn is_valid(&self) -> bool {
        !self.invalid.load(Ordering::SeqCst)
    }

    /// Whether its generation is not held, or it is not retained any longer.
    pub(super) fn is_obsolete(&self, held: Held, now: Boot) -> bool {
        !held.contains(self.generation) || now >= self.freshness.retain_until()
    }

    /// Whether it may still be served in any way to requests of this generation.
    pub(super) fn is_servable(&self, generation: Generation, now: Now) -> bool {
        self.generation == generation
            && (self.freshness.remaining(now).is_some() || self.freshness.stale(now).is_some())
    }

    /// Whether it is time to report its use to moka.
    fn is_touch_due(&self, now: Boot) -> bool {
        now.whole_seconds().saturating_sub(self.touched.load(Ordering::Relaxed)) >= TOUCH_EVERY
    }

    /// Whether the caller must report this use to moka; records that it does.
    pub(super) fn claim_touch(&self, now: Boot) -> bool {
        let is_due = self.is_touch_due(now);
        if is_due {
            self.touched.store(now.whole_seconds(), Ordering::Relaxed);
        }
        is_due
    }

    /// It as a hit, if it is fresh.
    pub(super) fn hit(self: Arc<Self>, cache_control: &RequestCacheControl, now: Now) -> Result<Hit, Arc<Self>> {
        match self.freshness.remaining(now).filter(|_| cache_control.allows(&self.freshness, now)) {
            Some(remaining) => Ok(Hit { cached: self, remaining }),
            None => Err(self),
        }
    }

    /// It as what a lookup finds.
    pub(super) fn found(self: Arc<Self>, cache_control: &RequestCacheControl, now: Now) -> Lookup {
        let cached = match self.hit(cache_control, now) {
            Ok(hit) => return Lookup::Fresh(hit),
            Err(cached) => cached,
        };
        let stale = cached.freshness.stale(now).filter(|stale| stale.revalidate && cache_control.allows_stale());
        let Some(stale) = stale else { return Lookup::Miss };
        let is_due = cached.refresh.is_due(now.boot);
        Lookup::Stale(StaleHit { cached, stale }, is_due)
    }

    /// Bytes of memory that it takes, overhead included.
    pub(super) fn weight(&self) -> u32 {
        let total = (OVERHEAD + self.subject.heap_size()).saturating_add(self.answer.size());
        u32::try_from(total).unwrap_or(u32::MAX)
    }
}

/// An answer that several may hold.
#[derive(Clone, Debug)]
pub enum SharedAnswer {
    /// One that is not cached.
    Uncached(Arc<Answer>),
    /// One that is.
    Cached(Arc<CachedAnswer>),
}

impl Deref for SharedAnswer {
    type Target = Answer;

    fn deref(&self) -> &Answer {
        match self {
            Self::Uncached(answer) => answer,
            Self::Cached(cached) => &cached.answer,
        }
    }
}

impl From<Answer> for SharedAnswer {
    fn from(answer: Answer) -> Self {
        Self::Uncached(Arc::new(answer))
    }
}

/// A reference to a cached answer. It does not keep the answer in memory.
#[derive(Clone, Debug)]
pub struct AnswerRef {
    pub(super) cached: Weak<CachedAnswer>,
    pub(super) tenant: Arc<TenantState>,
}

impl AnswerRef {
    /// What a reference takes of memory once its answer was dropped, beside its own size.
    pub const RESIDUE: usize = size_of::<CachedAnswer>() + 2 * size_of::<usize>();

    /// The answer, if a lookup would find it fresh. `None`, too, when its use is to be reported to moka, which a lookup does.
    pub fn fresh(&self, cache_control: &RequestCacheControl, now: Now) -> Option<Hit> {
        let cached = self.cached.upgrade()?;
        let is_current = cached.generation.tenant == self.tenant.generation();
        let is_servable = is_current && cached.is_valid() && !cached.is_touch_due(now.boot);
        if is_servable { cached.hit(cache_control, now).ok() } else { None }
    }

    /// One of no answer, which counts as cached or not.
    #[cfg(test)]
    pub(crate) fn of_nothing(subject: Subject, is_live: bool) -> Self {
        use crate::answer::Verdict;
        let now = crate::clock::Clock::system().now();
        let lifetimes = crate::settings::Settings::defaults().unwrap().dynamic.cache.lifetimes;
        let decision = super::StoreDecision::of(&Verdict::Exception, &lifetimes, now.wall, now, now);
        let super::StoreDecision::Store(freshness) = decision else { panic!("{decision:?}") };
        let question = Question { subject, key: "".into() };
        let generation = Generation { tenant: 0, rules: 0 };
        let answer = Answer::new(200, Vec::new());
        let cached = Arc::new(CachedAnswer::new(&question, answer, freshness, generation));
        let weak = Arc::downgrade(&cached);
        if is_live {
            std::mem::forget(cached);
        }
        Self { cached: weak, tenant: Arc::default() }
    }

    /// Whether its answer may still be cached.
    pub fn is_live(&self) -> bool {
        self.cached.strong_count() > 0
    }
}
