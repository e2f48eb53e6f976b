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

/// The paces of all tenants and routes.
#[derive(Debug)]
pub struct Paces {
    /// By tenant, then by route.
    all: Vec<Vec<RoutePace>>,
    clock: Clock,
}

#[derive(Debug)]
struct RoutePace {
    settings: PaceSettings,
    /// When its slots are free first.
    from: Boot,
    /// The pace of an exact route, or of the paths beyond the limit under a wildcard.
    common: Arc<Pace>,
    paths: Mutex<HashMap<String, Arc<Pace>>>,
}

impl RoutePace {
    fn new(settings: PaceSettings, before: Before, clock: &Clock) -> Self {
        let from = match before {
            Before::Unknown => clock.boot() + settings.per,
            Before::Nothing => clock.boot(),
        };
        Self { settings, from, common: Pace::new(settings, from, clock), paths: Mutex::default() }
    }

    fn of_path(&self, path: &str, clock: &Clock) -> Arc<Pace> {
        let mut paths = self.paths.lock();
        if let Some(known) = paths.get(path) {
            return Arc::clone(known);
        }
        if paths.len() >= MAX_PATHS {
            let now = clock.boot();
            paths.retain(|_, pace| Arc::strong_count(pace) > 1 || !pace.is_idle(now));
        }
        if paths.len() >= MAX_PATHS {
            return Arc::clone(&self.common);
        }
        let new = Pace::new(self.settings, self.from, clock);
        paths.insert(path.to_owned(), Arc::clone(&new));
        new
    }

    fn for_each(&self, mut act: impl FnMut(&Pace)) {
        act(&self.common);
        self.paths.lock().values().for_each(|pace| act(pace));
    }
}

impl Paces {
    /// A route's pace wins over its tenant's, and that over the one for all.
    pub fn new(
        tenants: &[Arc<Tenant>],
        routes: &[Option<PaceSettings>],
        base: PaceSettings,
        before: Before,
        clock: &Clock,
    ) -> Self {
        let one = |settings| RoutePace::new(settings, before, clock);
        let of_tenant =
            |tenant: &Arc<Tenant>| routes.iter().map(|route| one(route.or(tenant.pace).unwrap_or(base))).collect();
        Self { all: tenants.iter().map(of_tenant).collect(), clock: clock.clone() }
    }

    /// The pace of a tenant's calls to a path.
    pub fn of(&self, tenant: &Tenant, route: &Route, path: &str) -> Arc<Pace> {
        let pace = self.all.get(tenant.index).and_then(|routes| routes.get(route.index));
        let pace = pace.expect("one was made for each tenant and route");
        if route.wildcard { pace.of_path(path, &self.clock) } else { Arc::clone(&pace.common) }
    }

    /// A tenant's signatures are made otherwise from now on: what upstream refused of them was no throttling.
    pub fn resigned(&self, tenant: &Tenant) {
        for route in self.all.get(tenant.index).into_iter().flatten() {
            route.for_each(Pace::resigned);
        }
    }

    /// Calls that each tenant and route, given by their indices, are allowed in one window now, under a wildcard those of
    /// its slowest path; infinitely many where there is no pace.
    pub fn each_allowed(&self, mut tell: impl FnMut(usize, usize, f64)) {
        let now = self.clock.boot();
        for (tenant, routes) in self.all.iter().enumerate() {
            for (route, pace) in routes.iter().enumerate() {
                let mut allowed = f64::INFINITY;
                pace.for_each(|one| allowed = allowed.min(one.allowed(now)));
                tell(tenant, route, allowed);
            }
        }
    }
}
