//! One connection: what secures it, what it speaks, and how it ends.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1::{self, Parts};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::phase::Phase;
use super::resumed::Resumed;
use super::seldom::Seldom;
use super::streams::{SendProgress, StreamExecutor};
use super::timed::Timed;
use super::unread::pass_over;
use super::{Bounds, Peer};
use crate::gateway::{Capacity, SharedCapacity};

/// How long an idle connection of HTTP/1.1 stays open in a drain, for a request that is on its way already: closing it
/// at once would lose that. The answer tells that it is the last.
const LINGER: Duration = Duration::from_secs(1);
/// Least room that the library reads heads into.
const LEAST_BUFFER: usize = 8 << 10;
/// Requests that a connection of HTTP/2 carries before it is told to end: streams that are taken back leave something behind
/// in the library for as long as their connection lives.
const REQUESTS_PER_CONNECTION: u64 = 10_000;
/// How long a connection that there is no room for may take to hear so.
const TURN_AWAY_WITHIN: Duration = Duration::from_secs(1);
/// What callers may send ahead on a stream of HTTP/2 and on all of a connection's, in bytes: bodies are small.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// What a connection is served with.
pub(super) struct Connection<A> {
    pub(super) peer: Peer,
    pub(super) bounds: Bounds,
    /// Requests at once, of connections that carry several.
    pub(super) streams: Arc<Semaphore>,
    pub(super) secured: Option<Arc<ServerConfig>>,
    pub(super) stop: CancellationToken,
    pub(super) answer: A,
}

/// Why a connection is not served on for now.
enum Pause {
    /// Nothing was asked for a while.
    Rest,
    /// It is over.
    End,
    /// The process is to end.
    Stop,
}

impl<A, F> Connection<A>
where
    A: Fn(Request<Incoming>, Peer) -> F + Clone + Send + 'static,
    F: Future<Output = (Response<Bytes>, Incoming)> + Send + 'static,
{
    /// Serves it to its end. One that breaks concerns its caller alone, who knows.
    pub(super) async fn serve(self, stream: TcpStream) {
        // Answers are written whole; holding the last packet back would only add delay. Failing to set it does no harm.
        let _ = stream.set_nodelay(true);
        let header_timeout = match self.peer.capacity {
            Capacity::Available | Capacity::Shared(_) => self.bounds.header_timeout,
            Capacity::Exhausted => self.bounds.header_timeout.min(TURN_AWAY_WITHIN),
        };
        let (stream, phase) = Timed::new(stream, header_timeout, self.bounds.idle_timeout);
        match &self.secured {
            None => self.http1(stream, phase).await,
            // Apart, so that connections without TLS need no room for it.
            Some(config) => {
                let acceptor = TlsAcceptor::from(Arc::clone(config));
                Box::pin(self.secured(acceptor, stream, phase)).await;
            }
        }
    }

    /// Serves it by the protocol that was agreed on (ALPN, RFC 7301).
    async fn secured(self, acceptor: TlsAcceptor, stream: Timed<TcpStream>, phase: Arc<Phase>) {
        match acceptor.accept(stream).await {
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => self.http2(stream, phase).await,
            Ok(stream) => self.http1(stream, phase).await,
            Err(error) => tracing::debug!(peer = %self.peer.address, %error, "no TLS connection came about"),
        }
    }

    async fn http1(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send, phase: Arc<Phase>) {
        let Self { peer, bounds, stop, answer, .. } = self;
        let mut server = http1::Builder::new();
        // Heads and idle time are timed by the stream itself, which can tell one from the other.
        server.header_read_timeout(None).keep_alive(!matches!(peer.capacity, Capacity::Exhausted));
        server.max_buf_size(bounds.max_head.max(LEAST_BUFFER)).max_header_size(bounds.max_head);
        server.max_headers(bounds.max_headers);
        let serving = Arc::clone(&phase);
        let mut service = service_fn(move |request| {
            let (in_hand, answer) = (serving.begin(None), answer(request, peer.clone()));
            async move {
                let (response, body) = answer.await;
                pass_over(body, &in_hand).await;
                Ok::<_, Infallible>(in_hand.answered(response))
            }
        });
        let linger = LINGER.min(bounds.drain_timeout / 2);
        let stopped = pin!(stop.cancelled());
        let mut stopped = Seldom::new(stopped);
        let mut stream = Resumed::new(stream);
        loop {
            // Apart, so that a connection at rest has no room for it.
            let mut connection = Box::new(server.serve_connection(TokioIo::new(stream), service));
            let pause = poll_fn(|cx| {
                // First, so that an answer that is made now is told to be the last.
                if Pin::new(&mut stopped).poll(cx).is_ready() {
                    return Poll::Ready(Pause::Stop);
                }
                if Pin::new(&mut *connection).poll(cx).is_ready() {
                    return Poll::Ready(Pause::End);
                }
                if phase.is_at_rest() { Poll::Ready(Pause::Rest) } else { Poll::Pending }
            });
            match pause.await {
                Pause::End => return,
                Pause::Rest => {}
                Pause::Stop => {
                    phase.last_answer();
                    if tokio::time::timeout(linger, &mut *connection).await.is_err() {
                        Pin::new(&mut *connection).graceful_shutdown();
                        connection.await.ok();
                    }
                    return;
                }
            }
            let Parts { io, read_buf, service: resting, .. } = (*connection).into_parts();
            (stream, service) = (io.into_inner(), resting);
            if !read_buf.is_empty() {
                // It came together with what was answered, when nobody could tell it from that.
                phase.hold_head();
                stream.put_back(read_buf);
                continue;
            }
            // Empty, it has room for a head all the same.
            drop(read_buf);
            let come = tokio::select! {
                biased;
                () = &mut stopped => {
                    phase.last_answer();
                    tokio::time::timeout(linger, stream.resume()).await.is_ok_and(|come| come)
                }
                come = stream.resume() => come,
            };
            if !come {
                stream.shutdown().await.ok();
                return;
            }
            if phase.is_last() {
                Box::new(server.serve_connection(TokioIo::new(stream), service)).await.ok();
                return;
            }
        }
    }

    async fn http2(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send, phase: Arc<Phase>) {
        let Self { peer, bounds, streams, stop, answer, .. } = self;
        phase.multiplex();
        let mut server = http2::Builder::new(StreamExecutor { send_timeout: bounds.idle_timeout });
        server.max_concurrent_streams(bounds.max_streams);
        server.max_header_list_size(u32::try_from(bounds.max_head).unwrap_or(u32::MAX));
        server.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        let serving = Arc::clone(&phase);
        let service = service_fn(move |request: Request<Incoming>| {
            let shared = SharedCapacity::new(&streams);
            let capacity = match peer.capacity {
                Capacity::Exhausted => Capacity::Exhausted,
                Capacity::Available | Capacity::Shared(_) => Capacity::Shared(Arc::clone(&shared)),
            };
            let in_hand = serving.begin(Some(shared));
            // A connection that there is no room for hears so once, and ends; so does one that had its share.
            if matches!(capacity, Capacity::Exhausted) || serving.begun() >= REQUESTS_PER_CONNECTION {
                serving.ask_to_end();
            }
            // The library bounds what heads amount to, and does not count.
            let crowded = request.headers().len() > bounds.max_headers;
            let answer =
                if crowded { Err(request.into_body()) } else { Ok(answer(request, Peer { capacity, ..peer })) };
            async move {
                let (response, body) = match answer {
                    Ok(answer) => answer.await,
                    Err(body) => (too_many_fields(), body),
                };
                pass_over(body, &in_hand).await;
                Ok::<_, Infallible>(in_hand.answered_in_parts(response, SendProgress::current()))
            }
        });
        let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            () = stop.cancelled() => {}
            () = phase.asked_to_end() => {}
            _ = connection.as_mut() => return,
        }
        // It tells the caller which requests were taken; none is lost (RFC 9113, section 6.8).
        connection.as_mut().graceful_shutdown();
        loop {
            tokio::select! {
                _ = connection.as_mut() => return,
                // Who does not say that he heard it holds nothing up.
                () = tokio::time::sleep(LINGER) => if phase.is_quiet() { return },
            }
        }
    }
}

/// The bare answer of HTTP to a head with too many fields.
fn too_many_fields() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    response
}
