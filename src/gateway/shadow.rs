//! `cache.mode = "shadow"`: every read is forwarded, and its answer is compared with what the cache would have served.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Step;
use super::read::Reads;
use super::request::{Job, Request};
use crate::answer::Answer;
use crate::cache::{FetchGuard, Join, Lookup, RequestCacheControl, StoreDecision, Waiter};
use crate::metrics::Shadowed;
use crate::reply::{CacheStatus, GatewayError, Reply};
use crate::settings::CachedSettings;
use crate::upstream::{Answered, AttemptError, Outcome};

/// A read whose answer is stored, as it would be in the other modes.
type Storing = (FetchGuard<GatewayError>, Waiter<GatewayError>);

impl Reads {
    /// Forwards a read for its caller alone. It is not sent any more once its caller has disconnected.
    pub(super) fn shadow(
        self: &Arc<Self>,
        request: &Request<'_>,
        cached: &CachedSettings,
    ) -> Result<Step, GatewayError> {
        self.tasks.check_capacity()?;
        let (question, cache_control) = (request.question(cached), &request.cache_control);
        let generation = self.cache.generation(request.tenant.merchant, request.policy.rules);
        let would_serve = match self.cache.lookup(&question, generation, cache_control, request.now) {
            Lookup::Fresh(hit) => Some(Arc::clone(hit.answer())),
            Lookup::Stale(hit, _) => Some(Arc::clone(hit.answer())),
            Lookup::Miss => None,
        };
        // However young what is cached is, this one is stored; but those of several at the same time only once.
        let anew = RequestCacheControl { max_age: Some(Duration::ZERO), ..RequestCacheControl::default() };
        let storing = match self.cache.join(&question, generation, &anew, request.now) {
            Join::Started(guard, waiter) if !cache_control.no_store => Some((guard, waiter)),
            Join::Started(..) | Join::Joined(_) | Join::Hit(_) | Join::TooManyWaiters => None,
        };
        let (job, reads) = (request.pass_job(true), Arc::clone(self));
        let call_state = Arc::clone(&job.call_state);
        let disconnected = CancellationToken::new();
        let connected = disconnected.clone().drop_guard();
        let task = self.tasks.spawn(async move {
            let outcome = reads.fetcher.fetch(&job, None, |_| {}, || disconnected.cancelled()).await;
            reads.shadowed(&job, outcome, would_serve, storing)
        });
        let answered = Box::pin(async move {
            let _connected = connected;
            task.await.unwrap_or_else(|_| Err(GatewayError::NoAnswer(Arc::new(AttemptError::Reset(None)))))
        });
        Ok(Step::Wait(answered, call_state))
    }

    /// What came of it, for its caller.
    fn shadowed(
        &self,
        job: &Job,
        outcome: Outcome,
        would_serve: Option<Arc<Answer>>,
        storing: Option<Storing>,
    ) -> Result<Reply, GatewayError> {
        let error = match outcome {
            Outcome::Answered(answered) => return Ok(self.compared(job, answered, would_serve, storing)),
            Outcome::NotSent(not_sent) => GatewayError::NotSent(not_sent),
            Outcome::Unknown(error) => GatewayError::NoAnswer(error),
        };
        // Callers of another policy may have joined it.
        if let Some((guard, _waiter)) = storing {
            guard.fail(error.clone());
        }
        Err(error)
    }

    /// Compares and stores an answer.
    fn compared(
        &self,
        job: &Job,
        answered: Answered,
        would_serve: Option<Arc<Answer>>,
        storing: Option<Storing>,
    ) -> Reply {
        let decision = self.decision(job, &answered, None);
        let Answered { answer, sent, received, .. } = answered;
        // One that fails says nothing of what the cache has.
        if let Some(cached) = would_serve.filter(|_| decision != StoreDecision::Failure) {
            let is_same = cached.status == answer.status && cached.body == answer.body;
            let result = if is_same { Shadowed::Same } else { Shadowed::Different };
            job.policy.handles.route(job.route.index).shadowed.of(result).inc();
        }
        if let Some((guard, _waiter)) = storing {
            let stored = guard.complete(Arc::clone(&answer), decision, sent.boot, received);
            self.count(job, stored);
        }
        Reply { answer, cache_status: CacheStatus::Bypass, effect: None }
    }
}
