//! The one way of a request through the gateway: read `Gateway::run` first.
//!
//! Each stage returns facts; only this room counts, times and logs them.

mod account;
mod ask;
mod door;
mod incoming;
mod policy;
mod read;
mod reload;
mod shortcut;
mod signing;
mod upkeep;
mod write;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, Request, Response};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::DropGuard;
use tokio_util::task::TaskTracker;

use self::account::Record;
pub use self::door::{Foreign, bearer};
pub use self::incoming::pass_over;
use self::policy::Policy;
use self::shortcut::{Place, Shortcuts};
pub use self::upkeep::Inspected;
use self::write::Again;
use crate::cache::{Cache, Demand, Question, Waiter};
use crate::caller::Caller;
use crate::clock::{Boot, Clock, Now};
use crate::envelope::Envelope;
use crate::limit::{Before, Pace, Paces};
use crate::metrics::Metrics;
use crate::pseudonym::Pseudonyms;
use crate::reply::{Denied, Refusal, Reply, Unavailable, Way};
use crate::route::Route;
use crate::settings::{CacheMode, CachedSettings, KindSettings, Settings};
use crate::signer::{Call, Nonces};
use crate::skew::Skew;
use crate::tenant::{Identities, Tenant};
use crate::upstream::{FailureKind, Resolved, Upstream};

/// Where callers tell of changes that were made elsewhere.
const INVALIDATE: &str = "/v1/invalidate";
const X_ZVGATE_TENANT: HeaderName = HeaderName::from_static("x-zvgate-tenant");

/// Everything that a request meets.
pub struct Gateway {
    clock: Clock,
    policy: ArcSwap<Policy>,
    /// Whether only this machine can ask.
    private: bool,
    identities: Mutex<Identities>,
    cache: Arc<Cache<Refusal>>,
    shortcuts: Shortcuts,
    paces: Paces,
    nonces: Nonces,
    skew: Skew,
    upstream: Upstream,
    pseudonyms: Pseudonyms,
    metrics: Metrics,
    /// Flights and writes, which outlive their callers.
    tasks: TaskTracker,
}

/// What a gateway is made from beside its settings.
pub struct Equipment {
    /// The time.
    pub clock: Clock,
    /// The way to the platform.
    pub upstream: Upstream,
    /// The one source of nonces.
    pub nonces: Nonces,
    /// Customers' names in logs.
    pub pseudonyms: Pseudonyms,
    /// What upstream may remember of calls before these.
    pub before: Before,
}

/// A request whose head was let in.
#[derive(Clone, Copy)]
struct Entrance<'a> {
    policy: &'a Arc<Policy>,
    caller: &'a Arc<Caller>,
    route: &'a Arc<Route>,
    now: Now,
    deadline: Boot,
}

/// A request that may be answered: everything in it that the caller sent is borrowed, and goes before anybody waits.
struct Arrival<'a> {
    policy: &'a Arc<Policy>,
    caller: &'a Arc<Caller>,
    route: &'a Arc<Route>,
    path: &'a str,
    envelope: &'a Envelope<'a>,
    tenant: &'a Arc<Tenant>,
    demand: Demand,
    /// Where the request's shortcut is, if it may have one.
    place: Option<Place<'a>>,
    now: Now,
    deadline: Boot,
    facts: &'a Facts,
}

impl Arrival<'_> {
    fn call(&self) -> Call {
        let (path, members) = (self.path.into(), self.envelope.forwarded().into());
        Call { tenant: Arc::clone(self.tenant), path, members }
    }

    /// The pace of the call.
    fn pace(&self, paces: &Paces) -> Arc<Pace> {
        paces.of(self.tenant, self.route, self.path)
    }
}

/// What a request came to before anybody had to wait.
enum Begun {
    /// It is answered.
    Answered(Reply),
    /// A call answers it, its own or another's.
    Flight(Awaited),
    /// A task of its own answers it; some are told when their caller leaves.
    Task(JoinHandle<Result<Reply, Refusal>>, Option<DropGuard>),
}

/// A caller's part in a flight.
struct Awaited {
    waiter: Waiter<Refusal>,
    /// How the answer is said to have come; `None`: as a miss of the caller's own.
    way: Option<Way>,
    /// What may be told past its freshness if the flight fails.
    stand_in: Option<Question>,
    tenant: usize,
    route: usize,
}

/// What is learned of a request on its way, for the log.
#[derive(Clone, Debug, Default)]
struct Facts {
    id: String,
    trace: Option<String>,
    route: Option<Arc<Route>>,
    caller: Option<Arc<Caller>>,
    tenant: Option<Arc<Tenant>>,
    customers: Vec<String>,
}

impl Facts {
    fn of(headers: &HeaderMap) -> Self {
        let trace = incoming::trace_id(headers).map(str::to_owned);
        Self { id: incoming::request_id(headers), trace, ..Self::default() }
    }
}

impl Gateway {
    /// A gateway with nothing in its cache. `private` tells whether only this machine can ask.
    pub fn new(settings: &Settings, private: bool, equipment: Equipment) -> Self {
        let Equipment { clock, upstream, nonces, pseudonyms, before } = equipment;
        let (metrics, mut identities) = (Metrics::new(), Identities::default());
        let policy = Policy::new(settings, None, private, &mut identities, &metrics, &clock);
        Self {
            cache: Arc::new(Cache::new(&policy.cache_options(&identities), metrics.cache.clone())),
            paces: Paces::new(policy.pace_rules(), before, &clock),
            shortcuts: Shortcuts::new(),
            policy: ArcSwap::from_pointee(policy),
            private,
            identities: Mutex::new(identities),
            skew: Skew::new(settings.upstream.follows_clock()),
            metrics,
            tasks: TaskTracker::new(),
            clock,
            nonces,
            upstream,
            pseudonyms,
        }
    }

    /// Answers a request.
    ///
    /// # Errors
    /// Never: every failure is an answer.
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Bytes>, Infallible> {
        let mut record = Record::begin(&self, request.headers());
        let (head, mut body) = request.into_parts();
        let policy = Arc::clone(&record.policy);
        let outcome = self.run(&policy, head, &mut body, &mut record).await;
        if outcome.is_err() {
            pass_over(body);
        }
        Ok(record.end(&outcome))
    }

    /// Answers a request that there is no room for.
    ///
    /// # Errors
    /// Never.
    pub fn turn_away(self: &Arc<Self>, request: Request<Incoming>) -> Result<Response<Bytes>, Infallible> {
        let record = Record::begin(self, request.headers());
        pass_over(request.into_body());
        Ok(record.end(&Err(Refusal::Unavailable(Unavailable::Connections))))
    }

    /// The stages, in order.
    async fn run(
        self: &Arc<Self>,
        policy: &Arc<Policy>,
        head: Parts,
        body: &mut Incoming,
        record: &mut Record,
    ) -> Result<Reply, Refusal> {
        let facts = &mut record.facts;
        let own = head.uri.path() == INVALIDATE;
        let route = if own { None } else { Some(policy.routes.find(head.uri.path()).ok_or(Refusal::UnknownRoute)?) };
        facts.route = route.map(Arc::clone);
        if head.method != Method::POST {
            return Err(Refusal::MethodNotAllowed);
        }
        let caller = door::caller(policy, &head)?;
        facts.caller = Some(Arc::clone(caller));
        match route {
            Some(route) if !caller.may_use_route(route) => return Err(Refusal::Forbidden(Denied::Route)),
            None if !caller.invalidate => return Err(Refusal::Forbidden(Denied::Invalidate)),
            Some(_) | None => {}
        }
        policy.admit(caller).map_err(Refusal::CallerLimited)?;
        if !incoming::is_json(&head.headers) {
            return Err(Refusal::UnsupportedMediaType);
        }
        let (body, waited) = incoming::read_body(
            &head.headers,
            body,
            policy.settings.server.max_body.0,
            policy.settings.server.body_timeout,
        )
        .await?;
        if waited {
            record.now = self.clock.now();
        }
        let (now, facts) = (record.now, &mut record.facts);
        let deadline = now.boot + patience(&head.headers, policy.settings.server.request_timeout)?;
        let begun = match route {
            Some(route) => self.begin(Entrance { policy, caller, route, now, deadline }, &head, &body, facts)?,
            None => Begun::Answered(self.invalidate(policy, &head, caller, &body, facts)?),
        };
        drop((head, body));
        match begun {
            Begun::Answered(reply) => {
                record.at_once = !waited;
                Ok(reply)
            }
            Begun::Flight(awaited) => self.wait(policy, awaited, deadline).await,
            Begun::Task(task, presence) => task.await.unwrap_or_else(|_| {
                // A task that is lost may have sent; only writes go on when their callers leave.
                let lost = if presence.is_none() { Refusal::OutcomeUnknown } else { Refusal::UpstreamFailed };
                Err(lost(FailureKind::Reset))
            }),
        }
    }

    /// The stages from a whole body on. Nobody waits here: what a body is read into is many times its size, and must
    /// not be held for as long as upstream takes.
    fn begin(
        self: &Arc<Self>,
        entrance: Entrance<'_>,
        head: &Parts,
        body: &[u8],
        facts: &mut Facts,
    ) -> Result<Begun, Refusal> {
        let Entrance { policy, caller, route, now, deadline } = entrance;
        let headers = &head.headers;
        let now = self.skew.later(now);
        let place = self.place(policy, route, headers, body);
        if let Some(reply) = place.and_then(|place| self.by_shortcut(&entrance, &place, now, facts)) {
            return Ok(Begun::Answered(reply));
        }
        let envelope = Envelope::parse(body).map_err(Refusal::Body)?;
        if let KindSettings::Cached(CachedSettings { params: Some(taken), .. }) = &route.kind {
            envelope.check_params(taken).map_err(Refusal::Body)?;
        }
        facts.customers = incoming::customers(&route.kind, headers, &envelope)?;
        let named = incoming::named_tenant(headers)?;
        let tenant = policy.tenants.choose(named, envelope.root()).map_err(Refusal::UnknownTenant)?;
        facts.tenant = Some(Arc::clone(tenant));
        if !caller.may_use_tenant(tenant) {
            return Err(Refusal::Forbidden(Denied::Tenant));
        }
        let arrival = Arrival {
            policy,
            caller,
            route,
            path: head.uri.path(),
            envelope: &envelope,
            tenant,
            demand: incoming::demand(headers),
            place,
            now,
            deadline,
            facts,
        };
        match &route.kind {
            KindSettings::Cached(_) if policy.settings.cache.mode == CacheMode::Off => {
                if arrival.demand.only_if_cached {
                    Err(Refusal::NotCached)
                } else {
                    self.pass(&arrival, Again::Allowed)
                }
            }
            KindSettings::Cached(cached) => self.read(&arrival, cached),
            KindSettings::Write(write) => self.write(&arrival, write),
            KindSettings::Pass => self.pass(&arrival, Again::Never),
            KindSettings::Off => Err(Refusal::UnknownRoute),
        }
    }

    /// Lets a task begin, unless as many are under way as callers may be connected: callers may leave, and what they asked for
    /// goes on.
    fn room_for_a_task(&self, policy: &Policy) -> Result<(), Refusal> {
        let most = usize::try_from(policy.settings.server.max_connections).unwrap_or(usize::MAX);
        if self.tasks.len() < most { Ok(()) } else { Err(Refusal::Unavailable(Unavailable::Connections)) }
    }

    /// The metrics' page.
    pub fn metrics_page(&self) -> String {
        self.tidy();
        let policy = self.policy.load();
        for tenant in policy.tenants.all() {
            let open = self.upstream.circuit(tenant).is_open();
            policy.handles.tenant(tenant.index).breaker_open.set(open.into());
            for route in policy.routes.all() {
                // Routes under wildcards share a name: the slowest is told.
                let named = policy.routes.all().iter().filter(|other| other.label == route.label);
                let allowed = named.map(|other| self.paces.allowed(tenant, other)).fold(f64::INFINITY, f64::min);
                policy.handles.call(tenant.index, route.index).rate.set(allowed);
            }
        }
        let ahead = self.skew.ahead(self.clock.now()).unwrap_or_default();
        self.metrics.clock_skew.set(f64::from(i32::try_from(ahead).unwrap_or(i32::MAX)) / 1000.0);
        self.metrics.page()
    }

    /// Looks the platform's name up again.
    pub async fn look_up(&self) {
        match self.upstream.look_up().await {
            Resolved::Same => {}
            Resolved::Changed => tracing::info!("the open platform's name leads to other addresses now"),
            Resolved::Failed => tracing::warn!("the open platform's name cannot be looked up; the last addresses stay"),
        }
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Frees memory and connections whose time is over: nobody else does while nothing is asked.
    pub fn tidy(&self) {
        self.cache.tidy(self.clock.boot());
        self.metrics.cache_bytes.set(i64::try_from(self.cache.bytes()).unwrap_or(i64::MAX));
        self.upstream.tidy();
    }

    /// Waits for flights and writes whose callers have gone. None may begin any more.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// How long a read may take to be answered: its caller may ask for less time, not for more.
fn patience(headers: &HeaderMap, longest: Duration) -> Result<Duration, Refusal> {
    Ok(incoming::patience(headers)?.unwrap_or(longest).min(longest))
}
