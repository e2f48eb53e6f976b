//! The access log: counts, durations, and a line for each request and each write.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::Guard;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response};

use super::path::shown_path;
use super::policy::Policy;
use super::request_head::RequestHead;
use super::request_info::RequestInfo;
use super::status::Ending;
use super::{AUDIT, Gateway, Noted};
use crate::answer::Answer;
use crate::call_state::CallState;
use crate::clock::{Boot, millis};
use crate::metrics::{CacheUse, Label};
use crate::pseudonym::Pseudonyms;
use crate::reply::{self, CacheStatus, GatewayError, Reply, Shape, TypedReply};
use crate::settings::AccessLog;
use crate::trace::{Trace, attribute};

/// Customers that are shown in one line; of further ones, only their number.
const MAX_SHOWN_CUSTOMERS: usize = 10;

/// The platform's code of a success.
const SUCCESS: &str = "0";

/// The status that is counted for a request whose caller disconnected before it was answered, as in nginx.
const CLIENT_CLOSED_REQUEST: u16 = 499;
/// The status that is counted for a request whose task panicked: its connection is closed without an answer.
const PANICKED: u16 = 500;

/// A request that is counted and logged when it ends, even if its caller disconnects.
pub(super) struct RequestGuard<'a> {
    gateway: &'a Gateway,
    policy: Guard<Arc<Policy>>,
    pub(super) info: RequestInfo,
    started: Boot,
    /// What its call to the platform takes, if it waited for one, so that its head was dropped.
    call_state: Option<Arc<CallState>>,
    /// The path then, unless it is its route's pattern.
    path: Option<Box<str>>,
    has_ended: bool,
}

/// How a request ended.
struct Ended<'a> {
    status: u16,
    cache: CacheUse,
    /// The name of the error, if it was one of the gateway's.
    error: Option<&'static str>,
    /// What failed towards the platform.
    reason: Option<&'static str>,
    method: Option<&'a str>,
    path: Option<&'a str>,
    /// The answer.
    answer: Option<&'a Answer>,
    /// How many requests of a batch failed.
    failed: usize,
    /// The platform's code, if it was read already.
    code: Option<&'a str>,
    /// The length of the body.
    bytes: usize,
    /// Whether it is known to be a success.
    is_success: bool,
}

impl<'a> RequestGuard<'a> {
    pub(super) fn begin(gateway: &'a Gateway, head: &RequestHead<'_>, peer: SocketAddr, started: Boot) -> Self {
        let info = RequestInfo {
            id: head.request_id(),
            trace: head.trace_context(),
            span: None,
            route: None,
            caller: 0,
            tenant: None,
            customers: Arc::default(),
            peer,
            has_own_line: false,
            shape: Shape::Platform,
        };
        Self { gateway, policy: gateway.policy.load(), info, started, call_state: None, path: None, has_ended: false }
    }

    /// The policy of the request, and what is learned about it.
    pub(super) fn parts(&mut self) -> (&Arc<Policy>, &mut RequestInfo) {
        (&self.policy, &mut self.info)
    }

    /// Turns the borrowed guard of the policy into an owned one: a thread has few fast guard slots.
    pub(super) fn prepare_to_wait(&mut self, path: &str, call_state: Arc<CallState>) {
        self.call_state = Some(call_state);
        let is_pattern = self.policy.route(&self.info).is_some_and(|route| !route.wildcard)
            && matches!(self.info.shape, Shape::Platform);
        self.path = (!is_pattern).then(|| shown_path(path).into());
        let settings = &self.policy.settings.access_log;
        self.info.has_own_line =
            settings.writes && settings.access == AccessLog::Errors && self.policy.is_write(&self.info);
        self.policy = Guard::from_inner(Arc::clone(&self.policy));
    }

    /// Counts and logs the request, and returns its response, which uses the memory of `headers`.
    pub(super) fn end(
        mut self,
        result: Result<Reply, GatewayError>,
        head: &Parts,
        headers: HeaderMap,
    ) -> Response<Bytes> {
        let mut result = result;
        let typed = match (&self.info.shape, &result) {
            (Shape::Coupons(view), Ok(reply)) => {
                let typed = self.gateway.typed.reply(&self.policy, &self.info, view, reply);
                if typed.as_ref().is_ok_and(|typed| typed.error.is_some()) {
                    self.info.customers = Arc::from([view.customer.clone()]);
                }
                typed.map_err(|error| result = Err(error)).ok()
            }
            _ => None,
        };
        self.has_ended = true;
        let error = result.as_ref().err();
        error.iter().for_each(|error| self.policy.count_error(&self.info, error));
        let batch = result.as_ref().ok().and_then(|reply| reply.batch.as_deref().copied()).unwrap_or_default();
        self.record(&Ended {
            status: typed.as_ref().map_or_else(|| reply::status(&result), |typed| typed.status.as_u16()),
            cache: cache_use(&result),
            error: error.map(GatewayError::name).or(typed.as_ref().and_then(|typed| typed.error)).or(batch.error),
            bytes: match (&typed, &result) {
                (Some(typed), _) => typed.bytes(),
                (None, Ok(reply)) => reply.answer.body.len(),
                (None, Err(_)) => 0,
            },
            reason: error.and_then(GatewayError::reason).or(batch.reason),
            failed: batch.failed,
            code: typed.as_ref().and_then(TypedReply::platform_code),
            method: Some(head.method.as_str()),
            path: Some(head.uri.path()),
            answer: result.as_ref().ok().map(|reply| &*reply.answer),
            is_success: matches!(&result, Ok(Reply { cache_status: CacheStatus::Miss { is_success: true, .. }, .. })),
        });
        let id = std::mem::replace(&mut self.info.id, HeaderValue::from_static(""));
        reply::response(result, typed, &self.info.shape, self.policy.is_write(&self.info), id, headers)
    }

    fn record(&self, ended: &Ended<'_>) {
        let Self { gateway, policy, info, .. } = self;
        let Ended { status, cache, error, reason, method, path, answer, failed, bytes, is_success, .. } = *ended;
        let now = gateway.time.boot();
        let took = now.since(self.started);
        policy.handles.request(info.route, info.caller, status, cache, took);
        let is_logged = match policy.settings.access_log.access {
            AccessLog::All => true,
            AccessLog::Errors => status >= 400 || failed > 0,
            AccessLog::None => false,
        };
        // A success says nothing that an operator asks about, and reading it would cost more than all the rest.
        let is_read = self.call_state.is_some() && (is_logged || !is_success);
        let code = ended.code.map(str::to_owned).or_else(|| answer.filter(|_| is_read).and_then(Answer::code));
        let ending = Ending::of(status, error, code.as_deref().is_some_and(|code| code != SUCCESS));
        gateway.watch.noted.note(took, ending, now, || self.noted(ended, code.clone(), now));
        if let Some(span) = &info.span {
            self.record_span(span, ended, now);
        }
        if is_logged && !info.has_own_line {
            let of_route = || self.path.as_deref().or_else(|| policy.route_name(info)).map(Cow::Borrowed);
            let call_state = self.call_state.as_deref();
            let path = if call_state.is_some() { of_route() } else { path.map(shown_path) };
            tracing::info!(
                peer = %info.peer,
                method,
                path = path.as_deref(),
                route = policy.route_name(info).unwrap_or("none"),
                caller = policy.caller_name(info),
                tenant = policy.tenant_name(info),
                customers = shown(&gateway.pseudonyms, &info.customers),
                status,
                error,
                reason,
                code,
                failed = (failed > 0).then_some(failed),
                bytes,
                cache = cache.name(),
                attempts = call_state.map(CallState::attempts),
                queue_ms = call_state.map(|call_state| call_state.queue.total_ms(now)),
                upstream_ms = call_state.map(|call_state| call_state.upstream.total_ms(now)),
                ms = millis(took),
                request_id = info.shown_id(),
                trace_id = info.trace_id(),
                "request"
            );
        }
    }
}

impl RequestGuard<'_> {
    /// The span of the request.
    fn record_span(&self, span: &Trace, ended: &Ended<'_>, now: Boot) {
        let Self { gateway, policy, info, .. } = self;
        let route = policy.route_name(info).unwrap_or("none");
        let attributes = [
            attribute("http.request.method", ended.method.unwrap_or("POST")),
            attribute("http.route", route),
            attribute("url.scheme", if policy.tls.is_some() { "https" } else { "http" }),
            attribute("http.response.status_code", ended.status),
            attribute("client.address", info.peer.ip().to_string()),
            attribute("zvgate.cache", ended.cache.name()),
            attribute("zvgate.request_id", info.shown_id()),
            policy.tenant_name(info).and_then(|tenant| attribute("zvgate.tenant", tenant)),
            policy.caller_name(info).and_then(|caller| attribute("zvgate.caller", caller)),
            shown(&gateway.pseudonyms, &info.customers).and_then(|customers| attribute("zvgate.customers", customers)),
        ];
        let status = ended.status.to_string();
        let error = ended.reason.or(ended.error).or((ended.status >= 500).then_some(status.as_str()));
        span.request(&format!("{} {route}", ended.method.unwrap_or("POST")), [self.started, now], attributes, error);
    }

    /// The request as operators see it.
    fn noted(&self, ended: &Ended<'_>, code: Option<String>, now: Boot) -> Noted {
        let Self { gateway, policy, info, .. } = self;
        let call_state = self.call_state.as_deref();
        Noted {
            request_id: info.shown_id().to_owned(),
            trace_id: info.trace_id(),
            route: policy.route_name(info).unwrap_or("none").to_owned(),
            caller: policy.caller_name(info).map(str::to_owned),
            tenant: policy.tenant_name(info).map(str::to_owned),
            error: ended.error,
            reason: ended.reason,
            code,
            cache: ended.cache.name(),
            attempts: call_state.map_or(0, CallState::attempts),
            queue_ms: call_state.map_or(0, |call_state| call_state.queue.total_ms(now)),
            upstream_ms: call_state.map_or(0, |call_state| call_state.upstream.total_ms(now)),
            customer_ids: Arc::clone(&info.customers),
            ..Noted::ended(gateway.time.clock.wall(), now.since(self.started), ended.status)
        }
    }
}

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let (status, error) = match std::thread::panicking() {
                true => {
                    self.gateway.metrics.panics.inc();
                    (PANICKED, "panic")
                }
                false => (CLIENT_CLOSED_REQUEST, "caller_left"),
            };
            let (error, cache) = (Some(error), CacheUse::None);
            self.record(&Ended {
                status,
                cache,
                error,
                reason: None,
                method: None,
                path: None,
                answer: None,
                failed: 0,
                code: None,
                bytes: 0,
                is_success: false,
            });
        }
    }
}

impl Gateway {
    /// One line for an invalidation by a caller.
    pub(super) fn audit_invalidation(&self, policy: &Policy, info: &RequestInfo, dropped: usize) {
        tracing::info!(
            target: AUDIT,
            peer = %info.peer,
            caller = policy.caller_name(info),
            tenant = policy.tenant_name(info),
            customers = shown(&self.pseudonyms, &info.customers),
            dropped,
            request_id = info.shown_id(),
            trace_id = info.trace_id(),
            "invalidate"
        );
    }
}

/// Customers as they are logged.
pub(super) fn shown(pseudonyms: &Pseudonyms, customers: &[String]) -> Option<String> {
    let names: Vec<_> = customers.iter().take(MAX_SHOWN_CUSTOMERS).map(|customer| pseudonyms.of(customer)).collect();
    let more = customers.len().saturating_sub(MAX_SHOWN_CUSTOMERS);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!names.is_empty()).then(|| names.join(",") + &more)
}

fn cache_use(result: &Result<Reply, GatewayError>) -> CacheUse {
    match result {
        Ok(reply) => match reply.cache_status {
            CacheStatus::Hit { .. } => CacheUse::Hit,
            CacheStatus::Miss { .. } | CacheStatus::Requested => CacheUse::Miss,
            CacheStatus::Collapsed => CacheUse::Collapsed,
            CacheStatus::Bypass => CacheUse::Bypass,
            CacheStatus::None => match &reply.batch {
                None => CacheUse::None,
                Some(batch) if batch.has_waited => CacheUse::Miss,
                Some(_) => CacheUse::Hit,
            },
            CacheStatus::Stale { .. } => CacheUse::Stale,
        },
        Err(_) => CacheUse::None,
    }
}
