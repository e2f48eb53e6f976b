//! Walks the merged configuration, so that all errors are reported at once and every effective value is known.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use config::{Value, ValueKind};

use super::effective::{Effective, Scope};
use super::load::{FileReference, Holds};
use super::value::{Setting, nearest};
use crate::secret::KeyHash;
use crate::tls::TlsFiles;

/// How the origin of a value from the environment begins.
pub(super) const VARIABLE: &str = "environment variable ";

/// One error in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file or variable that it is in, if it is in one.
    pub origin: Option<String>,
    /// The key, with dots between levels.
    pub key: String,
    /// What is wrong, with the value unless the key is secret, and what is expected.
    pub text: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        write!(f, "{}: {}", self.key, self.text)
    }
}

/// All errors in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl std::error::Error for ConfigErrors {}

/// What is found while reading.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) errors: RefCell<Vec<ConfigError>>,
    pub(super) effective: RefCell<Effective>,
    pub(super) files: RefCell<Vec<FileReference>>,
    /// The files that secrets themselves were given in.
    pub(super) secret_files: RefCell<BTreeSet<PathBuf>>,
    pub(super) tls_files: RefCell<Option<(Option<String>, TlsFiles)>>,
}

impl Notes {
    pub(super) fn error(&self, origin: Option<&str>, key: &str, text: impl Into<String>) {
        let error = ConfigError { origin: origin.map(str::to_owned), key: key.to_owned(), text: text.into() };
        self.errors.borrow_mut().push(error);
    }
}

/// One table of the configuration. Each key is taken once; those that are left at the end are unknown.
pub(super) struct Table<'a> {
    entries: HashMap<String, Value>,
    origin: Option<String>,
    path: String,
    secret: bool,
    scope: Scope,
    /// The keys that were read, and where each was given.
    known: BTreeMap<&'static str, Option<String>>,
    notes: &'a Notes,
}

impl<'a> Table<'a> {
    pub(super) fn root(value: Value, notes: &'a Notes) -> Self {
        Self::new(String::new(), Some(value), false, notes)
    }

    fn new(path: String, value: Option<Value>, secret: bool, notes: &'a Notes) -> Self {
        let origin = value.as_ref().and_then(origin_of);
        let entries = match value.map(|v| v.kind) {
            Some(ValueKind::Table(entries)) => entries.into_iter().collect(),
            None | Some(ValueKind::Nil) => HashMap::new(),
            Some(_) => {
                notes.error(origin.as_deref(), &path, "is a single value; expected a table of keys");
                HashMap::new()
            }
        };
        Self { entries, origin, path, secret, scope: Scope::Dynamic, known: BTreeMap::new(), notes }
    }

    /// The key's full name.
    pub(super) fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The keys that are read from here on need a restart, or do not.
    pub(super) const fn set_scope(&mut self, scope: Scope) {
        self.scope = scope;
    }

    /// The path of a file under `key`; one that is given in a file is relative to that file.
    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let given = self.entries.get(key).and_then(|value| value.origin().map(str::to_owned));
        let path: PathBuf = self.read(key, |_| Ok(()))?;
        let folder = given.filter(|origin| !origin.starts_with(VARIABLE)).map(PathBuf::from);
        let path = folder.as_deref().and_then(Path::parent).map_or_else(|| path.clone(), |folder| folder.join(&path));
        self.record(key, path.show());
        Some(path)
    }

    /// The same for a file whose contents are read later.
    pub(super) fn file(&mut self, key: &'static str, holds: Holds) -> Option<PathBuf> {
        let path = self.path(key)?;
        let origin = self.known.get(key).cloned().flatten();
        let reference = FileReference { key: self.key(key), origin, path: path.clone(), holds };
        self.notes.files.borrow_mut().push(reference);
        Some(path)
    }

    /// Notes the files of `server.tls`, which are read later.
    pub(super) fn note_tls(&self, files: TlsFiles) {
        *self.notes.tls_files.borrow_mut() = Some((self.origin.clone(), files));
    }

    /// Reports an error in this table or in one of its keys.
    pub(super) fn error(&self, key: &str, text: impl Into<String>) {
        let given = self.known.get(key).cloned().flatten();
        let key = if key.is_empty() { self.path.clone() } else { self.key(key) };
        self.notes.error(given.as_ref().or(self.origin.as_ref()).map(String::as_str), &key, text);
    }

    /// Whether nothing is given here.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether `key` is given here.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Whether `key` was given here, and has been read.
    pub(super) fn was_given(&self, key: &str) -> bool {
        self.known.get(key).is_some_and(Option::is_some)
    }

    /// Whether the table of `key` is given here, and something in it.
    pub(super) fn has_within(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|value| matches!(&value.kind, ValueKind::Table(table) if !table.is_empty()))
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        let value = self.entries.remove(key).filter(|value| value.kind != ValueKind::Nil);
        self.known.insert(key, value.as_ref().and_then(origin_of));
        value
    }

    /// The table under `key`; empty if there is none.
    pub(super) fn table(&mut self, key: &'static str) -> Table<'a> {
        let value = self.take(key);
        Table::new(self.key(key), value, self.secret, self.notes)
    }

    /// The tables under `key`, each with its name; their values are never shown.
    pub(super) fn secret_tables(&mut self, key: &'static str) -> Vec<(String, Table<'a>)> {
        let mut tables = Table::new(self.key(key), self.take(key), true, self.notes);
        let mut names: Vec<_> = tables.entries.drain().collect();
        names.sort_by(|a, b| a.0.cmp(&b.0));
        let path = &tables.path;
        names
            .into_iter()
            .map(|(name, value)| {
                let table = Table::new(format!("{path}.{name}"), Some(value), true, self.notes);
                (name, table)
            })
            .collect()
    }

    /// The tables of the array under `key`.
    pub(super) fn array_of_tables(&mut self, key: &'static str) -> Vec<Table<'a>> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let origin = value.origin().map(str::to_owned);
        let path = self.key(key);
        let ValueKind::Array(items) = value.kind else {
            self.notes.error(
                origin.as_deref(),
                &path,
                format!("expected an array of tables, each begun by [[{path}]]"),
            );
            return Vec::new();
        };
        let named = items.into_iter().enumerate();
        named.map(|(i, item)| Table::new(format!("{path}[{i}]"), Some(item), false, self.notes)).collect()
    }

    /// The value of `key`, if it is given and valid.
    pub(super) fn optional<T: Setting>(&mut self, key: &'static str) -> Option<T> {
        self.optional_checked(key, |_| Ok(()))
    }

    /// The same, checked by a rule that returns what is expected.
    pub(super) fn optional_checked<T: Setting>(
        &mut self,
        key: &'static str,
        rule: impl FnOnce(&T) -> Result<(), &'static str>,
    ) -> Option<T> {
        let value = self.read(key, rule)?;
        self.record(key, value.show());
        Some(value)
    }

    /// The value of a secret key, which is never shown.
    pub(super) fn secret(&mut self, key: &'static str) -> Option<String> {
        let value = self.read(key, |_| Ok(()))?;
        let origin = self.known.get(key).cloned().flatten().filter(|origin| !origin.starts_with(VARIABLE));
        self.notes.secret_files.borrow_mut().extend(origin.map(PathBuf::from));
        self.record(key, "\"***\"".to_owned());
        Some(value)
    }

    /// The hashes of keys under `key`, which are never shown.
    pub(super) fn hashes(&mut self, key: &'static str) -> Option<Vec<KeyHash>> {
        const EXPECTED: &str = "the SHA-256 of a key in hex, 64 digits, or a list of such; `zvgate key` makes one";
        let are_hashes = |texts: &Vec<String>| {
            if !texts.is_empty() && texts.iter().all(|text| KeyHash::parse(text).is_some()) {
                Ok(())
            } else {
                Err(EXPECTED)
            }
        };
        let texts: Vec<String> = self.read(key, are_hashes)?;
        self.record(key, "\"***\"".to_owned());
        texts.iter().map(|text| KeyHash::parse(text)).collect()
    }

    /// The value of `key`, or its default.
    pub(super) fn with_default<T: Setting>(&mut self, key: &'static str, default: T) -> T {
        self.checked(key, default, |_| Ok(()))
    }

    /// The value of `key`, or its default, checked by a rule that returns what is expected.
    pub(super) fn checked<T: Setting>(
        &mut self,
        key: &'static str,
        default: T,
        rule: impl FnOnce(&T) -> Result<(), &'static str>,
    ) -> T {
        let value = self.read(key, rule).unwrap_or(default);
        self.record(key, value.show());
        value
    }

    fn read<T: Setting>(&mut self, key: &'static str, rule: impl FnOnce(&T) -> Result<(), &'static str>) -> Option<T> {
        let value = self.take(key)?;
        let read = T::read(&value.kind).ok_or(T::EXPECTED).and_then(|parsed| rule(&parsed).map(|()| parsed));
        read.map_err(|expected| {
            let text = format!("{}; expected {expected}", self.found(key, &value.kind));
            self.notes.error(value.origin(), &self.key(key), text);
        })
        .ok()
    }

    /// What was found, unless it may be a secret.
    fn found(&self, key: &str, kind: &ValueKind) -> String {
        match kind {
            ValueKind::Table(_) => "found a table".to_owned(),
            _ if self.secret || may_be_secret(key) => "found a value that is not shown".to_owned(),
            ValueKind::Array(items) => {
                let items: Vec<_> = items.iter().map(|item| self.found(key, &item.kind)).collect();
                format!("found a list: [{}]", items.join(", "))
            }
            // A hash of a key under a mistyped name.
            ValueKind::String(text) if KeyHash::parse(text.trim()).is_some() => {
                "found a value that is not shown".to_owned()
            }
            // As in http://user:password@host.
            ValueKind::String(text) if text.contains('@') => "found a value that is not shown".to_owned(),
            ValueKind::String(text) => format!("found {text:?}"),
            other => format!("found {other}"),
        }
    }

    /// Records an effective value; the tables of an array are shown by their owner.
    fn record(&self, key: &str, shown: String) {
        if !self.path.contains('[') {
            self.notes.effective.borrow_mut().insert(self.scope, self.key(key), shown);
        }
    }

    /// Ends the reading of this table: keys that were not read are unknown.
    pub(super) fn finish(self) {
        let known: BTreeSet<&str> = self.known.keys().copied().collect();
        let mut left: Vec<_> = self.entries.iter().collect();
        left.sort_by_key(|(key, _)| *key);
        for (key, value) in left {
            let hint = match nearest(key, &known) {
                Some(near) => format!("did you mean {}?", self.key(near)),
                None => format!("known here: {}", known.iter().copied().collect::<Vec<_>>().join(", ")),
            };
            let text = format!("unknown key, {}; {hint}", self.found(key, &value.kind));
            self.notes.error(value.origin(), &self.key(key), text);
        }
    }
}

/// Whether a key, known or not, sounds as if its value were a secret: a misplaced secret is still one.
fn may_be_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["key", "secret", "token", "pass", "grant", "hash", "sha256", "auth"].iter().any(|word| key.contains(word))
}

/// Where a value was given; for a table that was given in several places, one of them.
fn origin_of(value: &Value) -> Option<String> {
    let below = match &value.kind {
        ValueKind::Table(table) => table.values().find_map(origin_of),
        _ => None,
    };
    value.origin().map(str::to_owned).or(below)
}
