//! What is cached: one entry for each subject, with the answers to all questions about it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use smol_str::{SmolStr, format_smolstr};

use super::freshness::Freshness;
use super::refresh::RefreshState;
use super::stripe::Replaceable;
use super::{Hit, Lookup, RequestCacheControl, StaleHit};
use crate::answer::Answer;
use crate::clock::{Boot, Now};

/// Answers cached for one customer at most: a caller that varies `params` without end cannot grow an entry without end.
pub const MAX_ANSWERS: usize = 64;
/// Memory that an entry takes beside its subject and answers: moka's node, deque and timer entries, the bucket in its stripe,
/// and the slack of both hash tables.
const ENTRY_OVERHEAD: usize = 480;
/// Memory that an answer takes beside its key and body.
const ANSWER_OVERHEAD: usize = 372;
/// How often an answer that is hit by reference is looked up all the same, so that moka learns that it is in use and does not evict it.
const LOOK_UP_EVERY: Duration = Duration::from_secs(10);

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

/// What an answer belongs to beside its question. A fetch of one generation is neither stored nor joined in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// How often everything that was cached of the tenant was invalidated.
    pub(super) tenant: u64,
    /// The rules by which answers are parsed and keyed: a configuration with other rules has another number.
    pub(super) rules: u64,
}

/// The generations whose answers are held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) since: u64,
    pub(super) rules: u64,
}

impl Held {
    pub(super) const fn contains(self, generation: Generation) -> bool {
        generation.rules == self.rules && generation.tenant >= self.since
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

/// A cached answer.
#[derive(Debug)]
pub(super) struct CachedAnswer {
    pub(super) key: Arc<str>,
    pub(super) answer: Arc<Answer>,
    pub(super) freshness: Freshness,
    pub(super) generation: Generation,
    pub(super) refresh: RefreshState,
    /// Set under the stripe's lock once it is replaced or invalidated: readers hold it without that lock.
    invalid: AtomicBool,
    /// When it was last looked up, in nanoseconds since boot.
    looked_up: AtomicU64,
}

impl CachedAnswer {
    pub(super) fn new(question: &Question, answer: &Arc<Answer>, freshness: Freshness, generation: Generation) -> Self {
        let (key, answer) = (Arc::clone(&question.key), Arc::clone(answer));
        let (refresh, invalid) = (RefreshState::default(), AtomicBool::new(false));
        Self { key, answer, freshness, generation, refresh, invalid, looked_up: AtomicU64::default() }
    }

    fn is_valid(&self) -> bool {
        !self.invalid.load(Ordering::SeqCst)
    }

    fn hit(self: &Arc<Self>, cache_control: &RequestCacheControl, now: Now) -> Option<Hit> {
        let remaining = self.freshness.remaining(now).filter(|_| cache_control.allows(&self.freshness, now))?;
        Some(Hit { cached: Arc::clone(self), remaining })
    }
}

/// A reference to the cached answer that is about a subject. It does not keep the answer in memory.
#[derive(Clone, Debug)]
pub struct AnswerRef {
    pub(super) subject: Subject,
    pub(super) cached: Weak<CachedAnswer>,
    pub(super) tenant: Arc<TenantState>,
}

impl AnswerRef {
    /// What a reference takes of memory once its answer was dropped, beside its own size and the subject's text.
    pub const RESIDUE: usize = size_of::<CachedAnswer>() + 2 * size_of::<usize>();

    /// The subject of the answer.
    pub const fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The answer, if a lookup would find it fresh; `None` now and then although it would, for moka's sake.
    pub fn fresh(&self, cache_control: &RequestCacheControl, now: Now) -> Option<Hit> {
        let cached = self.cached.upgrade()?;
        let is_current = cached.generation.tenant == self.tenant.invalidations.load(Ordering::SeqCst);
        let looked_up = Boot::from_duration(Duration::from_nanos(cached.looked_up.load(Ordering::Relaxed)));
        let is_servable = is_current && cached.is_valid() && now.boot.since(looked_up) < LOOK_UP_EVERY;
        if is_servable { cached.hit(cache_control, now) } else { None }
    }

    /// One of no answer, which counts as cached or not.
    #[cfg(test)]
    pub(crate) fn of_nothing(subject: Subject, is_live: bool) -> Self {
        use crate::answer::Verdict;
        let now = crate::clock::Clock::system().now();
        let lifetimes = crate::settings::Settings::defaults().unwrap().dynamic.cache.lifetimes;
        let decision = super::StoreDecision::of(&Verdict::Exception, &lifetimes, now.wall, now, now);
        let super::StoreDecision::Store(freshness) = decision else { panic!("{decision:?}") };
        let question = Question { subject: subject.clone(), key: "".into() };
        let answer = Answer::new(200, Vec::new());
        let generation = Generation { tenant: 0, rules: 0 };
        let cached = Arc::new(CachedAnswer::new(&question, &Arc::new(answer), freshness, generation));
        let weak = Arc::downgrade(&cached);
        if is_live {
            std::mem::forget(cached);
        }
        Self { subject, cached: weak, tenant: Arc::default() }
    }

    /// Whether its answer may still be cached.
    pub fn is_live(&self) -> bool {
        self.cached.strong_count() > 0
    }
}

/// Everything cached for one subject; replaced as a whole, so that readers never wait.
#[derive(Debug)]
pub(super) struct CustomerEntry {
    answers: Vec<Arc<CachedAnswer>>,
    /// How long it is worth keeping in memory.
    pub(super) retain_for: Duration,
}

impl Replaceable for CustomerEntry {
    fn replaced_by(&self, new: Option<&Self>) {
        let is_kept =
            |old: &Arc<CachedAnswer>| new.is_some_and(|new| new.answers.iter().any(|one| Arc::ptr_eq(one, old)));
        for old in self.answers.iter().filter(|old| !is_kept(old)) {
            old.invalid.store(true, Ordering::SeqCst);
        }
    }
}

impl CustomerEntry {
    /// An entry of these answers.
    fn new(mut answers: Vec<Arc<CachedAnswer>>, now: Boot) -> Self {
        answers.shrink_to_fit();
        let remaining = answers.iter().map(|cached| cached.freshness.retain_until().since(now));
        let retain_for = remaining.max().unwrap_or_default();
        Self { answers, retain_for }
    }

    /// The entry that replaces `old`, if it has any answers: without the answer to a question, with a new one in its place,
    /// and without what is of no use any more. Over the limit the oldest answers are dropped.
    pub(super) fn replacing(
        old: Option<&Self>,
        key: &str,
        held: Held,
        new: Option<CachedAnswer>,
        now: Now,
    ) -> Option<Self> {
        let is_kept = |cached: &&Arc<CachedAnswer>| {
            *cached.key != *key && held.contains(cached.generation) && now.boot < cached.freshness.retain_until()
        };
        let mut answers: Vec<_> = old.into_iter().flat_map(|old| &old.answers).filter(is_kept).cloned().collect();
        if new.is_some() && answers.len() >= MAX_ANSWERS {
            answers.sort_by_key(|cached| cached.freshness.received);
            answers.drain(..=answers.len() - MAX_ANSWERS);
        }
        answers.extend(new.map(Arc::new));
        (!answers.is_empty()).then(|| Self::new(answers, now.boot))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &CachedAnswer> {
        self.answers.iter().map(|cached| &**cached)
    }

    /// The answers of this generation that may still be served in any way.
    pub(super) fn servable(&self, generation: Generation, now: Now) -> impl Iterator<Item = &CachedAnswer> {
        let lives = move |freshness: &Freshness| freshness.remaining(now).is_some() || freshness.stale(now).is_some();
        self.iter().filter(move |cached| cached.generation == generation && lives(&cached.freshness))
    }

    /// The answer to a question, if it is valid and of this generation.
    pub(super) fn find(&self, key: &str, generation: Generation) -> Option<&Arc<CachedAnswer>> {
        let is_same = |cached: &&Arc<CachedAnswer>| *cached.key == *key && cached.generation == generation;
        self.answers.iter().find(is_same).filter(|cached| cached.is_valid())
    }

    /// The answer to a question that is held, if it is valid.
    pub(super) fn held(&self, key: &str, held: Held) -> Option<&Arc<CachedAnswer>> {
        let is_same = |cached: &&Arc<CachedAnswer>| *cached.key == *key && held.contains(cached.generation);
        self.answers.iter().find(is_same).filter(|cached| cached.is_valid())
    }

    /// The fresh answer to a question.
    pub(super) fn fresh(
        &self,
        question: &Question,
        generation: Generation,
        cache_control: &RequestCacheControl,
        now: Now,
    ) -> Option<Hit> {
        self.find(&question.key, generation)?.hit(cache_control, now)
    }

    /// The fresh or stale answer to a question.
    pub(super) fn lookup(
        &self,
        question: &Question,
        generation: Generation,
        cache_control: &RequestCacheControl,
        now: Now,
    ) -> Lookup {
        let Some(cached) = self.find(&question.key, generation) else { return Lookup::Miss };
        cached.looked_up.store(now.boot.nanos(), Ordering::Relaxed);
        Self::found(cached, cache_control, now)
    }

    /// What a lookup would find; nothing changes.
    pub(super) fn peek(
        &self,
        question: &Question,
        generation: Generation,
        cache_control: &RequestCacheControl,
        now: Now,
    ) -> Lookup {
        self.find(&question.key, generation).map_or(Lookup::Miss, |cached| Self::found(cached, cache_control, now))
    }

    fn found(cached: &Arc<CachedAnswer>, cache_control: &RequestCacheControl, now: Now) -> Lookup {
        if let Some(hit) = cached.hit(cache_control, now) {
            return Lookup::Fresh(hit);
        }
        let stale = cached.freshness.stale(now).filter(|stale| stale.revalidate && cache_control.allows_stale());
        let Some(stale) = stale else { return Lookup::Miss };
        let hit = StaleHit { cached: Arc::clone(cached), stale };
        Lookup::Stale(hit, cached.refresh.is_due(now.boot))
    }

    /// Whether the caller is the one that refreshes the answer to a question.
    pub(super) fn claim_refresh(&self, question: &Question, generation: Generation, now: Boot) -> bool {
        self.find(&question.key, generation).is_some_and(|cached| cached.refresh.claim(now))
    }

    pub(super) fn len(&self) -> usize {
        self.answers.len()
    }

    /// Bytes of memory that it takes, overhead included.
    pub(super) fn weight(&self, subject: &Subject) -> u32 {
        let answers = self.answers.iter().map(|cached| ANSWER_OVERHEAD + cached.key.len() + cached.answer.size());
        let total = answers.fold(ENTRY_OVERHEAD + subject.heap_size(), usize::saturating_add);
        u32::try_from(total).unwrap_or(u32::MAX)
    }
}
