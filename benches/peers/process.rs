//! Servers as processes, pinned to cores.

use std::iter;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{Bench, loopback};

/// The core of the mock of the platform.
const PLATFORM: &str = "1";
/// Coupons in an answer: 1.7 kB.
pub(crate) const COUPONS: usize = 5;
pub(crate) const ROUTE: &str = "/v3/crm/coupon/getCustomerCoupons";

/// The number of cores.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The cores for callers: from this one on, up to the fourth.
pub(crate) fn cores_from(first: usize) -> String {
    let numbers: Vec<String> = (first..cores().clamp(first + 1, 4)).map(|core| core.to_string()).collect();
    numbers.join(",")
}

/// A server: its process, and that of a server that it needs. They are killed by their own ids when this value is dropped.
pub(crate) struct Running(Child, Option<Child>);

impl Running {
    /// Starts a server.
    pub(crate) fn start(mut command: Command) -> Self {
        Self(command.spawn().expect("a process"), None)
    }

    /// CPU seconds of its processes and their children.
    pub(crate) fn cpu(&self) -> f64 {
        self.processes().map(|process| cpu(process.id())).sum()
    }

    fn processes(&self) -> impl Iterator<Item = &Child> {
        iter::once(&self.0).chain(&self.1)
    }

    /// Its resident memory, in bytes.
    pub(crate) fn resident(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line for resident memory");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1024.0
    }
}

/// See proc_pid_stat(5): Linux reports times in hundredths of a second.
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
        for process in iter::once(&mut self.0).chain(&mut self.1) {
            process.kill().ok();
            process.wait().ok();
        }
    }
}

/// A folder for the files of servers.
pub(crate) struct Place(pub(crate) tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// Writes a file, with the placeholders between @ replaced.
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

/// Starts a server of this bench.
fn start(kind: &str, cores: &str, port: u16, argument: usize) -> Running {
    let program = std::env::current_exe().expect("the path of this program");
    let mut command = pinned(cores, &program);
    command.args(["server", kind, &port.to_string(), &argument.to_string()]);
    let running = Running::start(command);
    wait_for(port);
    running
}

/// Starts a server of this bench on the measured core.
pub(crate) fn own(kind: &str, port: u16) -> Running {
    own_with(kind, port, COUPONS)
}

/// The same, with this many coupons in its answers.
pub(crate) fn own_with(kind: &str, port: u16, coupons: usize) -> Running {
    start(kind, "0", port, coupons)
}

/// Starts a forwarding server on the measured core.
pub(crate) fn forward(port: u16, platform: u16) -> Running {
    start("forward", "0", port, platform.into())
}

/// Starts a server with Redis as its cache, both on the measured core.
pub(crate) fn with_redis(place: &Place, port: u16, redis_port: u16) -> Running {
    let mut command = pinned("0", &program("redis-server"));
    command.args(["--bind", "127.0.0.1", "--port", &redis_port.to_string(), "--save", "", "--dir"]);
    command.arg(place.0.path()).args(["--maxmemory", "512mb", "--maxmemory-policy", "allkeys-lru"]);
    let redis = command.spawn().expect("a process");
    wait_for(redis_port);
    let mut running = start("redis", "0", port, redis_port.into());
    running.1 = Some(redis);
    running
}

/// The path of a server that Debian installs.
pub(crate) fn program(name: &str) -> PathBuf {
    let found =
        ["/usr/sbin", "/usr/bin"].map(|folder| Path::new(folder).join(name)).into_iter().find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is not installed: benches/peers/setup installs it"))
}

/// Starts the mock of the platform.
pub(crate) fn platform(port: u16, coupons: usize) -> Running {
    start("platform", PLATFORM, port, coupons)
}

/// Starts the gateway with defaults, except that calls are not paced and answers live longer; `cache` is added to that table.
/// The admin port is the next one.
pub(crate) fn gateway(place: &Place, cores: &str, port: u16, upstream: u16, cache: &str) -> Running {
    start_gateway(Path::new(PROGRAM), place, cores, port, upstream, cache)
}

/// Starts each of the programs that are measured: each has ports of its own.
pub(crate) fn gateways(
    bench: &Bench,
    place: &Place,
    cores: &str,
    port: u16,
    upstream: u16,
    cache: &str,
) -> Vec<(&'static str, u16, Running)> {
    let ports = (port..).step_by(PORTS);
    let started =
        bench.programs.iter().zip(ports).map(|((which, program), port)| {
            (*which, port, start_gateway(program, place, cores, port, upstream, cache))
        });
    started.collect()
}

fn start_gateway(program: &Path, place: &Place, cores: &str, port: u16, upstream: u16, cache: &str) -> Running {
    let running = Running::start(gateway_command(program, place, cores, port, upstream, cache));
    wait_for(port);
    running
}

/// The gateway's program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_zvgate");
/// From a port of one program to the same one of the next.
const PORTS: usize = 40;

/// The command that starts the gateway.
pub(crate) fn gateway_command(
    program: &Path,
    place: &Place,
    cores: &str,
    port: u16,
    upstream: u16,
    cache: &str,
) -> Command {
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
    let mut command = pinned(cores, program);
    command.args(["serve", "--config"]).arg(config).env_clear();
    command
}

/// Waits until a server accepts connections on this port.
pub(crate) fn wait_for(port: u16) {
    for _ in 0..2000 {
        if TcpStream::connect(loopback(port)).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("nobody answers on port {port}");
}
