//! One request and its answer on a connection.

use std::error::Error;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AGE, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, DATE, HOST, HeaderName,
    RETRY_AFTER, TRANSFER_ENCODING, USER_AGENT,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming};

use super::error::{AttemptError, ExchangeError};
use super::http1::Http1Connection;
use super::pool::Pool;
use crate::answer::Answer;
use crate::clock::Wall;
use crate::settings::BaseUrl;
use crate::signer::SignedRequest;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const IDENTITY: HeaderValue = HeaderValue::from_static("identity");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("zvgate/", env!("CARGO_PKG_VERSION")));
/// Bytes that may come before the head of an answer is complete: more are a flood of interim responses, or an endless head.
const MAX_BEFORE_ANSWER: u64 = 256 << 10;
/// Frames of a body that are read before others may run; nearly every answer has fewer.
const FRAMES_AT_ONCE: u32 = 16;
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// An answer, with what callers do not get of it.
#[derive(Clone, Debug)]
pub struct Exchanged {
    /// The answer.
    pub answer: Answer,
    /// The platform's clock as it answered; `None` if it did not say, or a cache on the way answered.
    pub date: Option<Wall>,
}

/// What all requests to the platform have in common.
#[derive(Debug)]
pub(super) struct Target {
    /// `Host`, if the address can be written as one.
    host: Option<HeaderValue>,
    path_prefix: String,
    max_response: usize,
}

impl Target {
    pub(super) fn new(base_url: &BaseUrl, max_response: usize) -> Self {
        let host = HeaderValue::from_str(base_url.authority()).ok();
        Self { host, path_prefix: base_url.path().to_owned(), max_response }
    }

    /// Only these headers are sent, whatever the caller sent.
    fn request(&self, signed: &SignedRequest) -> Option<Request<Full<Bytes>>> {
        let body = signed.body().clone();
        let length = HeaderValue::from(body.len());
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::try_from([&self.path_prefix, signed.path()].concat()).ok()?;
        *request.headers_mut() = HeaderMap::from_iter([
            (HOST, self.host.clone()?),
            (CONTENT_TYPE, JSON),
            (CONTENT_LENGTH, length),
            (ACCEPT, JSON),
            (ACCEPT_ENCODING, IDENTITY),
            (USER_AGENT, AGENT),
        ]);
        Some(request)
    }
}

/// A connection that is about to carry one request.
#[derive(Debug)]
pub struct Connection {
    http1: Http1Connection,
    /// Where it is kept afterwards; `None`: it is closed.
    pool: Option<Arc<Pool>>,
    reused: bool,
    target: Arc<Target>,
}

impl Connection {
    pub(super) fn new(http1: Http1Connection, reused: bool, pool: Option<Arc<Pool>>, target: &Arc<Target>) -> Self {
        Self { http1, pool, reused, target: Arc::clone(target) }
    }

    /// Whether it was idle before.
    pub const fn is_reused(&self) -> bool {
        self.reused
    }

    /// Sends a signed request and reads its complete answer `within` a time. Calls `on_sent` each time that bytes of it were
    /// sent, and `on_answer` when the answer begins.
    ///
    /// # Errors
    /// If no complete and usable answer came. Nothing is retried here.
    pub async fn exchange(
        mut self,
        request: &SignedRequest,
        within: Duration,
        on_sent: impl Fn(),
        on_answer: impl Fn(),
    ) -> Result<Exchanged, ExchangeError> {
        let (counter, reused) = (Arc::clone(self.http1.counter()), self.reused);
        let (before, received) = (counter.accepted(), counter.received());
        let mut reported = before;
        let outcome = if within.is_zero() {
            Err(AttemptError::Timeout)
        } else {
            let exchange = pin!(async {
                let response = self.send(request, &mut reported, &on_sent).await?;
                if counter.accepted() == before {
                    // What comes before anything was sent answers nothing.
                    return Err(AttemptError::NotHttp(None));
                }
                on_answer();
                self.receive(response).await.map_err(|error| match error {
                    AttemptError::Reset(error) => AttemptError::Incomplete(error),
                    error => error,
                })
            });
            tokio::time::timeout(within, exchange).await.unwrap_or(Err(AttemptError::Timeout))
        };
        outcome.map_err(|error| {
            // Nobody drives the connection any more: what was accepted until now is all that is ever sent.
            let accepted = counter.accepted();
            if accepted > reported {
                on_sent();
            }
            ExchangeError { error, sent: accepted > before, reused, answering: counter.received() > received }
        })
    }

    async fn send(
        &mut self,
        request: &SignedRequest,
        reported: &mut u64,
        on_sent: &impl Fn(),
    ) -> Result<Response<Incoming>, AttemptError> {
        let request = self.target.request(request).ok_or(AttemptError::NotHttp(None))?;
        let received = self.http1.counter().received();
        let mut response = pin!(self.http1.send(request));
        poll_fn(|cx| {
            // First, as this is what receives the answer.
            let is_closed = self.http1.drive(cx).is_ready();
            let flushed = self.http1.counter().flushed();
            if flushed > *reported {
                *reported = flushed;
                on_sent();
            }
            match response.as_mut().poll(cx) {
                Poll::Ready(response) => Poll::Ready(response.map_err(classify)),
                Poll::Pending if is_closed => Poll::Ready(Err(AttemptError::Reset(None))),
                // Interim responses have no end of their own (RFC 9110, section 15.2).
                Poll::Pending if self.http1.counter().received() - received > MAX_BEFORE_ANSWER => {
                    Poll::Ready(Err(AttemptError::NotHttp(None)))
                }
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    async fn receive(mut self, response: Response<Incoming>) -> Result<Exchanged, AttemptError> {
        let (head, body) = response.into_parts();
        if head.status.is_redirection() {
            return Err(AttemptError::Redirect(head.status.as_u16()));
        }
        if head.status.is_informational() {
            // Switching protocols, which was not asked for, is no answer.
            return Err(AttemptError::NotHttp(None));
        }
        // No other coding was offered (RFC 9112, section 6.1): nobody knows where such an answer ends.
        let codings = head.headers.get_all(TRANSFER_ENCODING);
        if !codings.iter().all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
            return Err(AttemptError::TransferCoding(None));
        }
        let body = self.read(body).await?;
        let says_close = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"close");
        // Others on the way may read two lengths differently (RFC 9112, section 6.3).
        let has_two_lengths = codings.iter().next().is_some() && head.headers.contains_key(CONTENT_LENGTH);
        let closes = has_two_lengths || head.headers.get(CONNECTION).is_some_and(says_close);
        match self.pool.take().filter(|_| !closes && head.version == http::Version::HTTP_11) {
            Some(pool) => pool.put(self.http1, keep_alive_hint(&head.headers)),
            None => self.http1.close(),
        }
        let headers = [CONTENT_TYPE, CONTENT_ENCODING, RETRY_AFTER].map(|name| head.headers.get(name));
        let answer = Answer::received(head.status.as_u16(), headers, body);
        Ok(Exchanged { answer, date: date(&head.headers) })
    }

    /// Reads a body into one allocation of its size.
    async fn read(&mut self, mut body: Incoming) -> Result<Box<[u8]>, AttemptError> {
        let max = self.target.max_response;
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if announced > max {
            return Err(AttemptError::Oversized);
        }
        let (mut whole, mut frames) = (Vec::with_capacity(announced), 0u32);
        while let Some(frame) = poll_fn(|cx| self.poll_frame(&mut body, cx)).await? {
            frames += 1;
            if frames.is_multiple_of(FRAMES_AT_ONCE) {
                // Many small frames delay neither other requests of this worker nor the timeout.
                tokio::task::consume_budget().await;
            }
            let Some(data) = frame.data_ref() else { continue };
            if whole.len() + data.len() > max {
                return Err(AttemptError::Oversized);
            }
            whole.extend_from_slice(data);
        }
        Ok(whole.into_boxed_slice())
    }

    /// The next frame of a body; `None` at its end.
    fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame<Bytes>>, AttemptError>> {
        let mut next = Pin::new(&mut *body).poll_frame(cx);
        if next.is_pending() {
            // Once it was polled, driving the connection receives it.
            let is_closed = self.http1.drive(cx).is_ready();
            next = Pin::new(body).poll_frame(cx);
            if next.is_pending() && is_closed {
                return Poll::Ready(Err(AttemptError::Reset(None)));
            }
        }
        next.map(|frame| frame.transpose().map_err(classify))
    }
}

/// `Date`, unless `Age` says that a cache answered.
fn date(headers: &HeaderMap) -> Option<Wall> {
    Wall::from_http_date(headers.get(DATE).filter(|_| !headers.contains_key(AGE))?.to_str().ok()?)
}

fn classify(error: hyper::Error) -> AttemptError {
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    let is_invalid = |error: &io::Error| matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::InvalidData);
    let is_tls = |error: &io::Error| error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()).is_some();
    match error.is_parse() {
        true => AttemptError::NotHttp(Some(error)),
        // hyper reports invalid chunks so.
        false if source.is_some_and(|error| is_invalid(error) && !is_tls(error)) => {
            AttemptError::TransferCoding(Some(error))
        }
        false => AttemptError::Reset(Some(error)),
    }
}

/// `Keep-Alive: timeout=5`: how long the platform keeps an idle connection.
fn keep_alive_hint(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(KEEP_ALIVE)?.to_str().ok()?;
    let parameters = value.split(',').filter_map(|part| part.split_once('='));
    let (_, timeout) = parameters.into_iter().find(|(name, _)| name.trim().eq_ignore_ascii_case("timeout"))?;
    timeout.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests;
