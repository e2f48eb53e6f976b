//! Months and days, by which the platform bills.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::{Date, OffsetDateTime, UtcOffset};

use crate::clock::Wall;

/// Seconds of a day.
const DAY: i64 = 86_400;
/// Months of a year.
const YEAR: i32 = 12;

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

    /// The seconds of its month that have passed at a moment of this day, and those that are still to come.
    pub fn of_month(self, at: Wall, offset: UtcOffset) -> (i64, i64) {
        let seconds = at.unix_seconds().saturating_add(i64::from(offset.whole_seconds())).rem_euclid(DAY);
        let month = time::Month::try_from(self.month.number).unwrap_or(time::Month::January);
        let passed = i64::from(self.number - 1) * DAY + seconds;
        (passed, i64::from(month.length(self.month.year)) * DAY - passed)
    }
}

impl Month {
    /// Its number among all months.
    pub(super) fn ordinal(self) -> i32 {
        self.year * YEAR + i32::from(self.number)
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

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::offset;

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
    fn what_has_passed_of_a_month_and_what_is_to_come() {
        let noon = Wall::from_unix_seconds(1_796_054_400 - 43_200);
        assert_eq!(Day::of(noon, offset!(+8)).of_month(noon, offset!(+8)), (29 * DAY + DAY / 2, DAY / 2));
    }
}
