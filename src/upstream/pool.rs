//! The connection pool: idle connections to the platform.

use std::net::SocketAddr;
use std::time::Duration;

use parking_lot::Mutex;

use super::http1::Http1Connection;
use crate::clock::{Boot, Clock};

/// Idle connections that are kept: more than a usual rate can use at once.
const MAX_IDLE: usize = 64;
/// Subtracted from the platform's own `Keep-Alive` timeout, so that it does not close a connection just when it is used.
const HINT_MARGIN: Duration = Duration::from_secs(1);

/// Idle connections; the one that was used last is used first.
#[derive(Debug)]
pub(super) struct Pool {
    idle: Mutex<Vec<(Boot, Http1Connection)>>,
    keep: Duration,
    clock: Clock,
}

impl Pool {
    pub(super) fn new(keep: Duration, clock: Clock) -> Self {
        Self { idle: Mutex::default(), keep, clock }
    }

    /// The connection that was used last, is still open, and leads to an address that `is_current`.
    pub(super) fn take(&self, is_current: impl Fn(SocketAddr) -> bool) -> Option<Http1Connection> {
        let now = self.clock.boot();
        let mut idle = self.idle.lock();
        while let Some((until, mut connection)) = idle.pop() {
            if now < until && is_current(connection.address) && connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection; `hint` is how long the platform says that it keeps it.
    pub(super) fn put(&self, connection: Http1Connection, hint: Option<Duration>) {
        let keep = hint.map_or(self.keep, |hint| hint.saturating_sub(HINT_MARGIN).min(self.keep));
        if keep.is_zero() {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push((self.clock.boot() + keep, connection));
        }
    }

    /// Closes connections that were idle for too long, broke, or lead to another address.
    pub(super) fn close_expired(&self, is_current: impl Fn(SocketAddr) -> bool) {
        let now = self.clock.boot();
        self.idle
            .lock()
            .retain_mut(|(until, connection)| now < *until && is_current(connection.address) && connection.is_ready());
    }
}
