//! Spans of sampled requests, with attributes after OpenTelemetry's conventions for HTTP and for databases. Customers appear as in the log.

use super::attempt_result::result_of;
use super::path::shown_path;
use super::request::Job;
use crate::clock::Boot;
use crate::metrics::{AttemptResult, Label};
use crate::trace::{Kind, attribute};
use crate::upstream::{AttemptError, Outcome};

/// The error of an outcome, if it is one.
fn error_of(outcome: &Outcome) -> Option<&'static str> {
    match (outcome, result_of(outcome)) {
        (Outcome::NotSent(not_sent), _) => Some(not_sent.name()),
        (_, AttemptResult::Ok | AttemptResult::Exception) => None,
        (_, result) => Some(outcome.error().map_or(result.name(), |error| error.failure().name())),
    }
}

impl Job {
    /// The time, if the request is traced.
    pub(super) fn traced_at(&self) -> Option<Boot> {
        self.trace.as_ref().map(|trace| trace.now())
    }

    /// The call to the platform ended, with all its attempts.
    pub(super) fn fetch_span(&self, began: Option<Boot>, outcome: &Outcome) {
        let (Some(trace), Some(began)) = (&self.trace, began) else { return };
        let attributes = [
            attribute("zvgate.tenant", self.call.tenant.name.as_str()),
            attribute("zvgate.attempts", self.call_state.attempts()),
        ];
        let ids = [Some(trace.fetch), Some(trace.root)];
        trace.span("fetch", Kind::Internal, ids, [began, trace.now()], attributes, error_of(outcome));
    }

    /// Waiting for a slot ended.
    pub(super) fn queue_span(&self, began: Option<Boot>, error: Option<&str>) {
        let (Some(trace), Some(began)) = (&self.trace, began) else { return };
        trace.span("queue", Kind::Internal, [None, Some(trace.fetch)], [began, trace.now()], [], error);
    }

    /// An attempt ended, from its connection and signature to its answer.
    pub(super) fn attempt_span(&self, began: Option<Boot>, outcome: &Outcome) {
        let (Some(trace), Some(began)) = (&self.trace, began) else { return };
        let status = match outcome {
            Outcome::Answered(answered) => Some(answered.answer.status),
            Outcome::NotSent(_) | Outcome::Unknown(_) => outcome.error().and_then(AttemptError::status),
        };
        let resends = self.call_state.attempts().saturating_sub(1);
        let attributes = [
            attribute("http.request.method", "POST"),
            attribute("url.path", &*shown_path(&self.call.path)),
            attribute("server.address", &*self.policy.platform.0),
            attribute("server.port", self.policy.platform.1),
            status.and_then(|status| attribute("http.response.status_code", status)),
            (resends > 0).then(|| attribute("http.request.resend_count", resends)).flatten(),
        ];
        trace.span(
            "POST",
            Kind::Client,
            [None, Some(trace.fetch)],
            [began, trace.now()],
            attributes,
            error_of(outcome),
        );
    }

    /// Redis was asked.
    pub(super) fn redis_span(&self, operation: &str, began: Option<Boot>, result: &str) {
        let (Some(trace), Some(began)) = (&self.trace, began) else { return };
        let attributes = [
            attribute("db.system.name", "redis"),
            attribute("db.operation.name", operation),
            attribute("zvgate.result", result),
        ];
        let name = format!("redis {operation}");
        trace.span(&name, Kind::Client, [None, Some(trace.root)], [began, trace.now()], attributes, None);
    }
}
