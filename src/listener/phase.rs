//! Where a connection is between its requests, as its stream and the requests on it tell each other.

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

/// Where a connection is between its requests; shared by the stream and the requests on it.
#[derive(Debug, Default)]
pub(super) struct Phase {
    /// Requests that have begun.
    begun: AtomicU64,
    /// Requests that have an answer, or whose caller took them back.
    answered: AtomicU64,
    /// Parts of answers that were taken to be sent, where there are several.
    parts: AtomicU64,
    /// Requests that are over: the answer was taken to be sent, or its caller left.
    ended: AtomicU64,
    /// Whether the next answer is to tell that it is the connection's last.
    last: AtomicBool,
    /// Whether nothing was asked for a while.
    at_rest: AtomicBool,
    /// After how many requests the beginning of the next head is held, if it is; one more than that.
    held_after: AtomicU64,
    /// Whether it carries several requests at once, and other things between them.
    multiplexed: AtomicBool,
    /// Told when a connection that carries several shall end: it can say so before.
    end: Notify,
}

impl Phase {
    /// Marks a request as in hand until what is answered goes.
    pub(super) fn begin(self: &Arc<Self>, capacity: Option<Arc<SharedCapacity>>) -> InHand {
        self.begun.fetch_add(1, Ordering::Relaxed);
        InHand { phase: Arc::clone(self), answered: false, _capacity: capacity }
    }

    /// From now on an answer is the connection's last.
    pub(super) fn last_answer(&self) {
        self.last.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_last(&self) -> bool {
        self.last.load(Ordering::Relaxed)
    }

    /// Nothing was asked for a while, or something comes again: the connection need not be held ready for it meanwhile.
    pub(super) fn rest(&self, at_rest: bool) {
        self.at_rest.store(at_rest, Ordering::Relaxed);
    }

    /// The beginning of the next head is there already: it came together with a request before it.
    pub(super) fn hold_head(&self) {
        self.held_after.store(self.begun() + 1, Ordering::Relaxed);
        self.rest(false);
    }

    pub(super) fn is_at_rest(&self) -> bool {
        self.at_rest.load(Ordering::Relaxed)
    }

    /// The connection carries several requests at once, and other things between them.
    pub(super) fn multiplex(&self) {
        self.multiplexed.store(true, Ordering::Relaxed);
    }

    /// Asks a connection that carries several requests to end: it was idle for too long, or had its share.
    pub(super) fn ask_to_end(&self) {
        self.end.notify_one();
    }

    /// Ready once it was asked to.
    pub(super) async fn asked_to_end(&self) {
        self.end.notified().await;
    }

    /// Requests that have begun.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether no request is in hand.
    pub(super) fn is_quiet(&self) -> bool {
        self.begun.load(Ordering::Relaxed) == self.ended.load(Ordering::Relaxed)
    }

    pub(super) fn is_multiplexed(&self) -> bool {
        self.multiplexed.load(Ordering::Relaxed)
    }

    /// Grows with whatever happens to requests.
    pub(super) fn moves(&self) -> u64 {
        let all = [&self.begun, &self.answered, &self.parts, &self.ended];
        all.into_iter().map(|count| count.load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
    }

    pub(super) fn stage(&self, head_begun: bool) -> Stage {
        let begun = self.begun.load(Ordering::Relaxed);
        let head_begun = head_begun || self.held_after.load(Ordering::Relaxed) == begun + 1;
        if !self.is_quiet() {
            Stage::Serving
        } else if begun == 0 || (head_begun && !self.is_multiplexed()) {
            Stage::Head(begun)
        } else {
            Stage::Idle(begun)
        }
    }
}

/// A request in hand; over when this goes.
#[derive(Debug)]
pub(super) struct InHand {
    phase: Arc<Phase>,
    answered: bool,
    /// Given back when the response was sent.
    _capacity: Option<Arc<SharedCapacity>>,
}

impl InHand {
    /// The same connection has something else in hand.
    pub(super) fn another(&self) -> Self {
        self.phase.begin(None)
    }

    /// The answer: as long as it waits to be sent, the request is in hand.
    pub(super) fn answered(self, answer: Response<Bytes>) -> Response<Leaving> {
        self.leaving(answer, None)
    }

    /// The answer, sent in parts whose progress is recorded.
    pub(super) fn answered_in_parts(self, answer: Response<Bytes>, progress: Arc<SendProgress>) -> Response<Leaving> {
        progress.advance();
        self.leaving(answer, Some(progress))
    }

    fn leaving(mut self, mut answer: Response<Bytes>, progress: Option<Arc<SendProgress>>) -> Response<Leaving> {
        self.answered = true;
        self.phase.answered.fetch_add(1, Ordering::Relaxed);
        if self.phase.is_last() {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer.map(|rest| Leaving { is_long: rest.len() > PART, rest, progress, in_hand: self })
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        if !self.answered {
            self.phase.answered.fetch_add(1, Ordering::Relaxed);
        }
        self.phase.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// An answer's body on its way out.
#[derive(Debug)]
pub(super) struct Leaving {
    rest: Bytes,
    /// Whether it takes more than one part.
    is_long: bool,
    /// `None`: it is sent as one part.
    progress: Option<Arc<SendProgress>>,
    in_hand: InHand,
}

/// How much of an answer is handed over at once on a stream of HTTP/2.
const PART: usize = 16 << 10;

impl Body for Leaving {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        self.in_hand.phase.parts.fetch_add(1, Ordering::Relaxed);
        let Some(progress) = &self.progress else {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.rest)))));
        };
        progress.advance();
        let length = PART.min(self.rest.len());
        let part = self.rest.split_to(length);
        // A part of a long answer that is never taken must not keep the whole of it in memory.
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

/// What a connection waits for, and after how many requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The rest of a head; before the first request, all of it.
    Head(u64),
    /// The next request.
    Idle(u64),
    /// Nothing: a request is being answered, and has its own time.
    Serving,
}
