//! A borrowed reading of JSON (RFC 8259) that keeps every byte where it was.
//!
//! Numbers stay text, members stay in order and repeated names are all there, so that what is forwarded is what came,
//! and what is compared is what was written. It is stricter than the RFC in what it refuses: lone surrogates, and
//! nesting deeper than asked for.

use std::borrow::Cow;
use std::fmt;

/// One JSON value, borrowed from the text it was read from.
#[derive(Clone, Debug, PartialEq)]
pub enum Node<'a> {
    /// An object: its members as they came.
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
    /// Its value as it was written, without the white space around it.
    pub raw: &'a str,
    /// Its value.
    pub value: Node<'a>,
}

impl<'a> Node<'a> {
    /// Reads a whole JSON text, with at most `max_depth` arrays and objects inside each other.
    ///
    /// # Errors
    /// Where it is not JSON, nests deeper, or holds half of a surrogate pair.
    pub fn parse(text: &'a str, max_depth: usize) -> Result<Self, JsonError> {
        let mut scanner = Scanner { text, at: 0, members: 0 };
        scanner.skip_space();
        let node = scanner.value(max_depth)?;
        scanner.skip_space();
        if scanner.at == text.len() { Ok(node) } else { Err(scanner.error(Problem::Trailing)) }
    }

    /// The members, where this is an object.
    pub fn members(&self) -> Option<&[Member<'a>]> {
        match self {
            Self::Object(members) => Some(members),
            Self::Array(_) | Self::String(_) | Self::Number(_) | Self::Bool(_) | Self::Null => None,
        }
    }

    /// The first member of that name, where this is an object that has one.
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
    /// Every text that the pointers name: strings, numbers, and arrays of them, empty ones left out.
    pub fn texts(&self, pointers: &[String]) -> Vec<String> {
        let mut found = Vec::new();
        for node in pointers.iter().filter_map(|pointer| self.pointer(pointer)) {
            let items = if let Self::Array(items) = node { items.as_slice() } else { std::slice::from_ref(node) };
            found.extend(items.iter().filter_map(Node::text).filter(|text| !text.is_empty()).map(str::to_owned));
        }
        found
    }
}

/// Why a text was refused, and where.
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

/// Members that an object may find room for before they are read: no text may ask for much memory with few bytes.
const MOST_FORESEEN: usize = 16;

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    /// Members of the last object: those of a list have the same, and need to find room for them once.
    members: usize,
}

impl<'a> Scanner<'a> {
    fn error(&self, problem: Problem) -> JsonError {
        JsonError { problem, at: self.at }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.at).unwrap_or_default()
    }

    fn value(&mut self, depth_left: usize) -> Result<Node<'a>, JsonError> {
        match self.peek() {
            Some(b'{') => self.object(depth_left),
            Some(b'[') => self.array(depth_left),
            Some(b'"') => self.string().map(Node::String),
            Some(b'-' | b'0'..=b'9') => self.number().map(Node::Number),
            Some(b't') => self.literal("true", Node::Bool(true)),
            Some(b'f') => self.literal("false", Node::Bool(false)),
            Some(b'n') => self.literal("null", Node::Null),
            _ => Err(self.error(Problem::Value)),
        }
    }

    fn literal(&mut self, word: &str, node: Node<'a>) -> Result<Node<'a>, JsonError> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        if !rest.starts_with(word) {
            return Err(self.error(Problem::Value));
        }
        self.at += word.len();
        Ok(node)
    }

    fn object(&mut self, depth_left: usize) -> Result<Node<'a>, JsonError> {
        let depth_left = depth_left.checked_sub(1).ok_or_else(|| self.error(Problem::Depth))?;
        self.at += 1;
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Node::Object(Vec::new()));
        }
        let mut members = Vec::with_capacity(self.members.min(MOST_FORESEEN));
        loop {
            self.skip_space();
            if self.peek() != Some(b'"') {
                return Err(self.error(Problem::Name));
            }
            let name = self.string()?;
            self.skip_space();
            if self.peek() != Some(b':') {
                return Err(self.error(Problem::Separator));
            }
            self.at += 1;
            self.skip_space();
            let start = self.at;
            let value = self.value(depth_left)?;
            members.push(Member { name, raw: self.since(start), value });
            if self.ends_with(b'}')? {
                self.members = members.len();
                return Ok(Node::Object(members));
            }
        }
    }

    fn array(&mut self, depth_left: usize) -> Result<Node<'a>, JsonError> {
        let depth_left = depth_left.checked_sub(1).ok_or_else(|| self.error(Problem::Depth))?;
        self.at += 1;
        let mut items = Vec::new();
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Node::Array(items));
        }
        loop {
            self.skip_space();
            items.push(self.value(depth_left)?);
            if self.ends_with(b']')? {
                return Ok(Node::Array(items));
            }
        }
    }

    /// After an item: whether the array or object ends here (true) or another item follows.
    fn ends_with(&mut self, close: u8) -> Result<bool, JsonError> {
        self.skip_space();
        match self.peek() {
            Some(b',') => self.at += 1,
            Some(found) if found == close => {
                self.at += 1;
                return Ok(true);
            }
            _ => return Err(self.error(Problem::Separator)),
        }
        Ok(false)
    }

    fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        let quoted_from = self.at;
        self.at += 1;
        let start = self.at;
        let mut escaped = false;
        loop {
            let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
            self.at += plain(rest);
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.at += 2;
                }
                _ => return Err(self.error(Problem::Text)),
            }
        }
        let plain = self.since(start);
        self.at += 1;
        if !escaped {
            return Ok(Cow::Borrowed(plain));
        }
        serde_json::from_str(self.since(quoted_from))
            .map(Cow::Owned)
            .map_err(|_| JsonError { problem: Problem::Escape, at: quoted_from })
    }

    fn number(&mut self) -> Result<&'a str, JsonError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(self.since(start))
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { Err(self.error(Problem::Number)) } else { Ok(()) }
    }
}

/// How many bytes there are before the first that ends a string or is special in one: `"`, `\`, and control characters.
fn plain(bytes: &[u8]) -> usize {
    /// Eight bytes at once, in all of which the highest bit is set where the byte, or one before it, is special.
    fn specials(bytes: u64) -> u64 {
        const EACH: u64 = u64::MAX / 0xff;
        let below = |bytes: u64, bound: u64| bytes.wrapping_sub(EACH * bound) & !bytes;
        let is = |byte: u8| below(bytes ^ (EACH * u64::from(byte)), 1);
        (below(bytes, 0x20) | is(b'"') | is(b'\\')) & (EACH << 7)
    }
    let (eights, rest) = bytes.as_chunks::<8>();
    for (place, eight) in eights.iter().enumerate() {
        let specials = specials(u64::from_le_bytes(*eight));
        if specials != 0 {
            return place * 8 + specials.trailing_zeros() as usize / 8;
        }
    }
    let special = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f));
    eights.len() * 8 + special.unwrap_or(rest.len())
}

#[cfg(test)]
mod tests;
