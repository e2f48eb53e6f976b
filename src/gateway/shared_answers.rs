//! What a fetch has to do with other replicas: they may have its answer, or fetch it; and they get what it brings.

use std::sync::Arc;
use std::time::Duration;

use super::read::Reads;
use super::request::Job;
use crate::answer::Answer;
use crate::cache::{Elsewhere, FetchGuard, Freshness, Question, StoreDecision, Stored};
use crate::cluster::{Found, Inquiry, Landing, Lease, Wanted};
use crate::metrics::LookupResult;
use crate::reply::GatewayError;
use crate::upstream::{AttemptError, NotSent};

impl Reads {
    /// Asks the other replicas for the answer. Returns what it takes to fetch it, unless they had it; the lease only if Redis answered.
    pub(super) async fn ask_others(
        &self,
        job: &Job,
        mut guard: FetchGuard<GatewayError>,
        lookup: LookupResult,
    ) -> Option<(FetchGuard<GatewayError>, Option<Lease>)> {
        let Some(mut inquiry) = self.inquiry(job, guard.question()) else { return Some((guard, None)) };
        let mut wanted = Wanted::Any;
        loop {
            if guard.wants_new() {
                wanted = Wanted::Own;
            }
            let found = match inquiry.ask(wanted).await {
                Found::Nothing(lease) => return Some((guard, Some(lease))),
                Found::Unknown => return Some((guard, None)),
                Found::Busy if self.time.boot() >= job.deadline => {
                    guard.fail(GatewayError::NoAnswer(Arc::new(AttemptError::Timeout)));
                    return None;
                }
                Found::Busy => {
                    // Callers that want a new fetch do not wait for one that may have been sent.
                    guard.mark_begun();
                    guard.mark_sent();
                    let call = &job.call_state.upstream;
                    call.start(self.time.boot());
                    let is_waited_for = tokio::select! {
                        () = inquiry.landed() => true,
                        () = guard.no_waiters() => false,
                    };
                    call.stop(self.time.boot());
                    if !is_waited_for {
                        return None;
                    }
                    wanted = Wanted::Any;
                    continue;
                }
                Found::Stored(answer, freshness) => Elsewhere::Stored(answer, freshness),
                Found::Passing { answer, is_failure } => Elsewhere::Passing(answer, is_failure),
                Found::NoAnswer { is_timeout: true } => {
                    Elsewhere::Failed(GatewayError::NoAnswer(Arc::new(AttemptError::Timeout)))
                }
                Found::NoSlot(limited) => {
                    Elsewhere::Failed(GatewayError::NotSent(NotSent::Limited { limited, is_key_suspect: false }))
                }
                Found::NoAnswer { is_timeout: false } => Elsewhere::Failed(GatewayError::NoAnswerElsewhere),
            };
            let stored = if let Elsewhere::Stored(_, freshness) = &found { Some(*freshness) } else { None };
            match guard.complete_elsewhere(found, self.time.now()) {
                Ok(()) => {
                    self.count_elsewhere(job, stored, lookup);
                    if stored.is_some() {
                        inquiry.count_hit();
                    }
                    return None;
                }
                Err(unanswered) => (guard, wanted) = (unanswered, Wanted::Newer),
            }
        }
    }

    fn inquiry(&self, job: &Job, question: &Question) -> Option<Inquiry> {
        let (cluster, subject) = (&self.invalidator.cluster, &question.subject);
        let merchant = self.invalidator.merchants.name(subject.tenant);
        let (rules, grant) = (job.policy.sharing_rules(&job.route), job.call.tenant.identity());
        cluster.inquire(cluster.query(&merchant, subject, rules, grant, &question.key)?, job.deadline)
    }

    fn count_elsewhere(&self, job: &Job, stored: Option<Freshness>, lookup: LookupResult) {
        let (tenant, route) = (job.call.tenant.index, job.route.index);
        match (stored, lookup) {
            (Some(freshness), LookupResult::Miss) => job.policy.handles.hit(tenant, route, freshness.negative),
            _ => {
                job.policy.handles.route(route).lookups.of(lookup).inc();
                job.metrics().saved.inc();
            }
        }
    }

    /// The freshness of an answer that was fetched with a lease, by what is known of writes through other replicas: the platform may lag
    /// behind one, or this replica is cut off and knows none.
    pub(super) fn certain(&self, freshness: Freshness, lease: Option<&Lease>, unsettled_ttl: Duration) -> Freshness {
        let cluster = &self.invalidator.cluster;
        match lease {
            None if cluster.is_alone() => freshness,
            None if cluster.is_cut_off() => freshness.provisional(unsettled_ttl),
            Some(lease) if lease.lag().is_zero() => freshness,
            Some(_) | None => freshness.unsettled(unsettled_ttl),
        }
    }
}

/// Lets the other replicas have what a fetch brought.
pub(super) async fn land(lease: Lease, question: &str, answer: &Arc<Answer>, decision: StoreDecision, stored: Stored) {
    let passing = |is_failure, supersedes| Landing::Passing { answer, is_failure, supersedes };
    let landing = match (decision, &stored.freshness) {
        (_, Some(freshness)) => Landing::Stored { question, freshness, answer },
        // A write ended meanwhile: those who wait ask again.
        (StoreDecision::Store(_), None) => return,
        (StoreDecision::Supersede, None) => passing(false, true),
        (StoreDecision::Ignore, None) => passing(false, false),
        (StoreDecision::Failure, None) => passing(true, false),
    };
    lease.land(landing).await;
}
