//! The callers: internal services that send requests.

use std::sync::Arc;

use crate::route::Route;
use crate::secret::KeyHash;
use crate::settings::{CallerSettings, NoCache, Permitted, Priority, covers};
use crate::tenant::Tenant;

/// A caller; only made here, from its key.
#[derive(Debug)]
pub struct Caller {
    /// Its index among all callers, the anonymous one being the first.
    pub index: usize,
    /// Its name in the configuration; the anonymous one has none.
    pub name: Option<String>,
    keys: Vec<KeyHash>,
    tenants: Permitted,
    /// The only tenant that it may use, if there is only one.
    sole_tenant: Option<Arc<Tenant>>,
    routes: Permitted,
    /// Whether its `no-cache`, `no-store` and `max-age` are ignored.
    pub ignores_no_cache: bool,
    /// Whether it may call `/v1/invalidate`.
    pub invalidate: bool,
    /// Whether its calls queue behind interactive ones.
    pub is_batch: bool,
}

impl Caller {
    /// The only tenant that it may use, if there is only one.
    pub const fn sole_tenant(&self) -> Option<&Arc<Tenant>> {
        self.sole_tenant.as_ref()
    }

    /// Whether it may use a route.
    pub fn may_use_route(&self, route: &Route) -> bool {
        match &self.routes {
            Permitted::All => true,
            Permitted::Named(names) => names.iter().any(|name| covers(name, &route.pattern)),
        }
    }

    /// Whether there is anything that it may use.
    pub fn may_use_anything(&self) -> bool {
        let is_something = |permitted: &Permitted| match permitted {
            Permitted::All => true,
            Permitted::Named(names) => !names.is_empty(),
        };
        self.invalidate || (is_something(&self.routes) && is_something(&self.tenants))
    }

    /// Whether it may use a tenant.
    pub fn may_use_tenant(&self, tenant: &Tenant) -> bool {
        match &self.tenants {
            Permitted::All => true,
            Permitted::Named(names) => names.contains(&tenant.name),
        }
    }
}

/// All callers.
#[derive(Debug)]
pub struct Callers {
    anonymous: Arc<Caller>,
    named: Vec<Arc<Caller>>,
}

impl Callers {
    /// The callers as configured; `invalidate`: whether the anonymous one may call `/v1/invalidate`.
    pub fn new(settings: &[CallerSettings], tenants: &[Arc<Tenant>], invalidate: bool) -> Self {
        let anonymous = Caller {
            index: 0,
            name: None,
            keys: Vec::new(),
            tenants: Permitted::All,
            sole_tenant: None,
            routes: Permitted::All,
            ignores_no_cache: false,
            invalidate,
            is_batch: false,
        };
        let sole_tenant = |permitted: &Permitted| match permitted {
            Permitted::Named(names) if names.len() == 1 => {
                tenants.iter().find(|tenant| names.contains(&tenant.name)).cloned()
            }
            Permitted::Named(_) | Permitted::All => None,
        };
        let named = settings.iter().enumerate().map(|(place, one)| {
            Arc::new(Caller {
                index: place + 1,
                name: Some(one.name.clone()),
                keys: one.keys.clone(),
                tenants: one.tenants.clone(),
                sole_tenant: sole_tenant(&one.tenants),
                routes: one.routes.clone(),
                ignores_no_cache: one.no_cache == NoCache::Ignore,
                invalidate: one.invalidate,
                is_batch: one.priority == Priority::Batch,
            })
        });
        Self { anonymous: Arc::new(anonymous), named: named.collect() }
    }

    /// Whether no caller is configured, so that anonymous ones are served.
    pub fn are_anonymous(&self) -> bool {
        self.named.is_empty()
    }

    /// Those with a name, in order.
    pub fn named(&self) -> &[Arc<Caller>] {
        &self.named
    }

    /// The caller without a key.
    pub const fn anonymous(&self) -> &Arc<Caller> {
        &self.anonymous
    }

    /// The caller of an index, or the anonymous one.
    pub fn by_index(&self, index: usize) -> &Caller {
        index.checked_sub(1).and_then(|place| self.named.get(place)).unwrap_or(&self.anonymous)
    }

    /// The caller with this key. All keys are compared, so that the time taken reveals nothing.
    pub fn with_key(&self, key: &[u8]) -> Option<&Arc<Caller>> {
        let hash = KeyHash::of(key);
        self.named.iter().fold(None, |found, caller| if hash.is_one_of(&caller.keys) { Some(caller) } else { found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str, keys: &[&str]) -> CallerSettings {
        CallerSettings {
            name: name.to_owned(),
            keys: keys.iter().map(|key| KeyHash::of(key.as_bytes())).collect(),
            tenants: Permitted::All,
            routes: Permitted::All,
            limit: None,
            invalidate: false,
            no_cache: NoCache::Allow,
            priority: Priority::Interactive,
        }
    }

    #[test]
    fn a_caller_is_identified_by_any_of_its_keys_and_by_no_other() {
        let callers = Callers::new(&[caller("a", &["old", "new"]), caller("b", &["other"])], &[], false);
        let name = |key: &str| callers.with_key(key.as_bytes()).and_then(|caller| caller.name.as_deref());
        assert_eq!([name("old"), name("new"), name("other")], [Some("a"), Some("a"), Some("b")]);
        assert_eq!([name(""), name("olds"), name("*")], [None; 3]);
    }
}
