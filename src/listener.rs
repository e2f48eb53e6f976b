//! Accepts connections, bounds them, and lets them finish.

mod connection;
mod phase;
mod resumed;
mod seldom;
mod streams;
mod timed;
mod unread;
mod workers;

use std::future::Future;
use std::io;
use std::net::{self, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use prometheus::{IntCounter, IntGauge};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connection::Connection;
pub use self::workers::Workers;
use crate::gateway::Capacity;
use crate::settings::ServerSettings;

/// Connections beyond the limit that are answered with a refusal; further ones are closed.
const TURNED_AWAY_AT_ONCE: usize = 256;
/// Connections of operators.
const OPERATORS_AT_ONCE: usize = 256;
/// Pause after the system had no descriptor or memory for a connection.
const BREATHER: Duration = Duration::from_millis(100);

/// Bounds of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once, and requests at once on all that carry several.
    pub max_connections: usize,
    /// Requests at once on a connection of HTTP/2.
    pub max_streams: u32,
    /// Longest head of a request, in bytes.
    pub max_head: usize,
    /// Fields in it.
    pub max_headers: usize,
    /// How long a request's head may take.
    pub header_timeout: Duration,
    /// How long a connection may be idle.
    pub idle_timeout: Duration,
    /// How long what is in hand may take to finish.
    pub drain_timeout: Duration,
}

impl Bounds {
    /// As configured, for callers.
    pub fn new(settings: &ServerSettings) -> Self {
        let number = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            max_connections: number(settings.max_connections).min(Semaphore::MAX_PERMITS),
            max_streams: settings.max_streams,
            max_head: usize::try_from(settings.max_head.0).unwrap_or(usize::MAX),
            max_headers: number(settings.max_headers),
            header_timeout: settings.header_timeout,
            idle_timeout: settings.idle_timeout,
            drain_timeout: settings.drain_timeout,
        }
    }

    /// As configured, for operators: few, who must not take what callers need.
    pub fn for_operators(settings: &ServerSettings) -> Self {
        Self { max_connections: OPERATORS_AT_ONCE, ..Self::new(settings) }
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Peer {
    /// From where.
    pub address: SocketAddr,
    /// Capacity for the request.
    pub capacity: Capacity,
}

/// What is counted of connections.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Open ones.
    pub open: IntGauge,
    /// Those that were closed at once, since even those that are turned away were too many.
    pub dropped: IntCounter,
}

/// Counts a connection for as long as it is there.
struct Open(Option<IntGauge>);

impl Open {
    fn new(open: Option<&IntGauge>) -> Self {
        open.inspect(|open| open.inc());
        Self(open.cloned())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.iter().for_each(IntGauge::dec);
    }
}

/// What connections are secured with now; `None`: nothing.
pub type Secured = Arc<dyn Fn() -> Option<Arc<ServerConfig>> + Send + Sync>;

/// Where connections come in, and on what terms.
pub struct Door {
    /// The socket.
    pub socket: TcpListener,
    /// Its bounds.
    pub bounds: Bounds,
    /// What is counted; `None`: nothing.
    pub tally: Option<Tally>,
    /// Asked for each connection.
    pub secured: Secured,
    /// Who serves what comes in.
    pub workers: Workers,
}

impl Door {
    /// Serves every connection until `stop`, then finishes what is in hand. Answers whether all was finished in time.
    pub async fn serve<A, F>(self, stop: CancellationToken, answer: A) -> bool
    where
        A: Fn(Request<Incoming>, Peer) -> F + Clone + Send + 'static,
        F: Future<Output = (Response<Bytes>, Incoming)> + Send + 'static,
    {
        let Self { socket, bounds, tally, secured, workers } = self;
        let hall = Hall {
            room: Arc::new(Semaphore::new(bounds.max_connections)),
            turned_away: Arc::new(Semaphore::new(TURNED_AWAY_AT_ONCE)),
            streams: Arc::new(Semaphore::new(bounds.max_connections)),
            connections: TaskTracker::new(),
            bounds,
            tally,
            secured,
            workers,
            stop,
        };
        loop {
            let accepted = tokio::select! {
                () = hall.stop.cancelled() => break,
                accepted = socket.accept() => accepted.and_then(|(stream, address)| Ok((stream.into_std()?, address))),
            };
            match accepted {
                Ok(accepted) => hall.let_in(accepted, &answer),
                Err(error) => pause_after(&error).await,
            }
        }
        // Who connected before the end waits in the socket's queue, and would be cut off with it.
        if let Ok(socket) = socket.into_std() {
            while let Ok(accepted) = accept_waiting(&socket) {
                hall.let_in(accepted, &answer);
            }
        }
        hall.connections.close();
        tokio::time::timeout(bounds.drain_timeout, hall.connections.wait()).await.is_ok()
    }
}

/// Where the connections of a door are.
struct Hall {
    room: Arc<Semaphore>,
    turned_away: Arc<Semaphore>,
    /// Requests at once, of connections that carry several.
    streams: Arc<Semaphore>,
    connections: TaskTracker,
    bounds: Bounds,
    tally: Option<Tally>,
    secured: Secured,
    workers: Workers,
    stop: CancellationToken,
}

impl Hall {
    /// Serves a connection, or turns it away.
    fn let_in<A, F>(&self, (stream, address): (net::TcpStream, SocketAddr), answer: &A)
    where
        A: Fn(Request<Incoming>, Peer) -> F + Clone + Send + 'static,
        F: Future<Output = (Response<Bytes>, Incoming)> + Send + 'static,
    {
        let permit = take(&self.room).map(|permit| (permit, Capacity::Available));
        let Some((permit, capacity)) = permit.or_else(|| Some((take(&self.turned_away)?, Capacity::Exhausted))) else {
            self.tally.iter().for_each(|tally| tally.dropped.inc());
            return;
        };
        let open = Open::new(self.tally.as_ref().map(|tally| &tally.open));
        let connection = Connection {
            peer: Peer { address, capacity },
            bounds: self.bounds,
            streams: Arc::clone(&self.streams),
            secured: (self.secured)(),
            stop: self.stop.child_token(),
            answer: answer.clone(),
        };
        let served = async move {
            // The system tells this worker, and no other, what comes in.
            if let Ok(stream) = TcpStream::from_std(stream) {
                connection.serve(stream).await;
            }
            drop((open, permit));
        };
        self.workers.serve(served, &self.connections);
    }
}

fn take(permits: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(permits).try_acquire_owned().ok()
}

/// A connection that waits already: the socket does not block.
fn accept_waiting(socket: &net::TcpListener) -> io::Result<(net::TcpStream, SocketAddr)> {
    let accepted = socket.accept()?;
    accepted.0.set_nonblocking(true)?;
    Ok(accepted)
}

/// A connection that was gone before it was accepted concerns nobody; without descriptors or memory, wait for some.
async fn pause_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) {
        tracing::warn!(%error, "no connection can be accepted");
        tokio::time::sleep(BREATHER).await;
    }
}
