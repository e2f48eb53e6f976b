//! The one clock of the process.
//!
//! Every decision about time takes a [`Now`], so that it can be tested at any moment; only this module asks the system.

use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// A moment on the wall clock, in milliseconds since the Unix epoch. It may step when an operator or NTP corrects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wall(i64);

impl Wall {
    /// The moment `seconds` after the Unix epoch.
    pub const fn from_unix_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// The moment `millis` after the Unix epoch.
    pub const fn from_unix_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn unix_millis(self) -> i64 {
        self.0
    }

    /// The moment that an HTTP date names (RFC 9110, section 5.6.7).
    pub fn from_http_date(text: &str) -> Option<Self> {
        let since = httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(Self::from_unix_seconds(i64::try_from(since.as_secs()).ok()?))
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// A moment that never comes.
    pub const NEVER: Self = Self(i64::MAX);

    /// How far `self` lies after `earlier`; `None` where it does not lie after it.
    pub fn after(self, earlier: Self) -> Option<Duration> {
        let ahead = u64::try_from(self.0.saturating_sub(earlier.0)).ok()?;
        (ahead > 0).then(|| Duration::from_millis(ahead))
    }

    /// The moment so many milliseconds later, or earlier.
    pub const fn plus(self, millis: i64) -> Self {
        Self(self.0.saturating_add(millis))
    }
}

/// How many milliseconds of the wall clock had passed when the clock since boot began to count.
impl Sub<Boot> for Wall {
    type Output = i64;

    fn sub(self, boot: Boot) -> i64 {
        self.0.saturating_sub(i64::try_from(boot.as_duration().as_millis()).unwrap_or(i64::MAX))
    }
}

impl Sub<Duration> for Wall {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }
}

/// A moment on the clock that counts since boot, suspended time included (`CLOCK_BOOTTIME`), in nanoseconds: it never steps,
/// and half a millennium fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Boot(u64);

const NANOS_PER_MILLI: u64 = 1_000_000;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

impl Boot {
    /// A moment that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// The moment `since_boot` after boot.
    pub const fn from_duration(since_boot: Duration) -> Self {
        Self(nanos(since_boot))
    }

    /// Time since boot.
    pub const fn as_duration(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// Nanoseconds since boot.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// Whole seconds since boot.
    pub const fn seconds(self) -> u64 {
        self.0 / NANOS_PER_SECOND
    }

    /// The same as fewer bits, which suffice for 136 years.
    pub fn whole_seconds(self) -> u32 {
        u32::try_from(self.seconds()).unwrap_or(u32::MAX)
    }

    /// Tenths of a second since boot, rounded up; thirteen years fit.
    pub fn tenths(self) -> u32 {
        u32::try_from(self.millis().div_ceil(100)).unwrap_or(u32::MAX)
    }

    /// So many tenths of a second since boot.
    pub const fn from_tenths(tenths: u32) -> Self {
        Self::from_duration(Duration::from_millis(tenths as u64 * 100))
    }

    /// Milliseconds since boot, rounded up.
    pub const fn millis(self) -> u64 {
        self.0.div_ceil(NANOS_PER_MILLI)
    }

    /// How far `self` lies after `earlier`; zero where it does not.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A span in whole milliseconds, as the log shows it.
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A span in nanoseconds, as many as can be counted.
const fn nanos(span: Duration) -> u64 {
    span.as_secs().saturating_mul(NANOS_PER_SECOND).saturating_add(span.subsec_nanos() as u64)
}

impl Add<Duration> for Boot {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(nanos(span)))
    }
}

impl Sub<Duration> for Boot {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(span)))
    }
}

/// Both clocks, read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The wall clock.
    pub wall: Wall,
    /// The clock since boot.
    pub boot: Boot,
}

/// Where the time comes from; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<Hands>>);

impl Clock {
    /// The system's clocks.
    pub const fn system() -> Self {
        Self(None)
    }

    /// The system's clocks, moved by the hands that come with them: for tests.
    pub fn shifted() -> (Self, Arc<Hands>) {
        let hands = Arc::new(Hands::default());
        (Self(Some(Arc::clone(&hands))), hands)
    }

    /// Reads both clocks.
    pub fn now(&self) -> Now {
        Now { wall: self.wall(), boot: self.boot() }
    }

    /// Reads the wall clock.
    pub fn wall(&self) -> Wall {
        let time = clock_gettime(ClockId::Realtime);
        let millis = time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000);
        let shift = self.0.as_ref().map_or(0, |hands| hands.wall.load(Ordering::Relaxed));
        Wall(millis.saturating_add(shift))
    }

    /// Reads the clock since boot.
    pub fn boot(&self) -> Boot {
        let time = clock_gettime(ClockId::Boottime);
        let since = Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0));
        let boot = Boot::from_duration(since);
        let Some(hands) = &self.0 else { return boot };
        boot + Duration::from_millis(u64::try_from(hands.boot.load(Ordering::Relaxed)).unwrap_or(0))
    }
}

/// Lets governor keep time by this clock.
impl governor::clock::Clock for Clock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.boot().as_duration()
    }
}

/// Moves a [`Clock`] made by [`Clock::shifted`].
#[derive(Debug, Default)]
pub struct Hands {
    wall: AtomicI64,
    boot: AtomicI64,
}

impl Hands {
    /// Lets time pass on both clocks, as when the process was idle for so long.
    pub fn advance(&self, span: Duration) {
        let millis = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        self.wall.fetch_add(millis, Ordering::Relaxed);
        self.boot.fetch_add(millis, Ordering::Relaxed);
    }

    /// Steps the wall clock alone, forward or back, as NTP does.
    pub fn step_wall(&self, millis: i64) {
        self.wall.fetch_add(millis, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shifted_clock_moves_both_clocks_or_the_wall_clock_alone() {
        let (clock, hands) = Clock::shifted();
        let start = clock.now();
        hands.advance(Duration::from_secs(100));
        let later = clock.now();
        assert!(later.wall.after(start.wall).unwrap() >= Duration::from_secs(100));
        assert!(later.boot.since(start.boot) >= Duration::from_secs(100));
        hands.step_wall(-3_600_000);
        let stepped = clock.now();
        assert!(start.wall.after(stepped.wall).is_some());
        assert!(stepped.boot >= later.boot);
    }

    #[test]
    fn a_moment_is_not_after_itself() {
        let noon = Wall::from_unix_seconds(1_000);
        assert_eq!(noon.after(noon), None);
        assert_eq!(Wall::from_unix_seconds(-1).unix_seconds(), -1);
    }
}
