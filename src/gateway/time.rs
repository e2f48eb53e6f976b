//! The time by which answers expire and calls are signed: our clock and the platform's.

use std::time::Duration;

use crate::clock::{Boot, Clock, Now, Wall};
use crate::skew::{ClockChange, Skew};

/// Our clock, and what is known of the platform's.
#[derive(Debug)]
pub(super) struct Time {
    pub(super) clock: Clock,
    pub(super) skew: Skew,
}

impl Time {
    /// Both clocks. The wall clock is the later of ours and the platform's: coupons end by that one.
    pub(super) fn now(&self) -> Now {
        self.skew.later(self.clock.now())
    }

    /// The earliest that any clock may have been at `sent`: ours, then and now, and the platform's, as it was learned before and as
    /// `date` says in an answer that was received at `answered`.
    pub(super) fn earliest(&self, sent: Now, date: Option<Wall>, answered: Option<&Now>) -> Wall {
        let known = self.skew.earlier(sent).min(sent.wall).min(self.clock.now().wall);
        let round_trip = answered.map_or(Duration::ZERO, |answered| answered.boot.since(sent.boot));
        date.map_or(known, |date| known.min(date - round_trip))
    }

    /// The time since boot.
    pub(super) fn boot(&self) -> Boot {
        self.clock.boot()
    }

    /// Learns from the `Date` of an answer to a request that was sent at `sent`; returns whether calls are signed by another
    /// time from now on.
    pub(super) fn learn(&self, date: Wall, sent: Boot, answered: Now) -> bool {
        let ClockChange { correction, notable_skew, unremarkable_skew } = self.skew.learn(date, sent, answered);
        if let Some(millis) = notable_skew {
            tracing::warn!(
                ahead_s = seconds(millis),
                "upstream clock differs; the platform rejects signatures that are too far off"
            );
        }
        if let Some(millis) = unremarkable_skew {
            tracing::info!(ahead_s = seconds(millis), "upstream clock agrees again");
        }
        if let Some(millis) = correction {
            tracing::info!(correction_s = seconds(millis), "signing time corrected by the upstream clock");
        }
        correction.is_some()
    }
}

/// Rounded to whole seconds, in which the platform says the time.
const fn seconds(millis: i64) -> i64 {
    millis.saturating_add(500).div_euclid(1000)
}
