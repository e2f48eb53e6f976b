//! Idle connections.

use std::net::SocketAddr;
use std::time::Duration;

use parking_lot::Mutex;

use super::link::Link;
use crate::clock::{Boot, Clock};

/// More idle connections than attempts that a usual pace can use at once.
const MAX_IDLE: usize = 64;
/// Left between upstream's own hint and our last use of an idle connection, so that the two do not meet.
const HINT_MARGIN: Duration = Duration::from_secs(1);

/// Idle connections, the last one used first.
#[derive(Debug)]
pub(super) struct Pool {
    idle: Mutex<Vec<(Boot, Link)>>,
    keep: Duration,
    clock: Clock,
}

impl Pool {
    pub(super) fn new(keep: Duration, clock: Clock) -> Self {
        Self { idle: Mutex::default(), keep, clock }
    }

    /// The connection that was used last and is still good and leads where `is_wanted`.
    pub(super) fn take(&self, is_wanted: impl Fn(SocketAddr) -> bool) -> Option<Link> {
        let now = self.clock.boot();
        let mut idle = self.idle.lock();
        while let Some((until, mut link)) = idle.pop() {
            if now < until && is_wanted(link.address) && link.is_ready() {
                return Some(link);
            }
        }
        None
    }

    /// Keeps a connection; `hint` is how long upstream says it will.
    pub(super) fn put(&self, link: Link, hint: Option<Duration>) {
        let keep = hint.map_or(self.keep, |hint| hint.saturating_sub(HINT_MARGIN).min(self.keep));
        if keep.is_zero() {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push((self.clock.boot() + keep, link));
        }
    }

    /// Closes what is over, broken, or leads elsewhere.
    pub(super) fn tidy(&self, is_wanted: impl Fn(SocketAddr) -> bool) {
        let now = self.clock.boot();
        self.idle.lock().retain_mut(|(until, link)| now < *until && is_wanted(link.address) && link.is_ready());
    }
}
