//! The rate limit of one tenant and path towards the platform: requests wait for a slot and for capacity in flight, for a
//! bounded time.

mod permit;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub use self::permit::{Permit, Throttled};
use super::fair_queue::{FairQueue, Position};
use super::inflight::Waker;
use super::throttle::{Ended, ThrottleState};
use super::{Claim, InflightLimit, Limited, QueueKey, Slots};
use crate::call_state::CallState;
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

    /// The earliest moment at which a request in these positions can get a permit, if those ahead of it stay.
    fn earliest(&self, positions: impl Iterator<Item = Position>, now: Boot) -> Boot {
        let rate = self.rate();
        let from = self.throttle.paused_until(now).unwrap_or(now);
        if rate == 0 {
            return from;
        }
        let ahead = positions.map(|position| self.waiting.ahead(position)).min().unwrap_or_default();
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

    /// Waits for a slot and for capacity in flight, as `wait` says: both are taken together, so that no slot is held by a request
    /// that waits for the other. Whoever joins the call lets it wait in a lane of their own, too, with their own time to wait.
    /// Dropping the future leaves the queues.
    ///
    /// # Errors
    /// At once if no slot can come in time, else when the time has passed.
    pub async fn acquire(
        self: &Arc<Self>,
        inflight: &Arc<InflightLimit>,
        wait: WaitFor<'_>,
    ) -> Result<Permit, NoPermit> {
        let WaitFor { key, max_wait, deadline, call } = wait;
        // Most often nobody waits.
        if let Some(permit) = self.try_acquire(inflight) {
            return Ok(permit);
        }
        let mut position = QueuePosition::join(self, inflight, key);
        let mut until = deadline.min(self.clock.boot() + max_wait);
        let mut has_waited = false;
        loop {
            let now = self.clock.boot();
            for caller in call.callers(position.joined.len()) {
                position.join_lane(QueueKey { caller, ..key });
                until = deadline.min(now + max_wait);
            }
            let wait = match position.try_take(now) {
                Ok(permit) => return Ok(permit),
                Err(wait) => wait,
            };
            let remaining = until.since(now);
            let is_first = !std::mem::replace(&mut has_waited, true);
            if is_first || remaining.is_zero() {
                let limited = position.limited(now);
                if limited.retry_after > remaining {
                    return Err(NoPermit::Limited(limited));
                }
                if remaining.is_zero() {
                    // A slot could have come by now: it was the capacity that did not.
                    return Err(NoPermit::NoCapacity);
                }
            }
            let pause = match wait {
                Wait::Until(next) => next.since(now).min(remaining),
                Wait::Change => remaining,
            };
            // Either the time has come, or something changed: try again.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = position.waker.woken() => {}
                () = call.another_joined() => {}
            }
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

/// Who waits for a permit, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct WaitFor<'a> {
    /// Whose request it is.
    pub key: QueueKey,
    /// How long each of those that wait does so for a permit.
    pub max_wait: Duration,
    /// When everything must have ended.
    pub deadline: Boot,
    /// Who else waits.
    pub call: &'a CallState,
}

/// A position in both queues, given up when dropped.
struct QueuePosition<'a> {
    pace: &'a Arc<Pace>,
    inflight: &'a Arc<InflightLimit>,
    waker: Waker,
    own: Lane,
    /// Those of callers that joined.
    joined: Vec<Lane>,
}

/// A lane in which a position waits.
#[derive(Debug)]
struct Lane {
    key: QueueKey,
    /// In the queue for slots.
    position: Position,
    /// In the queue for capacity, while it could have a slot.
    inflight: Option<Position>,
}

impl<'a> QueuePosition<'a> {
    fn join(pace: &'a Arc<Pace>, inflight: &'a Arc<InflightLimit>, key: QueueKey) -> Self {
        let waker = Waker::default();
        let position = pace.queue.lock().waiting.join(key, waker.clone());
        let own = Lane { key, position, inflight: None };
        Self { pace, inflight, waker, own, joined: Vec::new() }
    }

    fn join_lane(&mut self, key: QueueKey) {
        let position = self.pace.queue.lock().waiting.join(key, self.waker.clone());
        self.joined.push(Lane { key, position, inflight: None });
    }

    fn positions(&self) -> impl Iterator<Item = Position> {
        std::iter::once(&self.own).chain(&self.joined).map(|lane| lane.position)
    }

    fn lanes_mut(&mut self) -> impl Iterator<Item = &mut Lane> {
        std::iter::once(&mut self.own).chain(&mut self.joined)
    }

    /// Takes a slot and capacity if both are free, and it is this position's turn. Whose turn it is, this pace's queue says while
    /// there is capacity; else the queue for capacity does, in which the first requests of all lanes wait that could have a slot,
    /// so that callers take turns whatever the number of their paths.
    fn try_take(&mut self, now: Boot) -> Result<Permit, Wait> {
        let (pace, inflight, waker) = (self.pace, self.inflight, self.waker.clone());
        let mut queue = pace.queue.lock();
        let first = self.positions().find(|position| queue.waiting.is_first(*position));
        let slot = match first {
            Some(_) => queue.take(now).map_err(|next| next.map_or(Wait::Change, Wait::Until)),
            None => Err(Wait::Change),
        };
        let claim = slot.inspect_err(|_| self.leave_inflight())?;
        for lane in self.lanes_mut() {
            lane.inflight.get_or_insert_with(|| inflight.join(lane.key, &waker));
        }
        let next = queue.waiting.next().map(|(next, waker)| (next, waker.awaits_capacity()));
        let own_turn = next.map(|(next, _)| next).filter(|next| self.positions().any(|position| position == *next));
        let is_allowed = own_turn.is_some() || next.is_some_and(|(_, awaits_capacity)| awaits_capacity);
        let mut lanes = self.lanes_mut().filter(|_| is_allowed);
        let Some(capacity) = lanes.find_map(|lane| inflight.take(lane.inflight?, &waker)) else {
            queue.give_back(claim);
            return Err(Wait::Change);
        };
        drop(lanes);
        own_turn.or(first).into_iter().for_each(|position| queue.waiting.serve(position));
        Ok(Permit::new(pace, claim, capacity))
    }

    fn leave_inflight(&mut self) {
        let (inflight, waker) = (self.inflight, self.waker.clone());
        for position in self.lanes_mut().filter_map(|lane| lane.inflight.take()) {
            inflight.leave(position, &waker);
        }
    }

    /// How long this position has to wait at least.
    fn limited(&self, now: Boot) -> Limited {
        let queue = self.pace.queue.lock();
        queue.limited(queue.earliest(self.positions(), now).since(now))
    }
}

impl Drop for QueuePosition<'_> {
    fn drop(&mut self) {
        self.leave_inflight();
        let mut queue = self.pace.queue.lock();
        self.positions().for_each(|position| queue.waiting.leave(position));
        queue.wake_firsts();
    }
}

#[cfg(test)]
mod tests;
