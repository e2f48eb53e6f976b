//! The second listener: for operators.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;

use crate::gateway::Gateway;
use crate::metrics::Metrics;

/// Whether requests are served: not yet, or not much longer.
#[derive(Debug, Default)]
pub struct Readiness(AtomicU8);

/// Before either of these: starting.
const READY: u8 = 1;
const DRAINING: u8 = 2;

impl Readiness {
    /// Requests are served from now on.
    pub fn ready(&self) {
        self.0.store(READY, Ordering::Release);
    }

    /// The process will stop.
    pub fn draining(&self) {
        self.0.store(DRAINING, Ordering::Release);
    }

    fn reason_against(&self) -> Option<&'static str> {
        match self.0.load(Ordering::Acquire) {
            READY => None,
            DRAINING => Some("draining"),
            _ => Some("starting"),
        }
    }
}

/// Answers an operator's request.
///
/// # Errors
/// Never: every failure is an answer.
pub async fn handle(
    request: Request<Incoming>,
    gateway: Arc<Gateway>,
    readiness: Arc<Readiness>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let page = match request.uri().path() {
        "/metrics" => (StatusCode::OK, Metrics::CONTENT_TYPE, None),
        "/healthz" => (StatusCode::OK, TEXT, Some("ok\n".to_owned())),
        "/readyz" => match readiness.reason_against() {
            None => (StatusCode::OK, TEXT, Some("ready\n".to_owned())),
            Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, TEXT, Some(format!("{reason}\n"))),
        },
        _ => (StatusCode::NOT_FOUND, TEXT, Some("no such page: /metrics, /healthz, /readyz\n".to_owned())),
    };
    let (mut status, mut content_type, mut body) = page;
    if status != StatusCode::NOT_FOUND && ![Method::GET, Method::HEAD].contains(request.method()) {
        (status, content_type, body) =
            (StatusCode::METHOD_NOT_ALLOWED, TEXT, Some("only GET is served here\n".to_owned()));
    }
    let body = body.unwrap_or_else(|| gateway.metrics_page());
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    Ok(response)
}

const TEXT: &str = "text/plain; charset=utf-8";
