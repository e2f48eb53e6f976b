//! The platform's clock, by the `Date` of its answers (RFC 9110, section 6.6.1).
//!
//! It is remembered relative to the clock since boot, which never steps: if our own wall clock is corrected, by NTP or by hand,
//! nothing has to be learned again.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Boot, Now, Wall};

/// Readings that are remembered; their median counts, so that one outlier does not. Nothing is signed by fewer.
const READINGS: usize = 3;
/// Differences up to this are noise: `Date` has whole seconds, and the two halves of a round trip differ.
const NOISE: i64 = 2_000;
/// Corrections are limited to this: the platform rejects what is further off from its own clock anyway.
const MAX_CORRECTION: i64 = 300_000;
/// The shortest time between two changes that are reported.
const CHANGES_APART: Duration = Duration::from_secs(60);
/// Half of the resolution of `Date`.
const HALF_A_SECOND: i64 = 500;
/// A difference that an operator should know of.
const NOTABLE: u64 = 30_000;
/// One that they need not know of any more: less, so that one near the limit is not reported again and again.
const UNREMARKABLE: u64 = 25_000;
/// The platform's clock is not known.
const UNKNOWN: i64 = i64::MIN;

/// The platform's clock, as far as it is known. All in milliseconds.
#[derive(Debug)]
pub struct Skew {
    /// The platform's wall clock minus our clock since boot.
    base: AtomicI64,
    /// Whether there were enough readings to sign by.
    is_certain: AtomicBool,
    readings: Mutex<Readings>,
    /// Whether calls are signed by it.
    follow: bool,
}

#[derive(Debug, Default)]
struct Readings {
    last: Vec<i64>,
    /// The last change that was reported, and when.
    reported: Option<(i64, Boot)>,
    /// Whether a notable difference was reported.
    notable: bool,
}

/// What a reading changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockChange {
    /// By how many milliseconds signatures are corrected from now on, if that has just changed.
    pub correction: Option<i64>,
    /// How many milliseconds the platform is ahead, if that has just become notable.
    pub notable_skew: Option<i64>,
    /// The same if it has just ceased to be notable.
    pub unremarkable_skew: Option<i64>,
}

impl Skew {
    /// Nothing is known yet. `follow`: whether calls are signed by the platform's clock.
    pub const fn new(follow: bool) -> Self {
        let readings = Readings { last: Vec::new(), reported: None, notable: false };
        Self {
            base: AtomicI64::new(UNKNOWN),
            is_certain: AtomicBool::new(false),
            readings: Mutex::new(readings),
            follow,
        }
    }

    /// Learns from the `Date` of an answer to a request that was sent at `sent` and answered at `answered`.
    pub fn learn(&self, date: Wall, sent: Boot, answered: Now) -> ClockChange {
        // `Date` is half a second old on average, and was written half a round trip before it was received.
        let half = answered.boot.since(sent) / 2;
        let reading = date.plus(HALF_A_SECOND) - (answered.boot - half);
        let mut readings = self.readings.lock();
        if readings.last.len() == READINGS {
            readings.last.remove(0);
        }
        readings.last.push(reading);
        let mut sorted = readings.last.clone();
        sorted.sort_unstable();
        let base = sorted.get((sorted.len() - 1) / 2).copied().unwrap_or(reading);
        self.base.store(base, Ordering::Relaxed);
        if readings.last.len() < READINGS {
            return ClockChange::default();
        }
        self.is_certain.store(true, Ordering::Relaxed);

        let own = answered.wall - answered.boot;
        let (reported, when) = readings.reported.unwrap_or((own, Boot::from_duration(Duration::ZERO)));
        // If several machines with different clocks answer in turn, not every answer is a change.
        let may_report = readings.reported.is_none() || answered.boot.since(when) >= CHANGES_APART;
        let changed = self.follow && may_report && (base - reported).abs() > NOISE;
        if changed {
            readings.reported = Some((base, answered.boot));
        }
        let ahead = self.ahead(answered).unwrap_or_default();
        let was_notable = readings.notable;
        let notable = ahead.unsigned_abs() > if was_notable { UNREMARKABLE } else { NOTABLE };
        readings.notable = notable;
        ClockChange {
            correction: changed.then(|| self.difference(answered)),
            notable_skew: (notable && !was_notable).then_some(ahead),
            unremarkable_skew: (!notable && was_notable).then_some(ahead),
        }
    }

    /// How many milliseconds the platform is ahead of our wall clock.
    pub fn ahead(&self, now: Now) -> Option<i64> {
        let base = self.base.load(Ordering::Relaxed);
        (base != UNKNOWN).then(|| base.saturating_sub(now.wall - now.boot))
    }

    /// The platform's time, once enough answers agree on it: whatever our wall clock says.
    pub fn platform_time(&self, now: Now) -> Option<Wall> {
        self.ahead(now).filter(|_| self.is_certain()).map(|ahead| now.wall.plus(ahead))
    }

    /// Whether enough answers agree on the platform's time.
    fn is_certain(&self) -> bool {
        self.is_certain.load(Ordering::Relaxed)
    }

    /// The time to sign by: the platform's, if it is followed and differs by more than noise.
    pub fn signing_time(&self, now: Now) -> Wall {
        if self.follow { now.wall.plus(self.difference(now)) } else { now.wall }
    }

    /// The time by which coupons end: the later of our wall clock and the platform's, as far as a `Date` in whole seconds is
    /// certain.
    pub fn later(&self, now: Now) -> Now {
        let ahead = self.ahead(now).unwrap_or_default().saturating_sub(HALF_A_SECOND);
        Now { wall: now.wall.plus(ahead.max(0)), ..now }
    }

    /// The earlier of our wall clock and the platform's, in the same way.
    pub fn earlier(&self, now: Now) -> Wall {
        let ahead = self.ahead(now).unwrap_or_default().saturating_sub(HALF_A_SECOND);
        now.wall.plus(ahead.min(0))
    }

    fn difference(&self, now: Now) -> i64 {
        if !self.is_certain() {
            return 0;
        }
        let ahead = self.ahead(now).unwrap_or_default();
        if ahead.abs() > NOISE { ahead.clamp(-MAX_CORRECTION, MAX_CORRECTION) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Our clocks, `seconds` after a start at 1,000,000 s on the wall clock.
    fn ours(seconds: u64) -> Now {
        let wall = Wall::from_unix_seconds(1_000_000).plus(i64::try_from(seconds * 1000).unwrap());
        Now { wall, boot: Boot::from_duration(Duration::from_secs(50 + seconds)) }
    }

    /// Learns from an answer that arrives at `seconds` on our clock, with a `Date` of `ahead` seconds later and a round trip of
    /// 100 ms.
    fn learn(skew: &Skew, seconds: u64, ahead: i64) -> ClockChange {
        let now = ours(seconds);
        let date = Wall::from_unix_seconds(now.wall.unix_seconds() + ahead);
        skew.learn(date, now.boot - Duration::from_millis(100), now)
    }

    /// The same from as many answers as are needed to sign by.
    fn learn_surely(skew: &Skew, seconds: u64, ahead: i64) -> ClockChange {
        let changes: Vec<_> = (0..READINGS).map(|_| learn(skew, seconds, ahead)).collect();
        assert_eq!(changes[..READINGS - 1], [ClockChange::default(); READINGS - 1]);
        changes[READINGS - 1]
    }

    #[test]
    fn nothing_is_signed_by_fewer_than_three_readings_and_coupons_end_by_the_first() {
        let skew = Skew::new(true);
        for _ in 0..READINGS - 1 {
            assert_eq!(learn(&skew, 1, 100), ClockChange::default());
            assert_eq!(skew.signing_time(ours(1)), ours(1).wall);
            assert_eq!(skew.later(ours(1)).wall, ours(1).wall.plus(100_050));
        }
        assert!(learn(&skew, 1, 100).correction.is_some());
        assert_eq!(skew.signing_time(ours(1)), ours(1).wall.plus(100_550));
    }

    #[test]
    fn small_differences_are_not_followed() {
        let skew = Skew::new(true);
        assert_eq!((skew.ahead(ours(0)), skew.signing_time(ours(0))), (None, ours(0).wall));
        for ahead in [-2, 1, 2] {
            assert_eq!(learn(&skew, 1, ahead), ClockChange::default());
            assert_eq!(skew.signing_time(ours(1)), ours(1).wall, "{ahead}");
        }
    }

    #[test]
    fn a_reading_is_corrected_by_half_the_round_trip_and_half_a_second() {
        let skew = Skew::new(true);
        let now = ours(10);
        skew.learn(now.wall.plus(60_000), now.boot - Duration::from_secs(4), now);
        assert_eq!(skew.ahead(now), Some(62_500));
    }

    #[test]
    fn the_median_of_three_readings_counts() {
        let skew = Skew::new(true);
        for ahead in [100, 100, 100, -250] {
            learn(&skew, 1, ahead);
        }
        assert_eq!(skew.ahead(ours(1)), Some(100_550), "one outlier changes nothing");
        assert!(learn(&skew, 1, -250).correction.is_none() && learn(&skew, 61, -250).correction.is_some());
        assert_eq!(skew.signing_time(ours(1)), ours(1).wall.plus(-249_450), "two readings do");
    }

    #[test]
    fn coupons_end_by_the_later_clock_and_corrections_are_limited() {
        let (ahead, behind) = (Skew::new(true), Skew::new(true));
        learn_surely(&ahead, 1, 400);
        learn_surely(&behind, 1, -400);
        assert_eq!((ahead.earlier(ours(1)), behind.earlier(ours(1))), (ours(1).wall, ours(1).wall.plus(-399_950)));
        assert_eq!(ahead.signing_time(ours(1)), ours(1).wall.plus(300_000));
        assert_eq!(
            ahead.later(ours(1)).wall,
            ours(1).wall.plus(400_050),
            "the limit does not apply to the end of coupons"
        );
        assert_eq!(behind.later(ours(1)), ours(1));
        assert_eq!(behind.signing_time(ours(1)), ours(1).wall.plus(-300_000));
    }

    #[test]
    fn a_step_of_our_clock_needs_no_new_reading() {
        let skew = Skew::new(true);
        learn_surely(&skew, 1, 0);
        let stepped = Now { wall: ours(2).wall.plus(-100_000), ..ours(2) };
        assert_eq!(skew.signing_time(stepped), stepped.wall.plus(100_550));
        assert_eq!(skew.later(stepped).wall, stepped.wall.plus(100_050));
    }

    #[test]
    fn without_following_calls_are_signed_by_our_clock_and_coupons_end_by_the_later() {
        let skew = Skew::new(false);
        assert_eq!(learn_surely(&skew, 1, 100), ClockChange { notable_skew: Some(100_550), ..ClockChange::default() });
        assert_eq!((skew.signing_time(ours(1)), skew.later(ours(1)).wall), (ours(1).wall, ours(1).wall.plus(100_050)));
    }

    #[test]
    fn changes_and_notable_differences_are_reported_once() {
        let skew = Skew::new(true);
        assert_eq!(learn_surely(&skew, 1, 10), ClockChange { correction: Some(10_550), ..ClockChange::default() });
        assert_eq!(learn(&skew, 2, 11), ClockChange::default());
        learn(&skew, 3, 40);
        assert_eq!(
            learn(&skew, 4, 40),
            ClockChange { notable_skew: Some(40_550), ..ClockChange::default() },
            "too soon for a change"
        );
        assert_eq!(learn(&skew, 61, 40), ClockChange { correction: Some(40_550), ..ClockChange::default() });
        assert_eq!(learn(&skew, 130, 40), ClockChange::default());
        for second in 131..190 {
            let near_the_limit = learn(&skew, second, 29 + i64::try_from(second % 3).unwrap());
            assert_eq!((near_the_limit.notable_skew, near_the_limit.unremarkable_skew), (None, None));
        }
        learn(&skew, 131, 0);
        assert_eq!(learn(&skew, 132, 0).unremarkable_skew, Some(550));
        learn(&skew, 133, 40);
        assert_eq!(learn(&skew, 134, 40).notable_skew, Some(40_550), "reported again after it had ended");
    }
}
