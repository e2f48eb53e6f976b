//! The audit trail: one line for each write.

use std::sync::Arc;

use super::AUDIT;
use super::access_log::shown;
use super::request::Job;
use super::request_info::RequestInfo;
use super::time::Time;
use crate::clock::{Boot, millis};
use crate::envelope::Envelope;
use crate::json::Node;
use crate::pseudonym::Pseudonyms;
use crate::reply::{self, GatewayError, Reply};

/// Longest `bizId` that is logged.
const MAX_BIZ_ID: usize = 64;

/// Logs writes.
pub(super) struct WriteLog {
    pub(super) time: Arc<Time>,
    pub(super) pseudonyms: Arc<Pseudonyms>,
}

impl WriteLog {
    /// One line for a write, whatever became of it: the audit trail.
    pub(super) fn write(
        &self,
        job: &Job,
        result: &Result<Reply, GatewayError>,
        written: &Written,
        info: &RequestInfo,
        customers: &[String],
    ) {
        let (Job { policy, call_state, .. }, now) = (job, self.time.boot());
        if policy.settings.access_log.writes {
            let error = result.as_ref().err();
            tracing::info!(
                target: AUDIT,
                peer = %info.peer,
                outcome = reply::effect(result).name(),
                code = result.as_ref().ok().and_then(|reply| reply.answer.code()),
                biz_id = written.biz_id,
                cards = written.cards,
                attempts = call_state.attempts(),
                queue_ms = call_state.queue.total_ms(now),
                upstream_ms = call_state.upstream.total_ms(now),
                ms = millis(now.since(written.began)),
                route = policy.route_name(info),
                caller = policy.caller_name(info),
                tenant = policy.tenant_name(info),
                customers = shown(&self.pseudonyms, customers),
                status = reply::status(result),
                error = error.map(GatewayError::name),
                reason = error.and_then(GatewayError::reason),
                request_id = info.shown_id(),
                trace_id = info.trace_id(),
                "write"
            );
        }
    }
}

/// What a write was about.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// When its request was complete.
    began: Boot,
    /// `bizId`, by which the platform knows it.
    biz_id: Option<String>,
    /// How many cards it names.
    cards: Option<usize>,
}

impl Written {
    /// As its request says.
    pub(super) fn of(envelope: &Envelope<'_>, began: Boot) -> Self {
        let params = envelope.root().member("params");
        let biz_id =
            params.and_then(|params| params.member("bizId")?.text().map(|id| id.chars().take(MAX_BIZ_ID).collect()));
        let cards = params.and_then(|params| match params.member("couponsCardList")? {
            Node::Array(cards) => Some(cards.len()),
            _ => None,
        });
        Self { began, biz_id, cards }
    }
}
