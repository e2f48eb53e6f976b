//! Log lines about calls to the platform: one when something begins, changes or ends, never one per call.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use super::path::shown_path;
use super::request::Job;
use crate::answer::{Answer, Verdict};
use crate::clock::millis;
use crate::limit::{Ended, Throttled};
use crate::metrics::BreakerState;
use crate::tenant::Tenant;
use crate::upstream::{Circuit, Episode, NotSent, Observer, Outcome, Rejected, Retry, Scope, Transition, with_sources};

/// Logs and counts what happens to a call.
pub(super) struct CallLog<'a> {
    job: &'a Job,
    /// How the attempt ended; `None` if it did not.
    outcome: Option<&'a Outcome>,
}

impl<'a> CallLog<'a> {
    /// Of a call whose attempt begins.
    pub(super) const fn begun(job: &'a Job) -> Self {
        Self { job, outcome: None }
    }

    /// Of a call whose attempt ended.
    pub(super) const fn new(job: &'a Job, outcome: &'a Outcome) -> Self {
        Self { job, outcome: Some(outcome) }
    }

    fn tenant(&self) -> &str {
        &self.job.call.tenant.name
    }

    fn route(&self) -> Cow<'_, str> {
        shown_path(&self.job.call.path)
    }

    /// How the attempt ended, in words.
    pub(super) fn cause(&self) -> String {
        self.outcome.map(cause).unwrap_or_default()
    }

    /// Attempts began to fail in a way that they did not before.
    pub(super) fn failures_began(&self, outcome: &str, reason: &str) {
        let (route, cause) = (&*self.route(), self.cause());
        tracing::warn!(tenant = self.tenant(), route, outcome, reason, cause, "upstream attempts failing");
    }

    /// Calls began to be rejected because of a limit.
    pub(super) fn rejections_began(&self, reason: &str) {
        tracing::warn!(tenant = self.tenant(), route = &*self.route(), reason, "upstream calls rejected");
    }

    /// The platform throttles although the rate limit was kept, and nothing has succeeded since.
    pub(super) fn key_suspect(&self, answer: &Answer) {
        let code = answer.code();
        tracing::warn!(
            tenant = self.tenant(),
            route = &*self.route(),
            code,
            "signing key may be refused: the platform has the same code for throttling, but the rate limit was kept"
        );
    }

    /// A call succeeded after the key was suspect.
    pub(super) fn key_accepted(&self) {
        tracing::info!(tenant = self.tenant(), "signing key accepted again");
    }

    /// The platform asked for a pause (`Retry-After`).
    pub(super) fn asked_to_pause(&self, pause: Duration) {
        let (route, pause_ms) = (&*self.route(), millis(pause));
        tracing::warn!(tenant = self.tenant(), route, pause_ms, "upstream sent Retry-After, route paused");
    }

    /// The tenant's retry budget is exhausted.
    pub(super) fn retries_denied(&self) {
        let route = &*self.route();
        tracing::warn!(tenant = self.tenant(), route, "retry budget exhausted, failed reads are not retried");
    }

    /// The platform throttled a call.
    pub(super) fn throttled(&self, throttled: &Throttled) {
        let Throttled { pause, allowed, rate } = throttled;
        let (route, pause_ms) = (&*self.route(), millis(*pause));
        tracing::warn!(tenant = self.tenant(), route, pause_ms, allowed, rate, "upstream throttled, route paused");
    }
}

impl Observer for CallLog<'_> {
    fn breaker_changed(&self, scope: Scope, transition: Transition) {
        let Job { policy, call, .. } = self.job;
        let route = match scope {
            Scope::Path => self.route(),
            Scope::Tenant => Cow::Borrowed("all"),
        };
        let (tenant, route) = (self.tenant(), &*route);
        let state = match transition {
            Transition::Opened(pause) => {
                tracing::warn!(tenant, route, cause = self.cause(), open_ms = millis(pause), "breaker opened");
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
        let affected = policy.routes.all().iter();
        let affected = affected.filter(|route| scope == Scope::Tenant || route.index == self.job.route.index);
        // Routes with the same label share a counter.
        let counters: BTreeMap<&str, usize> = affected.map(|route| (route.label.as_str(), route.index)).collect();
        let handles = |index| policy.handles.call(call.tenant.index, index);
        counters.into_values().for_each(|index| handles(index).breaker_transitions.of(state).inc());
    }
}

/// Attempts no longer fail, and calls are no longer rejected.
pub(super) fn failures_ended(tenant: &Tenant, path: &str, episode: &Episode) {
    tracing::info!(
        tenant = tenant.name,
        route = &*shown_path(path),
        reason = episode.kind,
        count = episode.count,
        lasted_ms = millis(episode.last.since(episode.began)),
        "upstream attempts recovered"
    );
}

/// Calls on a path are no longer paused or held back.
pub(super) fn throttling_ended(tenants: &str, path: &str, ended: Ended) {
    let route = &*shown_path(path);
    match ended {
        Ended::Throttling { rate } => tracing::info!(tenant = tenants, route, rate, "upstream throttling ended"),
        Ended::Pause => tracing::info!(tenant = tenants, route, "upstream pause ended"),
    }
}

/// Failed reads are retried again.
pub(super) fn denial_ended(tenant: &Tenant, episode: &Episode) {
    let lasted_ms = millis(episode.last.since(episode.began));
    tracing::info!(tenant = tenant.name, count = episode.count, lasted_ms, "retry budget available again");
}

/// How an attempt ended, in words: an error with its sources, or what the platform answered.
fn cause(outcome: &Outcome) -> String {
    let answered = match outcome {
        Outcome::Answered(answered) => answered,
        Outcome::Unknown(_) | Outcome::NotSent(_) => {
            return outcome.error().map(|error| with_sources(error)).unwrap_or_default();
        }
    };
    match answered.verdict {
        Verdict::Http5xx | Verdict::HttpOther => format!("HTTP status {}", answered.answer.status),
        Verdict::Throttled => "throttled".to_owned(),
        Verdict::Error => "system error".to_owned(),
        Verdict::Garbage => "the answer is not JSON".to_owned(),
        Verdict::Ambiguous => "the answer has status, code or data twice".to_owned(),
        Verdict::Success(_) | Verdict::Exception => String::new(),
    }
}

/// Counts a call that is rejected for want of a slot or of capacity in flight, and logs when that begins.
pub(super) fn count_rejection(job: &Job, circuit: &Circuit, not_sent: &NotSent) {
    let is_rejection = matches!(not_sent, NotSent::Limited { .. } | NotSent::Rejected(Rejected::TooManyInFlight));
    if !is_rejection {
        return;
    }
    job.metrics().rejected.inc();
    if circuit.rejected(not_sent.name()) {
        CallLog::begun(job).rejections_began(not_sent.name());
    }
}

/// Takes a retry out of the tenant's budget, if one is left.
pub(super) fn may_retry(job: &Job, circuit: &Circuit) -> bool {
    match circuit.take_retry() {
        Retry::Granted => true,
        Retry::Denied { is_first } => {
            if is_first {
                CallLog::begun(job).retries_denied();
            }
            false
        }
    }
}
