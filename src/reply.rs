//! Responses to callers: answers, headers, gateway errors.

mod error;
mod problem;
mod typed;

use std::fmt::Write;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    AGE, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use self::error::RetryAfter;
pub use self::error::{Denied, GatewayError, OverCapacity};
use self::problem::PROBLEM_JSON;
pub use self::problem::Problem;
pub use self::typed::{CouponsView, Shape, TypedReply};
use crate::answer::Answer;
use crate::cache::{Deadline, Freshness, Hit, SharedAnswer, StaleHit};
use crate::clock::Now;
use crate::envelope::push_text;
use crate::limit::Limited;
use crate::upstream::Effect;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_ZVGATE_OUTCOME: HeaderName = HeaderName::from_static("x-zvgate-outcome");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// The challenge for callers without a key (RFC 6750, section 3).
pub const BEARER: HeaderValue = HeaderValue::from_static("Bearer realm=\"zvgate\"");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer, and how it was obtained.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The answer.
    pub answer: SharedAnswer,
    /// How it was obtained.
    pub cache_status: CacheStatus,
    /// What a write did; `None` for other requests.
    pub effect: Option<Effect>,
    /// Until when it may be served.
    pub end: Deadline,
    /// What came of the requests that it is made of, if those are several.
    pub batch: Option<Box<BatchSummary>>,
}

/// What came of the requests of a batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchSummary {
    /// Whether one of them waited for the platform.
    pub has_waited: bool,
    /// How many failed.
    pub failed: usize,
    /// The name of the first error.
    pub error: Option<&'static str>,
    /// What failed towards the platform.
    pub reason: Option<&'static str>,
}

impl Reply {
    /// An answer that was obtained in this way.
    pub const fn new(answer: SharedAnswer, cache_status: CacheStatus, effect: Option<Effect>, end: Deadline) -> Self {
        Self { answer, cache_status, effect, end, batch: None }
    }

    /// JSON of the gateway's own.
    pub fn own(json: String) -> Self {
        Self::new(Answer::json(json).into(), CacheStatus::None, None, Deadline::NEVER)
    }

    /// How old the answer is, if it is from the cache.
    pub const fn age(&self) -> Duration {
        match self.cache_status {
            CacheStatus::Hit { age, .. } | CacheStatus::Stale { age, .. } => age,
            _ => Duration::ZERO,
        }
    }

    /// A fresh answer from the cache.
    pub fn hit(hit: Hit, now: Now) -> Self {
        let (freshness, remaining) = (*hit.freshness(), hit.remaining);
        let cache_status = CacheStatus::Hit { age: freshness.age(now), remaining, is_shared: false };
        Self::new(hit.answer(), cache_status, None, freshness.end())
    }

    /// An answer that another replica had fetched; `None` if it must not be served any more.
    pub fn shared(answer: SharedAnswer, freshness: &Freshness, now: Now) -> Option<Self> {
        let cache_status = match freshness.remaining(now) {
            Some(remaining) => CacheStatus::Hit { age: freshness.age(now), remaining, is_shared: true },
            None if freshness.has_ended(now) => return None,
            None => CacheStatus::Collapsed,
        };
        Some(Self::new(answer, cache_status, None, freshness.end()))
    }

    /// A stale answer from the cache.
    pub fn stale(hit: StaleHit, reason: StaleReason, now: Now) -> Self {
        let ttl = hit
            .freshness()
            .remaining(now)
            .map_or_else(|| -seconds(whole_seconds(hit.stale.past)), |left| seconds(left.as_secs()));
        let (age, end) = (hit.freshness().age(now), hit.freshness().end());
        Self::new(hit.answer(), CacheStatus::Stale { age, ttl, reason }, None, end)
    }
}

impl Effect {
    /// Its name in `X-Zvgate-Outcome` and the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Executed => "executed",
            Self::Refused | Self::Throttled => "refused",
            Self::NotSent => "not-sent",
            Self::Unknown => "unknown",
        }
    }
}

/// What a write did, by its result.
pub fn effect(result: &Result<Reply, GatewayError>) -> Effect {
    match result {
        Ok(reply) => reply.effect.unwrap_or(Effect::Unknown),
        Err(GatewayError::OutcomeUnknown(_)) => Effect::Unknown,
        Err(_) => Effect::NotSent,
    }
}

/// How an answer was obtained, for `Cache-Status` (RFC 9211).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheStatus {
    /// From the cache.
    Hit {
        /// How long ago it was received.
        age: Duration,
        /// How long it is still fresh.
        remaining: Duration,
        /// Whether another replica had fetched it, and this one did not have it in memory.
        is_shared: bool,
    },
    /// From the platform.
    Miss {
        /// The lifetime with which it was stored, if it was.
        stored_for: Option<Duration>,
        /// Whether it was stored as a success.
        is_success: bool,
    },
    /// From the platform, by another caller's fetch.
    Collapsed,
    /// From the platform, because the caller asked for that.
    Requested,
    /// From the platform, on a route that is not cached.
    Bypass,
    /// From the gateway itself: no `Cache-Status`.
    None,
    /// From the cache, stale (RFC 5861).
    Stale {
        /// How long ago it was received.
        age: Duration,
        /// For how many seconds it is still fresh; negative: how long ago that ended.
        ttl: i64,
        /// Why it was served.
        reason: StaleReason,
    },
}

/// Why a stale answer was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StaleReason {
    /// It is being refreshed.
    Revalidating,
    /// The platform answered with this status, and it was a failure.
    Answered(u16),
    /// The platform did not answer.
    NoAnswer,
    /// Nothing was sent.
    NothingSent,
}

/// The status of the response.
pub fn status(result: &Result<Reply, GatewayError>) -> u16 {
    result.as_ref().map_or_else(|error| error.kind().0.as_u16(), |reply| reply.answer.status)
}

/// The response to a request, which was for a write or not, in its shape; `typed` is the typed form of the reply, if that is wanted.
/// Its headers use the memory of `headers`, which are those of the request.
pub fn response(
    result: Result<Reply, GatewayError>,
    typed: Option<TypedReply>,
    shape: &Shape,
    is_write: bool,
    request_id: HeaderValue,
    mut headers: HeaderMap,
) -> Response<Bytes> {
    headers.clear();
    if is_write {
        headers.insert(X_ZVGATE_OUTCOME, HeaderValue::from_static(effect(&result).name()));
    }
    let id = || request_id.to_str().unwrap_or_default();
    if let Ok(reply) = &result {
        write_cache_status(reply, &mut headers);
    }
    let (status, body) = match (result, typed) {
        (Ok(_), Some(typed)) => typed.write(id(), &mut headers),
        (Ok(reply), None) => write_answer(reply.answer, &mut headers),
        (Err(error), _) => write_error(&error, shape, id(), &mut headers),
    };
    headers.insert(X_REQUEST_ID, request_id);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// An answer as the owner of a body that is being sent: the body needs no reference count of its own.
struct Owner(SharedAnswer);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0.body
    }
}

/// A header value that ends with a number of seconds. Values up to an hour are created once and never freed, so that cloning one needs no
/// reference count.
struct SecondsHeader {
    prefix: &'static str,
    cached: [OnceLock<HeaderValue>; 3601],
}

impl SecondsHeader {
    const fn new(prefix: &'static str) -> Self {
        Self { prefix, cached: [const { OnceLock::new() }; 3601] }
    }

    fn of(&self, span: Duration) -> HeaderValue {
        let text = || format!("{}{}", self.prefix, span.as_secs());
        let cached = usize::try_from(span.as_secs()).ok().and_then(|index| self.cached.get(index));
        let create = || HeaderValue::from_static(text().leak());
        cached.map_or_else(|| value(&text()), |value| value.get_or_init(create).clone())
    }
}

static AGES: SecondsHeader = SecondsHeader::new("");
static HITS: SecondsHeader = SecondsHeader::new("zvgate; hit; ttl=");

fn write_cache_status(reply: &Reply, headers: &mut HeaderMap) {
    if let CacheStatus::Hit { age, .. } | CacheStatus::Stale { age, .. } = reply.cache_status {
        headers.insert(AGE, AGES.of(age));
    }
    if let Some(text) = cache_status_text(reply.cache_status) {
        headers.insert(CACHE_STATUS, text);
    }
}

fn write_answer(answer: SharedAnswer, headers: &mut HeaderMap) -> (StatusCode, Bytes) {
    if let Some(content_type) = answer.content_type() {
        headers.insert(CONTENT_TYPE, content_type.clone());
    }
    if let Some(content_encoding) = answer.content_encoding() {
        headers.insert(CONTENT_ENCODING, content_encoding.clone());
    }
    if let Some(retry_after) = answer.retry_after() {
        headers.insert(RETRY_AFTER, retry_after.clone());
    }
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    (status, Bytes::from_owner(Owner(answer)))
}

fn cache_status_text(cache_status: CacheStatus) -> Option<HeaderValue> {
    Some(match cache_status {
        CacheStatus::Hit { remaining, is_shared: true, .. } => {
            value(&format!("zvgate; hit; ttl={}; detail=shared", remaining.as_secs()))
        }
        CacheStatus::Hit { remaining, .. } => HITS.of(remaining),
        CacheStatus::Miss { stored_for: Some(lifetime), .. } => {
            value(&format!("zvgate; fwd=miss; stored; ttl={}", lifetime.as_secs()))
        }
        CacheStatus::Miss { stored_for: None, .. } => HeaderValue::from_static("zvgate; fwd=miss"),
        CacheStatus::Collapsed => HeaderValue::from_static("zvgate; fwd=miss; collapsed"),
        CacheStatus::Requested => HeaderValue::from_static("zvgate; fwd=request"),
        CacheStatus::Bypass => HeaderValue::from_static("zvgate; fwd=bypass"),
        CacheStatus::None => return None,
        CacheStatus::Stale { ttl, reason, .. } => value(&match reason {
            StaleReason::Revalidating => format!("zvgate; hit; ttl={ttl}; detail=stale-while-revalidate"),
            StaleReason::Answered(status) => {
                format!("zvgate; fwd=stale; fwd-status={status}; ttl={ttl}; detail=stale-if-error")
            }
            StaleReason::NoAnswer => format!("zvgate; fwd=stale; ttl={ttl}; detail=stale-if-error"),
            StaleReason::NothingSent => format!("zvgate; hit; ttl={ttl}; detail=stale-if-error"),
        }),
    })
}

fn write_error(error: &GatewayError, shape: &Shape, request_id: &str, headers: &mut HeaderMap) -> (StatusCode, Bytes) {
    let (status, name, error_type) = error.kind();
    let (content_type, body) = match shape {
        Shape::Platform => {
            let mut body =
                format!("{{\"status\":false,\"code\":990{},\"error\":\"{name}\",\"message\":", status.as_u16());
            push_text(&mut body, &error.message());
            body.push_str(",\"requestId\":");
            push_text(&mut body, request_id);
            body.push('}');
            (JSON, body)
        }
        Shape::Own | Shape::Coupons(_) => {
            // Some errors may be cached otherwise, in answer to a GET (RFC 9110, section 15.1).
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            (PROBLEM_JSON, Problem::from(error).json(request_id))
        }
    };
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(PROXY_STATUS, value(&format!("zvgate; error={error_type}")));
    if let GatewayError::MethodNotAllowed(allowed) = error {
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, BEARER);
    }
    match error.retry_after() {
        RetryAfter::Limit(policy, limited) => {
            let pause = whole_seconds(limited.retry_after);
            headers.insert(RETRY_AFTER, HeaderValue::from(pause));
            headers.insert(RATELIMIT_POLICY, value(&policy_text(policy, limited)));
            headers.insert(RATELIMIT, value(&format!("\"{policy}\";r=0;t={pause}")));
        }
        RetryAfter::In(pause) => {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(pause)));
        }
        RetryAfter::Unknown => {}
    }
    (status, body.into())
}

/// `"upstream";q=10;w=1` (draft-ietf-httpapi-ratelimit-headers-11); the window only if it is whole seconds.
fn policy_text(policy: &str, limited: &Limited) -> String {
    let mut text = format!("\"{policy}\";q={}", limited.quota);
    if limited.per.subsec_nanos() == 0 {
        // Writing to a string cannot fail.
        let _ = write!(text, ";w={}", limited.per.as_secs());
    }
    text
}

/// Rounded up, and at least one, so that a retry does not come too early.
fn whole_seconds(pause: Duration) -> u64 {
    pause.as_secs().saturating_add(u64::from(pause.subsec_nanos() > 0)).max(1)
}

fn seconds(whole: u64) -> i64 {
    i64::try_from(whole).unwrap_or(i64::MAX)
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
