//! What replicas store of a fetch for each other, as bytes.
//!
//! Numbers are big-endian, spans and moments are in milliseconds, texts and headers have their length before them. The first byte
//! says what it is, the rest is in the order of the fields. Whoever changes this changes the [`FORMAT`], too: records of another one
//! are not opened.

use std::time::Duration;

use http::{HeaderValue, StatusCode};

use crate::answer::Answer;
use crate::cache::{LimitedBy, RelativeFreshness};
use crate::clock::{Wall, millis};

/// The version of the format.
pub(super) const FORMAT: u8 = 1;

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An answer that may be served for a while.
    Stored(StoredAnswer),
    /// An answer for those alone who already waited for it.
    Passing {
        /// The answer.
        answer: Answer,
        /// Whether it only says that the platform fails.
        is_failure: bool,
    },
    /// The platform did not answer: for those who waited.
    NoAnswer {
        /// Whether it was waited for until the timeout.
        is_timeout: bool,
    },
    /// What it brought cannot be shared: for those who waited.
    Unshared,
}

/// An answer that may be served for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAnswer {
    /// What was asked: path and canonical parameters.
    pub question: String,
    /// A moment by Redis' clock, in milliseconds since the Unix epoch.
    pub at: i64,
    /// From then on.
    pub freshness: RelativeFreshness,
    /// The answer.
    pub answer: Answer,
}

impl Record {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Stored(stored) => {
                out.push(b'S');
                put_stored(&mut out, stored);
            }
            Self::Passing { answer, is_failure } => {
                out.extend([b'P', u8::from(*is_failure)]);
                put_answer(&mut out, answer);
            }
            Self::NoAnswer { is_timeout } => out.extend([b'N', u8::from(*is_timeout)]),
            Self::Unshared => out.push(b'U'),
        }
        out
    }

    /// From bytes; `None` if they are no record.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Input(bytes);
        let record = match input.byte()? {
            b'S' => Self::Stored(input.stored()?),
            b'P' => Self::Passing { is_failure: input.flag()?, answer: input.answer()? },
            b'N' => Self::NoAnswer { is_timeout: input.flag()? },
            b'U' => Self::Unshared,
            _ => return None,
        };
        input.0.is_empty().then_some(record)
    }
}

const LIMITS: [LimitedBy; 4] = [LimitedBy::Ttl, LimitedBy::EndAt, LimitedBy::Negative, LimitedBy::Unsettled];

fn put_stored(out: &mut Vec<u8>, StoredAnswer { question, at, freshness, answer }: &StoredAnswer) {
    put_bytes(out, question.as_bytes());
    out.extend(at.to_be_bytes());
    let RelativeFreshness { age, fresh, revalidate, if_error, end, negative, limited_by } = freshness;
    for span in [age, fresh, revalidate, if_error] {
        out.extend(millis(*span).to_be_bytes());
    }
    out.push(u8::from(end.is_some()));
    if let Some((wall, span)) = end {
        out.extend(wall.unix_millis().to_be_bytes());
        out.extend(millis(*span).to_be_bytes());
    }
    let limit = LIMITS.iter().position(|limit| limit == limited_by).unwrap_or_default();
    out.extend([u8::from(*negative), u8::try_from(limit).unwrap_or_default()]);
    put_answer(out, answer);
}

fn put_answer(out: &mut Vec<u8>, answer: &Answer) {
    out.reserve(answer.body.len() + 64);
    out.extend(answer.status.to_be_bytes());
    for header in [answer.content_type(), answer.content_encoding(), answer.retry_after()] {
        out.push(u8::from(header.is_some()));
        if let Some(value) = header {
            put_bytes(out, value.as_bytes());
        }
    }
    put_bytes(out, &answer.body);
}

/// Longer ones are cut off, and the record is not decoded: nothing that is put here is longer.
fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(bytes);
}

/// What is left to decode.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn byte(&mut self) -> Option<u8> {
        let [byte] = self.array()?;
        Some(byte)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn span(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(u64::from_be_bytes(self.array()?)))
    }

    fn moment(&mut self) -> Option<i64> {
        Some(i64::from_be_bytes(self.array()?))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_be_bytes(self.array()?);
        self.take(usize::try_from(length).ok()?)
    }

    fn header(&mut self) -> Option<Option<HeaderValue>> {
        if !self.flag()? {
            return Some(None);
        }
        HeaderValue::from_bytes(self.bytes()?).ok().map(Some)
    }

    fn stored(&mut self) -> Option<StoredAnswer> {
        let question = str::from_utf8(self.bytes()?).ok()?.to_owned();
        let at = self.moment()?;
        let (age, fresh, revalidate, if_error) = (self.span()?, self.span()?, self.span()?, self.span()?);
        let end = match self.flag()? {
            true => Some((Wall::from_unix_millis(self.moment()?), self.span()?)),
            false => None,
        };
        let (negative, limited_by) = (self.flag()?, *LIMITS.get(usize::from(self.byte()?))?);
        let freshness = RelativeFreshness { age, fresh, revalidate, if_error, end, negative, limited_by };
        Some(StoredAnswer { question, at, freshness, answer: self.answer()? })
    }

    fn answer(&mut self) -> Option<Answer> {
        let status = StatusCode::from_u16(u16::from_be_bytes(self.array()?)).ok()?.as_u16();
        let headers = [self.header()?, self.header()?, self.header()?];
        Some(Answer::received(status, headers.each_ref().map(Option::as_ref), self.bytes()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spans() -> impl Strategy<Value = Duration> {
        (0u64..1 << 50).prop_map(Duration::from_millis)
    }

    fn answers() -> impl Strategy<Value = Answer> {
        let header = || proptest::option::of("[ -~]{0,20}");
        let body = proptest::collection::vec(any::<u8>(), 0..200);
        (100u16..1000, header(), header(), header(), body).prop_map(|(status, kind, encoding, retry, body)| {
            let headers = [kind, encoding, retry].map(|text| Some(HeaderValue::from_str(&text?).unwrap()));
            Answer::received(status, headers.each_ref().map(Option::as_ref), body)
        })
    }

    fn records() -> impl Strategy<Value = Record> {
        let end = proptest::option::of((any::<i64>().prop_map(Wall::from_unix_millis), spans()));
        let freshness = (spans(), spans(), spans(), spans(), end, any::<bool>(), 0..4usize).prop_map(
            |(age, fresh, revalidate, if_error, end, negative, limit)| RelativeFreshness {
                age,
                fresh,
                revalidate,
                if_error,
                end,
                negative,
                limited_by: LIMITS[limit],
            },
        );
        prop_oneof![
            (".{0,40}", any::<i64>(), freshness, answers()).prop_map(|(question, at, freshness, answer)| {
                Record::Stored(StoredAnswer { question, at, freshness, answer })
            }),
            (answers(), any::<bool>()).prop_map(|(answer, is_failure)| Record::Passing { answer, is_failure }),
            any::<bool>().prop_map(|is_timeout| Record::NoAnswer { is_timeout }),
            Just(Record::Unshared),
        ]
    }

    proptest! {
        #[test]
        fn a_record_is_decoded_as_it_was_encoded(record in records(), cut in any::<proptest::sample::Index>()) {
            let bytes = record.encode();
            prop_assert_eq!(Record::decode(&bytes), Some(record));
            prop_assert_eq!(Record::decode(&bytes[..cut.index(bytes.len())]), None, "a part of one is none");
            prop_assert_eq!(Record::decode(&[&bytes[..], &[0]].concat()), None, "nor is one with more behind it");
        }

        #[test]
        fn no_bytes_break_the_decoder(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..4usize) {
            bytes.insert(0, b"SPNU"[kind]);
            let _ = Record::decode(&bytes);
        }
    }
}
