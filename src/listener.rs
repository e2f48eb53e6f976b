//! Accepts connections, bounds them, and lets them finish.

mod timed;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use prometheus::{IntCounter, IntGauge};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use self::timed::Timed;
use crate::settings::ServerSettings;

/// Connections beyond the limit that are answered with a refusal; further ones are closed.
const TURNED_AWAY_AT_ONCE: usize = 256;
/// Longest head of a request, and most that is read ahead of it.
const MAX_HEAD: usize = 64 << 10;
/// Pause after the system had no descriptor or memory for a connection.
const BREATHER: Duration = Duration::from_millis(100);

/// Bounds of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once.
    pub max_connections: usize,
    /// How long a request's head may take.
    pub header_timeout: Duration,
    /// How long a connection may be idle.
    pub idle_timeout: Duration,
    /// How long what is in hand may take to finish.
    pub drain_timeout: Duration,
}

impl Bounds {
    /// As configured.
    pub fn new(settings: &ServerSettings) -> Self {
        Self {
            max_connections: usize::try_from(settings.max_connections)
                .unwrap_or(Semaphore::MAX_PERMITS)
                .min(Semaphore::MAX_PERMITS),
            header_timeout: settings.header_timeout,
            idle_timeout: settings.idle_timeout,
            drain_timeout: settings.drain_timeout,
        }
    }
}

/// Whether there is room for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// There is.
    Enough,
    /// There is not: its request is to be refused.
    None,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// From where.
    pub address: SocketAddr,
    /// Whether there is room for the connection.
    pub room: Room,
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

/// Serves every connection until `stop`, then finishes what is in hand. Answers whether
/// all was finished in time.
pub async fn serve<A, F>(
    listener: TcpListener,
    bounds: Bounds,
    tally: Option<Tally>,
    stop: CancellationToken,
    answer: A,
) -> bool
where
    A: Fn(Request<Incoming>, Peer) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send + 'static,
{
    let connections = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(bounds.max_connections));
    let turned_away = Arc::new(Semaphore::new(TURNED_AWAY_AT_ONCE));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        let (permit, room) = match (take(&room), take(&turned_away)) {
            (Some(permit), _) => (permit, Room::Enough),
            (None, Some(permit)) => (permit, Room::None),
            (None, None) => {
                tally.iter().for_each(|tally| tally.dropped.inc());
                continue;
            }
        };
        let (stream, phase) = Timed::new(stream_without_delay(stream), bounds.header_timeout, bounds.idle_timeout);
        let answer = answer.clone();
        let service = service_fn(move |request| phase.serving(answer(request, Peer { address, room })));
        let mut server = http1::Builder::new();
        // Heads and idle time are timed by the stream itself, which can tell one from the other.
        server.header_read_timeout(None).keep_alive(room == Room::Enough).max_buf_size(MAX_HEAD);
        let connection = connections.watch(server.serve_connection(TokioIo::new(stream), service));
        let open = Open::new(tally.as_ref().map(|tally| &tally.open));
        tokio::spawn(async move {
            // A connection that breaks concerns its caller alone, who knows.
            connection.await.ok();
            drop((open, permit));
        });
    }
    drop(listener);
    tokio::time::timeout(bounds.drain_timeout, connections.shutdown()).await.is_ok()
}

fn take(permits: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(permits).try_acquire_owned().ok()
}

fn stream_without_delay(stream: TcpStream) -> TcpStream {
    // Answers are written whole; holding the last packet back would only add delay. Failing to set it does no harm.
    let _ = stream.set_nodelay(true);
    stream
}

/// A connection that was gone before it was accepted concerns nobody; without descriptors or memory, wait for some.
async fn pause_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) {
        tracing::warn!(%error, "no connection can be accepted");
        tokio::time::sleep(BREATHER).await;
    }
}
