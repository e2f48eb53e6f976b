//! Slots towards the platform, taken from Redis.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use super::Shared;
use super::event::Event;
use super::link::{Link, script, unix_micros};
use crate::clock::millis;
use crate::limit::{PendingSlot, SEND_WITHIN, SILENCE, SharedSlot, SlotRequest, hold};
use crate::metrics::ClusterOp;
use crate::settings::PaceSettings;

const TAKE: &str = include_str!("scripts/take.lua");
const SLOT: &str = include_str!("scripts/slot.lua");

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

impl Link {
    fn call(&self, number: u64) -> String {
        format!("{}:{number}", self.member)
    }

    fn slots(&self, pace: &str) -> String {
        self.namespace.name(&format!("slots:{pace}"))
    }

    /// Takes a slot. `replicas`: as many as are configured.
    pub(super) async fn take(&self, pending: PendingSlot, number: u64, replicas: u32) {
        let settings = pending.settings;
        let mut keys = vec![self.slots(pending.name())];
        keys.extend(self.keys(["live", "members", "born"]));
        keys.push(self.namespace.current_key());
        let requested = self.clock.boot();
        let counts_for = SEND_WITHIN + settings.transit + settings.per;
        let mut command = script(TAKE, &keys);
        command.arg(self.call(number)).arg(settings.rate).arg(millis(counts_for)).arg(millis(hold(&settings)));
        command.arg(replicas).arg(self.latest()).arg(pending.allowed).arg(&*self.namespace.start);
        command.arg(millis(SILENCE));
        let taken: Result<(i64, u64, i64, i64), _> = self.run(ClusterOp::Take, &self.control, &command).await;
        let Ok((what, wait, seconds, micros)) = taken else { return };
        // By a clock that jumped it is not known which calls still count.
        match (what, self.narrow(requested, unix_micros(seconds, micros))) {
            (1, Ok(())) => {
                let pace = Arc::clone(pending.name());
                pending.granted(SharedSlot { pace, number, requested });
            }
            // More than that only follows from a clock that jumped.
            (0, Ok(())) => pending.denied(self.clock.boot() + Duration::from_millis(wait).min(hold(&settings))),
            _ => {}
        }
    }

    /// A call was sent.
    pub(super) async fn sent(&self, slot: &SharedSlot, pace: &PaceSettings) {
        self.change(slot, "sent", pace.transit + pace.per).await;
    }

    /// A call was answered.
    pub(super) async fn answered(&self, slot: &SharedSlot, pace: &PaceSettings) {
        self.change(slot, "answered", pace.per).await;
    }

    /// Nothing of a call was sent.
    pub(super) async fn release(&self, slot: &SharedSlot) {
        self.change(slot, "released", Duration::ZERO).await;
    }

    /// That it fails only costs time: the slot stays taken for longer.
    async fn change(&self, slot: &SharedSlot, what: &str, counts_for: Duration) {
        let mut command = script(SLOT, &[self.slots(&slot.pace)]);
        command.arg(self.call(slot.number)).arg(what).arg(millis(counts_for));
        let _: Result<(), _> = self.run(ClusterOp::Slot, &self.control, &command).await;
    }
}
