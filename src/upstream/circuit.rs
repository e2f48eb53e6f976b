//! What is known of a tenant's attempts: those in flight, retries, failures, and the state of its circuit breakers.
//!
//! Each concrete path has a breaker of its own, since one failing interface says nothing about another. Failures to connect
//! say nothing about a path: they count in one breaker for all paths of the tenant.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::breaker::{Admission, Breaker, BreakerPosition, Transition};
use super::failures::{Episode, Failures};
use super::retry::RetryBudget;
use crate::clock::{Boot, Clock};
use crate::limit::InflightLimit;
use crate::route::Route;
use crate::settings::BreakerSettings;

/// Paths of one wildcard that have a circuit of their own; further ones share one.
const MAX_PATHS: usize = 256;

/// The platform has one code for too many calls and for a refused signature: after so many in a row it may be the latter.
const SUSPECT_AFTER: u32 = 3;

/// Why an attempt is rejected before anything is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// The breaker is open, for so long.
    BreakerOpen(Duration),
    /// As many attempts as are allowed are in flight, and stay so.
    TooManyInFlight,
}

/// Whether a read may be retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It may.
    Granted,
    /// The tenant's budget is exhausted.
    Denied {
        /// Whether it was not until now.
        is_first: bool,
    },
}

/// The kind of failure under which denied retries are recorded.
const RETRY_BUDGET: &str = "retry_budget";

/// How an attempt ended, as far as breakers are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// With an answer, whatever its body says and however long it took.
    Answered,
    /// With an HTTP status of 5xx, a broken connection, or no answer within its own timeout.
    Failed,
    /// Without a connection.
    Unreachable,
}

/// Which breaker changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// That of the attempt's path.
    Path,
    /// That of all the tenant's paths.
    Tenant,
}

/// Receives changes of breakers.
pub trait Observer {
    /// A breaker changed its state.
    fn breaker_changed(&self, scope: Scope, transition: Transition);
}

/// The last attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFailure {
    /// The kind of failure.
    pub reason: &'static str,
    /// The error in words.
    pub cause: String,
    /// When it failed.
    pub at: Boot,
}

/// The circuits of one tenant.
#[derive(Debug)]
pub(super) struct TenantCircuits {
    inflight: Arc<InflightLimit>,
    /// Counts failures to connect.
    connect: Mutex<Breaker>,
    /// The last of these.
    unreachable: Mutex<Option<LastFailure>>,
    /// Notified when a breaker opens.
    opened: Notify,
    retries: RetryBudget,
    /// When retries were wanted that the budget does not allow.
    denied_retries: Failures,
    /// Calls that were throttled in a row since the last success.
    throttled: AtomicU32,
    paths: Mutex<HashMap<Arc<str>, Arc<PathCircuit>>>,
    clock: Clock,
}

#[derive(Debug)]
struct PathCircuit {
    /// The pattern of the route that serves the path; a reload may change it.
    pattern: Mutex<Arc<str>>,
    breaker: Mutex<Breaker>,
    failures: Failures,
    last_failure: Mutex<Option<LastFailure>>,
}

impl PathCircuit {
    fn new(pattern: &Arc<str>) -> Self {
        let breaker = Mutex::new(Breaker::new());
        Self {
            pattern: Mutex::new(Arc::clone(pattern)),
            breaker,
            failures: Failures::default(),
            last_failure: Mutex::default(),
        }
    }

    fn is_idle(&self, now: Boot) -> bool {
        self.breaker.lock().is_idle(now) && self.failures.have_ended()
    }
}

impl TenantCircuits {
    pub(super) fn new(max_inflight: u32, clock: &Clock) -> Self {
        Self {
            inflight: InflightLimit::new(usize::try_from(max_inflight).unwrap_or(usize::MAX)),
            connect: Mutex::new(Breaker::new()),
            unreachable: Mutex::default(),
            opened: Notify::new(),
            retries: RetryBudget::new(),
            denied_retries: Failures::default(),
            throttled: AtomicU32::new(0),
            paths: Mutex::default(),
            clock: clock.clone(),
        }
    }

    /// The circuit of a path that a route serves.
    pub(super) fn of(self: Arc<Self>, route: &Route, path: &str) -> Circuit {
        let mut paths = self.paths.lock();
        if let Some(known) = paths.get(path) {
            let path = Arc::clone(known);
            let mut pattern = path.pattern.lock();
            if *pattern != route.pattern {
                *pattern = Arc::clone(&route.pattern);
            }
            drop(pattern);
            drop(paths);
            return Circuit { tenant: self, path };
        }
        let of_route = |circuit: &PathCircuit| *circuit.pattern.lock() == route.pattern;
        let mut key = path;
        if route.wildcard && paths.values().filter(|circuit| of_route(circuit)).count() >= MAX_PATHS {
            let now = self.clock.boot();
            paths.retain(|_, circuit| !of_route(circuit) || !circuit.is_idle(now));
            if paths.values().filter(|circuit| of_route(circuit)).count() >= MAX_PATHS {
                key = &route.pattern;
            }
        }
        let new = || Arc::new(PathCircuit::new(&route.pattern));
        let path = Arc::clone(paths.entry(key.into()).or_insert_with(new));
        drop(paths);
        Circuit { tenant: self, path }
    }

    /// The circuits of a route, or of one path of it.
    fn on(&self, route: &Route, path: Option<&str>) -> Vec<Arc<PathCircuit>> {
        let paths = self.paths.lock();
        // Paths of a wildcard beyond those that have a circuit of their own share one.
        let path = path.map(|path| if paths.contains_key(path) { path } else { &route.pattern });
        let on_route = paths.iter().filter(|(known, circuit)| {
            *circuit.pattern.lock() == route.pattern && path.is_none_or(|path| ***known == *path)
        });
        on_route.map(|(_, circuit)| Arc::clone(circuit)).collect()
    }

    /// The breaker of a route, under a wildcard the one of its paths that is furthest from closed, or of one path.
    pub(super) fn breaker(&self, settings: &BreakerSettings, route: &Route, path: Option<&str>) -> BreakerPosition {
        let now = self.clock.boot();
        let of_paths = self.on(route, path).into_iter().map(|circuit| circuit.breaker.lock().position(settings, now));
        of_paths.fold(self.connect.lock().position(settings, now), Ord::max)
    }

    /// The breaker of all paths, and the last failure to connect.
    pub(super) fn connect_breaker(&self, settings: &BreakerSettings) -> (BreakerPosition, Option<LastFailure>) {
        (self.connect.lock().position(settings, self.clock.boot()), self.unreachable.lock().clone())
    }

    /// What fails on a route, on all its paths together, and what failed last.
    pub(super) fn failures(&self, route: &Route) -> (Vec<Episode>, Option<LastFailure>) {
        let circuits = self.on(route, None);
        let last = circuits.iter().filter_map(|circuit| circuit.last_failure.lock().clone());
        let last = last.max_by_key(|failure| failure.at);
        let mut episodes: Vec<Episode> = Vec::new();
        for episode in circuits.iter().flat_map(|circuit| circuit.failures.all()) {
            match episodes.iter_mut().find(|other| other.kind == episode.kind) {
                Some(other) => other.add(episode),
                None => episodes.push(episode),
            }
        }
        (episodes, last)
    }

    pub(super) fn is_key_suspect(&self) -> bool {
        self.throttled.load(Ordering::Relaxed) >= SUSPECT_AFTER
    }

    /// The time without retries, if it has ended.
    pub(super) fn ended_denial(&self) -> Option<Episode> {
        self.denied_retries.take_ended(self.clock.boot()).pop()
    }

    /// The failures that have ended, with their paths.
    pub(super) fn ended_failures(&self) -> Vec<(Arc<str>, Episode)> {
        let (now, paths) = (self.clock.boot(), self.paths.lock());
        let ended = paths.iter().flat_map(|(path, circuit)| {
            circuit.failures.take_ended(now).into_iter().map(|episode| (Arc::clone(path), episode))
        });
        ended.collect()
    }
}

/// The circuit of one tenant and path.
#[derive(Clone, Debug)]
pub struct Circuit {
    tenant: Arc<TenantCircuits>,
    path: Arc<PathCircuit>,
}

impl Circuit {
    /// Whether an attempt could be made now.
    ///
    /// # Errors
    /// [`Rejected::BreakerOpen`] if a breaker is open.
    pub fn check(&self, settings: &BreakerSettings) -> Result<(), Rejected> {
        let now = self.tenant.clock.boot();
        let of_tenant = self.tenant.connect.lock().check(settings, now);
        of_tenant.and_then(|()| self.path.breaker.lock().check(settings, now)).map_err(Rejected::BreakerOpen)
    }

    /// Waits until no attempt may be made.
    pub async fn rejects(&self, settings: &BreakerSettings) -> Rejected {
        loop {
            let mut opened = std::pin::pin!(self.tenant.opened.notified());
            opened.as_mut().enable();
            if let Err(rejected) = self.check(settings) {
                return rejected;
            }
            opened.await;
        }
    }

    /// The limit of the tenant's attempts in flight (`upstream.max_inflight`).
    pub fn inflight(&self) -> &Arc<InflightLimit> {
        &self.tenant.inflight
    }

    /// Begins an attempt that may take so `long`.
    ///
    /// # Errors
    /// If a breaker is open by now.
    pub fn begin(
        &self,
        settings: &BreakerSettings,
        long: Duration,
        observer: &impl Observer,
    ) -> Result<Attempt, Rejected> {
        let now = self.tenant.clock.boot();
        let deadline = now + long;
        // Both locks, in this order, so that no attempt is admitted by one breaker and rejected by the other.
        let mut of_tenant = self.tenant.connect.lock();
        let mut of_path = self.path.breaker.lock();
        of_path.check(settings, now).map_err(Rejected::BreakerOpen)?;
        let (tenant, tenant_changed) = of_tenant.admit(settings, deadline, now).map_err(Rejected::BreakerOpen)?;
        let (path, path_changed) = of_path.admit(settings, deadline, now).map_err(Rejected::BreakerOpen)?;
        drop((of_tenant, of_path));
        tenant_changed.into_iter().for_each(|change| observer.breaker_changed(Scope::Tenant, change));
        path_changed.into_iter().for_each(|change| observer.breaker_changed(Scope::Path, change));
        Ok(Attempt { circuit: self.clone(), admitted: Some((tenant, path)) })
    }

    /// Counts the first attempt of a read, which earns retries.
    pub fn count_first(&self) {
        self.tenant.retries.first(self.tenant.clock.boot());
    }

    /// Takes a retry out of the tenant's budget, if one is left.
    pub fn take_retry(&self) -> Retry {
        let now = self.tenant.clock.boot();
        if self.tenant.retries.retry(now) {
            return Retry::Granted;
        }
        Retry::Denied { is_first: self.tenant.denied_retries.failed(RETRY_BUDGET, String::new(), now) }
    }

    /// Records why an attempt failed; returns whether it is the first failure of its kind since the last one ended.
    pub fn failed(&self, reason: &'static str, cause: String, health: Option<Health>) -> bool {
        let at = self.tenant.clock.boot();
        let last = LastFailure { reason, cause: cause.clone(), at };
        if health == Some(Health::Unreachable) {
            *self.tenant.unreachable.lock() = Some(last.clone());
        }
        *self.path.last_failure.lock() = Some(last);
        self.path.failures.failed(reason, cause, at)
    }

    /// Records that a call was rejected before anything was sent; returns whether it is the first one for this reason since the
    /// last one ended.
    pub fn rejected(&self, reason: &'static str) -> bool {
        self.path.failures.failed(reason, String::new(), self.tenant.clock.boot())
    }

    /// Records a success; returns whether the tenant's key was suspect until now.
    pub fn succeeded(&self) -> bool {
        self.path.failures.succeeded();
        self.tenant.denied_retries.succeeded();
        let throttled = &self.tenant.throttled;
        // Most often there is nothing to change.
        throttled.load(Ordering::Relaxed) > 0 && throttled.swap(0, Ordering::Relaxed) >= SUSPECT_AFTER
    }

    /// Records that the platform throttled a call although the rate limit was kept; returns whether that makes the tenant's key
    /// suspect.
    pub fn throttled(&self) -> bool {
        self.tenant.throttled.fetch_add(1, Ordering::Relaxed) + 1 == SUSPECT_AFTER
    }

    /// Whether the tenant's key may be refused.
    pub fn is_key_suspect(&self) -> bool {
        self.tenant.is_key_suspect()
    }
}

/// An attempt in flight. Dropped before its end is recorded, it counts neither as a success nor as a failure.
#[derive(Debug)]
pub struct Attempt {
    circuit: Circuit,
    /// `None` once its end is recorded.
    admitted: Option<(Admission, Admission)>,
}

impl Attempt {
    /// Records how it ended.
    pub fn record(mut self, settings: &BreakerSettings, health: Health, observer: &impl Observer) {
        let Some((of_tenant, of_path)) = self.admitted.take() else { return };
        let Circuit { tenant, path } = &self.circuit;
        let (now, jitter) = (tenant.clock.boot(), fastrand::f64());
        let connected = health != Health::Unreachable;
        let tenant_changed = tenant.connect.lock().record(settings, of_tenant, connected, jitter, now);
        let path_changed = match health {
            Health::Answered => path.breaker.lock().record(settings, of_path, true, jitter, now),
            Health::Failed => path.breaker.lock().record(settings, of_path, false, jitter, now),
            Health::Unreachable => {
                path.breaker.lock().abandon(of_path);
                None
            }
        };
        for (scope, change) in [(Scope::Tenant, tenant_changed), (Scope::Path, path_changed)] {
            let Some(change) = change else { continue };
            if matches!(change, Transition::Opened(_)) {
                tenant.opened.notify_waiters();
            }
            observer.breaker_changed(scope, change);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some((tenant, path)) = self.admitted.take() {
            self.circuit.tenant.connect.lock().abandon(tenant);
            self.circuit.path.breaker.lock().abandon(path);
        }
    }
}

#[cfg(test)]
mod tests;
