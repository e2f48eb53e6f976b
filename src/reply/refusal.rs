//! Why the gateway answers in upstream's place: statuses, names and words.

use std::time::Duration;

use http::StatusCode;

use crate::envelope::Refused;
use crate::limit::Limited;
use crate::tenant::NoTenant;
use crate::upstream::{Failure, FailureKind, Rejected};

/// When to come again where nobody knows better.
const SOON: Duration = Duration::from_secs(1);

/// Why the gateway answers in upstream's place.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// The body was refused.
    Body(Refused),
    /// Something else in the request makes no sense; the text says what would.
    BadRequest(&'static str),
    /// No tenant fits.
    UnknownTenant(NoTenant),
    /// The caller has no key, or an unknown one.
    Unauthenticated,
    /// The caller may not do this.
    Forbidden(Denied),
    /// The request is for a host that is not this one.
    WrongHost,
    /// No such route.
    UnknownRoute,
    /// Not a POST.
    MethodNotAllowed,
    /// The body came too slowly, or stopped.
    TooSlow,
    /// The body is longer than so many bytes.
    BodyTooLarge(u64),
    /// Not JSON.
    UnsupportedMediaType,
    /// The caller is over its limit.
    CallerLimited(Limited),
    /// Upstream's turn is too far off.
    UpstreamLimited(Limited),
    /// Upstream gave no answer that can be used.
    UpstreamFailed(FailureKind),
    /// There is no room.
    Unavailable(Unavailable),
    /// Out of time.
    UpstreamTimeout,
    /// The caller wanted it from the cache, and it is not there.
    NotCached,
    /// A write left, and no answer came.
    OutcomeUnknown(FailureKind),
}

/// What a caller may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Use this route.
    Route,
    /// Use this tenant.
    Tenant,
    /// Tell of changes made elsewhere.
    Invalidate,
    /// Ask from a web page.
    Page,
}

/// What there is no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// Connections.
    Connections,
    /// Callers waiting for the same call.
    Waiters,
    /// Calls upstream.
    Upstream(Rejected),
    /// Anything: the gateway is stopping, or lost a task.
    Stopping,
}

impl Refusal {
    /// A read without an answer.
    pub const fn of_read(failure: Failure) -> Self {
        match failure.kind {
            FailureKind::Timeout => Self::UpstreamTimeout,
            kind => Self::UpstreamFailed(kind),
        }
    }

    /// A call that was not sent, as upstream is not to be asked.
    pub const fn rejected(rejected: Rejected) -> Self {
        Self::Unavailable(Unavailable::Upstream(rejected))
    }

    /// A write without an answer: where a byte of it left, nobody knows whether it took effect.
    pub const fn of_write(failure: Failure) -> Self {
        if failure.left { Self::OutcomeUnknown(failure.kind) } else { Self::of_read(failure) }
    }

    /// Status, name, and error type of RFC 9209.
    pub(super) fn kind(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Body(_) | Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad_request", "http_request_error"),
            Self::UnknownTenant(_) => (StatusCode::BAD_REQUEST, "unknown_tenant", "http_request_error"),
            Self::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated", "http_request_denied"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden", "http_request_denied"),
            Self::WrongHost => (StatusCode::MISDIRECTED_REQUEST, "wrong_host", "http_request_denied"),
            Self::UnknownRoute => (StatusCode::NOT_FOUND, "unknown_route", "http_request_error"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "http_request_error"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "too_slow", "http_request_error"),
            Self::BodyTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "http_request_error"),
            Self::UnsupportedMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "http_request_error")
            }
            Self::CallerLimited(_) => (StatusCode::TOO_MANY_REQUESTS, "caller_limited", "http_request_denied"),
            Self::UpstreamLimited(_) => (StatusCode::TOO_MANY_REQUESTS, "upstream_limited", "http_request_denied"),
            Self::UpstreamFailed(kind) => (StatusCode::BAD_GATEWAY, "upstream_failed", error_type(*kind)),
            Self::Unavailable(Unavailable::Connections) => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "connection_limit_reached")
            }
            Self::Unavailable(Unavailable::Waiters | Unavailable::Upstream(_) | Unavailable::Stopping) => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "destination_unavailable")
            }
            Self::UpstreamTimeout => (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", "http_response_timeout"),
            Self::NotCached => (StatusCode::GATEWAY_TIMEOUT, "not_cached", "http_request_denied"),
            Self::OutcomeUnknown(FailureKind::Timeout) => {
                (StatusCode::GATEWAY_TIMEOUT, "outcome_unknown", "http_response_timeout")
            }
            Self::OutcomeUnknown(kind) => (StatusCode::BAD_GATEWAY, "outcome_unknown", error_type(*kind)),
        }
    }

    /// Its name: what callers see in `error`, and operators in logs.
    pub fn name(&self) -> &'static str {
        self.kind().1
    }

    /// What callers are told.
    pub(super) fn message(&self) -> String {
        match self {
            Self::Body(refused) => refused.to_string(),
            Self::BadRequest(what) => (*what).to_owned(),
            Self::UnknownTenant(no_tenant) => no_tenant.to_string(),
            Self::Unauthenticated => {
                "a caller's key is needed, as Authorization: Bearer KEY; none came, or an unknown one".to_owned()
            }
            Self::Forbidden(Denied::Route) => "this caller may not use this route".to_owned(),
            Self::Forbidden(Denied::Tenant) => "this caller may not use this tenant".to_owned(),
            Self::Forbidden(Denied::Invalidate) => {
                "only a caller with callers.NAME.invalidate, or without callers on loopback, may do this".to_owned()
            }
            Self::Forbidden(Denied::Page) => "web pages may not ask: the request has an Origin".to_owned(),
            Self::WrongHost => {
                "Host must be an IP address, localhost, or one of server.hosts, unless callers have keys".to_owned()
            }
            Self::UnknownRoute => "this path is not served by the gateway".to_owned(),
            Self::MethodNotAllowed => "only POST is served here".to_owned(),
            Self::TooSlow => "the body did not come in time".to_owned(),
            Self::BodyTooLarge(max) => format!("the body is longer than {max} bytes"),
            Self::UnsupportedMediaType => "the Content-Type must be application/json".to_owned(),
            Self::CallerLimited(_) => "more requests than this caller may make".to_owned(),
            Self::UpstreamLimited(_) => {
                "more calls than the open platform allows; nothing was sent for this one".to_owned()
            }
            Self::UpstreamFailed(kind) => kind.to_string(),
            Self::Unavailable(Unavailable::Connections) => "too many connections".to_owned(),
            Self::Unavailable(Unavailable::Waiters) => "too many callers wait for the same answer".to_owned(),
            Self::Unavailable(Unavailable::Upstream(Rejected::TooManyInFlight)) => {
                "the open platform is slow to answer all the calls under way; nothing was sent for this one".to_owned()
            }
            Self::Unavailable(Unavailable::Upstream(Rejected::BreakerOpen(_))) => {
                "the circuit breaker is open, because calls to the open platform failed; nothing was sent for this one"
                    .to_owned()
            }
            Self::Unavailable(Unavailable::Stopping) => "the gateway is stopping".to_owned(),
            Self::UpstreamTimeout => "no answer of the open platform came in time".to_owned(),
            Self::NotCached => "the answer is not in the cache".to_owned(),
            Self::OutcomeUnknown(kind) => {
                format!("the write was sent and may have taken effect, but no answer came: {kind}")
            }
        }
    }

    /// When to come again, where that helps, and the limit that says so with the name of its policy.
    pub(super) const fn again(&self) -> Again<'_> {
        match self {
            Self::CallerLimited(limited) => Again::By("caller", limited),
            Self::UpstreamLimited(limited) => Again::By("upstream", limited),
            Self::Unavailable(Unavailable::Upstream(Rejected::BreakerOpen(wait))) => Again::In(*wait),
            Self::Unavailable(
                Unavailable::Connections
                | Unavailable::Waiters
                | Unavailable::Upstream(Rejected::TooManyInFlight)
                | Unavailable::Stopping,
            ) => Again::In(SOON),
            Self::Body(_)
            | Self::BadRequest(_)
            | Self::UnknownTenant(_)
            | Self::Unauthenticated
            | Self::Forbidden(_)
            | Self::WrongHost
            | Self::UnknownRoute
            | Self::MethodNotAllowed
            | Self::TooSlow
            | Self::BodyTooLarge(_)
            | Self::UnsupportedMediaType
            | Self::UpstreamFailed(_)
            | Self::UpstreamTimeout
            | Self::NotCached
            | Self::OutcomeUnknown(_) => Again::Unknown,
        }
    }
}

/// When to come again.
pub(super) enum Again<'a> {
    /// When a limit lets one through.
    By(&'static str, &'a Limited),
    /// After so long.
    In(Duration),
    /// Nobody knows whether that would help.
    Unknown,
}

/// The error types of RFC 9209, section 2.3.
const fn error_type(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Resolve => "dns_error",
        FailureKind::Connect => "connection_refused",
        FailureKind::Tls => "tls_protocol_error",
        FailureKind::ConnectTimeout => "connection_timeout",
        FailureKind::Timeout => "http_response_timeout",
        FailureKind::Reset => "connection_terminated",
        FailureKind::Oversized => "http_response_body_size",
        FailureKind::Redirect | FailureKind::NotHttp => "http_protocol_error",
    }
}
