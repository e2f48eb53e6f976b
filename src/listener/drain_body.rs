//! Drains the rest of a request body whose request has already been answered.

use std::time::Duration;

use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::connection_state::RequestPermit;

/// How long the rest of a body is read.
const DRAIN_FOR: Duration = Duration::from_secs(1);

/// Drains what is left of a body, beside the response: if a connection or an HTTP/2 stream were closed while its caller is still
/// sending, many callers would not get the response. Until then the request is in progress, so that its bytes are not taken for
/// another one.
pub(super) fn drain_body(mut body: Incoming, request: &RequestPermit) {
    if body.is_end_stream() || has_ended(&mut body) {
        return;
    }
    let in_progress = request.another();
    tokio::spawn(async move {
        let rest = async { while let Some(Ok(_)) = body.frame().await {} };
        tokio::time::timeout(DRAIN_FOR, rest).await.ok();
        // In this order: the connection must learn of the end of the body first.
        drop(body);
        drop(in_progress);
    });
}

/// Whether a body of unknown length has ended.
fn has_ended(body: &mut Incoming) -> bool {
    matches!(body.frame().now_or_never(), Some(None | Some(Err(_))))
}
