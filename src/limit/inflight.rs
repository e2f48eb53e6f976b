//! The limit of attempts in flight of one tenant, granted in the order of a fair queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::fair_queue::{FairQueue, Position};

/// Wakes a request that waits.
#[derive(Clone, Debug, Default)]
pub(super) struct Waker(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    notify: Notify,
    /// Whether it has a slot at hand, and waits until fewer attempts of its tenant are in flight.
    awaits_capacity: AtomicBool,
}

impl Waker {
    pub(super) fn wake(&self) {
        self.0.notify.notify_one();
    }

    pub(super) async fn woken(&self) {
        self.0.notify.notified().await;
    }

    /// Whether the request waits for the in-flight limit alone.
    pub(super) fn awaits_capacity(&self) -> bool {
        self.0.awaits_capacity.load(Ordering::SeqCst)
    }

    fn set_awaits_capacity(&self, awaits: bool) {
        self.0.awaits_capacity.store(awaits, Ordering::SeqCst);
    }
}

/// The limit of attempts in flight.
#[derive(Debug)]
pub struct InflightLimit(Mutex<State>);

#[derive(Debug)]
struct State {
    free: usize,
    /// Requests that could have a slot now: of each pace, the first ones.
    waiting: FairQueue<Waker>,
}

impl State {
    fn wake_next(&self) {
        if let Some((_, next)) = self.waiting.next().filter(|_| self.free > 0) {
            next.wake();
        }
    }
}

impl InflightLimit {
    /// A limit of `max` attempts.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { free: max, waiting: FairQueue::default() })))
    }

    /// Lets a request wait for its turn, when it is woken; returns its position.
    pub(super) fn join(&self, key: super::QueueKey, waker: &Waker) -> Position {
        waker.set_awaits_capacity(true);
        self.0.lock().waiting.join(key, waker.clone())
    }

    /// Takes capacity for a request that waits for it, if there is some and it is its turn.
    pub(super) fn take(self: &Arc<Self>, position: Position, waker: &Waker) -> Option<InflightPermit> {
        let mut state = self.0.lock();
        if state.free == 0 || state.waiting.next().is_none_or(|(next, _)| next != position) {
            state.wake_next();
            return None;
        }
        state.waiting.serve(position);
        waker.set_awaits_capacity(false);
        state.free -= 1;
        state.wake_next();
        Some(InflightPermit(Arc::clone(self)))
    }

    /// Takes capacity that nobody waits for.
    pub(super) fn take_spare(self: &Arc<Self>) -> Option<InflightPermit> {
        let mut state = self.0.lock();
        if state.free == 0 || !state.waiting.is_empty() {
            return None;
        }
        state.free -= 1;
        Some(InflightPermit(Arc::clone(self)))
    }

    /// A request does not wait any more.
    pub(super) fn leave(&self, position: Position, waker: &Waker) {
        let mut state = self.0.lock();
        state.waiting.leave(position);
        waker.set_awaits_capacity(false);
        state.wake_next();
    }
}

/// Capacity for one attempt, free again once this is dropped.
#[derive(Debug)]
pub(super) struct InflightPermit(Arc<InflightLimit>);

impl Drop for InflightPermit {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.free += 1;
        state.wake_next();
    }
}
