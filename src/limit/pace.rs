//! The rate limit of one tenant and path towards the platform: requests wait for a permit, for a bounded time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::fair_queue::FairQueue;
use super::throttle::ThrottleState;
use super::{Claim, Limited, QueueKey, Slots};
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
    waiting: FairQueue<Ticket>,
    /// Calls in progress that began without a limit, and so have no slot.
    unlimited: usize,
}

/// Wakes a request that waits.
#[derive(Clone, Debug)]
struct Ticket(Arc<Notify>);

impl PartialEq for Ticket {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
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
        let allowed = self.throttle.allowed(rate, now).saturating_sub(self.unlimited);
        let claim = self.slots.take(allowed, now).ok_or_else(|| {
            let next = self.slots.next_free(allowed);
            // When throttling has ended, more slots are allowed at once.
            if allowed < rate {
                Some(next.map_or(self.throttle.ends_at(), |next| next.min(self.throttle.ends_at())))
            } else {
                next
            }
        });
        claim.map(Some)
    }

    /// The earliest moment at which a request behind `ahead` others can get a permit, if they stay.
    fn earliest(&self, ahead: usize, now: Boot) -> Boot {
        let rate = self.rate();
        let from = self.throttle.paused_until(now).unwrap_or(now);
        if rate == 0 {
            return from;
        }
        let held_back = self.slots.earliest(ahead, self.throttle.allowed(rate, now), now, from);
        held_back.min(self.slots.earliest(ahead, rate, now, from.max(self.throttle.ends_at())))
    }

    fn wake_next(&self) {
        if let Some(next) = self.waiting.next() {
            next.0.notify_one();
        }
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
            queue.wake_next();
        }
    }

    /// Waits for a permit, `max_wait` at most. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// At once if no permit can come in time, else when the time is over.
    pub async fn acquire(self: &Arc<Self>, key: QueueKey, max_wait: Duration) -> Result<Permit, Limited> {
        let arrived = self.clock.boot();
        let position = QueuePosition::join(self, key);
        let mut has_waited = false;
        loop {
            let now = self.clock.boot();
            let next = match position.try_take(now) {
                Ok(claim) => return Ok(Permit::new(self, claim)),
                Err(next) => next,
            };
            if !std::mem::replace(&mut has_waited, true) {
                let limited = position.limited(arrived);
                if limited.retry_after > max_wait {
                    return Err(limited);
                }
            }
            let remaining = (arrived + max_wait).since(now);
            if remaining.is_zero() {
                return Err(position.limited(now));
            }
            let pause = next.map_or(remaining, |next| next.since(now).min(remaining));
            // Either the time has come, or something changed: try again.
            let _ = tokio::time::timeout(pause, position.ticket.0.notified()).await;
        }
    }

    /// Takes a permit that nobody waits for, at once or not at all.
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let mut queue = self.queue.lock();
        if !queue.waiting.is_empty() {
            return None;
        }
        let claim = queue.take(self.clock.boot()).ok()?;
        Some(Permit::new(self, claim))
    }

    /// Credentials or the signing clock changed.
    pub(super) fn credentials_changed(&self) {
        let mut queue = self.queue.lock();
        queue.throttle.credentials_changed(self.clock.boot());
        queue.wake_next();
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

/// A position in the queue, given up when dropped.
struct QueuePosition<'a> {
    pace: &'a Pace,
    ticket: Ticket,
}

impl<'a> QueuePosition<'a> {
    fn join(pace: &'a Pace, key: QueueKey) -> Self {
        let ticket = Ticket(Arc::new(Notify::new()));
        pace.queue.lock().waiting.join(key, ticket.clone());
        Self { pace, ticket }
    }

    /// Takes a slot if this position is next and one is free. The error says when to try again; `None`: when something changes.
    fn try_take(&self, now: Boot) -> Result<Option<Claim>, Option<Boot>> {
        let mut queue = self.pace.queue.lock();
        if queue.waiting.next() != Some(&self.ticket) {
            return Err(None);
        }
        let claim = queue.take(now)?;
        queue.waiting.serve();
        Ok(claim)
    }

    /// How long this position has to wait at least.
    fn limited(&self, now: Boot) -> Limited {
        let queue = self.pace.queue.lock();
        queue.limited(queue.earliest(queue.waiting.ahead(&self.ticket), now).since(now))
    }
}

impl Drop for QueuePosition<'_> {
    fn drop(&mut self) {
        let mut queue = self.pace.queue.lock();
        queue.waiting.leave(&self.ticket);
        queue.wake_next();
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

/// Permission to make one call. Its slot stays taken as long as the platform may count the call; dropped before the call was
/// sent, it is free again.
#[derive(Debug)]
pub struct Permit {
    pace: Arc<Pace>,
    /// `None`: there was no limit.
    claim: Option<Claim>,
    was_sent: AtomicBool,
}

impl Permit {
    fn new(pace: &Arc<Pace>, claim: Option<Claim>) -> Self {
        Self { pace: Arc::clone(pace), claim, was_sent: AtomicBool::new(false) }
    }

    /// The call's last byte was sent just now.
    pub fn sent(&self) {
        self.was_sent.store(true, Ordering::Relaxed);
        self.update(Slots::sent);
    }

    /// The call was answered just now.
    pub fn answered(&self) {
        self.update(Slots::answered);
    }

    /// The call, which was sent at `sent`, was throttled; returns what follows from it, if it is news.
    pub fn throttled(&self, sent: Boot) -> Option<Throttled> {
        let mut queue = self.pace.queue.lock();
        let now = self.pace.clock.boot();
        let pause = queue.throttle.throttled(sent, now);
        queue.wake_next();
        Some(Throttled { pause: pause?, allowed: queue.throttle.allowed(queue.rate(), now), rate: queue.rate() })
    }

    /// The platform asked for a pause; returns whether one begins that is news.
    pub fn pause(&self, pause: Duration) -> bool {
        let mut queue = self.pace.queue.lock();
        let begins = queue.throttle.pause(pause, self.pace.clock.boot());
        queue.wake_next();
        begins
    }

    fn update(&self, change: impl FnOnce(&mut Slots, Claim, Boot)) {
        if let Some(claim) = self.claim {
            let mut queue = self.pace.queue.lock();
            change(&mut queue.slots, claim, self.pace.clock.boot());
            queue.wake_next();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.claim.is_some() {
            self.update(|slots, claim, _| slots.abandoned(claim));
            return;
        }
        let mut queue = self.pace.queue.lock();
        queue.unlimited -= 1;
        // There may be a limit by now.
        if queue.rate() > 0 && *self.was_sent.get_mut() {
            let counted = self.pace.clock.boot();
            queue.slots.count(counted);
        }
        queue.wake_next();
    }
}

#[cfg(test)]
mod tests;
