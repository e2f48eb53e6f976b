//! Everything that a configuration decides about requests, as one value. It is replaced as a whole, and a request keeps the one
//! under which it came.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};

use super::hit_memo::HitMemo;
use super::openapi;
use super::served::Served;
use crate::answer::Reader;
use crate::cache;
use crate::caller::{Caller, Callers};
use crate::clock::Clock;
use crate::configuration::Configuration;
use crate::limit::{CallerLimiter, Limited, Rules};
use crate::metrics::{Handles, Metrics};
use crate::route::{Route, Routes};
use crate::secret::hex;
use crate::settings::{
    AttemptSettings, CacheMode, CachedSettings, CallerLimit, DynamicSettings, Effective, KindSettings, Size,
};
use crate::tenant::{Identities, Tenants};
use crate::tls::Tls;

/// The policy.
pub(super) struct Policy {
    /// How many policies there were before.
    pub(super) number: u64,
    /// Another number than the policy before if answers are parsed or keyed by other rules: what was cached by those is
    /// not served.
    pub(super) rules: u32,
    pub(super) routes: Routes,
    pub(super) tenants: Tenants,
    pub(super) callers: Callers,
    /// By the callers' indices.
    limiters: Vec<NamedLimiter>,
    /// By the routes' indices.
    readers: Vec<Reader>,
    /// Digests of the rules by which answers are read, and how long they are served; by the routes' indices.
    sharing_rules: Vec<String>,
    pub(super) handles: Handles,
    pub(super) settings: DynamicSettings,
    pub(super) effective: Effective,
    pub(super) tls: Option<Arc<Tls>>,
    /// What it served.
    pub(super) hit_memo: HitMemo,
    /// What callers can do, once that was asked for.
    openapi: OnceLock<String>,
    /// The platform's host and port.
    pub(super) platform: (String, u16),
    /// Of the process, which a reload does not change.
    pub(super) cache_max_bytes: Size,
}

/// A caller's limiter, with the caller's name and limit.
struct NamedLimiter {
    name: Option<String>,
    limit: Option<CallerLimit>,
    limiter: Arc<CallerLimiter>,
}

/// The limiters of all callers, the anonymous one first. One whose limit does not change stays as it is; one whose limit changes
/// starts exhausted, so that no change admits another burst.
fn limiters(settings: &DynamicSettings, before: Option<&Policy>, clock: &Clock) -> Vec<NamedLimiter> {
    let anonymous = (None, settings.limits.caller);
    let named = settings.callers.iter().map(|caller| (Some(caller.name.clone()), caller.limit));
    let limiter = |(name, limit): (Option<String>, Option<CallerLimit>)| {
        let old = before.and_then(|before| before.limiters.iter().find(|limiter| limiter.name == name));
        let limiter = match old {
            Some(old) if old.limit == limit => Arc::clone(&old.limiter),
            Some(_) => Arc::new(CallerLimiter::exhausted(limit.as_ref(), clock)),
            None => Arc::new(CallerLimiter::new(limit.as_ref(), clock)),
        };
        NamedLimiter { name, limit, limiter }
    };
    std::iter::once(anonymous).chain(named).map(limiter).collect()
}

/// How the answers of a route of this kind are read: only those that are cached have an end.
fn reader(kind: &KindSettings, settings: &AttemptSettings) -> Reader {
    let expires = match kind {
        KindSettings::Cached(cached) => cached.expires.clone(),
        KindSettings::Write(_) | KindSettings::Pass | KindSettings::Off => Vec::new(),
    };
    Reader { expires, retry_codes: settings.retry_codes.clone(), utc_offset: settings.utc_offset }
}

impl Policy {
    /// The policy of a configuration. What callers used up of their limits under the policy `before` stays used up.
    /// `is_loopback`: whether only this machine can connect; without callers' keys, only then may they invalidate.
    pub(super) fn new(
        configuration: Configuration,
        before: Option<&Self>,
        is_loopback: bool,
        identities: &mut Identities,
        metrics: &Metrics,
        clock: &Clock,
    ) -> Self {
        let Configuration { settings: all, keys, tls, .. } = configuration;
        let settings = all.dynamic;
        let tenants = Tenants::new(&settings.tenants, &keys, identities);
        let routes = Routes::new(&settings.routes);
        let labels: Vec<&str> = routes.all().iter().map(|route| route.label.as_str()).collect();
        let names: Vec<(usize, &str)> =
            tenants.all().iter().map(|tenant| (tenant.index, tenant.name.as_str())).collect();
        let caller_names: Vec<&str> = settings.callers.iter().map(|caller| caller.name.as_str()).collect();
        let rules = before.map_or(0, |before| {
            let are_same = rules_of(&routes, &settings) == rules_of(&before.routes, &before.settings);
            before.rules + u32::from(!are_same)
        });
        let platform = before.map(|before| before.platform.clone()).unwrap_or_else(|| {
            let base_url = all.fixed.client.base_url.as_ref();
            base_url.map(|url| (url.host().to_owned(), url.port())).unwrap_or_default()
        });
        let cache_max_bytes = before.map_or(all.fixed.cache_max_bytes, |before| before.cache_max_bytes);
        Self {
            hit_memo: HitMemo::new(cache_max_bytes.0),
            openapi: OnceLock::new(),
            number: before.map_or(0, |before| before.number + 1),
            rules,
            handles: metrics.handles(&labels, &caller_names, &names),
            limiters: limiters(&settings, before, clock),
            callers: Callers::new(&settings.callers, tenants.all(), is_loopback),
            sharing_rules: routes.all().iter().map(|route| sharing_rules(route, &settings)).collect(),
            readers: routes.all().iter().map(|route| reader(&route.kind, &settings.attempts)).collect(),
            effective: match before {
                Some(before) => all.effective.reloaded_into(&before.effective),
                None => all.effective,
            },
            platform,
            cache_max_bytes,
            tls,
            settings,
            routes,
            tenants,
        }
    }

    /// Admits a caller's request, if its limit allows it.
    pub(super) fn admit(&self, caller: &Caller) -> Result<(), Limited> {
        self.limiters.get(caller.index).map_or(Ok(()), |limiter| limiter.limiter.admit())
    }

    /// The options of the cache.
    pub(super) fn cache_options(&self, identities: &Identities) -> cache::Options {
        cache::Options {
            max_bytes: self.cache_max_bytes.0.saturating_sub(self.table_bytes()),
            max_waiters: usize::try_from(self.settings.limits.max_waiters).unwrap_or(usize::MAX),
            tenants: identities.merchants(),
            rules: self.rules,
            unsettled_ttl: self.settings.cache.lifetimes.unsettled_ttl,
        }
    }

    /// Memory of the cache beside its entries, in bytes.
    pub(super) fn table_bytes(&self) -> u64 {
        self.hit_memo.max_bytes() + Served::bytes(self.cache_max_bytes)
    }

    /// The configured rate limits towards the platform.
    pub(super) fn pace_rules(&self) -> Rules {
        Rules::new(self.settings.limits.upstream, self.tenants.all(), self.routes.all())
    }

    /// The pattern of the route that serves a path; a pattern itself counts as its path.
    pub(super) fn pattern(&self, path: &str) -> Option<Arc<str>> {
        let same = || self.routes.all().iter().find(|route| *route.pattern == *path);
        self.routes.find(path).or_else(same).map(|route| Arc::clone(&route.pattern))
    }

    /// Whether requests to a route may be served from memory.
    pub(super) fn serves_from_memory(&self, route: &Route) -> bool {
        matches!(route.kind, KindSettings::Cached(_)) && self.settings.cache.mode == CacheMode::On
    }

    /// The digest of the rules by which a route's answers are read and served.
    pub(super) fn sharing_rules(&self, route: &Route) -> &str {
        self.sharing_rules.get(route.index).map_or("", String::as_str)
    }

    /// The description of what callers can do.
    pub(super) fn openapi(&self) -> &str {
        self.openapi.get_or_init(|| openapi::document(self))
    }

    /// How the answers of the route of an index are read.
    pub(super) fn reader(&self, route: usize) -> &Reader {
        self.readers.get(route).expect("one was made for each route")
    }
}

/// A digest of the rules by which a route's answers are read, and of how long they are served. Replicas with other rules do not share
/// theirs.
fn sharing_rules(route: &Route, settings: &DynamicSettings) -> String {
    let reader = reader(&route.kind, &settings.attempts);
    let lifetimes = route.kind.lifetimes(settings.cache.lifetimes);
    hex(&Sha256::digest(format!("{:?} {reader:?} {lifetimes:?}", route.kind)))
}

/// The rules by which answers are parsed and keyed.
fn rules_of(routes: &Routes, settings: &DynamicSettings) -> impl PartialEq + use<> {
    let rule = |route: &Arc<Route>| match &route.kind {
        KindSettings::Cached(cached) => {
            let CachedSettings { customer, expires, optional, .. } = cached.clone();
            Some((Arc::clone(&route.pattern), customer, expires, optional))
        }
        KindSettings::Write(_) | KindSettings::Pass | KindSettings::Off => None,
    };
    let rules: BTreeSet<_> = routes.all().iter().filter_map(rule).collect();
    (rules, settings.cache.lifetimes.expiry_margin, settings.attempts.utc_offset, settings.attempts.retry_codes.clone())
}
