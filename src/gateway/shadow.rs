//! `cache.mode = "shadow"`: every read is forwarded, and its answer is compared with what the cache would have served.

use std::sync::Arc;
use std::time::Duration;

use super::Step;
use super::read::Reads;
use super::request::{Job, Request};
use crate::cache::{Deadline, FetchGuard, Join, Lookup, RequestCacheControl, SharedAnswer, StoreDecision, Waiter};
use crate::metrics::Shadowed;
use crate::reply::{CacheStatus, GatewayError, Reply};
use crate::settings::CachedSettings;
use crate::upstream::Answered;

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
            Lookup::Fresh(hit) => Some(hit.answer()),
            Lookup::Stale(hit, _) => Some(hit.answer()),
            Lookup::Miss => None,
        };
        // However young what is cached is, this one is stored; but those of several at the same time only once.
        let anew = RequestCacheControl { max_age: Some(Duration::ZERO), ..RequestCacheControl::default() };
        let storing = match self.cache.join(&question, generation, &anew, request.now) {
            Join::Started(guard, waiter) if !cache_control.no_store => Some((guard, waiter)),
            Join::Started(..) | Join::Joined(_) | Join::Hit(_) | Join::TooManyWaiters => None,
        };
        let reads = Arc::clone(self);
        Ok(self.passes.forward(request.pass_job(true), move |job, result| match (result, storing) {
            (Ok(answered), storing) => Ok(reads.compared(job, answered, would_serve, storing)),
            (Err(error), storing) => {
                // Callers of another policy may have joined it.
                if let Some((guard, _waiter)) = storing {
                    guard.fail(error.clone());
                }
                Err(error)
            }
        }))
    }

    /// Compares and stores an answer.
    fn compared(
        &self,
        job: &Job,
        answered: Answered,
        would_serve: Option<SharedAnswer>,
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
        let answer = match storing {
            Some((guard, _waiter)) => {
                let (answer, stored) = guard.complete(answer, decision, sent.boot, received);
                self.count(job, stored);
                answer
            }
            None => answer.into(),
        };
        Reply::new(answer, CacheStatus::Bypass, None, Deadline::NEVER)
    }
}
