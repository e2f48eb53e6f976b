//! The platform's dates: `YYYY-MM-DD HH:MM:SS` in its own offset from UTC, written by many hands.

use time::{Date, Month, UtcOffset};

use crate::clock::Wall;

/// Dates from this year on mean "never".
const NO_END_FROM_YEAR: i64 = 9000;

/// When a coupon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// At this moment: from then on it is not valid.
    At(Wall),
    /// Not at all.
    Never,
}

impl End {
    /// Reads a date; `None` where it cannot be read. Fields may have one digit, seconds and the whole time may be
    /// missing (then they are zero, so that the coupon ends no later than meant), and fractions of a second are cut.
    pub fn parse(text: &str, offset: UtcOffset) -> Option<Self> {
        let [year, month, day, hour, minute, second] = as_documented(text).or_else(|| by_hand(text))?;
        if year >= NO_END_FROM_YEAR {
            return Some(Self::Never);
        }
        let end_of_day = hour == 24 && minute == 0 && second == 0;
        if (hour > 23 && !end_of_day) || minute > 59 || second > 59 {
            return None;
        }
        let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
        let date = Date::from_calendar_date(i32::try_from(year).ok()?, month, u8::try_from(day).ok()?).ok()?;
        let seconds = date.midnight().assume_utc().unix_timestamp() + hour * 3600 + minute * 60 + second;
        Some(Self::At(Wall::from_unix_seconds(seconds - i64::from(offset.whole_seconds()))))
    }
}

/// Year to second of `YYYY-MM-DD HH:MM:SS`, which nearly every date is.
fn as_documented(text: &str) -> Option<[i64; 6]> {
    const PATTERN: &[u8; 19] = b"0000-00-00 00:00:00";
    let text: &[u8; 19] = text.as_bytes().try_into().ok()?;
    let mut numbers = [0; 6];
    let mut number = numbers.iter_mut();
    let mut current = number.next()?;
    for (byte, pattern) in text.iter().zip(PATTERN) {
        match (pattern, byte) {
            (b'0', b'0'..=b'9') => *current = *current * 10 + i64::from(byte - b'0'),
            (b'0', _) => return None,
            _ if byte == pattern => current = number.next()?,
            _ => return None,
        }
    }
    Some(numbers)
}

/// Year to second of a date as somebody wrote it.
fn by_hand(text: &str) -> Option<[i64; 6]> {
    let text = text.trim();
    let (date, clock) = text.split_once([' ', 'T']).unwrap_or((text, "0:0:0"));
    let [year, month, day] = numbers(date, '-')?;
    if year >= NO_END_FROM_YEAR {
        return Some([year, 0, 0, 0, 0, 0]);
    }
    let clock = clock.trim();
    let clock = clock.split_once('.').filter(|(_, f)| f.bytes().all(|b| b.is_ascii_digit())).map_or(clock, |c| c.0);
    let [hour, minute, second] = match clock.matches(':').count() {
        1 => numbers(&format!("{clock}:0"), ':')?,
        _ => numbers(clock, ':')?,
    };
    Some([year, month, day, hour, minute, second])
}

/// Three numbers of one to five digits with a separator between them.
fn numbers(text: &str, separator: char) -> Option<[i64; 3]> {
    let mut parts = text.split(separator);
    let mut next = || {
        let part = parts.next()?;
        let right = (1..=5).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        right.then(|| part.parse().ok()).flatten()
    };
    let three = [next()?, next()?, next()?];
    parts.next().is_none().then_some(three)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHINA: UtcOffset = match UtcOffset::from_hms(8, 0, 0) {
        Ok(offset) => offset,
        Err(_) => panic!("a known offset"),
    };

    fn unix(text: &str) -> Option<i64> {
        match End::parse(text, CHINA) {
            Some(End::At(wall)) => Some(wall.unix_seconds()),
            Some(End::Never) => Some(i64::MAX),
            None => None,
        }
    }

    #[test]
    fn dates_are_parsed_in_the_platforms_offset() {
        // date -u -d '2019-11-03 15:59:59' +%s
        assert_eq!(unix("2019-11-03 23:59:59"), Some(1_572_796_799));
        assert_eq!(unix("2019-11-03T23:59:59"), Some(1_572_796_799));
        assert_eq!(unix("2019-11-3 23:59:59"), Some(1_572_796_799));
        assert_eq!(unix("2019-10-15 17:10:2"), unix("2019-10-15 17:10:02"));
        assert_eq!(unix("2019-11-03"), unix("2019-11-03 00:00:00"));
        assert_eq!(unix("2019-11-03 24:00:00"), unix("2019-11-04 00:00:00"));
        assert_eq!(unix("2019-11-03 23:59"), unix("2019-11-03 23:59:00"));
        assert_eq!(unix("2019-11-03 23:59:59.987"), Some(1_572_796_799));
        assert_eq!(End::parse("1970-01-01 00:00:00", UtcOffset::UTC), Some(End::At(Wall::from_unix_seconds(0))));
    }

    #[test]
    fn years_from_9000_on_mean_no_end() {
        for text in ["9000-01-01 00:00:00", "9999-99-99 99:99:99", "9999-12-31", "10000-01-01"] {
            assert_eq!(End::parse(text, CHINA), Some(End::Never), "{text}");
        }
        assert!(matches!(End::parse("8999-12-31 23:59:59", CHINA), Some(End::At(_))));
    }

    #[test]
    fn invalid_dates_are_rejected() {
        for text in [
            "",
            " ",
            "null",
            "0000-00-00 00:00:00",
            "2019-02-29",
            "2019-13-01",
            "2019-11-03 25:00:00",
            "2019-11-03 24:00:01",
            "2019-11-03 23:60:00",
            "2019-11-03 23",
            "2019/11/03",
            "20191103",
            "1572796799",
            "2019-11-03 23:59:59Z",
            "2019-11-03 -1:00:00",
            "2019-11-03-04",
            "+2019-11-03",
            "2019-11-03 23:59:59.9x",
        ] {
            assert_eq!(End::parse(text, CHINA), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic(text in "\\PC{0,40}") {
            let _ = End::parse(&text, CHINA);
        }

        #[test]
        fn the_fast_path_for_documented_dates_agrees_with_the_general_parser(text in "[0-8][0-9]{3}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}") {
            let by_hand = by_hand(&text);
            prop_assert!(by_hand.is_some());
            prop_assert_eq!(as_documented(&text), by_hand);
        }

        #[test]
        fn a_formatted_date_is_parsed_back(seconds in 0i64..200_000_000_000) {
            let moment = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap().to_offset(CHINA);
            let text = format!(
                "{:04}-{}-{:02} {}:{:02}:{}",
                moment.year(), u8::from(moment.month()), moment.day(), moment.hour(), moment.minute(), moment.second()
            );
            prop_assert_eq!(End::parse(&text, CHINA), Some(End::At(Wall::from_unix_seconds(seconds))));
        }
    }
}
