//! Everything that a configuration decides about requests, as one value: it is swapped whole, and a request keeps the one
//! that it came under.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::answer::Reader;
use crate::cache::{self, Lifetimes};
use crate::caller::{Caller, Callers};
use crate::clock::Clock;
use crate::limit::{CallerGate, Limited, Rules};
use crate::metrics::{Handles, Metrics};
use crate::route::{Route, Routes};
use crate::settings::{CachedSettings, CallerLimit, KindSettings, Settings, UpstreamSettings};
use crate::tenant::{Identities, Tenants};

/// What is decided.
pub(super) struct Policy {
    /// How many there were before.
    pub(super) number: u64,
    pub(super) routes: Routes,
    pub(super) tenants: Tenants,
    pub(super) callers: Callers,
    /// By the callers' indices.
    gates: Vec<Gate>,
    pub(super) lifetimes: Lifetimes,
    /// By the routes' indices.
    readers: Vec<Reader>,
    pub(super) handles: Handles,
    pub(super) settings: Settings,
}

/// A caller's gate, and whose and what it is.
struct Gate {
    name: Option<String>,
    limit: Option<CallerLimit>,
    gate: Arc<CallerGate>,
}

/// The gates of all callers, anonymous ones being the first. One whose limit stays the same goes on as it is; a new limit
/// begins with nothing to spend where there was another gate before, so that no change lets a burst through.
fn gates(settings: &Settings, before: Option<&Policy>, clock: &Clock) -> Vec<Gate> {
    let anonymous = (None, settings.limits.caller);
    let named = settings.callers.iter().map(|caller| (Some(caller.name.clone()), caller.limit));
    let gate = |(name, limit): (Option<String>, Option<CallerLimit>)| {
        let old = before.and_then(|before| before.gates.iter().find(|gate| gate.name == name));
        let gate = match old {
            Some(old) if old.limit == limit => Arc::clone(&old.gate),
            Some(_) => Arc::new(CallerGate::spent(limit.as_ref(), clock)),
            None => Arc::new(CallerGate::new(limit.as_ref(), clock)),
        };
        Gate { name, limit, gate }
    };
    std::iter::once(anonymous).chain(named).map(gate).collect()
}

/// How the answers of a route of this kind are read: only those that are kept end by themselves.
fn reader(kind: &KindSettings, upstream: &UpstreamSettings) -> Reader {
    let expires = match kind {
        KindSettings::Cached(cached) => cached.expires.clone(),
        KindSettings::Write(_) | KindSettings::Pass | KindSettings::Off => Vec::new(),
    };
    Reader { expires, retry_codes: upstream.retry_codes.clone(), utc_offset: upstream.utc_offset }
}

impl Policy {
    /// What is decided by `settings`. What callers used up of their limits under `before` stays used up. `private` tells
    /// whether only this machine can ask: without callers' keys, only then may they invalidate.
    pub(super) fn new(
        settings: &Settings,
        before: Option<&Self>,
        private: bool,
        identities: &mut Identities,
        metrics: &Metrics,
        clock: &Clock,
    ) -> Self {
        let settings = before.map_or_else(|| settings.clone(), |before| settings.keeping_fixed(&before.settings));
        let cache = &settings.cache;
        let tenants = Tenants::new(&settings.tenants, identities);
        let routes = Routes::new(&settings.routes);
        let labels: Vec<&str> = routes.all().iter().map(|route| route.label.as_str()).collect();
        let names: Vec<(usize, &str)> =
            tenants.all().iter().map(|tenant| (tenant.index, tenant.name.as_str())).collect();
        let caller_names: Vec<&str> = settings.callers.iter().map(|caller| caller.name.as_str()).collect();
        Self {
            number: before.map_or(0, |before| before.number + 1),
            handles: metrics.handles(&labels, &caller_names, &names),
            gates: gates(&settings, before, clock),
            callers: Callers::new(&settings.callers, private),
            lifetimes: Lifetimes {
                ttl: cache.ttl,
                negative_ttl: cache.negative_ttl,
                unsettled_ttl: cache.unsettled_ttl,
                stale_while_revalidate: cache.stale_while_revalidate,
                stale_if_error: cache.stale_if_error,
                expiry_margin: cache.expiry_margin,
            },
            readers: routes.all().iter().map(|route| reader(&route.kind, &settings.upstream)).collect(),
            settings,
            routes,
            tenants,
        }
    }

    /// Lets a caller's request through, if its limit does.
    pub(super) fn admit(&self, caller: &Caller) -> Result<(), Limited> {
        self.gates.get(caller.index).map_or(Ok(()), |gate| gate.gate.admit())
    }

    /// What the cache is made with, or takes over.
    pub(super) fn cache_options(&self, identities: &Identities) -> cache::Options {
        cache::Options {
            max_bytes: self.settings.cache.max_bytes.0,
            max_waiters: usize::try_from(self.settings.limits.max_waiters).unwrap_or(usize::MAX),
            tenants: identities.count(),
            unsettled_ttl: self.settings.cache.unsettled_ttl,
        }
    }

    /// Which pace is configured for whom.
    pub(super) fn pace_rules(&self) -> Rules {
        Rules::new(self.settings.limits.upstream, self.tenants.all(), self.routes.all())
    }

    /// The pattern of the route that serves a path, or a pattern itself.
    pub(super) fn pattern(&self, path: &str) -> Option<Arc<str>> {
        let same = || self.routes.all().iter().find(|route| *route.pattern == *path);
        self.routes.find(path).or_else(same).map(|route| Arc::clone(&route.pattern))
    }

    /// Whether kept answers may have been read or told apart by other rules under another policy.
    pub(super) fn reads_otherwise(&self, other: &Self) -> bool {
        let rules = |policy: &Self| {
            let one = |route: &Arc<Route>| match &route.kind {
                KindSettings::Cached(cached) => {
                    let CachedSettings { customer, expires, optional, .. } = cached.clone();
                    Some((Arc::clone(&route.pattern), customer, expires, optional))
                }
                KindSettings::Write(_) | KindSettings::Pass | KindSettings::Off => None,
            };
            let routes: BTreeSet<_> = policy.routes.all().iter().filter_map(one).collect();
            (routes, policy.settings.cache.expiry_margin, policy.settings.upstream.utc_offset)
        };
        rules(self) != rules(other)
    }

    /// How a route's answers are read.
    pub(super) fn reader(&self, route: &Route) -> &Reader {
        self.readers.get(route.index).expect("one was made for each route")
    }
}
