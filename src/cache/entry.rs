//! What is cached: one entry for each subject, with the answers to all questions about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use smol_str::{SmolStr, format_smolstr};

use super::freshness::Freshness;
use super::refresh::RefreshState;
use super::stripe::Invalidate;
use super::{Hit, Lookup, RequestCacheControl, StaleHit};
use crate::answer::Answer;
use crate::clock::{Boot, Now};

/// Answers cached for one customer at most: a caller that varies `params` without end cannot grow an entry without end.
const MAX_ANSWERS: usize = 64;
/// Memory that an entry takes beside its subject and answers: moka's node, deque and timer entries, the bucket in its stripe,
/// and the slack of both hash tables.
const ENTRY_OVERHEAD: usize = 480;
/// Memory that an answer takes beside its key and body.
const ANSWER_OVERHEAD: usize = 340;

/// Whom an answer is about: the unit of invalidation. The platform's ids are short enough to be stored inline.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The number of the tenant's `open_id`: the platform's customers are the same under each grant.
    pub tenant: usize,
    text: SmolStr,
}

impl Subject {
    /// A customer of a tenant.
    pub fn customer(tenant: usize, customer: &str) -> Self {
        Self { tenant, text: format_smolstr!("c:{customer}") }
    }

    /// A question that is about no customer is its own subject.
    pub fn question(tenant: usize, key: &str) -> Self {
        Self { tenant, text: format_smolstr!("q:{key}") }
    }

    /// Bytes on the heap.
    fn heap_size(&self) -> usize {
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

impl Question {
    /// Whether it is asked at this path.
    pub fn is_at(&self, path: &str) -> bool {
        self.key.strip_prefix(path).is_some_and(|parameters| parameters.starts_with(' '))
    }

    /// Bytes on the heap.
    pub fn heap_size(&self) -> usize {
        self.subject.heap_size() + self.key.len()
    }
}

/// What an answer belongs to beside its question. A fetch of one generation is neither stored nor joined in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// How often everything that was cached of the tenant was invalidated.
    pub(super) tenant: u64,
    /// The rules by which answers are parsed and keyed: a configuration with other rules has another number.
    pub(super) rules: u64,
}

/// A cached answer.
#[derive(Debug)]
pub(super) struct CachedAnswer {
    pub(super) key: Arc<str>,
    pub(super) answer: Arc<Answer>,
    pub(super) freshness: Freshness,
    pub(super) generation: Generation,
    pub(super) refresh: RefreshState,
}

impl CachedAnswer {
    pub(super) fn new(question: &Question, answer: &Arc<Answer>, freshness: Freshness, generation: Generation) -> Self {
        let (key, answer) = (Arc::clone(&question.key), Arc::clone(answer));
        Self { key, answer, freshness, generation, refresh: RefreshState::default() }
    }

    fn hit(&self, cache_control: &RequestCacheControl, now: Now) -> Option<Hit> {
        let freshness = self.freshness;
        let remaining = freshness.remaining(now).filter(|_| cache_control.allows(&freshness, now))?;
        Some(Hit { answer: Arc::clone(&self.answer), freshness, remaining })
    }
}

/// Everything cached for one subject; replaced as a whole, so that readers never wait.
#[derive(Debug)]
pub(super) struct CustomerEntry {
    answers: Vec<Arc<CachedAnswer>>,
    /// How long it is worth keeping in memory.
    pub(super) retain_for: Duration,
    /// Set under the stripe's lock once it is replaced or invalidated; readers hold it without a lock.
    invalid: AtomicBool,
}

impl Invalidate for CustomerEntry {
    fn invalidate(&self) {
        self.invalid.store(true, Ordering::SeqCst);
    }
}

impl CustomerEntry {
    /// An entry of these answers.
    fn new(mut answers: Vec<Arc<CachedAnswer>>, now: Boot) -> Self {
        answers.shrink_to_fit();
        let remaining = answers.iter().map(|cached| cached.freshness.retain_until().since(now));
        let retain_for = remaining.max().unwrap_or_default();
        Self { answers, retain_for, invalid: AtomicBool::new(false) }
    }

    /// The entry that replaces `old`, if it has any answers: without the answer to a question, with a new one in its place,
    /// and without what is of no use any more. Over the limit the oldest answers are dropped.
    pub(super) fn replacing(
        old: Option<&Self>,
        key: &str,
        generation: Generation,
        new: Option<CachedAnswer>,
        now: Now,
    ) -> Option<Self> {
        let is_kept = |cached: &&Arc<CachedAnswer>| {
            *cached.key != *key && cached.generation == generation && now.boot < cached.freshness.retain_until()
        };
        let mut answers: Vec<_> = old.into_iter().flat_map(|old| &old.answers).filter(is_kept).cloned().collect();
        if new.is_some() && answers.len() >= MAX_ANSWERS {
            answers.sort_by_key(|cached| cached.freshness.received);
            answers.drain(..=answers.len() - MAX_ANSWERS);
        }
        answers.extend(new.map(Arc::new));
        (!answers.is_empty()).then(|| Self::new(answers, now.boot))
    }

    /// Whether it was neither replaced nor invalidated.
    pub(super) fn is_valid(&self) -> bool {
        !self.invalid.load(Ordering::SeqCst)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &CachedAnswer> {
        self.answers.iter().map(|cached| &**cached)
    }

    /// The answers of this generation that may still be served in any way.
    pub(super) fn servable(&self, generation: Generation, now: Now) -> impl Iterator<Item = &CachedAnswer> {
        let lives = move |freshness: &Freshness| freshness.remaining(now).is_some() || freshness.stale(now).is_some();
        self.iter().filter(move |cached| cached.generation == generation && lives(&cached.freshness))
    }

    /// The answer to a question, if it is of this generation.
    pub(super) fn find(&self, key: &Arc<str>, generation: Generation) -> Option<&CachedAnswer> {
        let is_same = |cached: &CachedAnswer| Arc::ptr_eq(&cached.key, key) || *cached.key == **key;
        self.iter().find(|cached| is_same(cached) && cached.generation == generation)
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
        if let Some(hit) = cached.hit(cache_control, now) {
            return Lookup::Fresh(hit);
        }
        let freshness = cached.freshness;
        let Some(stale) = freshness.stale(now).filter(|stale| stale.revalidate && cache_control.allows_stale()) else {
            return Lookup::Miss;
        };
        let hit = StaleHit { answer: Arc::clone(&cached.answer), freshness, stale };
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
