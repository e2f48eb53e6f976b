//! What the fields of a request's head say to the gateway itself: found in one pass, since nearly every request has few of
//! them and asks for none of what is read seldom.

use std::time::Duration;

use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::cache::Demand;
use crate::reply::Refusal;

const X_ZVGATE_CUSTOMER: HeaderName = HeaderName::from_static("x-zvgate-customer");

/// The fields of a head.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    all: &'a HeaderMap,
    pub(super) host: Given<'a>,
    pub(super) origin: Given<'a>,
    authorization: Given<'a>,
    content_type: Given<'a>,
    cache_control: Given<'a>,
    request_id: Given<'a>,
    traceparent: Given<'a>,
    timeout: Given<'a>,
    tenant: Given<'a>,
}

/// How often a field is there, which most may be once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Given<'a> {
    #[default]
    Never,
    Once(&'a HeaderValue),
    /// The first of several.
    Often(&'a HeaderValue),
}

impl<'a> Given<'a> {
    fn note(&mut self, value: &'a HeaderValue) {
        *self = match *self {
            Self::Never => Self::Once(value),
            Self::Once(first) | Self::Often(first) => Self::Often(first),
        };
    }

    pub(super) const fn first(self) -> Option<&'a HeaderValue> {
        match self {
            Self::Never => None,
            Self::Once(first) | Self::Often(first) => Some(first),
        }
    }

    /// The value of a field that is there once.
    const fn one(self) -> Option<&'a HeaderValue> {
        match self {
            Self::Once(value) => Some(value),
            Self::Never | Self::Often(_) => None,
        }
    }

    pub(super) fn is_there(self) -> bool {
        self != Self::Never
    }
}

impl<'a> Fields<'a> {
    /// The fields of a head.
    pub fn of(all: &'a HeaderMap) -> Self {
        let never = Given::Never;
        let mut fields = Self {
            all,
            host: never,
            origin: never,
            authorization: never,
            content_type: never,
            cache_control: never,
            request_id: never,
            traceparent: never,
            timeout: never,
            tenant: never,
        };
        for (name, value) in all {
            let field = match name.as_str() {
                "host" => &mut fields.host,
                "origin" => &mut fields.origin,
                "authorization" => &mut fields.authorization,
                "content-type" => &mut fields.content_type,
                "cache-control" => &mut fields.cache_control,
                "x-request-id" => &mut fields.request_id,
                "traceparent" => &mut fields.traceparent,
                "x-request-timeout-ms" => &mut fields.timeout,
                "x-zvgate-tenant" => &mut fields.tenant,
                _ => continue,
            };
            field.note(value);
        }
        fields
    }

    /// Whether nothing is asked for beyond what every caller asks: no freshness of its own, no tenant by name.
    pub(super) fn are_plain(&self) -> bool {
        !self.cache_control.is_there() && !self.tenant.is_there()
    }

    /// The request's id: the caller's, where it is one that can go into a log and a header as it is, else a new one.
    pub(super) fn request_id(&self) -> HeaderValue {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let fits = |id: &&HeaderValue| (1..=64).contains(&id.len()) && id.as_bytes().iter().copied().all(plain);
        self.request_id.first().filter(fits).map_or_else(new_id, HeaderValue::clone)
    }

    /// The trace id of W3C's `traceparent`, where there is one.
    pub(super) fn trace_id(&self) -> Option<&'a str> {
        let mut parts = self.traceparent.first()?.to_str().ok()?.split('-');
        let (version, trace) = (parts.next()?, parts.next()?);
        let hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let sound = version.len() == 2 && hex(version) && version != "ff" && trace.len() == 32 && hex(trace);
        (sound && trace.bytes().any(|b| b != b'0')).then_some(trace)
    }

    /// The key in `Authorization: Bearer KEY` (RFC 6750, section 2.1).
    pub fn bearer(&self) -> Option<&'a [u8]> {
        let (scheme, key) = self.authorization.one()?.as_bytes().split_at_checked("Bearer ".len())?;
        let key = key.trim_ascii();
        (scheme.eq_ignore_ascii_case(b"Bearer ") && !key.is_empty()).then_some(key)
    }

    /// Whether the body is said to be JSON.
    pub(super) fn tell_json(&self) -> bool {
        let Some(one) = self.content_type.one() else { return false };
        let essence = one.as_bytes().split(|b| *b == b';').next().unwrap_or_default();
        essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
    }

    /// What the caller asks of freshness. Directives that say nothing to a gateway are passed over, as RFC 9111 tells.
    pub(super) fn demand(&self) -> Demand {
        let mut demand = Demand::default();
        if !self.cache_control.is_there() {
            return demand;
        }
        let lines = self.all.get_all(CACHE_CONTROL).iter().filter_map(|line| line.to_str().ok());
        for directive in lines.flat_map(|line| line.split(',')) {
            let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "no-cache" => demand.no_cache = true,
                "only-if-cached" => demand.only_if_cached = true,
                "max-age" => {
                    // What cannot be read is taken as zero: the caller wanted something fresh.
                    let seconds = argument.trim().trim_matches('"').parse().unwrap_or(0);
                    demand.max_age = Some(Duration::from_secs(seconds));
                }
                _ => {}
            }
        }
        demand
    }

    /// How long a read may take to be answered: its caller may ask for less time than `longest`, not for more.
    pub(super) fn patience(&self, longest: Duration) -> Result<Duration, Refusal> {
        let Some(value) = self.timeout.first() else { return Ok(longest) };
        let millis = value.to_str().ok().and_then(|text| text.trim().parse().ok()).filter(|millis| *millis > 0);
        let millis =
            millis.ok_or(Refusal::BadRequest("X-Request-Timeout-Ms must be a whole number of milliseconds above 0"))?;
        Ok(longest.min(Duration::from_millis(millis)))
    }

    /// The tenant that is named; by one name, as two could be read in two ways.
    pub(super) fn tenant(&self) -> Result<Option<&'a [u8]>, Refusal> {
        match self.tenant {
            Given::Often(_) => Err(Refusal::BadRequest("X-Zvgate-Tenant may be given once")),
            once_or_never => Ok(once_or_never.one().map(HeaderValue::as_bytes)),
        }
    }

    /// The customers that are named for a write.
    pub(super) fn customers(&self) -> Result<Vec<String>, Refusal> {
        let mut customers = Vec::new();
        for line in self.all.get_all(X_ZVGATE_CUSTOMER) {
            // A customer that cannot be read would keep answers that the write ends.
            let line = std::str::from_utf8(line.as_bytes());
            let line =
                line.map_err(|_| Refusal::BadRequest("X-Zvgate-Customer must be UTF-8: customers, comma-separated"))?;
            customers.extend(line.split(',').map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned));
        }
        Ok(customers)
    }
}

/// 128 random bits in hex.
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
    fn a_callers_request_id_is_kept_where_it_is_plain() {
        let id = |value: &str| Fields::of(&headers(&[("x-request-id", value)])).request_id();
        assert_eq!(id("a.B_c-9"), "a.B_c-9");
        for other in ["", "with space", "semi;colon", &"x".repeat(65)] {
            let id = id(other);
            assert!(id.len() == 32 && id.as_bytes().iter().all(u8::is_ascii_hexdigit), "{other}: {id:?}");
        }
        assert_ne!(Fields::of(&HeaderMap::new()).request_id(), Fields::of(&HeaderMap::new()).request_id());
    }

    #[test]
    fn new_ids_are_made_of_all_digits() {
        let ids: Vec<_> = (0..100).map(|_| new_id()).collect();
        let all: std::collections::BTreeSet<u8> = ids.iter().flat_map(HeaderValue::as_bytes).copied().collect();
        assert_eq!(all.into_iter().collect::<Vec<u8>>(), b"0123456789abcdef");
    }

    #[test]
    fn a_trace_is_continued_where_it_is_sound() {
        let trace = |value: &str| Fields::of(&headers(&[("traceparent", value)])).trace_id().map(str::to_owned);
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace(&format!("00-{id}-00f067aa0ba902b7-01")).as_deref(), Some(id));
        for bad in ["", "00", "00-xyz-1-1", &format!("00-{}-1-01", "0".repeat(32)), &format!("ff-{id}-1-01")] {
            assert_eq!(trace(bad), None, "{bad}");
        }
    }

    #[test]
    fn json_is_told_from_other_types() {
        for (value, json) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/json-seq", false),
            ("text/plain", false),
            ("", false),
        ] {
            assert_eq!(Fields::of(&headers(&[("content-type", value)])).tell_json(), json, "{value}");
        }
        assert!(!Fields::of(&HeaderMap::new()).tell_json());
        let twice = headers(&[("content-type", "application/json"), ("content-type", "application/json")]);
        assert!(!Fields::of(&twice).tell_json());
    }

    #[test]
    fn a_demand_is_read_from_cache_control() {
        let demand = |value| Fields::of(&headers(&[("cache-control", value)])).demand();
        assert_eq!(demand("no-transform"), Demand::default());
        assert!(demand("max-age=5, No-Cache").no_cache);
        assert!(demand("only-if-cached").only_if_cached);
        assert_eq!(demand("max-age=\"7\"").max_age, Some(Duration::from_secs(7)));
        assert_eq!(demand("max-age=soon").max_age, Some(Duration::ZERO));
        let two = headers(&[("cache-control", "no-transform"), ("cache-control", "no-cache")]);
        assert!(Fields::of(&two).demand().no_cache);
    }

    #[test]
    fn a_key_is_read_from_one_bearer_header() {
        let key = |values: &[&str]| {
            let all: Vec<_> = values.iter().map(|value| ("authorization", *value)).collect();
            Fields::of(&headers(&all)).bearer().map(|key| String::from_utf8(key.to_vec()).unwrap())
        };
        assert_eq!(key(&["Bearer abc"]).as_deref(), Some("abc"));
        assert_eq!(key(&["bearer  abc "]).as_deref(), Some("abc"));
        for none in [&["Basic abc"][..], &["Bearer"], &["Bearer "], &["Bearerabc"], &["Bearer a", "Bearer b"], &[]] {
            assert_eq!(key(none), None, "{none:?}");
        }
    }
}
