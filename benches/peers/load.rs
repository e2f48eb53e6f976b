//! Servers as processes on cores of their own, and wrk beside them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{loopback, servers};

/// Where callers are when one core serves.
pub(crate) const CALLERS: &str = "1,2,3";
/// Where the platform's stand-in is.
const PLATFORM: &str = "1";
pub(crate) const ROUTE: &str = "/v3/crm/coupon/getCustomerCoupons";

/// A process that ends with this value, by its own id.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A folder for what servers write.
pub(crate) struct Place(pub(crate) tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// Writes a file, with the words between @ filled in.
    pub(crate) fn write(&self, name: &str, text: &str, words: &[(&str, String)]) -> PathBuf {
        let run = ("RUN", self.0.path().display().to_string());
        let filled = words
            .iter()
            .chain([&run])
            .fold(text.to_owned(), |text, (word, value)| text.replace(&format!("@{word}@"), value));
        let path = self.0.path().join(name);
        std::fs::write(&path, filled).expect("room for a file");
        path
    }
}

/// Runs a program on these cores.
pub(crate) fn pinned(cores: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cores]).arg(program).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Starts one of our own servers.
pub(crate) fn own(kind: &str, cores: &str, port: u16) -> Running {
    let program = std::env::current_exe().expect("the path of this program");
    let mut command = pinned(cores, &program);
    let running = Running(command.args(["server", kind, &port.to_string()]).spawn().expect("a process"));
    wait_for(port);
    running
}

pub(crate) fn platform(port: u16) -> Running {
    own("platform", PLATFORM, port)
}

/// The gateway with every default, but for the pace, which is what would be measured else, and a longer life of answers.
pub(crate) fn gateway(place: &Place, cores: &str, workers: u32, port: u16, upstream: u16, more: &str) -> Running {
    let text = format!(
        r#"[server]
listen = "127.0.0.1:{port}"
admin_listen = "127.0.0.1:{}"
workers = {workers}
max_connections = 20000
[upstream]
base_url = "http://127.0.0.1:{upstream}"
[tenants.bench]
open_id = "d14c1559e87b747d577c834b275a4310"
grant_code = "ba67d4fa46"
open_key = "LyvrkvkxRkG2R6aM55bXpPwjYAbkEXTbVnKwfDYvVHjNwNFAmx"
[limits.upstream]
rate = 0
[log]
access = "none"
[cache]
ttl = "1h"
{more}
"#,
        port + 1
    );
    let config = place.write(&format!("zvgate-{port}.toml"), &text, &[]);
    let mut command = pinned(cores, Path::new(env!("CARGO_BIN_EXE_zvgate")));
    let running = Running(command.args(["serve", "--config"]).arg(config).env_clear().spawn().expect("a process"));
    wait_for(port);
    running
}

/// Waits until somebody answers there.
pub(crate) fn wait_for(port: u16) {
    for _ in 0..2000 {
        if TcpStream::connect(loopback(port)).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("nobody answers on port {port}");
}

/// What wrk saw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) per_second: f64,
    /// In microseconds.
    pub(crate) p99: f64,
}

/// How wrk asks.
#[derive(Clone, Copy)]
pub(crate) struct Load<'a> {
    pub(crate) cores: &'a str,
    pub(crate) connections: usize,
    pub(crate) seconds: u64,
    pub(crate) keys: usize,
    pub(crate) route: &'a str,
}

impl Load<'_> {
    /// Loads a server.
    pub(crate) fn run(&self, port: u16) -> Seen {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/body.lua");
        let threads = self.cores.split(',').count();
        let mut command = Command::new("taskset");
        command.args(["-c", self.cores, "wrk", "--latency", "-s"]).arg(script);
        command.args(["-t", &threads.to_string(), "-c", &self.connections.to_string()]);
        command.args(["-d", &format!("{}s", self.seconds), &format!("http://127.0.0.1:{port}/")]);
        command.env("KEYS", self.keys.to_string()).env("ROUTE", self.route);
        let output = command.output().expect("wrk, of Debian's package wrk");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "{text}");
        let after = |word: &str| {
            let rest = text.split(word).nth(1).unwrap_or_else(|| panic!("{word} in {text}"));
            rest.split_whitespace().next().unwrap_or_default().to_owned()
        };
        Seen { per_second: after("Requests/sec:").parse().expect("a number"), p99: micros(&after("99%")) }
    }
}

/// A time as wrk writes it, in microseconds.
fn micros(text: &str) -> f64 {
    let (number, factor) = match text {
        text if text.ends_with("us") => (text.trim_end_matches("us"), 1.0),
        text if text.ends_with("ms") => (text.trim_end_matches("ms"), 1e3),
        text => (text.trim_end_matches('s'), 1e6),
    };
    number.parse::<f64>().expect("a number") * factor
}

/// Sends one request, and answers all that comes within a moment.
pub(crate) fn ask(port: u16, customer: &str) -> String {
    let body = format!(r#"{{"params":{{"customerId":"{customer}","useStatus":"","cardId":""}}}}"#);
    let mut stream = TcpStream::connect(loopback(port)).expect("a server");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("an option of every stream");
    let length = body.len();
    let head = format!(
        "POST {ROUTE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes()).expect("a connection");
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    let whole = head.len() - head.len() + servers::coupons(5).len();
    while text.len() < whole {
        match stream.read(&mut buffer) {
            Ok(length) if length > 0 => text.extend_from_slice(&buffer[..length]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Sees that each of our own servers answers with the list.
pub(crate) fn try_own_servers() {
    let place = Place::new();
    let _platform = platform(18_600);
    let _servers = ["loop", "hyper", "obvious"].map(|kind| own(kind, "0", port_of(kind)));
    let _gateway = gateway(&place, "0", 1, 18_610, 18_600, "");
    for port in ["loop", "hyper", "obvious"].map(port_of).into_iter().chain([18_610]) {
        let text = ask(port, "1");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("couponId"), "{port}: {text}");
    }
    println!("our own servers answer");
}

fn port_of(kind: &str) -> u16 {
    match kind {
        "loop" => 18_601,
        "hyper" => 18_602,
        _ => 18_603,
    }
}
