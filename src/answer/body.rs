//! The body of an answer.

use std::ops::Deref;

use super::Answer;

/// The bytes of a body, and a suffix in the same allocation that is no part of it: the cache keeps its key there.
#[derive(Clone, Debug)]
pub struct Body {
    bytes: Box<[u8]>,
    /// The length of the body.
    length: usize,
}

impl Body {
    pub(super) fn new(bytes: Box<[u8]>) -> Self {
        Self { length: bytes.len(), bytes }
    }

    /// The same with this suffix.
    fn with_suffix(self, suffix: &[u8]) -> Self {
        let mut bytes = self.bytes.into_vec();
        bytes.truncate(self.length);
        bytes.reserve_exact(suffix.len());
        bytes.extend_from_slice(suffix);
        Self { bytes: bytes.into_boxed_slice(), length: self.length }
    }

    /// The suffix; empty if there is none.
    pub fn suffix(&self) -> &[u8] {
        self.bytes.get(self.length..).unwrap_or_default()
    }

    /// Bytes on the heap.
    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }
}

impl Answer {
    /// The same with a suffix of its body.
    #[must_use]
    pub fn with_suffix(self, suffix: &[u8]) -> Self {
        Self { body: self.body.with_suffix(suffix), ..self }
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
    fn a_suffix_is_no_part_of_the_body() {
        let body = Body::new(b"body".as_slice().into());
        assert_eq!((&*body, body.suffix()), (&b"body"[..], &b""[..]));
        let longer = body.clone().with_suffix(b"suffix");
        assert_eq!((&*longer, longer.suffix(), longer.size()), (&b"body"[..], &b"suffix"[..], 10));
        assert_eq!(longer, body);
        let other = longer.with_suffix(b"another");
        assert_eq!((&*other, other.suffix()), (&b"body"[..], &b"another"[..]));
    }
}
