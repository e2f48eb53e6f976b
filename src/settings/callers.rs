//! `callers.*`: who may connect, and what they may use.

use std::collections::HashMap;

use crate::secret::KeyHash;

use super::rate::CallerLimit;
use super::reader::Table;
use super::routes::covers;
use super::tenants::is_name;
use super::value::Choice;
use super::{RouteSettings, TenantSettings};

/// Everything of a kind.
const ALL: &str = "*";

/// One caller.
#[derive(Clone, Debug)]
pub struct CallerSettings {
    /// Its name in this configuration.
    pub name: String,
    /// The hashes of its keys: several during rotation.
    pub keys: Vec<KeyHash>,
    /// The tenants that it may use.
    pub tenants: Permitted,
    /// The routes that it may use, as written in the configuration.
    pub routes: Permitted,
    /// Its rate limit.
    pub limit: Option<CallerLimit>,
    /// Whether it may call `/v1/invalidate`.
    pub invalidate: bool,
    /// Whether its requests may bypass the cache.
    pub no_cache: NoCache,
    /// How urgent its calls are.
    pub priority: Priority,
}

/// `callers.NAME.no_cache`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoCache {
    /// Its `no-cache`, `no-store` and `max-age` are respected.
    Allow,
    /// They are ignored: one HTTP library could defeat the cache.
    Ignore,
}

impl Choice for NoCache {
    const EXPECTED: &'static str = "\"allow\" or \"ignore\"";
    const ALL: &'static [(&'static str, Self)] = &[("allow", Self::Allow), ("ignore", Self::Ignore)];
}

/// `callers.NAME.priority`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Its calls queue with those of the other interactive callers.
    Interactive,
    /// Its calls queue behind interactive ones, and get at most half of the slots while others wait.
    Batch,
}

impl Choice for Priority {
    const EXPECTED: &'static str = "\"interactive\" or \"batch\"";
    const ALL: &'static [(&'static str, Self)] = &[("interactive", Self::Interactive), ("batch", Self::Batch)];
}

/// What a caller may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permitted {
    /// Everything.
    All,
    /// What is named.
    Named(Vec<String>),
}

impl Permitted {
    fn of(names: Vec<String>) -> Self {
        if names.iter().any(|name| name == ALL) { Self::All } else { Self::Named(names) }
    }

    fn names(&self) -> &[String] {
        match self {
            Self::All => &[],
            Self::Named(names) => names,
        }
    }
}

/// Reads all callers; `None` if one of them is invalid. What they may use is only checked against tenants and
/// routes that are valid.
pub(super) fn read(
    tables: Vec<(String, Table<'_>)>,
    limit: Option<CallerLimit>,
    tenants: Option<&[TenantSettings]>,
    routes: Option<&[RouteSettings]>,
) -> Option<Vec<CallerSettings>> {
    let count = tables.len();
    let mut owners: HashMap<KeyHash, String> = HashMap::new();
    let mut callers = Vec::with_capacity(count);
    for (name, mut table) in tables {
        if !is_name(&name) {
            table.error("", "is not a valid name; expected lower-case letters, digits and hyphens");
        }
        if let Some(caller) = read_one(&name, &mut table, limit) {
            for key in &caller.keys {
                if let Some(other) = owners.insert(key.clone(), name.clone()) {
                    table.error(
                        "key_sha256",
                        format!("contains a key of callers.{other}; expected each key for one caller, once"),
                    );
                }
            }
            let is_tenant = |name: &String| tenants.is_none_or(|all| all.iter().any(|tenant| tenant.name == *name));
            if !caller.tenants.names().iter().all(is_tenant) {
                table.error("tenants", "names a tenant that is not configured; expected names of tenants, or [\"*\"]");
            }
            let is_served = |name: &String| routes.is_none_or(|all| all.iter().any(|route| covers(name, &route.path)));
            if !caller.routes.names().iter().all(is_served) {
                table.error("routes", "names a path that no route serves; expected paths of routes, or [\"*\"]");
            }
            callers.push(caller);
        }
        table.finish();
    }
    (callers.len() == count).then_some(callers)
}

fn read_one(name: &str, table: &mut Table<'_>, limit: Option<CallerLimit>) -> Option<CallerSettings> {
    for (key, expected) in [
        ("key_sha256", "the SHA-256 of its key in hex, or a list of them; `zvgate key` makes one"),
        ("tenants", "the tenants that it may use, or [\"*\"]"),
        ("routes", "the paths that it may use, or [\"*\"]"),
    ] {
        if !table.has(key) {
            table.error(key, format!("is missing; expected {expected}"));
        }
    }
    let keys = table.hashes("key_sha256");
    let tenants: Option<Vec<String>> = table.optional("tenants");
    let routes: Option<Vec<String>> = table.optional("routes");
    let own_limit = CallerLimit::read(table.table("limit"));
    let invalidate = table.with_default("invalidate", false);
    let no_cache = table.with_default("no_cache", NoCache::Allow);
    let priority = table.with_default("priority", Priority::Interactive);
    Some(CallerSettings {
        name: name.to_owned(),
        keys: keys?,
        tenants: Permitted::of(tenants?),
        routes: Permitted::of(routes?),
        limit: own_limit.or(limit),
        invalidate,
        no_cache,
        priority,
    })
}
