//! What a caller gets back. The only room that knows status codes, and the words that callers read.

mod refusal;

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AGE, ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use self::refusal::Again;
pub use self::refusal::{Denied, Refusal, Unavailable};
use crate::answer::Answer;
use crate::envelope::push_text;
use crate::limit::Limited;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// What is asked of who has no key (RFC 6750, section 3).
pub const BEARER: HeaderValue = HeaderValue::from_static("Bearer realm=\"zvgate\"");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Upstream's word, and how it came.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The word.
    pub answer: Arc<Answer>,
    /// How it came.
    pub way: Way,
}

/// How an answer came, as `Cache-Status` (RFC 9211) tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the cache.
    Hit {
        /// How long ago it came from upstream.
        age: Duration,
        /// How long it is still fresh.
        left: Duration,
    },
    /// From upstream, and kept for so long, if it is.
    Miss(Option<Duration>),
    /// From upstream, by another caller's call.
    Collapsed,
    /// From upstream, because the caller wanted that.
    Requested,
    /// From upstream, on a route that is not cached.
    Bypass,
    /// From the gateway itself, about itself.
    Own,
    /// From the cache, past its freshness (RFC 5861).
    Stale {
        /// How long ago it came from upstream.
        age: Duration,
        /// How long ago its freshness ended.
        past: Duration,
        /// Why it was told all the same.
        why: StaleWhy,
    },
}

/// Why an answer past its freshness was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleWhy {
    /// It is being refreshed.
    Revalidating,
    /// Upstream answered with this status, and it was a failure.
    Answered(u16),
    /// Upstream did not answer.
    Unanswered,
    /// Nothing could be sent.
    Unsent,
}

/// The status of the response.
pub fn status(outcome: &Result<Reply, Refusal>) -> u16 {
    outcome.as_ref().map_or_else(|refusal| refusal.kind().0.as_u16(), |reply| reply.answer.status)
}

/// Writes the response to a request, with its fields in the memory of `fields`, which are over.
pub fn response(outcome: Result<Reply, Refusal>, request_id: HeaderValue, mut fields: HeaderMap) -> Response<Bytes> {
    fields.clear();
    let (status, body) = match outcome {
        Ok(reply) => told(reply, &mut fields),
        Err(refusal) => refused(&refusal, request_id.to_str().unwrap_or_default(), &mut fields),
    };
    fields.insert(X_REQUEST_ID, request_id);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    response
}

/// An answer as the owner of its body on the way out: that its body is read is counted where the answer is, in memory that
/// is at hand, and not once more in memory of the body's own.
struct Owner(Arc<Answer>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0.body
    }
}

fn told(Reply { answer, way }: Reply, headers: &mut HeaderMap) -> (StatusCode, Bytes) {
    if let Some(kept) = &answer.content_type {
        headers.insert(CONTENT_TYPE, kept.value().clone());
    }
    if let Some(rare) = &answer.rare {
        let kept = [(CONTENT_ENCODING, &rare.content_encoding), (RETRY_AFTER, &rare.retry_after)];
        headers.extend(kept.into_iter().filter_map(|(name, kept)| Some((name, kept.clone()?))));
    }
    if let Way::Hit { age, .. } | Way::Stale { age, .. } = way {
        headers.insert(AGE, HeaderValue::from(age.as_secs()));
    }
    if let Some(status) = cache_status(way) {
        headers.insert(CACHE_STATUS, status);
    }
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    (status, Bytes::from_owner(Owner(answer)))
}

/// `Cache-Status` of an answer that upstream gave.
fn cache_status(way: Way) -> Option<HeaderValue> {
    Some(match way {
        Way::Hit { left, .. } => {
            const HIT: &str = "zvgate; hit; ttl=";
            let (seconds, mut digits) = (left.as_secs(), itoa::Buffer::new());
            let digits = digits.format(seconds);
            // Of just the room that it needs, so that it need not move.
            let mut text = String::with_capacity(HIT.len() + digits.len());
            text.push_str(HIT);
            text.push_str(digits);
            owned(text)
        }
        Way::Miss(Some(life)) => value(&format!("zvgate; fwd=miss; stored; ttl={}", life.as_secs())),
        Way::Miss(None) => HeaderValue::from_static("zvgate; fwd=miss"),
        Way::Collapsed => HeaderValue::from_static("zvgate; fwd=miss; collapsed"),
        Way::Requested => HeaderValue::from_static("zvgate; fwd=request"),
        Way::Bypass => HeaderValue::from_static("zvgate; fwd=bypass"),
        Way::Own => return None,
        Way::Stale { past, why, .. } => {
            let ttl = whole_seconds(past);
            value(&match why {
                StaleWhy::Revalidating => format!("zvgate; hit; ttl=-{ttl}; detail=stale-while-revalidate"),
                StaleWhy::Answered(status) => {
                    format!("zvgate; fwd=stale; fwd-status={status}; ttl=-{ttl}; detail=stale-if-error")
                }
                StaleWhy::Unanswered => format!("zvgate; fwd=stale; ttl=-{ttl}; detail=stale-if-error"),
                StaleWhy::Unsent => format!("zvgate; hit; ttl=-{ttl}; detail=stale-if-error"),
            })
        }
    })
}

fn refused(refusal: &Refusal, request_id: &str, headers: &mut HeaderMap) -> (StatusCode, Bytes) {
    let (status, name, error_type) = refusal.kind();
    let mut body = format!("{{\"status\":false,\"code\":990{},\"error\":\"{name}\",\"message\":", status.as_u16());
    push_text(&mut body, &refusal.message());
    body.push_str(",\"requestId\":");
    push_text(&mut body, request_id);
    body.push('}');
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(PROXY_STATUS, value(&format!("zvgate; error={error_type}")));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("POST"));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, BEARER);
    }
    match refusal.again() {
        Again::By(policy, limited) => {
            let pause = whole_seconds(limited.retry_after);
            headers.insert(RETRY_AFTER, HeaderValue::from(pause));
            headers.insert(RATELIMIT_POLICY, value(&policy_text(policy, limited)));
            headers.insert(RATELIMIT, value(&format!("\"{policy}\";r=0;t={pause}")));
        }
        Again::In(pause) => {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(pause)));
        }
        Again::Unknown => {}
    }
    (status, body.into())
}

/// `"upstream";q=10;w=1` (draft-ietf-httpapi-ratelimit-headers-11); the window only where it is whole seconds.
fn policy_text(policy: &str, limited: &Limited) -> String {
    let mut text = format!("\"{policy}\";q={}", limited.quota);
    if limited.per.subsec_nanos() == 0 {
        // Writing to a string cannot fail.
        let _ = write!(text, ";w={}", limited.per.as_secs());
    }
    text
}

/// Rounded up, and at least one: a caller who comes again then must not come too early.
fn whole_seconds(pause: Duration) -> u64 {
    pause.as_secs().saturating_add(u64::from(pause.subsec_nanos() > 0)).max(1)
}

/// The text itself, not a copy of it.
fn owned(text: String) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
