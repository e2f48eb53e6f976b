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
    /// Until when the platform may lag behind a write, by a hash of the subject. Subjects that share a slot only make each
    /// other's answers live shortly, and no number of invalidations makes the table larger or slower.
    settle: [Tenths; SETTLE_SLOTS],
    hasher: RandomState,
}

/// In all stripes of a cache together 128 KiB. While 300 customers settle, as many as a usual rate of writes and
/// `cache.settle_unknown` amount to, one in 100 others is taken for one of them.
const SETTLE_SLOTS: usize = 32;

/// Tenths of a second since boot, rounded up: thirteen years fit.
type Tenths = u32;

fn tenths(at: Boot) -> Tenths {
    u32::try_from(at.millis().div_ceil(100)).unwrap_or(u32::MAX)
}

impl<F> Default for Stripe<F> {
    fn default() -> Self {
        Self { flights: HashMap::default(), settle: [0; SETTLE_SLOTS], hasher: RandomState::default() }
    }
}

impl<F> Stripe<F> {
    /// Takes every flight of a subject out, and notes until when the platform may lag.
    pub(super) fn fence(&mut self, subject: &Subject, settle_until: Boot, now: Boot) {
        self.flights.retain(|question, _| question.subject != *subject);
        let slot = self.slot(subject);
        if let Some(until) = self.settle.get_mut(slot).filter(|_| settle_until > now) {
            *until = tenths(settle_until).max(*until);
        }
    }

    /// Until when the platform may answer a subject's questions with data from before a write. A flight takes this along
    /// when it begins: a later write takes the flight out.
    pub(super) fn settle_until(&self, subject: &Subject) -> Boot {
        let tenths = self.settle.get(self.slot(subject)).copied().unwrap_or(Tenths::MAX);
        Boot::from_duration(Duration::from_millis(100).saturating_mul(tenths))
    }

    fn slot(&self, subject: &Subject) -> usize {
        usize::try_from(self.hasher.hash_one(subject) % SETTLE_SLOTS as u64).unwrap_or_default()
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
