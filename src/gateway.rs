//! The one way of a request through the gateway: read `Gateway::run` first.
//!
//! Each stage returns facts; only this room counts, times and logs them.

mod account;
mod ask;
mod call_log;
mod door;
mod fields;
mod incoming;
mod policy;
mod read;
mod reload;
mod shortcut;
mod signing;
mod upkeep;
mod write;

use std::future::Future;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::DropGuard;
use tokio_util::task::TaskTracker;

use self::account::Record;
pub use self::door::Foreign;
pub use self::fields::Fields;
use self::policy::Policy;
use self::read::Boarded;
use self::shortcut::{Place, Shortcuts};
pub use self::upkeep::Inspected;
use self::write::Again;
use crate::cache::{Cache, Demand};
use crate::caller::Caller;
use crate::clock::{Boot, Clock, Now};
use crate::envelope::Envelope;
use crate::limit::{Before, Pace, Paces};
use crate::metrics::Metrics;
use crate::pseudonym::Pseudonyms;
use crate::reply::{Denied, Refusal, Reply, Unavailable};
use crate::route::Route;
use crate::settings::{CacheMode, CachedSettings, KindSettings, Settings};
use crate::signer::{Call, Nonces};
use crate::skew::Skew;
use crate::tenant::{Identities, Tenant};
use crate::upstream::{Resolved, Upstream};

/// Where callers tell of changes that were made elsewhere.
const INVALIDATE: &str = "/v1/invalidate";

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

/// Capacity for a request.
#[derive(Clone, Debug)]
pub enum Capacity {
    /// There is some.
    Available,
    /// There is none: the request is rejected.
    Exhausted,
    /// Part of a limit that all callers share: taken once the caller is known, so that nobody unknown can use it up.
    Shared(Arc<SharedCapacity>),
}

/// One request's part of a limit that all callers share; given back when this is dropped.
#[derive(Debug)]
pub struct SharedCapacity {
    limit: Arc<Semaphore>,
    taken: OnceLock<OwnedSemaphorePermit>,
}

impl SharedCapacity {
    /// Part of a limit, not taken yet.
    pub fn new(limit: &Arc<Semaphore>) -> Arc<Self> {
        Arc::new(Self { limit: Arc::clone(limit), taken: OnceLock::new() })
    }
}

impl Capacity {
    /// Takes it, now that the caller is known.
    fn take(&self) -> Result<(), Refusal> {
        let Self::Shared(shared) = self else { return Ok(()) };
        let permit = Arc::clone(&shared.limit).try_acquire_owned();
        let permit = permit.map_err(|_| Refusal::Unavailable(Unavailable::Connections))?;
        // One request has one caller.
        let _ = shared.taken.set(permit);
        Ok(())
    }
}

/// A request whose head was let in.
#[derive(Clone, Copy)]
struct Entrance<'a> {
    policy: &'a Arc<Policy>,
    caller: &'a Arc<Caller>,
    route: &'a Arc<Route>,
    path: &'a str,
    fields: &'a Fields<'a>,
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
        let path = if self.route.wildcard { self.path.into() } else { Arc::clone(&self.route.pattern) };
        let members = self.envelope.forwarded().into();
        Call { tenant: Arc::clone(self.tenant), path, members }
    }

    /// The pace of the call.
    fn pace(&self, paces: &Paces) -> Arc<Pace> {
        paces.of(self.tenant, self.route, self.path)
    }
}

/// What a request came to before anybody had to wait for upstream.
enum Begun {
    /// It is answered.
    Answered(Reply),
    /// It will be.
    Waits(Awaited),
}

/// What a request waits for.
enum Awaited {
    /// A call that answers it, its own or another's.
    Flight(Boarded),
    /// A task of its own that answers it; some are told when their caller leaves.
    Task(JoinHandle<Result<Reply, Refusal>>, Option<DropGuard>),
}

/// What is learned of a request on its way, for the log: names by the numbers that its policy has for them.
#[derive(Clone, Debug)]
struct Facts {
    id: HeaderValue,
    trace: Option<String>,
    route: Option<usize>,
    /// Anonymous ones are the first.
    caller: usize,
    tenant: Option<usize>,
    customers: Vec<String>,
    /// The time by which the request is judged.
    now: Now,
}

impl Facts {
    fn new(fields: &Fields<'_>, now: Now) -> Self {
        Self {
            id: fields.request_id(),
            trace: fields.trace_id().map(str::to_owned),
            route: None,
            caller: 0,
            tenant: None,
            customers: Vec::new(),
            now,
        }
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

    /// Answers a request, or rejects one that there is no capacity for; returns its body too, of which a rejected one may have
    /// something left.
    pub fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        capacity: Capacity,
    ) -> impl Future<Output = (Response<Bytes>, Incoming)> + Send {
        let (mut head, mut body) = request.into_parts();
        // A block holds once what it is given; an `async fn` would hold it twice.
        async move { (self.answer(&mut head, &mut body, capacity).await, body) }
    }

    async fn answer(self: &Arc<Self>, head: &mut Parts, body: &mut Incoming, capacity: Capacity) -> Response<Bytes> {
        let fields = Fields::of(&head.headers);
        let mut record = Record::begin(self, &fields);
        let begun = match &capacity {
            Capacity::Available | Capacity::Shared(_) => {
                self.run(&record.policy, head, &fields, body, &capacity, &mut record.facts).await
            }
            Capacity::Exhausted => Err(Refusal::Unavailable(Unavailable::Connections)),
        };
        let mut fields = std::mem::take(&mut head.headers);
        let outcome = match begun {
            Ok(Begun::Answered(reply)) => Ok(reply),
            Ok(Begun::Waits(awaited)) => {
                // What the caller sent is not held for as long as upstream takes.
                (fields, head.uri) = (HeaderMap::new(), Uri::default());
                record.wait(awaited).await
            }
            Err(refusal) => Err(refusal),
        };
        record.end(outcome, fields)
    }

    /// The stages, in order.
    async fn run(
        self: &Arc<Self>,
        policy: &Arc<Policy>,
        head: &Parts,
        fields: &Fields<'_>,
        body: &mut Incoming,
        capacity: &Capacity,
        facts: &mut Facts,
    ) -> Result<Begun, Refusal> {
        let path = head.uri.path();
        let own = path == INVALIDATE;
        let route = if own { None } else { Some(policy.routes.find(path).ok_or(Refusal::UnknownRoute)?) };
        facts.route = route.map(|route| route.index);
        if head.method != Method::POST {
            return Err(Refusal::MethodNotAllowed);
        }
        let caller = door::caller(policy, head, fields)?;
        facts.caller = caller.index;
        capacity.take()?;
        match route {
            Some(route) if !caller.may_use_route(route) => return Err(Refusal::Forbidden(Denied::Route)),
            None if !caller.invalidate => return Err(Refusal::Forbidden(Denied::Invalidate)),
            Some(_) | None => {}
        }
        policy.admit(caller).map_err(Refusal::CallerLimited)?;
        if !fields.tell_json() {
            return Err(Refusal::UnsupportedMediaType);
        }
        let server = &policy.settings.server;
        let (body, waited) = incoming::read_body(body, server.max_body.0, server.body_timeout).await?;
        if waited {
            facts.now = self.clock.now();
        }
        let deadline = facts.now.boot + fields.patience(server.request_timeout)?;
        let begun = match route {
            Some(route) => self.begin(Entrance { policy, caller, route, path, fields, deadline }, &body, facts)?,
            None => Begun::Answered(self.invalidate(policy, fields, caller, &body, facts)?),
        };
        Ok(begun)
    }

    /// The stages from a whole body on. Nobody waits here: what a body is read into is many times its size, and must
    /// not be held for as long as upstream takes.
    fn begin(self: &Arc<Self>, entrance: Entrance<'_>, body: &[u8], facts: &mut Facts) -> Result<Begun, Refusal> {
        let Entrance { policy, caller, route, path, fields, deadline } = entrance;
        let now = self.skew.later(facts.now);
        let place = self.place(&entrance, body);
        if let Some(reply) = place.and_then(|place| self.by_shortcut(&entrance, &place, now, facts)) {
            return Ok(Begun::Answered(reply));
        }
        let envelope = Envelope::parse(body).map_err(Refusal::Body)?;
        if let KindSettings::Cached(CachedSettings { params: Some(taken), .. }) = &route.kind {
            envelope.check_params(taken).map_err(Refusal::Body)?;
        }
        facts.customers = incoming::customers(&route.kind, fields, &envelope)?;
        let tenant = policy.tenants.choose(fields.tenant()?, envelope.root()).map_err(Refusal::UnknownTenant)?;
        facts.tenant = Some(tenant.index);
        if !caller.may_use_tenant(tenant) {
            return Err(Refusal::Forbidden(Denied::Tenant));
        }
        let arrival = Arrival {
            policy,
            caller,
            route,
            path,
            envelope: &envelope,
            tenant,
            demand: fields.demand(),
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
        let breaker = &policy.settings.upstream.breaker;
        for tenant in policy.tenants.all() {
            for route in policy.routes.all() {
                // Wildcards share a label: the slowest of them is shown, and a breaker that is open in any.
                let same_label = || policy.routes.all().iter().filter(|other| other.label == route.label);
                let allowed = same_label().map(|other| self.paces.allowed(tenant, other)).fold(f64::INFINITY, f64::min);
                let open = same_label().any(|other| self.upstream.is_open(breaker, tenant, other));
                let handles = policy.handles.call(tenant.index, route.index);
                handles.rate.set(allowed);
                handles.breaker_open.set(open.into());
            }
        }
        let skew = self.skew.ahead(self.clock.now()).unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "a gauge in seconds")]
        self.metrics.clock_skew.set(skew as f64 / 1000.0);
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
        self.cache.tidy();
        self.metrics.cache_bytes.set(i64::try_from(self.cache.bytes()).unwrap_or(i64::MAX));
        self.upstream.tidy();
        let policy = self.policy.load();
        for tenant in policy.tenants.all() {
            for (path, _, episode) in self.upstream.ended_failures(tenant) {
                call_log::failures_ended(tenant, &path, &episode);
            }
        }
    }

    /// Waits for flights and writes whose callers have gone. None may begin any more.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}
