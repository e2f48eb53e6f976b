//! The requests of a connection, as its IO and its service report them to each other.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

use super::streams::SendProgress;
use crate::gateway::SharedCapacity;

/// How much of a response is handed to HTTP/2 at once.
const PART: usize = 16 << 10;

/// The requests of a connection.
#[derive(Debug, Default)]
pub(super) struct ConnectionState {
    /// Requests that have begun.
    begun: AtomicU64,
    /// Requests that have ended: the response was handed over to be sent, or the caller gave up.
    ended: AtomicU64,
    /// Whether the next response closes the connection.
    is_closing: AtomicBool,
    /// Whether several requests may be in progress at once (HTTP/2).
    is_multiplexed: AtomicBool,
    /// Notified when an HTTP/2 connection shall be closed gracefully.
    shutdown: Notify,
}

impl ConnectionState {
    /// Begins a request, which ends when the permit is dropped.
    pub(super) fn begin(self: &Arc<Self>, capacity: Option<Arc<SharedCapacity>>) -> RequestPermit {
        self.begun.fetch_add(1, Ordering::Relaxed);
        RequestPermit { state: Arc::clone(self), _capacity: capacity }
    }

    /// From now on a response closes the connection.
    pub(super) fn close_after_response(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
    }

    /// The connection is one of HTTP/2.
    pub(super) fn multiplex(&self) {
        self.is_multiplexed.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_multiplexed(&self) -> bool {
        self.is_multiplexed.load(Ordering::Relaxed)
    }

    /// Asks for an HTTP/2 connection to be closed gracefully.
    pub(super) fn shut_down(&self) {
        self.shutdown.notify_one();
    }

    /// Waits until that is asked for.
    pub(super) async fn shutdown(&self) {
        self.shutdown.notified().await;
    }

    /// The number of requests that have begun.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether no request is in progress.
    pub(super) fn is_idle(&self) -> bool {
        self.begun() == self.ended.load(Ordering::Relaxed)
    }
}

/// A request in progress; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct RequestPermit {
    state: Arc<ConnectionState>,
    /// Given back when the response was sent.
    _capacity: Option<Arc<SharedCapacity>>,
}

impl RequestPermit {
    /// Keeps the connection busy with something else beside the request.
    pub(super) fn another(&self) -> Self {
        self.state.begin(None)
    }

    /// The response: while it waits to be sent, the request is in progress.
    pub(super) fn respond(self, mut response: Response<Bytes>) -> Response<ResponseBody> {
        if self.state.is_closing.load(Ordering::Relaxed) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response.map(|rest| ResponseBody { is_long: false, rest, progress: None, _permit: self })
    }

    /// The response on a stream of HTTP/2, which is sent in parts whose progress is recorded.
    pub(super) fn respond_in_parts(
        self,
        response: Response<Bytes>,
        progress: Arc<SendProgress>,
    ) -> Response<ResponseBody> {
        progress.advance();
        let progress = Some(progress);
        response.map(|rest| ResponseBody { is_long: rest.len() > PART, rest, progress, _permit: self })
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.state.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// The body of a response that is being sent.
#[derive(Debug)]
pub(super) struct ResponseBody {
    rest: Bytes,
    /// Whether it has more than one part.
    is_long: bool,
    /// `None`: it is sent as one part.
    progress: Option<Arc<SendProgress>>,
    _permit: RequestPermit,
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let Some(progress) = &self.progress else {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.rest)))));
        };
        progress.advance();
        let length = PART.min(self.rest.len());
        let part = self.rest.split_to(length);
        // A part of a long response that is never taken must not keep all of it in memory.
        let part = if self.is_long { Bytes::copy_from_slice(&part) } else { part };
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
