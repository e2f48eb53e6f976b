//! The state of a pace: who waits, its own slots, and what is known of the shared ones.

use std::sync::Arc;
use std::time::Duration;

use super::Pace;
use crate::clock::Boot;
use crate::limit::fair_queue::FairQueue;
use crate::limit::inflight::Waker;
use crate::limit::sharing::{PendingSlot, SharedSlot, SlotRequest, SlotSource, hold};
use crate::limit::throttle::ThrottleState;
use crate::limit::{Claim, Limited, Slots};
use crate::settings::PaceSettings;

/// What allows a call.
#[derive(Debug)]
pub(super) enum Claimed {
    /// There is no limit.
    Unlimited,
    /// A slot of this replica's own.
    Own(Claim),
    /// A slot that all replicas share.
    Shared(SharedSlot),
}

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) settings: PaceSettings,
    /// This replica's own.
    pub(super) slots: Slots,
    pub(super) throttle: ThrottleState,
    pub(super) waiting: FairQueue<Waker>,
    /// Calls in progress that began without a limit, and so have no slot.
    pub(super) unlimited: usize,
    /// A shared slot for whoever is next.
    granted: Option<SharedSlot>,
    /// Whether a shared slot was requested, and there is no answer yet.
    is_pending: bool,
    /// No shared slot is free before this, by the last reply.
    denied_until: Boot,
    /// Nor before this: calls without a slot may be in a window, also those of other replicas.
    held_until: Boot,
    /// Until when a call with a shared slot may be in a window.
    shared_until: Boot,
}

impl Queue {
    pub(super) fn new(settings: PaceSettings, counted: Option<Boot>) -> Self {
        Self {
            settings,
            slots: Slots::new(&settings, counted),
            throttle: ThrottleState::new(settings.per),
            waiting: FairQueue::default(),
            unlimited: 0,
            granted: None,
            is_pending: false,
            denied_until: Boot::from_duration(Duration::ZERO),
            held_until: Boot::from_duration(Duration::ZERO),
            shared_until: Boot::from_duration(Duration::ZERO),
        }
    }

    pub(super) fn rate(&self) -> usize {
        usize::try_from(self.settings.rate).unwrap_or(usize::MAX)
    }

    /// Calls that a window allows, throttling apart.
    fn part(&self, source: SlotSource) -> usize {
        usize::try_from(source.part_of(self.settings.rate)).unwrap_or(usize::MAX)
    }

    /// Calls that a window allows now, pauses apart.
    pub(super) fn allowed(&self, source: SlotSource, now: Boot) -> usize {
        self.throttle.allowed(self.part(source), now)
    }

    pub(super) fn limited(&self, retry_after: Duration) -> Limited {
        Limited { quota: self.settings.rate, per: self.settings.per, retry_after }
    }

    /// Until when nothing is sent, if that lies ahead.
    pub(super) fn nothing_before(&self, source: SlotSource, now: Boot) -> Option<Boot> {
        let held = match source {
            SlotSource::CutOff { last_heartbeat, .. } if self.settings.rate > 0 => {
                Some(last_heartbeat + hold(&self.settings)).filter(|until| *until > now)
            }
            SlotSource::CutOff { .. } | SlotSource::Split(_) | SlotSource::Shared => None,
        };
        held.max(self.throttle.paused_until(now))
    }

    /// Changes the limit, and forgets nothing.
    pub(super) fn reconfigure(&mut self, settings: PaceSettings, now: Boot) {
        let was_unlimited = self.rate() == 0;
        if settings.transit + settings.per > self.settings.transit + self.settings.per && now < self.shared_until {
            // Shared slots were taken for a shorter time.
            self.held_until = self.held_until.max(now + hold(&settings));
        }
        self.settings = settings;
        if was_unlimited {
            self.slots.limit_again(&settings, now + settings.transit);
            // Nor do other replicas' calls have slots.
            self.held_until = self.held_until.max(now + hold(&settings));
        } else {
            self.slots.reconfigure(&settings);
        }
        self.throttle.reconfigure(settings.per);
    }

    /// Takes a slot, if one is free now. The error says when to try again; `None`: when something changes.
    pub(super) fn take(&mut self, pace: &Arc<Pace>, now: Boot) -> Result<Claimed, Option<Boot>> {
        let source = pace.sharing.source();
        if let Some(until) = self.nothing_before(source, now) {
            return Err(Some(until));
        }
        if self.rate() == 0 {
            self.unlimited += 1;
            return Ok(Claimed::Unlimited);
        }
        let part = self.part(source);
        let allowed = self.throttle.allowed(part, now);
        let is_held_back = allowed < part;
        let allowed = allowed.saturating_sub(self.unlimited);
        if source == SlotSource::Shared {
            return self.take_shared(pace, allowed, now).map(Claimed::Shared);
        }
        let claim = self.slots.take(allowed, now).ok_or_else(|| {
            let next = self.slots.next_free(allowed);
            // When throttling has ended, more slots are allowed at once.
            if is_held_back {
                Some(next.map_or(self.throttle.ends_at(), |next| next.min(self.throttle.ends_at())))
            } else {
                next
            }
        });
        claim.map(Claimed::Own)
    }

    /// Takes a shared slot that was granted, or requests one.
    fn take_shared(&mut self, pace: &Arc<Pace>, allowed: usize, now: Boot) -> Result<SharedSlot, Option<Boot>> {
        match self.granted.take() {
            Some(slot) if slot.is_timely(now) => return Ok(slot),
            Some(late) => pace.release(late),
            None => {}
        }
        if self.is_pending {
            return Err(None);
        }
        if now < self.shared_from() {
            return Err(Some(self.shared_from()));
        }
        self.is_pending = true;
        pace.sharing.request(SlotRequest::Take(PendingSlot::new(pace, self.settings, allowed)));
        Err(None)
    }

    /// When a shared slot may be free.
    fn shared_from(&self) -> Boot {
        self.denied_until.max(self.held_until)
    }

    /// Slots come from elsewhere now: the last reply does not count any more.
    pub(super) fn source_changed(&mut self) {
        self.denied_until = Boot::from_duration(Duration::ZERO);
        self.wake_firsts();
    }

    /// Whether a shared slot that is requested now may be free, and nobody waits for it.
    pub(super) fn may_have_spare(&self, now: Boot) -> bool {
        self.waiting.is_empty() && now >= self.shared_from() && self.nothing_before(SlotSource::Shared, now).is_none()
    }

    /// A shared slot was granted; returns one that nobody needs.
    pub(super) fn granted(&mut self, slot: SharedSlot) -> Option<SharedSlot> {
        self.is_pending = false;
        self.shared_until = slot.requested + hold(&self.settings);
        let earlier = self.granted.replace(slot);
        earlier.or_else(|| self.take_unneeded())
    }

    /// No shared slot is free before `until`.
    pub(super) fn denied(&mut self, until: Boot) {
        self.is_pending = false;
        self.denied_until = until;
    }

    /// The shared slot that was granted, if nobody waits for it.
    pub(super) fn take_unneeded(&mut self) -> Option<SharedSlot> {
        if self.waiting.is_empty() { self.granted.take() } else { None }
    }

    /// Gives back a slot of which nothing was sent; returns a shared one that is to be released.
    pub(super) fn give_back(&mut self, claim: Claimed, now: Boot) -> Option<SharedSlot> {
        match claim {
            Claimed::Unlimited => self.unlimited -= 1,
            Claimed::Own(claim) => self.slots.abandoned(claim),
            Claimed::Shared(slot) if slot.is_timely(now) && self.granted.is_none() => self.granted = Some(slot),
            Claimed::Shared(slot) => return Some(slot),
        }
        self.take_unneeded()
    }

    /// The earliest moment at which a request behind so many others can get a permit, if those ahead of it stay.
    pub(super) fn earliest(&self, source: SlotSource, ahead: usize, now: Boot) -> Boot {
        let part = self.part(source);
        let from = self.nothing_before(source, now).unwrap_or(now);
        if self.rate() == 0 {
            return from;
        }
        if part == 0 {
            // Until slots are shared again.
            return from.max(now + self.settings.per);
        }
        let allowed = self.throttle.allowed(part, now);
        if source == SlotSource::Shared {
            // How many others take is not known: this is the earliest.
            let rounds = u32::try_from(ahead / allowed.max(1)).unwrap_or(u32::MAX);
            return from.max(self.shared_from()) + self.settings.per.saturating_mul(rounds);
        }
        let held_back = self.slots.earliest(ahead, allowed, now, from);
        held_back.min(self.slots.earliest(ahead, part, now, from.max(self.throttle.ends_at())))
    }

    pub(super) fn is_idle(&self, now: Boot) -> bool {
        self.waiting.is_empty()
            && self.unlimited == 0
            && self.granted.is_none()
            && !self.is_pending
            && now >= self.shared_from().max(self.shared_until)
            && self.slots.are_all_free(now)
            && self.throttle.has_ended(now)
    }

    /// Wakes those that may be served next: which of them is, depends on whose turn it is for capacity in flight, too.
    pub(super) fn wake_firsts(&self) {
        self.waiting.firsts().for_each(Waker::wake);
    }
}
