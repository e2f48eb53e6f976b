//! What a request's head and body say to the gateway itself.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::X_ZVGATE_TENANT;
use crate::cache::Demand;
use crate::envelope::Envelope;
use crate::reply::Refusal;
use crate::settings::{KindSettings, UnknownCustomer};

/// Customers of one write at most; more than a page of anything that the platform redeems at once.
pub(super) const MAX_CUSTOMERS: usize = 1000;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_REQUEST_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-request-timeout-ms");
const X_ZVGATE_CUSTOMER: HeaderName = HeaderName::from_static("x-zvgate-customer");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The request's id: the caller's, where it is one that can go into a log and a header as it is, else a new one.
pub(super) fn request_id(headers: &HeaderMap) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let fits = |id: &&[u8]| (1..=64).contains(&id.len()) && id.iter().copied().all(plain);
    headers
        .get(X_REQUEST_ID)
        .map(http::HeaderValue::as_bytes)
        .filter(fits)
        .and_then(|id| std::str::from_utf8(id).ok())
        .map_or_else(new_id, str::to_owned)
}

/// 128 random bits in hex.
fn new_id() -> String {
    let digit = |number: u128| char::from(b"0123456789abcdef".get((number & 15) as usize).copied().unwrap_or(b'0'));
    let bits = fastrand::u128(..);
    (0..32).map(|place| digit(bits >> (place * 4))).collect()
}

/// The trace id of W3C's `traceparent`, where there is one.
pub(super) fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let mut parts = headers.get(TRACEPARENT)?.to_str().ok()?.split('-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let sound = version.len() == 2 && hex(version) && version != "ff" && trace.len() == 32 && hex(trace);
    (sound && trace.bytes().any(|b| b != b'0')).then_some(trace)
}

/// Whether the body is said to be JSON.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(one), None) = (types.next(), types.next()) else { return false };
    let essence = one.as_bytes().split(|b| *b == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

/// What the caller asks of freshness. Directives that say nothing to a gateway are passed over, as RFC 9111 tells.
pub(super) fn demand(headers: &HeaderMap) -> Demand {
    let mut demand = Demand::default();
    let lines = headers.get_all(CACHE_CONTROL).iter().filter_map(|line| line.to_str().ok());
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

/// How long the caller wants to wait at most.
pub(super) fn patience(headers: &HeaderMap) -> Result<Option<Duration>, Refusal> {
    let Some(value) = headers.get(X_REQUEST_TIMEOUT_MS) else { return Ok(None) };
    let millis = value.to_str().ok().and_then(|text| text.trim().parse().ok()).filter(|millis| *millis > 0);
    let millis =
        millis.ok_or(Refusal::BadRequest("X-Request-Timeout-Ms must be a whole number of milliseconds above 0"))?;
    Ok(Some(Duration::from_millis(millis)))
}

/// The customers that a request is about: one for a cached route, unless it is about none; all that are named for a write.
pub(super) fn customers(
    kind: &KindSettings,
    headers: &HeaderMap,
    envelope: &Envelope<'_>,
) -> Result<Vec<String>, Refusal> {
    match kind {
        KindSettings::Cached(cached) if !cached.customer.is_empty() => {
            let customer = envelope.customer(&cached.customer);
            let customer =
                customer.ok_or(Refusal::BadRequest("params must name the customer, as customerId for example"))?;
            Ok(vec![customer.to_owned()])
        }
        KindSettings::Write(write) => {
            let mut customers = named_customers(headers)?;
            customers.extend(envelope.customers(&write.customer));
            if customers.len() > MAX_CUSTOMERS {
                return Err(Refusal::BadRequest("a write may name at most 1000 customers"));
            }
            if customers.is_empty() && write.unknown_customer == UnknownCustomer::Refuse {
                return Err(Refusal::BadRequest(
                    "this write must name its customer, in X-Zvgate-Customer or in params",
                ));
            }
            Ok(customers)
        }
        KindSettings::Cached(_) | KindSettings::Pass | KindSettings::Off => Ok(Vec::new()),
    }
}

/// The tenant that is named by the header; one name, as two could be read in two ways.
pub(super) fn named_tenant(headers: &HeaderMap) -> Result<Option<&[u8]>, Refusal> {
    let mut named = headers.get_all(X_ZVGATE_TENANT).iter();
    match (named.next(), named.next()) {
        (one, None) => Ok(one.map(http::HeaderValue::as_bytes)),
        (_, Some(_)) => Err(Refusal::BadRequest("X-Zvgate-Tenant may be given once")),
    }
}

fn named_customers(headers: &HeaderMap) -> Result<Vec<String>, Refusal> {
    let mut customers = Vec::new();
    for line in headers.get_all(X_ZVGATE_CUSTOMER) {
        // A customer that cannot be read would keep answers that the write ends.
        let line = std::str::from_utf8(line.as_bytes());
        let line =
            line.map_err(|_| Refusal::BadRequest("X-Zvgate-Customer must be UTF-8: customers, comma-separated"))?;
        customers.extend(line.split(',').map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned));
    }
    Ok(customers)
}

/// Reads a body that is not too long and does not take too long; tells whether it had to be waited for.
pub(super) async fn read_body(
    headers: &HeaderMap,
    body: &mut Incoming,
    max: u64,
    within: Duration,
) -> Result<(Bytes, bool), Refusal> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > max) {
        return Err(Refusal::BodyTooLarge(max));
    }
    let mut collecting = pin!(collect(body, max));
    // Nearly every body is there already, and needs no timer.
    if let Poll::Ready(body) = poll_fn(|cx| Poll::Ready(collecting.as_mut().poll(cx))).await {
        return Ok((body?, false));
    }
    let body = tokio::time::timeout(within, collecting).await.unwrap_or(Err(Refusal::TooSlow))?;
    Ok((body, true))
}

/// How long the rest of a refused request's body is still taken.
const PASS_OVER_FOR: Duration = Duration::from_secs(1);

/// Takes the rest of a body that nobody wants, beside the answer: a connection, or a stream of HTTP/2, that is closed while
/// its caller still sends would cost many callers the answer too.
pub fn pass_over(mut body: Incoming) {
    if !body.is_end_stream() {
        tokio::spawn(async move {
            let rest = async { while let Some(Ok(_)) = body.frame().await {} };
            tokio::time::timeout(PASS_OVER_FOR, rest).await.ok();
        });
    }
}

async fn collect(body: &mut Incoming, max: u64) -> Result<Bytes, Refusal> {
    let mut whole = Bytes::new();
    while let Some(frame) = body.frame().await {
        // A body that breaks off leaves nobody to answer; the connection is over.
        let frame = frame.map_err(|_| Refusal::BadRequest("the body broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        if u64::try_from(whole.len() + data.len()).unwrap_or(u64::MAX) > max {
            return Err(Refusal::BodyTooLarge(max));
        }
        // Nearly every body comes in one piece, and is used where it lies.
        whole = if whole.is_empty() { data } else { join(whole, &data) };
    }
    Ok(whole)
}

fn join(whole: Bytes, more: &[u8]) -> Bytes {
    let mut joined = BytesMut::from(whole);
    joined.extend_from_slice(more);
    joined.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())])
    }

    #[test]
    fn a_callers_request_id_is_kept_where_it_is_plain() {
        assert_eq!(request_id(&headers("x-request-id", "a.B_c-9")), "a.B_c-9");
        for other in ["", "with space", "semi;colon", &"x".repeat(65)] {
            let id = request_id(&headers("x-request-id", other));
            assert_eq!((id.len(), id.contains("x")), (32, false), "{other}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }

    #[test]
    fn a_trace_is_continued_where_it_is_sound() {
        let trace = |value: &str| trace_id(&headers("traceparent", value)).map(str::to_owned);
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
            assert_eq!(is_json(&headers("content-type", value)), json, "{value}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }

    #[test]
    fn a_demand_is_read_from_cache_control() {
        let demand = |value| demand(&headers("cache-control", value));
        assert_eq!(demand("no-transform"), Demand::default());
        assert!(demand("max-age=5, No-Cache").no_cache);
        assert!(demand("only-if-cached").only_if_cached);
        assert_eq!(demand("max-age=\"7\"").max_age, Some(Duration::from_secs(7)));
        assert_eq!(demand("max-age=soon").max_age, Some(Duration::ZERO));
    }
}
