//! The rate limit of the platform, as a pure function of what was sent, what was answered, and the time.
//!
//! In any window of `per`, the platform may count `rate` calls. A token bucket does not guarantee that: its burst and its refill
//! add up in one window. So there are `rate` slots, and each carries one call at a time. The platform counts a call no later
//! than its answer, and no later than `transit` after its last byte was sent; from the earlier of the two on, the slot stays
//! taken for `per`. Whenever a call is made, all calls that may be counted in the same window then have a slot, and there are
//! at most `rate`.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use crate::clock::Boot;
use crate::settings::PaceSettings;

/// A call that has a slot and was not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It was not sent yet.
    Held,
    /// It was sent, and is counted no later than this.
    Sent(Boot),
}

/// A call's claim to its slot. The slot of a call that was never answered is reused in time; the claim is void then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim(u64);

/// The slots of one tenant and path: each is held by a call that was not sent yet, or in cooldown after one that was.
#[derive(Debug)]
pub struct Slots {
    rate: usize,
    per: Duration,
    transit: Duration,
    calls: u64,
    open: HashMap<u64, State>,
    /// How many of those are held.
    held: usize,
    /// When calls were counted at the latest whose slots are in cooldown, with the calls' numbers.
    cooling: BTreeSet<(Boot, u64)>,
    /// When the last calls before those were counted: a longer `per` puts them back into cooldown.
    earlier: VecDeque<Boot>,
}

impl Slots {
    /// All slots; `counted` is when the platform may last have counted calls that are not known here.
    pub fn new(pace: &PaceSettings, counted: Option<Boot>) -> Self {
        let mut slots = Self {
            rate: 0,
            per: pace.per,
            transit: pace.transit,
            calls: 0,
            open: HashMap::new(),
            held: 0,
            cooling: BTreeSet::new(),
            earlier: VecDeque::new(),
        };
        slots.set(pace);
        counted.into_iter().for_each(|counted| slots.cool_all(counted));
        slots
    }

    /// Changes the limit. What was counted is remembered.
    pub fn reconfigure(&mut self, pace: &PaceSettings) {
        let is_longer = pace.per > self.per;
        self.set(pace);
        if is_longer {
            let earlier = std::mem::take(&mut self.earlier);
            earlier.into_iter().for_each(|counted| self.cool(counted));
        }
    }

    /// Limits calls after a time without a limit: all slots are in cooldown, since the platform may have counted calls that had
    /// no slot until `counted`.
    pub fn limit_again(&mut self, pace: &PaceSettings, counted: Boot) {
        self.set(pace);
        self.cool_all(counted);
    }

    /// A call without a slot was counted at the latest now.
    pub fn count(&mut self, now: Boot) {
        self.cool(now);
    }

    fn set(&mut self, pace: &PaceSettings) {
        self.rate = usize::try_from(pace.rate).unwrap_or(usize::MAX);
        (self.per, self.transit) = (pace.per, pace.transit);
    }

    fn cool(&mut self, counted: Boot) {
        self.calls += 1;
        self.cooling.insert((counted, self.calls));
    }

    fn cool_all(&mut self, counted: Boot) {
        (0..self.rate).for_each(|_| self.cool(counted));
    }

    /// Takes a slot for a call, if fewer than `allowed` are taken.
    pub fn take(&mut self, allowed: usize, now: Boot) -> Option<Claim> {
        while let Some((counted, call)) =
            self.cooling.first().copied().filter(|(counted, _)| *counted + self.per <= now)
        {
            self.cooling.remove(&(counted, call));
            self.earlier.push_back(counted);
        }
        let excess = self.earlier.len().saturating_sub(self.rate);
        self.earlier.drain(..excess);
        if self.held + self.cooling.len() >= allowed {
            return None;
        }
        self.calls += 1;
        self.held += 1;
        self.open.insert(self.calls, State::Held);
        Some(Claim(self.calls))
    }

    /// The call's last byte was sent.
    pub fn sent(&mut self, claim: Claim, now: Boot) {
        let counted = now + self.transit;
        let Some(state) = self.open.get_mut(&claim.0) else { return };
        match std::mem::replace(state, State::Sent(counted)) {
            State::Held => self.held -= 1,
            State::Sent(before) => drop(self.cooling.remove(&(before, claim.0))),
        }
        self.cooling.insert((counted, claim.0));
    }

    /// The call was answered.
    pub fn answered(&mut self, claim: Claim, now: Boot) {
        match self.open.remove(&claim.0) {
            Some(State::Held) => {
                self.held -= 1;
                self.cooling.insert((now, claim.0));
            }
            // Unless another call has its slot by now.
            Some(State::Sent(counted)) if self.cooling.remove(&(counted, claim.0)) => {
                self.cooling.insert((counted.min(now), claim.0));
            }
            Some(State::Sent(_)) | None => {}
        }
    }

    /// The call was abandoned. If it was never sent, the slot is free at once.
    pub fn abandoned(&mut self, claim: Claim) {
        if self.open.remove(&claim.0) == Some(State::Held) {
            self.held -= 1;
        }
    }

    /// Whether no call is remembered, so that new slots would behave the same.
    pub fn are_all_free(&self, now: Boot) -> bool {
        self.open.is_empty() && self.cooling.last().is_none_or(|(counted, _)| *counted + self.per <= now)
    }

    /// How many are taken.
    pub fn taken(&self, now: Boot) -> usize {
        self.held + self.cooling.iter().filter(|(counted, _)| *counted + self.per > now).count()
    }

    /// When fewer than `allowed` slots will be taken, as far as is known; `None` if that depends on calls that were not
    /// sent yet.
    pub fn next_free(&self, allowed: usize) -> Option<Boot> {
        let taken = self.held + self.cooling.len();
        let Some(excess) = taken.checked_sub(allowed) else { return Some(Boot::from_duration(Duration::ZERO)) };
        self.cooling.iter().nth(excess).map(|(counted, _)| *counted + self.per)
    }

    /// The earliest moment at which a request behind `ahead` others can get one of `allowed` slots, whatever
    /// becomes of the calls in flight, if no slot is given before `from`.
    pub fn earliest(&self, ahead: usize, allowed: usize, now: Boot, from: Boot) -> Boot {
        // A call that is held may never be sent, and one that was sent may be answered just now.
        let soonest = |(counted, _): &(Boot, u64)| (*counted).min(now) + self.per;
        let excess = self.cooling.len().saturating_sub(allowed);
        let free = allowed.saturating_sub(self.cooling.len());
        let slots = allowed.max(1);
        let rounds = u32::try_from(ahead / slots).unwrap_or(u32::MAX);
        let first = match (ahead % slots).checked_sub(free) {
            None => now,
            Some(index) => self.cooling.iter().nth(excess + index).map_or(now, soonest),
        };
        first.max(from).max(now) + self.per.saturating_mul(rounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(millis: u64) -> Boot {
        Boot::from_duration(Duration::from_millis(millis))
    }

    fn pace(rate: u32) -> PaceSettings {
        PaceSettings { rate, per: Duration::from_millis(1000), transit: Duration::from_millis(500) }
    }

    #[test]
    fn a_slot_stays_taken_for_one_period_after_the_answer_or_the_latest_arrival() {
        let mut slots = Slots::new(&pace(1), None);
        let claim = slots.take(1, at(0)).unwrap();
        assert_eq!(slots.next_free(1), None);
        slots.sent(claim, at(10));
        assert_eq!(slots.next_free(1), Some(at(1510)));
        slots.answered(claim, at(50));
        assert_eq!(slots.next_free(1), Some(at(1050)));
        assert_eq!(slots.take(1, at(1049)), None);
        let claim = slots.take(1, at(1050)).unwrap();
        slots.sent(claim, at(1050));
        slots.answered(claim, at(1050 + 4000));
        assert_eq!(slots.next_free(1), Some(at(2550)), "a slow answer does not hold the slot");
    }

    #[test]
    fn a_call_that_was_never_sent_releases_its_slot() {
        let mut slots = Slots::new(&pace(1), None);
        let claim = slots.take(1, at(0)).unwrap();
        slots.abandoned(claim);
        assert!(slots.take(1, at(1)).is_some());
    }

    #[test]
    fn a_late_answer_does_not_affect_the_slot_of_another_call() {
        let mut slots = Slots::new(&pace(1), None);
        let hung = slots.take(1, at(0)).unwrap();
        slots.sent(hung, at(0));
        let next = slots.take(1, at(1500)).unwrap();
        slots.abandoned(hung);
        slots.answered(hung, at(1501));
        assert_eq!(slots.take(1, at(9000)), None, "the other call still holds it");
        slots.sent(next, at(9000));
        assert_eq!(slots.next_free(1), Some(at(10_500)));
    }

    #[test]
    fn no_slot_is_promised_earlier_than_it_can_be_free() {
        let mut slots = Slots::new(&pace(2), None);
        for _ in 0..2 {
            let claim = slots.take(2, at(0)).unwrap();
            slots.sent(claim, at(0));
            slots.answered(claim, at(100));
        }
        assert_eq!(slots.earliest(0, 2, at(200), at(200)), at(1100));
        assert_eq!(slots.earliest(1, 2, at(200), at(200)), at(1100));
        assert_eq!(slots.earliest(2, 2, at(200), at(200)), at(2100));
        assert_eq!(slots.earliest(5, 2, at(200), at(200)), at(3100));
        let paused = |ahead| slots.earliest(ahead, 1, at(200), at(9000));
        assert_eq!([paused(0), paused(1), paused(2)], [at(9000), at(10_000), at(11_000)]);
    }

    #[test]
    fn fewer_calls_may_be_allowed_than_there_are_slots() {
        let mut slots = Slots::new(&pace(4), None);
        let first = slots.take(4, at(0)).unwrap();
        let second = slots.take(4, at(0)).unwrap();
        assert_eq!((slots.take(2, at(0)), slots.next_free(2)), (None, None));
        slots.sent(first, at(0));
        slots.sent(second, at(200));
        assert_eq!(
            (slots.next_free(2), slots.next_free(1), slots.next_free(0)),
            (Some(at(1500)), Some(at(1700)), None)
        );
        assert_eq!(
            (slots.earliest(0, 2, at(300), at(300)), slots.earliest(1, 2, at(300), at(300))),
            (at(1300), at(1300))
        );
        assert_eq!(
            (slots.earliest(2, 2, at(300), at(300)), slots.earliest(1, 4, at(300), at(300))),
            (at(2300), at(300))
        );
        assert!(slots.take(2, at(1500)).is_some());
        assert_eq!(slots.take(2, at(1500)), None);
    }

    #[test]
    fn a_changed_limit_still_counts_earlier_calls() {
        let mut slots = Slots::new(&pace(3), Some(at(500)));
        assert_eq!((slots.take(3, at(1499)), slots.next_free(3)), (None, Some(at(1500))));
        for _ in 0..2 {
            let claim = slots.take(3, at(1500)).unwrap();
            slots.sent(claim, at(1500));
            slots.answered(claim, at(1500));
        }
        slots.reconfigure(&PaceSettings { per: Duration::from_secs(9), ..pace(2) });
        assert_eq!((slots.take(2, at(1600)), slots.next_free(2)), (None, Some(at(10_500))), "both calls still count");
        slots.reconfigure(&PaceSettings { per: Duration::from_secs(9), ..pace(4) });
        assert_eq!(slots.take(4, at(9499)), None, "so do those of which nothing is known");
        assert!(slots.take(4, at(9500)).is_some() && slots.take(4, at(9500)).is_some());
        assert_eq!(slots.take(4, at(9500)), None);
    }

    proptest! {
        /// Whenever the platform counts each call, between its sending and the latest time allowed, no window of `per`
        /// contains more than `rate` calls.
        #[test]
        fn the_platform_never_counts_more_than_the_rate(
            rate in 1u32..5,
            calls in proptest::collection::vec((0u64..400, 0u64..30, 0u64..2500, 0.0f64..=1.0, any::<bool>()), 1..120),
        ) {
            let pace = pace(rate);
            let mut slots = Slots::new(&pace, None);
            let mut now = 0;
            let mut counted = Vec::new();
            let mut open: Vec<(u64, Claim)> = Vec::new();
            for (pause, sending, answer_after, share, answered) in calls {
                now += pause;
                let claim = loop {
                    open.retain(|(when, claim)| {
                        if *when <= now {
                            slots.answered(*claim, at(*when));
                        }
                        *when > now
                    });
                    match slots.take(rate as usize, at(now)) {
                        Some(claim) => break claim,
                        None => now += 1,
                    }
                };
                let sent = now + sending;
                slots.sent(claim, at(sent));
                let latest = if answered { answer_after.min(500) } else { 500 };
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
                counted.push(sent + (share * latest as f64) as u64);
                if answered {
                    open.push((sent + answer_after, claim));
                }
            }
            counted.sort_unstable();
            for window in counted.windows(rate as usize + 1) {
                let span = window[rate as usize] - window[0];
                prop_assert!(span >= 1000, "{} calls counted in {span} ms: {window:?}", rate + 1);
            }
        }
    }
}
