//! Reads a request's body, and finds the customers that the request is about.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::request_head::RequestHead;
use crate::envelope::Envelope;
use crate::reply::GatewayError;
use crate::settings::{CachedSettings, KindSettings, UnknownCustomer};

/// Most customers of one write; the platform redeems fewer at once.
pub(super) const MAX_CUSTOMERS: usize = 1000;

/// What a body says on a route of this kind, which may allow only some `params`.
pub(super) fn envelope<'a>(kind: &KindSettings, body: &'a [u8]) -> Result<Envelope<'a>, GatewayError> {
    let envelope = Envelope::parse(body).map_err(GatewayError::Body)?;
    if let KindSettings::Cached(CachedSettings { params: Some(allowed), .. }) = kind {
        envelope.check_params(allowed).map_err(GatewayError::Body)?;
    }
    Ok(envelope)
}

/// The customers that a request is about: one for a cached route, unless it is about none; all that are named for a write.
pub(super) fn customers(
    kind: &KindSettings,
    head: &RequestHead<'_>,
    envelope: &Envelope<'_>,
) -> Result<Arc<[String]>, GatewayError> {
    match kind {
        KindSettings::Cached(cached) if !cached.customer.is_empty() => {
            let customer = envelope.customer(&cached.customer).ok_or(GatewayError::BadRequest(
                "params must name the customer: expected a string or a number such as params.customerId",
            ))?;
            Ok(Arc::from([customer.to_owned()]))
        }
        KindSettings::Write(write) => {
            let mut customers = head.customers()?;
            customers.extend(envelope.customers(&write.customer));
            if customers.len() > MAX_CUSTOMERS {
                return Err(GatewayError::BadRequest("a write may name at most 1000 customers"));
            }
            if customers.is_empty() && write.unknown_customer == UnknownCustomer::Refuse {
                return Err(GatewayError::BadRequest(
                    "this write must name its customer, in X-Zvgate-Customer or in params",
                ));
            }
            Ok(customers.into())
        }
        KindSettings::Cached(_) | KindSettings::Pass | KindSettings::Off => Ok(Arc::default()),
    }
}

/// Reads a body of at most `max` bytes within `timeout`; returns it, and whether it had to be waited for.
pub(super) async fn read_body(body: &mut Incoming, max: u64, timeout: Duration) -> Result<(Bytes, bool), GatewayError> {
    // Content-Length (RFC 9110, section 8.6).
    if body.size_hint().lower() > max {
        return Err(GatewayError::BodyTooLarge(max));
    }
    let mut collecting = pin!(collect(body, max));
    // Nearly every body has already been received, and needs no timer.
    if let Poll::Ready(body) = poll_fn(|cx| Poll::Ready(collecting.as_mut().poll(cx))).await {
        return Ok((body?, false));
    }
    let body = Box::pin(tokio::time::timeout(timeout, collecting)).await.unwrap_or(Err(GatewayError::TooSlow))?;
    Ok((body, true))
}

async fn collect(body: &mut Incoming, max: u64) -> Result<Bytes, GatewayError> {
    let mut whole = Bytes::new();
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
        // The connection is closed, so that nobody gets this error.
        let frame = frame.map_err(|_| GatewayError::BadRequest("the body ended early"))?;
        let Ok(data) = frame.into_data() else { continue };
        if u64::try_from(whole.len() + data.len()).unwrap_or(u64::MAX) > max {
            return Err(GatewayError::BodyTooLarge(max));
        }
        // Nearly every body is one frame, and is used without copying.
        whole = if whole.is_empty() { data } else { join(whole, &data) };
    }
    Ok(whole)
}

fn join(whole: Bytes, more: &[u8]) -> Bytes {
    let mut joined = BytesMut::from(whole);
    joined.extend_from_slice(more);
    joined.freeze()
}
