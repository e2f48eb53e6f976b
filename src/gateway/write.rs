//! Writes: sent once, and what is cached for their customers is invalidated before they are answered.

use std::sync::Arc;

use super::Step;
use super::body::MAX_CUSTOMERS;
use super::fetch::Fetcher;
use super::invalidate::Invalidator;
use super::request::{Job, Request};
use super::request_info::RequestInfo;
use super::served::Served;
use super::tasks::Tasks;
use super::write_log::{WriteLog, Written};
use crate::answer;
use crate::cache::{Deadline, Subject};
use crate::cluster::Completion;
use crate::line_limit::LineLimit;
use crate::metrics::Invalidation;
use crate::reply::{CacheStatus, GatewayError, Reply};
use crate::settings::{UnknownCustomer, WriteSettings};
use crate::upstream::{Answered, AttemptError, Effect, NotSent, Outcome};

/// Carries out writes.
pub(super) struct Writes {
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) invalidator: Arc<Invalidator>,
    pub(super) log: Arc<WriteLog>,
    pub(super) tasks: Tasks,
    pub(super) served: Arc<Served>,
    /// Lines about writes without a known customer.
    pub(super) unknown_customers: LineLimit,
}

/// A write in progress. What it may have changed is invalidated even if its task is lost.
struct Write<'a> {
    writes: &'a Writes,
    job: &'a Job,
    settings: &'a WriteSettings,
    info: &'a RequestInfo,
    written: &'a Written,
    has_ended: bool,
}

impl Writes {
    /// Sends a write, in a task of its own, which runs to completion even if its caller disconnects.
    pub(super) fn write(
        self: &Arc<Self>,
        request: &Request<'_>,
        settings: &WriteSettings,
    ) -> Result<Step, GatewayError> {
        self.tasks.check_capacity()?;
        let job = request.write_job(self.fetcher.time.boot());
        let (settings, info) = (settings.clone(), request.info.clone());
        let (written, call_state) = (Written::of(request.envelope, request.now.boot), Arc::clone(&job.call_state));
        let task = self.tasks.spawn(Arc::clone(self).execute(job, settings, info, written));
        let answered = Box::pin(async move {
            task.await.unwrap_or_else(|_| Err(GatewayError::OutcomeUnknown(Arc::new(AttemptError::Reset(None)))))
        });
        Ok(Step::Wait(answered, call_state))
    }

    async fn execute(
        self: Arc<Self>,
        job: Job,
        settings: WriteSettings,
        info: RequestInfo,
        written: Written,
    ) -> Result<Reply, GatewayError> {
        let _counter = self.tasks.panic_counter();
        let write =
            Write { writes: &self, job: &job, settings: &settings, info: &info, written: &written, has_ended: false };
        let outcome = match self.invalidator.cluster.admits_writes() {
            true => self.fetcher.fetch(&job, None, |_| {}, std::future::pending::<()>).await,
            false => Outcome::NotSent(NotSent::Unfenced),
        };
        let (customers, ended) = write.end(&outcome);
        if ended.is_pending() {
            let traced = job.traced_at();
            let moved = ended.wait().await;
            job.redis_span("end", traced, if moved.is_some() { "ok" } else { "missed" });
        }
        let effect = outcome.effect();
        if effect == Effect::Unknown {
            job.metrics().outcome_unknown.inc();
        }
        let result = match outcome {
            Outcome::Answered(Answered { mut answer, .. }) => {
                // Nobody shall repeat what may have been executed.
                if effect == Effect::Unknown {
                    answer.remove_retry_after();
                }
                Ok(Reply::new(answer.into(), CacheStatus::Bypass, Some(effect), Deadline::NEVER))
            }
            Outcome::NotSent(not_sent) => Err(GatewayError::NotSent(not_sent)),
            Outcome::Unknown(error) => Err(GatewayError::OutcomeUnknown(error)),
        };
        self.log.write(&job, &result, &written, &info, &customers);
        result
    }
}

impl Write<'_> {
    /// Invalidates what the write may have changed: no read that starts from here on is answered with data that was fetched
    /// before, and none through another replica once what is returned has completed. Returns the write's customers, too.
    fn end(mut self, outcome: &Outcome) -> (Vec<String>, Completion) {
        let mut customers = self.info.customers.to_vec();
        if let Outcome::Answered(answered) = outcome {
            customers.extend(answer::customers(&answered.answer.body, &self.settings.customer_answer));
        }
        customers.sort_unstable();
        customers.dedup();
        let effect = outcome.effect();
        let ended = self.invalidate(&customers, effect);
        if effect == Effect::Refused && self.were_served(&customers) {
            self.job.policy.handles.route(self.job.route.index).stale_shown.inc();
        }
        // Last, so that a panic before this point invalidates all the same.
        self.has_ended = true;
        (customers, ended)
    }

    /// Whether one of these customers was served from the cache of late.
    fn were_served(&self, customers: &[String]) -> bool {
        let (writes, merchant) = (self.writes, self.job.call.tenant.merchant);
        let now = writes.fetcher.time.boot();
        let subject = |id: &String| Subject::customer(merchant, &writes.invalidator.cluster.customer(id));
        customers.iter().any(|id| writes.served.recently(&subject(id), now))
    }

    fn invalidate(&self, customers: &[String], effect: Effect) -> Completion {
        let (policy, tenant) = (&self.job.policy, &self.job.call.tenant);
        let settings = &policy.settings.cache;
        let settle = match effect {
            Effect::NotSent | Effect::Throttled => return Completion::default(),
            Effect::Executed | Effect::Refused => settings.settle,
            Effect::Unknown => settings.settle_unknown,
        };
        let invalidator = &self.writes.invalidator;
        if (1..=MAX_CUSTOMERS).contains(&customers.len()) {
            return invalidator.customers(tenant.merchant, customers, settle, Invalidation::Write).1;
        }
        let may_concern_anybody = effect != Effect::Refused && self.settings.unknown_customer != UnknownCustomer::Ttl;
        if customers.is_empty() && !may_concern_anybody {
            return Completion::default();
        }
        if let Some(suppressed) = self.writes.unknown_customers.next() {
            tracing::warn!(
                tenant = tenant.name,
                route = self.job.route.label,
                request_id = self.info.shown_id(),
                suppressed,
                "write without a known customer, or with too many: all answers of its tenant are invalidated"
            );
        }
        invalidator.merchant(tenant.merchant, settle, Invalidation::UnknownCustomer)
    }
}

impl Drop for Write<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            // Nobody is answered who could wait for other replicas.
            drop(self.invalidate(&self.info.customers, Effect::Unknown));
            if std::thread::panicking() {
                // Its caller learns that the outcome is unknown; so does the operator.
                self.job.metrics().outcome_unknown.inc();
                let error = GatewayError::OutcomeUnknown(Arc::new(AttemptError::Reset(None)));
                self.writes.log.write(self.job, &Err(error), self.written, self.info, &self.info.customers);
            }
        }
    }
}
