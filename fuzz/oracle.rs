//! Simple, slow reference implementations for the fuzz targets: trees by serde_json, sorted maps, and days counted one by
//! one.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// JSON as it was written: members in their order with duplicates, numbers as their text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Tree>),
    Members(Vec<(String, Tree)>),
}

/// The members of an object, each value as its text.
struct Raw(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Raw;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Raw(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl Tree {
    /// Parses a text; `None` if it is not JSON.
    pub fn parse(text: &str) -> Option<Self> {
        let raw: Box<RawValue> = serde_json::from_str(text).ok()?;
        let raw = raw.get();
        Some(match raw.as_bytes().first()? {
            b'{' => {
                let Raw(members) = serde_json::from_str(raw).ok()?;
                let read = |(name, value): (String, Box<RawValue>)| Some((name, Self::parse(value.get())?));
                Self::Members(members.into_iter().map(read).collect::<Option<_>>()?)
            }
            b'[' => {
                let items: Vec<Box<RawValue>> = serde_json::from_str(raw).ok()?;
                Self::List(items.iter().map(|item| Self::parse(item.get())).collect::<Option<_>>()?)
            }
            b'"' => Self::Text(serde_json::from_str(raw).ok()?),
            b't' | b'f' => Self::Bool(raw == "true"),
            b'n' => Self::Null,
            _ => Self::Number(raw.to_owned()),
        })
    }

    /// The nesting depth: a list or an object is one level.
    pub fn depth(&self) -> usize {
        match self {
            Self::List(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            Self::Members(members) => 1 + members.iter().map(|(_, value)| value.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// Whether no object in it has a duplicate name.
    pub fn has_no_duplicate(&self) -> bool {
        match self {
            Self::List(items) => items.iter().all(Self::has_no_duplicate),
            Self::Members(members) => {
                let names: std::collections::BTreeSet<&String> = members.iter().map(|(name, _)| name).collect();
                names.len() == members.len() && members.iter().all(|(_, value)| value.has_no_duplicate())
            }
            _ => true,
        }
    }

    pub fn members(&self) -> Option<&[(String, Tree)]> {
        match self {
            Self::Members(members) => Some(members),
            _ => None,
        }
    }

    /// The first member with this name.
    pub fn member(&self, name: &str) -> Option<&Tree> {
        self.members()?.iter().find(|(other, _)| other == name).map(|(_, value)| value)
    }
}

/// A question, reduced to what distinguishes it from others.
#[derive(Debug, PartialEq, Eq)]
pub enum Plain {
    Null,
    Bool(bool),
    /// The text of a number, or an equivalent string of a few digits.
    Digits(String),
    Text(String),
    List(Vec<Plain>),
    Members(BTreeMap<String, Plain>),
}

fn plain(tree: &Tree) -> Plain {
    match tree {
        Tree::Null => Plain::Null,
        Tree::Bool(truth) => Plain::Bool(*truth),
        Tree::Number(text) => Plain::Digits(text.clone()),
        Tree::Text(text) if !text.is_empty() && text.len() <= 15 && text.chars().all(|c| c.is_ascii_digit()) => {
            Plain::Digits(text.clone())
        }
        Tree::Text(text) => Plain::Text(text.clone()),
        Tree::List(items) => Plain::List(items.iter().map(plain).collect()),
        Tree::Members(members) => {
            Plain::Members(members.iter().map(|(name, value)| (name.clone(), plain(value))).collect())
        }
    }
}

/// The question of a body; `None` if it is to be rejected.
pub fn question(body: &[u8], optional: &[&str]) -> Option<Plain> {
    const REPLACED: [&str; 5] = ["openId", "grantCode", "token", "timestamp", "nonce"];
    let tree = Tree::parse(std::str::from_utf8(body).ok()?)?;
    let members = tree.members()?;
    let params = tree.member("params")?.members()?;
    if tree.depth() > 32 || !tree.has_no_duplicate() {
        return None;
    }
    let absent = |name: &str, value: &Tree| {
        optional.contains(&name) && (*value == Tree::Null || *value == Tree::Text(String::new()))
    };
    let asked = members.iter().filter(|(name, _)| !REPLACED.contains(&name.as_str())).map(|(name, value)| {
        if name != "params" {
            return (name.clone(), plain(value));
        }
        let given = params.iter().filter(|(name, value)| !absent(name, value));
        (name.clone(), Plain::Members(given.map(|(name, value)| (name.clone(), plain(value))).collect()))
    });
    Some(Plain::Members(asked.collect()))
}

/// Seconds from 1970 to a date of the platform at this offset in hours, with days counted one by one; `None` if the date does
/// not exist.
pub fn seconds(year: i64, month: i64, day: i64, clock: [i64; 3], hours_ahead: i64) -> Option<i64> {
    let leap = |year: i64| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let length = |year: i64, month: i64| match month {
        2 => 28 + i64::from(leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if !(1..=12).contains(&month) || !(1..=length(year, month)).contains(&day) {
        return None;
    }
    let years = |from: i64, to: i64| (from..to).map(|year| 365 + i64::from(leap(year))).sum::<i64>();
    let days =
        years(1970, year) - years(year, 1970) + (1..month).map(|month| length(year, month)).sum::<i64>() + day - 1;
    let [hour, minute, second] = clock;
    Some(days * 86_400 + (hour - hours_ahead) * 3600 + minute * 60 + second)
}
