//! The rate limit of one tenant and path towards the platform: requests wait for a permit, for a bounded time.

use std::sync::Arc;
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
            return Ok(None);
        }
        let allowed = self.throttle.allowed(rate, now);
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
        let queue = Queue { settings, slots, throttle, waiting: FairQueue::default() };
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
        let limited = position.limited(arrived);
        if limited.retry_after > max_wait {
            return Err(limited);
        }
        loop {
            let now = self.clock.boot();
            let next = match position.try_take(now) {
                Ok(claim) => return Ok(Permit { pace: Arc::clone(self), claim }),
                Err(next) => next,
            };
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
        Some(Permit { pace: Arc::clone(self), claim })
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
        queue.waiting.is_empty() && queue.slots.are_all_free(now) && queue.throttle.has_ended(now)
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
    /// `None`: there is no limit.
    claim: Option<Claim>,
}

impl Permit {
    /// The call's last byte was sent just now.
    pub fn sent(&self) {
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
        self.update(|slots, claim, _| slots.abandoned(claim));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: PaceSettings = PaceSettings { rate: 1, per: Duration::from_millis(40), transit: Duration::ZERO };
    const LONG: Duration = Duration::from_secs(60);

    const fn key(caller: usize, write: bool) -> QueueKey {
        QueueKey { caller, write }
    }

    /// On one thread, requests join the queue in the order in which they are spawned.
    #[tokio::test]
    async fn requests_are_woken_in_the_order_of_the_queue() {
        let clock = Clock::system();
        let pace = Pace::new(PACE, None, &clock);
        let first = pace.acquire(key(0, false), LONG).await.unwrap();
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = tokio::task::JoinSet::new();
        for (name, key) in
            [(1, key(1, false)), (2, key(1, false)), (3, key(2, false)), (4, key(1, true)), (5, key(1, true))]
        {
            let (pace, served) = (Arc::clone(&pace), Arc::clone(&served));
            waiting.spawn(async move {
                let permit = pace.acquire(key, LONG).await.unwrap();
                served.lock().push(name);
                permit.sent();
                permit.answered();
            });
        }
        tokio::task::yield_now().await;
        assert!(pace.try_acquire().is_none(), "a refresh has the lowest priority");
        first.sent();
        first.answered();
        drop(first);
        waiting.join_all().await;
        assert_eq!(*served.lock(), [4, 1, 5, 3, 2]);
    }

    #[tokio::test]
    async fn a_request_that_cannot_get_a_permit_in_time_is_rejected_immediately() {
        let clock = Clock::system();
        let hour = PaceSettings { per: Duration::from_secs(3600), ..PACE };
        let pace = Pace::new(hour, None, &clock);
        let first = pace.acquire(key(0, false), LONG).await.unwrap();
        first.sent();
        let limited = pace.acquire(key(0, false), LONG).await.unwrap_err();
        assert!(limited.retry_after > Duration::from_secs(3590), "{limited:?}");
        assert!(pace.queue.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn requests_waiting_for_a_pause_continue_when_credentials_change() {
        let clock = Clock::system();
        let pace = Pace::new(PaceSettings { rate: 2, per: Duration::from_secs(30), ..PACE }, None, &clock);
        let permit = pace.acquire(key(0, false), LONG).await.unwrap();
        permit.throttled(clock.boot());
        let other = Arc::clone(&pace);
        let waiting = tokio::spawn(async move { other.acquire(key(0, false), LONG).await.is_ok() });
        tokio::task::yield_now().await;
        pace.credentials_changed();
        assert!(waiting.await.unwrap());
    }

    /// Half of the slots are held back for a minute; then one that has long been free becomes available.
    #[tokio::test]
    async fn throttling_may_end_before_the_next_slot_is_free() {
        let (clock, hands) = Clock::shifted();
        let pace = Pace::new(PaceSettings { rate: 4, per: Duration::from_secs(40), ..PACE }, None, &clock);
        pace.acquire(key(0, false), LONG).await.unwrap().throttled(clock.boot());
        hands.advance(Duration::from_secs(41));
        for _ in 0..2 {
            let permit = pace.acquire(key(0, false), Duration::ZERO).await.unwrap();
            permit.sent();
            permit.answered();
        }
        assert!(pace.try_acquire().is_none(), "half of the slots are held back");
        let limited = pace.acquire(key(0, false), Duration::ZERO).await.unwrap_err();
        assert!((18..=19).contains(&limited.retry_after.as_secs()), "{limited:?}");
        hands.advance(Duration::from_secs(19));
        assert!(pace.acquire(key(0, false), Duration::ZERO).await.is_ok());
    }

    #[tokio::test]
    async fn a_changed_limit_applies_to_waiting_requests() {
        let clock = Clock::system();
        let pace = Pace::new(PaceSettings { per: Duration::from_secs(3600), ..PACE }, None, &clock);
        let first = pace.acquire(key(0, false), LONG).await.unwrap();
        let other = Arc::clone(&pace);
        let waiting = tokio::spawn(async move { other.acquire(key(0, false), LONG).await.is_ok() });
        tokio::task::yield_now().await;
        pace.reconfigure(PaceSettings { rate: 2, ..PACE });
        assert!(waiting.await.unwrap());
        first.sent();
        pace.reconfigure(PaceSettings { rate: 0, ..PACE });
        assert!(pace.try_acquire().is_some());
    }

    #[tokio::test]
    async fn calls_without_a_limit_count_once_a_limit_is_set() {
        let (clock, hands) = Clock::shifted();
        let limited = PaceSettings { rate: 2, per: Duration::from_secs(10), transit: Duration::from_secs(1) };
        let pace = Pace::new(PaceSettings { rate: 0, ..limited }, None, &clock);
        for _ in 0..9 {
            pace.acquire(key(0, false), Duration::ZERO).await.unwrap().sent();
        }
        pace.reconfigure(limited);
        hands.advance(Duration::from_millis(10_900));
        assert!(pace.try_acquire().is_none(), "the platform may have counted nine calls less than 10 s ago");
        hands.advance(Duration::from_millis(200));
        assert!(pace.try_acquire().is_some());
    }

    #[tokio::test]
    async fn a_pause_applies_without_a_limit_too() {
        let (clock, hands) = Clock::shifted();
        let pace = Pace::new(PaceSettings { rate: 0, ..PACE }, None, &clock);
        let permit = pace.acquire(key(0, false), Duration::ZERO).await.unwrap();
        assert_eq!(pace.allowed(clock.boot()), f64::INFINITY);
        permit.throttled(clock.boot());
        assert_eq!(pace.allowed(clock.boot()), 0.0);
        assert!(pace.acquire(key(0, false), Duration::ZERO).await.is_err() && pace.try_acquire().is_none());
        hands.advance(PACE.per);
        assert!(pace.acquire(key(0, false), Duration::ZERO).await.is_ok());
    }
}
