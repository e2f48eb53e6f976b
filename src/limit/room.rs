//! The limit of attempts in flight of one tenant, granted in the order of a fair queue.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::QueueKey;
use super::fair_queue::FairQueue;

/// Wakes a request that waits.
#[derive(Clone, Debug)]
pub(super) struct Ticket(Arc<Notify>);

impl Ticket {
    pub(super) fn new() -> Self {
        Self(Arc::new(Notify::new()))
    }

    pub(super) fn wake(&self) {
        self.0.notify_one();
    }

    pub(super) async fn woken(&self) {
        self.0.notified().await;
    }
}

impl PartialEq for Ticket {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Room for so many attempts in flight.
#[derive(Debug)]
pub struct Room(Mutex<State>);

#[derive(Debug)]
struct State {
    free: usize,
    /// Requests that could have a slot now: of each pace, the first of each caller.
    waiting: FairQueue<Ticket>,
}

impl State {
    fn wake_next(&self) {
        if let Some(next) = self.waiting.next().filter(|_| self.free > 0) {
            next.wake();
        }
    }
}

impl Room {
    /// Room for `max` attempts.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { free: max, waiting: FairQueue::default() })))
    }

    /// Lets a request wait for room; its ticket is woken at its turn.
    pub(super) fn join(&self, key: QueueKey, ticket: &Ticket) {
        let mut state = self.0.lock();
        if !state.waiting.contains(ticket) {
            state.waiting.join(key, ticket.clone());
        }
    }

    /// Takes room for a request that waits for it, if some is free and it is its turn.
    pub(super) fn take(self: &Arc<Self>, ticket: &Ticket) -> Option<RoomPermit> {
        let mut state = self.0.lock();
        if state.free == 0 || state.waiting.next() != Some(ticket) {
            state.wake_next();
            return None;
        }
        state.waiting.serve(ticket);
        state.free -= 1;
        state.wake_next();
        Some(RoomPermit(Arc::clone(self)))
    }

    /// Whether a request waits for room.
    pub(super) fn is_awaited_by(&self, ticket: &Ticket) -> bool {
        self.0.lock().waiting.contains(ticket)
    }

    /// Takes room that nobody waits for.
    pub(super) fn take_spare(self: &Arc<Self>) -> Option<RoomPermit> {
        let mut state = self.0.lock();
        if state.free == 0 || !state.waiting.is_empty() {
            return None;
        }
        state.free -= 1;
        Some(RoomPermit(Arc::clone(self)))
    }

    /// A request does not wait for room any more.
    pub(super) fn leave(&self, ticket: &Ticket) {
        let mut state = self.0.lock();
        state.waiting.leave(ticket);
        state.wake_next();
    }
}

/// Room for one attempt, free again once this is dropped.
#[derive(Debug)]
pub(super) struct RoomPermit(Arc<Room>);

impl Drop for RoomPermit {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.free += 1;
        state.wake_next();
    }
}
