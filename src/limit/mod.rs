//! How much is let through: what callers may ask, and what upstream may be asked.

mod backoff;
mod caller;
mod line;
mod pace;
mod paces;
mod slots;

use std::time::Duration;

pub use self::caller::CallerGate;
pub use self::line::Claimant;
pub use self::pace::{Pace, Throttled, Turn};
pub use self::paces::{Before, Paces, Rules};
pub use self::slots::{Claim, Slots};

/// A refusal: over a limit, and when to come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    /// The quota of the policy.
    pub quota: u32,
    /// Its window.
    pub per: Duration,
    /// How long until there may be room.
    pub retry_after: Duration,
}
