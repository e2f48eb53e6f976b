//! Whether upstream is worth asking, as a pure function of how attempts ended.
//!
//! A breaker opens where upstream does not answer, and nothing is sent while it is open. After a pause one attempt
//! probes: its answer closes the breaker, anything else opens it again, for longer.

use std::time::Duration;

use super::recent::Recent;
use crate::clock::Boot;

/// After so long without an answer an attempt counts as unanswered; an answer that comes later changes nothing.
pub(super) const HUNG: Duration = Duration::from_secs(2);
/// Unanswered attempts in a row that open a breaker.
const IN_A_ROW: u32 = 5;
/// Fewer attempts in half a minute tell nothing by the share of them that fails.
const ENOUGH: u32 = 10;
/// Pauses double from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How an attempt ended, as far as it tells of upstream's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// With an answer, whatever its body says.
    Answered,
    /// With an HTTP status of 5xx.
    Failing,
    /// Without an answer, or too late.
    Unanswered,
}

/// The breaker of one tenant.
#[derive(Clone, Debug)]
pub(super) struct Breaker {
    state: State,
    in_a_row: u32,
    attempts: Recent<30>,
    failed: Recent<30>,
    /// How often in a row it opened.
    openings: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    /// Nothing is sent until then.
    Open(Boot),
    /// One attempt is under way, since then.
    Probing(Boot),
}

/// How an attempt was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// As any other.
    Usual,
    /// To probe.
    Probe,
}

impl Breaker {
    pub(super) const fn new() -> Self {
        Self { state: State::Closed, in_a_row: 0, attempts: Recent::new(), failed: Recent::new(), openings: 0 }
    }

    /// Why nothing may be sent: how long until it may be.
    pub(super) fn refusal(&self, now: Boot) -> Option<Duration> {
        let until = match self.state {
            State::Closed => return None,
            State::Open(until) => until,
            State::Probing(since) => since + HUNG,
        };
        let wait = until.since(now);
        // A probe that is late has still to be told of.
        (wait > Duration::ZERO || matches!(self.state, State::Probing(_))).then_some(wait)
    }

    /// Lets an attempt through.
    pub(super) fn admit(&mut self, now: Boot) -> Result<Admission, Duration> {
        match (self.refusal(now), self.state) {
            (Some(wait), _) => Err(wait),
            (None, State::Open(_)) => {
                self.state = State::Probing(now);
                Ok(Admission::Probe)
            }
            (None, State::Closed | State::Probing(_)) => Ok(Admission::Usual),
        }
    }

    /// Whether it is not closed.
    pub(super) fn is_open(&self) -> bool {
        self.state != State::Closed
    }

    /// An attempt ended; `chance`, from 0 to 1, spreads the reopening of many gateways.
    pub(super) fn ended(&mut self, admission: Admission, health: Health, chance: f64, now: Boot) {
        match (admission, self.state) {
            (Admission::Probe, _) if health == Health::Answered => *self = Self::new(),
            (Admission::Probe, _) => self.open(chance, now),
            (Admission::Usual, State::Closed) => {
                self.attempts.add(now);
                if health != Health::Answered {
                    self.failed.add(now);
                }
                self.in_a_row = if health == Health::Unanswered { self.in_a_row + 1 } else { 0 };
                let attempts = self.attempts.count(now);
                let half_failed = attempts >= ENOUGH && self.failed.count(now) * 2 >= attempts;
                if self.in_a_row >= IN_A_ROW || half_failed {
                    self.open(chance, now);
                }
            }
            // It was let through before the breaker opened.
            (Admission::Usual, State::Open(_) | State::Probing(_)) => {}
        }
    }

    /// A probe was given up before it told anything: the next attempt probes.
    pub(super) fn given_up(&mut self, admission: Admission, now: Boot) {
        if admission == Admission::Probe {
            self.state = State::Open(now);
        }
    }

    fn open(&mut self, chance: f64, now: Boot) {
        let pause = FIRST_PAUSE.saturating_mul(1u32.checked_shl(self.openings).unwrap_or(u32::MAX)).min(LONGEST_PAUSE);
        let openings = self.openings.saturating_add(1);
        *self = Self {
            state: State::Open(now + pause.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)),
            openings,
            ..Self::new()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Boot {
        Boot::from_duration(Duration::from_millis(1_000_000 + millis))
    }

    fn after(outcomes: &[Health]) -> Breaker {
        let mut breaker = Breaker::new();
        for health in outcomes {
            breaker.ended(Admission::Usual, *health, 1.0, at(0));
        }
        breaker
    }

    use Health::{Answered, Failing, Unanswered};

    #[test]
    fn five_unanswered_attempts_in_a_row_open_it() {
        assert!(!after(&[Unanswered; 4]).is_open());
        assert!(after(&[Unanswered; 5]).is_open());
        assert!(!after(&[Unanswered, Unanswered, Unanswered, Unanswered, Answered, Unanswered]).is_open());
        assert!(!after(&[Unanswered, Unanswered, Unanswered, Unanswered, Failing, Unanswered]).is_open());
    }

    #[test]
    fn half_of_at_least_ten_attempts_failing_open_it() {
        assert!(!after(&[Failing; 9]).is_open(), "nine are not enough");
        assert!(after(&[Failing; 10]).is_open());
        assert!(after(&[[Answered, Failing]; 5].concat()).is_open());
        assert!(!after(&[[Failing; 4].as_slice(), &[Answered; 6]].concat()).is_open());
    }

    #[test]
    fn failures_older_than_half_a_minute_do_not_count() {
        let mut breaker = after(&[Failing; 9]);
        for _ in 0..5 {
            breaker.ended(Admission::Usual, Failing, 1.0, at(31_000));
        }
        assert!(!breaker.is_open());
    }

    #[test]
    fn one_attempt_probes_and_its_answer_closes() {
        let mut breaker = after(&[Unanswered; 5]);
        assert_eq!(breaker.admit(at(400)), Err(Duration::from_millis(600)));
        assert_eq!(breaker.admit(at(1000)), Ok(Admission::Probe));
        assert_eq!(breaker.admit(at(1500)), Err(Duration::from_millis(1500)), "one at a time");
        assert_eq!(breaker.admit(at(9000)), Err(Duration::ZERO), "as long as nothing is known of it");
        breaker.ended(Admission::Usual, Answered, 1.0, at(9000));
        assert!(breaker.is_open(), "an attempt from before it opened tells nothing");
        breaker.ended(Admission::Probe, Answered, 1.0, at(9000));
        assert_eq!((breaker.is_open(), breaker.admit(at(9000))), (false, Ok(Admission::Usual)));
    }

    #[test]
    fn a_probe_that_fails_opens_it_for_longer_and_one_that_was_not_made_for_no_longer() {
        let mut breaker = after(&[Unanswered; 5]);
        let mut now = 0;
        for pause in [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            assert_eq!(breaker.refusal(at(now)), Some(Duration::from_millis(pause)));
            now += pause;
            assert_eq!(breaker.admit(at(now)), Ok(Admission::Probe));
            breaker.given_up(Admission::Probe, at(now));
            assert_eq!(breaker.admit(at(now)), Ok(Admission::Probe));
            breaker.ended(Admission::Probe, Failing, 1.0, at(now));
        }
    }

    proptest! {
        #[test]
        fn reopening_is_spread_over_half_of_the_pause(chance in 0.0f64..=1.0) {
            let mut breaker = after(&[Unanswered; 4]);
            breaker.ended(Admission::Usual, Unanswered, chance, at(0));
            let pause = breaker.refusal(at(0)).unwrap();
            prop_assert!((Duration::from_millis(500)..=Duration::from_secs(1)).contains(&pause));
        }

        /// An upstream that answers, whatever it says, is never cut off.
        #[test]
        fn answers_never_open_it(count in 0usize..200) {
            prop_assert!(!after(&vec![Answered; count]).is_open());
        }
    }
}
