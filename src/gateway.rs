//! The one way of a request through the gateway: read `Gateway::run` first.
//!
//! Each stage returns facts; only this room counts, times and logs them.

mod ask;
mod incoming;
mod read;
mod write;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;

use crate::answer::Reader;
use crate::cache::{self, Cache, Lifetimes};
use crate::clock::{Boot, Clock};
use crate::envelope::Envelope;
use crate::limit::{CallerGate, Paces};
use crate::metrics::{CacheUse, Limit, Metrics};
use crate::pseudonym::Pseudonyms;
use crate::reply::{self, Refusal, Reply, Unavailable, Way};
use crate::route::{Route, Routes};
use crate::settings::{AccessLog, KindSettings, LogSettings, Settings, UpstreamSettings};
use crate::signer::{Call, Nonces};
use crate::tenant::{Tenant, Tenants};
use crate::upstream::Upstream;

const X_ZVGATE_TENANT: HeaderName = HeaderName::from_static("x-zvgate-tenant");

/// Everything that a request meets.
pub struct Gateway {
    clock: Clock,
    routes: Routes,
    tenants: Tenants,
    caller_gate: CallerGate,
    cache: Arc<Cache<Refusal>>,
    lifetimes: Lifetimes,
    paces: Paces,
    nonces: Nonces,
    upstream: Upstream,
    upstream_settings: UpstreamSettings,
    waits: Waits,
    max_body: u64,
    log: LogSettings,
    pseudonyms: Pseudonyms,
    metrics: Arc<Metrics>,
    /// Flights and writes, which outlive their callers.
    tasks: TaskTracker,
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
struct Waits {
    body: Duration,
    request: Duration,
    write_request: Duration,
    read: Duration,
    write: Duration,
    attempt: Duration,
    write_attempt: Duration,
}

/// What a gateway is made from beside its settings.
pub struct Parts {
    /// The time.
    pub clock: Clock,
    /// The way to the platform.
    pub upstream: Upstream,
    /// The one source of nonces.
    pub nonces: Nonces,
    /// Customers' names in logs.
    pub pseudonyms: Pseudonyms,
}

/// A request whose question is known.
struct Arrival<'a> {
    route: &'a Arc<Route>,
    path: &'a str,
    headers: &'a HeaderMap,
    envelope: &'a Envelope<'a>,
    tenant: &'a Arc<Tenant>,
    upstream: &'a UpstreamSettings,
    facts: &'a mut Facts,
}

impl Arrival<'_> {
    fn call(&self) -> Call {
        let (path, members) = (self.path.into(), self.envelope.forwarded().into());
        Call { tenant: Arc::clone(self.tenant), path, members }
    }

    fn reader(&self, expires: &[String]) -> Reader {
        Reader {
            expires: expires.to_vec(),
            retry_codes: self.upstream.retry_codes.clone(),
            utc_offset: self.upstream.utc_offset,
        }
    }
}

/// What is learned of a request on its way, for the log.
#[derive(Debug, Default)]
struct Facts {
    route: Option<Arc<Route>>,
    tenant: Option<Arc<Tenant>>,
    customers: Vec<String>,
}

impl Gateway {
    /// A gateway with nothing in its cache.
    pub fn new(settings: &Settings, parts: Parts) -> Self {
        let Parts { clock, upstream, nonces, pseudonyms } = parts;
        let (server, limits) = (&settings.server, &settings.limits);
        let tenants = Tenants::new(&settings.tenants);
        let route_paces: Vec<_> = settings.routes.iter().map(|route| route.pace).collect();
        let paces = Paces::new(tenants.all(), &route_paces, limits.upstream, &clock);
        let routes = Routes::new(&settings.routes);
        let names: Vec<_> = tenants.all().iter().map(|tenant| tenant.name.as_str()).collect();
        let metrics = Metrics::new(&names, &routes.labels(), |tenant, route| paces.rate(tenant, route));
        let options = cache::Options {
            max_bytes: settings.cache.max_bytes.0,
            max_waiters: usize::try_from(limits.max_waiters).unwrap_or(usize::MAX),
            tenants: names.len(),
        };
        Self {
            caller_gate: CallerGate::new(limits.caller.as_ref(), &clock),
            cache: Arc::new(Cache::new(&options, metrics.cache.clone())),
            lifetimes: Lifetimes {
                ttl: settings.cache.ttl,
                negative_ttl: settings.cache.negative_ttl,
                unsettled_ttl: settings.cache.unsettled_ttl,
                expiry_margin: settings.cache.expiry_margin,
            },
            waits: Waits {
                body: server.body_timeout,
                request: server.request_timeout,
                write_request: server.write_request_timeout,
                read: limits.max_wait,
                write: limits.max_wait_write,
                attempt: settings.upstream.attempt_timeout,
                write_attempt: settings.upstream.write_timeout,
            },
            max_body: server.max_body.0,
            log: settings.log.clone(),
            upstream_settings: settings.upstream.clone(),
            metrics: Arc::new(metrics),
            tasks: TaskTracker::new(),
            clock,
            routes,
            tenants,
            paces,
            nonces,
            upstream,
            pseudonyms,
        }
    }

    /// Answers a request.
    ///
    /// # Errors
    /// Never: every failure is an answer.
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let started = self.clock.boot();
        let id = incoming::request_id(request.headers());
        let trace = incoming::trace_id(request.headers()).map(str::to_owned);
        let mut facts = Facts::default();
        let outcome = self.run(request, &mut facts).await;
        let response = reply::response(&outcome, &id);
        self.account(&outcome, &facts, response.status().as_u16(), started, (&id, trace.as_deref()));
        Ok(response)
    }

    /// Answers a request on a connection that there is no room for.
    ///
    /// # Errors
    /// Never.
    pub fn turn_away(&self, request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let started = self.clock.boot();
        let id = incoming::request_id(request.headers());
        self.metrics.limited.of(Limit::Connections).inc();
        let outcome = Err(Refusal::Unavailable(Unavailable::Connections));
        let response = reply::response(&outcome, &id);
        self.account(&outcome, &Facts::default(), response.status().as_u16(), started, (&id, None));
        Ok(response)
    }

    /// The stages, in order.
    async fn run(self: &Arc<Self>, request: Request<Incoming>, facts: &mut Facts) -> Result<Reply, Refusal> {
        let (head, body) = request.into_parts();
        let headers = &head.headers;
        let route = self.routes.find(head.uri.path()).ok_or(Refusal::UnknownRoute)?;
        facts.route = Some(Arc::clone(route));
        if head.method != Method::POST {
            return Err(Refusal::MethodNotAllowed);
        }
        self.caller_gate.admit().map_err(|limited| {
            self.metrics.limited.of(Limit::Caller).inc();
            Refusal::CallerLimited(limited)
        })?;
        if !incoming::is_json(headers) {
            return Err(Refusal::UnsupportedMediaType);
        }
        let body = incoming::read_body(headers, body, self.max_body, self.waits.body).await?;
        let deadline = self.deadline(headers)?;
        let envelope = Envelope::parse(&body).map_err(Refusal::Body)?;
        let named = headers.get(X_ZVGATE_TENANT).map(http::HeaderValue::as_bytes);
        let tenant = self.tenants.choose(named, &envelope).map_err(Refusal::UnknownTenant)?;
        facts.tenant = Some(Arc::clone(tenant));
        let upstream = &self.upstream_settings;
        let mut arrival =
            Arrival { route, path: head.uri.path(), headers, envelope: &envelope, tenant, upstream, facts };
        match &route.kind {
            KindSettings::Cached(cached) => self.read(&mut arrival, cached, incoming::demand(headers), deadline).await,
            KindSettings::Write(write) => self.write(&mut arrival, write).await,
            KindSettings::Pass => self.pass(&arrival, deadline).await,
        }
    }

    /// Until when a read must be answered: the caller may ask for less time, not for more.
    fn deadline(&self, headers: &HeaderMap) -> Result<Boot, Refusal> {
        let patience = incoming::patience(headers)?.unwrap_or(self.waits.request);
        Ok(self.clock.boot() + patience.min(self.waits.request))
    }

    fn account(
        &self,
        outcome: &Result<Reply, Refusal>,
        facts: &Facts,
        status: u16,
        started: Boot,
        (id, trace): (&str, Option<&str>),
    ) {
        let took = self.clock.boot().since(started);
        let cache = cache_use(outcome);
        let route = facts.route.as_ref();
        let metrics = route.map_or(&self.metrics.unrouted, |route| self.metrics.route(route.index));
        metrics.request(status, cache, took);
        if matches!(outcome, Err(Refusal::UpstreamLimited(_))) {
            self.metrics.limited.of(Limit::Upstream).inc();
        }
        let logged = match self.log.access {
            AccessLog::All => true,
            AccessLog::Errors => status >= 400,
            AccessLog::None => false,
        };
        if logged {
            let customers: Vec<_> = facts.customers.iter().map(|customer| self.pseudonyms.of(customer)).collect();
            tracing::info!(
                route = route.map_or("none", |route| route.label.as_str()),
                tenant = facts.tenant.as_ref().map(|tenant| tenant.name.as_str()),
                customers = customers.join(","),
                status,
                error = outcome.as_ref().err().map(Refusal::name),
                cache = crate::metrics::Label::name(cache),
                ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                request_id = id,
                trace_id = trace,
                "request"
            );
        }
    }

    /// The metrics' page.
    pub fn metrics_page(&self) -> String {
        self.tidy();
        self.metrics.page()
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Frees memory and connections whose time is over: nobody else does while nothing is asked.
    pub fn tidy(&self) {
        self.cache.tidy();
        self.metrics.cache_bytes.set(i64::try_from(self.cache.bytes()).unwrap_or(i64::MAX));
        self.upstream.tidy();
    }

    /// Waits for flights and writes whose callers have gone. None may begin any more.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn cache_use(outcome: &Result<Reply, Refusal>) -> CacheUse {
    match outcome {
        Ok(reply) => match reply.way {
            Way::Hit { .. } => CacheUse::Hit,
            Way::Miss(_) | Way::Requested => CacheUse::Miss,
            Way::Collapsed => CacheUse::Collapsed,
            Way::Bypass => CacheUse::Bypass,
        },
        Err(_) => CacheUse::None,
    }
}
