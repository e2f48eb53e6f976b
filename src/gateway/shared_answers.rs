//! What a fetch has to do with other replicas: they may have its answer, or fetch it; and they get what it brings.

use std::sync::Arc;
use std::time::Duration;

use super::read::Reads;
use super::request::Job;
use crate::answer::Answer;
use crate::cache::{Elsewhere, FetchGuard, Freshness, LEAST_FRESH, Question, Served, StoreDecision, Stored};
use crate::cluster::{FetchResult, Found, Inquiry, Lease, Wanted};
use crate::metrics::LookupResult;
use crate::reply::GatewayError;
use crate::upstream::AttemptError;

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
            let traced = job.traced_at();
            let answered = inquiry.ask(wanted).await;
            job.redis_span("miss", traced, answered.name());
            let found = match answered {
                Found::Nothing(lease) => return Some((guard, Some(lease))),
                Found::Unknown => return Some((guard, None)),
                Found::Unshared => {
                    wanted = Wanted::Own;
                    continue;
                }
                Found::Busy => {
                    // Callers that want a new fetch do not join one that waits for a call that may have been sent.
                    guard.mark_begun();
                    guard.mark_sent();
                    if guard.wants_new() {
                        continue;
                    }
                    if self.time.boot() < job.deadline && self.wait_for_others(job, &guard, &mut inquiry).await {
                        wanted = Wanted::Any;
                        continue;
                    }
                    self.count_lookup(job, lookup);
                    guard.fail(GatewayError::NoAnswer(Arc::new(AttemptError::Timeout)));
                    return None;
                }
                Found::Stored(answer, freshness) => Elsewhere::Stored(answer, freshness),
                Found::Passing { answer, is_failure } => Elsewhere::Passing(answer, is_failure),
                Found::NoAnswer { is_timeout: true } => {
                    Elsewhere::Failed(GatewayError::NoAnswer(Arc::new(AttemptError::Timeout)))
                }
                Found::NoAnswer { is_timeout: false } => Elsewhere::Failed(GatewayError::NoAnswerElsewhere),
            };
            let subject = guard.question().subject.clone();
            match guard.complete_elsewhere(found, self.time.now()) {
                Ok(served) => {
                    self.count_elsewhere(job, served, lookup);
                    if matches!(served, Served::Shared { .. }) {
                        inquiry.count_hit();
                        self.served.note(&subject, self.time.boot());
                    }
                    return None;
                }
                Err(unanswered) => (guard, wanted) = (unanswered, Wanted::Newer),
            }
        }
    }

    /// Waits until the fetch of another replica has ended, or it is time to ask again; returns whether anybody still waits for it here.
    async fn wait_for_others(&self, job: &Job, guard: &FetchGuard<GatewayError>, inquiry: &mut Inquiry) -> bool {
        let call = &job.call_state.upstream;
        call.start(self.time.boot());
        let is_awaited = tokio::select! {
            () = inquiry.wait() => true,
            () = guard.no_waiters() => false,
        };
        call.stop(self.time.boot());
        is_awaited
    }

    fn inquiry(&self, job: &Job, question: &Question) -> Option<Inquiry> {
        let (cluster, subject) = (&self.invalidator.cluster, &question.subject);
        let merchant = self.invalidator.merchants.name(subject.tenant);
        let (rules, grant) = (job.policy.sharing_rules(&job.route), job.call.tenant.identity());
        cluster.inquire(cluster.query(&merchant, subject, rules, grant, &question.key)?, job.deadline)
    }

    pub(super) fn count_lookup(&self, job: &Job, lookup: LookupResult) {
        job.policy.handles.route(job.route.index).lookups.of(lookup).inc();
    }

    fn count_elsewhere(&self, job: &Job, served: Served, lookup: LookupResult) {
        match (served, lookup) {
            (Served::Shared { is_negative }, LookupResult::Miss) => {
                job.policy.handles.hit(job.call.tenant.index, job.route.index, is_negative);
            }
            (Served::Shared { .. } | Served::Passing, _) => {
                self.count_lookup(job, lookup);
                job.metrics().saved.inc();
            }
            (Served::Failure, _) => self.count_lookup(job, lookup),
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

/// Lets the other replicas have what a fetch brought, if it is of use to them. Returns how that went.
pub(super) async fn complete(
    lease: Lease,
    is_awaited: bool,
    question: &str,
    answer: &Answer,
    decision: StoreDecision,
    stored: Stored,
) -> &'static str {
    let passing = |is_failure, supersedes| FetchResult::Passing { answer, is_failure, supersedes };
    let result = match (decision, &stored.freshness) {
        (_, Some(freshness)) if freshness.lifetime() >= LEAST_FRESH => {
            FetchResult::Stored { question, freshness, answer }
        }
        (_, Some(_)) => passing(false, true),
        // An earlier write removed its flight, or a later one, and then nobody gets it.
        (StoreDecision::Store(_) | StoreDecision::Ignore, None) => passing(false, false),
        (StoreDecision::Supersede, None) => passing(false, true),
        (StoreDecision::Failure, None) => passing(true, false),
    };
    if !is_awaited && matches!(result, FetchResult::Passing { is_failure: true, .. }) {
        return "unneeded";
    }
    if lease.complete(result).await { "ok" } else { "failed" }
}
