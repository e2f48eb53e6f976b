//! Servers as processes on cores of their own.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::loopback;

/// Where the platform's stand-in is.
const PLATFORM: &str = "1";
/// Coupons of an answer: 1.7 kB.
pub(crate) const COUPONS: usize = 5;
pub(crate) const ROUTE: &str = "/v3/crm/coupon/getCustomerCoupons";

/// How many cores there are.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The cores from this one on, up to four in all: where callers are.
pub(crate) fn cores_from(first: usize) -> String {
    let numbers: Vec<String> = (first..cores().clamp(first + 1, 4)).map(|core| core.to_string()).collect();
    numbers.join(",")
}

/// A process that ends with this value, by its own id.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// Seconds of a core's time that it and its children have had.
    pub(crate) fn cpu(&self) -> f64 {
        cpu(self.0.id())
    }

    /// Its resident memory, in bytes.
    pub(crate) fn resident(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line for resident memory");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1024.0
    }
}

/// See proc_pid_stat(5): times are in hundredths of a second on every Linux.
fn cpu(process: u32) -> f64 {
    let of = |name: &str| std::fs::read_to_string(format!("/proc/{process}/{name}")).unwrap_or_default();
    let stat = of("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = [11, 12].iter().filter_map(|place| fields.get(*place)?.parse::<f64>().ok()).sum();
    let children = of(&format!("task/{process}/children"));
    let children: f64 = children.split_whitespace().filter_map(|child| child.parse().ok()).map(cpu).sum();
    ticks / 100.0 + children
}

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
fn start(kind: &str, cores: &str, port: u16, argument: usize) -> Running {
    let program = std::env::current_exe().expect("the path of this program");
    let mut command = pinned(cores, &program);
    command.args(["server", kind, &port.to_string(), &argument.to_string()]);
    let running = Running(command.spawn().expect("a process"));
    wait_for(port);
    running
}

/// Starts one of our own servers on the core that is measured.
pub(crate) fn own(kind: &str, port: u16) -> Running {
    own_with(kind, port, COUPONS)
}

/// The same, whose answers have so many coupons.
pub(crate) fn own_with(kind: &str, port: u16, coupons: usize) -> Running {
    start(kind, "0", port, coupons)
}

/// Starts one that forwards what it is asked, on the core that is measured.
pub(crate) fn forward(port: u16, platform: u16) -> Running {
    start("forward", "0", port, platform.into())
}

/// Starts the platform's stand-in.
pub(crate) fn platform(port: u16, coupons: usize) -> Running {
    start("platform", PLATFORM, port, coupons)
}

/// The gateway with every default, but for the pace, which is what would be measured else, and a longer life of answers;
/// `cache` is more of that table. Its operators' port is the next.
pub(crate) fn gateway(place: &Place, cores: &str, port: u16, upstream: u16, cache: &str) -> Running {
    let running = Running(gateway_command(place, cores, port, upstream, cache).spawn().expect("a process"));
    wait_for(port);
    running
}

/// The command that starts it.
pub(crate) fn gateway_command(place: &Place, cores: &str, port: u16, upstream: u16, cache: &str) -> Command {
    let workers = cores.split(',').count();
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
{cache}
"#,
        port + 1
    );
    let config = place.write(&format!("zvgate-{port}.toml"), &text, &[]);
    let mut command = pinned(cores, Path::new(env!("CARGO_BIN_EXE_zvgate")));
    command.args(["serve", "--config"]).arg(config).env_clear();
    command
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
