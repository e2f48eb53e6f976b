//! Messages from other replicas.

use std::sync::Arc;

use redis::{PushInfo, PushKind, Value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::Shared;
use super::event::{Event, decode_acknowledgement, encode_acknowledgement};
use super::member::Replica;

/// Handles messages as they are received, before any later reply.
pub(super) fn receiver(
    shared: &Arc<Shared>,
    replica: &Arc<dyn Replica>,
    acknowledge: &UnboundedSender<(String, String)>,
) -> impl Fn(PushInfo) + Send + Sync + 'static {
    let (shared, replica, acknowledge) = (Arc::clone(shared), Arc::clone(replica), acknowledge.clone());
    move |push: PushInfo| {
        let (PushKind::Message, [Value::BulkString(channel), Value::BulkString(text)]) = (&push.kind, &*push.data)
        else {
            return;
        };
        let (Ok(channel), Ok(text)) = (str::from_utf8(channel), str::from_utf8(text)) else { return };
        if !channel.ends_with(":events") {
            if let Some((number, member)) = decode_acknowledgement(text) {
                shared.ends.acknowledged(number, member);
            }
            return;
        }
        match Event::decode(text) {
            Some((sender, Event::Ended { number, merchant, subjects, settle, is_superseded })) => {
                let is_own = *sender == *shared.member;
                // Of its own, too: since it was invalidated here, a shared answer from before may have been stored in memory.
                if !(is_own && is_superseded) {
                    replica.ended(merchant, subjects.as_deref(), settle);
                }
                if !is_own {
                    // Nobody receives it any more when the process ends.
                    let _ = acknowledge.send((sender.to_owned(), encode_acknowledgement(number, &shared.member)));
                }
            }
            Some((_, Event::Completed(question))) => {
                // Nobody may wait.
                let _ = shared.completed.send(question.into());
            }
            // The pace of this replica has recorded its own.
            Some((sender, Event::Throttled(_) | Event::Pause(..))) if *sender == *shared.member => {}
            Some((_, Event::Throttled(pace))) => replica.throttled(pace),
            Some((_, Event::Pause(pace, pause))) => replica.paused(pace, pause),
            None => {}
        }
    }
}

/// Acknowledges what was received.
pub(super) async fn send_acknowledgements(shared: &Arc<Shared>, mut all: UnboundedReceiver<(String, String)>) {
    while let Some((sender, message)) = all.recv().await {
        let Some(link) = shared.link.load_full() else { continue };
        tokio::spawn(async move { link.acknowledge(&sender, &message).await.ok() });
    }
}
