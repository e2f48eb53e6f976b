//! Requests for slots, passed on to Redis.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::Shared;
use super::event::Event;
use crate::limit::SlotRequest;

/// Passes them on, each without waiting for the one before.
pub(super) async fn serve_slots(shared: &Arc<Shared>, mut requests: UnboundedReceiver<SlotRequest>) {
    let (mut number, replicas) = (0, shared.replicas);
    while let Some(request) = requests.recv().await {
        // Without a connection a slot that is requested is denied; the other requests only save time.
        let Some(link) = shared.link.load_full() else { continue };
        let member = Arc::clone(&shared.member);
        number += 1;
        tokio::spawn(async move {
            match request {
                SlotRequest::Take(pending) => link.take(pending, number, replicas).await,
                SlotRequest::Sent(slot, pace) => link.sent(&slot, &pace).await,
                SlotRequest::Answered(slot, pace) => link.answered(&slot, &pace).await,
                SlotRequest::Release(slot) => link.release(&slot).await,
                // That it fails is no harm: the platform will throttle the others, too.
                SlotRequest::Throttled(pace) => drop(link.publish(&Event::Throttled(&pace).encode(&member)).await),
                SlotRequest::Pause(pace, pause) => {
                    drop(link.publish(&Event::Pause(&pace, pause).encode(&member)).await);
                }
            }
        });
    }
}
