//! What to do where upstream throttles although its pace was kept, as a pure function of when it did: others may use the
//! same identity, and only upstream knows how much they do.

use std::time::Duration;

use crate::clock::Boot;

/// The longest pause, unless one window is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// After so long without being throttled everything is as before.
const QUIET: Duration = Duration::from_secs(60);
/// The platform has one code for too many calls and for a refused signature: for so long after signatures changed, it is
/// taken for the second.
const SETTLING: Duration = Duration::from_secs(5);

/// A pause that doubles with each time, from one `per` on, and half as many calls in a window each time after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    per: Duration,
    /// How often in a row upstream throttled calls that were sent after the last pause.
    strikes: u32,
    /// When it last throttled.
    last: Boot,
    /// Until when nothing is sent.
    pause: Boot,
    /// Until when throttling is passed over.
    deaf: Boot,
}

impl Backoff {
    pub(super) const fn new(per: Duration) -> Self {
        let start = Boot::from_duration(Duration::ZERO);
        Self { per, strikes: 0, last: start, pause: start, deaf: start }
    }

    /// A call that was sent at `sent` was throttled; returns the pause that begins, if one does.
    pub(super) fn throttled(&mut self, sent: Boot, now: Boot) -> Option<Duration> {
        if now < self.deaf {
            return None;
        }
        let strikes = self.strikes(now);
        self.last = now;
        // Calls that were under way when the pause began tell nothing new.
        if strikes > 0 && sent < self.pause {
            return None;
        }
        self.strikes = strikes.saturating_add(1);
        let doubled = self.per.saturating_mul(1u32.checked_shl(strikes).unwrap_or(u32::MAX));
        let pause = doubled.min(LONGEST_PAUSE.max(self.per));
        self.pause = now + pause;
        Some(pause)
    }

    /// Windows are as long as this from now on.
    pub(super) const fn adopt(&mut self, per: Duration) {
        self.per = per;
    }

    /// Signatures are made otherwise from now on: what looked like throttling just before may have been refused signatures,
    /// and so may what looks so for a while.
    pub(super) fn resigned(&mut self, now: Boot) {
        if now < self.last + SETTLING {
            *self = Self::new(self.per);
        }
        self.deaf = now + SETTLING;
    }

    /// Until when nothing is sent, where that lies ahead.
    pub(super) fn pause(&self, now: Boot) -> Option<Boot> {
        (self.pause > now).then_some(self.pause)
    }

    /// How many of `rate` calls a window may have, pauses apart.
    pub(super) fn allowed(&self, rate: usize, now: Boot) -> usize {
        rate.checked_shr(self.strikes(now)).unwrap_or_default().max(rate.min(1))
    }

    /// When everything will be as before, if upstream throttles no more.
    pub(super) fn over(&self) -> Boot {
        self.pause.max(self.last + QUIET)
    }

    /// Whether nothing is remembered.
    pub(super) fn is_over(&self, now: Boot) -> bool {
        self.strikes(now) == 0 && self.pause <= now
    }

    fn strikes(&self, now: Boot) -> u32 {
        if now < self.last + QUIET { self.strikes } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Boot {
        Boot::from_duration(Duration::from_secs(1000 + seconds))
    }

    fn pause_after(backoff: &Backoff, now: Boot) -> u64 {
        backoff.pause(now).map_or(0, |until| until.since(now).as_secs())
    }

    #[test]
    fn pauses_double_from_one_window_to_half_a_minute_and_calls_halve() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        let mut now = at(0);
        assert!(backoff.is_over(now));
        for (pause, allowed) in [(1, 5), (2, 2), (4, 1), (8, 1), (16, 1), (30, 1), (30, 1)] {
            backoff.throttled(now, now);
            assert_eq!((pause_after(&backoff, now), backoff.allowed(10, now)), (pause, allowed));
            now = now + Duration::from_secs(pause);
            assert_eq!(backoff.pause(now), None);
        }
    }

    #[test]
    fn calls_that_were_under_way_count_once_together() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        backoff.throttled(at(0), at(10));
        backoff.throttled(at(0), at(10));
        backoff.throttled(at(9), at(12));
        assert_eq!(backoff.allowed(10, at(12)), 5);
        assert_eq!(backoff.pause(at(12)), None);
        backoff.throttled(at(11), at(12));
        assert_eq!((pause_after(&backoff, at(12)), backoff.allowed(10, at(12))), (2, 2));
    }

    #[test]
    fn a_quiet_minute_brings_everything_back() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        backoff.throttled(at(0), at(0));
        backoff.throttled(at(2), at(2));
        assert_eq!(backoff.allowed(10, at(61)), 2);
        assert_eq!((backoff.allowed(10, at(62)), backoff.over()), (10, at(62)));
        assert!(backoff.is_over(at(62)));
        backoff.throttled(at(70), at(70));
        assert_eq!(pause_after(&backoff, at(70)), 1, "and the next time begins anew");
    }

    #[test]
    fn a_window_longer_than_the_longest_pause_is_paused_for_whole() {
        let mut backoff = Backoff::new(Duration::from_secs(3600));
        backoff.throttled(at(0), at(0));
        assert_eq!(pause_after(&backoff, at(0)), 3600);
        assert!(!backoff.is_over(at(61)));
    }

    #[test]
    fn a_rate_of_nothing_stays_nothing_and_one_stays_one() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        backoff.throttled(at(0), at(0));
        assert_eq!((backoff.allowed(0, at(0)), backoff.allowed(1, at(0))), (0, 1));
    }

    #[test]
    fn throttling_around_a_change_of_signatures_does_not_count() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        backoff.throttled(at(0), at(0));
        backoff.resigned(at(5));
        assert!(!backoff.is_over(at(5)), "what was throttled long before was throttled");
        let mut backoff = Backoff::new(Duration::from_secs(1));
        backoff.throttled(at(0), at(0));
        backoff.resigned(at(0));
        assert!(backoff.is_over(at(0)));
        backoff.throttled(at(4), at(4));
        assert!(backoff.is_over(at(4)));
        backoff.throttled(at(5), at(5));
        assert_eq!(pause_after(&backoff, at(5)), 1);
    }
}
