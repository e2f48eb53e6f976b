//! Counts of calls by day, tenant and route, for 13 months.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::calendar::{Day, Month};
use crate::clock::Wall;

/// The version of the file's format.
const VERSION: u32 = 1;
/// Months that are stored, the current one included.
const MONTHS: i32 = 13;

/// Numbers of calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Sent to the platform.
    pub made: u64,
    /// Of those, the ones that neither succeeded nor were answered with a business exception.
    pub failed: u64,
    /// Of those that were made, the ones that are billed.
    pub billed: u64,
    /// Requests of callers that were answered without a call of their own.
    pub saved: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.made = self.made.saturating_add(other.made);
        self.failed = self.failed.saturating_add(other.failed);
        self.billed = self.billed.saturating_add(other.billed);
        self.saved = self.saved.saturating_add(other.saved);
    }
}

/// Counts by tenant.
type Totals = BTreeMap<String, Counts>;
/// Counts of one day, by tenant and route. They are shared by copies of a ledger, so that a copy is cheap.
type OfDay = Arc<BTreeMap<String, BTreeMap<String, Counts>>>;

/// The counts of the last 13 months.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    version: u32,
    /// When counting began, in seconds since the Unix epoch.
    #[serde(default)]
    since: i64,
    days: BTreeMap<Day, OfDay>,
    /// The thresholds of which an operator was warned, by month.
    #[serde(default)]
    warned: BTreeMap<Month, Vec<u32>>,
    /// Sums of the days.
    #[serde(skip)]
    totals: BTreeMap<Month, Totals>,
}

/// Why a text is no ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotALedger {
    /// It is of another version of the gateway.
    OtherVersion(u32),
    /// It is damaged, or something else.
    Damaged(String),
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// The value of a name, which is added if it is new.
fn entry<'a, T: Default>(map: &'a mut BTreeMap<String, T>, name: &str) -> &'a mut T {
    if !map.contains_key(name) {
        map.insert(name.to_owned(), T::default());
    }
    map.get_mut(name).expect("it was there, or has just been added")
}

impl Ledger {
    /// Without counts; counting begins then.
    pub(super) fn new(since: Wall) -> Self {
        let (days, warned, totals) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { version: VERSION, since: since.unix_seconds(), days, warned, totals }
    }

    /// When counting began, in seconds since the Unix epoch.
    pub(super) const fn since(&self) -> i64 {
        self.since
    }

    /// Adds to the counts of a day.
    pub(super) fn add(&mut self, day: Day, tenant: &str, route: &str, counts: Counts) {
        *entry(entry(Arc::make_mut(self.days.entry(day).or_default()), tenant), route) += counts;
        *entry(self.totals.entry(day.month()).or_default(), tenant) += counts;
    }

    /// Forgets the months that are no longer stored in this one.
    pub(super) fn forget_before(&mut self, month: Month) {
        let is_recent = |other: Month| month.ordinal() - other.ordinal() < MONTHS;
        if self.days.keys().next().is_none_or(|first| is_recent(first.month())) {
            return;
        }
        self.days.retain(|day, _| is_recent(day.month()));
        self.warned.retain(|month, _| is_recent(*month));
        self.totals.retain(|month, _| is_recent(*month));
    }

    /// Adds all counts of another ledger.
    pub(super) fn merge(&mut self, other: &Self) {
        self.since = self.since.min(other.since);
        for (day, tenant, route, counts) in other.rows() {
            self.add(day, tenant, route, counts);
        }
        for (month, thresholds) in &other.warned {
            self.warned.entry(*month).or_default().extend(thresholds);
        }
    }

    fn rows(&self) -> impl Iterator<Item = (Day, &str, &str, Counts)> {
        self.days.iter().flat_map(|(day, tenants)| {
            tenants.iter().flat_map(move |(tenant, routes)| {
                routes.iter().map(move |(route, counts)| (*day, tenant.as_str(), route.as_str(), *counts))
            })
        })
    }

    /// The counts of a month by day, tenant and route.
    pub fn month(&self, month: Month) -> impl Iterator<Item = (Day, &str, &str, Counts)> {
        self.rows().filter(move |(day, ..)| day.month() == month)
    }

    /// The counts of a month by tenant.
    pub fn tenants(&self, month: Month) -> Vec<(String, Counts)> {
        let totals = self.totals.get(&month).into_iter().flatten();
        totals.map(|(tenant, counts)| (tenant.clone(), *counts)).collect()
    }

    /// The counts of a month.
    pub fn total(&self, month: Month) -> Counts {
        self.totals.get(&month).into_iter().flat_map(BTreeMap::values).fold(Counts::default(), |mut sum, counts| {
            sum += *counts;
            sum
        })
    }

    /// The thresholds that the billed calls of a month have reached since this was last asked.
    pub(super) fn reached(&mut self, month: Month, thresholds: &[u32]) -> Vec<u32> {
        let billed = self.total(month).billed;
        let warned = self.warned.get(&month).map(Vec::as_slice).unwrap_or_default();
        let is_news = |threshold: &&u32| billed >= u64::from(**threshold) && !warned.contains(*threshold);
        let reached: Vec<u32> = thresholds.iter().filter(is_news).copied().collect();
        if !reached.is_empty() {
            self.warned.entry(month).or_default().extend(&reached);
        }
        reached
    }

    /// As it is stored.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("maps with text for keys can be written as JSON")
    }

    /// Reads what was stored.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub(super) fn from_json(text: &str) -> Result<Self, NotALedger> {
        let damaged = |error: serde_json::Error| NotALedger::Damaged(error.to_string());
        let Versioned { version } = serde_json::from_str(text).map_err(damaged)?;
        if version != VERSION {
            return Err(NotALedger::OtherVersion(version));
        }
        let mut ledger: Self = serde_json::from_str(text).map_err(damaged)?;
        for (day, tenant, _, counts) in Self::rows(&ledger.clone()) {
            *entry(ledger.totals.entry(day.month()).or_default(), tenant) += counts;
        }
        Ok(ledger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn day(text: &str) -> Day {
        text.parse().unwrap()
    }

    fn month(text: &str) -> Month {
        text.parse().unwrap()
    }

    const ONE: Counts = Counts { made: 1, failed: 0, billed: 1, saved: 2 };

    #[test]
    fn thirteen_months_are_stored() {
        let mut ledger = Ledger::new(Wall::from_unix_seconds(0));
        for number in 1..=12 {
            ledger.add(day(&format!("2025-{number:02}-03")), "a", "r", ONE);
        }
        ledger.add(day("2026-01-01"), "a", "r", ONE);
        ledger.forget_before(month("2026-01"));
        assert_eq!(ledger.total(month("2025-01")), ONE, "the thirteenth");
        ledger.add(day("2026-02-01"), "a", "r", ONE);
        ledger.forget_before(month("2026-02"));
        assert_eq!((ledger.total(month("2025-01")), ledger.month(month("2025-01")).count()), (Counts::default(), 0));
        assert_eq!(ledger.total(month("2025-02")), ONE);
    }

    #[test]
    fn each_threshold_is_reached_once_a_month_and_remembered() {
        let mut ledger = Ledger::new(Wall::from_unix_seconds(0));
        let november = month("2026-11");
        ledger.add(day("2026-11-02"), "a", "r", Counts { billed: 80, ..ONE });
        assert_eq!(ledger.reached(november, &[81, 100]), Vec::<u32>::new());
        ledger.add(day("2026-11-03"), "b", "r", Counts { billed: 1, ..ONE });
        assert_eq!(ledger.reached(november, &[81, 100]), [81]);
        let mut again = Ledger::from_json(&ledger.to_json()).unwrap();
        assert_eq!(again.reached(november, &[81, 100]), Vec::<u32>::new());
        again.add(day("2026-11-03"), "b", "r", Counts { billed: 19, ..ONE });
        assert_eq!(again.reached(november, &[81, 100]), [100]);
        assert_eq!(again.reached(month("2026-12"), &[81]), Vec::<u32>::new());
    }

    #[test]
    fn what_another_version_stored_is_rejected() {
        let newer = Ledger::from_json("{\"version\":2,\"other\":{}}");
        assert_eq!(newer, Err(NotALedger::OtherVersion(2)), "and not damaged");
        for damaged in ["{\"version\":1,\"days\":{\"2026-02-30\":{}}}", "", "{\"version\":1,\"da"] {
            assert!(matches!(Ledger::from_json(damaged), Err(NotALedger::Damaged(_))), "{damaged}");
        }
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_days_also_after_they_were_stored(
            calls in proptest::collection::vec((1u8..=28, 10u8..=12, "[ab]", "[rs]", 0u64..9, 0u64..9), 0..40),
        ) {
            let mut ledger = Ledger::new(Wall::from_unix_seconds(0));
            for (number, in_month, tenant, route, made, saved) in &calls {
                let counts = Counts { made: *made, failed: 0, billed: *made, saved: *saved };
                ledger.add(day(&format!("2026-{in_month}-{number:02}")), tenant, route, counts);
            }
            let stored = Ledger::from_json(&ledger.to_json()).unwrap();
            prop_assert_eq!(&stored, &ledger);
            for in_month in [10u8, 11, 12] {
                let made: u64 = calls.iter().filter(|call| call.1 == in_month).map(|call| call.4).sum();
                let (month, total) = (month(&format!("2026-{in_month}")), |counts: Counts| counts.made);
                prop_assert_eq!(total(stored.total(month)), made);
                prop_assert_eq!(stored.month(month).map(|row| row.3.made).sum::<u64>(), made);
                prop_assert_eq!(stored.tenants(month).iter().map(|(_, counts)| counts.made).sum::<u64>(), made);
            }
            let mut doubled = ledger.clone();
            doubled.merge(&stored);
            prop_assert_eq!(doubled.total(month("2026-11")).made, 2 * ledger.total(month("2026-11")).made);
        }
    }
}
