//! The coupons in an answer, in one shape whatever the platform's was.
//!
//! The platform sends one coupon, a list of them, or a page with a list; ids as strings or as numbers; codes as numbers or as text;
//! dates without an offset; and some members under several names. What is not known passes as it was sent, under `more`, and so does
//! what cannot be read: nothing is lost.

mod codes;

use std::borrow::Cow;
use std::ops::Range;

use http::HeaderValue;
use sha2::{Digest, Sha256};
use time::format_description::well_known::Rfc3339;
use time::macros::datetime;
use time::{OffsetDateTime, UtcOffset};

use self::codes::{STATUSES, TYPES, UNUSED, name_of};
use super::datetime::End;
use super::{MAX_DEPTH, text};
use crate::clock::Wall;
use crate::envelope::push_text;
use crate::json::{JsonError, Next, Scanner};
use crate::secret::hex;

/// Bytes of the hash in an entity tag.
const TAG_BYTES: usize = 12;

/// How coupons are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    /// The names of the member that says when a coupon ends.
    pub(super) ends: &'a [String],
    /// The offset that dates are written in.
    pub(super) utc_offset: UtcOffset,
    /// Most bytes of all coupons.
    pub(super) max_bytes: usize,
}

/// A customer's coupons as the typed API returns them: made once, and then copied.
#[derive(Debug)]
pub struct CouponList {
    /// `{"customerId":…,"coupons":[…],"complete":…,"fetchedAt":…}`
    json: Box<str>,
    /// Where `"coupons":[…],"complete":…` is in it: the part that may be compared and repeated.
    contents: Range<usize>,
    coupons: Box<[Coupon]>,
    etag: HeaderValue,
}

/// Where a coupon is in the JSON text, and what decides whether it is usable.
#[derive(Clone, Debug)]
struct Coupon {
    at: Range<usize>,
    is_unused: bool,
    begins: Option<End>,
    ends: Option<End>,
}

impl Coupon {
    /// Whether it can be redeemed at a moment, as far as its status and its dates say.
    fn is_usable(&self, now: Wall) -> bool {
        let has_passed = |date: Option<End>, unknown| match date {
            Some(End::At(at)) => at <= now,
            Some(End::Never) => false,
            None => unknown,
        };
        self.is_unused && has_passed(self.begins, true) && !has_passed(self.ends, false)
    }
}

impl CouponList {
    /// Reads the coupons in a body, which are a customer's and were fetched at `fetched_at`. `None` if they take more memory than
    /// is allowed, or if the body is not JSON.
    pub(super) fn read(body: &[u8], rules: Rules<'_>, customer: &str, fetched_at: Wall) -> Option<Self> {
        let body = text(body)?;
        let mut json = String::with_capacity(body.len() * 2);
        json.push_str("{\"customerId\":");
        push_text(&mut json, customer);
        json.push(',');
        let start = json.len();
        json.push_str("\"coupons\":[");
        let ends = rules.ends.iter().map(String::as_str).collect();
        let mut list = ListWriter { rules, ends, json, coupons: Vec::new(), total: None, is_too_large: false };
        Scanner::read(body, MAX_DEPTH, |scanner, next| list.root(scanner, &next)).ok()?;
        let ListWriter { mut json, coupons, total, is_too_large, .. } = list;
        if is_too_large {
            return None;
        }
        let is_complete = total.is_none_or(|total| total <= coupons.len());
        json.push_str(if is_complete { "],\"complete\":true" } else { "],\"complete\":false" });
        let contents = start..json.len();
        json.push_str(",\"fetchedAt\":\"");
        json.push_str(&rfc3339(fetched_at, UtcOffset::UTC).unwrap_or_default());
        json.push_str("\"}");
        let etag = etag(json.get(contents.clone())?);
        Some(Self { json: json.into(), contents, coupons: coupons.into(), etag })
    }

    /// The whole as JSON.
    pub const fn json(&self) -> &str {
        &self.json
    }

    /// `"coupons":[…],"complete":…`; with `usable_at` only the coupons that are usable at that moment.
    pub fn contents(&self, usable_at: Option<Wall>) -> Cow<'_, str> {
        let Some(now) = usable_at else { return Cow::Borrowed(self.part(self.contents.clone())) };
        let mut usable = String::from("\"coupons\":[");
        for coupon in self.coupons.iter().filter(|coupon| coupon.is_usable(now)) {
            if !usable.ends_with('[') {
                usable.push(',');
            }
            usable.push_str(self.part(coupon.at.clone()));
        }
        let end = self.coupons.last().map_or(self.contents.start + "\"coupons\":[".len(), |last| last.at.end);
        usable.push_str(self.part(end..self.contents.end));
        Cow::Owned(usable)
    }

    /// The whole with only the coupons that are usable at a moment, and its entity tag.
    pub fn usable(&self, now: Wall) -> (String, HeaderValue) {
        let contents = self.contents(Some(now));
        let [before, after] = [0..self.contents.start, self.contents.end..self.json.len()].map(|part| self.part(part));
        (format!("{before}{contents}{after}"), etag(&contents))
    }

    /// The entity tag of the whole, which says nothing of when it was fetched (RFC 9110, section 8.8.3).
    pub const fn etag(&self) -> &HeaderValue {
        &self.etag
    }

    fn part(&self, part: Range<usize>) -> &str {
        self.json.get(part).unwrap_or_default()
    }

    /// Bytes on the heap.
    pub(super) fn size(&self) -> usize {
        self.json.len() + size_of_val(&*self.coupons) + self.etag.len()
    }
}

/// The weak entity tag of a text. It is the same in every replica.
fn etag(text: &str) -> HeaderValue {
    let hash = Sha256::digest(text);
    let tag = format!("W/\"{}\"", hex(hash.get(..TAG_BYTES).unwrap_or_default()));
    HeaderValue::try_from(tag).unwrap_or_else(|_| HeaderValue::from_static("W/\"\""))
}

/// A moment in RFC 3339; `None` if that cannot be written.
fn rfc3339(at: Wall, offset: UtcOffset) -> Option<String> {
    let moment = OffsetDateTime::from_unix_timestamp(at.unix_seconds()).ok()?.checked_to_offset(offset)?;
    moment.format(&Rfc3339).ok()
}

/// What a member of the typed coupon is made of.
enum Content {
    /// A string or a number, as a string.
    Id,
    /// A whole number, and its name.
    Code(&'static [(i64, &'static str)]),
    /// A date.
    Date,
    /// Anything, as it was sent.
    AsSent,
}

/// The members of the typed coupon, in order, each with the platform's names for it, the documented one first.
const FIELDS: [(&str, &[&str], Content); 13] = [
    ("cardId", &["cardId"], Content::Id),
    ("couponId", &["couponId", "couponNo"], Content::Id),
    ("templateId", &["templateId"], Content::Id),
    ("customerId", &["customerId"], Content::Id),
    ("type", &["couponType"], Content::Code(TYPES)),
    (STATUS, &["useStatus"], Content::Code(STATUSES)),
    (BEGIN, &["beginAt", "beginTime", "startTime", "validBeginDate", "validStartDate"], Content::Date),
    // Its names are the route's.
    (END, &[], Content::Date),
    ("createdAt", &["createdAt"], Content::Date),
    ("updatedAt", &["updatedAt"], Content::Date),
    ("title", &["title", "templateName"], Content::AsSent),
    ("channel", &["channel"], Content::AsSent),
    ("extra", &["extra"], Content::AsSent),
];
const STATUS: &str = "status";
const BEGIN: &str = "beginAt";
const END: &str = "endAt";

/// A member of a coupon as it was sent.
struct Member<'a> {
    name: Cow<'a, str>,
    raw: &'a str,
    /// Whether it is in the typed coupon already.
    is_used: bool,
}

/// The list while it is read.
struct ListWriter<'r> {
    rules: Rules<'r>,
    /// The names of the member that says when a coupon ends.
    ends: Vec<&'r str>,
    json: String,
    coupons: Vec<Coupon>,
    /// How many coupons the platform says there are.
    total: Option<usize>,
    is_too_large: bool,
}

impl ListWriter<'_> {
    fn root<'a>(&mut self, scanner: &mut Scanner<'a>, next: &Next<'a>) -> Result<(), JsonError> {
        match next {
            Next::Object => scanner.object(|scanner, name, next| match &*name {
                "data" => self.value(scanner, next),
                _ => scanner.pass(&next),
            }),
            _ => scanner.pass(next),
        }
    }

    /// Reads `data`, or a page's `list`.
    fn value<'a>(&mut self, scanner: &mut Scanner<'a>, next: Next<'a>) -> Result<(), JsonError> {
        match next {
            Next::Array => scanner.array(|scanner, next| match next {
                Next::Object => self.object(scanner, false),
                scalar => self.scalar(scanner, &scalar),
            }),
            Next::Object => self.object(scanner, true),
            Next::Word(None) => Ok(()),
            Next::String(text) if text.trim().is_empty() => Ok(()),
            scalar => self.scalar(scanner, &scalar),
        }
    }

    /// Reads a coupon, or a page of coupons if that is allowed here.
    fn object(&mut self, scanner: &mut Scanner<'_>, may_be_page: bool) -> Result<(), JsonError> {
        let (mut members, mut is_page, mut total) = (Vec::new(), false, None);
        scanner.object(|scanner, name, next| {
            match &*name {
                "list" if may_be_page && !is_page => {
                    is_page = true;
                    return self.value(scanner, next);
                }
                "total" if may_be_page && total.is_none() => {
                    total = next.text().and_then(|text| text.trim().parse().ok());
                }
                _ => {}
            }
            members.push(Member { name, raw: scanner.raw(&next)?, is_used: false });
            Ok(())
        })?;
        let is_known = |member: &Member<'_>| FIELDS.iter().any(|(_, names, _)| names.contains(&&*member.name));
        // A page of nothing may have no list.
        is_page |= total.is_some() && !members.iter().any(is_known);
        if is_page {
            self.total = total.or(self.total);
        } else if !(may_be_page && members.is_empty()) {
            self.coupon(&mut members);
        }
        Ok(())
    }

    /// What is no object counts as a coupon of which nothing is known.
    fn scalar<'a>(&mut self, scanner: &mut Scanner<'a>, next: &Next<'a>) -> Result<(), JsonError> {
        let raw = scanner.raw(next)?;
        self.coupon(&mut [Member { name: "value".into(), raw, is_used: false }]);
        Ok(())
    }

    /// Writes a coupon.
    fn coupon(&mut self, members: &mut [Member<'_>]) {
        self.is_too_large |= self.json.len() > self.rules.max_bytes;
        if self.is_too_large {
            return;
        }
        if !self.coupons.is_empty() {
            self.json.push(',');
        }
        let start = self.json.len();
        let (mut is_unused, mut begins, mut ends) = (false, None, None);
        for (field, names, content) in &FIELDS {
            self.json.push(if self.json.len() == start { '{' } else { ',' });
            push_text(&mut self.json, field);
            self.json.push(':');
            let names: &[&str] = if *field == END { &self.ends } else { names };
            match content {
                Content::Id => {
                    let id = take(members, names, |raw| (!is_blank(raw)).then(|| id(raw)).flatten());
                    self.json.push_str(id.as_deref().unwrap_or("null"));
                }
                Content::AsSent => {
                    let blank = members.iter().find(|member| names.contains(&&*member.name)).map(|member| member.raw);
                    let sent = take(members, names, |raw| (!is_blank(raw)).then_some(raw));
                    self.json.push_str(sent.or(blank).unwrap_or("null"));
                }
                Content::Code(known) => {
                    let code = take(members, names, code);
                    is_unused |= *field == STATUS && code == Some(UNUSED);
                    let shown = code.map_or_else(|| "null".to_owned(), |code| code.to_string());
                    self.json.push_str(&format!("{{\"code\":{shown},\"name\":\"{}\"}}", name_of(code, known)));
                }
                Content::Date => {
                    let date = take(members, names, |raw| date(raw, self.rules.utc_offset));
                    let (end, shown) = date.unzip();
                    match shown {
                        Some(shown) => push_text(&mut self.json, &shown),
                        None => self.json.push_str("null"),
                    }
                    match *field {
                        BEGIN => begins = end,
                        END => ends = end,
                        _ => {}
                    }
                }
            }
        }
        self.json.push_str(",\"more\":{");
        for (index, member) in members.iter().filter(|member| !member.is_used).enumerate() {
            if index > 0 {
                self.json.push(',');
            }
            push_text(&mut self.json, &member.name);
            self.json.push(':');
            self.json.push_str(member.raw);
        }
        self.json.push_str("}}");
        self.coupons.push(Coupon { at: start..self.json.len(), is_unused, begins, ends });
    }
}

/// The first member with one of these names that can be read. Those that say the same or nothing are used up, too: they are not worth
/// passing on.
fn take<'a, T>(members: &mut [Member<'a>], names: &[&str], read: impl Fn(&'a str) -> Option<T>) -> Option<T> {
    let mut found: Option<(&str, T)> = None;
    for name in names {
        for member in members.iter_mut().filter(|member| !member.is_used && member.name == *name) {
            if found.is_none() {
                found = read(member.raw).map(|value| (member.raw, value));
            }
            let says_the_same = found.as_ref().is_some_and(|(raw, _)| plain(raw) == plain(member.raw));
            member.is_used = says_the_same || is_blank(member.raw);
        }
    }
    found.map(|(_, value)| value)
}

/// Whether a value says nothing.
fn is_blank(raw: &str) -> bool {
    matches!(raw, "null" | "\"\"")
}

/// The text between the quotes, or of a number.
fn plain(raw: &str) -> &str {
    raw.strip_prefix('"').and_then(|raw| raw.strip_suffix('"')).unwrap_or(raw)
}

/// An id as a JSON string.
fn id(raw: &str) -> Option<Cow<'_, str>> {
    match raw.as_bytes().first()? {
        b'"' => Some(Cow::Borrowed(raw)),
        b'-' | b'0'..=b'9' => Some(Cow::Owned(format!("\"{raw}\""))),
        _ => None,
    }
}

/// A code.
fn code(raw: &str) -> Option<i64> {
    plain(raw).trim().parse().ok()
}

/// A date, and how it is written; a year that is far off means that there is no end.
fn date(raw: &str, offset: UtcOffset) -> Option<(End, String)> {
    const FAR_OFF: OffsetDateTime = datetime!(9999-12-31 23:59:59 UTC);
    let raw = raw.strip_prefix('"')?.strip_suffix('"')?;
    let end = End::parse(raw, offset)?;
    let shown = match end {
        End::At(at) => rfc3339(at, offset)?,
        End::Never => FAR_OFF.replace_offset(offset).format(&Rfc3339).ok()?,
    };
    Some((end, shown))
}

#[cfg(test)]
mod tests;
