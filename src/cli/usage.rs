//! `zvgate usage`: what was counted of calls in a month, by day, tenant and route.

use std::fmt::Write;

use clap::ValueEnum;
use serde::Serialize;

use super::{ConfigArguments, UNUSABLE, eprint, fail, print};
use crate::budget::{self, Bill, Counts, Day, Ledger, Month};
use crate::clock::Clock;
use crate::settings::BudgetSettings;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    configuration: ConfigArguments,
    /// The month; else the current one
    #[arg(long, value_name = "YYYY-MM")]
    month: Option<Month>,
    /// How to print it
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// Comma-separated values (RFC 4180), one row for each day, tenant and route
    Csv,
    /// One JSON object
    Json,
}

/// The counts of one day, tenant and route.
#[derive(Serialize)]
struct Row<'a> {
    day: Day,
    tenant: &'a str,
    route: &'a str,
    #[serde(flatten)]
    counts: Counts,
}

/// A month.
#[derive(Serialize)]
struct Usage<'a> {
    month: Month,
    rows: Vec<Row<'a>>,
    total: Counts,
    currency: &'a str,
    cost: String,
    cost_without_cache: String,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), u8> {
    let settings = arguments.configuration.settings()?;
    let Some(store) = &settings.fixed.budget_store else {
        eprint("zvgate: the configuration lacks budget.store: without it counts are lost with the process");
        return Err(UNUSABLE);
    };
    let ledger = budget::read(store).map_err(fail)?;
    let today = Day::of(Clock::system().wall(), settings.dynamic.attempts.utc_offset);
    let month = arguments.month.unwrap_or(today.month());
    let usage = Usage::of(&ledger, month, &settings.dynamic.budget);
    print(&match arguments.format {
        Format::Table => usage.table(&settings.dynamic.budget),
        Format::Csv => usage.csv(),
        Format::Json => serde_json::to_string(&usage).map_err(fail)?,
    })
}

impl<'a> Usage<'a> {
    fn of(ledger: &'a Ledger, month: Month, settings: &'a BudgetSettings) -> Self {
        let rows = ledger.month(month).map(|(day, tenant, route, counts)| Row { day, tenant, route, counts });
        let total = ledger.total(month);
        let Bill { cost, without_cache } = Bill::of(settings, total);
        Self {
            month,
            rows: rows.collect(),
            total,
            currency: &settings.currency,
            cost: budget::shown(cost),
            cost_without_cache: budget::shown(without_cache),
        }
    }

    fn table(&self, settings: &BudgetSettings) -> String {
        let longest = |header: &str, text: fn(&Row<'_>) -> usize| {
            self.rows.iter().map(text).max().unwrap_or_default().max(header.len())
        };
        let (tenant, route) = (longest("tenant", |row| row.tenant.len()), longest("route", |row| row.route.len()));
        let mut out = String::new();
        let mut line = |day: &str, in_tenant: &str, on_route: &str, cells: [String; 4]| {
            let [made, failed, billed, saved] = cells;
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "{day:<10}  {in_tenant:<tenant$}  {on_route:<route$}  {made:>9}  {failed:>9}  {billed:>9}  {saved:>9}"
            );
        };
        let cells = |counts: Counts| [counts.made, counts.failed, counts.billed, counts.saved].map(|n| n.to_string());
        line("day", "tenant", "route", ["made", "failed", "billed", "saved"].map(str::to_owned));
        for row in &self.rows {
            line(&row.day.to_string(), row.tenant, row.route, cells(row.counts));
        }
        line(&self.month.to_string(), "", "", cells(self.total));
        let Self { cost, cost_without_cache, currency, .. } = self;
        let _ = writeln!(
            out,
            "{cost} {currency}; {cost_without_cache} {currency} without the cache ({} {currency} a call after {} free ones a month)",
            settings.price, settings.free_calls
        );
        out
    }

    fn csv(&self) -> String {
        let mut out = String::from("day,tenant,route,made,failed,billed,saved\r\n");
        for Row { day, tenant, route, counts: Counts { made, failed, billed, saved } } in &self.rows {
            let _ = write!(out, "{day},{tenant},{},{made},{failed},{billed},{saved}\r\n", quoted(route));
        }
        out
    }
}

/// A field of comma-separated values: routes may have any character.
fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\r', '\n']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}
