//! What operators learn of a request: counts, times, and a line in the log.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response};

use super::policy::Policy;
use super::{Facts, Gateway};
use crate::clock::{Boot, Now};
use crate::metrics::{CacheUse, Label, Limit};
use crate::reply::{self, Refusal, Reply, Unavailable, Way};
use crate::settings::AccessLog;

/// Customers whose names stand in one line of the log; of further ones, only how many there are.
const SHOWN_CUSTOMERS: usize = 10;

/// What is counted for a request whose caller left before there was an answer, as nginx has it.
const CALLER_LEFT: u16 = 499;

/// A request that operators will learn of, also where its caller leaves.
pub(super) struct Record {
    gateway: Arc<Gateway>,
    pub(super) policy: Arc<Policy>,
    pub(super) facts: Facts,
    started: Boot,
    /// The time by which the request is judged.
    pub(super) now: Now,
    /// Whether it was answered without waiting for anything, which takes no time worth another look at the clock.
    pub(super) at_once: bool,
    ended: bool,
}

impl Record {
    pub(super) fn begin(gateway: &Arc<Gateway>, headers: &HeaderMap) -> Self {
        let now = gateway.clock.now();
        Self {
            policy: gateway.policy.load_full(),
            facts: Facts::of(headers),
            started: now.boot,
            now,
            at_once: false,
            gateway: Arc::clone(gateway),
            ended: false,
        }
    }

    /// Accounts for the request, and writes its response.
    pub(super) fn end(mut self, outcome: &Result<Reply, Refusal>) -> Response<Bytes> {
        self.ended = true;
        let refusal = outcome.as_ref().err();
        if let Some(limit) = refusal.and_then(limit_of) {
            let caller = self.facts.caller.as_ref().unwrap_or(self.policy.callers.anonymous());
            self.policy.handles.caller(caller.index).limited.of(limit).inc();
        }
        self.account(reply::status(outcome), cache_use(outcome), refusal.map(Refusal::name));
        reply::response(outcome, &self.facts.id)
    }

    fn account(&self, status: u16, cache: CacheUse, error: Option<&'static str>) {
        let Self { gateway, policy, facts, .. } = self;
        let took = if self.at_once { Duration::ZERO } else { gateway.clock.boot().since(self.started) };
        let route = facts.route.as_ref();
        let caller = facts.caller.as_ref().unwrap_or(policy.callers.anonymous());
        policy.handles.request(route.map(|route| route.index), caller.index, status, cache, took);
        let logged = match policy.settings.log.access {
            AccessLog::All => true,
            AccessLog::Errors => status >= 400,
            AccessLog::None => false,
        };
        if logged {
            tracing::info!(
                route = route.map_or("none", |route| route.label.as_str()),
                caller = caller.name.as_deref(),
                tenant = facts.tenant.as_ref().map(|tenant| tenant.name.as_str()),
                customers = gateway.shown(&facts.customers),
                status,
                error,
                cache = cache.name(),
                ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                request_id = facts.id,
                trace_id = facts.trace,
                "request"
            );
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.ended {
            self.account(CALLER_LEFT, CacheUse::None, Some("caller_left"));
        }
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
                route = facts.route.as_ref().map(|route| route.label.as_str()),
                caller = facts.caller.as_ref().and_then(|caller| caller.name.as_deref()),
                tenant = facts.tenant.as_ref().map(|tenant| tenant.name.as_str()),
                customers = self.shown(customers),
                status = reply::status(outcome),
                error = outcome.as_ref().err().map(Refusal::name),
                request_id = facts.id,
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
