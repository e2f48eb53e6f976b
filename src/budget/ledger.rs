//! Counts of calls by day, tenant and route, for 13 months.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::{Date, OffsetDateTime, UtcOffset};

use crate::clock::Wall;

/// The version of the file's format.
const VERSION: u32 = 1;
/// Months that are stored, the current one included.
const MONTHS: i32 = 13;

/// A month of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Month {
    year: i32,
    /// From 1.
    number: u8,
}

/// A day of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Day {
    month: Month,
    /// From 1.
    number: u8,
}

impl Day {
    /// The day of a moment at an offset from UTC.
    pub fn of(at: Wall, offset: UtcOffset) -> Self {
        let utc = OffsetDateTime::from_unix_timestamp(at.unix_seconds()).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let date = utc.checked_to_offset(offset).unwrap_or(utc).date();
        Self { month: Month { year: date.year(), number: date.month().into() }, number: date.day() }
    }

    /// Its month.
    pub const fn month(self) -> Month {
        self.month
    }

    /// The share of its month that has passed at a moment of this day, from above 0 to 1.
    pub fn share_of_month(self, at: Wall, offset: UtcOffset) -> f64 {
        let seconds = at.unix_seconds().saturating_add(i64::from(offset.whole_seconds())).rem_euclid(86_400);
        let month = time::Month::try_from(self.month.number).unwrap_or(time::Month::January);
        #[expect(clippy::cast_precision_loss, reason = "less than a day in seconds")]
        let passed = f64::from(self.number - 1) + (seconds.max(1) as f64) / 86_400.0;
        passed / f64::from(month.length(self.month.year))
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year, self.number)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:02}", self.month, self.number)
    }
}

/// What is no month or day of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct NotADate(&'static str);

/// The number of so many digits.
fn digits<T: FromStr>(text: &str, length: usize) -> Option<T> {
    (text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

impl FromStr for Month {
    type Err = NotADate;

    fn from_str(text: &str) -> Result<Self, NotADate> {
        let parts = text.split_once('-').and_then(|(year, month)| Some((digits(year, 4)?, digits(month, 2)?)));
        let month = parts.map(|(year, number)| Self { year, number });
        month.filter(|month| (1..=12).contains(&month.number)).ok_or(NotADate("a month such as 2026-11"))
    }
}

impl FromStr for Day {
    type Err = NotADate;

    fn from_str(text: &str) -> Result<Self, NotADate> {
        let parts = text.rsplit_once('-').and_then(|(month, day)| Some((month.parse().ok()?, digits(day, 2)?)));
        let day = parts.map(|(month, number)| Self { month, number });
        let exists = |day: &Self| {
            let month = time::Month::try_from(day.month.number);
            month.is_ok_and(|month| Date::from_calendar_date(day.month.year, month, day.number).is_ok())
        };
        day.filter(exists).ok_or(NotADate("a day such as 2026-11-27"))
    }
}

impl From<Month> for String {
    fn from(month: Month) -> Self {
        month.to_string()
    }
}

impl From<Day> for String {
    fn from(day: Day) -> Self {
        day.to_string()
    }
}

impl TryFrom<String> for Month {
    type Error = NotADate;

    fn try_from(text: String) -> Result<Self, NotADate> {
        text.parse()
    }
}

impl TryFrom<String> for Day {
    type Error = NotADate;

    fn try_from(text: String) -> Result<Self, NotADate> {
        text.parse()
    }
}

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

/// The counts of the last 13 months.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    version: u32,
    /// By day, tenant and route.
    days: BTreeMap<Day, BTreeMap<String, BTreeMap<String, Counts>>>,
    /// The thresholds of which an operator was warned, by month.
    #[serde(default)]
    warned: BTreeMap<Month, Vec<u32>>,
    /// Sums of the days.
    #[serde(skip)]
    totals: BTreeMap<Month, Totals>,
}

impl Default for Ledger {
    fn default() -> Self {
        let (days, warned, totals) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { version: VERSION, days, warned, totals }
    }
}

/// The value of a name, which is added if it is new.
fn entry<'a, T: Default>(map: &'a mut BTreeMap<String, T>, name: &str) -> &'a mut T {
    if !map.contains_key(name) {
        map.insert(name.to_owned(), T::default());
    }
    map.get_mut(name).expect("it was there, or has just been added")
}

impl Ledger {
    /// Adds to the counts of a day.
    pub(super) fn add(&mut self, day: Day, tenant: &str, route: &str, counts: Counts) {
        if !self.days.contains_key(&day) {
            self.forget_before(day.month);
        }
        *entry(entry(self.days.entry(day).or_default(), tenant), route) += counts;
        *entry(self.totals.entry(day.month).or_default(), tenant) += counts;
    }

    /// Forgets the months that are no longer stored once there are counts of this one.
    fn forget_before(&mut self, month: Month) {
        let number = |month: Month| month.year * 12 + i32::from(month.number);
        let is_recent = |other: Month| number(month) - number(other) < MONTHS;
        self.days.retain(|day, _| is_recent(day.month));
        self.warned.retain(|month, _| is_recent(*month));
        self.totals.retain(|month, _| is_recent(*month));
    }

    /// Adds all counts of another ledger.
    pub(super) fn merge(&mut self, other: &Self) {
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
        self.rows().filter(move |(day, ..)| day.month == month)
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
    pub(super) fn from_json(text: &str) -> Result<Self, String> {
        let mut ledger: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if ledger.version != VERSION {
            return Err(format!("found version {}; expected {VERSION}", ledger.version));
        }
        let days = std::mem::take(&mut ledger.days);
        let stored = Self { days, ..Self::default() };
        ledger.merge(&stored);
        Ok(ledger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::macros::offset;

    fn day(text: &str) -> Day {
        text.parse().unwrap()
    }

    fn month(text: &str) -> Month {
        text.parse().unwrap()
    }

    const ONE: Counts = Counts { made: 1, failed: 0, billed: 1, saved: 2 };

    #[test]
    fn a_day_begins_at_midnight_of_the_offset() {
        // 2026-11-30T16:00:00Z is midnight in China.
        let midnight = 1_796_054_400;
        let of = |seconds| Day::of(Wall::from_unix_seconds(seconds), offset!(+8)).to_string();
        assert_eq!([of(midnight - 1), of(midnight)], ["2026-11-30", "2026-12-01"]);
        assert_eq!(Day::of(Wall::from_unix_seconds(midnight), UtcOffset::UTC).to_string(), "2026-11-30");
    }

    #[test]
    fn what_is_no_date_is_rejected() {
        for text in ["2026-13", "2026-1", "26-01", "2026", "", "2026-00", "+026-01", "2026-11-27"] {
            assert!(text.parse::<Month>().is_err(), "{text}");
        }
        for text in ["2026-02-29", "2026-11-31", "2026-11-00", "2026-11-1", "2026-11", ""] {
            assert!(text.parse::<Day>().is_err(), "{text}");
        }
        assert!("2028-02-29".parse::<Day>().is_ok());
    }

    #[test]
    fn the_share_of_a_month_that_has_passed() {
        let noon = Wall::from_unix_seconds(1_796_054_400 - 43_200);
        let share = Day::of(noon, offset!(+8)).share_of_month(noon, offset!(+8));
        assert!((share - 29.5 / 30.0).abs() < 1e-9, "{share}");
    }

    #[test]
    fn thirteen_months_are_stored() {
        let mut ledger = Ledger::default();
        for number in 1..=12 {
            ledger.add(day(&format!("2025-{number:02}-03")), "a", "r", ONE);
        }
        ledger.add(day("2026-01-01"), "a", "r", ONE);
        assert_eq!(ledger.total(month("2025-01")), ONE, "the thirteenth");
        ledger.add(day("2026-02-01"), "a", "r", ONE);
        assert_eq!((ledger.total(month("2025-01")), ledger.month(month("2025-01")).count()), (Counts::default(), 0));
        assert_eq!(ledger.total(month("2025-02")), ONE);
    }

    #[test]
    fn each_threshold_is_reached_once_a_month_and_remembered() {
        let mut ledger = Ledger::default();
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
        assert!(Ledger::from_json("{\"version\":2,\"days\":{}}").unwrap_err().contains("expected 1"));
        assert!(Ledger::from_json("{\"version\":1,\"days\":{\"2026-02-30\":{}}}").is_err());
        assert!(Ledger::from_json("").is_err());
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_days_also_after_they_were_stored(
            calls in proptest::collection::vec((1u8..=28, 10u8..=12, "[ab]", "[rs]", 0u64..9, 0u64..9), 0..40),
        ) {
            let mut ledger = Ledger::default();
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
