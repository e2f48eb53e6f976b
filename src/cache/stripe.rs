//! Where misses and writes of some subjects meet, under one lock.

use std::collections::HashMap;
use std::sync::Arc;

use super::flight::Flight;
use super::shelf::{Question, Subject};
use crate::clock::Boot;

/// The flights and fences of a stripe's subjects.
#[derive(Debug)]
pub(super) struct Stripe<F> {
    /// A flight in here may be joined, and may keep its answer.
    pub(super) flights: HashMap<Question, Arc<Flight<F>>>,
    /// Until when upstream may lag behind a write; forgotten when that is over.
    settling: HashMap<Subject, Boot>,
}

impl<F> Default for Stripe<F> {
    fn default() -> Self {
        Self { flights: HashMap::new(), settling: HashMap::new() }
    }
}

impl<F> Stripe<F> {
    /// Takes every flight of a subject out, and notes until when upstream may lag.
    pub(super) fn fence(&mut self, subject: &Subject, settled: Boot, now: Boot) {
        self.flights.retain(|question, _| question.subject != *subject);
        self.settling.retain(|_, until| *until > now);
        if settled > now {
            let until = self.settling.entry(subject.clone()).or_insert(settled);
            *until = settled.max(*until);
        }
    }

    /// Whether upstream may still have answered from before a write at that moment.
    pub(super) fn settles(&self, subject: &Subject, sent: Boot) -> bool {
        self.settling.get(subject).is_some_and(|until| sent < *until)
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
