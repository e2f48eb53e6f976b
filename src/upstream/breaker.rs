//! A circuit breaker, as a pure function of how attempts ended.
//!
//! It opens after `consecutive` failures in a row, or when at least `ratio` of at least `min_calls` attempts within `window`
//! failed. While it is open nothing is sent. After a pause with jitter it is half-open: one attempt at a time probes. A
//! success closes it, a failure opens it for longer. A slow answer is not a failure.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::recent::Recent;
use crate::backoff::Backoff;
use crate::clock::Boot;
use crate::settings::BreakerSettings;

/// Buckets that a window is divided into.
const BUCKETS: usize = 10;
/// The same, to divide a duration by.
const BUCKETS_IN_WINDOW: u32 = 10;

/// A change of a breaker's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// It opened, for so long.
    Opened(Duration),
    /// It is half-open: an attempt probes.
    HalfOpened,
    /// It closed.
    Closed,
}

/// The state of a breaker, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BreakerPosition {
    /// Everything is sent.
    Closed,
    /// One attempt at a time probes.
    HalfOpen {
        /// Whether an attempt probes now; else the next one will.
        is_probing: bool,
    },
    /// Nothing is sent for so long; then one attempt probes.
    Open(Duration),
}

impl BreakerPosition {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen { .. } => "half-open",
            Self::Open(_) => "open",
        }
    }

    /// Whether calls are rejected now.
    pub const fn rejects(self) -> bool {
        matches!(self, Self::Open(_) | Self::HalfOpen { is_probing: true })
    }
}

impl Serialize for BreakerPosition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A circuit breaker.
#[derive(Clone, Debug)]
pub(super) struct Breaker {
    state: State,
    consecutive: u32,
    attempts: Recent<BUCKETS>,
    failures: Recent<BUCKETS>,
    /// How often it opened since it was last closed.
    openings: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    /// Nothing is sent until then.
    Open(Boot),
    /// The attempt under way has until then; `None`: none is under way.
    HalfOpen(Option<Boot>),
}

/// How an attempt was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// The breaker was closed.
    Normal,
    /// The attempt probes.
    Probe,
}

impl Breaker {
    pub(super) const fn new() -> Self {
        let (attempts, failures) = (Recent::new(Duration::ZERO), Recent::new(Duration::ZERO));
        Self { state: State::Closed, consecutive: 0, attempts, failures, openings: 0 }
    }

    /// Whether an attempt could be admitted.
    ///
    /// # Errors
    /// How long it will not be, as far as is known.
    pub(super) fn check(&self, settings: &BreakerSettings, now: Boot) -> Result<(), Duration> {
        match self.state {
            _ if settings.is_off() => Ok(()),
            State::Open(until) if until > now => Err(until.since(now)),
            State::HalfOpen(Some(until)) => Err(until.since(now)),
            State::Closed | State::Open(_) | State::HalfOpen(None) => Ok(()),
        }
    }

    /// Admits an attempt that has until `deadline`; returns the change of state, if there is one.
    pub(super) fn admit(
        &mut self,
        settings: &BreakerSettings,
        deadline: Boot,
        now: Boot,
    ) -> Result<(Admission, Option<Transition>), Duration> {
        self.check(settings, now)?;
        let transition = match self.state {
            _ if settings.is_off() => return Ok((Admission::Normal, None)),
            State::Closed => return Ok((Admission::Normal, None)),
            State::Open(_) => Some(Transition::HalfOpened),
            State::HalfOpen(_) => None,
        };
        self.state = State::HalfOpen(Some(deadline));
        Ok((Admission::Probe, transition))
    }

    /// Its state at a moment.
    pub(super) fn position(&self, settings: &BreakerSettings, now: Boot) -> BreakerPosition {
        match self.state {
            _ if settings.is_off() => BreakerPosition::Closed,
            State::Closed => BreakerPosition::Closed,
            State::Open(until) if until > now => BreakerPosition::Open(until.since(now)),
            // Nothing but the next attempt ends the pause.
            State::Open(_) => BreakerPosition::HalfOpen { is_probing: false },
            State::HalfOpen(probe) => BreakerPosition::HalfOpen { is_probing: probe.is_some() },
        }
    }

    /// Whether nothing is remembered that a new breaker would not know.
    pub(super) fn is_idle(&self, now: Boot) -> bool {
        self.state == State::Closed && self.consecutive == 0 && self.attempts.count(now) == 0
    }

    /// Records the end of an attempt. `jitter`, from 0 to 1, spreads the pauses of many gateways.
    pub(super) fn record(
        &mut self,
        settings: &BreakerSettings,
        admission: Admission,
        success: bool,
        jitter: f64,
        now: Boot,
    ) -> Option<Transition> {
        match (admission, self.state) {
            (Admission::Probe, _) if success => {
                *self = Self::new();
                Some(Transition::Closed)
            }
            (Admission::Probe, _) => Some(self.open(settings, jitter, now)),
            (Admission::Normal, State::Closed) => {
                self.attempts.set_width(settings.window / BUCKETS_IN_WINDOW);
                self.failures.set_width(settings.window / BUCKETS_IN_WINDOW);
                self.attempts.add(now);
                if success {
                    self.consecutive = 0;
                } else {
                    self.failures.add(now);
                    self.consecutive = self.consecutive.saturating_add(1);
                }
                self.is_over_threshold(settings, now).then(|| self.open(settings, jitter, now))
            }
            // The attempt was admitted before the breaker opened.
            (Admission::Normal, State::Open(_) | State::HalfOpen(_)) => None,
        }
    }

    /// An attempt ended without any result: the next one probes in its place.
    pub(super) fn abandon(&mut self, admission: Admission) {
        if admission == Admission::Probe {
            self.state = State::HalfOpen(None);
        }
    }

    fn is_over_threshold(&self, settings: &BreakerSettings, now: Boot) -> bool {
        let attempts = self.attempts.count(now);
        let share = f64::from(self.failures.count(now)) / f64::from(attempts.max(1));
        let too_many_in_a_row = settings.consecutive > 0 && self.consecutive >= settings.consecutive;
        let too_large_a_share = settings.ratio.0 > 0.0 && attempts >= settings.min_calls && share >= settings.ratio.0;
        too_many_in_a_row || too_large_a_share
    }

    /// Opens for `open_min` to twice as long at first, and with each further opening in a row for twice as long, up to
    /// `open_max`.
    fn open(&mut self, settings: &BreakerSettings, jitter: f64, now: Boot) -> Transition {
        let backoff = Backoff::new(settings.open_min.saturating_mul(2), settings.open_max);
        let pause = backoff.with_equal_jitter(self.openings, jitter).max(settings.open_min);
        let openings = self.openings.saturating_add(1).min(30);
        *self = Self { state: State::Open(now + pause), openings, ..Self::new() };
        Transition::Opened(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use proptest::prelude::*;

    fn settings() -> BreakerSettings {
        Settings::defaults().unwrap().dynamic.attempts.breaker
    }

    fn at(millis: u64) -> Boot {
        Boot::from_duration(Duration::from_millis(1_000_000 + millis))
    }

    fn is_open(breaker: &Breaker, settings: &BreakerSettings) -> bool {
        breaker.position(settings, at(0)) != BreakerPosition::Closed
    }

    const OK: bool = true;
    const FAILED: bool = false;

    fn record_all(breaker: &mut Breaker, settings: &BreakerSettings, outcomes: &[bool], now: Boot) {
        for success in outcomes {
            breaker.record(settings, Admission::Normal, *success, 1.0, now);
        }
    }

    fn after(settings: &BreakerSettings, outcomes: &[bool]) -> Breaker {
        let mut breaker = Breaker::new();
        record_all(&mut breaker, settings, outcomes, at(0));
        breaker
    }

    #[test]
    fn five_consecutive_failures_open_the_breaker() {
        let open = |outcomes: &[bool]| is_open(&after(&settings(), outcomes), &settings());
        assert!(!open(&[FAILED; 4]));
        assert!(open(&[FAILED; 5]));
        assert!(!open(&[FAILED, FAILED, FAILED, FAILED, OK, FAILED, FAILED]));
    }

    #[test]
    fn a_failure_ratio_of_half_of_ten_attempts_opens_the_breaker() {
        let open = |outcomes: &[bool]| is_open(&after(&settings(), outcomes), &settings());
        assert!(!open(&[[OK, FAILED]; 4].concat()), "eight are not enough");
        assert!(open(&[[OK, FAILED]; 5].concat()));
        assert!(!open(&[[OK, OK, FAILED].as_slice(); 5].concat()));
    }

    #[test]
    fn each_threshold_can_be_set_and_disabled() {
        let patient = BreakerSettings { consecutive: 7, ..settings() };
        assert!(
            !is_open(&after(&patient, &[FAILED; 6]), &patient) && is_open(&after(&patient, &[FAILED; 7]), &patient)
        );
        let by_share = BreakerSettings { consecutive: 0, ..settings() };
        assert!(
            !is_open(&after(&by_share, &[FAILED; 9]), &by_share)
                && is_open(&after(&by_share, &[FAILED; 10]), &by_share)
        );
        let in_a_row = BreakerSettings { ratio: crate::settings::Ratio(0.0), ..settings() };
        assert!(!is_open(&after(&in_a_row, &[[OK, FAILED]; 50].concat()), &in_a_row));
        let off = BreakerSettings { consecutive: 0, ..in_a_row };
        let mut breaker = after(&off, &[FAILED; 100]);
        assert!(!is_open(&breaker, &off) && breaker.admit(&off, at(1), at(0)).is_ok());
        let mut open = after(&settings(), &[FAILED; 5]);
        assert_eq!(open.admit(&off, at(1), at(0)), Ok((Admission::Normal, None)), "disabled while it is open");
    }

    #[test]
    fn failures_older_than_the_window_do_not_count() {
        let settings = BreakerSettings { consecutive: 0, window: Duration::from_secs(10), ..settings() };
        let mut breaker = after(&settings, &[FAILED; 9]);
        record_all(&mut breaker, &settings, &[FAILED; 9], at(11_000));
        assert!(!is_open(&breaker, &settings));
        record_all(&mut breaker, &settings, &[FAILED], at(12_000));
        assert!(is_open(&breaker, &settings));
    }

    #[test]
    fn one_attempt_probes_until_its_deadline_and_its_success_closes_the_breaker() {
        let (settings, mut breaker) = (settings(), after(&settings(), &[FAILED; 5]));
        assert_eq!(breaker.admit(&settings, at(9000), at(400)), Err(Duration::from_millis(600)));
        let probe = breaker.admit(&settings, at(9000), at(1000));
        assert_eq!(probe, Ok((Admission::Probe, Some(Transition::HalfOpened))));
        assert_eq!(
            breaker.admit(&settings, at(9500), at(1500)),
            Err(Duration::from_millis(7500)),
            "one probe at a time"
        );
        assert_eq!(breaker.admit(&settings, at(9500), at(9100)), Err(Duration::ZERO), "while the probe is in flight");
        assert_eq!(
            breaker.record(&settings, Admission::Normal, OK, 1.0, at(9000)),
            None,
            "the attempt began before the breaker opened"
        );
        let closed = breaker.record(&settings, Admission::Probe, OK, 1.0, at(9000));
        assert_eq!((closed, is_open(&breaker, &settings)), (Some(Transition::Closed), false));
        assert_eq!(breaker.admit(&settings, at(9500), at(9000)), Ok((Admission::Normal, None)));
    }

    #[test]
    fn a_failed_probe_reopens_for_longer_and_an_abandoned_one_does_not() {
        let (settings, mut breaker, mut now) = (settings(), after(&settings(), &[FAILED; 5]), 0);
        for pause in [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            assert_eq!(breaker.check(&settings, at(now)), Err(Duration::from_millis(pause)));
            assert_eq!(breaker.position(&settings, at(now)), BreakerPosition::Open(Duration::from_millis(pause)));
            now += pause;
            let position = breaker.position(&settings, at(now));
            assert_eq!(position, BreakerPosition::HalfOpen { is_probing: false }, "its time has passed");
            let probe = breaker.admit(&settings, at(now + 1), at(now)).unwrap();
            assert_eq!(probe, (Admission::Probe, Some(Transition::HalfOpened)));
            assert_eq!(breaker.position(&settings, at(now)), BreakerPosition::HalfOpen { is_probing: true });
            breaker.abandon(Admission::Probe);
            assert_eq!(breaker.position(&settings, at(now)), BreakerPosition::HalfOpen { is_probing: false });
            assert_eq!(
                breaker.admit(&settings, at(now + 1), at(now)),
                Ok((Admission::Probe, None)),
                "the next attempt probes"
            );
            breaker.record(&settings, Admission::Probe, FAILED, 1.0, at(now));
        }
    }

    proptest! {
        #[test]
        fn pauses_stay_within_their_bounds(jitter in 0.0f64..=1.0, openings in 0usize..12) {
            let settings = settings();
            let mut breaker = after(&settings, &[FAILED; 4]);
            breaker.record(&settings, Admission::Normal, FAILED, jitter, at(0));
            let mut now = 0;
            for _ in 0..openings {
                now += 30_000;
                breaker.admit(&settings, at(now), at(now)).unwrap();
                breaker.record(&settings, Admission::Probe, FAILED, jitter, at(now));
            }
            let pause = breaker.check(&settings, at(now)).unwrap_err();
            prop_assert!((settings.open_min..=settings.open_max).contains(&pause), "{pause:?}");
        }

        #[test]
        fn successes_never_open_the_breaker(count in 0usize..200) {
            prop_assert!(!is_open(&after(&settings(), &vec![OK; count]), &settings()));
        }
    }
}
