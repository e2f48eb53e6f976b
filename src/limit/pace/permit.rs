//! Permission to make one call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Pace;
use super::queue::Claimed;
use crate::clock::Boot;
use crate::limit::inflight::InflightPermit;
use crate::limit::sharing::SlotRequest;

/// What follows from a throttled call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttled {
    /// How long nothing is sent.
    pub pause: Duration,
    /// Calls that a window allows after the pause.
    pub allowed: usize,
    /// Calls that it allows otherwise; 0: any number.
    pub rate: usize,
}

/// Permission to make one call, and its capacity in flight. Its slot stays taken as long as the platform may count the call;
/// dropped before the call was sent, it is free again.
#[derive(Debug)]
pub struct Permit {
    pace: Arc<Pace>,
    claim: Claimed,
    /// When the platform counts the call at the latest, in nanoseconds since boot; 0: it was not sent.
    counted: AtomicU64,
    _capacity: InflightPermit,
}

impl Permit {
    pub(super) fn new(pace: &Arc<Pace>, claim: Claimed, capacity: InflightPermit) -> Self {
        Self { pace: Arc::clone(pace), claim, counted: AtomicU64::new(0), _capacity: capacity }
    }

    /// Whether a call that is sent now is sent in time. Slots that replicas share are reserved only for a while.
    pub fn is_timely(&self) -> bool {
        match &self.claim {
            Claimed::Unlimited | Claimed::Own(_) => true,
            Claimed::Shared(slot) => slot.is_timely(self.pace.clock.boot()),
        }
    }

    /// The call's last byte was sent just now.
    pub fn sent(&self) {
        let mut queue = self.pace.queue.lock();
        let now = self.pace.clock.boot();
        self.counted.store((now + queue.settings.transit).nanos(), Ordering::Relaxed);
        match &self.claim {
            Claimed::Unlimited => {}
            Claimed::Own(claim) => queue.slots.sent(*claim, now),
            Claimed::Shared(slot) => self.pace.sharing.request(SlotRequest::Sent(slot.clone(), queue.settings)),
        }
        queue.wake_firsts();
    }

    /// The call was answered just now.
    pub fn answered(&self) {
        let mut queue = self.pace.queue.lock();
        let now = self.pace.clock.boot();
        self.counted.fetch_min(now.nanos(), Ordering::Relaxed);
        match &self.claim {
            Claimed::Unlimited => {}
            Claimed::Own(claim) => queue.slots.answered(*claim, now),
            Claimed::Shared(slot) => self.pace.sharing.request(SlotRequest::Answered(slot.clone(), queue.settings)),
        }
        queue.wake_firsts();
    }

    /// The call, which was sent at `sent`, was throttled; returns what follows from it, if it is news.
    pub fn throttled(&self, sent: Boot) -> Option<Throttled> {
        let mut queue = self.pace.queue.lock();
        let now = self.pace.clock.boot();
        let pause = queue.throttle.throttled(sent, now);
        queue.wake_firsts();
        let pause = pause?;
        self.pace.sharing.request(SlotRequest::Throttled(Arc::clone(&self.pace.name)));
        Some(Throttled { pause, allowed: queue.throttle.allowed(queue.rate(), now), rate: queue.rate() })
    }

    /// The platform asked for a pause; returns whether one begins that is news.
    pub fn pause(&self, pause: Duration) -> bool {
        let mut queue = self.pace.queue.lock();
        let begins = queue.throttle.pause(pause, self.pace.clock.boot());
        if begins {
            self.pace.sharing.request(SlotRequest::Pause(Arc::clone(&self.pace.name), pause));
        }
        queue.wake_firsts();
        begins
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let counted = *self.counted.get_mut();
        let mut queue = self.pace.queue.lock();
        match &self.claim {
            Claimed::Own(claim) => queue.slots.abandoned(*claim),
            Claimed::Shared(slot) if counted == 0 => self.pace.release(slot.clone()),
            Claimed::Shared(_) => {}
            Claimed::Unlimited => {
                queue.unlimited -= 1;
                // There may be a limit by now.
                if queue.rate() > 0 && counted > 0 {
                    queue.slots.count(Boot::from_duration(Duration::from_nanos(counted)));
                }
            }
        }
        queue.wake_firsts();
    }
}
