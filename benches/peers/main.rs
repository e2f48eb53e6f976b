//! The gateway compared with its alternatives, in one run on one machine; how its cost grows; its latency under a constant
//! load; and its memory and start time.
//!
//! `cargo bench --bench peers` starts each server on its own core, loads the servers in turn from the other cores, prints the
//! results and saves them in `benches/results/`. Arguments select the parts: `-- hits misses cores scale paced resident`;
//! `--rounds=5` and `--seconds=4` set the number of rounds and their length; `--before=PATH` also measures a gateway's program from
//! before a change. It needs wrk, nginx with its Lua module, Varnish with its modules, Redis, and taskset: `benches/peers/setup`
//! installs them. `-- --test` only checks that the servers of this bench answer.

#![expect(clippy::print_stdout, reason = "a bench prints its figures on standard output")]
#![allow(clippy::panic, clippy::indexing_slicing, reason = "a bench that cannot go on ends")]
#![allow(clippy::cast_precision_loss, reason = "figures are printed with three digits")]

mod chart;
mod compare;
mod drive;
mod paced;
mod process;
mod resident;
mod scale;
mod servers;
mod table;
mod wrk;

use std::fmt::Write as _;
use std::iter;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::drive::Drive;
use crate::process::{COUPONS, PROGRAM, Place, forward, gateway, own, platform};
use crate::table::Row;

/// The same allocator as the program's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Appended to the names of the program from before a change.
const BEFORE: &str = ", before";

/// A run: its settings and its results.
struct Bench {
    /// The number of rounds, and the seconds for which each server is loaded in a round.
    rounds: usize,
    seconds: u64,
    /// The programs that are measured, each with what is said of it: this one, and one from before a change.
    programs: Vec<(&'static str, PathBuf)>,
    report: String,
    raw: String,
}

impl Bench {
    fn of(words: &[&str]) -> Self {
        let number = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.parse().ok());
        let rounds = number("--rounds=").and_then(|rounds| usize::try_from(rounds).ok()).unwrap_or(5);
        let seconds = number("--seconds=").unwrap_or(4);
        let before = words.iter().find_map(|word| word.strip_prefix("--before="));
        let programs =
            iter::once(("", PathBuf::from(PROGRAM))).chain(before.map(|path| (BEFORE, PathBuf::from(path)))).collect();
        Self { rounds, seconds, programs, report: String::new(), raw: String::new() }
    }

    /// Prints a part of the results and adds it to the report.
    fn report(&mut self, text: &str) {
        println!("{text}");
        self.report.push_str(text);
        self.report.push('\n');
    }

    /// Records the results of every round.
    fn keep_raw(&mut self, title: &str, rows: &[Row]) {
        for (row, seen) in rows.iter().flat_map(|row| row.seen.iter().map(move |seen| (row, seen))) {
            let (per_second, p99, cpu) = (seen.per_second, seen.p99, seen.cpu);
            let _ = writeln!(self.raw, "{title}\t{}\t{per_second:.0}\t{p99:.0}\t{cpu:.2}", row.name);
        }
    }

    /// Saves a file with the results.
    fn keep(&self, name: &str, text: &str) {
        std::fs::create_dir_all(results()).expect("a folder for results");
        std::fs::write(results().join(name), text).expect("room for results");
    }

    /// Saves the whole report under its date.
    fn end(self, words: &[&str]) {
        let output = |program: &str, arguments: &[&str]| {
            let output = std::process::Command::new(program).args(arguments).output().map(|output| output.stdout);
            String::from_utf8_lossy(&output.unwrap_or_default()).trim().to_owned()
        };
        let date = output("date", &["-u", "+%Y-%m-%d"]);
        let machine = output("sh", &["-c", "lscpu | grep -E 'Model name|L2|L3'; uname -sr; nproc"]);
        let parts: Vec<&str> = PARTS.map(|(name, _)| name).into_iter().filter(|name| chosen(words, name)).collect();
        let words = words.iter().filter(|word| **word != "--bench").copied().collect::<Vec<_>>().join(" ");
        let text = format!(
            "# {date}: `cargo bench --bench peers -- {words}`\n\n```\n{machine}\n```\n\n{}### Raw: requests a second, p99 and a core's time a request in microseconds, in turns\n\n```\n{}```\n",
            self.report, self.raw
        );
        let name = if parts.len() == PARTS.len() { "all".to_owned() } else { parts.join("-") };
        self.keep(&format!("{date}-{name}.md"), &text);
    }
}

fn results() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results")
}

type Part = (&'static str, fn(&mut Bench));
const PARTS: [Part; 6] = [
    ("hits", compare::hits),
    ("misses", compare::misses),
    ("cores", compare::by_cores),
    ("scale", scale::run),
    ("paced", paced::run),
    ("resident", resident::run),
];

/// Whether a part is selected: all are if none is named.
fn chosen(words: &[&str], part: &str) -> bool {
    words.contains(&part) || !PARTS.iter().any(|(name, _)| words.contains(name))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["server", "forward", port, platform] => servers::forwarding(address(port), address(platform)),
        ["server", "redis", port, redis] => servers::redis(address(port), address(redis)),
        ["server", kind, port, coupons] => serve(kind, address(port), coupons),
        _ if words.contains(&"--test") => try_own_servers(),
        _ => {
            let mut bench = Bench::of(&words);
            for (_, run) in PARTS.iter().filter(|(name, _)| chosen(&words, name)) {
                run(&mut bench);
            }
            bench.end(&words);
        }
    }
}

fn address(port: &str) -> SocketAddr {
    loopback(port.parse().expect("a port"))
}

fn serve(kind: &str, address: SocketAddr, coupons: &str) {
    let coupons = coupons.parse().expect("a number of coupons");
    match kind {
        "loop" => servers::bare_loop(address, coupons),
        // The mock of the platform answers every call with the same list.
        "hyper" | "platform" => servers::bare_hyper(address, coupons),
        "each" => servers::each_their_own(address, coupons),
        "obvious" => servers::obvious(address, coupons),
        other => panic!("no server is called {other}"),
    }
}

/// Checks that each server of this bench answers the callers of this bench.
fn try_own_servers() {
    let place = Place::new();
    let _platform = platform(18_600, COUPONS);
    let ours = [("loop", 18_601), ("hyper", 18_602), ("each", 18_603), ("obvious", 18_604)];
    let _servers = ours.map(|(kind, port)| own(kind, port));
    let _forward = forward(18_605, 18_600);
    let _gateway = gateway(&place, "0", 18_610, 18_600, "");
    for port in ours.map(|(_, port)| port).into_iter().chain([18_605, 18_610]) {
        for rate in [None, Some(1000.0)] {
            let times = Drive { connections: 10, requests: 100, rate, customer: |number| number % 30 }.run(port);
            assert_eq!(times.len(), 100);
        }
    }
    println!("our own servers answer");
}
