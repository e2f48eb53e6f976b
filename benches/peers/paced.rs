//! How late answers are under a load that does not wait for them: requests are due at a constant rate, and each is timed from
//! when it was due.

use std::fmt::Write as _;

use crate::Bench;
use crate::chart::{self, Line};
use crate::drive::Drive;
use crate::process::{COUPONS, Place, Running, gateway, own, platform};

const UPSTREAM: u16 = 18_800;
const GATEWAY: u16 = 18_810;
const CONNECTIONS: usize = 66;
const CUSTOMERS: u64 = 10_000;
/// Places on the way to the slowest answer.
const PERCENTILES: [f64; 5] = [50.0, 90.0, 99.0, 99.9, 100.0];

pub(crate) fn run(bench: &mut Bench) {
    let place = Place::new();
    let _platform = platform(UPSTREAM, COUPONS);
    let server = gateway(&place, "0", GATEWAY, UPSTREAM, "");
    let (hyper, obvious) = (own("hyper", 18_802), own("obvious", 18_803));
    let mut text = "### Constant rate: 10,000 customers, 66 connections, 1.7 kB, timed from when each request was due\n\n\
        | server | of its peak | a second | p50 | p90 | p99 | p99.9 | max |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    let mut lines = Vec::new();
    let servers: [(&str, u16, &Running); 3] =
        [("zvgate", GATEWAY, &server), ("bare hyper", 18_802, &hyper), ("hyper + Value + moka", 18_803, &obvious)];
    for (name, port, server) in servers {
        let peak = peak(port, server);
        for part in [0.5, 0.8] {
            let rate = peak * part;
            let requests = (rate * bench.seconds as f64).round();
            // Each second of the plan is so many requests; they are few enough to count.
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of requests")]
            let requests = requests as u64;
            let times = Drive { connections: CONNECTIONS, requests, rate: Some(rate), customer: shuffled }.run(port);
            let at = PERCENTILES.map(|percent| times.value_at_quantile(percent / 100.0));
            let told = at.map(|micros| format!("{micros} µs")).join(" | ");
            let _ = writeln!(text, "| {name} | {:.0} % | {rate:.0} | {told} |", part * 100.0);
            // 90 % is one in 10: the scale is of how seldom an answer is slower.
            let seldom = [0.5, 0.1, 0.01, 0.001, 0.0001];
            let points = seldom.map(|left| (1.0 / left, times.value_at_quantile(1.0 - left).max(1) as f64));
            lines.push(Line { name: format!("{name}, {:.0} %", part * 100.0), points: points.into() });
        }
    }
    bench.tell(&text);
    let picture = chart::lines("Time to answer at a constant rate", "one answer in so many is slower", "µs", &lines);
    bench.keep("paced.svg", &picture);
}

/// Requests a second that a server answers when its core has nothing left, by what one takes of its time.
fn peak(port: u16, server: &Running) -> f64 {
    let requests = 200_000;
    let ask = || Drive { connections: CONNECTIONS, requests, rate: None, customer: shuffled }.run(port);
    ask();
    let before = server.cpu();
    ask();
    requests as f64 / (server.cpu() - before)
}

/// Customers in no order that a cache of the machine foresees.
fn shuffled(number: u64) -> u64 {
    1 + number * 6151 % CUSTOMERS
}
