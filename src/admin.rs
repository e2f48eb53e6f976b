//! The admin listener: the status page, metrics, health, inspection and purges for operators.

mod access;
mod explain;
mod log_level;
mod page;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde_json::json;

pub use self::access::Access;
use self::page::Asked;
use crate::gateway::{AUDIT, Gateway, RequestHead, Status};
use crate::metrics::Metrics;
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

    /// Why requests are not served, or not for long; `None` if they are.
    pub fn reason_not_ready(&self, gateway: &Gateway) -> Option<&'static str> {
        match self.0.load(Ordering::Acquire) {
            READY => gateway.cluster().reason_not_ready(),
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

/// The page of a customer, before its id.
const CUSTOMERS: &str = "/cache/customers/";

/// A page.
struct Page {
    status: StatusCode,
    content_type: &'static str,
    body: String,
    /// How to authenticate, with 401.
    challenge: Option<HeaderValue>,
}

impl Page {
    const fn new(content_type: &'static str, body: String) -> Self {
        Self { status: StatusCode::OK, content_type, body, challenge: None }
    }

    fn json(body: String) -> Self {
        Self::new(JSON, body)
    }

    fn text(status: StatusCode, text: &str) -> Self {
        Self { status, ..Self::new(TEXT, format!("{text}\n")) }
    }
}

/// Longest body of a request, in bytes.
const MAX_BODY: usize = 64 << 10;
/// How long it may take.
const BODY_WITHIN: Duration = Duration::from_secs(10);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const TOML: &str = "application/toml";
const HTML: &str = "text/html; charset=utf-8";

const NO_SNIFF: HeaderValue = HeaderValue::from_static("nosniff");
/// With `no-referrer`, a browser would send `Origin: null` with the page's own forms.
const SAME_ORIGIN: HeaderValue = HeaderValue::from_static("same-origin");
const REFERRER_POLICY: HeaderName = HeaderName::from_static("referrer-policy");
const CONTENT_TYPE_OPTIONS: HeaderName = HeaderName::from_static("x-content-type-options");

/// Whether a request only reads.
fn is_read(request: &Request<()>) -> bool {
    [Method::GET, Method::HEAD].contains(request.method())
}

fn not_found() -> Page {
    Page::text(
        StatusCode::NOT_FOUND,
        "no such page: /, /status.json, /metrics, /healthz, /readyz, /config, /cache, /cache/customers/{id}, /explain, /log-level; beyond loopback all but /metrics, /healthz and /readyz need server.admin_key_sha256",
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
        let page = self.page(&request, &mut sent, peer).await;
        let mut response = Response::new(Bytes::from(page.body));
        *response.status_mut() = page.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(CONTENT_TYPE_OPTIONS, NO_SNIFF);
        if page.content_type == HTML {
            headers.insert(CONTENT_SECURITY_POLICY, page::POLICY.clone());
            headers.insert(REFERRER_POLICY, SAME_ORIGIN);
        }
        if let Some(challenge) = page.challenge {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        if page.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static(allowed(request.uri().path())));
        }
        (response, sent)
    }

    async fn page(&self, request: &Request<()>, body: &mut Incoming, peer: SocketAddr) -> Page {
        let (path, get) = (request.uri().path(), is_read(request));
        if let Err(expected) = RequestHead::of(request.headers()).check_single_host(request.version()) {
            return Page::text(StatusCode::BAD_REQUEST, expected);
        }
        match path {
            "/metrics" if get => Page::new(Metrics::CONTENT_TYPE, self.gateway.metrics_page()),
            "/healthz" if get => Page::text(StatusCode::OK, "ok"),
            "/readyz" if get => match self.reason_not_ready() {
                None => Page::text(StatusCode::OK, "ready"),
                Some(reason) => Page::text(StatusCode::SERVICE_UNAVAILABLE, reason),
            },
            "/metrics" | "/healthz" | "/readyz" => {
                Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed here")
            }
            _ => {
                let is_for_browsers = ["/", "/status.json"].contains(&path);
                match self.access.check(request, &self.gateway, peer, is_for_browsers) {
                    Ok(()) => self.protected_page(request, body, peer).await,
                    Err(page) => page,
                }
            }
        }
    }

    fn reason_not_ready(&self) -> Option<&'static str> {
        self.readiness.reason_not_ready(&self.gateway)
    }

    /// The pages that are not public.
    async fn protected_page(&self, request: &Request<()>, body: &mut Incoming, peer: SocketAddr) -> Page {
        let (method, path, get) = (request.method(), request.uri().path(), is_read(request));
        let customer = path.strip_prefix(CUSTOMERS).filter(|id| !id.is_empty() && !id.contains('/'));
        match path {
            "/" if get => self.status_page(None, peer).await,
            "/" if *method == Method::POST => match read_body(body).await {
                Ok(form) => self.status_page(Some(&form), peer).await,
                Err(page) => page,
            },
            "/" => Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST are allowed here"),
            "/status.json" if get => self.of_status(|status| Page::json(status.to_json())).await,
            "/status.json" => Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed here"),
            "/explain" if *method == Method::POST => match read_body(body).await {
                Ok(body) => explain::explained(&self.gateway, request, &body).await,
                Err(page) => page,
            },
            "/explain" => Page::text(StatusCode::METHOD_NOT_ALLOWED, "only POST is allowed here"),
            "/config" if get => Page::new(TOML, self.gateway.configuration()),
            "/config" => Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed here"),
            "/log-level" if get => log_level::shown(&self.gateway),
            "/log-level" if *method == Method::PUT => match read_body(body).await {
                Ok(body) => log_level::changed(&self.gateway, &body, peer),
                Err(page) => page,
            },
            "/log-level" => Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and PUT are allowed here"),
            "/cache" if *method == Method::DELETE => self.purge(request, peer).await,
            "/cache" => Page::text(StatusCode::METHOD_NOT_ALLOWED, "only DELETE is allowed here"),
            _ => match customer {
                None => not_found(),
                Some(_) if !get && *method != Method::DELETE => {
                    Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and DELETE are allowed here")
                }
                Some(id) => self.customer(request, id, get, peer).await,
            },
        }
    }

    /// The tenant of a name.
    fn tenant(&self, name: &str) -> Result<Arc<Tenant>, Page> {
        let known = self.gateway.tenant(Some(name));
        known.ok_or_else(|| Page::text(StatusCode::NOT_FOUND, "?tenant= names no tenant of this gateway"))
    }

    async fn customer(&self, request: &Request<()>, id: &str, get: bool, peer: SocketAddr) -> Page {
        const EXPECTED: &str = "expected no parameter but tenant=NAME";
        let tenant = match parameter(request) {
            Ok(None) => self
                .gateway
                .tenant(None)
                .ok_or_else(|| Page::text(StatusCode::BAD_REQUEST, "no tenant is the default: expected ?tenant=NAME")),
            Ok(Some(("tenant", name))) => self.tenant(name),
            Ok(Some(_)) | Err(_) => Err(Page::text(StatusCode::BAD_REQUEST, EXPECTED)),
        };
        let tenant = match tenant {
            Ok(tenant) => tenant,
            Err(page) => return page,
        };
        let Ok(id) = percent_decode_str(id).decode_utf8() else {
            return Page::text(StatusCode::BAD_REQUEST, "the customer id must be UTF-8");
        };
        if get {
            return Page::json(self.looked_up(&tenant, &id, peer).await);
        }
        let dropped = self.purged(&tenant, &id, peer).await;
        Page::json(format!("{{\"dropped\":{dropped}}}\n"))
    }

    /// What is cached for a customer, as JSON.
    async fn looked_up(&self, tenant: &Tenant, id: &str, peer: SocketAddr) -> String {
        tracing::info!(target: AUDIT, %peer, tenant = tenant.name, customers = self.gateway.pseudonym(id), "inspect");
        let answers = self.gateway.inspect(tenant, id);
        let found = match self.gateway.cluster().is_alone() {
            true => json!({ "tenant": tenant.name, "answers": answers }),
            false => {
                let shared = self.gateway.inspect_shared(tenant, id).await;
                json!({ "tenant": tenant.name, "answers": answers, "shared": shared })
            }
        };
        format!("{found}\n")
    }

    /// Purges what is cached for a customer; returns how many answers that were.
    async fn purged(&self, tenant: &Tenant, id: &str, peer: SocketAddr) -> usize {
        let dropped = self.gateway.purge_customer(tenant, id).await;
        tracing::info!(target: AUDIT, %peer, tenant = tenant.name, customers = self.gateway.pseudonym(id), dropped, "purge");
        dropped
    }

    /// The status page, with what one of its forms asked for.
    async fn status_page(&self, form: Option<&[u8]>, peer: SocketAddr) -> Page {
        let asked = match form {
            None => None,
            Some(form) => match self.form(form, peer).await {
                Ok(asked) => Some(asked),
                Err(page) => return page,
            },
        };
        let tenants = self.gateway.tenant_names();
        self.of_status(move |status| Page::new(HTML, page::page(status, &tenants, asked.as_ref()))).await
    }

    /// A page of what operators see. With many tenants and routes it takes a while, which shall delay nothing else.
    async fn of_status(&self, render: impl FnOnce(&Status) -> Page + Send + 'static) -> Page {
        let (gateway, reason) = (Arc::clone(&self.gateway), self.reason_not_ready());
        let rendering = tokio::task::spawn_blocking(move || render(&gateway.status(reason)));
        match rendering.await {
            Ok(page) => page,
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }

    /// Does what a form of the status page asks for.
    async fn form(&self, form: &[u8], peer: SocketAddr) -> Result<Asked, Page> {
        const EXPECTED: &str = "expected the form of the page: tenant, customer, and do=look-up or do=purge";
        let fields: HashMap<_, _> = form_urlencoded::parse(form).collect();
        let field = |name: &str| fields.get(name).map(|value| &**value).filter(|value| !value.is_empty());
        let (Some(name), Some(id), Some(action)) = (field("tenant"), field("customer"), field("do")) else {
            return Err(Page::text(StatusCode::BAD_REQUEST, EXPECTED));
        };
        let tenant = self.tenant(name)?;
        match action {
            "look-up" => {
                let details = self.looked_up(&tenant, id, peer).await;
                let summary = format!("What is cached for customer {id} of tenant {}:", tenant.name);
                Ok(Asked { tenant: tenant.name.clone(), customer: id.to_owned(), summary, details: Some(details) })
            }
            "purge" => {
                let dropped = self.purged(&tenant, id, peer).await;
                let answers = if dropped == 1 { "answer" } else { "answers" };
                let summary = format!("Purged {dropped} cached {answers} of customer {id} of tenant {}.", tenant.name);
                Ok(Asked { tenant: tenant.name.clone(), customer: id.to_owned(), summary, details: None })
            }
            _ => Err(Page::text(StatusCode::BAD_REQUEST, EXPECTED)),
        }
    }

    async fn purge(&self, request: &Request<()>, peer: SocketAddr) -> Page {
        const EXPECTED: &str = "expected one parameter, tenant=NAME or all=true; nothing was purged";
        let tenant = match parameter(request) {
            Ok(Some(("tenant", name))) => self.tenant(name).map(Some),
            Ok(Some(("all", "true"))) => Ok(None),
            Ok(_) | Err(_) => Err(Page::text(StatusCode::BAD_REQUEST, EXPECTED)),
        };
        let tenant = match tenant {
            Ok(tenant) => tenant,
            Err(page) => return page,
        };
        let dropped = self.gateway.purge(tenant.as_deref()).await;
        tracing::info!(target: AUDIT, %peer, tenant = tenant.as_ref().map_or("all", |tenant| tenant.name.as_str()), dropped, "purge");
        Page::json(format!("{{\"dropped\":{dropped}}}\n"))
    }
}

/// The body of a request.
async fn read_body(body: &mut Incoming) -> Result<Bytes, Page> {
    let read = tokio::time::timeout(BODY_WITHIN, Limited::new(body, MAX_BODY).collect()).await;
    match read {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => Err(Page::text(StatusCode::PAYLOAD_TOO_LARGE, "expected a body of at most 64 KiB")),
        Err(_) => Err(Page::text(StatusCode::REQUEST_TIMEOUT, "the body was not received in time")),
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
        "/" => "GET, HEAD, POST",
        "/explain" => "POST",
        "/cache" => "DELETE",
        "/log-level" => "GET, HEAD, PUT",
        _ if path.starts_with("/cache/") => "GET, HEAD, DELETE",
        _ => "GET, HEAD",
    }
}
