//! The pipeline: how a request is answered. Read `Gateway::answer`, `process` and `dispatch` in this order.
//!
//! Each stage returns facts. Until it is dispatched, a request is a borrowed `Request`; what is sent to the platform is an owned
//! `Job`, and what became of it is one [`Outcome`](crate::upstream::Outcome).

mod access_log;
mod attempt_result;
mod auth;
mod batch;
mod body;
mod build;
mod call_log;
mod capacity;
mod coupon_query;
mod dropped_lines;
mod endpoint;
mod explain;
mod fetch;
mod hit_memo;
mod invalidate;
mod log_level;
mod maintenance;
mod openapi;
mod operations;
mod pass;
mod path;
mod policy;
mod read;
mod replica;
mod request;
mod request_head;
mod request_info;
mod served;
mod shadow;
mod shared_answers;
mod spans;
mod spending;
mod status;
mod tasks;
mod time;
mod typed_answers;
mod write;
mod write_log;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Response, Uri};
use hyper::body::Incoming;
use parking_lot::Mutex;

use self::access_log::RequestGuard;
pub use self::auth::CrossSite;
pub use self::build::{Dependencies, Process};
pub use self::capacity::{Capacity, SharedCapacity};
use self::coupon_query::CouponQuery;
use self::dropped_lines::DroppedLines;
pub use self::dropped_lines::DroppedLogLines;
use self::endpoint::Endpoint;
pub use self::explain::Explanation;
use self::hit_memo::Repeat;
use self::invalidate::Invalidator;
use self::log_level::LogLevels;
pub use self::log_level::SetLogLevel;
pub use self::operations::CachedQuestion;
use self::pass::Passes;
pub use self::path::shown_path;
use self::policy::Policy;
use self::read::Reads;
use self::replica::Merchants;
use self::request::Request;
pub use self::request_head::RequestHead;
use self::request_info::RequestInfo;
use self::served::Served;
use self::spending::Spending;
use self::status::Watch;
pub use self::status::{
    CONDITIONS, CacheStatus, ConfigurationStatus, Failing, Failure, Finding, HISTORY_STEPS, LifetimeRow, Money, Noted,
    NotedLists, Platform, PlatformRow, RateRow, Severity, Status, Step as StatusStep, Verdict, span,
};
use self::tasks::Tasks;
use self::time::Time;
use self::typed_answers::TypedAnswers;
use self::write::Writes;
use crate::answer::BYTE_ORDER_MARK;
use crate::cache::Cache;
use crate::call_state::CallState;
use crate::caller::Caller;
use crate::clock::{Boot, Now};
use crate::cluster::{Cluster, Standing};
use crate::limit::Paces;
use crate::metrics::Metrics;
use crate::pseudonym::Pseudonyms;
use crate::reply::{Denied, GatewayError, OverCapacity, Reply};
use crate::route::Route;
use crate::settings::{AccessLog, KindSettings, StaticSettings};
use crate::tenant::Identities;
use crate::trace::Tracer;
use crate::upstream::Upstream;

/// The target of log lines that are an audit trail: what was changed, and by whom.
pub const AUDIT: &str = "zvgate::audit";

/// The gateway: what all requests share.
pub struct Gateway {
    time: Arc<Time>,
    policy: ArcSwap<Policy>,
    /// Whether only this machine can connect.
    is_loopback: bool,
    identities: Mutex<Identities>,
    cache: Arc<Cache<GatewayError>>,
    upstream: Arc<Upstream>,
    paces: Arc<Paces>,
    reads: Arc<Reads>,
    writes: Arc<Writes>,
    passes: Arc<Passes>,
    invalidator: Arc<Invalidator>,
    spending: Arc<Spending>,
    served: Arc<Served>,
    cluster: Cluster,
    fixed: StaticSettings,
    merchants: Arc<Merchants>,
    pseudonyms: Arc<Pseudonyms>,
    metrics: Metrics,
    tasks: Tasks,
    tracer: Tracer,
    dropped_lines: DroppedLines,
    log_levels: LogLevels,
    /// When it began.
    started: Boot,
    watch: Watch,
    typed: Arc<TypedAnswers>,
}

/// A request whose route and caller are known, and whose body is complete.
#[derive(Clone)]
struct Routed<'a> {
    policy: &'a Arc<Policy>,
    caller: &'a Caller,
    route: &'a Arc<Route>,
    path: &'a str,
    head: &'a RequestHead<'a>,
    /// The name of the tenant, if one is named.
    tenant: Result<Option<&'a [u8]>, GatewayError>,
    body: &'a [u8],
    /// The time by which it is answered from memory.
    now: Now,
    deadline: Boot,
    /// How it may be served from memory.
    standing: Standing,
    /// Whether its call is one of many that can wait.
    is_batch: bool,
}

/// How far a request was answered without waiting.
enum Step {
    /// It is answered.
    Done(Reply),
    /// It waits for a call to the platform, which takes what is noted here.
    Wait(Pin<Box<dyn Future<Output = Result<Reply, GatewayError>> + Send>>, Arc<CallState>),
}

impl Gateway {
    /// Answers a request, or rejects one that there is no capacity for; returns its body too, of which a rejected one may have
    /// something left.
    pub fn handle(
        self: Arc<Self>,
        request: http::Request<Incoming>,
        capacity: Capacity,
        peer: SocketAddr,
    ) -> impl Future<Output = (Response<Bytes>, Incoming)> + Send {
        let (mut head, mut body) = request.into_parts();
        // A block holds its captures once; an `async fn` would hold its arguments twice.
        async move { (self.answer(&mut head, &mut body, capacity, peer).await, body) }
    }

    async fn answer(
        &self,
        head: &mut Parts,
        body: &mut Incoming,
        capacity: Capacity,
        peer: SocketAddr,
    ) -> Response<Bytes> {
        let fields = RequestHead::of(&head.headers);
        let now = self.time.now();
        let mut guard = RequestGuard::begin(self, &fields, peer, now.boot);
        let step = self.process(&mut guard, head, &fields, body, &capacity, now).await;
        let mut headers = std::mem::take(&mut head.headers);
        let result = match step {
            Ok(Step::Done(reply)) => Ok(reply),
            Ok(Step::Wait(answered, call_state)) => {
                // What the caller sent is not held for as long as the platform takes.
                guard.prepare_to_wait(head.uri.path(), call_state);
                (headers, head.uri) = (HeaderMap::new(), Uri::default());
                answered.await
            }
            Err(error) => Err(error),
        };
        guard.end(result, head, headers)
    }

    /// The stages up to the body, in the order in which errors are reported, for a request that was received at `now`.
    async fn process(
        &self,
        guard: &mut RequestGuard<'_>,
        head: &Parts,
        fields: &RequestHead<'_>,
        body: &mut Incoming,
        capacity: &Capacity,
        mut now: Now,
    ) -> Result<Step, GatewayError> {
        let (policy, info) = guard.parts();
        let path = head.uri.path();
        let endpoint = Endpoint::of(path);
        info.shape = endpoint.shape();
        let route = endpoint.route(policy, path);
        info.route = route.flatten().map(|route| route.index);
        if matches!(capacity, Capacity::Exhausted) {
            return Err(GatewayError::OverCapacity(OverCapacity::Connections));
        }
        let route = route.ok_or(GatewayError::UnknownRoute)?;
        if !endpoint.allows(&head.method) {
            return Err(GatewayError::MethodNotAllowed(endpoint.methods()));
        }
        let caller = auth::caller(policy, head, fields)?;
        info.caller = caller.index;
        info.begin_trace(&self.tracer);
        capacity.take()?;
        endpoint.permits(caller, route)?;
        policy.admit(caller).map_err(GatewayError::CallerLimited)?;
        let settings = &policy.settings.requests;
        let mut whole = Bytes::new();
        if endpoint.has_body() {
            if !fields.is_json() {
                return Err(GatewayError::UnsupportedMediaType);
            }
            let has_waited;
            (whole, has_waited) = body::read_body(body, settings.max_body.0, settings.body_timeout).await?;
            if has_waited {
                now = self.time.now();
            }
        }
        let query = head.uri.query();
        endpoint.check_query(query)?;
        let body = whole.strip_prefix(BYTE_ORDER_MARK.as_bytes()).unwrap_or(&whole);
        let deadline = now.boot + fields.timeout(settings.request_timeout)?;
        let asked = CouponQuery::of(endpoint, query, body)?;
        let Some(route) = route else {
            return match endpoint {
                Endpoint::OpenApi => Ok(Step::Done(Reply::own(policy.openapi().to_owned()))),
                // Boxed, as what is waited for below: a hit needs no memory for it.
                _ => Box::pin(self.invalidate(policy, caller, fields, body, info)).await.map(Step::Done),
            };
        };
        let known =
            if policy.serves_from_memory(route) { self.cluster.standing(now.boot) } else { Some(Standing::Fenced) };
        let standing = match known {
            Some(known) => known,
            None => {
                let remaining = deadline.since(self.time.boot());
                let standing = tokio::time::timeout(remaining, self.cluster.wait_for_standing(now.boot));
                let standing = Box::pin(standing).await.unwrap_or(Standing::Unknown);
                now = self.time.now();
                standing
            }
        };
        let is_batch = caller.is_batch;
        let tenant = fields.tenant();
        let routed =
            Routed { policy, caller, route, path, head: fields, tenant, body, now, deadline, standing, is_batch };
        match asked {
            None => self.dispatch(&routed, info),
            Some(asked) if endpoint == Endpoint::BatchGet => self.batch(&routed, &asked, info),
            Some(asked) => self.coupons(&routed, &asked, info),
        }
    }

    /// The stages from the complete body on. Nothing is waited for here.
    fn dispatch(&self, routed: &Routed<'_>, info: &mut RequestInfo) -> Result<Step, GatewayError> {
        let &Routed { policy, caller, route, path, head, ref tenant, body, now, deadline, standing, is_batch } = routed;
        let mut cache_control = head.cache_control();
        if caller.ignores_no_cache {
            cache_control = cache_control.without_bypass();
        }
        let repeat = Repeat::new(caller, route, path, tenant.as_ref().copied().unwrap_or_default(), body);
        let logs_customers = policy.settings.access_log.access == AccessLog::All;
        let known = policy.hit_memo.find(&repeat);
        if tenant.is_ok()
            && (self.cluster.is_alone() || !(logs_customers || standing == Standing::Unknown))
            && let Some(known) = known.as_deref().and_then(Option::as_ref)
            && let Some(hit) = known.answer.fresh(&cache_control, now)
        {
            info.tenant = Some(known.tenant);
            if logs_customers {
                info.customers = hit.subject().customer_id().map(str::to_owned).into_iter().collect();
            }
            policy.handles.hit(known.tenant, route.index, hit.freshness().negative);
            // The customer was noted as served at the last lookup, ten seconds ago at most.
            self.cluster.count_hit(standing);
            return Ok(Step::Done(Reply::hit(hit, now)));
        }
        let envelope = body::envelope(&route.kind, body)?;
        info.customers = body::customers(&route.kind, head, &envelope)?;
        let tenant = policy.tenants.choose(tenant.clone()?, envelope.root(), caller.sole_tenant());
        let tenant = tenant.map_err(GatewayError::UnknownTenant)?;
        info.tenant = Some(tenant.index);
        if !caller.may_use_tenant(tenant) {
            return Err(GatewayError::Forbidden(Denied::Tenant));
        }
        let request = Request {
            policy,
            caller,
            route,
            path,
            repeat,
            envelope: &envelope,
            tenant,
            cache_control,
            info,
            now,
            deadline,
            cluster: &self.cluster,
            served: &self.served,
            standing,
            is_batch,
        };
        match &route.kind {
            KindSettings::Cached(cached) => self.reads.read(&request, cached),
            KindSettings::Write(write) => self.writes.write(&request, write),
            KindSettings::Pass => self.passes.pass(&request, false),
            KindSettings::Off => Err(GatewayError::UnknownRoute),
        }
    }
}
