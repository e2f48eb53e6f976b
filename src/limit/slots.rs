//! The rate limit of the platform, as a pure function of what was sent, what was answered, and the time.
//!
//! In any window of `per`, the platform may count `rate` calls. A token bucket does not guarantee that: its burst and its refill
//! add up in one window. So there are `rate` slots, and each carries one call at a time. The platform counts a call no later
//! than its answer, and no later than `transit` after its last byte was sent; from the earlier of the two on, the slot stays
//! taken for `per`. Two calls of one slot are then counted at least `per` apart, and `rate` slots make `rate` calls.

use std::time::Duration;

use crate::clock::Boot;
use crate::settings::PaceSettings;

/// The state of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Without a call; its last one, if it had one, was counted no later than this.
    Idle(Option<Boot>),
    /// Its call was not sent yet.
    Held,
    /// Its call was sent, and is counted no later than this.
    Sent(Boot),
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    state: State,
    /// The call that has it, or had it last.
    call: u64,
}

/// A call's claim to its slot. The slot of a call that was never answered is reused in time; the claim is void then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    index: usize,
    call: u64,
}

/// The slots of one tenant and path.
#[derive(Debug)]
pub struct Slots {
    /// At least as many as may be in use at once.
    slots: Vec<Slot>,
    calls: u64,
    per: Duration,
    transit: Duration,
}

impl Slots {
    /// All slots; `counted` is when the platform may last have counted a call that is not known here.
    pub fn new(pace: &PaceSettings, counted: Option<Boot>) -> Self {
        let mut slots = Self { slots: Vec::new(), calls: 0, per: pace.per, transit: pace.transit };
        slots.grow(pace.rate, counted);
        slots
    }

    /// Changes the limit. What was counted is remembered, and surplus slots are never in use at the same time.
    pub fn reconfigure(&mut self, pace: &PaceSettings) {
        (self.per, self.transit) = (pace.per, pace.transit);
        self.grow(pace.rate, None);
    }

    /// Limits calls after a time without a limit: all slots are in cooldown, since the platform may have counted calls that had
    /// no slot until `counted`.
    pub fn limit_again(&mut self, pace: &PaceSettings, counted: Boot) {
        self.slots.clear();
        (self.per, self.transit) = (pace.per, pace.transit);
        self.grow(pace.rate, Some(counted));
    }

    fn grow(&mut self, rate: u32, counted: Option<Boot>) {
        let count = usize::try_from(rate).unwrap_or(usize::MAX).max(self.slots.len());
        self.slots.resize(count, Slot { state: State::Idle(counted), call: 0 });
    }

    /// Takes a slot for a call, if one is free and fewer than `allowed` are in use.
    pub fn take(&mut self, allowed: usize, now: Boot) -> Option<Claim> {
        if self.next_free(allowed).is_none_or(|at| at > now) {
            return None;
        }
        let index = self.slots.iter().position(|slot| slot.free_at(self.per).is_some_and(|at| at <= now))?;
        self.calls += 1;
        *self.slots.get_mut(index)? = Slot { state: State::Held, call: self.calls };
        Some(Claim { index, call: self.calls })
    }

    /// The call's last byte was sent.
    pub fn sent(&mut self, claim: Claim, now: Boot) {
        let counted = now + self.transit;
        if let Some(slot) = self.claimed(claim) {
            slot.state = State::Sent(counted);
        }
    }

    /// The call was answered.
    pub fn answered(&mut self, claim: Claim, now: Boot) {
        if let Some(slot) = self.claimed(claim) {
            slot.state = State::Idle(Some(slot.counted().map_or(now, |counted| counted.min(now))));
        }
    }

    /// The call was abandoned. If it was never sent, the slot is free at once.
    pub fn abandoned(&mut self, claim: Claim) {
        if let Some(slot) = self.claimed(claim) {
            slot.state = State::Idle(slot.counted());
        }
    }

    /// Whether no call is remembered, so that new slots would behave the same.
    pub fn are_all_free(&self, now: Boot) -> bool {
        let is_free = |slot: &Slot| slot.free_at(self.per).is_some_and(|at| at <= now);
        self.slots.iter().all(|slot| !matches!(slot.state, State::Sent(_)) && is_free(slot))
    }

    /// When a slot will be free and fewer than `allowed` in use, as far as is known; `None` while that depends on calls
    /// that were not sent yet.
    pub fn next_free(&self, allowed: usize) -> Option<Boot> {
        if allowed >= self.slots.len() {
            return self.slots.iter().filter_map(|slot| slot.free_at(self.per)).min();
        }
        let mut free: Vec<Option<Boot>> = self.slots.iter().map(|slot| slot.free_at(self.per)).collect();
        free.sort_unstable_by_key(|at| (at.is_none(), *at));
        free.get(free.len() - allowed).copied()?
    }

    /// The earliest moment at which a request behind `ahead` others can get one of `allowed` slots, whatever
    /// becomes of the calls in flight, if no slot is given before `from`.
    pub fn earliest(&self, ahead: usize, allowed: usize, now: Boot, from: Boot) -> Boot {
        let soonest = |slot: &Slot| match slot.state {
            // It may be answered just now.
            State::Sent(counted) => counted.min(now) + self.per,
            // It may never be sent.
            State::Held => now,
            State::Idle(_) => slot.free_at(self.per).unwrap_or(now).max(now),
        };
        let mut free: Vec<Boot> = self.slots.iter().map(|slot| soonest(slot).max(from)).collect();
        free.sort_unstable();
        free.drain(..free.len().saturating_sub(allowed));
        let rounds = u32::try_from(ahead / free.len().max(1)).unwrap_or(u32::MAX);
        let first = free.get(ahead % free.len().max(1)).copied().unwrap_or(now);
        first + self.per.saturating_mul(rounds)
    }

    fn claimed(&mut self, claim: Claim) -> Option<&mut Slot> {
        self.slots.get_mut(claim.index).filter(|slot| slot.call == claim.call)
    }
}

impl Slot {
    /// When its last call was counted at the latest; `None` if there was none, or it was not sent yet.
    fn counted(&self) -> Option<Boot> {
        match self.state {
            State::Idle(counted) => counted,
            State::Held => None,
            State::Sent(counted) => Some(counted),
        }
    }

    /// When the slot can carry its next call; `None` while its call was not sent yet. It need not wait for the answer to a call
    /// that was sent.
    fn free_at(&self, per: Duration) -> Option<Boot> {
        match self.state {
            State::Held => None,
            State::Idle(None) => Some(Boot::from_duration(Duration::ZERO)),
            State::Idle(Some(counted)) | State::Sent(counted) => Some(counted + per),
        }
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
        assert_eq!((slots.take(2, at(10_499)), slots.next_free(2)), (None, Some(at(10_500))), "both calls still count");
        slots.reconfigure(&PaceSettings { per: Duration::from_secs(9), ..pace(4) });
        assert!(slots.take(4, at(1600)).is_some(), "one more call is allowed");
        assert_eq!(slots.take(4, at(9499)), None, "an unknown call may have been counted");
        assert!(slots.take(4, at(9500)).is_some());
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
