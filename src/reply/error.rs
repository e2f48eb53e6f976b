//! Gateway errors: why the gateway answers in the platform's place, with status, name and message.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::envelope::EnvelopeError;
use crate::limit::Limited;
use crate::tenant::NoTenant;
use crate::upstream::{AttemptError, Failure, NotSent, Rejected};

/// When to retry if nothing better is known.
const SOON: Duration = Duration::from_secs(1);

/// Why the gateway answers in the platform's place.
#[derive(Clone, Debug)]
pub enum GatewayError {
    /// The body is rejected.
    Body(EnvelopeError),
    /// Something else in the request is invalid; the text says what is expected.
    BadRequest(&'static str),
    /// The same, with what was received.
    Invalid(String),
    /// No tenant fits.
    UnknownTenant(NoTenant),
    /// The caller has no key, or an unknown one.
    Unauthenticated,
    /// The caller may not do this.
    Forbidden(Denied),
    /// `Host` is not allowed.
    WrongHost,
    /// No such route.
    UnknownRoute,
    /// Another method than these.
    MethodNotAllowed(&'static str),
    /// The body took too long.
    TooSlow,
    /// The body is longer than so many bytes.
    BodyTooLarge(u64),
    /// Not JSON.
    UnsupportedMediaType,
    /// The caller is over its limit.
    CallerLimited(Limited),
    /// The gateway is at capacity.
    OverCapacity(OverCapacity),
    /// The caller wants a cached answer, and there is none.
    NotCached,
    /// Nothing was sent to the platform.
    NotSent(NotSent),
    /// A read was sent, and no usable answer came.
    NoAnswer(Arc<AttemptError>),
    /// The coupons take too much memory as one shape.
    TooManyCoupons,
    /// They do not fit beside the other results of a batch.
    BatchIsFull,
    /// A coupon ended while the batch waited for other results.
    EndedMeanwhile,
    /// Another replica sent a read, and no usable answer came: its log says why.
    NoAnswerElsewhere,
    /// A write was sent, and no usable answer came: it may have been executed.
    OutcomeUnknown(Arc<AttemptError>),
}

/// What a caller may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Use this route.
    Route,
    /// Use this tenant.
    Tenant,
    /// Call `/v1/invalidate`.
    Invalidate,
    /// Use anything at all.
    Anything,
    /// Send a request from a web page.
    Page,
}

/// Which capacity is exhausted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverCapacity {
    /// Connections, and requests that run at the same time.
    Connections,
    /// Callers that wait for the same fetch.
    Waiters,
}

impl GatewayError {
    /// Status, name, and error type of RFC 9209.
    pub(super) fn kind(&self) -> (StatusCode, &'static str, &'static str) {
        const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
        match self {
            Self::Body(_) | Self::BadRequest(_) | Self::Invalid(_) => {
                (StatusCode::BAD_REQUEST, "bad_request", "http_request_error")
            }
            Self::UnknownTenant(_) => (StatusCode::BAD_REQUEST, "unknown_tenant", "http_request_error"),
            Self::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthenticated", "http_request_denied"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden", "http_request_denied"),
            Self::WrongHost => (StatusCode::MISDIRECTED_REQUEST, "wrong_host", "http_request_denied"),
            Self::UnknownRoute => (StatusCode::NOT_FOUND, "unknown_route", "http_request_error"),
            Self::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "http_request_error"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "too_slow", "http_request_error"),
            Self::BodyTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "http_request_error"),
            Self::UnsupportedMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "http_request_error")
            }
            Self::CallerLimited(_) => (StatusCode::TOO_MANY_REQUESTS, "caller_limited", "http_request_denied"),
            Self::OverCapacity(OverCapacity::Connections) => (UNAVAILABLE, "unavailable", "connection_limit_reached"),
            Self::OverCapacity(OverCapacity::Waiters) => (UNAVAILABLE, "unavailable", "destination_unavailable"),
            Self::NotCached => (StatusCode::GATEWAY_TIMEOUT, "not_cached", "http_request_denied"),
            Self::NotSent(NotSent::Limited { .. }) => {
                (StatusCode::TOO_MANY_REQUESTS, "upstream_limited", "http_request_denied")
            }
            Self::NotSent(NotSent::Rejected(_) | NotSent::Unfenced | NotSent::Abandoned) => {
                (UNAVAILABLE, "unavailable", "destination_unavailable")
            }
            Self::NotSent(NotSent::DeadlineExceeded | NotSent::Cancelled) => {
                (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", "http_response_timeout")
            }
            Self::NotSent(NotSent::Failed(error)) | Self::NoAnswer(error) => match **error {
                AttemptError::Timeout => (StatusCode::GATEWAY_TIMEOUT, "upstream_timeout", error_type(error)),
                _ => (StatusCode::BAD_GATEWAY, "upstream_failed", error_type(error)),
            },
            Self::TooManyCoupons => (StatusCode::BAD_GATEWAY, "upstream_failed", "http_response_body_size"),
            Self::BatchIsFull | Self::EndedMeanwhile => (UNAVAILABLE, "unavailable", "destination_unavailable"),
            Self::NoAnswerElsewhere => (StatusCode::BAD_GATEWAY, "upstream_failed", "destination_unavailable"),
            Self::OutcomeUnknown(error) => match **error {
                AttemptError::Timeout => (StatusCode::GATEWAY_TIMEOUT, "outcome_unknown", error_type(error)),
                _ => (StatusCode::BAD_GATEWAY, "outcome_unknown", error_type(error)),
            },
        }
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        self.kind().0
    }

    /// Its name: `error` in responses and logs.
    pub fn name(&self) -> &'static str {
        self.kind().1
    }

    /// What failed towards the platform, as the log names it.
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            Self::NotSent(NotSent::Failed(error)) | Self::NoAnswer(error) | Self::OutcomeUnknown(error) => {
                Some(error.failure().name())
            }
            Self::NotSent(not_sent) => Some(not_sent.name()),
            Self::TooManyCoupons => Some("too_many_coupons"),
            Self::BatchIsFull => Some("batch_is_full"),
            Self::EndedMeanwhile => Some("ended_meanwhile"),
            Self::NoAnswerElsewhere => Some("other_replica"),
            Self::OverCapacity(OverCapacity::Connections) => Some("max_connections"),
            Self::OverCapacity(OverCapacity::Waiters) => Some("max_waiters"),
            _ => None,
        }
    }

    /// The message for callers.
    pub fn message(&self) -> String {
        match self {
            Self::Body(error) => error.to_string(),
            Self::BadRequest(expected) => (*expected).to_owned(),
            Self::Invalid(message) => message.clone(),
            Self::UnknownTenant(error) => error.to_string(),
            Self::Unauthenticated => {
                "a key is required: expected Authorization: Bearer KEY with the key of a configured caller".to_owned()
            }
            Self::Forbidden(Denied::Route) => "this caller may not use this route: expected one of those in callers.NAME.routes".to_owned(),
            Self::Forbidden(Denied::Tenant) => "this caller may not use this tenant: expected one of those in callers.NAME.tenants".to_owned(),
            Self::Forbidden(Denied::Invalidate) => {
                "only a caller with callers.NAME.invalidate may do this, or without callers one on loopback".to_owned()
            }
            Self::Forbidden(Denied::Anything) => {
                "this caller may use nothing: expected routes and tenants in callers.NAME".to_owned()
            }
            Self::Forbidden(Denied::Page) => "requests of web pages are rejected: the request has an Origin, or a Sec-Fetch-Site that names another site".to_owned(),
            Self::WrongHost => {
                "Host must be an IP address, localhost, or one of server.hosts, unless callers have keys".to_owned()
            }
            Self::UnknownRoute => {
                "this path is not served: expected that of a configured route; GET /openapi.json lists what there is".to_owned()
            },
            Self::MethodNotAllowed(allowed) => format!("this method is not allowed here: expected {allowed}"),
            Self::TooSlow => "the body was not received in time: expected all of it within server.body_timeout".to_owned(),
            Self::BodyTooLarge(max) => format!("the body is too long: expected at most {max} bytes, as server.max_body says"),
            Self::UnsupportedMediaType => {
                "expected a body with Content-Type: application/json, and not compressed".to_owned()
            },
            Self::CallerLimited(_) => "this caller is over its rate limit: try again after Retry-After".to_owned(),
            Self::OverCapacity(OverCapacity::Connections) => {
                "too many connections or concurrent requests: try again after Retry-After".to_owned()
            },
            Self::OverCapacity(OverCapacity::Waiters) => {
                "too many callers wait for the same answer: try again after Retry-After".to_owned()
            },
            Self::NotCached => "the answer is not cached, and the request says only-if-cached".to_owned(),
            Self::NotSent(NotSent::Limited { is_key_suspect: true, .. }) => {
                "over the rate limit of the open platform, which throttles although the limit is kept: this tenant's signing key may be refused; nothing was sent".to_owned()
            }
            Self::NotSent(NotSent::Limited { .. }) => {
                "over the rate limit of the open platform; nothing was sent: try again after Retry-After".to_owned()
            }
            Self::NotSent(NotSent::Rejected(Rejected::TooManyInFlight)) => {
                "too many calls to the open platform are in flight; nothing was sent: try again after Retry-After".to_owned()
            }
            Self::NotSent(NotSent::Rejected(Rejected::BreakerOpen(_))) => {
                "the circuit breaker is open, because calls to the open platform failed; nothing was sent: try again after Retry-After".to_owned()
            }
            Self::NotSent(NotSent::Unfenced) => {
                "Redis is unreachable, so that other replicas cannot invalidate what this write changes, and cluster.unfenced_writes is \"refuse\"; nothing was sent".to_owned()
            }
            Self::NotSent(NotSent::Abandoned) => "the gateway is stopping; nothing was sent".to_owned(),
            Self::NotSent(NotSent::DeadlineExceeded | NotSent::Cancelled) => {
                "the request took too long; nothing was sent to the open platform".to_owned()
            }
            Self::NotSent(NotSent::Failed(error)) | Self::NoAnswer(error) => error.to_string(),
            Self::TooManyCoupons => {
                "the list of coupons is too long: ask for fewer, with useStatus or cardId, or raise upstream.max_response".to_owned()
            }
            Self::BatchIsFull => {
                "the other results are as long as upstream.max_response allows: ask again for the rest".to_owned()
            }
            Self::EndedMeanwhile => "a coupon of this customer ended while other results were waited for: ask again".to_owned(),
            Self::NoAnswerElsewhere => "another replica's call to the open platform failed".to_owned(),
            Self::OutcomeUnknown(error) => format!("the write was sent and may have been executed: {error}"),
        }
    }

    /// When to retry, if that is known, and the limit that says so with the name of its policy.
    pub(super) const fn retry_after(&self) -> RetryAfter<'_> {
        match self {
            Self::CallerLimited(limited) => RetryAfter::Limit("caller", limited),
            Self::NotSent(NotSent::Limited { limited, .. }) => RetryAfter::Limit("upstream", limited),
            Self::NotSent(NotSent::Rejected(Rejected::BreakerOpen(wait))) => RetryAfter::In(*wait),
            Self::OverCapacity(_)
            | Self::BatchIsFull
            | Self::EndedMeanwhile
            | Self::NotSent(NotSent::Rejected(Rejected::TooManyInFlight) | NotSent::Unfenced | NotSent::Abandoned) => {
                RetryAfter::In(SOON)
            }
            Self::Body(_)
            | Self::BadRequest(_)
            | Self::Invalid(_)
            | Self::UnknownTenant(_)
            | Self::Unauthenticated
            | Self::Forbidden(_)
            | Self::WrongHost
            | Self::UnknownRoute
            | Self::MethodNotAllowed(_)
            | Self::TooSlow
            | Self::BodyTooLarge(_)
            | Self::UnsupportedMediaType
            | Self::NotCached
            | Self::NotSent(NotSent::DeadlineExceeded | NotSent::Cancelled | NotSent::Failed(_))
            | Self::NoAnswer(_)
            | Self::TooManyCoupons
            | Self::NoAnswerElsewhere
            | Self::OutcomeUnknown(_) => RetryAfter::Unknown,
        }
    }
}

/// When to retry.
pub(super) enum RetryAfter<'a> {
    /// When a limit allows it.
    Limit(&'static str, &'a Limited),
    /// After so long.
    In(Duration),
    /// It is not known whether a retry would help.
    Unknown,
}

/// The error types of RFC 9209, section 2.3.
fn error_type(error: &AttemptError) -> &'static str {
    match error.failure() {
        Failure::Dns => "dns_error",
        Failure::DnsTimeout => "dns_timeout",
        Failure::Refused => "connection_refused",
        Failure::Unroutable => "destination_ip_unroutable",
        Failure::ConnectTimeout | Failure::ProxyTimeout | Failure::TlsTimeout => "connection_timeout",
        Failure::Connect | Failure::ProxyUnreachable | Failure::ProxyRejected => "destination_unavailable",
        Failure::ProxyUnauthenticated => "proxy_configuration_error",
        Failure::CertificateExpired
        | Failure::CertificateNotYetValid
        | Failure::CertificateUnknownCa
        | Failure::CertificateWrongName
        | Failure::Certificate => "tls_certificate_error",
        Failure::TlsAlert => "tls_alert_received",
        Failure::Tls => "tls_protocol_error",
        Failure::Timeout => "http_response_timeout",
        Failure::Reset => "connection_terminated",
        Failure::Incomplete => "http_response_incomplete",
        Failure::TransferCoding => "http_response_transfer_coding",
        Failure::Compressed => "http_response_content_coding",
        Failure::Oversized => "http_response_body_size",
        Failure::Redirect | Failure::NotHttp | Failure::NotJson => "http_protocol_error",
    }
}
