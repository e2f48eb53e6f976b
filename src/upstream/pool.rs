//! Idle connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;

use super::wire::Meter;
use crate::clock::{Boot, Clock};

/// More idle connections than attempts that a usual pace can use at once.
const MAX_IDLE: usize = 64;
/// Left between upstream's own hint and our last use of an idle connection, so that the two do not meet.
const HINT_MARGIN: Duration = Duration::from_secs(1);

/// A connection that can carry the next request.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) sender: SendRequest<Full<Bytes>>,
    pub(super) meter: Arc<Meter>,
    /// Where it leads.
    pub(super) address: SocketAddr,
}

/// Idle connections, the last one used first.
#[derive(Debug)]
pub(super) struct Pool {
    idle: Mutex<Vec<(Boot, Idle)>>,
    keep: Duration,
    clock: Clock,
}

impl Pool {
    pub(super) fn new(keep: Duration, clock: Clock) -> Self {
        Self { idle: Mutex::default(), keep, clock }
    }

    /// The connection that was used last and is still good and leads where `is_wanted`. It may have to be waited for: its
    /// last answer may have been read before its task knew.
    pub(super) fn take(&self, is_wanted: impl Fn(SocketAddr) -> bool) -> Option<Idle> {
        let now = self.clock.boot();
        let mut idle = self.idle.lock();
        while let Some((until, connection)) = idle.pop() {
            if now < until && !connection.sender.is_closed() && is_wanted(connection.address) {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection; `hint` is how long upstream says it will.
    pub(super) fn put(&self, connection: Idle, hint: Option<Duration>) {
        let keep = hint.map_or(self.keep, |hint| hint.saturating_sub(HINT_MARGIN).min(self.keep));
        if keep.is_zero() {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push((self.clock.boot() + keep, connection));
        }
    }

    /// Closes what is over, broken, or leads elsewhere.
    pub(super) fn tidy(&self, is_wanted: impl Fn(SocketAddr) -> bool) {
        let now = self.clock.boot();
        let good = |idle: &Idle| !idle.sender.is_closed() && is_wanted(idle.address);
        self.idle.lock().retain(|(until, connection)| now < *until && good(connection));
    }
}
