//! How each type of setting is parsed and shown.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use config::ValueKind;
use time::UtcOffset;

/// Longest duration of a setting: sums of a few of them do not overflow any clock.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// A type that a key of the configuration can have.
pub(crate) trait Setting: Sized {
    /// What is valid, for errors: completes "expected …".
    const EXPECTED: &'static str;

    /// Parses it; `None` if it is invalid.
    fn read(value: &ValueKind) -> Option<Self>;

    /// Writes it as TOML.
    fn show(&self) -> String;
}

fn text(value: &ValueKind) -> Option<&str> {
    match value {
        ValueKind::String(text) => Some(text.trim()),
        _ => None,
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl Setting for String {
    const EXPECTED: &'static str = "a string that is not empty";

    fn read(value: &ValueKind) -> Option<Self> {
        text(value).filter(|text| !text.is_empty()).map(str::to_owned)
    }

    fn show(&self) -> String {
        quoted(self)
    }
}

impl Setting for PathBuf {
    const EXPECTED: &'static str = "the path of a file, as a string";

    fn read(value: &ValueKind) -> Option<Self> {
        String::read(value).map(Self::from)
    }

    fn show(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

impl Setting for bool {
    const EXPECTED: &'static str = "true or false";

    fn read(value: &ValueKind) -> Option<Self> {
        match value {
            ValueKind::Boolean(truth) => Some(*truth),
            other => text(other)?.parse().ok(),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for u32 {
    const EXPECTED: &'static str = "a whole number from 0 to 4294967295";

    fn read(value: &ValueKind) -> Option<Self> {
        match value {
            ValueKind::I64(number) => Self::try_from(*number).ok(),
            other => text(other)?.parse().ok(),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for SocketAddr {
    const EXPECTED: &'static str = "an address and port such as \"127.0.0.1:8080\" or \"[::1]:8080\"";

    fn read(value: &ValueKind) -> Option<Self> {
        text(value)?.parse().ok()
    }

    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Setting for Duration {
    const EXPECTED: &'static str = "a duration such as \"250ms\", \"10s\" or \"5m\", at most 366 days";

    fn read(value: &ValueKind) -> Option<Self> {
        humantime::parse_duration(text(value)?).ok().filter(|span| *span <= LONGEST)
    }

    fn show(&self) -> String {
        quoted(&humantime::format_duration(*self).to_string().replace(' ', ""))
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl Size {
    /// The number of bytes, as a length in memory.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Setting for Size {
    const EXPECTED: &'static str = "a size such as \"64KiB\" or \"256MiB\", from 1 byte to 1 TiB";

    fn read(value: &ValueKind) -> Option<Self> {
        let size = ByteSize::from_str(text(value)?).ok()?.as_u64();
        (1..=1 << 40).contains(&size).then_some(Self(size))
    }

    fn show(&self) -> String {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let whole = units.iter().find(|(unit, _)| self.0.is_multiple_of(*unit));
        quoted(&whole.map_or_else(|| format!("{}B", self.0), |(unit, name)| format!("{}{name}", self.0 / unit)))
    }
}

impl Setting for UtcOffset {
    const EXPECTED: &'static str = "an offset from UTC such as \"+08:00\", at most 14 hours";

    fn read(value: &ValueKind) -> Option<Self> {
        let text = text(value)?;
        let sign = match text.get(..1)? {
            "+" => 1,
            "-" => -1,
            _ => return None,
        };
        let (hours, minutes) = text.get(1..)?.split_once(':')?;
        let two_digits = |part: &str| {
            (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse::<i8>().ok()).flatten()
        };
        let (hours, minutes) = (two_digits(hours)?, two_digits(minutes)?);
        (hours <= 14).then(|| Self::from_hms(sign * hours, sign * minutes, 0).ok()).flatten()
    }

    fn show(&self) -> String {
        let (hours, minutes, _) = self.as_hms();
        let sign = if self.is_negative() { '-' } else { '+' };
        quoted(&format!("{sign}{:02}:{:02}", hours.unsigned_abs(), minutes.unsigned_abs()))
    }
}

impl Setting for Vec<String> {
    const EXPECTED: &'static str = "a list of strings such as [\"a\", \"b\"]";

    fn read(value: &ValueKind) -> Option<Self> {
        match value {
            ValueKind::Array(items) => items.iter().map(|item| String::read(&item.kind)).collect(),
            other => {
                Some(text(other)?.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect())
            }
        }
    }

    fn show(&self) -> String {
        format!("[{}]", self.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", "))
    }
}

/// A type with a few named values.
pub(crate) trait Choice: Copy + PartialEq + 'static {
    /// What is valid, for errors.
    const EXPECTED: &'static str;
    /// Every value with its name.
    const ALL: &'static [(&'static str, Self)];

    /// The name of a value.
    fn name_of(self) -> &'static str {
        Self::ALL.iter().find(|(_, choice)| *choice == self).map_or("", |(name, _)| name)
    }
}

impl<T: Choice> Setting for T {
    const EXPECTED: &'static str = <T as Choice>::EXPECTED;

    fn read(value: &ValueKind) -> Option<Self> {
        let name = text(value)?;
        T::ALL.iter().find(|(known, _)| *known == name).map(|(_, choice)| *choice)
    }

    fn show(&self) -> String {
        quoted(self.name_of())
    }
}

/// The name among `known` that is nearest to a misspelt one.
pub(crate) fn nearest<'a>(name: &str, known: &BTreeSet<&'a str>) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate)
}
