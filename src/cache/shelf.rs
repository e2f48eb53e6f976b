//! What is kept, and for whom: one shelf for each customer, holding the answers to all questions about it.

use std::sync::Arc;
use std::time::Duration;

use smol_str::{SmolStr, format_smolstr};

use super::freshness::Life;
use super::renewal::Renewal;
use crate::answer::Answer;
use crate::clock::Now;

/// Answers kept for one customer at most: a caller who varies `params` without end cannot grow one shelf without end.
const MAX_ANSWERS: usize = 64;
/// Memory that a shelf takes beside its subject and answers: moka's node, deque and timer entries, and the hash table
/// with its slack.
const SHELF_OVERHEAD: usize = 400;
/// Memory that an answer takes beside its key and body: its place on the shelf, and the headers kept with it.
const ANSWER_OVERHEAD: usize = 340;

/// Whom an answer is about: the unit of invalidation. The platform's ids are short enough to stand in it as they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The tenant's index.
    pub tenant: usize,
    text: SmolStr,
}

impl Subject {
    /// A customer of a tenant.
    pub fn customer(tenant: usize, customer: &str) -> Self {
        Self { tenant, text: format_smolstr!("c:{customer}") }
    }

    /// A question that is about no customer stands for itself.
    pub fn question(tenant: usize, key: &str) -> Self {
        Self { tenant, text: format_smolstr!("q:{key}") }
    }

    /// Bytes beyond what it is itself.
    fn heap(&self) -> usize {
        if self.text.is_heap_allocated() { self.text.len() } else { 0 }
    }
}

/// What is asked: equal questions have equal answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// Whom it is about.
    pub subject: Subject,
    /// Path and canonical parameters.
    pub key: Arc<str>,
}

/// A kept answer.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) key: Arc<str>,
    pub(super) answer: Arc<Answer>,
    pub(super) life: Life,
    /// The tenant's era in which it was asked for; the answer is void in any other.
    pub(super) era: u64,
    pub(super) renewal: Renewal,
}

impl Kept {
    pub(super) fn new(question: &Question, answer: &Arc<Answer>, life: Life, era: u64) -> Self {
        let (key, answer) = (Arc::clone(&question.key), Arc::clone(answer));
        Self { key, answer, life, era, renewal: Renewal::default() }
    }
}

/// All that is kept for one subject; replaced whole, so that readers never wait.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    kept: Vec<Arc<Kept>>,
    /// How long its memory is worth keeping.
    pub(super) keep_for: Duration,
}

impl Shelf {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Kept> {
        self.kept.iter().map(|kept| &**kept)
    }

    /// The answers of this era that may still be told in any way.
    pub(super) fn tellable(&self, era: u64, now: Now) -> impl Iterator<Item = &Kept> {
        let lives = move |life: &Life| life.left(now).is_some() || life.stale(now).is_some();
        self.iter().filter(move |kept| kept.era == era && lives(&kept.life))
    }

    /// The answer to a question, if it is of this era.
    pub(super) fn find(&self, key: &str, era: u64) -> Option<&Kept> {
        self.iter().find(|kept| *kept.key == *key && kept.era == era)
    }

    pub(super) const EMPTY: Self = Self { kept: Vec::new(), keep_for: Duration::ZERO };

    /// This shelf without the answer to a question, and without what is dead.
    pub(super) fn without(&self, key: &str, era: u64, now: Now) -> Self {
        let stays = |kept: &&Arc<Kept>| *kept.key != *key && kept.era == era && now.boot < kept.life.forget_at();
        Self::of(self.kept.iter().filter(stays).cloned().collect(), now)
    }

    /// This shelf with one more answer; over the limit the oldest goes.
    pub(super) fn with(mut self, new: Kept, now: Now) -> Self {
        if self.kept.len() >= MAX_ANSWERS {
            self.kept.sort_by_key(|kept| kept.life.received);
            self.kept.drain(..=self.kept.len() - MAX_ANSWERS);
        }
        self.kept.push(Arc::new(new));
        Self::of(self.kept, now)
    }

    fn of(mut kept: Vec<Arc<Kept>>, now: Now) -> Self {
        kept.shrink_to_fit();
        let keep_for = kept.iter().map(|kept| kept.life.forget_at().since(now.boot)).max().unwrap_or_default();
        Self { kept, keep_for }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Bytes of memory that the shelf takes, overhead included.
    pub(super) fn weight(&self, subject: &Subject) -> u32 {
        let answers = self.kept.iter().map(|kept| ANSWER_OVERHEAD + kept.key.len() + kept.answer.size());
        let total = answers.fold(SHELF_OVERHEAD + subject.heap(), usize::saturating_add);
        u32::try_from(total).unwrap_or(u32::MAX)
    }
}
