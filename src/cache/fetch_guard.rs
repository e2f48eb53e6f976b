//! The end of a fetch: its waiters get the outcome, and its answer may be stored.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::entry::{CachedAnswer, MAX_ANSWERS, Question, SharedAnswer};
use super::flight::{FetchOutcome, Flight};
use super::freshness::{Freshness, LEAST_FRESH, StoreDecision};
use super::stripe::Stripe;
use super::{Cache, find};
use crate::answer::Answer;
use crate::call_state::CallState;
use crate::clock::{Boot, Now};

/// What became of an answer in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Its freshness, if it was stored.
    pub freshness: Option<Freshness>,
    /// Whether it differs from the answer that it replaced, if it replaced one.
    pub changed: Option<bool>,
}

/// What another replica fetched.
#[derive(Debug)]
pub enum Elsewhere<F> {
    /// An answer that is stored there, too.
    Stored(Answer, Freshness),
    /// An answer that is not, and whether it only says that the platform fails.
    Passing(Answer, bool),
    /// No answer.
    Failed(F),
}

/// How callers were served with what another replica fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// As a hit.
    Shared {
        /// Whether it says that there is nothing.
        is_negative: bool,
    },
    /// As by a fetch that they waited for.
    Passing,
    /// It failed.
    Failure,
}

/// The duty to complete a flight. Dropped without doing so, it notifies the waiters, and the next caller begins a new one.
#[derive(Debug)]
pub struct FetchGuard<F: Clone> {
    cache: Arc<Cache<F>>,
    question: Question,
    flight: Arc<Flight<F>>,
    /// The flight that this one begins after.
    previous: Option<Arc<Flight<F>>>,
    is_completed: bool,
}

impl<F: Clone> FetchGuard<F> {
    pub(super) const fn new(
        cache: Arc<Cache<F>>,
        question: Question,
        flight: Arc<Flight<F>>,
        previous: Option<Arc<Flight<F>>>,
    ) -> Self {
        Self { cache, question, flight, previous, is_completed: false }
    }

    /// What the fetch takes.
    pub fn call_state(&self) -> &Arc<CallState> {
        &self.flight.call_state
    }

    /// Waits until the fetch may begin.
    pub async fn turn(&mut self) {
        if let Some(previous) = self.previous.take() {
            previous.ended().await;
        }
    }

    /// A request is about to be sent: callers that want a new fetch do not join this one any more.
    pub fn mark_begun(&self) {
        self.flight.mark_begun();
    }

    /// What is asked.
    pub fn question(&self) -> &Question {
        &self.question
    }

    /// Whether the answer replaces all others of its customer.
    pub fn drops_others(&self) -> bool {
        self.flight.drops_others()
    }

    /// The first byte of a request was sent.
    pub fn mark_sent(&self) {
        self.flight.mark_sent();
    }

    /// Completes the flight with an answer to a request that was sent at `sent`, and stores the answer if that was decided and
    /// nothing was invalidated since the flight began.
    pub fn complete(mut self, answer: Answer, decision: StoreDecision, sent: Boot, now: Now) -> (SharedAnswer, Stored) {
        let answer = if matches!(decision, StoreDecision::Store(_)) { self.keyed(answer) } else { answer };
        let (answer, stored) = self.store(answer, decision, sent, now);
        let (is_failure, freshness) = (decision == StoreDecision::Failure, stored.freshness);
        let answered =
            FetchOutcome::Answered { answer: answer.clone(), stored: freshness, is_failure, is_elsewhere: false };
        self.end(answered);
        (answer, stored)
    }

    /// Whether anybody waits for it.
    pub fn is_awaited(&self) -> bool {
        self.flight.has_waiters()
    }

    /// Whether a caller wants a fetch that began after its request.
    pub fn wants_new(&self) -> bool {
        self.flight.wants_new()
    }

    /// Completes the flight with what another replica fetched. Returns it if that is not what its callers want: then it is still to be
    /// fetched.
    pub fn complete_elsewhere(mut self, found: Elsewhere<F>, now: Now) -> Result<Served, Self> {
        let found = match found {
            Elsewhere::Stored(answer, freshness) => Elsewhere::Stored(self.keyed(answer), freshness),
            Elsewhere::Passing(..) | Elsewhere::Failed(_) => found,
        };
        let (cache, flight) = (Arc::clone(&self.cache), Arc::clone(&self.flight));
        let (subject, generation) = (&self.question.subject, flight.generation);
        // Callers join under this lock, with what they want.
        let mut stripe = cache.stripe(subject);
        let lasts = |freshness: &Freshness| freshness.remaining(now).is_some_and(|left| left >= LEAST_FRESH);
        let is_wanted = match &found {
            Elsewhere::Stored(_, freshness) => {
                let is_passing = flight.waited_for(freshness) && !freshness.has_ended(now);
                flight.allows(freshness, now) && (lasts(freshness) || is_passing)
            }
            Elsewhere::Passing(..) | Elsewhere::Failed(_) => !flight.wants_new(),
        };
        if !is_wanted {
            drop(stripe);
            return Err(self);
        }
        let is_current =
            stripe.remove_flight(&self.question, &flight) && generation == cache.current_generation(subject.tenant);
        let passing = |answer: Answer, is_failure| FetchOutcome::Answered {
            answer: answer.into(),
            stored: None,
            is_failure,
            is_elsewhere: true,
        };
        let (served, outcome) = match found {
            // It was fetched while its callers waited.
            Elsewhere::Stored(answer, freshness) if !lasts(&freshness) => (Served::Passing, passing(answer, false)),
            Elsewhere::Stored(answer, freshness) => {
                let answer = match is_current && flight.stores() {
                    true => self.put(stripe, answer, freshness, false, now),
                    false => answer.into(),
                };
                (Served::Shared { is_negative: freshness.negative }, FetchOutcome::Shared(answer, freshness))
            }
            Elsewhere::Passing(answer, is_failure) => {
                let served = if is_failure { Served::Failure } else { Served::Passing };
                (served, passing(answer, is_failure))
            }
            Elsewhere::Failed(failure) => (Served::Failure, FetchOutcome::Failed(failure)),
        };
        self.end(outcome);
        Ok(served)
    }

    /// Completes the flight without an answer.
    pub fn fail(mut self, failure: F) {
        self.remove_flight();
        self.end(FetchOutcome::Failed(failure));
    }

    /// Waits until nobody waits for the answer any more; from then on nobody can join.
    pub async fn no_waiters(&self) {
        loop {
            self.flight.last_waiter_left().await;
            // Callers join under this lock.
            let mut stripe = self.cache.stripe(&self.question.subject);
            if !self.flight.has_waiters() {
                stripe.remove_flight(&self.question, &self.flight);
                return;
            }
        }
    }

    fn end(&mut self, outcome: FetchOutcome<F>) {
        self.is_completed = true;
        self.flight.complete(outcome);
    }

    fn remove_flight(&self) -> bool {
        self.cache.stripe(&self.question.subject).remove_flight(&self.question, &self.flight)
    }

    /// An answer as it can be stored. Its body may be copied, so that this is not done under the stripe's lock.
    fn keyed(&self, answer: Answer) -> Answer {
        answer.with_suffix(self.question.key.as_bytes())
    }

    fn store(&self, answer: Answer, decision: StoreDecision, sent: Boot, now: Now) -> (SharedAnswer, Stored) {
        let Self { cache, question, flight, .. } = self;
        let (subject, generation) = (&question.subject, flight.generation);
        let mut stripe = cache.stripe(subject);
        let is_current =
            stripe.remove_flight(question, flight) && generation == cache.current_generation(subject.tenant);
        if !is_current || !flight.stores() || matches!(decision, StoreDecision::Ignore | StoreDecision::Failure) {
            return (answer.into(), Stored::default());
        }
        let replaced = find(&stripe, question, |other| other == generation);
        let changed = replaced.map(|cached| cached.answer.body != answer.body);
        let lags = sent < flight.settle_until || cache.tenant_settles(subject.tenant, sent);
        let drops_others = flight.drops_others();
        if drops_others {
            stripe.remove_flights(subject);
        }
        let freshness = match decision {
            StoreDecision::Store(freshness) if lags => freshness.unsettled(cache.unsettled_ttl()),
            StoreDecision::Store(freshness) => freshness,
            StoreDecision::Supersede | StoreDecision::Ignore | StoreDecision::Failure => {
                let removed = self.remove_replaced(&mut stripe, drops_others, MAX_ANSWERS, now);
                drop(stripe);
                cache.untrack(&removed);
                return (answer.into(), Stored { freshness: None, changed });
            }
        };
        let answer = self.put(stripe, answer, freshness, drops_others, now);
        (answer, Stored { freshness: Some(freshness), changed })
    }

    /// Stores an answer to the question, which has its key.
    fn put(
        &self,
        mut stripe: MutexGuard<'_, Stripe<F, CachedAnswer>>,
        answer: Answer,
        freshness: Freshness,
        drops_others: bool,
        now: Now,
    ) -> SharedAnswer {
        let Self { cache, question, flight, .. } = self;
        let cached = Arc::new(CachedAnswer::new(question, answer, freshness, flight.generation));
        let removed = self.remove_replaced(&mut stripe, drops_others, MAX_ANSWERS - 1, now);
        stripe.add(Arc::clone(&cached));
        drop(stripe);
        cache.metrics.entries.inc();
        cache.untrack(&removed);
        cache.track(&cached);
        SharedAnswer::Cached(cached)
    }

    /// Removes the answer to the question, or all of its subject's, and those that are obsolete. At most `limit` are left, the newest.
    /// Returns what was removed.
    fn remove_replaced(
        &self,
        stripe: &mut Stripe<F, CachedAnswer>,
        drops_others: bool,
        limit: usize,
        now: Now,
    ) -> Vec<Arc<CachedAnswer>> {
        let Question { subject, key } = &self.question;
        let held = self.cache.held_generations(subject.tenant);
        let mut removed = stripe.remove(subject, |cached| {
            drops_others || cached.key() == key.as_bytes() || cached.is_obsolete(held, now.boot)
        });
        while stripe.answers(subject).count() > limit
            && let Some(oldest) = stripe.answers(subject).min_by_key(|cached| cached.freshness.received).cloned()
        {
            removed.append(&mut stripe.remove(subject, |cached| Arc::ptr_eq(cached, &oldest)));
        }
        removed
    }
}

impl<F: Clone> Drop for FetchGuard<F> {
    fn drop(&mut self) {
        if !self.is_completed {
            self.remove_flight();
            self.flight.complete(FetchOutcome::Abandoned);
        }
    }
}
