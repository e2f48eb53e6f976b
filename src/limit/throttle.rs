//! What follows when the platform throttles although its rate limit was kept, as a pure function of when it did: others may
//! use the same identity, and only the platform knows how much they do.

use std::time::Duration;

use crate::backoff::Backoff;
use crate::clock::Boot;

/// The longest pause, unless one window is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The longest pause that the platform may ask for by `Retry-After`.
const LONGEST_ASKED: Duration = Duration::from_secs(60);
/// After so long without throttling everything is as before.
const QUIET: Duration = Duration::from_secs(60);
/// The platform has one code for too many calls and for a refused signature: for so long after credentials or the signing clock
/// changed, it is taken for the latter.
const CREDENTIALS_GRACE: Duration = Duration::from_secs(5);

/// Each time in a row that the platform throttles, the pause doubles, from one `per` on, and half as many calls are allowed in a
/// window after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ThrottleState {
    per: Duration,
    /// How often in a row the platform throttled calls that were sent after the last pause.
    consecutive: u32,
    /// When it last throttled.
    last: Boot,
    /// Until when nothing is sent.
    paused_until: Boot,
    /// Until when throttling is ignored.
    ignore_until: Boot,
    /// Whether the platform asked for a pause whose end was not reported yet.
    was_awaited_to_pause: bool,
}

/// What ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Throttling: a window allows so many calls again; 0: any number.
    Throttling {
        /// Those calls.
        rate: u32,
    },
    /// A pause that the platform asked for.
    Pause,
}

/// Longer pauses are news.
const NOTICEABLE: Duration = Duration::from_millis(500);

impl ThrottleState {
    pub(super) const fn new(per: Duration) -> Self {
        let start = Boot::from_duration(Duration::ZERO);
        Self { per, consecutive: 0, last: start, paused_until: start, ignore_until: start, was_awaited_to_pause: false }
    }

    /// A call that was sent at `sent` was throttled; returns the pause that begins, if one does.
    pub(super) fn throttled(&mut self, sent: Boot, now: Boot) -> Option<Duration> {
        if now < self.ignore_until {
            return None;
        }
        let consecutive = self.consecutive(now);
        self.last = now;
        // Calls that were in flight when the pause began are no news.
        if consecutive > 0 && sent < self.paused_until {
            return None;
        }
        self.consecutive = consecutive.saturating_add(1);
        let pause = Backoff::new(self.per, LONGEST_PAUSE.max(self.per)).pause(consecutive);
        self.paused_until = now + pause;
        Some(pause)
    }

    /// The platform asked for a pause; returns whether one begins, or becomes noticeably longer.
    pub(super) fn pause(&mut self, pause: Duration, now: Boot) -> bool {
        let until = now + pause.min(LONGEST_ASKED);
        let is_news = until > self.paused_until.max(now) + NOTICEABLE;
        self.paused_until = self.paused_until.max(until);
        self.was_awaited_to_pause |= is_news;
        is_news
    }

    /// Changes the length of a window.
    pub(super) const fn reconfigure(&mut self, per: Duration) {
        self.per = per;
    }

    /// Credentials or the signing clock changed: what looked like throttling just before may have been refused signatures,
    /// and so may what looks like it for a while.
    pub(super) fn credentials_changed(&mut self, now: Boot) {
        if now < self.last + CREDENTIALS_GRACE {
            let was_awaited_to_pause = self.was_awaited_to_pause;
            *self = Self { was_awaited_to_pause, ..Self::new(self.per) };
        }
        self.ignore_until = now + CREDENTIALS_GRACE;
    }

    /// What has ended since this was last asked. What the platform asked for ends with the throttling that it began in.
    pub(super) fn take_end(&mut self, rate: u32, now: Boot) -> Option<Ended> {
        if !self.has_ended(now) {
            return None;
        }
        let was_awaited_to_pause = std::mem::take(&mut self.was_awaited_to_pause);
        match std::mem::take(&mut self.consecutive) {
            0 => was_awaited_to_pause.then_some(Ended::Pause),
            _ => Some(Ended::Throttling { rate }),
        }
    }

    /// Until when nothing is sent, if that lies ahead.
    pub(super) fn paused_until(&self, now: Boot) -> Option<Boot> {
        (self.paused_until > now).then_some(self.paused_until)
    }

    /// How many of `rate` calls a window may have, pauses apart.
    pub(super) fn allowed(&self, rate: usize, now: Boot) -> usize {
        rate.checked_shr(self.consecutive(now)).unwrap_or_default().max(rate.min(1))
    }

    /// When everything will be as before, if the platform does not throttle again.
    pub(super) fn ends_at(&self) -> Boot {
        self.paused_until.max(self.last + QUIET)
    }

    /// Whether everything is as before.
    pub(super) fn has_ended(&self, now: Boot) -> bool {
        self.consecutive(now) == 0 && self.paused_until <= now
    }

    /// Whether the platform throttled of late.
    pub(super) fn is_throttled(&self, now: Boot) -> bool {
        self.consecutive(now) > 0
    }

    fn consecutive(&self, now: Boot) -> u32 {
        if now < self.last + QUIET { self.consecutive } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Boot {
        Boot::from_duration(Duration::from_secs(1000 + seconds))
    }

    fn pause_after(throttle: &ThrottleState, now: Boot) -> u64 {
        throttle.paused_until(now).map_or(0, |until| until.since(now).as_secs())
    }

    #[test]
    fn pauses_double_from_one_window_to_half_a_minute_and_calls_halve() {
        let mut throttle = ThrottleState::new(Duration::from_secs(1));
        let mut now = at(0);
        assert!(throttle.has_ended(now));
        for (pause, allowed) in [(1, 5), (2, 2), (4, 1), (8, 1), (16, 1), (30, 1), (30, 1)] {
            throttle.throttled(now, now);
            assert_eq!((pause_after(&throttle, now), throttle.allowed(10, now)), (pause, allowed));
            now = now + Duration::from_secs(pause);
            assert_eq!(throttle.paused_until(now), None);
        }
    }

    #[test]
    fn throttled_calls_that_were_in_flight_together_count_once() {
        let mut throttle = ThrottleState::new(Duration::from_secs(1));
        throttle.throttled(at(0), at(10));
        throttle.throttled(at(0), at(10));
        throttle.throttled(at(9), at(12));
        assert_eq!(throttle.allowed(10, at(12)), 5);
        assert_eq!(throttle.paused_until(at(12)), None);
        throttle.throttled(at(11), at(12));
        assert_eq!((pause_after(&throttle, at(12)), throttle.allowed(10, at(12))), (2, 2));
    }

    #[test]
    fn throttling_ends_after_a_quiet_minute() {
        let mut throttle = ThrottleState::new(Duration::from_secs(1));
        throttle.throttled(at(0), at(0));
        throttle.throttled(at(2), at(2));
        assert_eq!(throttle.allowed(10, at(61)), 2);
        assert_eq!((throttle.allowed(10, at(62)), throttle.ends_at()), (10, at(62)));
        assert!(throttle.has_ended(at(62)));
        throttle.throttled(at(70), at(70));
        assert_eq!(pause_after(&throttle, at(70)), 1, "the next pause is short again");
    }

    #[test]
    fn a_pause_that_the_platform_asks_for_is_kept_up_to_a_minute() {
        let mut throttle = ThrottleState::new(Duration::from_secs(1));
        assert!(!throttle.pause(Duration::ZERO, at(0)));
        assert!(throttle.pause(Duration::from_secs(7), at(0)));
        assert!(!throttle.pause(Duration::from_secs(3), at(1)), "it lasts already");
        assert_eq!((pause_after(&throttle, at(1)), throttle.allowed(10, at(7))), (6, 10));
        assert!(throttle.pause(Duration::from_secs(3600), at(7)));
        assert_eq!(pause_after(&throttle, at(7)), 60);
    }

    #[test]
    fn the_pause_is_at_least_one_window_long() {
        let mut throttle = ThrottleState::new(Duration::from_secs(3600));
        throttle.throttled(at(0), at(0));
        assert_eq!(pause_after(&throttle, at(0)), 3600);
        assert!(!throttle.has_ended(at(61)));
    }

    #[test]
    fn a_rate_of_zero_stays_zero_and_one_stays_one() {
        let mut throttle = ThrottleState::new(Duration::from_secs(1));
        throttle.throttled(at(0), at(0));
        assert_eq!((throttle.allowed(0, at(0)), throttle.allowed(1, at(0))), (0, 1));
    }

    #[test]
    fn throttling_around_a_change_of_credentials_does_not_count() {
        let mut throttle = ThrottleState::new(Duration::from_secs(1));
        throttle.throttled(at(0), at(0));
        throttle.credentials_changed(at(5));
        assert!(!throttle.has_ended(at(5)), "throttling long before a change counts");
        let mut throttle = ThrottleState::new(Duration::from_secs(1));
        throttle.throttled(at(0), at(0));
        throttle.credentials_changed(at(0));
        assert!(throttle.has_ended(at(0)));
        throttle.throttled(at(4), at(4));
        assert!(throttle.has_ended(at(4)));
        throttle.throttled(at(5), at(5));
        assert_eq!(pause_after(&throttle, at(5)), 1);
    }
}
