//! Listeners: accept connections, limit them, and let them finish when the process stops.

mod connection;
mod connection_state;
mod drain_body;
mod io_timeouts;
mod rejections;
mod streams;
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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connection::Connection;
pub use self::rejections::Rejections;
pub use self::workers::Workers;
use crate::gateway::Capacity;
use crate::settings::ListenerSettings;

/// Connections beyond the limit that are answered with 503; further ones are closed.
const MAX_REJECTIONS: usize = 256;
/// Connections of operators.
const MAX_ADMIN_CONNECTIONS: usize = 256;
/// Pause after the system had no descriptor or memory for a connection.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The limits of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Open connections, and concurrent requests on all HTTP/2 connections.
    pub max_connections: usize,
    /// Concurrent requests on one HTTP/2 connection.
    pub max_streams: u32,
    /// Longest request head, in bytes.
    pub max_head: usize,
    /// Header fields in it.
    pub max_headers: usize,
    /// How long a request head may take.
    pub header_timeout: Duration,
    /// How long a connection may be idle.
    pub idle_timeout: Duration,
    /// How long requests in progress may take to finish.
    pub drain_timeout: Duration,
}

impl Bounds {
    /// For callers, as configured.
    pub fn new(settings: &ListenerSettings) -> Self {
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

    /// For operators: few connections, which must not use up what callers need.
    pub fn for_operators(settings: &ListenerSettings) -> Self {
        Self { max_connections: MAX_ADMIN_CONNECTIONS, ..Self::new(settings) }
    }
}

/// The other side of a connection.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Its address.
    pub address: SocketAddr,
    /// Capacity for its request.
    pub capacity: Capacity,
}

/// What a listener counts.
#[derive(Clone, Debug)]
pub struct ListenerMetrics {
    /// Open connections.
    pub open: IntGauge,
    /// Connections that were closed at once, since too many others were waiting for their rejection.
    pub dropped: IntCounter,
    /// What is no request.
    pub rejections: Arc<Rejections>,
}

/// Counts a connection while it is open.
struct OpenConnection(Option<IntGauge>);

impl OpenConnection {
    fn new(open: Option<&IntGauge>) -> Self {
        open.inspect(|open| open.inc());
        Self(open.cloned())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.iter().for_each(IntGauge::dec);
    }
}

/// The TLS configuration for a new connection; `None`: plain text.
pub type TlsProvider = Arc<dyn Fn() -> Option<Arc<ServerConfig>> + Send + Sync>;

/// A listening socket, and how its connections are served.
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// Its limits.
    pub bounds: Bounds,
    /// What is counted; `None`: nothing.
    pub metrics: Option<ListenerMetrics>,
    /// Called for each connection.
    pub tls: TlsProvider,
    /// The threads that serve connections.
    pub workers: Workers,
}

impl Listener {
    /// Serves every connection until `stop`, then finishes requests in progress. Returns whether all were finished in time.
    pub async fn serve<A, F>(self, stop: CancellationToken, answer: A) -> bool
    where
        A: Fn(Request<Incoming>, PeerInfo) -> F + Clone + Send + 'static,
        F: Future<Output = (Response<Bytes>, Incoming)> + Send + 'static,
    {
        let Self { socket, bounds, metrics, tls, workers } = self;
        let (close, closing) = watch::channel(());
        let state = ListenerState {
            permits: Arc::new(Semaphore::new(bounds.max_connections)),
            rejections: Arc::new(Semaphore::new(MAX_REJECTIONS)),
            streams: Arc::new(Semaphore::new(bounds.max_connections)),
            connections: TaskTracker::new(),
            bounds,
            metrics,
            tls,
            workers,
            stop: closing,
        };
        let mut failing = None;
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = socket.accept() => accepted.and_then(|(stream, address)| Ok((stream.into_std()?, address))),
            };
            match accepted {
                Ok(accepted) => {
                    if let Some(failures) = failing.take() {
                        tracing::info!(failures, "accepting again");
                    }
                    state.serve(accepted, &answer);
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if failing.is_none() {
                        tracing::warn!(%error, "accept failed");
                    }
                    failing = Some(failing.unwrap_or(0u64) + 1);
                    // Without descriptors or memory, wait for some.
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = tokio::time::sleep(ACCEPT_BACKOFF) => {}
                    }
                }
            }
        }
        close.send_replace(());
        // Connections that were established before the stop are in the socket's queue, and would be reset with it.
        if let Ok(socket) = socket.into_std() {
            while let Ok(accepted) = accept_queued(&socket) {
                state.serve(accepted, &answer);
            }
        }
        state.connections.close();
        tokio::time::timeout(bounds.drain_timeout, state.connections.wait()).await.is_ok()
    }
}

/// The connections of a listener.
struct ListenerState {
    permits: Arc<Semaphore>,
    rejections: Arc<Semaphore>,
    /// Concurrent requests on HTTP/2 connections.
    streams: Arc<Semaphore>,
    connections: TaskTracker,
    bounds: Bounds,
    metrics: Option<ListenerMetrics>,
    tls: TlsProvider,
    workers: Workers,
    /// Changes when connections are to be closed, or loses its sender. A clone of it sees that, also if it is created later.
    stop: watch::Receiver<()>,
}

impl ListenerState {
    /// Serves a connection, or rejects it.
    fn serve<A, F>(&self, (stream, address): (net::TcpStream, SocketAddr), answer: &A)
    where
        A: Fn(Request<Incoming>, PeerInfo) -> F + Clone + Send + 'static,
        F: Future<Output = (Response<Bytes>, Incoming)> + Send + 'static,
    {
        let permit = try_acquire(&self.permits).map(|permit| (permit, Capacity::Available));
        let permit = permit.or_else(|| Some((try_acquire(&self.rejections)?, Capacity::Exhausted)));
        let Some((permit, capacity)) = permit else {
            self.metrics.iter().for_each(|metrics| metrics.dropped.inc());
            return;
        };
        let open = OpenConnection::new(self.metrics.as_ref().map(|metrics| &metrics.open));
        let connection = Connection {
            peer: PeerInfo { address, capacity },
            bounds: self.bounds,
            streams: Arc::clone(&self.streams),
            rejections: self.metrics.as_ref().map(|metrics| Arc::clone(&metrics.rejections)),
            tls: (self.tls)(),
            stop: self.stop.clone(),
            answer: answer.clone(),
        };
        let served = async move {
            // Registered here, so that the system wakes this worker and no other.
            if let Ok(stream) = TcpStream::from_std(stream) {
                connection.serve(stream).await;
            }
            drop((open, permit));
        };
        self.workers.serve(served, &self.connections);
    }
}

fn try_acquire(permits: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(permits).try_acquire_owned().ok()
}

/// Accepts a connection that is already established: the socket does not block.
fn accept_queued(socket: &net::TcpListener) -> io::Result<(net::TcpStream, SocketAddr)> {
    let accepted = socket.accept()?;
    accepted.0.set_nonblocking(true)?;
    Ok(accepted)
}

/// Whether a connection was closed before it was accepted, which says nothing about the next one.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
