//! Where misses and writes of some subjects meet, under one lock.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;

use super::flight::Flight;
use super::shelf::{Question, Subject};
use crate::clock::Boot;

/// The flights and fences of a stripe's subjects.
#[derive(Debug)]
pub(super) struct Stripe<F> {
    /// A flight in here may be joined, and may keep its answer.
    pub(super) flights: HashMap<Question, Arc<Flight<F>>, RandomState>,
    /// Until when upstream may lag behind a write, by the subject's hash: two that share one make each other's answers live
    /// shortly, and no name that somebody made long is kept. Forgotten when no call of that time can still be under way.
    settling: HashMap<u64, Boot, RandomState>,
}

/// Longer than any call is under way.
const UNDER_WAY: Duration = Duration::from_secs(30);

impl<F> Default for Stripe<F> {
    fn default() -> Self {
        Self { flights: HashMap::default(), settling: HashMap::default() }
    }
}

impl<F> Stripe<F> {
    /// Takes every flight of a subject out, and notes until when upstream may lag.
    pub(super) fn fence(&mut self, subject: &Subject, settled: Boot, now: Boot) {
        self.flights.retain(|question, _| question.subject != *subject);
        self.forget(now);
        if settled > now {
            let until = self.settling.entry(self.settling.hasher().hash_one(subject)).or_insert(settled);
            *until = settled.max(*until);
        }
    }

    /// Forgets what makes no difference any more.
    pub(super) fn forget(&mut self, now: Boot) {
        self.settling.retain(|_, until| *until + UNDER_WAY > now);
    }

    /// Whether upstream may still have answered from before a write at that moment.
    pub(super) fn settles(&self, subject: &Subject, sent: Boot) -> bool {
        self.settling.get(&self.settling.hasher().hash_one(subject)).is_some_and(|until| sent < *until)
    }

    /// Takes a flight out, unless a newer one has its place or a write took it out; answers whether it was there.
    pub(super) fn take_out(&mut self, question: &Question, flight: &Arc<Flight<F>>) -> bool {
        let same = self.flights.get(question).is_some_and(|current| Arc::ptr_eq(current, flight));
        if same {
            self.flights.remove(question);
        }
        same
    }
}
