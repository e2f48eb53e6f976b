//! How the cost of a hit grows with entries, coupons and connections.

use std::fmt::Write as _;

use crate::chart::{self, Line};
use crate::drive::{CONNECTIONS, fill};
use crate::process::{COUPONS, Place, Running, gateway, gateways, platform};
use crate::table::{Row, measure, named};
use crate::wrk::{Customers, Load, Seen};
use crate::{Bench, table};

const UPSTREAM: u16 = 18_700;
const GATEWAY: u16 = 18_710;
const ROOM: &str = "max_bytes = \"4GiB\"";

pub(crate) fn run(bench: &mut Bench) {
    by_entries(bench);
    by_coupons(bench);
    by_connections(bench);
}

/// A measured point of a line.
fn point(bench: &Bench, name: &str, server: (u16, &Running), load: &Load) -> Row {
    let mut rows = measure(&[(name.to_owned(), server.0, server.1)], load, bench.rounds);
    rows.pop().expect("one row for one server")
}

fn by_entries(bench: &mut Bench) {
    let place = Place::new();
    let _platform = platform(UPSTREAM, COUPONS);
    let mut rows = Vec::new();
    let mut lines: Vec<Line> = Vec::new();
    let servers = gateways(bench, &place, "0", GATEWAY, UPSTREAM, ROOM);
    for entries in [10_000, 100_000, 1_000_000] {
        servers.iter().for_each(|(_, port, _)| fill(*port, entries));
        for (name, customers) in [("uniform", Customers::Uniform(entries)), ("zipf", Customers::Zipf(entries))] {
            let measured = measure(
                &named(&servers, &format!(", {name}")),
                &Load::new(bench, CONNECTIONS, customers),
                bench.rounds,
            );
            for row in measured {
                let point = (entries as f64, row.middle(|seen| seen.cpu));
                match lines.iter_mut().find(|line| line.name == row.name) {
                    Some(line) => line.points.push(point),
                    None => lines.push(Line { name: row.name.clone(), points: vec![point] }),
                }
                rows.push(Row { name: format!("{entries} entries, {}", row.name), ..row });
            }
        }
    }
    report(bench, "Entries: 1.7 kB each, 66 connections", &rows);
    plot(bench, "scale-entries.svg", "A hit's cost by entries", "entries", &lines);
}

fn by_coupons(bench: &mut Bench) {
    let (mut rows, mut line) = (Vec::new(), Line { name: "zvgate".to_owned(), points: Vec::new() });
    let mut nothing = Line { name: "bare hyper, fixed answer".to_owned(), points: Vec::new() };
    for coupons in [1, 5, 50, 500, 2000] {
        let place = Place::new();
        let platform = platform(UPSTREAM, coupons);
        let server = gateway(&place, "0", GATEWAY, UPSTREAM, ROOM);
        let load = Load::new(bench, CONNECTIONS, Customers::Uniform(100));
        fill(GATEWAY, 100);
        let row = point(bench, &format!("{coupons} coupons"), (GATEWAY, &server), &load);
        line.points.push((coupons as f64, row.middle(|seen| seen.cpu)));
        rows.push(row);
        drop(platform);
        let hyper = crate::process::own_with("hyper", UPSTREAM, coupons);
        let row = point(bench, &format!("{coupons} coupons, bare hyper"), (UPSTREAM, &hyper), &load);
        nothing.points.push((coupons as f64, row.middle(|seen| seen.cpu)));
        rows.push(row);
    }
    report(bench, "Coupons: 100 customers, some 330 bytes a coupon, 66 connections", &rows);
    plot(bench, "scale-coupons.svg", "A hit's cost by coupons", "coupons in an answer", &[line, nothing]);
}

fn by_connections(bench: &mut Bench) {
    let place = Place::new();
    let _platform = platform(UPSTREAM, COUPONS);
    let server = gateway(&place, "0", GATEWAY, UPSTREAM, ROOM);
    let hyper = crate::process::own("hyper", GATEWAY + 2);
    fill(GATEWAY, 10_000);
    let mut rows = Vec::new();
    let mut lines =
        ["zvgate", "bare hyper, fixed answer"].map(|name| Line { name: name.to_owned(), points: Vec::new() });
    for connections in [1, 66, 1000, 10_000] {
        let load = Load::new(bench, connections, Customers::Uniform(10_000));
        // Opening the most connections takes most of a second.
        let load = Load { seconds: load.seconds.max(3), ..load };
        for (line, server) in lines.iter_mut().zip([(GATEWAY, &server), (GATEWAY + 2, &hyper)]) {
            let row = point(bench, &format!("{connections} connections, {}", line.name), server, &load);
            line.points.push((connections as f64, row.middle(|seen| seen.cpu)));
            rows.push(row);
        }
    }
    report(bench, "Connections: 10,000 customers, 1.7 kB", &rows);
    plot(bench, "scale-connections.svg", "A hit's cost by connections", "connections", &lines);
}

fn report(bench: &mut Bench, title: &str, rows: &[Row]) {
    let mut text = format!(
        "### {title}\n\n| | a second, median | a core's time a request: min / median / max | p99, median |\n| --- | --- | --- | --- |\n"
    );
    for row in rows {
        let (per_second, p99) = (row.middle(|seen| seen.per_second), row.middle(|seen| seen.p99) / 1000.0);
        let (least, half, most) = table::middle(row.seen.iter().map(|seen: &Seen| seen.cpu).collect());
        let _ =
            writeln!(text, "| {} | {per_second:.0} | {least:.2} / {half:.2} / {most:.2} µs | {p99:.2} ms |", row.name);
    }
    bench.keep_raw(title, rows);
    bench.report(&text);
}

fn plot(bench: &Bench, file: &str, title: &str, across: &str, lines: &[Line]) {
    bench.keep(file, &chart::lines(title, across, "a core's time, µs", lines));
}
