//! The rate limit of one tenant and path towards the platform: requests wait for a slot and for capacity in flight, for a
//! bounded time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::fair_queue::{FairQueue, Place};
use super::inflight::{InflightPermit, Waker};
use super::throttle::{Ended, ThrottleState};
use super::{Claim, InflightLimit, Limited, QueueKey, Slots};
use crate::clock::{Boot, Clock};
use crate::settings::PaceSettings;

/// The rate limit of one tenant and path.
#[derive(Debug)]
pub struct Pace {
    queue: Mutex<Queue>,
    clock: Clock,
}

#[derive(Debug)]
struct Queue {
    settings: PaceSettings,
    slots: Slots,
    throttle: ThrottleState,
    waiting: FairQueue<Waker>,
    /// Calls in progress that began without a limit, and so have no slot.
    unlimited: usize,
}

impl Queue {
    fn rate(&self) -> usize {
        usize::try_from(self.settings.rate).unwrap_or(usize::MAX)
    }

    fn limited(&self, retry_after: Duration) -> Limited {
        Limited { quota: self.settings.rate, per: self.settings.per, retry_after }
    }

    /// Takes a slot, if one is free now. The error says when to try again; `None`: when something changes.
    fn take(&mut self, now: Boot) -> Result<Option<Claim>, Option<Boot>> {
        if let Some(until) = self.throttle.paused_until(now) {
            return Err(Some(until));
        }
        let rate = self.rate();
        if rate == 0 {
            self.unlimited += 1;
            return Ok(None);
        }
        let allowed = self.throttle.allowed(rate, now);
        let is_held_back = allowed < rate;
        let allowed = allowed.saturating_sub(self.unlimited);
        let claim = self.slots.take(allowed, now).ok_or_else(|| {
            let next = self.slots.next_free(allowed);
            // When throttling has ended, more slots are allowed at once.
            if is_held_back {
                Some(next.map_or(self.throttle.ends_at(), |next| next.min(self.throttle.ends_at())))
            } else {
                next
            }
        });
        claim.map(Some)
    }

    /// Gives back a slot of which nothing was sent.
    fn give_back(&mut self, claim: Option<Claim>) {
        match claim {
            Some(claim) => self.slots.abandoned(claim),
            None => self.unlimited -= 1,
        }
    }

    /// The earliest moment at which a request can get a permit, if those ahead of it stay.
    fn earliest(&self, place: Place, now: Boot) -> Boot {
        let rate = self.rate();
        let from = self.throttle.paused_until(now).unwrap_or(now);
        if rate == 0 {
            return from;
        }
        let ahead = self.waiting.ahead(place);
        let held_back = self.slots.earliest(ahead, self.throttle.allowed(rate, now), now, from);
        held_back.min(self.slots.earliest(ahead, rate, now, from.max(self.throttle.ends_at())))
    }

    /// Wakes those that may be served next: which of them is, depends on whose turn it is for capacity in flight, too.
    fn wake_firsts(&self) {
        self.waiting.firsts().for_each(Waker::wake);
    }
}

impl Pace {
    /// A limit; `counted` is when the platform may last have counted a call that is not known here.
    pub(super) fn new(settings: PaceSettings, counted: Option<Boot>, clock: &Clock) -> Arc<Self> {
        let (slots, throttle) = (Slots::new(&settings, counted), ThrottleState::new(settings.per));
        let queue = Queue { settings, slots, throttle, waiting: FairQueue::default(), unlimited: 0 };
        Arc::new(Self { queue: Mutex::new(queue), clock: clock.clone() })
    }

    /// Changes the limit, and forgets nothing.
    pub(super) fn reconfigure(&self, settings: PaceSettings) {
        let mut queue = self.queue.lock();
        if queue.settings != settings {
            let was_unlimited = queue.rate() == 0;
            queue.settings = settings;
            match was_unlimited {
                true => queue.slots.limit_again(&settings, self.clock.boot() + settings.transit),
                false => queue.slots.reconfigure(&settings),
            }
            queue.throttle.reconfigure(settings.per);
            queue.wake_firsts();
        }
    }

    /// Waits for a slot and for capacity in flight, `max_wait` at most: both are taken together, so that no slot is held by a
    /// request that waits for the other. Dropping the future leaves the queues.
    ///
    /// # Errors
    /// At once if no slot can come in time, else when the time has passed.
    pub async fn acquire(
        self: &Arc<Self>,
        inflight: &Arc<InflightLimit>,
        key: QueueKey,
        max_wait: Duration,
    ) -> Result<Permit, NoPermit> {
        let arrived = self.clock.boot();
        let mut position = QueuePosition::join(self, inflight, key);
        let mut has_waited = false;
        loop {
            let now = self.clock.boot();
            let wait = match position.try_take(now) {
                Ok(permit) => return Ok(permit),
                Err(wait) => wait,
            };
            if !std::mem::replace(&mut has_waited, true) {
                let limited = position.limited(arrived);
                if limited.retry_after > max_wait {
                    return Err(NoPermit::Limited(limited));
                }
            }
            let remaining = (arrived + max_wait).since(now);
            if remaining.is_zero() {
                let limited = position.limited(now);
                // If a slot could have come by now, it was the capacity that did not.
                let has_slot = limited.retry_after.is_zero();
                return Err(if has_slot { NoPermit::NoCapacity } else { NoPermit::Limited(limited) });
            }
            let pause = match wait {
                Wait::Until(next) => next.since(now).min(remaining),
                Wait::Change => remaining,
            };
            // Either the time has come, or something changed: try again.
            let _ = tokio::time::timeout(pause, position.waker.woken()).await;
        }
    }

    /// Takes a slot and capacity that nobody waits for, at once or not at all.
    pub fn try_acquire(self: &Arc<Self>, inflight: &Arc<InflightLimit>) -> Option<Permit> {
        let mut queue = self.queue.lock();
        if !queue.waiting.is_empty() {
            return None;
        }
        let claim = queue.take(self.clock.boot()).ok()?;
        let Some(capacity) = inflight.take_spare() else {
            queue.give_back(claim);
            return None;
        };
        Some(Permit::new(self, claim, capacity))
    }

    /// Credentials or the signing clock changed.
    pub(super) fn credentials_changed(&self) {
        let mut queue = self.queue.lock();
        queue.throttle.credentials_changed(self.clock.boot());
        queue.wake_firsts();
    }

    /// What has ended of throttling and pauses since this was last asked.
    pub(super) fn take_end_of_throttling(&self, now: Boot) -> Option<Ended> {
        let mut queue = self.queue.lock();
        let rate = queue.settings.rate;
        queue.throttle.take_end(rate, now)
    }

    /// Calls that a window allows now; without a limit, infinitely many.
    pub(super) fn allowed(&self, now: Boot) -> f64 {
        let queue = self.queue.lock();
        match (queue.throttle.paused_until(now), queue.rate()) {
            (Some(_), _) => 0.0,
            (None, 0) => f64::INFINITY,
            (None, rate) => u32::try_from(queue.throttle.allowed(rate, now)).map_or(f64::INFINITY, f64::from),
        }
    }

    /// Whether a new limit would behave the same.
    pub(super) fn is_idle(&self, now: Boot) -> bool {
        let queue = self.queue.lock();
        queue.waiting.is_empty()
            && queue.unlimited == 0
            && queue.slots.are_all_free(now)
            && queue.throttle.has_ended(now)
    }
}

/// Why a request got no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPermit {
    /// No slot came in time.
    Limited(Limited),
    /// There was a slot, and too many attempts of the tenant were in flight.
    NoCapacity,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// A slot, which is free at this moment unless something changes.
    Until(Boot),
    /// A change, or capacity in flight.
    Change,
}

/// A position in both queues, given up when dropped.
struct QueuePosition<'a> {
    pace: &'a Arc<Pace>,
    inflight: &'a Arc<InflightLimit>,
    key: QueueKey,
    waker: Waker,
    /// In the queue for slots.
    place: Place,
    /// In the queue for capacity, while it could have a slot.
    inflight_place: Option<Place>,
}

impl<'a> QueuePosition<'a> {
    fn join(pace: &'a Arc<Pace>, inflight: &'a Arc<InflightLimit>, key: QueueKey) -> Self {
        let waker = Waker::default();
        let place = pace.queue.lock().waiting.join(key, waker.clone());
        Self { pace, inflight, key, waker, place, inflight_place: None }
    }

    /// Takes a slot and capacity if both are free, and it is this position's turn. Whose turn it is, this pace's queue says while
    /// there is capacity; else the queue for capacity does, in which the first requests of all lanes wait that could have a slot,
    /// so that callers take turns whatever the number of their paths.
    fn try_take(&mut self, now: Boot) -> Result<Permit, Wait> {
        let pace = self.pace;
        let mut queue = pace.queue.lock();
        let slot = match queue.waiting.is_first(self.place) {
            true => queue.take(now).map_err(|next| next.map_or(Wait::Change, Wait::Until)),
            false => Err(Wait::Change),
        };
        let claim = slot.inspect_err(|_| self.leave_inflight())?;
        let inflight_place = *self.inflight_place.get_or_insert_with(|| self.inflight.join(self.key, &self.waker));
        let is_allowed =
            queue.waiting.next().is_some_and(|(next, waker)| next == self.place || waker.awaits_capacity());
        let capacity = is_allowed.then(|| self.inflight.take(inflight_place, &self.waker)).flatten();
        let Some(capacity) = capacity else {
            queue.give_back(claim);
            return Err(Wait::Change);
        };
        self.inflight_place = None;
        queue.waiting.serve(self.place);
        Ok(Permit::new(self.pace, claim, capacity))
    }

    fn leave_inflight(&mut self) {
        if let Some(place) = self.inflight_place.take() {
            self.inflight.leave(place, &self.waker);
        }
    }

    /// How long this position has to wait at least.
    fn limited(&self, now: Boot) -> Limited {
        let queue = self.pace.queue.lock();
        queue.limited(queue.earliest(self.place, now).since(now))
    }
}

impl Drop for QueuePosition<'_> {
    fn drop(&mut self) {
        self.leave_inflight();
        let mut queue = self.pace.queue.lock();
        queue.waiting.leave(self.place);
        queue.wake_firsts();
    }
}

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
    fn new(pace: &Arc<Pace>, claim: Option<Claim>, capacity: InflightPermit) -> Self {
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

#[cfg(test)]
mod tests;
