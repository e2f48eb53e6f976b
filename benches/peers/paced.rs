//! Latency under an open-loop load: requests are due at a constant rate, and each is timed from when it was due.

use std::fmt::Write as _;

use crate::Bench;
use crate::chart::{self, Line};
use crate::drive::{CONNECTIONS, Drive};
use crate::process::{COUPONS, Place, Running, gateway, own, platform};
use crate::table::middle;

const UPSTREAM: u16 = 18_800;
const GATEWAY: u16 = 18_810;
const CUSTOMERS: u64 = 10_000;
/// The loads, as parts of a server's peak.
const LOADS: [f64; 2] = [0.5, 0.8];
const QUANTILES: [f64; 6] = [0.5, 0.9, 0.99, 0.999, 0.9999, 1.0];

/// A server under a load, and the quantiles of its latency in every round, in microseconds.
struct Paced {
    name: String,
    port: u16,
    rate: f64,
    seen: Vec<[f64; QUANTILES.len()]>,
}

impl Paced {
    /// Minimum, median and maximum of all rounds.
    fn at(&self, place: usize) -> (f64, f64, f64) {
        middle(self.seen.iter().map(|seen| seen[place]).collect())
    }
}

pub(crate) fn run(bench: &mut Bench) {
    let place = Place::new();
    let _platform = platform(UPSTREAM, COUPONS);
    let server = gateway(&place, "0", GATEWAY, UPSTREAM, "");
    let (hyper, obvious) = (own("hyper", 18_802), own("obvious", 18_803));
    let servers: [(&str, u16, &Running); 3] =
        [("zvgate", GATEWAY, &server), ("bare hyper", 18_802, &hyper), ("hyper + Value + moka", 18_803, &obvious)];
    let mut all: Vec<Paced> = Vec::new();
    for (name, port, server) in servers {
        let peak = peak(port, server);
        all.extend(LOADS.map(|part| {
            let name = format!("{name}, {:.0} %", part * 100.0);
            Paced { name, port, rate: peak * part, seen: Vec::new() }
        }));
    }
    for turn in 0..bench.rounds * all.len() {
        let turns = all.len();
        let paced = &mut all[turn % turns];
        let requests = (paced.rate * bench.seconds as f64).round();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of requests")]
        let requests = requests as u64;
        let drive = Drive { connections: CONNECTIONS, requests, rate: Some(paced.rate), customer: shuffled };
        let times = drive.run(paced.port);
        paced.seen.push(QUANTILES.map(|quantile| times.value_at_quantile(quantile) as f64));
    }
    let mut text = "### Constant rate: 10,000 customers, 66 connections, 1.7 kB, timed from when each request was due; medians of all rounds\n\n\
        | server, of its peak | a second | p50 | p90 | p99: min / median / max | p99.9 | max |\n| --- | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for paced in &all {
        let half = |place: usize| format!("{:.0} µs", paced.at(place).1);
        let (least, p99, most) = paced.at(2);
        let _ = writeln!(
            text,
            "| {} | {:.0} | {} | {} | {least:.0} / {p99:.0} / {most:.0} µs | {} | {} |",
            paced.name,
            paced.rate,
            half(0),
            half(1),
            half(3),
            half(5)
        );
    }
    bench.report(&text);
    // The 90 % quantile is one in 10: the scale shows how rarely a response is slower.
    let points =
        |paced: &Paced| (0..5).map(|place| (1.0 / (1.0 - QUANTILES[place]), paced.at(place).1.max(1.0))).collect();
    let lines: Vec<Line> = all.iter().map(|paced| Line { name: paced.name.clone(), points: points(paced) }).collect();
    let picture = chart::lines("Time to answer at a constant rate", "one answer in so many is slower", "µs", &lines);
    bench.keep("paced.svg", &picture);
}

/// Requests a second that a server can answer on a saturated core, from the CPU time of one request.
fn peak(port: u16, server: &Running) -> f64 {
    let requests = 200_000;
    let ask = || Drive { connections: CONNECTIONS, requests, rate: None, customer: shuffled }.run(port);
    ask();
    let before = server.cpu();
    ask();
    requests as f64 / (server.cpu() - before)
}

/// Customers in an order that defeats the caches of the CPU.
fn shuffled(number: u64) -> u64 {
    1 + number * 6151 % CUSTOMERS
}
