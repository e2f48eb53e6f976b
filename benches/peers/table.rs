//! Measures servers in turn, in several rounds, and prints a table with ratios to the first server in the same round.

use std::fmt::Write as _;

use crate::drive::Drive;
use crate::process::Running;
use crate::wrk::{Load, Seen};

/// The results of a server in every round.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) seen: Vec<Seen>,
}

impl Row {
    /// The median of all rounds.
    pub(crate) fn middle(&self, value: impl Fn(&Seen) -> f64) -> f64 {
        middle(self.seen.iter().map(value).collect()).1
    }

    /// Minimum, median and maximum of the ratios to another server in the same round.
    pub(crate) fn ratio_to(&self, other: &Self, value: impl Fn(&Seen) -> f64) -> (f64, f64, f64) {
        middle(self.seen.iter().zip(&other.seen).map(|(own, other)| value(own) / value(other)).collect())
    }
}

/// Minimum, median and maximum.
pub(crate) fn middle(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[0], values[values.len() / 2], values[values.len() - 1])
}

/// A server, by name and port.
pub(crate) type Server<'a> = (String, u16, &'a Running);

/// The gateways that do some work, by what they are called.
pub(crate) fn named<'a>(gateways: &'a [(&str, u16, Running)], work: &str) -> Vec<Server<'a>> {
    gateways.iter().map(|(which, port, server)| (format!("zvgate{work}{which}"), *port, server)).collect()
}

/// Loads each server in turn, once for warm-up and then in rounds.
pub(crate) fn measure(servers: &[Server<'_>], load: &Load, rounds: usize) -> Vec<Row> {
    let mut rows: Vec<Row> = servers.iter().map(|(name, ..)| Row { name: name.clone(), seen: Vec::new() }).collect();
    for (_, port, server) in servers {
        // Checks that it answers correctly.
        Drive { connections: 1, requests: 1, rate: None, customer: |_| 1 }.run(*port);
        load.run(*port, server);
    }
    for _ in 0..rounds {
        for (row, (_, port, server)) in rows.iter_mut().zip(servers) {
            row.seen.push(load.run(*port, server));
        }
    }
    rows
}

/// A table in Markdown, with ratios to the first row.
pub(crate) fn table(title: &str, rows: &[Row]) -> String {
    let first = &rows[0];
    let mut text = format!(
        "### {title}\n\n| server | a second, median | of {name}: min / median / max | core's time a request | of {name}: min / median / max | p99, median |\n| --- | --- | --- | --- | --- | --- |\n",
        name = first.name
    );
    for row in rows {
        let (per_second, cpu, p99) =
            (row.middle(|seen| seen.per_second), row.middle(|seen| seen.cpu), row.middle(|seen| seen.p99) / 1000.0);
        let (least, half, most) = row.ratio_to(first, |seen| seen.per_second);
        let (cpu_least, cpu_half, cpu_most) = row.ratio_to(first, |seen| seen.cpu);
        writeln!(
            text,
            "| {} | {per_second:.0} | {least:.2} / {half:.2} / {most:.2} | {cpu:.2} µs | {cpu_least:.2} / {cpu_half:.2} / {cpu_most:.2} | {p99:.2} ms |",
            row.name
        )
        .unwrap_or_default();
    }
    text
}
