//! `upstream.breaker`: when calls to the platform are suspended.

use std::time::Duration;

use config::ValueKind;

use super::rate::{at_least_one, greater_than_zero};
use super::reader::Table;
use super::value::Setting;

/// `upstream.breaker`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerSettings {
    /// Failures in a row that open it; 0: any number.
    pub consecutive: u32,
    /// The share of attempts within `window` that opens it if they fail; 0: any share.
    pub ratio: Ratio,
    /// Attempts within `window` from which on the share counts.
    pub min_calls: u32,
    /// How far back the share looks.
    pub window: Duration,
    /// The shortest time that it stays open.
    pub open_min: Duration,
    /// The longest.
    pub open_max: Duration,
}

impl BreakerSettings {
    pub(super) fn read(mut table: Table<'_>) -> Self {
        let settings = Self {
            // Fewer failures in a row happen by chance; more would let callers wait for nothing.
            consecutive: table.with_default("consecutive", 5),
            ratio: table.with_default("ratio", Ratio(0.5)),
            min_calls: table.checked("min_calls", 10, at_least_one),
            window: table.checked("window", Duration::from_secs(30), greater_than_zero),
            open_min: table.checked("open_min", Duration::from_millis(500), greater_than_zero),
            open_max: table.checked("open_max", Duration::from_secs(30), greater_than_zero),
        };
        if settings.open_max < settings.open_min {
            table.error("open_max", "is shorter than open_min; expected a duration that is at least as long");
        }
        table.finish();
        settings
    }

    /// Whether nothing opens it.
    pub fn is_off(&self) -> bool {
        self.consecutive == 0 && self.ratio.0 <= 0.0
    }
}

/// A share from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(pub f64);

impl Setting for Ratio {
    const EXPECTED: &'static str = "a share from 0 to 1, such as 0.5";

    fn read(value: &ValueKind) -> Option<Self> {
        let ratio = match value {
            ValueKind::Float(ratio) => *ratio,
            ValueKind::I64(0) => 0.0,
            ValueKind::I64(1) => 1.0,
            ValueKind::String(text) => text.trim().parse().ok()?,
            _ => return None,
        };
        (0.0..=1.0).contains(&ratio).then_some(Self(ratio))
    }

    fn show(&self) -> String {
        format!("{:?}", self.0)
    }
}
