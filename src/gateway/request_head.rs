//! The header fields of a request that concern the gateway itself, found in one pass.

use std::net::Ipv6Addr;
use std::time::Duration;

use http::header::{CACHE_CONTROL, IF_NONE_MATCH};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Version};

use crate::answer::detached;
use crate::cache::RequestCacheControl;
use crate::reply::GatewayError;
use crate::trace::TraceContext;

const X_ZVGATE_CUSTOMER: HeaderName = HeaderName::from_static("x-zvgate-customer");

const JSON: &[u8] = b"application/json";
/// Longest `If-None-Match` that is looked at, in bytes: it is kept while the request waits.
const MAX_KNOWN: usize = 1 << 10;

/// The header fields.
#[derive(Clone, Debug)]
pub struct RequestHead<'a> {
    all: &'a HeaderMap,
    pub(super) host: Field<'a>,
    pub(super) origin: Field<'a>,
    fetch_site: Field<'a>,
    authorization: Field<'a>,
    content_type: Field<'a>,
    content_encoding: Field<'a>,
    cache_control: Field<'a>,
    request_id: Field<'a>,
    traceparent: Field<'a>,
    timeout: Field<'a>,
    tenant: Field<'a>,
}

/// How often a field is given; most may be given once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Field<'a> {
    #[default]
    Absent,
    Single(&'a HeaderValue),
    /// The first of several.
    Multiple(&'a HeaderValue),
}

impl<'a> Field<'a> {
    fn add(&mut self, value: &'a HeaderValue) {
        *self = match *self {
            Self::Absent => Self::Single(value),
            Self::Single(first) | Self::Multiple(first) => Self::Multiple(first),
        };
    }

    pub(super) const fn first(self) -> Option<&'a HeaderValue> {
        match self {
            Self::Absent => None,
            Self::Single(first) | Self::Multiple(first) => Some(first),
        }
    }

    /// The value of a field that is given once.
    const fn single(self) -> Option<&'a HeaderValue> {
        match self {
            Self::Single(value) => Some(value),
            Self::Absent | Self::Multiple(_) => None,
        }
    }

    pub(super) fn is_present(self) -> bool {
        self != Self::Absent
    }
}

impl<'a> RequestHead<'a> {
    /// The fields of a head.
    pub fn of(all: &'a HeaderMap) -> Self {
        let absent = Field::Absent;
        let mut fields = Self {
            all,
            host: absent,
            origin: absent,
            fetch_site: absent,
            authorization: absent,
            content_type: absent,
            content_encoding: absent,
            cache_control: absent,
            request_id: absent,
            traceparent: absent,
            timeout: absent,
            tenant: absent,
        };
        for (name, value) in all {
            let field = match name.as_str() {
                "host" => &mut fields.host,
                "origin" => &mut fields.origin,
                "sec-fetch-site" => &mut fields.fetch_site,
                "authorization" => &mut fields.authorization,
                "content-type" => &mut fields.content_type,
                "content-encoding" => &mut fields.content_encoding,
                "cache-control" => &mut fields.cache_control,
                "x-request-id" => &mut fields.request_id,
                "traceparent" => &mut fields.traceparent,
                "x-request-timeout-ms" => &mut fields.timeout,
                "x-zvgate-tenant" => &mut fields.tenant,
                _ => continue,
            };
            field.add(value);
        }
        fields
    }

    /// Checks that there is exactly one `Host`, which HTTP/1.0 and HTTP/2 may leave out (RFC 9112, section 3.2).
    ///
    /// # Errors
    /// What was expected.
    pub fn check_single_host(&self, version: Version) -> Result<(), &'static str> {
        match self.host {
            Field::Single(_) => Ok(()),
            Field::Absent if version != Version::HTTP_11 => Ok(()),
            Field::Absent | Field::Multiple(_) => Err("the request must have exactly one Host"),
        }
    }

    /// Checks that `Host` is valid.
    ///
    /// # Errors
    /// What was expected.
    pub fn check_valid_host(&self) -> Result<(), &'static str> {
        match self.host {
            Field::Single(host) if !is_host(host.as_bytes()) => {
                Err("Host must be a name or an address, with or without a port")
            }
            _ => Ok(()),
        }
    }

    /// Whether a browser says that a page of another site caused the request (W3C Fetch Metadata).
    pub(super) fn is_of_another_site(&self) -> bool {
        match self.fetch_site {
            Field::Absent => false,
            Field::Single(site) => !matches!(site.as_bytes(), b"none" | b"same-origin"),
            Field::Multiple(_) => true,
        }
    }

    /// The request id: the caller's, if it can be logged and sent as it is, else a new one.
    pub(super) fn request_id(&self) -> HeaderValue {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let fits = |id: &&HeaderValue| (1..=64).contains(&id.len()) && id.as_bytes().iter().copied().all(plain);
        self.request_id.first().filter(fits).map_or_else(new_id, HeaderValue::clone)
    }

    /// The trace that the request belongs to, if its caller sent one (W3C Trace Context).
    pub(super) fn trace_context(&self) -> Option<TraceContext> {
        TraceContext::parse(self.traceparent.single()?.to_str().ok()?)
    }

    /// The key in `Authorization: Bearer KEY` (RFC 6750, section 2.1).
    pub fn bearer(&self) -> Option<&'a [u8]> {
        let (scheme, key) = self.authorization.single()?.as_bytes().split_at_checked("Bearer ".len())?;
        let key = key.trim_ascii();
        (scheme.eq_ignore_ascii_case(b"Bearer ") && !key.is_empty()).then_some(key)
    }

    /// Whether the body is declared as JSON, and not as compressed.
    pub(super) fn is_json(&self) -> bool {
        let is_identity =
            |field: Field<'_>| field.single().is_some_and(|one| one.as_bytes().eq_ignore_ascii_case(b"identity"));
        if self.content_encoding.is_present() && !is_identity(self.content_encoding) {
            return false;
        }
        let Some(one) = self.content_type.single().map(HeaderValue::as_bytes) else { return false };
        // First as nearly every caller writes it; then without parameters.
        let essence = || one.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        one == JSON || essence().eq_ignore_ascii_case(JSON)
    }

    /// `Cache-Control`. Unknown directives are ignored (RFC 9111, section 5.2.3).
    pub(super) fn cache_control(&self) -> RequestCacheControl {
        let mut cache_control = RequestCacheControl::default();
        if !self.cache_control.is_present() {
            return cache_control;
        }
        let lines = self.all.get_all(CACHE_CONTROL).iter();
        // A directive that is not ASCII hides no other one.
        for directive in lines.flat_map(|line| line.as_bytes().split(|b| *b == b',')) {
            let Ok(directive) = std::str::from_utf8(directive) else { continue };
            let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "no-cache" => cache_control.no_cache = true,
                "no-store" => cache_control.no_store = true,
                "only-if-cached" => cache_control.only_if_cached = true,
                "max-age" => {
                    // Of two the smaller counts.
                    let (one, other) = (delta_seconds(argument), cache_control.max_age.unwrap_or(Duration::MAX));
                    cache_control.max_age = Some(one.min(other));
                }
                _ => {}
            }
        }
        cache_control
    }

    /// The value of `If-None-Match` in memory of its own, unless it is unusually long.
    pub(super) fn if_none_match(&self) -> Option<HeaderValue> {
        let short = |value: &&HeaderValue| value.len() <= MAX_KNOWN;
        self.all.get_all(IF_NONE_MATCH).iter().find(short).map(detached)
    }

    /// How long the answer to a read may take: its caller may ask for less time than `longest`, not for more.
    pub(super) fn timeout(&self, longest: Duration) -> Result<Duration, GatewayError> {
        let Some(value) = self.timeout.first() else { return Ok(longest) };
        let digits = value.to_str().map(str::trim).ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        // More digits than fit are more time than there is.
        let millis =
            digits.filter(|digits| digits.bytes().any(|b| b != b'0')).map(|digits| digits.parse().unwrap_or(u64::MAX));
        let millis = millis
            .ok_or(GatewayError::BadRequest("X-Request-Timeout-Ms must be a whole number of milliseconds above 0"))?;
        Ok(longest.min(Duration::from_millis(millis)))
    }

    /// The tenant that is named; two names would be ambiguous.
    pub(super) fn tenant(&self) -> Result<Option<&'a [u8]>, GatewayError> {
        match self.tenant {
            Field::Multiple(_) => Err(GatewayError::BadRequest("X-Zvgate-Tenant may be given only once")),
            field => Ok(field.single().map(HeaderValue::as_bytes)),
        }
    }

    /// The customers that are named for a write: comma-separated, or a list of strings (RFC 9651, section 3.1).
    pub(super) fn customers(&self) -> Result<Vec<String>, GatewayError> {
        const EXPECTED: GatewayError = GatewayError::BadRequest(
            "X-Zvgate-Customer must be UTF-8: customers, comma-separated, or a list of strings such as \"1, 2\", \"3\"",
        );
        let mut customers = Vec::new();
        for line in self.all.get_all(X_ZVGATE_CUSTOMER) {
            // If a customer were ignored, its cached answers would survive the write.
            let line = std::str::from_utf8(line.as_bytes()).map_err(|_| EXPECTED)?.trim();
            match line.starts_with('"') {
                true => customers.extend(list_of_strings(line).ok_or(EXPECTED)?),
                false => customers.extend(line.split(',').map(str::trim).map(str::to_owned)),
            }
        }
        customers.retain(|id| !id.is_empty());
        Ok(customers)
    }
}

/// Whether this is a host with or without a port (RFC 3986, section 3.2).
fn is_host(text: &[u8]) -> bool {
    // The form of nearly all needs no parsing.
    let is_plain = text.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
    let is_literal = |host: &str| {
        host.strip_prefix('[').is_none_or(|v6| v6.strip_suffix(']').is_some_and(|v6| v6.parse::<Ipv6Addr>().is_ok()))
    };
    let parsed = || {
        let Ok(authority) = Authority::try_from(text) else { return false };
        let after = authority.as_str().strip_prefix(authority.host());
        let port = after.map(|after| after.strip_prefix(':').unwrap_or(after));
        // What is behind a user's name is another host.
        let is_port = port.is_some_and(|port| port.is_empty() || authority.port_u16().is_some());
        is_port && is_literal(authority.host())
    };
    !text.is_empty() && (is_plain || parsed())
}

/// The seconds of `max-age`. Those that no 31 bits hold are as many as those can (RFC 9111, section 1.2.2); what is no number
/// counts as zero, since the caller wants a fresh answer.
fn delta_seconds(argument: &str) -> Duration {
    const MAX: u64 = 1 << 31;
    let digits = argument.trim().trim_matches('"');
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    Duration::from_secs(if is_number { digits.parse().unwrap_or(MAX).min(MAX) } else { 0 })
}

/// A list of strings without parameters (RFC 9651, sections 3.1 and 3.3.3); `None` if it is anything else.
fn list_of_strings(mut text: &str) -> Option<Vec<String>> {
    let mut strings = Vec::new();
    loop {
        let mut string = String::new();
        let mut rest = text.strip_prefix('"')?.chars();
        loop {
            match rest.next()? {
                '"' => break,
                '\\' => string.push(rest.next().filter(|c| matches!(c, '"' | '\\'))?),
                c => string.push(c),
            }
        }
        strings.push(string);
        text = rest.as_str().trim_start();
        if text.is_empty() {
            return Some(strings);
        }
        text = text.strip_prefix(',')?.trim_start();
    }
}

/// 128 random bits in hexadecimal.
fn new_id() -> HeaderValue {
    let digit = |nibble: u8| nibble + if nibble < 10 { b'0' } else { b'a' - 10 };
    let mut id = [0; 32];
    for ([high, low], byte) in id.as_chunks_mut::<2>().0.iter_mut().zip(fastrand::u128(..).to_ne_bytes()) {
        (*high, *low) = (digit(byte >> 4), digit(byte & 15));
    }
    HeaderValue::from_bytes(&id).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_callers_request_id_is_kept_if_it_is_valid() {
        let id = |value: &str| RequestHead::of(&headers(&[("x-request-id", value)])).request_id();
        assert_eq!(id("a.B_c-9"), "a.B_c-9");
        for other in ["", "with space", "semi;colon", &"x".repeat(65)] {
            let id = id(other);
            assert!(id.len() == 32 && id.as_bytes().iter().all(u8::is_ascii_hexdigit), "{other}: {id:?}");
        }
        assert_ne!(RequestHead::of(&HeaderMap::new()).request_id(), RequestHead::of(&HeaderMap::new()).request_id());
    }

    #[test]
    fn generated_ids_use_all_hex_digits() {
        let ids: Vec<_> = (0..100).map(|_| new_id()).collect();
        let all: std::collections::BTreeSet<u8> = ids.iter().flat_map(HeaderValue::as_bytes).copied().collect();
        assert_eq!(all.into_iter().collect::<Vec<u8>>(), b"0123456789abcdef");
    }

    #[test]
    fn json_is_distinguished_from_other_types() {
        for (value, json) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/json-seq", false),
            ("text/plain", false),
            ("", false),
        ] {
            assert_eq!(RequestHead::of(&headers(&[("content-type", value)])).is_json(), json, "{value}");
        }
        assert!(!RequestHead::of(&HeaderMap::new()).is_json());
        let twice = headers(&[("content-type", "application/json"), ("content-type", "application/json")]);
        assert!(!RequestHead::of(&twice).is_json());
    }

    #[test]
    fn cache_control_is_parsed() {
        let cache_control = |value| RequestHead::of(&headers(&[("cache-control", value)])).cache_control();
        assert_eq!(cache_control("no-transform"), RequestCacheControl::default());
        assert!(cache_control("max-age=5, No-Cache").no_cache);
        assert!(cache_control("only-if-cached").only_if_cached);
        assert_eq!(cache_control("max-age=\"7\"").max_age, Some(Duration::from_secs(7)));
        assert_eq!(cache_control("max-age=soon").max_age, Some(Duration::ZERO));
        for long in ["2147483648", "4294967296", "99999999999999999999999999"] {
            let all = headers(&[("cache-control", &format!("max-age={long}"))]);
            let age = RequestHead::of(&all).cache_control().max_age;
            assert_eq!(age, Some(Duration::from_secs(1 << 31)), "{long}");
        }
        assert_eq!(cache_control("max-age=5, max-age=3").max_age, Some(Duration::from_secs(3)));
        assert_eq!(cache_control("max-age=3, max-age=5").max_age, Some(Duration::from_secs(3)));
        assert!(cache_control("No-Store").no_store);
        let invalid = HeaderValue::from_bytes(b"x=\xff, no-cache").unwrap();
        let all = HeaderMap::from_iter([(CACHE_CONTROL, invalid)]);
        assert!(RequestHead::of(&all).cache_control().no_cache, "an invalid byte hides no other directive");
        let two = headers(&[("cache-control", "no-transform"), ("cache-control", "no-cache")]);
        assert!(RequestHead::of(&two).cache_control().no_cache);
    }

    #[test]
    fn customers_of_a_write_are_read_from_both_forms() {
        let customers = |value: &str| RequestHead::of(&headers(&[("x-zvgate-customer", value)])).customers().ok();
        let some = |ids: &[&str]| Some(ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
        assert_eq!(customers("1, 2 ,,3"), some(&["1", "2", "3"]));
        assert_eq!(customers(r#""1, 2" ,  "a\"b\\c""#), some(&["1, 2", r#"a"b\c"#]));
        for invalid in [r#"""#, r#""a" "b""#, r#""a","#, r#""a";q=1"#, r#""a\x""#, r#""a", b"#] {
            assert_eq!(customers(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn a_key_is_taken_from_a_single_bearer_header() {
        let key = |values: &[&str]| {
            let all: Vec<_> = values.iter().map(|value| ("authorization", *value)).collect();
            RequestHead::of(&headers(&all)).bearer().map(|key| String::from_utf8(key.to_vec()).unwrap())
        };
        assert_eq!(key(&["Bearer abc"]).as_deref(), Some("abc"));
        assert_eq!(key(&["bearer  abc "]).as_deref(), Some("abc"));
        for none in [&["Basic abc"][..], &["Bearer"], &["Bearer "], &["Bearerabc"], &["Bearer a", "Bearer b"], &[]] {
            assert_eq!(key(none), None, "{none:?}");
        }
    }
}
