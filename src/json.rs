//! A JSON parser (RFC 8259) whose values borrow from the text.
//!
//! Numbers stay text, and members keep their order and duplicates, so that a body can be forwarded and compared exactly as it
//! was written. It is stricter than the RFC: lone surrogates are rejected, and so is nesting beyond a given depth.

mod scanner;

use std::borrow::Cow;
use std::fmt;

pub use self::scanner::{Next, Scanner};

/// A JSON value that borrows from the text that it was parsed from.
#[derive(Clone, Debug, PartialEq)]
pub enum Node<'a> {
    /// An object: its members in their order.
    Object(Vec<Member<'a>>),
    /// An array.
    Array(Vec<Node<'a>>),
    /// A string, unescaped.
    String(Cow<'a, str>),
    /// A number, as it was written.
    Number(&'a str),
    /// `true` or `false`.
    Bool(bool),
    /// `null`.
    Null,
}

/// One member of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Member<'a> {
    /// Its name, unescaped.
    pub name: Cow<'a, str>,
    /// Its value as it was written, without surrounding white space.
    pub raw: &'a str,
    /// Its value.
    pub value: Node<'a>,
}

impl<'a> Node<'a> {
    /// Parses a whole JSON text of at most `max_depth` nested arrays and objects.
    ///
    /// # Errors
    /// If it is not JSON, nests deeper, or has a lone surrogate.
    pub fn parse(text: &'a str, max_depth: usize) -> Result<Self, JsonError> {
        Scanner::read(text, max_depth, Scanner::node)
    }

    /// The members, if this is an object.
    pub fn members(&self) -> Option<&[Member<'a>]> {
        match self {
            Self::Object(members) => Some(members),
            Self::Array(_) | Self::String(_) | Self::Number(_) | Self::Bool(_) | Self::Null => None,
        }
    }

    /// The first member of that name, if this is an object that has one.
    pub fn member(&self, name: &str) -> Option<&Node<'a>> {
        self.members()?.iter().find(|member| member.name == name).map(|member| &member.value)
    }

    /// The value that a JSON pointer (RFC 6901) names.
    pub fn pointer(&self, pointer: &str) -> Option<&Node<'a>> {
        let Some(steps) = pointer.strip_prefix('/') else { return pointer.is_empty().then_some(self) };
        steps.split('/').try_fold(self, |node, step| match node {
            Self::Object(_) if step.contains('~') => node.member(&step.replace("~1", "/").replace("~0", "~")),
            Self::Object(_) => node.member(step),
            Self::Array(items) => items.get(step.parse::<usize>().ok()?),
            Self::String(_) | Self::Number(_) | Self::Bool(_) | Self::Null => None,
        })
    }

    /// The text of a string or a number: how ids are written.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            Self::Number(text) => Some(text),
            Self::Object(_) | Self::Array(_) | Self::Bool(_) | Self::Null => None,
        }
    }
}

impl Node<'_> {
    /// Every string and number that the pointers name, alone or in an array; empty ones are left out.
    pub fn texts(&self, pointers: &[String]) -> Vec<String> {
        let mut found = Vec::new();
        for node in pointers.iter().filter_map(|pointer| self.pointer(pointer)) {
            let items = if let Self::Array(items) = node { items.as_slice() } else { std::slice::from_ref(node) };
            found.extend(items.iter().filter_map(Node::text).filter(|text| !text.is_empty()).map(str::to_owned));
        }
        found
    }
}

/// Why a text was rejected, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JsonError {
    problem: Problem,
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    Value,
    Trailing,
    Text,
    Escape,
    Number,
    Name,
    Separator,
    Depth,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.problem {
            Problem::Value => "a value is expected",
            Problem::Trailing => "nothing may follow the value",
            Problem::Text => "a string must end in \" and hold no bare control character",
            Problem::Escape => "an escape is broken or half of a surrogate pair",
            Problem::Number => "a number is malformed",
            Problem::Name => "a member's name in double quotes is expected",
            Problem::Separator => "one of , : ] } is expected",
            Problem::Depth => "it nests too deep",
        };
        write!(f, "{what}, at byte {}", self.at)
    }
}

impl std::error::Error for JsonError {}

#[cfg(test)]
mod tests;
