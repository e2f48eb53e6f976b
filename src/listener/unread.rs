//! What is left of the body of a request that is answered already.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::phase::InHand;

/// How long the rest of a body is still taken.
const PASS_OVER_FOR: Duration = Duration::from_secs(1);

/// Takes the rest of a body that nobody wants, beside the answer: a connection, or a stream of HTTP/2, that is closed while
/// its caller still sends would cost many callers the answer too. Until then its request is in hand: what comes is no other
/// request.
pub(super) async fn pass_over(mut body: Incoming, request: &InHand) {
    if body.is_end_stream() || is_over(&mut body).await {
        return;
    }
    let in_hand = request.another();
    tokio::spawn(async move {
        let rest = async { while let Some(Ok(_)) = body.frame().await {} };
        tokio::time::timeout(PASS_OVER_FOR, rest).await.ok();
        // In this order: the connection must know of the end of the body first.
        drop(body);
        drop(in_hand);
    });
}

/// Whether a body whose length nobody told is over.
async fn is_over(body: &mut Incoming) -> bool {
    poll_fn(|cx| Poll::Ready(matches!(Pin::new(&mut *body).poll_frame(cx), Poll::Ready(None | Some(Err(_)))))).await
}
