//! The access log: counts, durations, and a line for each request and each write.

use std::sync::Arc;

use arc_swap::Guard;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};

use super::Gateway;
use super::policy::Policy;
use super::request_head::RequestHead;
use crate::clock::Boot;
use crate::metrics::{CacheUse, Label, Limit};
use crate::pseudonym::Pseudonyms;
use crate::reply::{self, CacheStatus, GatewayError, OverCapacity, Reply};
use crate::settings::{AccessLog, KindSettings};
use crate::upstream::NotSent;

/// Customers that are shown in one line; of further ones, only their number.
const MAX_SHOWN_CUSTOMERS: usize = 10;

/// The status that is counted for a request whose caller disconnected before it was answered, as in nginx.
const CLIENT_CLOSED_REQUEST: u16 = 499;
/// The status that is counted for a request whose task panicked: its connection is closed without an answer.
const PANICKED: u16 = 500;

/// What the log says about a request; names by their indices in the request's policy.
#[derive(Clone, Debug)]
pub(super) struct RequestInfo {
    pub(super) id: HeaderValue,
    trace: Option<String>,
    pub(super) route: Option<usize>,
    /// 0: anonymous.
    pub(super) caller: usize,
    pub(super) tenant: Option<usize>,
    pub(super) customers: Arc<[String]>,
}

impl RequestInfo {
    /// The request id as it is logged.
    pub(super) fn shown_id(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }
}

/// A request that is counted and logged when it ends, even if its caller disconnects.
pub(super) struct RequestGuard<'a> {
    gateway: &'a Gateway,
    policy: Guard<Arc<Policy>>,
    pub(super) info: RequestInfo,
    started: Boot,
    has_ended: bool,
}

impl<'a> RequestGuard<'a> {
    /// When the request was received.
    pub(super) const fn started(&self) -> Boot {
        self.started
    }

    pub(super) fn begin(gateway: &'a Gateway, head: &RequestHead<'_>, started: Boot) -> Self {
        let info = RequestInfo {
            id: head.request_id(),
            trace: head.trace_id().map(str::to_owned),
            route: None,
            caller: 0,
            tenant: None,
            customers: Arc::default(),
        };
        Self { gateway, policy: gateway.policy.load(), info, started, has_ended: false }
    }

    /// The policy of the request, and what is learned about it.
    pub(super) fn parts(&mut self) -> (&Arc<Policy>, &mut RequestInfo) {
        (&self.policy, &mut self.info)
    }

    /// Turns the borrowed guard of the policy into an owned one: a thread has few fast guard slots.
    pub(super) fn prepare_to_wait(&mut self) {
        self.policy = Guard::from_inner(Arc::clone(&self.policy));
    }

    /// Counts and logs the request, and returns its response, which uses the memory of `headers`.
    pub(super) fn end(mut self, result: Result<Reply, GatewayError>, headers: HeaderMap) -> Response<Bytes> {
        self.has_ended = true;
        let error = result.as_ref().err();
        if let Some(limit) = error.and_then(limit_of) {
            self.policy.handles.caller(self.info.caller).limited.of(limit).inc();
        }
        self.record(reply::status(&result), cache_use(&result), error.map(GatewayError::name));
        let id = std::mem::replace(&mut self.info.id, HeaderValue::from_static(""));
        reply::response(result, self.policy.is_write(&self.info), id, headers)
    }

    fn record(&self, status: u16, cache: CacheUse, error: Option<&'static str>) {
        let Self { gateway, policy, info, .. } = self;
        let took = gateway.time.boot().since(self.started);
        policy.handles.request(info.route, info.caller, status, cache, took);
        let is_logged = match policy.settings.access_log.access {
            AccessLog::All => true,
            AccessLog::Errors => status >= 400,
            AccessLog::None => false,
        };
        if is_logged {
            tracing::info!(
                route = policy.route_name(info).unwrap_or("none"),
                caller = policy.caller_name(info),
                tenant = policy.tenant_name(info),
                customers = shown(&gateway.pseudonyms, &info.customers),
                status,
                error,
                cache = cache.name(),
                ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                request_id = info.shown_id(),
                trace_id = info.trace,
                "request"
            );
        }
    }
}

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let (status, error) = match std::thread::panicking() {
                true => (PANICKED, "panic"),
                false => (CLIENT_CLOSED_REQUEST, "caller_left"),
            };
            self.record(status, CacheUse::None, Some(error));
        }
    }
}

/// The names of a request's route, caller and tenant.
impl Policy {
    fn route_name(&self, info: &RequestInfo) -> Option<&str> {
        self.routes.all().get(info.route?).map(|route| route.label.as_str())
    }

    /// Whether a request is for a write, as far as its route is known.
    fn is_write(&self, info: &RequestInfo) -> bool {
        let route = info.route.and_then(|index| self.routes.all().get(index));
        route.is_some_and(|route| matches!(route.kind, KindSettings::Write(_)))
    }

    fn caller_name(&self, info: &RequestInfo) -> Option<&str> {
        self.callers.by_index(info.caller).name.as_deref()
    }

    fn tenant_name(&self, info: &RequestInfo) -> Option<&str> {
        let index = info.tenant?;
        self.tenants.all().iter().find(|tenant| tenant.index == index).map(|tenant| tenant.name.as_str())
    }
}

/// Logs writes.
pub(super) struct WriteLog {
    pub(super) pseudonyms: Arc<Pseudonyms>,
}

impl WriteLog {
    /// One line for a write, whatever became of it.
    pub(super) fn write(
        &self,
        policy: &Policy,
        result: &Result<Reply, GatewayError>,
        info: &RequestInfo,
        customers: &[String],
    ) {
        if policy.settings.access_log.writes {
            tracing::info!(
                route = policy.route_name(info),
                caller = policy.caller_name(info),
                tenant = policy.tenant_name(info),
                customers = shown(&self.pseudonyms, customers),
                status = reply::status(result),
                error = result.as_ref().err().map(GatewayError::name),
                request_id = info.shown_id(),
                trace_id = info.trace,
                "write"
            );
        }
    }
}

/// Customers as they are logged.
fn shown(pseudonyms: &Pseudonyms, customers: &[String]) -> Option<String> {
    let names: Vec<_> = customers.iter().take(MAX_SHOWN_CUSTOMERS).map(|customer| pseudonyms.of(customer)).collect();
    let more = customers.len().saturating_sub(MAX_SHOWN_CUSTOMERS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!names.is_empty()).then(|| names.join(",") + &more)
}

fn cache_use(result: &Result<Reply, GatewayError>) -> CacheUse {
    match result {
        Ok(reply) => match reply.cache_status {
            CacheStatus::Hit { .. } => CacheUse::Hit,
            CacheStatus::Miss(_) | CacheStatus::Requested => CacheUse::Miss,
            CacheStatus::Collapsed => CacheUse::Collapsed,
            CacheStatus::Bypass => CacheUse::Bypass,
            CacheStatus::None => CacheUse::None,
            CacheStatus::Stale { .. } => CacheUse::Stale,
        },
        Err(_) => CacheUse::None,
    }
}

const fn limit_of(error: &GatewayError) -> Option<Limit> {
    match error {
        GatewayError::CallerLimited(_) => Some(Limit::Caller),
        GatewayError::NotSent(NotSent::Limited(_)) => Some(Limit::Upstream),
        GatewayError::OverCapacity(OverCapacity::Connections) => Some(Limit::Connections),
        GatewayError::OverCapacity(OverCapacity::Waiters) => Some(Limit::Waiters),
        _ => None,
    }
}
