//! The queue for upstream's pace: each waits for its turn, for a bounded time.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::backoff::Backoff;
use super::line::Line;
use super::{Claim, Claimant, Limited, Slots};
use crate::clock::{Boot, Clock};
use crate::settings::PaceSettings;

/// The pace of one tenant and route.
#[derive(Debug)]
pub struct Pace {
    queue: Mutex<Queue>,
    clock: Clock,
}

#[derive(Debug)]
struct Queue {
    settings: PaceSettings,
    slots: Slots,
    backoff: Backoff,
    line: Line<Ticket>,
}

/// How somebody who waits is woken.
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

    /// Takes a slot, if upstream's pace has one now.
    fn take(&mut self, now: Boot) -> Result<Option<Claim>, Option<Boot>> {
        if let Some(pause) = self.backoff.pause(now) {
            return Err(Some(pause));
        }
        let rate = self.rate();
        if rate == 0 {
            return Ok(None);
        }
        let allowed = self.backoff.allowed(rate, now);
        let claim = self.slots.take(allowed, now).ok_or_else(|| {
            let next = self.slots.next_free(allowed);
            // When the back-off is over, more slots are allowed at once.
            if allowed < rate {
                Some(next.map_or(self.backoff.over(), |next| next.min(self.backoff.over())))
            } else {
                next
            }
        });
        claim.map(Some)
    }

    /// The earliest moment at which somebody with `ahead` others before him can get a turn, if they stay.
    fn earliest(&self, ahead: usize, now: Boot) -> Boot {
        let rate = self.rate();
        let from = self.backoff.pause(now).unwrap_or(now);
        if rate == 0 {
            return from;
        }
        let held_back = self.slots.earliest(ahead, self.backoff.allowed(rate, now), now, from);
        held_back.min(self.slots.earliest(ahead, rate, now, from.max(self.backoff.over())))
    }

    fn wake_next(&self) {
        if let Some(next) = self.line.next() {
            next.0.notify_one();
        }
    }
}

impl Pace {
    /// A pace; `counted` is when upstream may last have counted a call that nobody here knows of.
    pub(super) fn new(settings: PaceSettings, counted: Option<Boot>, clock: &Clock) -> Arc<Self> {
        let (slots, backoff) = (Slots::new(&settings, counted), Backoff::new(settings.per));
        let queue = Queue { settings, slots, backoff, line: Line::default() };
        Arc::new(Self { queue: Mutex::new(queue), clock: clock.clone() })
    }

    /// Keeps another pace from now on, and forgets nothing.
    pub(super) fn adopt(&self, settings: PaceSettings) {
        let mut queue = self.queue.lock();
        if queue.settings != settings {
            queue.settings = settings;
            queue.slots.adopt(&settings);
            queue.backoff.adopt(settings.per);
            queue.wake_next();
        }
    }

    /// Waits for a turn, `max_wait` at most. Leaving the queue frees the place.
    ///
    /// # Errors
    /// At once where no turn can come in time, else when the time is over.
    pub async fn turn(self: &Arc<Self>, who: Claimant, max_wait: Duration) -> Result<Turn, Limited> {
        let arrived = self.clock.boot();
        let place = Place::join(self, who);
        let limited = place.limited(arrived);
        if limited.retry_after > max_wait {
            return Err(limited);
        }
        loop {
            let now = self.clock.boot();
            let next = match place.step(now) {
                Ok(claim) => return Ok(Turn { pace: Arc::clone(self), claim }),
                Err(next) => next,
            };
            let left = (arrived + max_wait).since(now);
            if left.is_zero() {
                return Err(place.limited(now));
            }
            let pause = next.map_or(left, |next| next.since(now).min(left));
            // Either the time has come, or something changed: look again.
            let _ = tokio::time::timeout(pause, place.ticket.0.notified()).await;
        }
    }

    /// A turn that nobody waits for, at once or not at all.
    pub fn spare_turn(self: &Arc<Self>) -> Option<Turn> {
        let mut queue = self.queue.lock();
        if !queue.line.is_empty() {
            return None;
        }
        let claim = queue.take(self.clock.boot()).ok()?;
        Some(Turn { pace: Arc::clone(self), claim })
    }

    /// Signatures are made otherwise from now on.
    pub(super) fn resigned(&self) {
        let mut queue = self.queue.lock();
        queue.backoff.resigned(self.clock.boot());
        queue.wake_next();
    }

    /// Calls that a window allows now; without a pace, infinitely many.
    pub(super) fn allowed(&self, now: Boot) -> f64 {
        let queue = self.queue.lock();
        match (queue.backoff.pause(now), queue.rate()) {
            (Some(_), _) => 0.0,
            (None, 0) => f64::INFINITY,
            (None, rate) => u32::try_from(queue.backoff.allowed(rate, now)).map_or(f64::INFINITY, f64::from),
        }
    }

    /// Whether a new pace in its place would do as well.
    pub(super) fn is_idle(&self, now: Boot) -> bool {
        let queue = self.queue.lock();
        queue.line.is_empty() && queue.slots.are_all_free(now) && queue.backoff.is_over(now)
    }
}

/// A place in the queue, left when dropped.
struct Place<'a> {
    pace: &'a Pace,
    ticket: Ticket,
}

impl<'a> Place<'a> {
    fn join(pace: &'a Pace, who: Claimant) -> Self {
        let ticket = Ticket(Arc::new(Notify::new()));
        pace.queue.lock().line.join(who, ticket.clone());
        Self { pace, ticket }
    }

    /// Takes its turn. Else tells until when nothing changes by itself; `None`: only the others can change it.
    fn step(&self, now: Boot) -> Result<Option<Claim>, Option<Boot>> {
        let mut queue = self.pace.queue.lock();
        if queue.line.next() != Some(&self.ticket) {
            return Err(None);
        }
        let claim = queue.take(now)?;
        queue.line.serve();
        Ok(claim)
    }

    /// How long until this place can come to its turn at the earliest.
    fn limited(&self, now: Boot) -> Limited {
        let queue = self.pace.queue.lock();
        queue.limited(queue.earliest(queue.line.ahead(&self.ticket), now).since(now))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queue = self.pace.queue.lock();
        queue.line.leave(&self.ticket);
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

/// Leave to make one call. Its slot cools from what becomes of the call; dropped before the call left, it is free again.
#[derive(Debug)]
pub struct Turn {
    pace: Arc<Pace>,
    /// `None`: there is no pace to keep.
    claim: Option<Claim>,
}

impl Turn {
    /// The call's last byte left just now.
    pub fn sent(&self) {
        self.tell(Slots::sent);
    }

    /// The call was answered just now.
    pub fn answered(&self) {
        self.tell(Slots::answered);
    }

    /// The call, which was sent at `sent`, was throttled; returns what follows from it, if it is news.
    pub fn throttled(&self, sent: Boot) -> Option<Throttled> {
        let mut queue = self.pace.queue.lock();
        let now = self.pace.clock.boot();
        let pause = queue.backoff.throttled(sent, now);
        queue.wake_next();
        Some(Throttled { pause: pause?, allowed: queue.backoff.allowed(queue.rate(), now), rate: queue.rate() })
    }

    fn tell(&self, change: impl FnOnce(&mut Slots, Claim, Boot)) {
        if let Some(claim) = self.claim {
            let mut queue = self.pace.queue.lock();
            change(&mut queue.slots, claim, self.pace.clock.boot());
            queue.wake_next();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.tell(|slots, claim, _| slots.given_up(claim));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: PaceSettings = PaceSettings { rate: 1, per: Duration::from_millis(40), transit: Duration::ZERO };
    const PATIENCE: Duration = Duration::from_secs(60);

    const fn of(caller: usize, write: bool) -> Claimant {
        Claimant { caller, write }
    }

    /// On one thread, those who wait come in the order in which they were spawned.
    #[tokio::test]
    async fn those_who_wait_are_woken_in_the_order_of_their_turns() {
        let clock = Clock::system();
        let pace = Pace::new(PACE, None, &clock);
        let first = pace.turn(of(0, false), PATIENCE).await.unwrap();
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = tokio::task::JoinSet::new();
        for (name, who) in [(1, of(1, false)), (2, of(1, false)), (3, of(2, false)), (4, of(1, true)), (5, of(1, true))]
        {
            let (pace, served) = (Arc::clone(&pace), Arc::clone(&served));
            waiting.spawn(async move {
                let turn = pace.turn(who, PATIENCE).await.unwrap();
                served.lock().push(name);
                turn.sent();
                turn.answered();
            });
        }
        tokio::task::yield_now().await;
        assert!(pace.spare_turn().is_none(), "a refresh comes last");
        first.sent();
        first.answered();
        drop(first);
        waiting.join_all().await;
        assert_eq!(*served.lock(), [4, 1, 5, 3, 2]);
    }

    #[tokio::test]
    async fn who_cannot_come_to_his_turn_in_time_is_told_at_once_and_leaves_no_place() {
        let clock = Clock::system();
        let hour = PaceSettings { per: Duration::from_secs(3600), ..PACE };
        let pace = Pace::new(hour, None, &clock);
        let first = pace.turn(of(0, false), PATIENCE).await.unwrap();
        first.sent();
        let limited = pace.turn(of(0, false), PATIENCE).await.unwrap_err();
        assert!(limited.retry_after > Duration::from_secs(3590), "{limited:?}");
        assert!(pace.queue.lock().line.is_empty());
    }

    #[tokio::test]
    async fn who_waits_for_a_pause_goes_on_when_it_proves_to_be_none() {
        let clock = Clock::system();
        let pace = Pace::new(PaceSettings { rate: 2, per: Duration::from_secs(30), ..PACE }, None, &clock);
        let turn = pace.turn(of(0, false), PATIENCE).await.unwrap();
        turn.throttled(clock.boot());
        let other = Arc::clone(&pace);
        let waiting = tokio::spawn(async move { other.turn(of(0, false), PATIENCE).await.is_ok() });
        tokio::task::yield_now().await;
        pace.resigned();
        assert!(waiting.await.unwrap());
    }

    /// Half of the slots are held back for a minute: after that, one that cooled long ago is there for the next.
    #[tokio::test]
    async fn the_end_of_a_back_off_may_come_before_the_next_slot() {
        let (clock, hands) = Clock::shifted();
        let pace = Pace::new(PaceSettings { rate: 4, per: Duration::from_secs(40), ..PACE }, None, &clock);
        pace.turn(of(0, false), PATIENCE).await.unwrap().throttled(clock.boot());
        hands.advance(Duration::from_secs(41));
        for _ in 0..2 {
            let turn = pace.turn(of(0, false), Duration::ZERO).await.unwrap();
            turn.sent();
            turn.answered();
        }
        assert!(pace.spare_turn().is_none(), "half of the slots are held back");
        let limited = pace.turn(of(0, false), Duration::ZERO).await.unwrap_err();
        assert!((18..=19).contains(&limited.retry_after.as_secs()), "{limited:?}");
        hands.advance(Duration::from_secs(19));
        assert!(pace.turn(of(0, false), Duration::ZERO).await.is_ok());
    }

    #[tokio::test]
    async fn another_pace_holds_for_those_who_wait_already() {
        let clock = Clock::system();
        let pace = Pace::new(PaceSettings { per: Duration::from_secs(3600), ..PACE }, None, &clock);
        let first = pace.turn(of(0, false), PATIENCE).await.unwrap();
        let other = Arc::clone(&pace);
        let waiting = tokio::spawn(async move { other.turn(of(0, false), PATIENCE).await.is_ok() });
        tokio::task::yield_now().await;
        pace.adopt(PaceSettings { rate: 2, ..PACE });
        assert!(waiting.await.unwrap());
        first.sent();
        pace.adopt(PaceSettings { rate: 0, ..PACE });
        assert!(pace.spare_turn().is_some());
    }

    #[tokio::test]
    async fn a_pause_holds_back_a_route_without_a_pace_too() {
        let (clock, hands) = Clock::shifted();
        let pace = Pace::new(PaceSettings { rate: 0, ..PACE }, None, &clock);
        let turn = pace.turn(of(0, false), Duration::ZERO).await.unwrap();
        assert_eq!(pace.allowed(clock.boot()), f64::INFINITY);
        turn.throttled(clock.boot());
        assert_eq!(pace.allowed(clock.boot()), 0.0);
        assert!(pace.turn(of(0, false), Duration::ZERO).await.is_err() && pace.spare_turn().is_none());
        hands.advance(PACE.per);
        assert!(pace.turn(of(0, false), Duration::ZERO).await.is_ok());
    }
}
