//! What an answer of the platform says, read without altering it.
//!
//! The platform answers HTTP 200 to nearly everything; the truth is in `status`, `code` and `data`, each of which comes
//! in several spellings.

mod body;
mod coupons;
mod datetime;
mod headers;
mod pointers;
mod typed;

use std::borrow::Cow;
use std::time::Duration;

use http::HeaderValue;
use time::UtcOffset;

pub use self::body::Body;
pub use self::coupons::CouponList;
pub use self::datetime::End;
use self::headers::ExtraHeaders;
pub use self::headers::detached;
pub use self::typed::{PlatformFailure, Typed, TypedForm};
use crate::clock::Wall;
use crate::json::{JsonError, Next, Scanner};

/// Deepest nesting that is read; a deeper answer counts as garbage.
const MAX_DEPTH: usize = 128;

/// Longest body that is searched for a `code` to log, in bytes: failures are short.
const MAX_LOGGED_BODY: usize = 64 << 10;
/// Characters of a code that are logged; those of the platform have six.
const MAX_CODE: usize = 32;

/// Common content codings, which change a body (RFC 9110, section 8.4.1; RFC 7932; RFC 8878).
const CODINGS: [&str; 7] = ["gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd"];

/// What some programs write before UTF-8 text; parsers of JSON may ignore it (RFC 8259, section 8.1).
pub const BYTE_ORDER_MARK: &str = "\u{feff}";

/// A body as text, without a byte order mark.
fn text(body: &[u8]) -> Option<&str> {
    std::str::from_utf8(body).ok().map(|text| text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text))
}

/// An answer as it was received: what callers get of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`, if it is a known one: its index among those.
    known_content_type: Option<u8>,
    extra_headers: Option<Box<ExtraHeaders>>,
    /// The body.
    pub body: Body,
    /// What the typed API makes of it, once it was asked for.
    pub typed: TypedForm,
}

impl Answer {
    /// An answer with these headers: `Content-Type`, `Content-Encoding` and `Retry-After`.
    pub fn received(status: u16, headers: [Option<&HeaderValue>; 3], body: impl Into<Box<[u8]>>) -> Self {
        let [content_type, content_encoding, retry_after] = headers;
        let known_content_type = content_type.and_then(headers::known_content_type);
        let content_type = content_type.filter(|_| known_content_type.is_none());
        Self {
            status,
            known_content_type,
            extra_headers: ExtraHeaders::of([content_type, content_encoding, retry_after]),
            body: Body::new(body.into()),
            typed: TypedForm::default(),
        }
    }

    /// An answer without headers.
    pub fn new(status: u16, body: impl Into<Box<[u8]>>) -> Self {
        Self::received(status, [None; 3], body)
    }

    /// An answer of the gateway's own.
    pub fn json(body: String) -> Self {
        Self::received(200, [Some(&HeaderValue::from_static("application/json")), None, None], body.into_bytes())
    }

    /// The platform's `code` for the log, if the body has one and is not unusually long.
    pub fn code(&self) -> Option<String> {
        let text = text(&self.body).filter(|text| text.len() <= MAX_LOGGED_BODY)?;
        let code = pointers::texts(text, MAX_DEPTH, &["/code".to_owned()]).into_iter().next()?;
        Some(code.chars().take(MAX_CODE).collect())
    }

    /// How long `Retry-After` says to wait (RFC 9110, section 10.2.3).
    pub fn retry_delay(&self, now: Wall) -> Option<Duration> {
        let text = self.retry_after()?.to_str().ok()?.trim();
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            // More digits than fit are a long time, too.
            return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
        }
        Wall::from_http_date(text)?.after(now)
    }

    /// Whether its body is compressed, although that was not asked for. What is no content coding, such as a charset that some
    /// servers send in its place, says nothing: the body does.
    pub fn is_compressed(&self) -> bool {
        let codings =
            self.content_encoding().into_iter().flat_map(|encoding| encoding.as_bytes().split(|b| *b == b','));
        let is_coding = |name: &[u8]| CODINGS.iter().any(|coding| name.eq_ignore_ascii_case(coding.as_bytes()));
        codings.map(<[u8]>::trim_ascii).any(is_coding)
    }

    /// Bytes on the heap.
    pub fn size(&self) -> usize {
        self.body.size() + self.extra_headers.as_ref().map_or(0, |headers| headers.size()) + self.typed.size()
    }
}

/// How to read the answers of a route.
#[derive(Clone, Debug)]
pub struct Reader {
    /// Names of the members that say when a coupon ends; none: the route's answers have no end.
    pub expires: Vec<String>,
    /// Body codes that mean: throttled, or busy.
    pub retry_codes: Vec<String>,
    /// The offset that dates are written in.
    pub utc_offset: UtcOffset,
}

/// The classification of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `status` true and `code` 0.
    Success(Contents),
    /// `status` true and another `code`: a business exception such as "not found".
    Exception,
    /// `status` false, or one of the two missing.
    Error,
    /// A retry code, or HTTP 429.
    Throttled,
    /// HTTP 2xx with what is not JSON, or is compressed.
    Garbage,
    /// `status`, `code` or `data` is there twice: nobody knows which counts.
    Ambiguous,
    /// HTTP 5xx, or beyond.
    Http5xx,
    /// Any other status than 2xx.
    HttpOther,
}

/// What a successful answer contains, as far as its freshness depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Every end that could be read, at any depth.
    pub ends: Vec<Wall>,
    /// For each coupon that the platform may still change by itself (unused, frozen, being given away, or with a status
    /// that is missing or unknown): its first end, `None` if none can be read.
    pub open: Vec<Option<End>>,
    /// Whether it contains no coupon at all.
    pub empty: bool,
}

impl Reader {
    /// Reads an answer.
    pub fn read(&self, answer: &Answer) -> Verdict {
        match answer.status {
            200..=299 if answer.is_compressed() => return Verdict::Garbage,
            200..=299 => {}
            429 => return Verdict::Throttled,
            // A status beyond 599 counts as 5xx (RFC 9110, section 15).
            500.. => return Verdict::Http5xx,
            _ => return Verdict::HttpOther,
        }
        let root = text(&answer.body)
            .and_then(|text| Scanner::read(text, MAX_DEPTH, |scanner, next| self.root(scanner, &next)).ok());
        let Some(Root { success, code, contents, is_ambiguous }) = root.flatten() else { return Verdict::Garbage };
        if is_ambiguous {
            return Verdict::Ambiguous;
        }
        let code = code.as_deref().map(str::trim);
        if code.is_some_and(|code| self.retry_codes.iter().any(|retry| retry == code)) {
            return Verdict::Throttled;
        }
        match (success, code) {
            (false, _) | (true, None) => Verdict::Error,
            (true, Some("0")) => Verdict::Success(contents),
            (true, Some(_)) => Verdict::Exception,
        }
    }

    /// Reads the root, if it is an object.
    fn root<'a>(&self, scanner: &mut Scanner<'a>, next: &Next<'a>) -> Result<Option<Root<'a>>, JsonError> {
        if *next != Next::Object {
            return scanner.pass(next).map(|()| None);
        }
        let (mut success, mut code, mut contents, mut is_ambiguous) = (None, None, None, false);
        scanner.object(|scanner, name, next| {
            match &*name {
                "status" => is_ambiguous |= success.replace(is_true(&next)).is_some(),
                "code" => is_ambiguous |= code.replace(next.clone()).is_some(),
                "data" => {
                    is_ambiguous |= contents.replace(self.data(scanner, next)?).is_some();
                    return Ok(());
                }
                _ => {}
            }
            scanner.pass(&next)
        })?;
        let nothing = || Contents { empty: true, ..Contents::default() };
        let (success, code) = (success.unwrap_or(false), code.and_then(Next::into_text));
        Ok(Some(Root { success, code, contents: contents.unwrap_or_else(nothing), is_ambiguous }))
    }

    /// Reads `data`.
    fn data<'a>(&self, scanner: &mut Scanner<'a>, next: Next<'a>) -> Result<Contents, JsonError> {
        let mut found = Found::default();
        let data = match next {
            Next::Array => Data::List(self.list(scanner, &mut found)?),
            Next::Object => self.list_or_coupon(scanner, &mut found)?,
            Next::String(text) if text.trim().is_empty() => Data::List(0),
            Next::Word(None) => Data::List(0),
            // Anything else counts as one coupon of unknown status.
            Next::String(_) | Next::Number(_) | Next::Word(Some(_)) => Data::Coupon { is_final: false },
        };
        if let Data::Coupon { is_final } = data {
            found.coupon(0, is_final);
        }
        let empty = data == Data::List(0);
        if self.expires.is_empty() {
            return Ok(Contents { empty, ..Contents::default() });
        }
        let moment = |end: End| if let End::At(at) = end { Some(at) } else { None };
        Ok(Contents { ends: found.ends.into_iter().filter_map(moment).collect(), open: found.open, empty })
    }

    /// Reads a list of coupons; returns how many there are.
    fn list(&self, scanner: &mut Scanner<'_>, found: &mut Found) -> Result<usize, JsonError> {
        let mut count = 0;
        scanner.array(|scanner, next| {
            count += 1;
            let (before, mut is_final) = (found.ends.len(), None);
            match next {
                Next::Object => scanner
                    .object(|scanner, name, next| self.member(scanner, &name, &next, &mut is_final, &mut found.ends))?,
                other => self.ends(scanner, &other, &mut found.ends)?,
            }
            found.coupon(before, is_final.unwrap_or(false));
            Ok(())
        })?;
        Ok(count)
    }

    /// Reads an object that contains a list of coupons, and possibly ends beside it, or that is a coupon itself.
    fn list_or_coupon(&self, scanner: &mut Scanner<'_>, found: &mut Found) -> Result<Data, JsonError> {
        let (mut members, mut seen, mut list, mut is_final) = (0, false, None, None);
        scanner.object(|scanner, name, next| {
            members += 1;
            let first = name == "list" && !std::mem::replace(&mut seen, true);
            match next {
                Next::Array if first => list = Some(self.list(scanner, found)?),
                Next::Word(None) if first => list = Some(0),
                next => self.member(scanner, &name, &next, &mut is_final, &mut found.ends)?,
            }
            Ok(())
        })?;
        let list = if members == 0 { Some(0) } else { list };
        Ok(list.map_or(Data::Coupon { is_final: is_final.unwrap_or(false) }, Data::List))
    }

    /// Reads a member: the ends in it, and whether it is a status that is final.
    fn member<'a>(
        &self,
        scanner: &mut Scanner<'a>,
        name: &str,
        next: &Next<'a>,
        is_final: &mut Option<bool>,
        ends: &mut Vec<End>,
    ) -> Result<(), JsonError> {
        if name == STATUS {
            is_final.get_or_insert_with(|| next.text().is_some_and(is_final_status));
        }
        match next {
            Next::String(text) if self.expires.iter().any(|end| end == name) => {
                ends.extend(End::parse(text, self.utc_offset));
                Ok(())
            }
            other => self.ends(scanner, other, ends),
        }
    }

    /// Reads a value that is not a coupon: the ends in it, at any depth.
    fn ends<'a>(&self, scanner: &mut Scanner<'a>, next: &Next<'a>, ends: &mut Vec<End>) -> Result<(), JsonError> {
        match next {
            Next::Object => scanner.object(|scanner, name, next| self.member(scanner, &name, &next, &mut None, ends)),
            Next::Array => scanner.array(|scanner, next| self.ends(scanner, &next, ends)),
            Next::String(_) | Next::Number(_) | Next::Word(_) => Ok(()),
        }
    }
}

/// The root of an answer, as far as it is read.
struct Root<'a> {
    success: bool,
    code: Option<Cow<'a, str>>,
    contents: Contents,
    is_ambiguous: bool,
}

/// What `data` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Data {
    /// So many coupons.
    List(usize),
    /// One.
    Coupon { is_final: bool },
}

/// The ends that were found, and the coupons whose status is not final.
#[derive(Default)]
struct Found {
    ends: Vec<End>,
    open: Vec<Option<End>>,
}

impl Found {
    /// Adds a coupon, whose ends are those after the first `before`.
    fn coupon(&mut self, before: usize, is_final: bool) {
        if !is_final {
            self.open.push(self.ends.iter().skip(before).min().copied());
        }
    }
}

fn is_true(value: &Next<'_>) -> bool {
    match value {
        Next::Word(truth) => *truth == Some(true),
        Next::String(text) => text.trim().eq_ignore_ascii_case("true"),
        Next::Object | Next::Array | Next::Number(_) => false,
    }
}

/// The member of a coupon that says whether it was used.
const STATUS: &str = "useStatus";

/// Whether the platform does not change a coupon of this status any more by itself: 1 redeemed, 5 not taken in time, 6 expired,
/// 7 deleted or recalled.
fn is_final_status(status: &str) -> bool {
    matches!(status.trim(), "1" | "5" | "6" | "7")
}

/// Every customer that the pointers name in an answer; none if it is not JSON.
pub fn customers(body: &[u8], pointers: &[String]) -> Vec<String> {
    text(body).map(|text| pointers::texts(text, MAX_DEPTH, pointers)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
