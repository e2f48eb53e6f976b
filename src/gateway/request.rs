//! The two carriers of a request: borrowed until it is dispatched, owned after that.

use std::sync::Arc;
use std::time::Duration;

use super::hit_memo::Repeat;
use super::policy::Policy;
use super::request_info::RequestInfo;
use super::served::Served;
use crate::cache::{Hit, Question, RequestCacheControl, StaleHit, Subject};
use crate::call_state::{CallState, CallWaiter};
use crate::caller::Caller;
use crate::clock::{Boot, Now};
use crate::cluster::{Cluster, Standing};
use crate::envelope::Envelope;
use crate::limit::{Class, Permit, QueueKey};
use crate::metrics::{CallMetrics, LookupResult, RouteMetrics};
use crate::reply::{Reply, StaleReason};
use crate::route::Route;
use crate::settings::{CachedSettings, KindSettings, Lifetimes};
use crate::signer::Call;
use crate::tenant::Tenant;
use crate::trace::Trace;
use crate::upstream::Reuse;

/// A request whose caller, route and tenant are known. It borrows everything that the caller sent, and ends before anything
/// is waited for: a parsed body is many times its size.
pub(super) struct Request<'a> {
    pub(super) policy: &'a Arc<Policy>,
    pub(super) caller: &'a Caller,
    pub(super) route: &'a Arc<Route>,
    pub(super) path: &'a str,
    pub(super) repeat: Repeat<'a>,
    pub(super) envelope: &'a Envelope<'a>,
    pub(super) tenant: &'a Arc<Tenant>,
    pub(super) cache_control: RequestCacheControl,
    pub(super) info: &'a RequestInfo,
    pub(super) now: Now,
    pub(super) deadline: Boot,
    pub(super) cluster: &'a Cluster,
    pub(super) served: &'a Served,
    /// How it may be served from memory.
    pub(super) standing: Standing,
    /// Whether its call is one of many that can wait.
    pub(super) is_batch: bool,
}

impl Request<'_> {
    /// What the request asks of the cache.
    pub(super) fn question(&self, cached: &CachedSettings) -> Question {
        let customer = self.info.customers.first().map(String::as_str);
        question_of(self.envelope, self.path, cached, self.tenant, customer, self.cluster)
    }

    /// The reply from the cache to its question, counted.
    pub(super) fn hit(&self, hit: Hit) -> Reply {
        self.served.note(hit.subject(), self.now.boot);
        self.policy.handles.hit(self.tenant.index, self.route.index, hit.freshness().negative);
        self.cluster.count_hit(self.standing);
        Reply::hit(hit, self.now)
    }

    /// The reply from the cache to it although that is not fresh, or not for certain, counted. `is_fetched`: whether that causes a call.
    pub(super) fn stale(&self, hit: StaleHit, reason: StaleReason, is_fetched: bool) -> Reply {
        self.served.note(hit.subject(), self.now.boot);
        if !is_fetched {
            self.call_metrics().saved.inc();
        }
        self.route_metrics().lookups.of(LookupResult::Stale).inc();
        self.cluster.count_hit(self.standing);
        Reply::stale(hit, reason, self.now)
    }

    /// The metrics of its route.
    pub(super) fn route_metrics(&self) -> &RouteMetrics {
        self.policy.handles.route(self.route.index)
    }

    /// The metrics of its tenant's calls to its route.
    pub(super) fn call_metrics(&self) -> &CallMetrics {
        self.policy.handles.call(self.tenant.index, self.route.index)
    }

    /// The fetch that answers it and everybody else who asks the same. It outlives the request, and has its own time.
    pub(super) fn fetch_job(&self, now: Boot) -> Job {
        let settings = &self.policy.settings;
        Job {
            deadline: now + settings.requests.request_timeout,
            reuse: Reuse::Idle,
            retries: settings.attempts.retries,
            ..self.job()
        }
    }

    /// The call that forwards it for its caller alone.
    pub(super) fn pass_job(&self, may_repeat: bool) -> Job {
        let (reuse, retries) = match may_repeat {
            true => (Reuse::Idle, self.policy.settings.attempts.retries),
            // It could be lost on an idle connection that is closing, and nobody knows what it does.
            false => (Reuse::New, 0),
        };
        Job { reuse, retries, ..self.job() }
    }

    /// The call of a write, which runs to completion.
    pub(super) fn write_job(&self, now: Boot) -> Job {
        let settings = &self.policy.settings;
        Job {
            queue_key: self.queue_key(Class::Write),
            max_wait: settings.limits.max_wait_write,
            attempt_timeout: settings.attempts.write_timeout,
            deadline: now + settings.requests.write_request_timeout,
            reuse: Reuse::Own,
            retries: 0,
            ..self.job()
        }
    }

    /// Who waits for its call.
    pub(super) fn call_waiter(&self) -> CallWaiter {
        CallWaiter { caller: self.caller.index, is_batch: self.is_batch }
    }

    fn queue_key(&self, class: Class) -> QueueKey {
        let class = if self.is_batch { Class::Batch } else { class };
        QueueKey { caller: self.caller.index, tenant: self.tenant.index, class }
    }

    fn job(&self) -> Job {
        let settings = &self.policy.settings;
        let path = if self.route.wildcard { self.path.into() } else { Arc::clone(&self.route.pattern) };
        Job {
            policy: Arc::clone(self.policy),
            route: Arc::clone(self.route),
            call: Call { tenant: Arc::clone(self.tenant), path, members: self.envelope.forwarded().into() },
            queue_key: self.queue_key(Class::Interactive),
            max_wait: settings.limits.max_wait,
            attempt_timeout: settings.attempts.attempt_timeout,
            deadline: self.deadline,
            reuse: Reuse::New,
            retries: 0,
            call_state: Arc::default(),
            trace: self.info.span.clone(),
        }
    }
}

/// What a body on a cached route asks, about this customer.
pub(super) fn question_of(
    envelope: &Envelope<'_>,
    path: &str,
    cached: &CachedSettings,
    tenant: &Tenant,
    customer: Option<&str>,
    cluster: &Cluster,
) -> Question {
    let mut key = envelope.question(path, &cached.optional);
    // A merchant's grants share its customers, so that a write under one is seen under all, and no answers.
    if tenant.grant > 0 {
        key.push_str(&format!(" {}", tenant.grant));
    }
    let subject = match customer {
        Some(customer) => Subject::customer(tenant.merchant, &cluster.customer(customer)),
        None => Subject::question(tenant.merchant, &cluster.question(tenant.identity(), &key)),
    };
    Question { subject, key: key.into() }
}

/// A call to the platform that is to be made, with everything that it needs of the request and what it may take.
pub(super) struct Job {
    pub(super) policy: Arc<Policy>,
    pub(super) route: Arc<Route>,
    pub(super) call: Call,
    /// Its place among those that wait for a slot.
    pub(super) queue_key: QueueKey,
    /// How long it may wait for a slot and for capacity in flight.
    pub(super) max_wait: Duration,
    /// How long the answer to one attempt may take.
    pub(super) attempt_timeout: Duration,
    /// When everything must have ended.
    pub(super) deadline: Boot,
    /// Which connection it may use.
    pub(super) reuse: Reuse,
    /// How often it may be retried.
    pub(super) retries: u32,
    /// What it takes.
    pub(super) call_state: Arc<CallState>,
    /// The trace of the request that began it, if that is sampled.
    pub(super) trace: Option<Arc<Trace>>,
}

impl Job {
    /// The metrics of its tenant's calls to its route.
    pub(super) fn metrics(&self) -> &CallMetrics {
        self.policy.handles.call(self.call.tenant.index, self.route.index)
    }

    /// Whether it is a write.
    pub(super) fn is_write(&self) -> bool {
        matches!(self.route.kind, KindSettings::Write(_))
    }

    /// Whether its answer must be JSON: what is neither cached nor a write is passed on as it is.
    pub(super) fn needs_json(&self) -> bool {
        matches!(self.route.kind, KindSettings::Cached(_) | KindSettings::Write(_))
    }

    /// The lifetimes of its answer: the route's own, if it has some.
    pub(super) fn lifetimes(&self) -> Lifetimes {
        self.route.kind.lifetimes(self.policy.settings.cache.lifetimes)
    }
}

/// What a call needs that nobody waits for.
pub(super) enum Spare {
    /// A permit.
    Permit(Permit),
    /// A slot that all replicas share, which must be requested.
    Shared,
}
