//! The tables: each server in turns, several times, as ratios to the others of the same round.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::chart;
use crate::load::{CALLERS, Load, Place, ROUTE, Running, Seen, ask, gateway, own, pinned, platform, wait_for};

/// How often each server has its turn, and for how many seconds.
const ROUNDS: usize = 5;
const SECONDS: u64 = 4;
const CONNECTIONS: usize = 66;
const CUSTOMERS: usize = 10_000;

/// What a server did in every round.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) seen: Vec<Seen>,
}

impl Row {
    fn median_p99(&self) -> f64 {
        middle(self.seen.iter().map(|seen| seen.p99).collect()).1
    }

    /// Smallest, middle and largest ratio to another server's same round.
    pub(crate) fn ratio_to(&self, other: &Self) -> (f64, f64, f64) {
        middle(self.seen.iter().zip(&other.seen).map(|(own, other)| own.per_second / other.per_second).collect())
    }
}

/// Smallest, middle and largest.
fn middle(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[0], values[values.len() / 2], values[values.len() - 1])
}

/// Gives each server its turn, once to warm it up and then in rounds.
fn measure(servers: &[(&'static str, u16)], load: &Load<'_>, rounds: usize) -> Vec<Row> {
    let mut rows: Vec<Row> = servers.iter().map(|(name, _)| Row { name, seen: Vec::new() }).collect();
    for (_, port) in servers {
        assert!(ask(*port, "1").contains("couponId"), "port {port} does not answer with coupons");
        load.run(*port);
    }
    for _ in 0..rounds {
        for (row, (_, port)) in rows.iter_mut().zip(servers) {
            row.seen.push(load.run(*port));
        }
    }
    rows
}

/// The table of one kind of work, in Markdown; ratios to the first row.
fn table(title: &str, rows: &[Row]) -> String {
    let first = &rows[0];
    let mut text = format!(
        "### {title}\n\n| server | a second, median | of {}: min / median / max | p99, median |\n| --- | --- | --- | --- |\n",
        first.name
    );
    for row in rows {
        let per_second = middle(row.seen.iter().map(|seen| seen.per_second).collect()).1;
        let (least, half, most) = row.ratio_to(first);
        let p99 = row.median_p99() / 1000.0;
        writeln!(text, "| {} | {per_second:.0} | {least:.2} / {half:.2} / {most:.2} | {p99:.2} ms |", row.name)
            .unwrap_or_default();
    }
    text
}

/// nginx and Varnish, where they are installed.
fn peers(place: &Place, upstream: u16) -> Vec<Running> {
    let own_file = |name: &str| {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(name))
            .expect("a file of ours")
    };
    let words = [
        ("UPSTREAM", upstream.to_string()),
        ("DICT", NGINX_DICT.to_string()),
        ("CACHE", NGINX_CACHE.to_string()),
        ("SIGN", NGINX_SIGN.to_string()),
    ];
    let nginx = place.write("nginx.conf", &own_file("nginx.conf"), &words);
    let varnish = place.write("varnish.vcl", &own_file("varnish.vcl"), &words);
    let mut nginx_command = pinned("0", &program("nginx"));
    nginx_command.arg("-c").arg(nginx).args(["-g", "daemon off; master_process off;"]);
    let mut varnish_command = pinned("0", &program("varnishd"));
    varnish_command
        .args(["-F", "-a", &format!("127.0.0.1:{VARNISH}"), "-T", "none", "-s", "malloc,512m", "-f"])
        .arg(varnish);
    varnish_command.arg("-n").arg(place.0.path().join("varnish"));
    let running = [nginx_command, varnish_command].map(|mut command| Running(command.spawn().expect("a process")));
    [NGINX_DICT, NGINX_CACHE, NGINX_SIGN, VARNISH].into_iter().for_each(wait_for);
    running.into()
}

const NGINX_DICT: u16 = 18_520;
const NGINX_CACHE: u16 = 18_521;
const NGINX_SIGN: u16 = 18_522;
const VARNISH: u16 = 18_523;

fn program(name: &str) -> PathBuf {
    let found =
        ["/usr/sbin", "/usr/bin"].map(|folder| Path::new(folder).join(name)).into_iter().find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is not installed: benches/peers/setup installs it"))
}

pub(crate) fn run() {
    let rounds = std::env::args().find_map(|word| word.strip_prefix("--rounds=")?.parse().ok()).unwrap_or(ROUNDS);
    let seconds = std::env::args().find_map(|word| word.strip_prefix("--seconds=")?.parse().ok()).unwrap_or(SECONDS);
    let place = Place::new();
    let _platform = platform(18_500);
    let _servers = [own("loop", "0", 18_501), own("hyper", "0", 18_502), own("obvious", "0", 18_503)];
    let pass = "[[routes]]\npath = \"/v3/crm/coupon/uncached\"\nkind = \"cached\"\nttl = \"0s\"\n";
    let _gateways = [gateway(&place, "0", 1, 18_510, 18_500, pass), gateway(&place, "0,1", 2, 18_512, 18_500, pass)];
    let _peers = peers(&place, 18_500);

    let load = Load { cores: CALLERS, connections: CONNECTIONS, seconds, keys: CUSTOMERS, route: ROUTE };
    let hits = measure(
        &[
            ("zvgate", 18_510),
            ("bare TCP loop", 18_501),
            ("bare hyper", 18_502),
            ("hyper + Value + moka", 18_503),
            ("nginx + Lua shared dictionary", NGINX_DICT),
            ("nginx + Lua proxy_cache", NGINX_CACHE),
            ("Varnish, POST by body", VARNISH),
        ],
        &load,
        rounds,
    );
    // Ever other customers: nothing that was kept is asked for again.
    let misses = Load { keys: 1_000_000_000, ..load };
    let misses = measure(&[("zvgate", 18_510), ("nginx + Lua, signing, no cache", NGINX_SIGN)], &misses, rounds);
    let cores = Load { cores: "2,3", ..load };
    let cores = measure(&[("zvgate, one core", 18_510), ("zvgate, two cores", 18_512)], &cores, rounds);
    let text = [
        table("Hits: 10,000 customers, 66 connections, 1.7 kB, one core", &hits),
        table("Misses: sign, forward, store, one core", &misses),
        table("Cores", &cores),
    ]
    .join("\n");
    println!("{text}");
    keep(&text, &hits);
}

/// Keeps what was measured, dated, and draws it.
fn keep(text: &str, hits: &[Row]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    let output = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output().map(|output| output.stdout);
        String::from_utf8_lossy(&output.unwrap_or_default()).trim().to_owned()
    };
    let (date, machine) =
        (output("date", &["-u", "+%Y-%m-%d"]), output("sh", &["-c", "lscpu | grep 'Model name'; uname -sr; nproc"]));
    let head = format!("# {date}: `cargo bench --bench peers`\n\n```\n{machine}\n```\n\n");
    let raw: Vec<String> = hits
        .iter()
        .flat_map(|row| row.seen.iter().map(|seen| format!("{}\t{:.0}\t{:.0}", row.name, seen.per_second, seen.p99)))
        .collect();
    let raw = format!("\n### Raw: hits a second and p99 in microseconds, in turns\n\n```\n{}\n```\n", raw.join("\n"));
    std::fs::create_dir_all(&folder).expect("a folder for results");
    std::fs::write(folder.join(format!("{date}-peers.md")), head + text + &raw).expect("room for results");
    std::fs::write(folder.join("peers.svg"), chart::bars(hits)).expect("room for a chart");
}
