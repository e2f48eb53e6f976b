//! Walks the merged configuration, so that every mistake is told at once and every effective value is known.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use config::{Value, ValueKind};

use super::value::{Setting, nearest};
use crate::secret::KeyHash;

/// One mistake in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file or variable that it stands in, where it stands in one.
    pub origin: Option<String>,
    /// The key, with dots between levels.
    pub key: String,
    /// What is wrong, the value included unless the key is secret, and what would be right.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        write!(f, "{}: {}", self.key, self.text)
    }
}

/// Every mistake of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            write!(f, "{}{mistake}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// What is learned while reading.
#[derive(Default)]
pub(crate) struct Notes {
    mistakes: RefCell<Vec<Mistake>>,
    effective: RefCell<BTreeMap<String, String>>,
}

impl Notes {
    pub(crate) fn mistake(&self, origin: Option<&str>, key: &str, text: impl Into<String>) {
        let mistake = Mistake { origin: origin.map(str::to_owned), key: key.to_owned(), text: text.into() };
        self.mistakes.borrow_mut().push(mistake);
    }

    pub(crate) fn into_parts(self) -> (Vec<Mistake>, BTreeMap<String, String>) {
        (self.mistakes.into_inner(), self.effective.into_inner())
    }
}

/// One table of the configuration; each key is taken once, and what is left at the end is unknown.
pub(crate) struct Table<'a> {
    entries: HashMap<String, Value>,
    origin: Option<String>,
    path: String,
    secret: bool,
    /// The keys that were asked for, and where each was given.
    known: BTreeMap<&'static str, Option<String>>,
    notes: &'a Notes,
}

impl<'a> Table<'a> {
    pub(crate) fn root(value: Value, notes: &'a Notes) -> Self {
        Self::new(String::new(), Some(value), false, notes)
    }

    fn new(path: String, value: Option<Value>, secret: bool, notes: &'a Notes) -> Self {
        let origin = value.as_ref().and_then(origin_of);
        let entries = match value.map(|v| v.kind) {
            Some(ValueKind::Table(entries)) => entries.into_iter().collect(),
            None | Some(ValueKind::Nil) => HashMap::new(),
            Some(_) => {
                notes.mistake(origin.as_deref(), &path, "is one value; wanted a table of keys");
                HashMap::new()
            }
        };
        Self { entries, origin, path, secret, known: BTreeMap::new(), notes }
    }

    /// The key's full name.
    pub(crate) fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Notes a mistake about this table or one of its keys.
    pub(crate) fn mistake(&self, key: &str, text: impl Into<String>) {
        let given = self.known.get(key).cloned().flatten();
        let key = if key.is_empty() { self.path.clone() } else { self.key(key) };
        self.notes.mistake(given.as_ref().or(self.origin.as_ref()).map(String::as_str), &key, text);
    }

    /// Whether nothing is given here.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether `key` is given here.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Whether the table of `key` is given here, and something in it.
    pub(crate) fn has_within(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|value| matches!(&value.kind, ValueKind::Table(table) if !table.is_empty()))
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        let value = self.entries.remove(key).filter(|value| value.kind != ValueKind::Nil);
        self.known.insert(key, value.as_ref().and_then(origin_of));
        value
    }

    /// The table under `key`; empty where there is none.
    pub(crate) fn table(&mut self, key: &'static str) -> Table<'a> {
        let value = self.take(key);
        Table::new(self.key(key), value, self.secret, self.notes)
    }

    /// The tables under `key`, each by a name of its own; what stands in them is never shown.
    pub(crate) fn secret_tables(&mut self, key: &'static str) -> Vec<(String, Table<'a>)> {
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
    pub(crate) fn array_of_tables(&mut self, key: &'static str) -> Vec<Table<'a>> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let origin = value.origin().map(str::to_owned);
        let path = self.key(key);
        let ValueKind::Array(items) = value.kind else {
            self.notes.mistake(
                origin.as_deref(),
                &path,
                format!("wanted an array of tables, each begun by [[{path}]]"),
            );
            return Vec::new();
        };
        let named = items.into_iter().enumerate();
        named.map(|(i, item)| Table::new(format!("{path}[{i}]"), Some(item), false, self.notes)).collect()
    }

    /// The value of `key`, where it is given and right.
    pub(crate) fn optional<T: Setting>(&mut self, key: &'static str) -> Option<T> {
        self.optional_checked(key, |_| Ok(()))
    }

    /// The same, held to a rule that answers what would be right.
    pub(crate) fn optional_checked<T: Setting>(
        &mut self,
        key: &'static str,
        rule: impl FnOnce(&T) -> Result<(), &'static str>,
    ) -> Option<T> {
        let value = self.read(key, rule)?;
        self.record(key, value.show());
        Some(value)
    }

    /// The value of a secret key: read, never shown.
    pub(crate) fn secret(&mut self, key: &'static str) -> Option<String> {
        let value = self.read(key, |_| Ok(()))?;
        self.record(key, "\"***\"".to_owned());
        Some(value)
    }

    /// The hashes of keys under `key`, read and never shown.
    pub(crate) fn hashes(&mut self, key: &'static str) -> Option<Vec<KeyHash>> {
        const WANTED: &str = "the SHA-256 of a key in hex, 64 digits, or a list of such; `zvgate key` makes one";
        let are_hashes = |texts: &Vec<String>| {
            if !texts.is_empty() && texts.iter().all(|text| KeyHash::parse(text).is_some()) {
                Ok(())
            } else {
                Err(WANTED)
            }
        };
        let texts: Vec<String> = self.read(key, are_hashes)?;
        self.record(key, "\"***\"".to_owned());
        texts.iter().map(|text| KeyHash::parse(text)).collect()
    }

    /// The value of `key`, or its default.
    pub(crate) fn with_default<T: Setting>(&mut self, key: &'static str, default: T) -> T {
        self.checked(key, default, |_| Ok(()))
    }

    /// The value of `key`, or its default, held to a rule that answers what would be right.
    pub(crate) fn checked<T: Setting>(
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
        let read = T::read(&value.kind).ok_or(T::WANTED).and_then(|parsed| rule(&parsed).map(|()| parsed));
        read.map_err(|wanted| {
            let text = format!("{}; wanted {wanted}", self.found(key, &value.kind));
            self.notes.mistake(value.origin(), &self.key(key), text);
        })
        .ok()
    }

    /// What was found, unless it may be a secret: then only that it was.
    fn found(&self, key: &str, kind: &ValueKind) -> String {
        match kind {
            ValueKind::Table(_) => "found a table".to_owned(),
            _ if self.secret || may_be_secret(key) => "found a value that is not shown".to_owned(),
            ValueKind::Array(items) => {
                let items: Vec<_> = items.iter().map(|item| self.found(key, &item.kind)).collect();
                format!("found a list: [{}]", items.join(", "))
            }
            // As in http://user:password@host.
            ValueKind::String(text) if text.contains('@') => "found a value that is not shown".to_owned(),
            ValueKind::String(text) => format!("found {text:?}"),
            other => format!("found {other}"),
        }
    }

    /// Notes an effective value; an array's tables are shown by whom they belong to.
    fn record(&self, key: &str, shown: String) {
        if !self.path.contains('[') {
            self.notes.effective.borrow_mut().insert(self.key(key), shown);
        }
    }

    /// Ends the reading of this table: what nobody took is unknown.
    pub(crate) fn finish(self) {
        let known: BTreeSet<&str> = self.known.keys().copied().collect();
        let mut left: Vec<_> = self.entries.iter().collect();
        left.sort_by_key(|(key, _)| *key);
        for (key, value) in left {
            let hint = match nearest(key, &known) {
                Some(near) => format!("did you mean {}?", self.key(near)),
                None => format!("known here: {}", known.iter().copied().collect::<Vec<_>>().join(", ")),
            };
            let text = format!("unknown key, {}; {hint}", self.found(key, &value.kind));
            self.notes.mistake(value.origin(), &self.key(key), text);
        }
    }
}

/// Whether a key, known or not, sounds as if its value were a secret: one that went astray is still one.
fn may_be_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["key", "secret", "token", "pass", "grant"].iter().any(|word| key.contains(word))
}

/// Where a value was given; for a table that came together from several places, one of them.
fn origin_of(value: &Value) -> Option<String> {
    let below = match &value.kind {
        ValueKind::Table(table) => table.values().find_map(origin_of),
        _ => None,
    };
    value.origin().map(str::to_owned).or(below)
}
