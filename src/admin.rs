//! The second listener: for operators.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;

use crate::gateway::{Gateway, Inspected};
use crate::metrics::Metrics;
use crate::tenant::Tenant;

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

/// What the admin listener shows and does.
#[derive(Clone)]
pub struct Admin {
    gateway: Arc<Gateway>,
    readiness: Arc<Readiness>,
    /// Whether what shows or changes customers' answers is served.
    private: bool,
}

/// A page: its status, type and text.
type Page = (StatusCode, &'static str, String);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

fn text(status: StatusCode, text: &str) -> Page {
    (status, TEXT, format!("{text}\n"))
}

fn not_found() -> Page {
    text(StatusCode::NOT_FOUND, "no such page: /metrics, /healthz, /readyz, /cache, /cache/customers/{id}")
}

impl Admin {
    /// The pages of a gateway; `private` tells that only this machine can ask for them.
    pub fn new(gateway: Arc<Gateway>, readiness: Arc<Readiness>, private: bool) -> Self {
        Self { gateway, readiness, private }
    }

    /// Answers an operator's request.
    ///
    /// # Errors
    /// Never: every failure is an answer.
    pub async fn handle(
        self,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (status, content_type, body) = self.page(&request, peer);
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static(allowed(request.uri().path())));
        }
        Ok(response)
    }

    fn page(&self, request: &Request<Incoming>, peer: SocketAddr) -> Page {
        let (method, path) = (request.method(), request.uri().path());
        let get = [Method::GET, Method::HEAD].contains(method);
        let customer = path.strip_prefix("/cache/customers/").filter(|id| !id.is_empty() && !id.contains('/'));
        match path {
            "/metrics" if get => (StatusCode::OK, Metrics::CONTENT_TYPE, self.gateway.metrics_page()),
            "/healthz" if get => text(StatusCode::OK, "ok"),
            "/readyz" if get => match self.readiness.reason_against() {
                None => text(StatusCode::OK, "ready"),
                Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason),
            },
            "/metrics" | "/healthz" | "/readyz" => text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here"),
            _ if !self.private => not_found(),
            "/cache" if *method == Method::DELETE => self.purge(request, peer),
            "/cache" => text(StatusCode::METHOD_NOT_ALLOWED, "only DELETE is served here"),
            _ => match customer {
                None => not_found(),
                Some(_) if !get && *method != Method::DELETE => {
                    text(StatusCode::METHOD_NOT_ALLOWED, "only GET and DELETE are served here")
                }
                Some(id) => self.customer(request, id, get, peer),
            },
        }
    }

    /// The tenant that `?tenant=` names; `Ok(None)` where it is not given.
    fn tenant(&self, request: &Request<Incoming>) -> Result<Option<Arc<Tenant>>, Page> {
        let query = request.uri().query().unwrap_or_default();
        let Some(name) = query.split('&').find_map(|pair| pair.strip_prefix("tenant=")).filter(|name| !name.is_empty())
        else {
            return Ok(None);
        };
        let known = self.gateway.tenant(Some(name));
        known.map(Some).ok_or_else(|| text(StatusCode::NOT_FOUND, "?tenant= names no tenant of this gateway"))
    }

    fn customer(&self, request: &Request<Incoming>, id: &str, get: bool, peer: SocketAddr) -> Page {
        let tenant = match self.tenant(request) {
            Ok(named) => named.or_else(|| self.gateway.tenant(None)),
            Err(page) => return page,
        };
        let Some(tenant) = tenant else {
            return text(StatusCode::BAD_REQUEST, "no tenant is the default: name one by ?tenant=");
        };
        let Ok(id) = percent_decode_str(id).decode_utf8() else {
            return text(StatusCode::BAD_REQUEST, "the customer's id must be UTF-8");
        };
        if get {
            let entries: Vec<String> = self.gateway.inspect(&tenant, &id).iter().map(Inspected::to_json).collect();
            return (
                StatusCode::OK,
                JSON,
                format!("{{\"tenant\":\"{}\",\"answers\":[{}]}}\n", tenant.name, entries.join(",")),
            );
        }
        let dropped = self.gateway.purge_customer(&tenant, &id);
        tracing::info!(%peer, tenant = tenant.name, customers = self.gateway.pseudonym(&id), dropped, "purge");
        (StatusCode::OK, JSON, format!("{{\"dropped\":{dropped}}}\n"))
    }

    fn purge(&self, request: &Request<Incoming>, peer: SocketAddr) -> Page {
        let tenant = match self.tenant(request) {
            Ok(tenant) => tenant,
            Err(page) => return page,
        };
        let dropped = self.gateway.purge(tenant.as_deref());
        tracing::info!(%peer, tenant = tenant.as_ref().map_or("all", |tenant| tenant.name.as_str()), dropped, "purge");
        (StatusCode::OK, JSON, format!("{{\"dropped\":{dropped}}}\n"))
    }
}

/// The methods of a page, for `Allow`.
fn allowed(path: &str) -> &'static str {
    match path {
        "/cache" => "DELETE",
        _ if path.starts_with("/cache/") => "GET, HEAD, DELETE",
        _ => "GET, HEAD",
    }
}
