//! `budget.*`: what calls to the platform cost, and when to warn.

use std::fmt;
use std::path::PathBuf;

use config::ValueKind;

use super::effective::Scope;
use super::reader::Table;
use super::value::Setting;

/// How an attempt that was sent may have ended, by the names in `zvgate_upstream_attempts_total`.
pub const SENT_OUTCOMES: [&str; 9] =
    ["ok", "exception", "error", "throttled", "http_5xx", "http_other", "reset", "timeout", "garbage"];

/// The keys of `budget.*` that can be reloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetSettings {
    /// The price of a call.
    pub price: Price,
    /// Calls a month that cost nothing, of all tenants together.
    pub free_calls: u32,
    /// The currency of the price.
    pub currency: String,
    /// Billed calls a month, of all tenants together, at which to warn.
    pub warn_calls: Option<CallCounts>,
    /// The outcomes of calls that are billed.
    pub billed: Vec<String>,
}

/// Reads the table: what can be reloaded, and the file of the counts.
pub(super) fn read(mut table: Table<'_>) -> (BudgetSettings, Option<PathBuf>) {
    let is_currency = |text: &String| match text.len() <= 8 && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(()),
        false => Err("a currency such as \"CNY\", at most 8 characters"),
    };
    let are_outcomes = |names: &Vec<String>| match names.iter().all(|name| SENT_OUTCOMES.contains(&name.as_str())) {
        true => Ok(()),
        false => {
            Err("a list of outcomes: ok, exception, error, throttled, http_5xx, http_other, reset, timeout, garbage")
        }
    };
    let settings = BudgetSettings {
        // The platform's list price: 0.1 CNY for 100 calls, with 100,000 free a month.
        price: table.with_default("price", Price { micros: 1000 }),
        free_calls: table.with_default("free_calls", 100_000),
        currency: table.checked("currency", "CNY".to_owned(), is_currency),
        warn_calls: table.optional("warn_calls"),
        // Every call is billed, as far as is known.
        billed: table.checked("billed", SENT_OUTCOMES.map(str::to_owned).into(), are_outcomes),
    };
    table.set_scope(Scope::Static);
    let store = table.path("store");
    table.finish();
    (settings, store)
}

/// An amount of money, exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// In millionths of the currency.
    pub micros: u64,
}

/// The digits after the decimal point.
const DECIMALS: usize = 6;

impl Price {
    fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let is_valid = is_number(whole) && is_number(fraction) && whole.len() <= 9 && fraction.len() <= DECIMALS;
        let micros = is_valid.then(|| format!("{whole}{fraction:0<DECIMALS$}").parse().ok()).flatten()?;
        Some(Self { micros })
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:0DECIMALS$}", self.micros / 1_000_000, self.micros % 1_000_000);
        let short = text.trim_end_matches('0');
        write!(f, "{short}{}", if short.ends_with('.') { "0" } else { "" })
    }
}

impl Setting for Price {
    const EXPECTED: &'static str = "a price such as 0.001, with at most 6 decimals";

    fn read(value: &ValueKind) -> Option<Self> {
        match value {
            ValueKind::Float(price) => Self::parse(&price.to_string()),
            ValueKind::I64(price) => Self::parse(&price.to_string()),
            ValueKind::String(text) => Self::parse(text.trim()),
            _ => None,
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// Numbers of calls, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallCounts(pub Vec<u32>);

impl Setting for CallCounts {
    const EXPECTED: &'static str = "a number of calls such as 80000, or a list such as [80000, 100000]";

    fn read(value: &ValueKind) -> Option<Self> {
        let mut counts: Vec<u32> = match value {
            ValueKind::Array(items) => items.iter().map(|item| u32::read(&item.kind)).collect::<Option<_>>()?,
            ValueKind::String(text) => text.split(',').map(|count| count.trim().parse().ok()).collect::<Option<_>>()?,
            other => vec![u32::read(other)?],
        };
        counts.sort_unstable();
        counts.dedup();
        counts.first().is_some_and(|least| *least > 0).then_some(Self(counts))
    }

    fn show(&self) -> String {
        format!("[{}]", self.0.iter().map(u32::to_string).collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_exact() {
        let read = |text: &str| Price::read(&ValueKind::String(text.to_owned())).map(|price| price.micros);
        assert_eq!(
            [read("0.001"), read("12"), read("0.1"), read("0")],
            [Some(1000), Some(12_000_000), Some(100_000), Some(0)]
        );
        assert_eq!([read("0.0000001"), read("-1"), read("1e3"), read(".5"), read("1."), read("")], [None; 6]);
        assert_eq!(Price::read(&ValueKind::Float(0.001)), Some(Price { micros: 1000 }));
        assert_eq!(Price::read(&ValueKind::Float(f64::NAN)), None);
        for text in ["0.001", "12.0", "0.000001"] {
            assert_eq!(Price::parse(text).unwrap().show(), text);
        }
    }

    #[test]
    fn thresholds_are_one_number_or_several() {
        let read = |text: &str| CallCounts::read(&ValueKind::String(text.to_owned())).map(|counts| counts.0);
        assert_eq!(read("80000"), Some(vec![80_000]));
        assert_eq!(read("2, 1,2"), Some(vec![1, 2]));
        assert_eq!([read("0"), read(""), read("many")], [None, None, None]);
        assert_eq!(CallCounts::read(&ValueKind::I64(7)), Some(CallCounts(vec![7])));
    }
}
