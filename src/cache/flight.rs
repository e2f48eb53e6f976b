//! One call for each question: those who ask while it is being asked wait for the same answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, SetOnce};

use super::freshness::Life;
use crate::answer::Answer;
use crate::clock::Boot;

/// How a flight ended.
#[derive(Clone, Debug)]
pub enum Landed<F> {
    /// With an answer, for everybody who waited.
    Answer {
        /// It.
        answer: Arc<Answer>,
        /// How long it is kept, where it is.
        kept: Option<Life>,
        /// Whether it only says that upstream fails.
        failure: bool,
    },
    /// Without one.
    Failed(F),
    /// Nobody knows: the task that flew it ended early.
    Abandoned,
}

/// A call under way.
#[derive(Debug)]
pub(super) struct Flight<F> {
    outcome: SetOnce<Landed<F>>,
    waiting: AtomicUsize,
    /// Told when the last waiter left.
    deserted: Notify,
    /// The tenant's era in which it began.
    pub(super) era: u64,
    /// What is sent before this may be answered with data from before a write.
    pub(super) settle_until: Boot,
}

impl<F: Clone> Flight<F> {
    pub(super) fn new(era: u64, settle_until: Boot) -> Arc<Self> {
        let (outcome, waiting, deserted) = (SetOnce::new(), AtomicUsize::new(0), Notify::new());
        Arc::new(Self { outcome, waiting, deserted, era, settle_until })
    }

    /// Waits with the others, unless `limit` do so already.
    pub(super) fn join(self: &Arc<Self>, limit: usize) -> Option<Waiter<F>> {
        let joined = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1));
        joined.ok().map(|_| Waiter(Arc::clone(self)))
    }

    /// Waits until the last waiter left. Others may have come since.
    pub(super) async fn deserted(&self) {
        self.deserted.notified().await;
    }

    /// Whether nobody waits.
    pub(super) fn is_deserted(&self) -> bool {
        self.waiting.load(Ordering::Acquire) == 0
    }

    pub(super) fn land(&self, outcome: Landed<F>) {
        // A flight lands once: whoever flies it does so, and is gone then.
        let _ = self.outcome.set(outcome);
    }
}

/// Somebody who waits for a flight; leaving harms nobody.
#[derive(Debug)]
pub struct Waiter<F>(Arc<Flight<F>>);

impl<F: Clone> Waiter<F> {
    /// The flight's outcome.
    pub async fn outcome(self) -> Landed<F> {
        self.0.outcome.wait().await.clone()
    }
}

impl<F> Drop for Waiter<F> {
    fn drop(&mut self) {
        if self.0.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.deserted.notify_one();
        }
    }
}
