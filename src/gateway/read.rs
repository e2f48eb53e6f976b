//! Cached routes: answered from the cache, by a fetch in progress, or by a new one.

use std::sync::Arc;

use super::Step;
use super::fetch::{Fetcher, Progress};
use super::invalidate::Invalidator;
use super::pass::Passes;
use super::policy::Policy;
use super::request::{Job, Request, Spare};
use super::served::Served;
use super::shared_answers::complete;
use super::tasks::Tasks;
use super::time::Time;
use crate::cache::{
    Cache, Deadline, FetchGuard, FetchOutcome, Join, LimitedBy, Lookup, Question, RequestCacheControl, StaleHit,
    StoreDecision, Stored, Waiter,
};
use crate::clock::Boot;
use crate::cluster::{FetchResult, Lease, Standing};
use crate::limit::REPLY_WITHIN;
use crate::metrics::{Changed, LookupResult, Per};
use crate::reply::{CacheStatus, GatewayError, OverCapacity, Reply, StaleReason};
use crate::settings::{CacheMode, CachedSettings};
use crate::upstream::{Answered, AttemptError, NotSent, Outcome};

const OK: u16 = 200;

/// Answers reads.
pub(super) struct Reads {
    pub(super) cache: Arc<Cache<GatewayError>>,
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) passes: Arc<Passes>,
    pub(super) invalidator: Arc<Invalidator>,
    pub(super) time: Arc<Time>,
    pub(super) tasks: Tasks,
    pub(super) served: Arc<Served>,
    /// Lifetimes of stored answers, in seconds.
    pub(super) ttl: Per<LimitedBy, prometheus::Histogram>,
}

/// A caller that waits for a fetch.
struct PendingRead {
    policy: Arc<Policy>,
    waiter: Waiter<GatewayError>,
    /// `None`: a miss of its own.
    cache_status: Option<CacheStatus>,
    /// Whether it waits for another caller's fetch.
    is_joined: bool,
    /// What a stale answer may be served to if the fetch fails.
    question: Option<Question>,
    tenant: usize,
    route: usize,
    /// Until when it waits.
    deadline: Boot,
}

impl Reads {
    pub(super) fn read(self: &Arc<Self>, request: &Request<'_>, cached: &CachedSettings) -> Result<Step, GatewayError> {
        let Request { policy, cache_control, now, .. } = request;
        match policy.settings.cache.mode {
            CacheMode::On => {}
            _ if cache_control.only_if_cached => return Err(GatewayError::NotCached),
            CacheMode::Off => return self.passes.pass(request, true),
            CacheMode::Shadow => return self.shadow(request, cached),
        }
        let question = request.question(cached);
        // Unless this replica certainly acts as one with the others, what is held is served in place of any error.
        let may_be_held = request.standing != Standing::Fenced && cache_control.allows_stale();
        let held = || if may_be_held { self.cache.held(&question, *now) } else { None };
        let serve_held = |hit: StaleHit| Step::Done(request.stale(hit, StaleReason::NothingSent, false));
        let in_place_of = |error| held().map(serve_held).ok_or(error);
        if request.standing == Standing::Unknown {
            return in_place_of(GatewayError::NotSent(NotSent::DeadlineExceeded));
        }
        let generation = self.cache.generation(request.tenant.merchant, policy.rules);
        let lookups = &request.route_metrics().lookups;
        match self.cache.lookup(&question, generation, cache_control, *now) {
            Lookup::Fresh(hit) => {
                if let Some(answer) = self.cache.reference(&hit) {
                    policy.hit_memo.remember(&request.repeat, request.tenant.index, answer);
                }
                return Ok(Step::Done(request.hit(hit)));
            }
            Lookup::Stale(hit, is_due) => {
                let refreshes = is_due && self.refresh(request, &question);
                return Ok(Step::Done(request.stale(hit, StaleReason::Revalidating, refreshes)));
            }
            Lookup::Miss => {}
        }
        if cache_control.only_if_cached {
            return in_place_of(GatewayError::NotCached).inspect_err(|_| lookups.of(LookupResult::Miss).inc());
        }
        if let Err(error) = self.tasks.check_capacity() {
            return in_place_of(error);
        }
        // It is also served if there is no slot to spare.
        let mut spare = None;
        if let Some(hit) = held() {
            let job = request.fetch_job(self.time.boot());
            let Some(found) = self.fetcher.spare(&job) else { return Ok(serve_held(hit)) };
            spare = Some((job, found));
        }
        let (wants_new, mut is_joined) = (cache_control.wants_new(), false);
        let (waiter, cache_status) = match self.cache.join(&question, generation, cache_control, *now) {
            Join::Hit(hit) => return Ok(Step::Done(request.hit(hit))),
            Join::Joined(waiter) => {
                lookups.of(LookupResult::Collapsed).inc();
                waiter.call_state().join(request.call_waiter());
                is_joined = true;
                (waiter, Some(if wants_new { CacheStatus::Requested } else { CacheStatus::Collapsed }))
            }
            Join::Started(guard, waiter) => {
                let (job, spare) = spare.unzip();
                let job = job.unwrap_or_else(|| request.fetch_job(self.time.boot()));
                self.start_fetch(job, guard, spare, LookupResult::Miss);
                (waiter, wants_new.then_some(CacheStatus::Requested))
            }
            Join::TooManyWaiters => return in_place_of(GatewayError::OverCapacity(OverCapacity::Waiters)),
        };
        let pending = PendingRead {
            policy: Arc::clone(policy),
            waiter,
            cache_status,
            is_joined,
            question: cache_control.allows_stale().then_some(question),
            tenant: request.tenant.index,
            route: request.route.index,
            deadline: request.deadline,
        };
        let call_state = Arc::clone(pending.waiter.call_state());
        Ok(Step::Wait(Box::pin(Arc::clone(self).wait(pending)), call_state))
    }

    /// Begins to refresh a stale answer, if there is a slot that nobody waits for; returns whether it did.
    fn refresh(self: &Arc<Self>, request: &Request<'_>, question: &Question) -> bool {
        let job = request.fetch_job(self.time.boot());
        let Some(spare) = self.fetcher.spare(&job) else { return false };
        let generation = self.cache.generation(request.tenant.merchant, request.policy.rules);
        if !self.cache.claim_refresh(question, generation, request.now) {
            return false;
        }
        let default = RequestCacheControl::default();
        if let Join::Started(guard, _nobody_waits) = self.cache.join(question, generation, &default, request.now) {
            self.start_fetch(job, guard, Some(spare), LookupResult::Refresh);
            return true;
        }
        false
    }

    /// `lookup`: what it is counted as.
    fn start_fetch(
        self: &Arc<Self>,
        job: Job,
        guard: FetchGuard<GatewayError>,
        spare: Option<Spare>,
        lookup: LookupResult,
    ) {
        let job = Job { call_state: Arc::clone(guard.call_state()), ..job };
        self.tasks.spawn(Arc::clone(self).fetch(job, guard, spare, lookup));
    }

    /// The fetch itself, which outlives every caller that waits for it.
    async fn fetch(
        self: Arc<Self>,
        mut job: Job,
        mut guard: FetchGuard<GatewayError>,
        spare: Option<Spare>,
        lookup: LookupResult,
    ) {
        let _counter = self.tasks.panic_counter();
        guard.turn().await;
        let cluster = &self.invalidator.cluster;
        let mut lease = None;
        if !cluster.is_alone() {
            let began = self.time.boot();
            // Boxed, as whatever only several replicas do, so that others need no memory for it.
            let asked = Box::pin(self.ask_others(&job, guard, lookup)).await;
            let Some(granted) = asked else { return };
            (guard, lease) = granted;
            // Its callers have waited for another replica, and need not wait for as long again to learn that there is no slot.
            let waited = self.time.boot().since(began);
            job.max_wait = job.max_wait.saturating_sub(waited).max(REPLY_WITHIN.min(job.max_wait));
        }
        self.count_lookup(&job, lookup);
        let on_progress = |progress| match progress {
            Progress::Begun => guard.mark_begun(),
            Progress::Sent => guard.mark_sent(),
        };
        match self.fetcher.fetch(&job, spare, on_progress, || guard.no_waiters()).await {
            Outcome::Answered(answered) => {
                let decision = self.decision(&job, &answered, lease.as_ref());
                let is_newer = matches!(decision, StoreDecision::Store(_) | StoreDecision::Supersede);
                if is_newer && guard.drops_others() && !cluster.is_cut_off() {
                    let moved = self.invalidator.superseded(&guard.question().subject).wait().await;
                    lease.iter_mut().zip(moved).for_each(|(lease, moved)| lease.moved(moved));
                }
                let question = Arc::clone(&guard.question().key);
                let is_awaited = guard.is_awaited();
                let (answer, stored) = guard.complete(answered.answer, decision, answered.sent.boot, answered.received);
                self.count(&job, stored);
                if let Some(lease) = lease {
                    let traced = job.traced_at();
                    let result = Box::pin(complete(lease, is_awaited, &question, &answer, decision, stored)).await;
                    job.redis_span("complete", traced, result);
                }
            }
            // Nobody waits.
            Outcome::NotSent(NotSent::Cancelled) => {}
            Outcome::NotSent(not_sent) => {
                // What else keeps this replica from sending need not keep others from it.
                let is_shared = matches!(not_sent, NotSent::Failed(_)) && guard.is_awaited();
                guard.fail(GatewayError::NotSent(not_sent));
                if let Some(lease) = lease.filter(|_| is_shared) {
                    Box::pin(lease.complete(FetchResult::NoAnswer { is_timeout: false })).await;
                }
            }
            Outcome::Unknown(error) => {
                let (is_timeout, is_awaited) = (matches!(*error, AttemptError::Timeout), guard.is_awaited());
                guard.fail(GatewayError::NoAnswer(error));
                if let Some(lease) = lease.filter(|_| is_awaited) {
                    Box::pin(lease.complete(FetchResult::NoAnswer { is_timeout })).await;
                }
            }
        }
    }

    /// Whether an answer is stored.
    pub(super) fn decision(&self, job: &Job, answered: &Answered, lease: Option<&Lease>) -> StoreDecision {
        let Answered { verdict, earliest, sent, received, answer } = answered;
        match StoreDecision::of(verdict, &job.lifetimes(), *earliest, *sent, *received) {
            // Any other 2xx may be a part or a transformation of the answer (RFC 9111, section 3).
            StoreDecision::Store(_) if answer.status != OK => StoreDecision::Ignore,
            StoreDecision::Store(freshness) => {
                StoreDecision::Store(self.certain(freshness, lease, job.lifetimes().unsettled_ttl))
            }
            decision => decision,
        }
    }

    pub(super) fn count(&self, job: &Job, stored: Stored) {
        if let Some(freshness) = stored.freshness {
            self.ttl.of(freshness.limited_by).observe(freshness.lifetime().as_secs_f64());
        }
        if let Some(changed) = stored.changed {
            let changed = if changed { Changed::Yes } else { Changed::No };
            job.policy.handles.route(job.route.index).refetches.of(changed).inc();
        }
    }

    /// Waits for a fetch, for as long as the caller does.
    async fn wait(self: Arc<Self>, pending: PendingRead) -> Result<Reply, GatewayError> {
        let PendingRead { policy, waiter, cache_status, is_joined, question, tenant, route, deadline } = pending;
        let waited = tokio::time::timeout(deadline.since(self.time.boot()), waiter.outcome()).await;
        let result = match waited {
            Ok(FetchOutcome::Shared(answer, freshness)) => {
                // It may have expired while its caller was woken.
                Reply::shared(answer, &freshness, self.time.now())
                    .ok_or(Failed::Error(GatewayError::NotSent(NotSent::DeadlineExceeded)))
            }
            Ok(FetchOutcome::Answered { answer, stored, is_failure, is_elsewhere }) => {
                let miss = || match is_elsewhere {
                    true => CacheStatus::Collapsed,
                    false => CacheStatus::Miss {
                        stored_for: stored.map(|freshness| freshness.lifetime()),
                        is_success: stored.is_some_and(|freshness| !freshness.negative),
                    },
                };
                let end = stored.map_or(Deadline::NEVER, |freshness| freshness.end());
                let reply = Reply::new(answer, cache_status.unwrap_or_else(miss), None, end);
                if is_failure { Err(Failed::Answered(reply)) } else { Ok(reply) }
            }
            Ok(FetchOutcome::Failed(error)) => Err(Failed::Error(error)),
            Ok(FetchOutcome::Abandoned) if waiter.was_sent() => {
                Err(Failed::Error(GatewayError::NoAnswer(Arc::new(AttemptError::Reset(None)))))
            }
            Ok(FetchOutcome::Abandoned) => Err(Failed::Error(GatewayError::NotSent(NotSent::Abandoned))),
            Err(_) if waiter.was_sent() => Err(Failed::Error(GatewayError::NoAnswer(Arc::new(AttemptError::Timeout)))),
            Err(_) => Err(Failed::Error(GatewayError::NotSent(NotSent::DeadlineExceeded))),
        };
        let saved = &policy.handles.call(tenant, route).saved;
        if is_joined && !matches!(result, Err(Failed::Error(_))) {
            saved.inc();
        }
        let failed = match result {
            Ok(reply) => return Ok(reply),
            Err(failed) => failed,
        };
        let (now, reason, cluster) = (self.time.now(), failed.stale_reason(), &self.invalidator.cluster);
        let Some(question) = question else { return failed.into() };
        let generation = self.cache.generation(question.subject.tenant, policy.rules);
        // A newer fetch may have stored its answer: this one's flight may have been removed by a write.
        let default = RequestCacheControl::default();
        let standing = if cluster.is_cut_off() { Standing::Unfenced } else { Standing::Fenced };
        if let Some(hit) = self.cache.fresh(&question, generation, &default, now) {
            cluster.count_hit(standing);
            self.served.note(&question.subject, now.boot);
            return Ok(Reply::hit(hit, now));
        }
        let hit = match standing {
            Standing::Fenced => self.cache.stale_for_error(&question, generation, now),
            Standing::Unfenced | Standing::Unknown => self.cache.held(&question, now),
        };
        let Some(hit) = hit else { return failed.into() };
        cluster.count_hit(standing);
        self.served.note(&question.subject, now.boot);
        if reason == StaleReason::NothingSent {
            saved.inc();
        }
        policy.handles.route(route).lookups.of(LookupResult::Stale).inc();
        Ok(Reply::stale(hit, reason, now))
    }
}

/// A fetch that failed.
enum Failed {
    /// The platform said so.
    Answered(Reply),
    /// There is no answer.
    Error(GatewayError),
}

impl Failed {
    fn stale_reason(&self) -> StaleReason {
        match self {
            Self::Answered(reply) => StaleReason::Answered(reply.answer.status),
            Self::Error(GatewayError::NoAnswer(error)) => {
                error.status().map_or(StaleReason::NoAnswer, StaleReason::Answered)
            }
            Self::Error(GatewayError::NoAnswerElsewhere) => StaleReason::NoAnswer,
            Self::Error(_) => StaleReason::NothingSent,
        }
    }
}

impl From<Failed> for Result<Reply, GatewayError> {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Answered(reply) => Ok(reply),
            Failed::Error(error) => Err(error),
        }
    }
}
