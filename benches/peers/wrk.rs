//! Closed-loop load by wrk.

use std::path::Path;
use std::process::Command;

use crate::Bench;
use crate::process::{ROUTE, Running, cores_from};

/// Measurements of a server under load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) per_second: f64,
    /// In microseconds.
    pub(crate) p99: f64,
    /// CPU time of the server for a request, in microseconds.
    pub(crate) cpu: f64,
}

/// The distribution of customers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Customers {
    /// Uniform.
    Uniform(usize),
    /// Zipf with exponent 1.
    Zipf(usize),
}

/// The load.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// The cores of wrk, which runs one thread on each.
    pub(crate) cores: String,
    pub(crate) connections: usize,
    pub(crate) seconds: u64,
    pub(crate) customers: Customers,
}

impl Load {
    /// A load of a server that has the first core for itself.
    pub(crate) fn new(bench: &Bench, connections: usize, customers: Customers) -> Self {
        Self { cores: cores_from(1), connections, seconds: bench.seconds, customers }
    }

    /// Loads a server and measures it.
    pub(crate) fn run(&self, port: u16, server: &Running) -> Seen {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/body.lua");
        let threads = self.cores.split(',').count().min(self.connections);
        let mut command = Command::new("taskset");
        command.args(["-c", &self.cores, "wrk", "--latency", "-s"]).arg(script);
        command.args(["-t", &threads.to_string(), "-c", &self.connections.to_string()]);
        command.args(["-d", &format!("{}s", self.seconds), &format!("http://127.0.0.1:{port}/")]);
        command.env("ROUTE", ROUTE);
        match self.customers {
            Customers::Uniform(keys) => command.env("KEYS", keys.to_string()),
            Customers::Zipf(keys) => command.env("KEYS", keys.to_string()).env("ZIPF", "1"),
        };
        let cpu = server.cpu();
        let output = command.output().expect("wrk, of Debian's package wrk");
        let cpu = server.cpu() - cpu;
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "{text}");
        let after = |word: &str| {
            let rest = text.split(word).nth(1).unwrap_or_else(|| panic!("{word} in {text}"));
            rest.split_whitespace().next().unwrap_or_default().to_owned()
        };
        let before = |word: &str| {
            let rest = text.split(word).next().unwrap_or_else(|| panic!("{word} in {text}"));
            rest.split_whitespace().next_back().unwrap_or_default().parse::<f64>().expect("a number")
        };
        Seen {
            per_second: after("Requests/sec:").parse().expect("a number"),
            p99: micros(&after(" 99%")),
            cpu: cpu / before(" requests in ") * 1e6,
        }
    }
}

/// Parses a time of wrk's output, into microseconds.
fn micros(text: &str) -> f64 {
    let (number, factor) = match text {
        text if text.ends_with("us") => (text.trim_end_matches("us"), 1.0),
        text if text.ends_with("ms") => (text.trim_end_matches("ms"), 1e3),
        text => (text.trim_end_matches('s'), 1e6),
    };
    number.parse::<f64>().expect("a number") * factor
}
