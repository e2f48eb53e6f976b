//! The body of an answer.

use std::ops::Deref;

use super::Answer;

/// The bytes of a body, and a note that is kept in the same memory behind them.
#[derive(Clone, Debug)]
pub struct Body {
    bytes: Box<[u8]>,
    /// How many of them are of the body.
    length: usize,
}

impl Body {
    pub(super) fn new(bytes: Box<[u8]>) -> Self {
        Self { length: bytes.len(), bytes }
    }

    /// The same with this note.
    fn with_note(self, note: &[u8]) -> Self {
        let mut bytes = self.bytes.into_vec();
        bytes.truncate(self.length);
        bytes.reserve_exact(note.len());
        bytes.extend_from_slice(note);
        Self { bytes: bytes.into_boxed_slice(), length: self.length }
    }

    /// The note; empty if there is none.
    pub fn note(&self) -> &[u8] {
        self.bytes.get(self.length..).unwrap_or_default()
    }

    /// Bytes on the heap.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }
}

impl Answer {
    /// The same with a note behind its body.
    #[must_use]
    pub fn with_note(self, note: &[u8]) -> Self {
        Self { body: self.body.with_note(note), ..self }
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// By the body alone.
impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Body {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_no_part_of_the_body() {
        let body = Body::new(b"body".as_slice().into());
        assert_eq!((&*body, body.note()), (&b"body"[..], &b""[..]));
        let noted = body.clone().with_note(b"note");
        assert_eq!((&*noted, noted.note(), noted.size()), (&b"body"[..], &b"note"[..], 8));
        assert_eq!(noted, body);
        let other = noted.with_note(b"another");
        assert_eq!((&*other, other.note()), (&b"body"[..], &b"another"[..]));
    }
}
