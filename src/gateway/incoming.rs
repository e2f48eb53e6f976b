//! A request's body: taken whole, and the customers in it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::fields::Fields;
use crate::envelope::Envelope;
use crate::reply::Refusal;
use crate::settings::{KindSettings, UnknownCustomer};

/// Customers of one write at most; more than a page of anything that the platform redeems at once.
pub(super) const MAX_CUSTOMERS: usize = 1000;

/// The customers that a request is about: one for a cached route, unless it is about none; all that are named for a write.
pub(super) fn customers(
    kind: &KindSettings,
    fields: &Fields<'_>,
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
            let mut customers = fields.customers()?;
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

/// Reads a body that is not too long and does not take too long; tells whether it had to be waited for.
pub(super) async fn read_body(body: &mut Incoming, max: u64, within: Duration) -> Result<(Bytes, bool), Refusal> {
    // What is announced, as Content-Length (RFC 9110, section 8.6).
    if body.size_hint().lower() > max {
        return Err(Refusal::BodyTooLarge(max));
    }
    let mut collecting = pin!(collect(body, max));
    // Nearly every body is there already, and needs no timer, nor room for one.
    if let Poll::Ready(body) = poll_fn(|cx| Poll::Ready(collecting.as_mut().poll(cx))).await {
        return Ok((body?, false));
    }
    let body = Box::pin(tokio::time::timeout(within, collecting)).await.unwrap_or(Err(Refusal::TooSlow))?;
    Ok((body, true))
}

async fn collect(body: &mut Incoming, max: u64) -> Result<Bytes, Refusal> {
    let mut whole = Bytes::new();
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
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
