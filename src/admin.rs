//! The admin listener: metrics, health, inspection and purges for operators.

mod log_level;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;

use crate::gateway::{AUDIT, CachedQuestion, CrossSite, Gateway, RequestHead, shown_path};
use crate::line_limit::LineLimit;
use crate::metrics::Metrics;
use crate::reply::BEARER;
use crate::secret::KeyHash;
use crate::settings::ListenerSettings;
use crate::tenant::Tenant;

/// Whether requests are served: not yet, or not for long.
#[derive(Debug, Default)]
pub struct Readiness(AtomicU8);

/// Any other value: starting.
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

    fn reason_not_ready(&self) -> Option<&'static str> {
        match self.0.load(Ordering::Acquire) {
            READY => None,
            DRAINING => Some("draining"),
            _ => Some("starting"),
        }
    }
}

/// The pages of the admin listener.
#[derive(Clone)]
pub struct Admin {
    gateway: Arc<Gateway>,
    readiness: Arc<Readiness>,
    access: Arc<Access>,
}

/// Who may use the pages that are not public.
#[derive(Debug)]
pub struct Access {
    /// Whoever has one of these keys; if there is none, whoever is on this machine.
    keys: Vec<KeyHash>,
    /// Whether only this machine can connect.
    is_loopback: bool,
    /// Lines about refused keys: whoever guesses must not fill the log.
    refusals: LineLimit,
}

impl Access {
    /// As configured. `is_loopback`: whether only this machine can connect.
    pub fn new(settings: &ListenerSettings, is_loopback: bool) -> Self {
        Self { keys: settings.admin_keys.clone(), is_loopback, refusals: LineLimit::default() }
    }

    /// Logs a refused key.
    fn log_refusal(&self, peer: SocketAddr, path: &str) {
        if let Some(suppressed) = self.refusals.next() {
            // Whatever is behind it may be a customer's id.
            let page = if path.starts_with(CUSTOMERS) { CUSTOMERS.into() } else { shown_path(path) };
            tracing::warn!(target: AUDIT, %peer, path = &*page, suppressed, "admin key refused");
        }
    }

    /// Checks that a request may use a page that is not public.
    fn check(&self, request: &Request<()>, gateway: &Gateway, peer: SocketAddr) -> Result<(), Page> {
        if !self.keys.is_empty() {
            let head = RequestHead::of(request.headers());
            head.check_valid_host().map_err(|expected| text(StatusCode::BAD_REQUEST, expected))?;
            let known = head.bearer().is_some_and(|key| KeyHash::of(key).is_one_of(&self.keys));
            return if known {
                Ok(())
            } else {
                self.log_refusal(peer, request.uri().path());
                Err(text(StatusCode::UNAUTHORIZED, "an admin key is required: expected Authorization: Bearer KEY"))
            };
        }
        if !self.is_loopback {
            return Err(not_found());
        }
        match gateway.cross_site(&RequestHead::of(request.headers()), request.uri()) {
            None => Ok(()),
            Some(CrossSite::Host) => Err(text(
                StatusCode::MISDIRECTED_REQUEST,
                "Host must be an IP address, localhost, or one of server.hosts",
            )),
            Some(CrossSite::Origin) => {
                Err(text(StatusCode::FORBIDDEN, "requests of web pages are rejected: the request has an Origin"))
            }
        }
    }
}

/// The page of a customer, before its id.
const CUSTOMERS: &str = "/cache/customers/";

/// A page: its status, type and text.
type Page = (StatusCode, &'static str, String);

/// Longest body of a request, in bytes.
const MAX_BODY: usize = 64 << 10;
/// How long it may take.
const BODY_WITHIN: Duration = Duration::from_secs(10);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const TOML: &str = "application/toml";

fn text(status: StatusCode, text: &str) -> Page {
    (status, TEXT, format!("{text}\n"))
}

fn not_found() -> Page {
    text(
        StatusCode::NOT_FOUND,
        "no such page: /metrics, /healthz, /readyz, /config, /cache, /cache/customers/{id}, /log-level",
    )
}

impl Admin {
    /// The pages of a gateway.
    pub fn new(gateway: Arc<Gateway>, readiness: Arc<Readiness>, access: Access) -> Self {
        Self { gateway, readiness, access: Arc::new(access) }
    }

    /// Answers an operator's request; returns its body too, of which hardly any page reads.
    pub async fn handle(self, request: Request<Incoming>, peer: SocketAddr) -> (Response<Bytes>, Incoming) {
        let (head, mut sent) = request.into_parts();
        let request = Request::from_parts(head, ());
        let (status, content_type, body) = self.page(&request, &mut sent, peer).await;
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, BEARER);
        }
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static(allowed(request.uri().path())));
        }
        (response, sent)
    }

    async fn page(&self, request: &Request<()>, body: &mut Incoming, peer: SocketAddr) -> Page {
        let (method, path) = (request.method(), request.uri().path());
        let get = [Method::GET, Method::HEAD].contains(method);
        if let Err(expected) = RequestHead::of(request.headers()).check_single_host(request.version()) {
            return text(StatusCode::BAD_REQUEST, expected);
        }
        match path {
            "/metrics" if get => (StatusCode::OK, Metrics::CONTENT_TYPE, self.gateway.metrics_page()),
            "/healthz" if get => text(StatusCode::OK, "ok"),
            "/readyz" if get => match self.reason_not_ready() {
                None => text(StatusCode::OK, "ready"),
                Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason),
            },
            "/metrics" | "/healthz" | "/readyz" => text(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed here"),
            _ => match self.access.check(request, &self.gateway, peer) {
                Ok(()) => self.protected_page(request, body, peer).await,
                Err(page) => page,
            },
        }
    }

    fn reason_not_ready(&self) -> Option<&'static str> {
        self.readiness.reason_not_ready().or_else(|| self.gateway.cluster().reason_not_ready())
    }

    /// The pages that are not public.
    async fn protected_page(&self, request: &Request<()>, body: &mut Incoming, peer: SocketAddr) -> Page {
        let (method, path) = (request.method(), request.uri().path());
        let get = [Method::GET, Method::HEAD].contains(method);
        let customer = path.strip_prefix(CUSTOMERS).filter(|id| !id.is_empty() && !id.contains('/'));
        match path {
            "/config" if get => (StatusCode::OK, TOML, self.gateway.configuration()),
            "/config" => text(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed here"),
            "/log-level" if get => log_level::shown(&self.gateway),
            "/log-level" if *method == Method::PUT => match read_body(body).await {
                Ok(body) => log_level::changed(&self.gateway, &body, peer),
                Err(page) => page,
            },
            "/log-level" => text(StatusCode::METHOD_NOT_ALLOWED, "only GET and PUT are allowed here"),
            "/cache" if *method == Method::DELETE => self.purge(request, peer).await,
            "/cache" => text(StatusCode::METHOD_NOT_ALLOWED, "only DELETE is allowed here"),
            _ => match customer {
                None => not_found(),
                Some(_) if !get && *method != Method::DELETE => {
                    text(StatusCode::METHOD_NOT_ALLOWED, "only GET and DELETE are allowed here")
                }
                Some(id) => self.customer(request, id, get, peer).await,
            },
        }
    }

    /// The tenant of a name.
    fn tenant(&self, name: &str) -> Result<Arc<Tenant>, Page> {
        let known = self.gateway.tenant(Some(name));
        known.ok_or_else(|| text(StatusCode::NOT_FOUND, "?tenant= names no tenant of this gateway"))
    }

    async fn customer(&self, request: &Request<()>, id: &str, get: bool, peer: SocketAddr) -> Page {
        const EXPECTED: &str = "expected no parameter but tenant=NAME";
        let tenant = match parameter(request) {
            Ok(None) => self
                .gateway
                .tenant(None)
                .ok_or_else(|| text(StatusCode::BAD_REQUEST, "no tenant is the default: expected ?tenant=NAME")),
            Ok(Some(("tenant", name))) => self.tenant(name),
            Ok(Some(_)) | Err(_) => Err(text(StatusCode::BAD_REQUEST, EXPECTED)),
        };
        let tenant = match tenant {
            Ok(tenant) => tenant,
            Err(page) => return page,
        };
        let Ok(id) = percent_decode_str(id).decode_utf8() else {
            return text(StatusCode::BAD_REQUEST, "the customer id must be UTF-8");
        };
        if get {
            let customers = self.gateway.pseudonym(&id);
            tracing::info!(target: AUDIT, %peer, tenant = tenant.name, customers, "inspect");
            let array = |answers: &[CachedQuestion]| {
                let answers: Vec<String> = answers.iter().map(CachedQuestion::to_json).collect();
                format!("[{}]", answers.join(","))
            };
            let mut body =
                format!("{{\"tenant\":\"{}\",\"answers\":{}", tenant.name, array(&self.gateway.inspect(&tenant, &id)));
            if !self.gateway.cluster().is_alone() {
                let shared = self.gateway.inspect_shared(&tenant, &id).await;
                let shared = shared.map_or_else(|| "null".to_owned(), |answers| array(&answers));
                body.push_str(&format!(",\"shared\":{shared}"));
            }
            body.push_str("}\n");
            return (StatusCode::OK, JSON, body);
        }
        let dropped = self.gateway.purge_customer(&tenant, &id).await;
        tracing::info!(target: AUDIT, %peer, tenant = tenant.name, customers = self.gateway.pseudonym(&id), dropped, "purge");
        (StatusCode::OK, JSON, format!("{{\"dropped\":{dropped}}}\n"))
    }

    async fn purge(&self, request: &Request<()>, peer: SocketAddr) -> Page {
        const EXPECTED: &str = "expected one parameter, tenant=NAME or all=true; nothing was purged";
        let tenant = match parameter(request) {
            Ok(Some(("tenant", name))) => self.tenant(name).map(Some),
            Ok(Some(("all", "true"))) => Ok(None),
            Ok(_) | Err(_) => Err(text(StatusCode::BAD_REQUEST, EXPECTED)),
        };
        let tenant = match tenant {
            Ok(tenant) => tenant,
            Err(page) => return page,
        };
        let dropped = self.gateway.purge(tenant.as_deref()).await;
        tracing::info!(target: AUDIT, %peer, tenant = tenant.as_ref().map_or("all", |tenant| tenant.name.as_str()), dropped, "purge");
        (StatusCode::OK, JSON, format!("{{\"dropped\":{dropped}}}\n"))
    }
}

/// The body of a request.
async fn read_body(body: &mut Incoming) -> Result<Bytes, Page> {
    let read = tokio::time::timeout(BODY_WITHIN, Limited::new(body, MAX_BODY).collect()).await;
    match read {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => Err(text(StatusCode::PAYLOAD_TOO_LARGE, "expected a body of at most 64 KiB")),
        Err(_) => Err(text(StatusCode::REQUEST_TIMEOUT, "the body was not received in time")),
    }
}

/// More than one parameter, or one without a value.
struct UnusableQuery;

/// The one parameter of a query, if there is one.
fn parameter(request: &Request<()>) -> Result<Option<(&str, &str)>, UnusableQuery> {
    let Some(query) = request.uri().query() else { return Ok(None) };
    let parameter = query.split_once('=').filter(|(name, value)| !name.is_empty() && !value.is_empty());
    parameter.filter(|(_, value)| !value.contains('&')).map(Some).ok_or(UnusableQuery)
}

/// The methods of a page, for `Allow`.
fn allowed(path: &str) -> &'static str {
    match path {
        "/cache" => "DELETE",
        "/log-level" => "GET, HEAD, PUT",
        _ if path.starts_with("/cache/") => "GET, HEAD, DELETE",
        _ => "GET, HEAD",
    }
}
