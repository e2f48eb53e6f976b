//! The paces of all tenants and routes.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Pace;
use crate::clock::{Boot, Clock};
use crate::route::Route;
use crate::settings::PaceSettings;
use crate::tenant::Tenant;

/// Paths under one wildcard that have a pace of their own, as long as they need one; further ones share one, which is
/// never too fast.
const MAX_PATHS: usize = 256;

/// What upstream may still remember when a process begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Calls of a process that ran before: all slots cool for one `per` first.
    Unknown,
    /// Nothing: it begins just now itself.
    Nothing,
}

/// Which pace is configured for whom: a route's wins over its tenant's, and that over the one for all.
#[derive(Debug)]
pub struct Rules {
    all: PaceSettings,
    /// By the merchant's number.
    tenants: HashMap<usize, PaceSettings>,
    /// By the route's pattern.
    routes: HashMap<Arc<str>, PaceSettings>,
}

impl Rules {
    /// The rules for these tenants and routes.
    pub fn new(all: PaceSettings, tenants: &[Arc<Tenant>], routes: &[Arc<Route>]) -> Self {
        Self {
            all,
            tenants: tenants.iter().filter_map(|tenant| Some((tenant.index, tenant.pace?))).collect(),
            routes: routes.iter().filter_map(|route| Some((Arc::clone(&route.pattern), route.pace?))).collect(),
        }
    }

    fn of(&self, tenant: usize, pattern: &str) -> PaceSettings {
        self.routes.get(pattern).or_else(|| self.tenants.get(&tenant)).copied().unwrap_or(self.all)
    }
}

/// The paces, each for a merchant and a path: what upstream counts. They outlive every change of configuration.
#[derive(Debug)]
pub struct Paces {
    state: Mutex<State>,
    /// When a call may last have been counted that nobody here knows of.
    counted: Option<Boot>,
    clock: Clock,
}

#[derive(Debug)]
struct State {
    rules: Rules,
    /// By the merchant's number and the path.
    all: HashMap<usize, HashMap<Arc<str>, Entry>>,
}

#[derive(Debug)]
struct Entry {
    pace: Arc<Pace>,
    /// The pattern of the route that it belongs to.
    pattern: Arc<str>,
}

impl Entry {
    fn is_idle(&self, now: Boot) -> bool {
        Arc::strong_count(&self.pace) == 1 && self.pace.is_idle(now)
    }
}

impl Paces {
    /// No pace yet.
    pub fn new(rules: Rules, before: Before, clock: &Clock) -> Self {
        let counted = match before {
            Before::Unknown => Some(clock.boot()),
            Before::Nothing => None,
        };
        Self { state: Mutex::new(State { rules, all: HashMap::new() }), counted, clock: clock.clone() }
    }

    /// The pace of a tenant's calls to a path.
    pub fn of(&self, tenant: &Tenant, route: &Route, path: &str) -> Arc<Pace> {
        let mut state = self.state.lock();
        let State { rules, all } = &mut *state;
        let settings = rules.of(tenant.index, &route.pattern);
        let paths = all.entry(tenant.index).or_default();
        if let Some(known) = paths.get(path) {
            return Arc::clone(&known.pace);
        }
        // What went by the common pace may still be remembered there.
        let common = paths.get(&route.pattern).filter(|common| route.wildcard && !common.is_idle(self.clock.boot()));
        if let Some(common) = common {
            return Arc::clone(&common.pace);
        }
        let of_route = |entry: &Entry| entry.pattern == route.pattern;
        if route.wildcard && paths.values().filter(|entry| of_route(entry)).count() >= MAX_PATHS {
            let now = self.clock.boot();
            paths.retain(|_, entry| !of_route(entry) || !entry.is_idle(now));
            if paths.values().filter(|entry| of_route(entry)).count() >= MAX_PATHS {
                return self.added(paths, Arc::clone(&route.pattern), route, settings);
            }
        }
        self.added(paths, path.into(), route, settings)
    }

    fn added(
        &self,
        paths: &mut HashMap<Arc<str>, Entry>,
        path: Arc<str>,
        route: &Route,
        settings: PaceSettings,
    ) -> Arc<Pace> {
        let new =
            || Entry { pace: Pace::new(settings, self.counted, &self.clock), pattern: Arc::clone(&route.pattern) };
        Arc::clone(&paths.entry(path).or_insert_with(new).pace)
    }

    /// Holds every pace to what is configured now; `pattern` tells, for a path, that of the route that serves it. Paces of
    /// what is not served any more go once they are idle.
    pub fn adopt(&self, rules: Rules, pattern: impl Fn(&str) -> Option<Arc<str>>) {
        let now = self.clock.boot();
        let mut state = self.state.lock();
        for (tenant, paths) in &mut state.all {
            paths.retain(|path, entry| match pattern(path) {
                Some(pattern) => {
                    entry.pace.adopt(rules.of(*tenant, &pattern));
                    entry.pattern = pattern;
                    true
                }
                None => !entry.is_idle(now),
            });
        }
        state.rules = rules;
    }

    /// A tenant's signatures are made otherwise from now on: what upstream refused of them was no throttling.
    pub fn resigned(&self, tenant: &Tenant) {
        let state = self.state.lock();
        state.all.get(&tenant.index).into_iter().flat_map(HashMap::values).for_each(|entry| entry.pace.resigned());
    }

    /// Calls that a tenant and route are allowed in one window now, under a wildcard those of its slowest path; infinitely
    /// many where there is no pace.
    pub fn allowed(&self, tenant: &Tenant, route: &Route) -> f64 {
        let now = self.clock.boot();
        let state = self.state.lock();
        let rate = state.rules.of(tenant.index, &route.pattern).rate;
        let usual = if rate == 0 { f64::INFINITY } else { f64::from(rate) };
        let paths = state.all.get(&tenant.index).into_iter().flat_map(HashMap::values);
        paths
            .filter(|entry| entry.pattern == route.pattern)
            .fold(usual, |least, entry| least.min(entry.pace.allowed(now)))
    }
}
