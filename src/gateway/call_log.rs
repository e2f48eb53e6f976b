//! Log lines about calls to the platform: one when something begins or changes, never one per call.

use std::time::Duration;

use super::policy::Policy;
use crate::limit::Throttled;
use crate::metrics::BreakerState;
use crate::route::Route;
use crate::signer::Call;
use crate::tenant::Tenant;
use crate::upstream::{Episode, Observer, Scope, Transition};

/// Longest path that is logged; those of the platform are less than half as long.
const MAX_SHOWN_PATH: usize = 128;

/// Logs and counts what happens to a call.
pub(super) struct CallLog<'a> {
    pub(super) policy: &'a Policy,
    pub(super) route: &'a Route,
    pub(super) call: &'a Call,
    /// How the attempt ended, in words; empty if it did not.
    pub(super) cause: String,
}

impl CallLog<'_> {
    /// Attempts began to fail in a way that they did not before.
    pub(super) fn failures_began(&self, outcome: &str) {
        let (tenant, route) = (self.call.tenant.name.as_str(), shown(&self.call.path));
        tracing::warn!(tenant, route, outcome, cause = self.cause, "upstream attempts failing");
    }

    /// The platform throttled a call.
    pub(super) fn throttled(&self, throttled: &Throttled) {
        let (tenant, route) = (self.call.tenant.name.as_str(), shown(&self.call.path));
        let Throttled { allowed, rate, .. } = throttled;
        tracing::warn!(
            tenant,
            route,
            pause_ms = millis(throttled.pause),
            allowed,
            rate,
            "upstream throttled, route paused"
        );
    }
}

impl Observer for CallLog<'_> {
    fn breaker_changed(&self, scope: Scope, transition: Transition) {
        let tenant = self.call.tenant.name.as_str();
        let route = match scope {
            Scope::Path => shown(&self.call.path),
            Scope::Tenant => "all",
        };
        let state = match transition {
            Transition::Opened(pause) => {
                tracing::warn!(tenant, route, cause = self.cause, open_ms = millis(pause), "breaker opened");
                BreakerState::Open
            }
            Transition::HalfOpened => {
                tracing::info!(tenant, route, "breaker half-open");
                BreakerState::HalfOpen
            }
            Transition::Closed => {
                tracing::info!(tenant, route, "breaker closed");
                BreakerState::Closed
            }
        };
        let routes = self.policy.routes.all().iter().map(|route| route.index);
        let concerned = routes.filter(|index| scope == Scope::Tenant || *index == self.route.index);
        let handles = |index| self.policy.handles.call(self.call.tenant.index, index);
        concerned.for_each(|index| handles(index).breaker_transitions.of(state).inc());
    }
}

/// Attempts fail no more.
pub(super) fn failures_ended(tenant: &Tenant, path: &str, episode: &Episode) {
    tracing::info!(
        tenant = tenant.name,
        route = shown(path),
        outcome = episode.kind,
        count = episode.count,
        lasted_ms = millis(episode.last.since(episode.began)),
        "upstream attempts recovered"
    );
}

/// A path as it stands in the log: under a wildcard callers choose it.
fn shown(path: &str) -> &str {
    path.get(..MAX_SHOWN_PATH).unwrap_or(path)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
