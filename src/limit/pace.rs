//! The rate limit of one tenant and path towards the platform: requests wait for a slot and for capacity in flight, for a
//! bounded time.

mod permit;
mod queue;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub use self::permit::{Permit, Throttled};
use self::queue::{Claimed, Queue};
use super::fair_queue::Position;
use super::inflight::Waker;
use super::sharing::{REPLY_WITHIN, SharedSlot, Sharing, SlotRequest, SlotSource};
use super::throttle::Ended;
use super::{Class, InflightLimit, Limited, QueueKey};
use crate::call_state::{CallState, CallWaiter};
use crate::clock::{Boot, Clock};
use crate::settings::PaceSettings;

/// How soon a shared slot is requested again if there was no answer.
const REQUEST_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// The rate limit of one tenant and path.
#[derive(Debug)]
pub struct Pace {
    queue: Mutex<Queue>,
    clock: Clock,
    sharing: Arc<Sharing>,
    /// By which the place of the shared slots knows it.
    name: Arc<str>,
}

impl Pace {
    /// A limit; `counted` is when the platform may last have counted a call that is not known here.
    pub(super) fn new(
        settings: PaceSettings,
        counted: Option<Boot>,
        clock: &Clock,
        sharing: &Arc<Sharing>,
        name: Arc<str>,
    ) -> Arc<Self> {
        let queue = Mutex::new(Queue::new(settings, counted));
        Arc::new(Self { queue, clock: clock.clone(), sharing: Arc::clone(sharing), name })
    }

    /// The name by which the place of the shared slots knows it.
    pub(super) const fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Changes the limit, and forgets nothing.
    pub(super) fn reconfigure(&self, settings: PaceSettings) {
        let mut queue = self.queue.lock();
        if queue.settings != settings {
            queue.reconfigure(settings, self.clock.boot());
            queue.wake_firsts();
        }
    }

    /// Slots come from elsewhere now.
    pub(super) fn source_changed(&self) {
        self.queue.lock().source_changed();
    }

    /// A shared slot was granted.
    pub(super) fn granted(&self, slot: SharedSlot) {
        let mut queue = self.queue.lock();
        queue.granted(slot).into_iter().for_each(|spare| self.release(spare));
        queue.wake_firsts();
    }

    /// No shared slot is free before `until`.
    pub(super) fn denied(&self, until: Boot) {
        let mut queue = self.queue.lock();
        queue.denied(until);
        queue.wake_firsts();
    }

    /// Nobody knows whether a shared slot is free.
    pub(super) fn not_answered(&self) {
        self.denied(self.clock.boot() + REQUEST_AGAIN_AFTER);
    }

    fn release(&self, slot: SharedSlot) {
        self.sharing.request(SlotRequest::Release(slot));
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
        let began = self.clock.boot();
        let mut until = deadline.min(began + max_wait);
        let mut has_waited = false;
        loop {
            let now = self.clock.boot();
            for CallWaiter { caller, is_batch } in call.waiters(position.joined.len()) {
                let class = if is_batch { Class::Batch } else { Class::Interactive };
                position.join_lane(QueueKey { caller, class, ..key });
                until = deadline.min(now + max_wait);
            }
            let wait = match position.try_take(now) {
                Ok(permit) => return Ok(permit),
                Err(wait) => wait,
            };
            // Whether a shared slot is free is known only once that was answered, however short the request waits.
            let is_shared = self.sharing.source() == SlotSource::Shared;
            let answered = if is_shared { deadline.min(began + REPLY_WITHIN) } else { began };
            let (remaining, waits_for) = (until.since(now), until.max(answered).since(now));
            let is_first = !std::mem::replace(&mut has_waited, true);
            // While cut off, no slot comes earlier than computed.
            let is_cut_off = matches!(self.sharing.source(), SlotSource::CutOff { .. });
            if is_first || is_cut_off || now < answered || waits_for.is_zero() {
                let limited = position.limited(now);
                if limited.retry_after > remaining || (waits_for.is_zero() && is_shared && !self.awaits_capacity()) {
                    return Err(NoPermit::Limited(limited));
                }
                if waits_for.is_zero() {
                    // A slot could have come by now: it was the capacity that did not.
                    return Err(NoPermit::NoCapacity);
                }
            }
            let pause = match wait {
                Wait::Until(next) => next.since(now).min(waits_for),
                Wait::Change => waits_for,
            };
            // Either the time has come, or something changed: try again.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = position.waker.woken() => {}
                () = call.another_joined() => {}
            }
        }
    }

    /// Whether whoever is next waits for capacity, and not for a slot.
    fn awaits_capacity(&self) -> bool {
        self.queue.lock().waiting.next().is_some_and(|(_, waker)| waker.awaits_capacity())
    }

    /// Takes a slot and capacity that nobody waits for, at once or not at all.
    pub fn try_acquire(self: &Arc<Self>, inflight: &Arc<InflightLimit>) -> Option<Permit> {
        let mut queue = self.queue.lock();
        if !queue.waiting.is_empty() || self.sharing.source() == SlotSource::Shared {
            return None;
        }
        let claim = queue.take(self, self.clock.boot()).ok()?;
        let Some(capacity) = inflight.take_spare() else {
            self.give_back(&mut queue, claim);
            return None;
        };
        Some(Permit::new(self, claim, capacity))
    }

    /// Whether there may be a slot to spare in the place of the shared ones, from which it must be requested.
    pub fn may_have_spare(&self) -> bool {
        let queue = self.queue.lock();
        self.sharing.source() == SlotSource::Shared && queue.may_have_spare(self.clock.boot())
    }

    fn give_back(&self, queue: &mut Queue, claim: Claimed) {
        queue.give_back(claim, self.clock.boot()).into_iter().for_each(|spare| self.release(spare));
    }

    /// Another replica's call was throttled.
    pub(super) fn throttled_elsewhere(&self) {
        let (mut queue, now) = (self.queue.lock(), self.clock.boot());
        queue.throttle.throttled(now, now);
        queue.wake_firsts();
    }

    /// The platform asked another replica for a pause.
    pub(super) fn paused_elsewhere(&self, pause: Duration) {
        let mut queue = self.queue.lock();
        queue.throttle.pause(pause, self.clock.boot());
        queue.wake_firsts();
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

    /// How it is used now.
    pub(super) fn usage(&self, now: Boot) -> PaceUsage {
        let (queue, source) = (self.queue.lock(), self.sharing.source());
        let paused_until = queue.nothing_before(source, now);
        let allowed = match (paused_until, queue.rate()) {
            (Some(_), _) => 0.0,
            (None, 0) => f64::INFINITY,
            (None, _) => u32::try_from(queue.allowed(source, now)).map_or(f64::INFINITY, f64::from),
        };
        PaceUsage {
            allowed,
            taken: (source != SlotSource::Shared).then(|| queue.slots.taken(now)),
            waiting: queue.waiting.len(),
            paused_until,
            next: queue.earliest(source, queue.waiting.len(), now),
            is_throttled: queue.throttle.is_throttled(now),
        }
    }

    /// Whether a new limit would behave the same.
    pub(super) fn is_idle(&self, now: Boot) -> bool {
        self.queue.lock().is_idle(now)
    }

    /// Whether no call that this replica made in its own part of the limit is in a window any more.
    pub(super) fn has_cooled(&self, now: Boot) -> bool {
        self.queue.lock().slots.are_all_free(now)
    }
}

/// How a rate limit is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaceUsage {
    /// Calls that a window allows now; without a limit, infinitely many.
    pub allowed: f64,
    /// Slots that are taken; `None`: all replicas share them, and only Redis knows.
    pub taken: Option<usize>,
    /// Calls that wait for a slot.
    pub waiting: usize,
    /// Until when nothing is sent, if that lies ahead.
    pub paused_until: Option<Boot>,
    /// When the next call in line can have a slot at the earliest.
    pub next: Boot,
    /// Whether the platform throttled of late although the limit was kept.
    pub is_throttled: bool,
}

impl PaceUsage {
    /// The same of two limits together: of what they allow the lesser.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            allowed: self.allowed.min(other.allowed),
            taken: self.taken.max(other.taken),
            waiting: self.waiting + other.waiting,
            paused_until: self.paused_until.max(other.paused_until),
            next: self.next.max(other.next),
            is_throttled: self.is_throttled || other.is_throttled,
        }
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
            Some(_) => queue.take(pace, now).map_err(|next| next.map_or(Wait::Change, Wait::Until)),
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
            pace.give_back(&mut queue, claim);
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
        let ahead = self.positions().map(|position| queue.waiting.ahead(position)).min().unwrap_or_default();
        queue.limited(queue.earliest(self.pace.sharing.source(), ahead, now).since(now))
    }
}

impl Drop for QueuePosition<'_> {
    fn drop(&mut self) {
        self.leave_inflight();
        let mut queue = self.pace.queue.lock();
        self.positions().for_each(|position| queue.waiting.leave(position));
        queue.take_unneeded().into_iter().for_each(|spare| self.pace.release(spare));
        queue.wake_firsts();
    }
}

#[cfg(test)]
mod tests;
