//! Permission to make one call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Pace, Queue};
use crate::clock::Boot;
use crate::limit::Claim;
use crate::limit::inflight::InflightPermit;

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
    /// `None`: there was no limit.
    claim: Option<Claim>,
    /// When the platform counts the call at the latest, in nanoseconds since boot; 0: it was not sent.
    counted: AtomicU64,
    _capacity: InflightPermit,
}

impl Permit {
    pub(super) fn new(pace: &Arc<Pace>, claim: Option<Claim>, capacity: InflightPermit) -> Self {
        Self { pace: Arc::clone(pace), claim, counted: AtomicU64::new(0), _capacity: capacity }
    }

    /// The call's last byte was sent just now.
    pub fn sent(&self) {
        self.update(|queue, claim, now| {
            self.counted.store((now + queue.settings.transit).nanos(), Ordering::Relaxed);
            claim.into_iter().for_each(|claim| queue.slots.sent(claim, now));
        });
    }

    /// The call was answered just now.
    pub fn answered(&self) {
        self.update(|queue, claim, now| {
            self.counted.fetch_min(now.nanos(), Ordering::Relaxed);
            claim.into_iter().for_each(|claim| queue.slots.answered(claim, now));
        });
    }

    /// The call, which was sent at `sent`, was throttled; returns what follows from it, if it is news.
    pub fn throttled(&self, sent: Boot) -> Option<Throttled> {
        let mut queue = self.pace.queue.lock();
        let now = self.pace.clock.boot();
        let pause = queue.throttle.throttled(sent, now);
        queue.wake_firsts();
        Some(Throttled { pause: pause?, allowed: queue.throttle.allowed(queue.rate(), now), rate: queue.rate() })
    }

    /// The platform asked for a pause; returns whether one begins that is news.
    pub fn pause(&self, pause: Duration) -> bool {
        let mut queue = self.pace.queue.lock();
        let begins = queue.throttle.pause(pause, self.pace.clock.boot());
        queue.wake_firsts();
        begins
    }

    fn update(&self, change: impl FnOnce(&mut Queue, Option<Claim>, Boot)) {
        let mut queue = self.pace.queue.lock();
        change(&mut queue, self.claim, self.pace.clock.boot());
        queue.wake_firsts();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let counted = *self.counted.get_mut();
        self.update(|queue, claim, _| {
            if let Some(claim) = claim {
                queue.slots.abandoned(claim);
                return;
            }
            queue.unlimited -= 1;
            // There may be a limit by now.
            if queue.rate() > 0 && counted > 0 {
                queue.slots.count(Boot::from_duration(Duration::from_nanos(counted)));
            }
        });
    }
}
