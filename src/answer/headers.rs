//! The headers of an answer that are passed on. Those of nearly all answers need no memory of their own.

use http::HeaderValue;

use super::Answer;

/// The content types of nearly all answers.
static KNOWN_CONTENT_TYPES: [HeaderValue; 3] = [
    HeaderValue::from_static("application/json"),
    HeaderValue::from_static("application/json;charset=UTF-8"),
    HeaderValue::from_static("application/json; charset=utf-8"),
];

/// The index of a known content type.
pub(super) fn known_content_type(content_type: &HeaderValue) -> Option<u8> {
    KNOWN_CONTENT_TYPES.iter().position(|known| known == content_type).and_then(|index| u8::try_from(index).ok())
}

/// Headers that few answers have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ExtraHeaders {
    /// `Content-Type`, unless it is a known one.
    content_type: Option<HeaderValue>,
    content_encoding: Option<HeaderValue>,
    retry_after: Option<HeaderValue>,
}

/// The same value in memory of its own: a slice of a response's head would keep the whole read buffer of its connection.
pub fn detached(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

impl ExtraHeaders {
    /// `Content-Type` unless it is a known one, `Content-Encoding` and `Retry-After`, as received, if there is any of them.
    pub(super) fn of(headers: [Option<&HeaderValue>; 3]) -> Option<Box<Self>> {
        let [content_type, content_encoding, retry_after] = headers.map(|value| value.map(detached));
        let headers = Self { content_type, content_encoding, retry_after };
        (headers != Self::default()).then(|| Box::new(headers))
    }

    /// Bytes on the heap.
    pub(super) fn size(&self) -> usize {
        let values = [&self.content_type, &self.content_encoding, &self.retry_after];
        size_of::<Self>() + values.into_iter().flatten().map(HeaderValue::len).sum::<usize>()
    }
}

impl Answer {
    /// `Content-Type`.
    pub fn content_type(&self) -> Option<&HeaderValue> {
        let known = self.known_content_type.and_then(|index| KNOWN_CONTENT_TYPES.get(usize::from(index)));
        known.or_else(|| self.extra_headers.as_ref()?.content_type.as_ref())
    }

    /// `Content-Encoding`.
    pub fn content_encoding(&self) -> Option<&HeaderValue> {
        self.extra_headers.as_ref()?.content_encoding.as_ref()
    }

    /// `Retry-After`.
    pub fn retry_after(&self) -> Option<&HeaderValue> {
        self.extra_headers.as_ref()?.retry_after.as_ref()
    }

    /// Removes `Retry-After`.
    pub fn remove_retry_after(&mut self) {
        self.extra_headers.iter_mut().for_each(|headers| headers.retry_after = None);
    }
}
