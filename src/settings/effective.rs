//! The effective configuration, and which of its keys a running gateway can change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::RouteSettings;

/// When a key takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// At start only.
    Static,
    /// At every reload.
    Dynamic,
}

/// Every effective value by its key, as TOML, secrets masked.
#[derive(Clone, Debug, Default)]
pub struct Effective(BTreeMap<String, (Scope, String)>);

/// The keys whose values differ between two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Those that a reload applies.
    pub dynamic: Vec<String>,
    /// Those that need a restart.
    pub fixed: Vec<String>,
}

impl Effective {
    pub(super) fn insert(&mut self, scope: Scope, key: String, value: String) {
        self.0.insert(key, (scope, value));
    }

    /// Keys whose values differ in `other`. Secrets differ unseen.
    pub fn differences(&self, other: &Self) -> Differences {
        let mut differences = Differences::default();
        let keys: BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        for key in keys {
            let (old, new) = (self.0.get(key), other.0.get(key));
            if old == new {
                continue;
            }
            match new.or(old) {
                Some((Scope::Static, _)) => differences.fixed.push(key.clone()),
                Some((Scope::Dynamic, _)) | None => differences.dynamic.push(key.clone()),
            }
        }
        differences
    }

    /// These values as they are in force in a process that started with `running`: static keys keep their values.
    pub fn reloaded_into(self, running: &Self) -> Self {
        let of = |effective: Self, scope: Scope| effective.0.into_iter().filter(move |(_, value)| value.0 == scope);
        Self(of(self, Scope::Dynamic).chain(of(running.clone(), Scope::Static)).collect())
    }

    /// As a TOML document, with these routes.
    pub fn to_toml(&self, routes: &[RouteSettings]) -> String {
        let mut page = String::new();
        for (key, (_, value)) in &self.0 {
            // Writing to a string cannot fail.
            let _ = writeln!(page, "{key} = {value}");
        }
        routes.iter().for_each(|route| page.push_str(&route.to_toml()));
        page
    }
}
