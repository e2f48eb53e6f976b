//! One fetch for each question (singleflight, request coalescing): callers that ask while it is being fetched wait for the same answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, SetOnce};

use super::RequestCacheControl;
use super::entry::{Generation, SharedAnswer};
use super::freshness::Freshness;
use crate::call_state::CallState;
use crate::clock::{Boot, Now};

/// How a fetch ended.
#[derive(Clone, Debug)]
pub enum FetchOutcome<F> {
    /// With an answer, for everybody who waited.
    Answered {
        /// The answer.
        answer: SharedAnswer,
        /// How long it is fresh, if it was stored.
        stored: Option<Freshness>,
        /// Whether it only says that the platform fails.
        is_failure: bool,
        /// Whether another replica fetched it.
        is_elsewhere: bool,
    },
    /// With an answer that another replica had fetched, and that is still fresh.
    Shared(SharedAnswer, Freshness),
    /// Without one.
    Failed(F),
    /// Nobody knows: its task ended early.
    Abandoned,
}

/// A fetch in progress.
#[derive(Debug)]
pub(super) struct Flight<F> {
    outcome: SetOnce<FetchOutcome<F>>,
    waiters: AtomicUsize,
    /// Notified when the last waiter gave up.
    no_waiters: Notify,
    /// Whether a request was about to be sent.
    begun: AtomicBool,
    /// Whether anything was sent.
    sent: AtomicBool,
    /// Whether its answer is stored; read and changed under the stripe's lock, as the next one is.
    stores: AtomicBool,
    /// Whether its answer drops what else is cached for its subject.
    drops_others: AtomicBool,
    /// Whether a caller wants a fetch that began after its request.
    wants_new: AtomicBool,
    /// How old its answer may be that was fetched before, in nanoseconds.
    max_age: AtomicU64,
    /// What it takes.
    pub(super) call_state: Arc<CallState>,
    /// Whether it was begun because its caller wanted a new fetch.
    pub(super) is_forced: bool,
    /// The generation in which it began.
    pub(super) generation: Generation,
    /// What is sent before this may be answered with data from before a write.
    pub(super) settle_until: Boot,
    began: Boot,
}

impl<F> Flight<F> {
    /// How many callers wait for it.
    pub(super) fn waiters(&self) -> usize {
        self.waiters.load(Ordering::Relaxed)
    }
}

impl<F: Clone> Flight<F> {
    pub(super) fn new(
        generation: Generation,
        settle_until: Boot,
        wanted: &RequestCacheControl,
        began: Boot,
    ) -> Arc<Self> {
        let flight = Self {
            outcome: SetOnce::new(),
            waiters: AtomicUsize::new(0),
            no_waiters: Notify::new(),
            begun: AtomicBool::new(false),
            sent: AtomicBool::new(false),
            stores: AtomicBool::new(false),
            drops_others: AtomicBool::new(false),
            wants_new: AtomicBool::new(false),
            max_age: AtomicU64::new(u64::MAX),
            call_state: Arc::default(),
            is_forced: wanted.wants_new(),
            generation,
            settle_until,
            began,
        };
        flight.demand(wanted);
        Arc::new(flight)
    }

    /// Takes into account what another caller wants of the answer.
    pub(super) fn demand(&self, wanted: &RequestCacheControl) {
        self.wants_new.fetch_or(wanted.wants_new(), Ordering::Relaxed);
        if let Some(max_age) = wanted.max_age {
            self.max_age.fetch_min(u64::try_from(max_age.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        if !wanted.no_store {
            self.stores.store(true, Ordering::Relaxed);
            self.drops_others.fetch_or(wanted.no_cache, Ordering::Relaxed);
        }
    }

    pub(super) fn wants_new(&self) -> bool {
        self.wants_new.load(Ordering::Relaxed)
    }

    /// Whether an answer will do for all callers that was fetched elsewhere: it is as young as they want, or was fetched while they waited.
    pub(super) fn allows(&self, freshness: &Freshness, now: Now) -> bool {
        let max_age = Duration::from_nanos(self.max_age.load(Ordering::Relaxed));
        !self.wants_new() && (freshness.age(now) <= max_age || self.waited_for(freshness))
    }

    /// Whether an answer was fetched elsewhere while this waited for it.
    pub(super) fn waited_for(&self, freshness: &Freshness) -> bool {
        freshness.received >= self.began
    }

    pub(super) fn stores(&self) -> bool {
        self.stores.load(Ordering::Relaxed)
    }

    pub(super) fn drops_others(&self) -> bool {
        self.drops_others.load(Ordering::Relaxed)
    }

    pub(super) fn mark_begun(&self) {
        self.begun.store(true, Ordering::SeqCst);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::SeqCst)
    }

    /// Whether a request may wait for it: one that wants a new fetch, only before it has begun.
    pub(super) fn is_joinable(&self, cache_control: &RequestCacheControl) -> bool {
        !cache_control.wants_new() || !self.has_begun()
    }

    /// Waits until it ended.
    pub(super) async fn ended(&self) {
        self.outcome.wait().await;
    }

    /// Adds a waiter, unless there are `limit` already.
    pub(super) fn join(self: &Arc<Self>, limit: usize) -> Option<Waiter<F>> {
        let joined = self.waiters.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1));
        joined.ok().map(|_| Waiter(Arc::clone(self)))
    }

    /// Waits until the last waiter gave up. Others may have come since.
    pub(super) async fn last_waiter_left(&self) {
        self.no_waiters.notified().await;
    }

    pub(super) fn has_waiters(&self) -> bool {
        self.waiters.load(Ordering::Acquire) > 0
    }

    pub(super) fn mark_sent(&self) {
        self.sent.store(true, Ordering::Relaxed);
    }

    pub(super) fn complete(&self, outcome: FetchOutcome<F>) {
        // A flight completes once: its guard does that, and is consumed by it.
        let _ = self.outcome.set(outcome);
    }
}

/// A caller that waits for a flight; giving up affects nobody else.
#[derive(Debug)]
pub struct Waiter<F>(Arc<Flight<F>>);

impl<F: Clone> Waiter<F> {
    /// Waits for the outcome.
    pub async fn outcome(&self) -> FetchOutcome<F> {
        self.0.outcome.wait().await.clone()
    }

    /// What the fetch takes.
    pub fn call_state(&self) -> &Arc<CallState> {
        &self.0.call_state
    }

    /// Whether anything of the fetch was sent by now.
    pub fn was_sent(&self) -> bool {
        self.0.sent.load(Ordering::Relaxed)
    }
}

impl<F> Drop for Waiter<F> {
    fn drop(&mut self) {
        if self.0.waiters.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.no_waiters.notify_one();
        }
    }
}
