//! Rate limits: how many in which time.

use std::time::Duration;

use super::reader::Table;

/// More calls than any platform of this kind allows, and few enough for a slot each in memory.
const HIGHEST_RATE: u32 = 100_000;

/// The rate limit towards the platform for one tenant and route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaceSettings {
    /// Calls in any window of `per`; 0: no limit.
    pub rate: u32,
    /// The window.
    pub per: Duration,
    /// How long after its last byte was sent a call may still be counted by the platform.
    pub transit: Duration,
}

/// As published: at most 10 calls a second for each interface. How the platform counts is not published, so half a
/// second is left for a call to reach its counter.
pub(crate) const UPSTREAM_PACE: PaceSettings =
    PaceSettings { rate: 10, per: Duration::from_secs(1), transit: Duration::from_millis(500) };

impl PaceSettings {
    pub(super) fn read(mut table: Table<'_>, base: Self) -> Self {
        let rate = table.checked("rate", base.rate, |rate| {
            if *rate <= HIGHEST_RATE { Ok(()) } else { Err("a rate from 0 (no limit) to 100000") }
        });
        let per = table.checked("per", base.per, greater_than_zero);
        let transit = table.with_default("transit", base.transit);
        table.finish();
        Self { rate, per, transit }
    }
}

/// The rate limit of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallerLimit {
    /// Requests in `per`, in the long run.
    pub rate: u32,
    /// The window.
    pub per: Duration,
    /// Requests at once, after a pause.
    pub burst: u32,
}

impl CallerLimit {
    pub(super) fn read(mut table: Table<'_>) -> Option<Self> {
        if table.is_empty() {
            return None;
        }
        if !table.has("rate") {
            table.error("rate", "is missing; expected how many requests are allowed in each per");
        }
        let rate = table.checked("rate", 1, at_least_one);
        let per = table.checked("per", Duration::from_secs(1), greater_than_zero);
        let burst = table.checked("burst", rate, at_least_one);
        let spacing = per.as_nanos() / u128::from(rate);
        if spacing == 0 || u64::try_from(spacing * u128::from(burst)).is_err() {
            table.error("rate", "cannot be enforced with this per and burst; expected at most one request per nanosecond, and a burst that is earned in less than 500 years");
        }
        table.finish();
        Some(Self { rate, per, burst })
    }
}

pub(crate) fn greater_than_zero(span: &Duration) -> Result<(), &'static str> {
    if *span > Duration::ZERO { Ok(()) } else { Err("a duration greater than zero, such as \"1s\"") }
}

pub(crate) fn at_least_one(number: &u32) -> Result<(), &'static str> {
    if *number > 0 { Ok(()) } else { Err("a whole number of at least 1") }
}
