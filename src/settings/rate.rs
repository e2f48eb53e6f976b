//! Rates: how many in how long.

use std::time::Duration;

use super::reader::Table;

/// More calls in one `per` than any platform of this kind allows, and few enough to hold a slot for each in memory.
const HIGHEST_RATE: u32 = 100_000;

/// Upstream's pace for one tenant and route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaceSettings {
    /// Calls in any window of `per`; 0: no pace.
    pub rate: u32,
    /// The window.
    pub per: Duration,
    /// How long after its last byte left a call may still be counted by upstream.
    pub transit: Duration,
}

/// What is published of the platform: at most 10 calls a second for each interface. How it counts is not told, so half a
/// second is left for a call to reach its counter.
pub(crate) const UPSTREAM_PACE: PaceSettings =
    PaceSettings { rate: 10, per: Duration::from_secs(1), transit: Duration::from_millis(500) };

impl PaceSettings {
    pub(crate) fn read(mut table: Table<'_>, base: Self) -> Self {
        let rate = table.checked("rate", base.rate, |rate| {
            if *rate <= HIGHEST_RATE { Ok(()) } else { Err("a rate from 0 (no pace) to 100000") }
        });
        let per = table.checked("per", base.per, longer_than_nothing);
        let transit = table.with_default("transit", base.transit);
        table.finish();
        Self { rate, per, transit }
    }
}

/// What callers may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallerLimit {
    /// Requests in `per`, on the long run.
    pub rate: u32,
    /// The window.
    pub per: Duration,
    /// Requests at once, after a pause.
    pub burst: u32,
}

impl CallerLimit {
    pub(crate) fn read(mut table: Table<'_>) -> Option<Self> {
        if table.is_empty() {
            return None;
        }
        if !table.has("rate") {
            table.mistake("rate", "is missing; wanted how many requests are allowed in each per");
        }
        let rate = table.checked("rate", 1, at_least_one);
        let per = table.checked("per", Duration::from_secs(1), longer_than_nothing);
        let burst = table.checked("burst", rate, at_least_one);
        let spacing = per.as_nanos() / u128::from(rate);
        if spacing == 0 || u64::try_from(spacing * u128::from(burst)).is_err() {
            table.mistake("rate", "with this per and burst is no limit that can be kept; wanted at most one request a nanosecond, and a burst that is earned in less than 500 years");
        }
        table.finish();
        Some(Self { rate, per, burst })
    }
}

pub(crate) fn longer_than_nothing(span: &Duration) -> Result<(), &'static str> {
    if *span > Duration::ZERO { Ok(()) } else { Err("a duration longer than nothing, such as \"1s\"") }
}

pub(crate) fn at_least_one(number: &u32) -> Result<(), &'static str> {
    if *number > 0 { Ok(()) } else { Err("a whole number of at least 1") }
}
