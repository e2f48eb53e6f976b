//! Reads a JSON text from its beginning to its end.

use std::borrow::Cow;

use super::{JsonError, Member, Node, Problem};

/// Members that an object may find room for before they are read: no text may ask for much memory with few bytes.
const MOST_FORESEEN: usize = 16;

/// A reading of a text from its beginning to its end, that keeps only what it is asked for.
#[derive(Debug)]
pub struct Scanner<'a> {
    text: &'a str,
    at: usize,
    /// Arrays and objects that may still be inside each other.
    depth_left: usize,
    /// Members of the last object: those of a list have the same, and need to find room for them once.
    members: usize,
}

/// What kind of value comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An object.
    Object,
    /// An array.
    Array,
    /// A string.
    String,
    /// A number.
    Number,
    /// `true`, `false` or `null`.
    Word,
}

impl<'a> Scanner<'a> {
    /// Reads a whole text, with at most `max_depth` arrays and objects inside each other; `value` reads its one value.
    ///
    /// # Errors
    /// As [`Node::parse`].
    pub fn read<T>(
        text: &'a str,
        max_depth: usize,
        value: impl FnOnce(&mut Self) -> Result<T, JsonError>,
    ) -> Result<T, JsonError> {
        let mut scanner = Self { text, at: 0, depth_left: max_depth, members: 0 };
        scanner.skip_space();
        let value = value(&mut scanner)?;
        scanner.skip_space();
        if scanner.at == text.len() { Ok(value) } else { Err(scanner.error(Problem::Trailing)) }
    }

    /// What comes next.
    ///
    /// # Errors
    /// Where that is no value.
    pub fn kind(&self) -> Result<Kind, JsonError> {
        Ok(match self.peek() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => Kind::String,
            Some(b'-' | b'0'..=b'9') => Kind::Number,
            Some(b't' | b'f' | b'n') => Kind::Word,
            _ => return Err(self.error(Problem::Value)),
        })
    }

    /// Reads an object; `member` is told each name, unescaped, and reads its value.
    ///
    /// # Errors
    /// Where it is malformed or nests too deep.
    pub fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        self.inside([b'{', b'}'], |scanner| {
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
            member(scanner, name)
        })
    }

    /// Reads an array; `item` reads each of its values.
    ///
    /// # Errors
    /// Where it is malformed or nests too deep.
    pub fn array(&mut self, item: impl FnMut(&mut Self) -> Result<(), JsonError>) -> Result<(), JsonError> {
        self.inside([b'[', b']'], item)
    }

    /// Reads a string or a number, and answers its text; of any other value, `None`.
    ///
    /// # Errors
    /// Where it is malformed.
    pub fn text(&mut self) -> Result<Option<Cow<'a, str>>, JsonError> {
        match self.kind()? {
            Kind::String => self.string().map(Some),
            Kind::Number => self.number().map(|number| Some(Cow::Borrowed(number))),
            Kind::Object | Kind::Array | Kind::Word => self.skip().map(|()| None),
        }
    }

    /// Reads `true`, `false` (`Some`) or `null` (`None`).
    ///
    /// # Errors
    /// Where it is none of them.
    pub fn word(&mut self) -> Result<Option<bool>, JsonError> {
        match self.peek() {
            Some(b't') => self.literal("true").map(|()| Some(true)),
            Some(b'f') => self.literal("false").map(|()| Some(false)),
            _ => self.literal("null").map(|()| None),
        }
    }

    /// Reads a value of which nothing is wanted but that it is one.
    ///
    /// # Errors
    /// Where it is malformed or nests too deep.
    pub fn skip(&mut self) -> Result<(), JsonError> {
        match self.kind()? {
            Kind::Object => self.object(|scanner, _| scanner.skip()),
            Kind::Array => self.array(Self::skip),
            Kind::String => self.string().map(drop),
            Kind::Number => self.number().map(drop),
            Kind::Word => self.word().map(drop),
        }
    }

    /// Reads a value whole.
    pub(super) fn node(&mut self) -> Result<Node<'a>, JsonError> {
        Ok(match self.kind()? {
            Kind::Object => {
                let mut members = Vec::with_capacity(self.members.min(MOST_FORESEEN));
                self.object(|scanner, name| {
                    let start = scanner.at;
                    let value = scanner.node()?;
                    members.push(Member { name, raw: scanner.since(start), value });
                    Ok(())
                })?;
                self.members = members.len();
                Node::Object(members)
            }
            Kind::Array => {
                let mut items = Vec::new();
                self.array(|scanner| {
                    items.push(scanner.node()?);
                    Ok(())
                })?;
                Node::Array(items)
            }
            Kind::String => Node::String(self.string()?),
            Kind::Number => Node::Number(self.number()?),
            Kind::Word => self.word()?.map_or(Node::Null, Node::Bool),
        })
    }

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

    fn literal(&mut self, word: &str) -> Result<(), JsonError> {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        if !rest.starts_with(word.as_bytes()) {
            return Err(self.error(Problem::Value));
        }
        self.at += word.len();
        Ok(())
    }

    /// Reads what is between two brackets, one part after the other.
    fn inside(
        &mut self,
        [open, close]: [u8; 2],
        mut part: impl FnMut(&mut Self) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        if self.peek() != Some(open) {
            return Err(self.error(Problem::Value));
        }
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
