//! One connection: TLS, the protocol, and its end.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::lazy;
use http::header::{CONNECTION, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::coop::unconstrained;
use tokio_rustls::TlsAcceptor;

use super::connection_state::ConnectionState;
use super::drain_body::drain_body;
use super::io_timeouts::IoTimeouts;
use super::streams::{SendProgress, StreamExecutor};
use super::{Bounds, PeerInfo, Rejections};
use crate::gateway::{Capacity, SharedCapacity};

/// How long an idle connection stays open while the process stops, for a request that has already been sent: closing it
/// at once would lose that. The response says that it is the last.
const LINGER: Duration = Duration::from_secs(1);
/// The smallest buffer for request heads that hyper allows.
const MIN_BUFFER: usize = 8 << 10;
/// Requests on an HTTP/2 connection before it is closed gracefully: streams that are cancelled leave something behind
/// in the library for as long as their connection lives.
const MAX_REQUESTS: u64 = 10_000;
/// How long a connection beyond the limit may take to get its rejection.
const REJECT_WITHIN: Duration = Duration::from_secs(1);
/// What callers may send ahead on an HTTP/2 stream, and on all streams of a connection, in bytes: bodies are small.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// A connection, and what it is served with.
pub(super) struct Connection<A> {
    pub(super) peer: PeerInfo,
    pub(super) bounds: Bounds,
    /// Concurrent requests on all HTTP/2 connections.
    pub(super) streams: Arc<Semaphore>,
    /// What is counted of what is no request; `None`: nothing.
    pub(super) rejections: Option<Arc<Rejections>>,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) stop: watch::Receiver<()>,
    pub(super) answer: A,
}

impl<A, F> Connection<A>
where
    A: Fn(Request<Incoming>, PeerInfo) -> F + Clone + Send + 'static,
    F: Future<Output = (Response<Bytes>, Incoming)> + Send + 'static,
{
    /// Serves it to its end. Errors concern only its caller, who sees them.
    pub(super) async fn serve(self, stream: TcpStream) {
        // Responses are written in one piece, so that Nagle's algorithm would only add delay. An error does no harm.
        let _ = stream.set_nodelay(true);
        let header_timeout = match self.peer.capacity {
            Capacity::Available | Capacity::Shared(_) => self.bounds.header_timeout,
            Capacity::Exhausted => self.bounds.header_timeout.min(REJECT_WITHIN),
        };
        let (stream, state) = IoTimeouts::new(stream, header_timeout, self.bounds.idle_timeout);
        match &self.tls {
            None => self.http1(stream, state).await,
            // Boxed, so that connections without TLS need no memory for it.
            Some(config) => {
                let acceptor = TlsAcceptor::from(Arc::clone(config));
                Box::pin(self.tls(acceptor, stream, state)).await;
            }
        }
    }

    /// Serves it by the negotiated protocol (ALPN, RFC 7301).
    async fn tls(self, acceptor: TlsAcceptor, stream: IoTimeouts<TcpStream>, state: Arc<ConnectionState>) {
        match acceptor.accept(stream).await {
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => self.http2(stream, state).await,
            Ok(stream) => self.http1(stream, state).await,
            Err(error) => {
                self.rejections.iter().for_each(|rejections| rejections.handshake(self.peer.address, &error));
            }
        }
    }

    async fn http1(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send, state: Arc<ConnectionState>) {
        let Self { peer, bounds, rejections, mut stop, answer, .. } = self;
        let address = peer.address;
        let mut server = http1::Builder::new();
        // The stream itself has timeouts for heads and idle connections.
        server.header_read_timeout(None).keep_alive(!matches!(peer.capacity, Capacity::Exhausted));
        server.max_buf_size(bounds.max_head.max(MIN_BUFFER)).max_header_size(bounds.max_head);
        server.max_headers(bounds.max_headers);
        let serving = Arc::clone(&state);
        let (counted, service_peer) = (rejections.clone(), peer);
        let service = service_fn(move |request: Request<Incoming>| {
            let permit = serving.begin(None);
            // A body of known length has no transfer coding.
            let has_known_end = request.body().size_hint().exact().is_some() || is_well_framed(request.headers());
            let respond = move |(response, body)| {
                drain_body(body, &permit);
                Ok::<_, Infallible>(permit.respond(response))
            };
            // Combinators, since an `async` block would store the future of the answer twice.
            if has_known_end {
                return answer(request, service_peer.clone()).map(respond).left_future();
            }
            counted.iter().for_each(|rejections| rejections.transfer_coding(service_peer.address));
            let body = request.into_body();
            lazy(move |_| respond((bad_framing(), body))).right_future()
        });
        let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
        let stopping = stop.clone();
        // The waker of a task stays the same: once it is registered, that need not be done again for each request. Only a future that
        // ignores the task's budget is certain to register it.
        let (mut stopped, mut is_registered) = (pin!(unconstrained(stop.changed())), false);
        let stopped = poll_fn(|cx| {
            match std::mem::replace(&mut is_registered, true) && matches!(stopping.has_changed(), Ok(false)) {
                true => Poll::Pending,
                false => stopped.as_mut().poll(cx),
            }
        });
        tokio::select! {
            // First, so that a response that is made now says that it is the last.
            biased;
            _ = stopped => {}
            ended = connection.as_mut() => {
                if let (Err(error), Some(rejections)) = (ended, rejections) {
                    rejections.connection(address, &error, state.begun() == 0, state.is_idle());
                }
                return;
            }
        }
        state.close_after_response();
        let linger = LINGER.min(bounds.drain_timeout / 2);
        if tokio::time::timeout(linger, connection.as_mut()).await.is_err() {
            connection.as_mut().graceful_shutdown();
            connection.await.ok();
        }
    }

    async fn http2(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send, state: Arc<ConnectionState>) {
        let Self { peer, bounds, streams, rejections, mut stop, answer, .. } = self;
        state.multiplex();
        let mut server = http2::Builder::new(StreamExecutor { send_timeout: bounds.idle_timeout });
        server.max_concurrent_streams(bounds.max_streams);
        server.max_header_list_size(u32::try_from(bounds.max_head).unwrap_or(u32::MAX));
        server.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        let serving = Arc::clone(&state);
        let service = service_fn(move |request: Request<Incoming>| {
            let shared = SharedCapacity::new(&streams);
            let capacity = match peer.capacity {
                Capacity::Exhausted => Capacity::Exhausted,
                Capacity::Available | Capacity::Shared(_) => Capacity::Shared(Arc::clone(&shared)),
            };
            let permit = serving.begin(Some(shared));
            if matches!(capacity, Capacity::Exhausted) || serving.begun() >= MAX_REQUESTS {
                serving.shut_down();
            }
            // hyper limits the size of a head, and not the number of its fields.
            let is_too_long = request.headers().len() > bounds.max_headers;
            rejections.iter().filter(|_| is_too_long).for_each(|rejections| rejections.too_many_fields());
            let respond = move |(response, body)| {
                drain_body(body, &permit);
                Ok::<_, Infallible>(permit.respond_in_parts(response, SendProgress::current()))
            };
            if is_too_long {
                let body = request.into_body();
                // Not before it is polled: `SendProgress::current` is that of the stream's own task.
                return lazy(move |_| respond((too_many_fields(), body))).right_future();
            }
            answer(request, PeerInfo { capacity, ..peer }).map(respond).left_future()
        });
        let mut connection = pin!(server.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            _ = stop.changed() => {}
            () = state.shutdown() => {}
            _ = connection.as_mut() => return,
        }
        // GOAWAY carries the last stream that was accepted; no request is lost (RFC 9113, section 6.8).
        connection.as_mut().graceful_shutdown();
        loop {
            tokio::select! {
                _ = connection.as_mut() => return,
                // A caller that does not acknowledge it delays nothing.
                () = tokio::time::sleep(LINGER) => if state.is_idle() { return },
            }
        }
    }
}

/// Whether a body is either of a known length or chunked, which is the only coding that a recipient must know (RFC 9112, section
/// 6.1). hyper also accepts others before it.
fn is_well_framed(headers: &HeaderMap) -> bool {
    // Nearly no request has one.
    if !headers.contains_key(TRANSFER_ENCODING) {
        return true;
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    codings.next().is_none_or(is_chunked) && codings.next().is_none()
}

/// The bare response to a body whose end others may see elsewhere; the connection is closed.
fn bad_framing() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The bare response to a head with too many fields.
fn too_many_fields() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    response
}
