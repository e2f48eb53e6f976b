//! Typed handles for the names of a configuration: made once, so that counting needs no lookup.

use std::marker::PhantomData;
use std::sync::OnceLock;
use std::time::Duration;

use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge};

use super::Vecs;
use super::labels::{AttemptResult, BreakerState, CacheUse, Changed, Label, Limit, LookupResult, Shadowed};

/// The name of callers without one.
pub const ANONYMOUS: &str = "anonymous";
/// The route of requests without one.
pub(super) const UNROUTED: &str = "none";
/// Statuses that are counted under their own number.
const STATUSES: std::ops::Range<u16> = 100..600;

/// One metric for each value of a label.
#[derive(Clone, Debug)]
pub struct Per<L, M>(Vec<M>, PhantomData<L>);

impl<L: Label, M> Per<L, M> {
    pub(super) fn new(make: impl FnMut(&'static str) -> M) -> Self {
        Self(L::NAMES.iter().copied().map(make).collect(), PhantomData)
    }

    /// The metric of a value.
    pub fn of(&self, label: L) -> &M {
        self.0.get(label.index()).expect("one was made for each value of the label")
    }
}

/// Answered requests of a caller on a route, by status.
#[derive(Debug, Default)]
struct Requests(OnceLock<Box<[OnceLock<IntCounter>]>>);

impl Requests {
    fn count(&self, counters: &IntCounterVec, route: &str, caller: &str, status: u16) {
        let by_status = self.0.get_or_init(|| STATUSES.map(|_| OnceLock::new()).collect());
        let make = || counters.with_label_values(&[route, caller, &status.to_string()]);
        match by_status.get(usize::from(status.wrapping_sub(STATUSES.start))) {
            Some(counter) => counter.get_or_init(make).inc(),
            None => counters.with_label_values(&[route, caller, "other"]).inc(),
        }
    }
}

/// What is counted for a route.
#[derive(Debug)]
pub struct RouteMetrics {
    route: String,
    requests_by: IntCounterVec,
    /// By caller.
    requests: Vec<Requests>,
    /// Durations of answers, in seconds.
    pub duration: Per<CacheUse, Histogram>,
    /// Lookups in the cache.
    pub lookups: Per<LookupResult, IntCounter>,
    /// Refetches, by whether the answer had changed.
    pub refetches: Per<Changed, IntCounter>,
    /// Reads in the cache's shadow mode for which it had an answer.
    pub shadowed: Per<Shadowed, IntCounter>,
    /// Writes that the platform refused for a customer who was served from the cache of late.
    pub stale_shown: IntCounter,
    /// Requests with `only-if-cached` that got 504.
    pub not_cached: IntCounter,
}

/// What is counted for a caller.
#[derive(Debug)]
pub struct CallerMetrics {
    name: String,
    /// Requests rejected by a limit.
    pub limited: Per<Limit, IntCounter>,
}

/// What is counted for a tenant.
#[derive(Debug)]
pub struct TenantMetrics {
    /// Attempts in flight.
    pub inflight: IntGauge,
    /// Whether the platform throttles although the rate limit is kept, since its last success: the key may be refused.
    pub key_suspect: IntGauge,
    /// Calls of the current month that are billed.
    pub billed_month: IntGauge,
    /// By route.
    calls: Vec<CallMetrics>,
}

/// What is counted for a tenant's calls to a route.
#[derive(Debug)]
pub struct CallMetrics {
    /// Attempts by how they ended.
    pub attempts: Per<AttemptResult, IntCounter>,
    /// Durations of attempts, in seconds, from signing to the end of the answer.
    pub duration: Histogram,
    /// Attempts beyond the first.
    pub retries: IntCounter,
    /// Writes whose outcome is unknown.
    pub outcome_unknown: IntCounter,
    /// Requests that were answered without a call of their own.
    pub saved: IntCounter,
    /// How long calls waited for a slot, in seconds.
    pub wait: Histogram,
    /// Calls that were rejected because no slot or capacity came in time.
    pub rejected: IntCounter,
    /// Calls that wait for a slot.
    pub waiting: IntGauge,
    /// Calls that a window allows now; infinitely many without a limit.
    pub rate: Gauge,
    /// Whether the circuit breaker is open or half-open.
    pub breaker_open: IntGauge,
    /// Its transitions.
    pub breaker_transitions: Per<BreakerState, IntCounter>,
}

/// The handles for the names of a configuration.
#[derive(Debug)]
pub struct Handles {
    routes: Vec<RouteMetrics>,
    /// Requests that were rejected before they had a route.
    unrouted: RouteMetrics,
    callers: Vec<CallerMetrics>,
    /// By the tenants' numbers.
    tenants: Vec<Option<TenantMetrics>>,
}

impl Handles {
    /// Handles for routes and callers in order, the anonymous caller first, and for tenants by number.
    pub(super) fn new(vecs: &Vecs, routes: &[&str], callers: &[&str], tenants: &[(usize, &str)]) -> Self {
        let route = |route: &str| RouteMetrics {
            route: route.to_owned(),
            requests_by: vecs.requests.clone(),
            requests: callers.iter().map(|_| Requests::default()).collect(),
            duration: Per::new(|cache| vecs.duration.with_label_values(&[route, cache])),
            lookups: Per::new(|result| vecs.lookups.with_label_values(&[route, result])),
            refetches: Per::new(|changed| vecs.refetches.with_label_values(&[route, changed])),
            shadowed: Per::new(|result| vecs.shadowed.with_label_values(&[route, result])),
            stale_shown: vecs.stale_shown.with_label_values(&[route]),
            not_cached: vecs.not_cached.with_label_values(&[route]),
        };
        let call = |tenant: &str, route: &str| CallMetrics {
            attempts: Per::new(|outcome| vecs.attempts.with_label_values(&[tenant, route, outcome])),
            duration: vecs.upstream_duration.with_label_values(&[tenant, route]),
            retries: vecs.retries.with_label_values(&[tenant, route]),
            outcome_unknown: vecs.outcome_unknown.with_label_values(&[tenant, route]),
            saved: vecs.saved.with_label_values(&[tenant, route]),
            wait: vecs.wait.with_label_values(&[tenant, route]),
            rejected: vecs.rejected.with_label_values(&[tenant, route]),
            waiting: vecs.waiting.with_label_values(&[tenant, route]),
            rate: vecs.rate.with_label_values(&[tenant, route]),
            breaker_open: vecs.breaker_open.with_label_values(&[tenant, route]),
            breaker_transitions: Per::new(|to| vecs.breaker_transitions.with_label_values(&[tenant, route, to])),
        };
        let caller = |name: &&str| CallerMetrics {
            name: (*name).to_owned(),
            limited: Per::new(|limit| vecs.limited.with_label_values(&[limit, name])),
        };
        let count = tenants.iter().map(|(number, _)| number + 1).max().unwrap_or_default();
        let mut by_number: Vec<Option<TenantMetrics>> = (0..count).map(|_| None).collect();
        for (number, tenant) in tenants {
            if let Some(place) = by_number.get_mut(*number) {
                *place = Some(TenantMetrics {
                    inflight: vecs.inflight.with_label_values(&[*tenant]),
                    key_suspect: vecs.key_suspect.with_label_values(&[*tenant]),
                    billed_month: vecs.billed_month.with_label_values(&[*tenant]),
                    calls: routes.iter().map(|route| call(tenant, route)).collect(),
                });
            }
        }
        Self {
            routes: routes.iter().map(|name| route(name)).collect(),
            unrouted: route(UNROUTED),
            callers: callers.iter().map(caller).collect(),
            tenants: by_number,
        }
    }

    /// Counts an answered request.
    pub fn request(&self, route: Option<usize>, caller: usize, status: u16, cache: CacheUse, took: Duration) {
        let route = route.map_or(&self.unrouted, |index| self.route(index));
        if let Some(requests) = route.requests.get(caller) {
            requests.count(&route.requests_by, &route.route, &self.caller(caller).name, status);
        }
        route.duration.of(cache).observe(took.as_secs_f64());
    }

    /// Counts a request of a tenant that a fresh answer from the cache saved a call.
    pub fn hit(&self, tenant: usize, route: usize, is_negative: bool) {
        let result = if is_negative { LookupResult::NegativeHit } else { LookupResult::Hit };
        self.route(route).lookups.of(result).inc();
        self.call(tenant, route).saved.inc();
    }

    /// The metrics of a route.
    pub fn route(&self, index: usize) -> &RouteMetrics {
        self.routes.get(index).unwrap_or(&self.unrouted)
    }

    /// The metrics of a caller.
    pub fn caller(&self, index: usize) -> &CallerMetrics {
        self.callers.get(index).expect("one was made for each caller")
    }

    /// The metrics of a tenant.
    pub fn tenant(&self, number: usize) -> &TenantMetrics {
        self.tenants.get(number).and_then(Option::as_ref).expect("one was made for each tenant")
    }

    /// The metrics of a tenant's calls to a route.
    pub fn call(&self, tenant: usize, route: usize) -> &CallMetrics {
        self.tenant(tenant).calls.get(route).expect("one was made for each tenant and route")
    }
}

/// Counts an attempt while it is in flight, however it ends.
#[derive(Debug)]
pub struct InFlight<'a>(&'a IntGauge);

impl<'a> InFlight<'a> {
    /// One more.
    pub fn new(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
