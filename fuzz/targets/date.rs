//! Parses the platform's dates: no panic, and the same time as by counting days.
#![no_main]

use libfuzzer_sys::fuzz_target;
use time::UtcOffset;
use zvgate::answer::End;

/// The numbers of the date and the time in this text, by a simple parser; `None` if it is not a date.
fn numbers(text: &str) -> Option<(Vec<i64>, Vec<i64>)> {
    let number = |part: &str| {
        let fits = !part.is_empty() && part.len() <= 5 && part.chars().all(|c| c.is_ascii_digit());
        fits.then(|| part.parse::<i64>().ok()).flatten()
    };
    let (date, clock) = match text.find([' ', 'T']) {
        Some(at) => (&text[..at], Some(text[at + 1..].trim())),
        None => (text, None),
    };
    let date = date.split('-').map(number).collect::<Option<Vec<_>>>().filter(|date| date.len() == 3)?;
    if date[0] >= 9000 {
        return Some((date, Vec::new()));
    }
    let Some(clock) = clock else { return Some((date, vec![0, 0, 0])) };
    let (whole, fraction) = clock.split_at(clock.find('.').unwrap_or(clock.len()));
    if !fraction.chars().skip(1).all(|c| c.is_ascii_digit()) {
        return None;
    }
    let mut clock = whole.split(':').map(number).collect::<Option<Vec<_>>>()?;
    if clock.len() == 2 {
        clock.push(0);
    }
    (clock.len() == 3).then_some((date, clock))
}

fuzz_target!(|text: &str| {
    let read = End::parse(text, UtcOffset::from_hms(8, 0, 0).expect("an offset"));
    let expected = numbers(text.trim()).and_then(|(date, clock)| {
        if date[0] >= 9000 {
            return Some(None);
        }
        let clock = [clock[0], clock[1], clock[2]];
        let of_a_day = (clock[0] < 24 && clock[1] < 60 && clock[2] < 60) || clock == [24, 0, 0];
        let seconds = oracle::seconds(date[0], date[1], date[2], clock, 8).filter(|_| of_a_day);
        seconds.map(Some)
    });
    let read = read.map(|end| match end {
        End::At(wall) => Some(wall.unix_seconds()),
        End::Never => None,
    });
    assert_eq!(read, expected);
});
