//! A pull parser of JSON.

use std::borrow::Cow;

use super::{JsonError, Member, Node, Problem};

/// Members of an object that memory is reserved for before they are parsed: a short text must not allocate much.
const MAX_RESERVED: usize = 16;

/// Parses a text from beginning to end, and keeps only what its caller asks for.
#[derive(Debug)]
pub struct Scanner<'a> {
    text: &'a str,
    at: usize,
    /// Where the last value began.
    began: usize,
    /// How many more levels of arrays and objects are allowed.
    depth_left: usize,
    /// Members of the last object: the objects of a list have the same number, which is reserved at once.
    members: usize,
}

/// A scalar that was parsed, or the start of an array or object.
#[derive(Clone, Debug, PartialEq)]
pub enum Next<'a> {
    /// An object begins: [`Scanner::object`] reads it.
    Object,
    /// An array begins: [`Scanner::array`] reads it.
    Array,
    /// A string, unescaped.
    String(Cow<'a, str>),
    /// A number, as it was written.
    Number(&'a str),
    /// `true`, `false`, or `null`.
    Word(Option<bool>),
}

impl<'a> Next<'a> {
    /// The text of a string or a number: how ids are written.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            Self::Number(text) => Some(text),
            Self::Object | Self::Array | Self::Word(_) => None,
        }
    }

    /// The same, with the lifetime of the text that it was parsed from.
    pub fn into_text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::String(text) => Some(text),
            Self::Number(text) => Some(Cow::Borrowed(text)),
            Self::Object | Self::Array | Self::Word(_) => None,
        }
    }
}

impl<'a> Scanner<'a> {
    /// Parses a whole text of at most `max_depth` nested arrays and objects; `value` parses its one value.
    ///
    /// # Errors
    /// As [`Node::parse`].
    pub fn read<T>(
        text: &'a str,
        max_depth: usize,
        value: impl FnOnce(&mut Self, Next<'a>) -> Result<T, JsonError>,
    ) -> Result<T, JsonError> {
        let mut scanner = Self { text, at: 0, began: 0, depth_left: max_depth, members: 0 };
        scanner.skip_space();
        let next = scanner.next()?;
        let value = value(&mut scanner, next)?;
        scanner.skip_space();
        if scanner.at == text.len() { Ok(value) } else { Err(scanner.error(Problem::Trailing)) }
    }

    /// Parses the object that starts here; `member` is called with each name, unescaped, and value.
    ///
    /// # Errors
    /// Where it is malformed or nests too deep.
    pub fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, Cow<'a, str>, Next<'a>) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        self.inside(b'}', |scanner| {
            if scanner.peek() != Some(b'"') {
                return Err(scanner.error(Problem::Name));
            }
            let name = scanner.string()?;
            scanner.skip_space();
            if scanner.peek() != Some(b':') {
                return Err(scanner.error(Problem::Separator));
            }
            scanner.at += 1;
            scanner.skip_space();
            let next = scanner.next()?;
            member(scanner, name, next)
        })
    }

    /// Parses the array that starts here; `item` is called with each of its values.
    ///
    /// # Errors
    /// Where it is malformed or nests too deep.
    pub fn array(
        &mut self,
        mut item: impl FnMut(&mut Self, Next<'a>) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        self.inside(b']', |scanner| {
            let next = scanner.next()?;
            item(scanner, next)
        })
    }

    /// Skips the rest of a value, and checks that it is valid.
    ///
    /// # Errors
    /// Where it is malformed or nests too deep.
    pub fn pass(&mut self, next: &Next<'a>) -> Result<(), JsonError> {
        match next {
            Next::Object => self.object(|scanner, _, next| scanner.pass(&next)),
            Next::Array => self.array(|scanner, next| scanner.pass(&next)),
            Next::String(_) | Next::Number(_) | Next::Word(_) => Ok(()),
        }
    }

    /// Skips the rest of a value, and returns it as it was written.
    ///
    /// # Errors
    /// Where it is malformed or nests too deep.
    pub fn raw(&mut self, next: &Next<'a>) -> Result<&'a str, JsonError> {
        let start = self.began;
        self.pass(next)?;
        Ok(self.since(start))
    }

    /// Parses the rest of a value into a tree.
    pub(super) fn node(&mut self, next: Next<'a>) -> Result<Node<'a>, JsonError> {
        Ok(match next {
            Next::Object => {
                let mut members = Vec::with_capacity(self.members.min(MAX_RESERVED));
                self.object(|scanner, name, next| {
                    let start = scanner.began;
                    let value = scanner.node(next)?;
                    members.push(Member { name, raw: scanner.since(start), value });
                    Ok(())
                })?;
                self.members = members.len();
                Node::Object(members)
            }
            Next::Array => {
                let mut items = Vec::new();
                self.array(|scanner, next| {
                    items.push(scanner.node(next)?);
                    Ok(())
                })?;
                Node::Array(items)
            }
            Next::String(text) => Node::String(text),
            Next::Number(text) => Node::Number(text),
            Next::Word(word) => word.map_or(Node::Null, Node::Bool),
        })
    }

    fn next(&mut self) -> Result<Next<'a>, JsonError> {
        self.began = self.at;
        match self.peek() {
            Some(b'"') => self.string().map(Next::String),
            Some(b'{') => Ok(Next::Object),
            Some(b'[') => Ok(Next::Array),
            Some(b'-' | b'0'..=b'9') => self.number().map(Next::Number),
            Some(b't') => self.word("true", Some(true)),
            Some(b'f') => self.word("false", Some(false)),
            Some(b'n') => self.word("null", None),
            _ => Err(self.error(Problem::Value)),
        }
    }

    fn error(&self, problem: Problem) -> JsonError {
        JsonError { problem, at: self.at }
    }

    fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
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

    fn word(&mut self, word: &str, means: Option<bool>) -> Result<Next<'a>, JsonError> {
        if !self.rest().starts_with(word.as_bytes()) {
            return Err(self.error(Problem::Value));
        }
        self.at += word.len();
        Ok(Next::Word(means))
    }

    /// Parses the comma-separated parts from a bracket, where the scanner is, to its counterpart.
    fn inside(&mut self, close: u8, mut part: impl FnMut(&mut Self) -> Result<(), JsonError>) -> Result<(), JsonError> {
        self.depth_left = self.depth_left.checked_sub(1).ok_or_else(|| self.error(Problem::Depth))?;
        self.at += 1;
        self.skip_space();
        if self.peek() == Some(close) {
            self.at += 1;
        } else {
            loop {
                part(self)?;
                self.skip_space();
                match self.peek() {
                    Some(b',') => self.at += 1,
                    Some(found) if found == close => {
                        self.at += 1;
                        break;
                    }
                    _ => return Err(self.error(Problem::Separator)),
                }
                self.skip_space();
            }
        }
        self.depth_left += 1;
        Ok(())
    }

    /// Parses a string; the scanner is at its quote.
    fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        let quoted_from = self.at;
        self.at += 1;
        let start = self.at;
        self.at += plain(self.rest());
        if self.peek() != Some(b'"') {
            return self.escaped(quoted_from);
        }
        let text = self.since(start);
        self.at += 1;
        Ok(Cow::Borrowed(text))
    }

    /// Parses the rest of a string that begins at `quoted_from` and has an escape.
    fn escaped(&mut self, quoted_from: usize) -> Result<Cow<'a, str>, JsonError> {
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                _ => return Err(self.error(Problem::Text)),
            }
            self.at += plain(self.rest());
        }
        self.at += 1;
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

/// The number of bytes before the first that ends a string or is special in one: `"`, `\`, or a control character.
pub(super) fn plain(bytes: &[u8]) -> usize {
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
