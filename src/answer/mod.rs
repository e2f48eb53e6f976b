//! What upstream's answer says, read without altering it.
//!
//! The platform answers HTTP 200 to nearly everything; the truth is in `status`, `code` and `data`, each of which comes
//! in several spellings.

mod moment;

use std::{ptr, slice};

use bytes::Bytes;
use http::HeaderValue;
use time::UtcOffset;

pub use self::moment::End;
use crate::clock::Wall;
use crate::json::{Member, Node};

/// Deepest nesting that is read; what nests deeper counts as garbage.
const MAX_DEPTH: usize = 128;

/// An answer as it came: what a caller gets of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`, as it came.
    pub content_type: Option<HeaderValue>,
    /// What few answers have; apart, so that the others have no room for it.
    pub rare: Option<Box<Rare>>,
    /// The body, in an allocation of its own size.
    pub body: Bytes,
}

/// Fields of an answer's head that are handed on, and that few answers have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rare {
    /// `Content-Encoding`, as it came.
    pub content_encoding: Option<HeaderValue>,
    /// `Retry-After`, as it came.
    pub retry_after: Option<HeaderValue>,
}

impl Answer {
    /// Bytes of its body and headers.
    pub fn size(&self) -> usize {
        let rare = self.rare.iter().map(|rare| {
            let headers = [&rare.content_encoding, &rare.retry_after];
            size_of::<Rare>() + headers.into_iter().flatten().map(HeaderValue::len).sum::<usize>()
        });
        self.body.len() + self.content_type.as_ref().map_or(0, HeaderValue::len) + rare.sum::<usize>()
    }
}

/// How to read the answers of a route.
#[derive(Clone, Debug)]
pub struct Reader {
    /// Names of the members that tell when a coupon ends; none: the route's answers do not end by themselves.
    pub expires: Vec<String>,
    /// Body codes that mean: too many calls, or busy.
    pub retry_codes: Vec<String>,
    /// The offset that dates are written in.
    pub utc_offset: UtcOffset,
}

/// What an answer amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `status` true and `code` 0.
    Success(Contents),
    /// `status` true and another `code`: nothing found, and the like.
    Exception,
    /// `status` false, or one of the two missing.
    Error,
    /// A code, or HTTP 429, that asks to come again later.
    Throttled,
    /// HTTP 200 with what is not JSON.
    Garbage,
    /// HTTP 5xx.
    Http5xx,
    /// Any other status than 200.
    HttpOther,
}

/// What a successful answer holds, as far as its life depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Every end that could be read, at any depth.
    pub ends: Vec<Wall>,
    /// For each coupon that the platform may still change by itself (unused, frozen, being given away, or of a status
    /// that is missing or unknown): its first end, `None` where none can be read.
    pub open: Vec<Option<End>>,
    /// Whether it holds no coupon at all.
    pub empty: bool,
}

impl Reader {
    /// Reads an answer.
    pub fn read(&self, status: u16, body: &[u8]) -> Verdict {
        match status {
            200 => {}
            429 => return Verdict::Throttled,
            500..=599 => return Verdict::Http5xx,
            _ => return Verdict::HttpOther,
        }
        let text = std::str::from_utf8(body).ok();
        let Some(root) = text.and_then(|text| Node::parse(text, MAX_DEPTH).ok()) else { return Verdict::Garbage };
        if root.members().is_none() {
            return Verdict::Garbage;
        }
        let code = root.member("code").and_then(Node::text).map(str::trim);
        if code.is_some_and(|code| self.retry_codes.iter().any(|retry| retry == code)) {
            return Verdict::Throttled;
        }
        match (root.member("status").is_some_and(is_true), code) {
            (false, _) | (true, None) => Verdict::Error,
            (true, Some("0")) => Verdict::Success(self.contents(root.member("data"))),
            (true, Some(_)) => Verdict::Exception,
        }
    }

    fn contents(&self, data: Option<&Node<'_>>) -> Contents {
        let (coupons, beside): (&[Node<'_>], &[Member<'_>]) = match data {
            None | Some(Node::Null) => (&[], &[]),
            Some(Node::String(text)) if text.trim().is_empty() => (&[], &[]),
            Some(Node::Array(items)) => (items, &[]),
            Some(object @ Node::Object(members)) => match object.member("list") {
                Some(Node::Array(items)) => (items, members),
                Some(Node::Null) => (&[], members),
                _ if members.is_empty() => (&[], &[]),
                _ => (slice::from_ref(object), &[]),
            },
            Some(other) => (slice::from_ref(other), &[]),
        };
        let mut contents = Contents { empty: coupons.is_empty(), ..Contents::default() };
        if self.expires.is_empty() {
            return contents;
        }
        let mut ends = Vec::new();
        for coupon in coupons {
            let others = ends.len();
            self.collect_ends(coupon, &mut ends);
            if is_open(coupon) {
                contents.open.push(ends.iter().skip(others).min().copied());
            }
        }
        let is_list = |value: &Node<'_>| matches!(value, Node::Array(items) if ptr::eq(items.as_slice(), coupons));
        beside.iter().filter(|member| !is_list(&member.value)).for_each(|member| self.collect_end(member, &mut ends));
        contents.ends =
            ends.into_iter().filter_map(|end| if let End::At(at) = end { Some(at) } else { None }).collect();
        contents
    }

    fn collect_ends(&self, node: &Node<'_>, found: &mut Vec<End>) {
        match node {
            Node::Object(members) => members.iter().for_each(|member| self.collect_end(member, found)),
            Node::Array(items) => items.iter().for_each(|item| self.collect_ends(item, found)),
            Node::String(_) | Node::Number(_) | Node::Bool(_) | Node::Null => {}
        }
    }

    fn collect_end(&self, member: &Member<'_>, found: &mut Vec<End>) {
        match &member.value {
            Node::String(text) if self.expires.iter().any(|name| *name == member.name) => {
                found.extend(End::parse(text, self.utc_offset));
            }
            other => self.collect_ends(other, found),
        }
    }
}

fn is_true(node: &Node<'_>) -> bool {
    match node {
        Node::Bool(truth) => *truth,
        Node::String(text) => text.trim().eq_ignore_ascii_case("true"),
        _ => false,
    }
}

/// Whether the platform may still change a coupon by itself. Settled are: 1 redeemed, 5 not taken in time, 6 expired,
/// 7 deleted or recalled.
fn is_open(coupon: &Node<'_>) -> bool {
    let status = coupon.member("useStatus").and_then(Node::text).map(str::trim);
    !matches!(status, Some("1" | "5" | "6" | "7"))
}

/// Every customer that the pointers name in an answer; none where it is not JSON.
pub fn customers(body: &[u8], pointers: &[String]) -> Vec<String> {
    let text = std::str::from_utf8(body).ok();
    let root = text.and_then(|text| Node::parse(text, MAX_DEPTH).ok());
    root.map(|root| root.texts(pointers)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
