//! What calls cost.

use super::Counts;
use crate::settings::BudgetSettings;

/// The bill of a month, in millionths of the currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bill {
    /// What the billed calls cost.
    pub cost: u128,
    /// What would have been paid if each request that was saved had been a billed call, too.
    pub without_cache: u128,
}

impl Bill {
    /// The bill for the counts of a month.
    pub fn of(settings: &BudgetSettings, counts: Counts) -> Self {
        let cost = |calls: u64| {
            u128::from(calls.saturating_sub(u64::from(settings.free_calls))) * u128::from(settings.price.micros)
        };
        Self { cost: cost(counts.billed), without_cache: cost(counts.billed.saturating_add(counts.saved)) }
    }
}

/// An amount with two decimals, rounded half up.
pub fn shown(micros: u128) -> String {
    let cents = (micros + 5_000) / 10_000;
    format!("{}.{:02}", cents / 100, cents % 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn calls_beyond_the_free_ones_cost_their_price() {
        let settings = Settings::defaults().unwrap().dynamic.budget;
        let bill = |billed, saved| {
            let Bill { cost, without_cache } = Bill::of(&settings, Counts { billed, saved, ..Counts::default() });
            [shown(cost), shown(without_cache)]
        };
        assert_eq!(bill(100_000, 0), ["0.00", "0.00"]);
        assert_eq!(bill(100_004, 0), ["0.00", "0.00"]);
        assert_eq!(bill(100_005, 1), ["0.01", "0.01"]);
        assert_eq!(bill(1_100_000, 2_000_000), ["1000.00", "3000.00"]);
    }
}
