//! Which trace a request belongs to (W3C Trace Context).

use std::fmt;

/// The id of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(pub [u8; 8]);

impl SpanId {
    /// A new one.
    pub fn random() -> Self {
        Self(fastrand::u64(1..).to_be_bytes())
    }
}

/// The trace of a request, as its caller sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The id of the trace.
    pub trace: [u8; 16],
    /// The caller's span.
    pub span: SpanId,
    /// Whether the caller samples it.
    pub is_sampled: bool,
}

/// The bytes of hexadecimal digits in lower case.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

impl TraceContext {
    /// Reads `traceparent`: version, trace, span and flags; later versions may have more.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let version: [u8; 1] = hex(parts.next()?)?;
        let (trace, span) = (hex(parts.next()?)?, hex(parts.next()?)?);
        let [flags]: [u8; 1] = hex(parts.next()?)?;
        let is_complete = parts.next().is_none() || version != [0];
        let is_valid = version != [0xff] && trace != [0; 16] && span != [0; 8] && is_complete;
        is_valid.then_some(Self { trace, span: SpanId(span), is_sampled: flags & 1 == 1 })
    }

    /// That of a request that belongs to none.
    pub(super) fn random() -> Self {
        Self { trace: fastrand::u128(1..).to_be_bytes(), span: SpanId([0; 8]), is_sampled: true }
    }
}

/// The id of the trace.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.trace.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_as_the_recommendation_says() {
        let read = TraceContext::parse(VALID).unwrap();
        assert_eq!((read.to_string(), read.is_sampled), ("0af7651916cd43dd8448eb211c80319c".to_owned(), true));
        assert!(!TraceContext::parse(&VALID.replace("-01", "-00")).unwrap().is_sampled);
        assert!(TraceContext::parse(&format!("cc{}-more", &VALID[2..])).is_some(), "a later version may have more");
        for invalid in [
            "",
            "00",
            &VALID[..54],
            &VALID.to_uppercase(),
            &VALID.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &VALID.replace("b7ad6b7169203331", &"0".repeat(16)),
            &format!("ff{}", &VALID[2..]),
            &format!("{VALID}-more"),
            &VALID.replace("b7", "+7"),
        ] {
            assert_eq!(TraceContext::parse(invalid), None, "{invalid}");
        }
    }
}
