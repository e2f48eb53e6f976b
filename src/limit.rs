//! Rate limits: of callers towards the gateway, and of the gateway towards the platform.

mod caller;
mod fair_queue;
mod inflight;
mod pace;
mod paces;
mod sharing;
mod slots;
mod throttle;

use std::time::Duration;

pub use self::caller::CallerLimiter;
pub use self::fair_queue::{Class, QueueKey};
pub use self::inflight::InflightLimit;
pub use self::pace::{NoPermit, Pace, PaceUsage, Permit, Throttled, WaitFor};
pub use self::paces::{EarlierCalls, Paces, Rules};
pub use self::sharing::{
    LATENESS, PendingSlot, REPLY_WITHIN, SEND_WITHIN, SILENCE, SharedSlot, Sharing, SlotRequest, SlotSource, hold,
};
pub use self::slots::{Claim, Slots};
pub use self::throttle::Ended;

/// A request is over a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    /// The quota of the policy.
    pub quota: u32,
    /// Its window.
    pub per: Duration,
    /// How long until it may be within the limit.
    pub retry_after: Duration,
}
