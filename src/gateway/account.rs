//! What operators learn of a request: counts, times, and a line in the log.

use arc_swap::Guard;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use std::sync::Arc;

use super::policy::Policy;
use super::{Awaited, Facts, Fields, Gateway};
use crate::clock::Boot;
use crate::metrics::{CacheUse, Label, Limit};
use crate::reply::{self, Refusal, Reply, Unavailable, Way};
use crate::settings::AccessLog;
use crate::upstream::FailureKind;

/// Customers whose names stand in one line of the log; of further ones, only how many there are.
const SHOWN_CUSTOMERS: usize = 10;

/// What is counted for a request whose caller left before there was an answer, as nginx has it.
const CALLER_LEFT: u16 = 499;
/// What is counted for a request whose task panicked: its connection is closed without an answer.
const PANICKED: u16 = 500;

/// A request that operators will learn of, also where its caller leaves.
pub(super) struct Record<'a> {
    gateway: &'a Arc<Gateway>,
    pub(super) policy: Guard<Arc<Policy>>,
    pub(super) facts: Facts,
    started: Boot,
    ended: bool,
}

impl<'a> Record<'a> {
    pub(super) fn begin(gateway: &'a Arc<Gateway>, fields: &Fields<'_>) -> Self {
        let now = gateway.clock.now();
        let (policy, facts) = (gateway.policy.load(), Facts::new(fields, now));
        Self { gateway, policy, facts, started: now.boot, ended: false }
    }

    /// Waits for the answer.
    pub(super) async fn wait(&mut self, awaited: Awaited) -> Result<Reply, Refusal> {
        // A thread can lend a few of these, which are for those who answer at once.
        self.policy = Guard::from_inner(Arc::clone(&self.policy));
        match awaited {
            // Apart, so that nobody else needs room for it.
            Awaited::Flight(boarded) => Box::pin(self.gateway.wait(&self.policy, boarded)).await,
            Awaited::Task(task, presence) => task.await.unwrap_or_else(|_| {
                // A task that is lost may have sent; only writes go on when their callers leave.
                let lost = if presence.is_none() { Refusal::OutcomeUnknown } else { Refusal::UpstreamFailed };
                Err(lost(FailureKind::Reset))
            }),
        }
    }

    /// Accounts for the request, and writes its response, with its head in the memory of `fields`.
    pub(super) fn end(mut self, outcome: Result<Reply, Refusal>, fields: HeaderMap) -> Response<Bytes> {
        self.ended = true;
        let refusal = outcome.as_ref().err();
        if let Some(limit) = refusal.and_then(limit_of) {
            self.policy.handles.caller(self.facts.caller).limited.of(limit).inc();
        }
        self.account(reply::status(&outcome), cache_use(&outcome), refusal.map(Refusal::name));
        let id = std::mem::replace(&mut self.facts.id, HeaderValue::from_static(""));
        reply::response(outcome, id, fields)
    }

    fn account(&self, status: u16, cache: CacheUse, error: Option<&'static str>) {
        let Self { gateway, policy, facts, .. } = self;
        let took = gateway.clock.boot().since(self.started);
        policy.handles.request(facts.route, facts.caller, status, cache, took);
        let logged = match policy.settings.log.access {
            AccessLog::All => true,
            AccessLog::Errors => status >= 400,
            AccessLog::None => false,
        };
        if logged {
            tracing::info!(
                route = policy.route_name(facts).unwrap_or("none"),
                caller = policy.caller_name(facts),
                tenant = policy.tenant_name(facts),
                customers = gateway.shown(&facts.customers),
                status,
                error,
                cache = cache.name(),
                ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                request_id = facts.shown_id(),
                trace_id = facts.trace,
                "request"
            );
        }
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let (status, error) =
                if std::thread::panicking() { (PANICKED, "panic") } else { (CALLER_LEFT, "caller_left") };
            self.account(status, CacheUse::None, Some(error));
        }
    }
}

impl Facts {
    /// The request's id as the log has it.
    pub(super) fn shown_id(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }
}

/// The names of what a request came to, as the log has them.
impl Policy {
    fn route_name(&self, facts: &Facts) -> Option<&str> {
        self.routes.all().get(facts.route?).map(|route| route.label.as_str())
    }

    fn caller_name(&self, facts: &Facts) -> Option<&str> {
        self.callers.numbered(facts.caller).name.as_deref()
    }

    fn tenant_name(&self, facts: &Facts) -> Option<&str> {
        let number = facts.tenant?;
        self.tenants.all().iter().find(|tenant| tenant.index == number).map(|tenant| tenant.name.as_str())
    }
}

impl Gateway {
    /// One line for a write, whatever came of it.
    pub(super) fn log_write(
        &self,
        policy: &Policy,
        outcome: &Result<Reply, Refusal>,
        facts: &Facts,
        customers: &[String],
    ) {
        if policy.settings.log.writes {
            tracing::info!(
                route = policy.route_name(facts),
                caller = policy.caller_name(facts),
                tenant = policy.tenant_name(facts),
                customers = self.shown(customers),
                status = reply::status(outcome),
                error = outcome.as_ref().err().map(Refusal::name),
                request_id = facts.shown_id(),
                trace_id = facts.trace,
                "write"
            );
        }
    }

    /// Customers as the log may have them.
    fn shown(&self, customers: &[String]) -> Option<String> {
        let names: Vec<_> =
            customers.iter().take(SHOWN_CUSTOMERS).map(|customer| self.pseudonyms.of(customer)).collect();
        let more = customers.len().saturating_sub(SHOWN_CUSTOMERS);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        (!names.is_empty()).then(|| names.join(",") + &more)
    }
}

fn cache_use(outcome: &Result<Reply, Refusal>) -> CacheUse {
    match outcome {
        Ok(reply) => match reply.way {
            Way::Hit { .. } => CacheUse::Hit,
            Way::Miss(_) | Way::Requested => CacheUse::Miss,
            Way::Collapsed => CacheUse::Collapsed,
            Way::Bypass => CacheUse::Bypass,
            Way::Own => CacheUse::None,
            Way::Stale { .. } => CacheUse::Stale,
        },
        Err(_) => CacheUse::None,
    }
}

const fn limit_of(refusal: &Refusal) -> Option<Limit> {
    match refusal {
        Refusal::CallerLimited(_) => Some(Limit::Caller),
        Refusal::UpstreamLimited(_) => Some(Limit::Upstream),
        Refusal::Unavailable(Unavailable::Connections) => Some(Limit::Connections),
        Refusal::Unavailable(Unavailable::Waiters) => Some(Limit::Waiters),
        _ => None,
    }
}
