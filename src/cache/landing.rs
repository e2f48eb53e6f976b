//! The end of a flight: who is told what, and what is kept of it.

use std::sync::Arc;

use super::Cache;
use super::flight::{Flight, Landed};
use super::freshness::{Fate, Life};
use super::shelf::{Kept, Question, Shelf};
use crate::answer::Answer;
use crate::clock::{Boot, Now};

/// What became of an answer in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Its life, where it is kept.
    pub kept: Option<Life>,
    /// Whether it differs from the one that it replaced, where it replaced one.
    pub changed: Option<bool>,
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
    pub(super) const fn new(cache: Arc<Cache<F>>, question: Question, flight: Arc<Flight<F>>, renews: bool) -> Self {
        Self { cache, question, flight, renews, landed: false }
    }

    /// Hands an answer that was asked for at `sent` to all who wait, and keeps it if that is its fate and no write came
    /// between.
    pub fn answer(mut self, answer: Arc<Answer>, fate: Fate, sent: Boot, now: Now) -> Settled {
        let settled = self.settle(&answer, fate, sent, now);
        self.end(Landed::Answer { answer, kept: settled.kept, failure: fate == Fate::Failure });
        settled
    }

    /// Waits until nobody waits for the answer any more; from then on nobody can begin to.
    pub async fn deserted(&self) {
        loop {
            self.flight.deserted().await;
            // Who joins does so under this lock.
            let mut stripe = self.cache.stripe(&self.question.subject).lock();
            if self.flight.is_deserted() {
                stripe.take_out(&self.question, &self.flight);
                return;
            }
        }
    }

    /// Tells all who wait why there is no answer.
    pub fn fail(mut self, failure: F) {
        self.cache.stripe(&self.question.subject).lock().take_out(&self.question, &self.flight);
        self.end(Landed::Failed(failure));
    }

    fn end(&mut self, outcome: Landed<F>) {
        self.landed = true;
        self.flight.land(outcome);
    }

    fn settle(&self, answer: &Arc<Answer>, fate: Fate, sent: Boot, now: Now) -> Settled {
        let Self { cache, question, flight, .. } = self;
        let subject = &question.subject;
        let mut stripe = cache.stripe(subject).lock();
        let in_time = stripe.take_out(question, flight) && flight.era == cache.era(subject.tenant);
        if !in_time || matches!(fate, Fate::Ignored | Fate::Failure) {
            return Settled::default();
        }
        let old = cache.shelves.get(subject);
        let old = old.as_deref().unwrap_or(const { &Shelf::EMPTY });
        let replaced = old.find(&question.key, flight.era);
        let changed = replaced.map(|kept| kept.answer.body != answer.body);
        if self.renews {
            stripe.flights.retain(|other, _| other.subject != *subject);
        }
        let rest = if self.renews { Shelf::default() } else { old.without(&question.key, flight.era, now) };
        let lags = sent < flight.settle_until || cache.tenant_settles(subject.tenant, sent);
        let kept = match fate {
            Fate::Kept(life) if lags => Some(life.unsettled(cache.unsettled_ttl())),
            Fate::Kept(life) => Some(life),
            Fate::Supersedes | Fate::Ignored | Fate::Failure => None,
        };
        let shelf = match kept {
            Some(life) => rest.with(Kept::new(question, answer, life, flight.era), now),
            None => rest,
        };
        if shelf.len() == 0 {
            cache.shelves.invalidate(subject);
        } else {
            cache.tally.entries.add(i64::try_from(shelf.len()).unwrap_or(i64::MAX));
            cache.shelves.insert(subject.clone(), Arc::new(shelf));
        }
        cache.changed(subject);
        Settled { kept, changed }
    }
}

impl<F: Clone> Drop for Landing<F> {
    fn drop(&mut self) {
        if !self.landed {
            self.cache.stripe(&self.question.subject).lock().take_out(&self.question, &self.flight);
            self.flight.land(Landed::Abandoned);
        }
    }
}
