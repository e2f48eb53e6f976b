//! The rate limits of all tenants and paths.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::pace::PaceUsage;
use super::sharing::SlotSource;
use super::{Ended, Pace, Sharing};
use crate::clock::{Boot, Clock};
use crate::route::Route;
use crate::settings::{PaceSettings, covers};
use crate::tenant::Tenant;

/// Paths under one wildcard that have a limit of their own, as long as they need one; further ones share one limit, which is
/// stricter than needed and so safe.
const MAX_PATHS: usize = 256;

/// What the platform may have counted before a process started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlierCalls {
    /// Calls of an earlier process: all slots are taken for one `per` and `transit` first.
    Unknown,
    /// None: the platform starts at the same time.
    None,
}

/// The configured limits: a route's overrides its tenant's, which overrides the common one.
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
            tenants: tenants.iter().filter_map(|tenant| Some((tenant.merchant, tenant.pace?))).collect(),
            routes: routes.iter().filter_map(|route| Some((Arc::clone(&route.pattern), route.pace?))).collect(),
        }
    }

    /// How long any call may be in a window after it was sent.
    fn longest_cooldown(&self) -> Duration {
        let all = std::iter::once(&self.all).chain(self.tenants.values()).chain(self.routes.values());
        all.map(|pace| pace.transit + pace.per).max().unwrap_or_default()
    }

    fn of(&self, tenant: usize, pattern: &str) -> PaceSettings {
        self.routes.get(pattern).or_else(|| self.tenants.get(&tenant)).copied().unwrap_or(self.all)
    }
}

/// The limits, each for a merchant and a path, as the platform counts. They outlive changes of the configuration.
#[derive(Debug)]
pub struct Paces {
    state: Mutex<State>,
    /// When a call may last have been sent that is not known here.
    counted: Option<Boot>,
    clock: Clock,
    sharing: Arc<Sharing>,
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
    /// Without limits yet.
    pub fn new(rules: Rules, earlier: EarlierCalls, clock: &Clock, sharing: &Arc<Sharing>) -> Self {
        let counted = match earlier {
            EarlierCalls::Unknown => Some(clock.boot()),
            EarlierCalls::None => None,
        };
        let state = Mutex::new(State { rules, all: HashMap::new() });
        Self { state, counted, clock: clock.clone(), sharing: Arc::clone(sharing) }
    }

    /// The limit of a tenant's calls to a path.
    pub fn of(&self, tenant: &Tenant, route: &Route, path: &str) -> Arc<Pace> {
        let mut state = self.state.lock();
        let State { rules, all } = &mut *state;
        let settings = rules.of(tenant.merchant, &route.pattern);
        let paths = all.entry(tenant.merchant).or_default();
        if let Some(known) = paths.get(path) {
            return Arc::clone(&known.pace);
        }
        // The common limit of a wildcard, which may have served this path until a reload, may still remember calls to it.
        let now = self.clock.boot();
        let common = paths.iter().find(|(pattern, common)| covers(pattern, path) && !common.is_idle(now));
        if let Some((_, common)) = common {
            return Arc::clone(&common.pace);
        }
        let of_route = |entry: &Entry| entry.pattern == route.pattern;
        if route.wildcard && paths.values().filter(|entry| of_route(entry)).count() >= MAX_PATHS {
            paths.retain(|_, entry| !of_route(entry) || !entry.is_idle(now));
            if paths.values().filter(|entry| of_route(entry)).count() >= MAX_PATHS {
                return self.added(paths, Arc::clone(&route.pattern), tenant, route, settings);
            }
        }
        self.added(paths, path.into(), tenant, route, settings)
    }

    /// Makes the limits of all calls of these tenants to these routes, so that what other replicas learn of them is not lost.
    pub fn prepare(&self, tenants: &[Arc<Tenant>], routes: &[Arc<Route>]) {
        for tenant in tenants {
            for route in routes.iter().filter(|route| !route.wildcard) {
                self.of(tenant, route, &route.pattern);
            }
        }
    }

    fn added(
        &self,
        paths: &mut HashMap<Arc<str>, Entry>,
        path: Arc<str>,
        tenant: &Tenant,
        route: &Route,
        settings: PaceSettings,
    ) -> Arc<Pace> {
        // A call of an earlier process may have been sent just before its end.
        let counted = self.counted.map(|counted| counted + settings.transit);
        let name = self.sharing.name(&tenant.open_id, &path);
        let new = || Entry {
            pace: Pace::new(settings, counted, &self.clock, &self.sharing, name),
            pattern: Arc::clone(&route.pattern),
        };
        Arc::clone(&paths.entry(path).or_insert_with(new).pace)
    }

    /// Applies another configuration; `pattern` returns, for a path, that of the route that serves it. Limits of
    /// paths that are no longer served are dropped once they are idle.
    pub fn reconfigure(&self, rules: Rules, pattern: impl Fn(&str) -> Option<Arc<str>>) {
        let now = self.clock.boot();
        let mut state = self.state.lock();
        for (tenant, paths) in &mut state.all {
            paths.retain(|path, entry| match pattern(path) {
                Some(pattern) => {
                    entry.pace.reconfigure(rules.of(*tenant, &pattern));
                    entry.pattern = pattern;
                    true
                }
                None => !entry.is_idle(now),
            });
        }
        state.rules = rules;
    }

    /// Slots come from elsewhere now.
    pub fn source_changed(&self) {
        self.for_each(Pace::source_changed);
    }

    /// Another replica's call was throttled, on the pace of this name.
    pub fn throttled_elsewhere(&self, name: &str) {
        self.for_name(name, Pace::throttled_elsewhere);
    }

    /// The platform asked another replica for a pause, on the pace of this name.
    pub fn paused_elsewhere(&self, name: &str, pause: Duration) {
        self.for_name(name, |pace| pace.paused_elsewhere(pause));
    }

    /// Whether no call that this replica made in its own part of the limits is in a window any more, nor one that an earlier process
    /// may have made.
    pub fn have_cooled(&self) -> bool {
        let now = self.clock.boot();
        let mut have_cooled = true;
        self.for_each(|pace| have_cooled &= pace.has_cooled(now));
        let longest = self.state.lock().rules.longest_cooldown();
        have_cooled && self.counted.is_none_or(|counted| counted + longest <= now)
    }

    fn for_name(&self, name: &str, act: impl Fn(&Pace)) {
        self.for_each(|pace| {
            if **pace.name() == *name {
                act(pace);
            }
        });
    }

    fn for_each(&self, mut act: impl FnMut(&Pace)) {
        let state = self.state.lock();
        state.all.values().flat_map(HashMap::values).for_each(|entry| act(&entry.pace));
    }

    /// A tenant's credentials or the signing clock changed: what the platform refused just before may not have been throttling.
    pub fn credentials_changed(&self, tenant: &Tenant) {
        let state = self.state.lock();
        state
            .all
            .get(&tenant.merchant)
            .into_iter()
            .flat_map(HashMap::values)
            .for_each(|entry| entry.pace.credentials_changed());
    }

    /// The merchants and paths on which throttling or a pause has ended since this was last asked.
    pub fn ended_throttling(&self) -> Vec<(usize, Arc<str>, Ended)> {
        let (now, state) = (self.clock.boot(), self.state.lock());
        let paths = state
            .all
            .iter()
            .flat_map(|(merchant, paths)| paths.iter().map(move |(path, entry)| (merchant, path, entry)));
        let ended = paths.filter_map(|(merchant, path, entry)| {
            Some((*merchant, Arc::clone(path), entry.pace.take_end_of_throttling(now)?))
        });
        ended.collect()
    }

    /// How a tenant's limit on a route is used, under a wildcard those of all its paths together, or the one of this path.
    pub fn usage(&self, tenant: &Tenant, route: &Route, path: Option<&str>) -> PaceUsage {
        let now = self.clock.boot();
        let state = self.state.lock();
        let source = self.sharing.source();
        let rate = source.part_of(state.rules.of(tenant.merchant, &route.pattern).rate);
        let unused = PaceUsage {
            allowed: if rate == 0 { f64::INFINITY } else { f64::from(rate) },
            taken: (source != SlotSource::Shared).then_some(0),
            waiting: 0,
            paused_until: None,
            next: now,
            is_throttled: false,
        };
        let all = state.all.get(&tenant.merchant);
        // Paths of a wildcard beyond those that have a limit of their own share one.
        let path = path.map(|path| if all.is_some_and(|all| all.contains_key(path)) { path } else { &route.pattern });
        let paths = all.into_iter().flatten();
        paths
            .filter(|(known, entry)| entry.pattern == route.pattern && path.is_none_or(|path| ***known == *path))
            .fold(unused, |usage, (_, entry)| usage.and(entry.pace.usage(now)))
    }
}
