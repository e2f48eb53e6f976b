//! What is known of a request, for the log and for counts.

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderValue;

use super::policy::Policy;
use crate::metrics::Limit;
use crate::reply::{GatewayError, OverCapacity, Shape};
use crate::route::Route;
use crate::settings::KindSettings;
use crate::tenant::Tenant;
use crate::trace::{Trace, TraceContext, Tracer};
use crate::upstream::{NotSent, Rejected};

/// What the log says about a request; names by their indices in the request's policy.
#[derive(Clone, Debug)]
pub(super) struct RequestInfo {
    pub(super) id: HeaderValue,
    pub(super) trace: Option<TraceContext>,
    /// The trace, if the request is sampled.
    pub(super) span: Option<Arc<Trace>>,
    pub(super) route: Option<usize>,
    /// 0: anonymous.
    pub(super) caller: usize,
    pub(super) tenant: Option<usize>,
    pub(super) customers: Arc<[String]>,
    /// The peer's address.
    pub(super) peer: SocketAddr,
    /// Whether it is a write, which has a line of its own.
    pub(super) has_own_line: bool,
    /// The shape in which it is answered.
    pub(super) shape: Shape,
}

impl RequestInfo {
    /// Begins the request's trace, if it is sampled: only when its caller is known, since everybody shares a quota.
    pub(super) fn begin_trace(&mut self, tracer: &Tracer) {
        self.span = tracer.begin(self.trace.as_ref());
        if let Some(span) = &self.span {
            self.trace = Some(*span.context());
        }
    }

    /// The request id as it is logged.
    pub(super) fn shown_id(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }

    /// The id of its trace as it is logged.
    pub(super) fn trace_id(&self) -> Option<String> {
        self.trace.as_ref().map(ToString::to_string)
    }
}

/// The names of a request's route, caller and tenant.
impl Policy {
    /// Counts an error by what it says about limits and the cache.
    pub(super) fn count_error(&self, info: &RequestInfo, error: &GatewayError) {
        if let Some(limit) = limit_of(error) {
            self.handles.caller(info.caller).limited.of(limit).inc();
        }
        if let (GatewayError::NotCached, Some(route)) = (error, info.route) {
            self.handles.route(route).not_cached.inc();
        }
    }

    pub(super) fn route_name(&self, info: &RequestInfo) -> Option<&str> {
        self.route(info).map(|route| route.label.as_str())
    }

    pub(super) fn route(&self, info: &RequestInfo) -> Option<&Route> {
        self.routes.all().get(info.route?).map(Arc::as_ref)
    }

    /// Whether a request is for a write, as far as its route is known.
    pub(super) fn is_write(&self, info: &RequestInfo) -> bool {
        self.route(info).is_some_and(|route| matches!(route.kind, KindSettings::Write(_)))
    }

    pub(super) fn caller_name(&self, info: &RequestInfo) -> Option<&str> {
        self.callers.by_index(info.caller).name.as_deref()
    }

    pub(super) fn tenant_name(&self, info: &RequestInfo) -> Option<&str> {
        self.tenant(info).map(|tenant| tenant.name.as_str())
    }

    pub(super) fn tenant(&self, info: &RequestInfo) -> Option<&Tenant> {
        let index = info.tenant?;
        self.tenants.all().iter().find(|tenant| tenant.index == index).map(Arc::as_ref)
    }
}

const fn limit_of(error: &GatewayError) -> Option<Limit> {
    match error {
        GatewayError::CallerLimited(_) => Some(Limit::Caller),
        GatewayError::NotSent(NotSent::Limited { .. } | NotSent::Rejected(Rejected::TooManyInFlight)) => {
            Some(Limit::Upstream)
        }
        GatewayError::OverCapacity(OverCapacity::Connections) => Some(Limit::Connections),
        GatewayError::OverCapacity(OverCapacity::Waiters) => Some(Limit::Waiters),
        _ => None,
    }
}
