//! The gateway compared with the others: hits, misses, cores.

use std::path::{Path, PathBuf};

use crate::process::{COUPONS, Place, Running, cores, cores_from, forward, gateway, own, pinned, platform, wait_for};
use crate::table::{Row, measure, table};
use crate::wrk::{Customers, Load};
use crate::{Bench, chart};

const CONNECTIONS: usize = 66;
const CUSTOMERS: usize = 10_000;
const UPSTREAM: u16 = 18_500;
const GATEWAY: u16 = 18_510;
const NGINX_DICT: u16 = 18_520;
const NGINX_CACHE: u16 = 18_521;
const NGINX_SIGN: u16 = 18_522;
const VARNISH: u16 = 18_523;
const FORWARD: u16 = 18_505;

pub(crate) fn run(bench: &mut Bench) {
    let place = Place::new();
    let _platform = platform(UPSTREAM, COUPONS);
    let ours = [("loop", 18_501), ("hyper", 18_502), ("each", 18_503), ("obvious", 18_504)];
    let [bare_loop, hyper, each, obvious] = ours.map(|(kind, port)| (port, own(kind, port)));
    let forwarding = forward(FORWARD, UPSTREAM);
    let one_core = (GATEWAY, gateway(&place, "0", GATEWAY, UPSTREAM, ""));
    let (nginx, varnish) = peers(&place);
    let load = Load {
        cores: cores_from(1),
        connections: CONNECTIONS,
        seconds: bench.seconds,
        customers: Customers::Uniform(CUSTOMERS),
    };
    let hits = measure(
        &[
            ("zvgate", one_core.0, &one_core.1),
            ("bare TCP loop", bare_loop.0, &bare_loop.1),
            ("bare hyper", hyper.0, &hyper.1),
            ("bare hyper, an answer for each customer", each.0, &each.1),
            ("hyper + Value + moka", obvious.0, &obvious.1),
            ("nginx + Lua shared dictionary", NGINX_DICT, &nginx),
            ("nginx + Lua proxy_cache", NGINX_CACHE, &nginx),
            ("Varnish, POST by body", VARNISH, &varnish),
        ],
        &load,
        bench.rounds,
    );
    bench.report(&table("Hits: 10,000 customers, 66 connections, 1.7 kB, one core", &hits));
    bench.keep_raw("hits", &hits);
    bench.keep("peers.svg", &chart::bars(&hits));
    // Ever new customers: no cached answer is requested again.
    let misses = Load { customers: Customers::Uniform(1_000_000_000), ..load.clone() };
    let misses = measure(
        &[
            ("zvgate", one_core.0, &one_core.1),
            ("nginx + Lua, signing, no cache", NGINX_SIGN, &nginx),
            ("bare hyper, forwarding", FORWARD, &forwarding),
        ],
        &misses,
        bench.rounds,
    );
    bench.report(&table("Misses: sign, forward, store, one core", &misses));
    bench.keep_raw("misses", &misses);
    drop((bare_loop, hyper, each, obvious, forwarding, nginx, varnish));
    bench.report(&cores_table(&place, &one_core, bench.rounds, &load));
}

/// Two cores compared with one. Without two more cores for the callers, they share the server's, and hits a second are not
/// comparable: the CPU time of a hit is.
fn cores_table(place: &Place, one: &(u16, Running), rounds: usize, load: &Load) -> String {
    let two = gateway(place, "0,1", GATEWAY + 2, UPSTREAM, "");
    let servers = [("zvgate, one core", one.0, &one.1), ("zvgate, two cores", GATEWAY + 2, &two)];
    let apart = cores() >= 4;
    let callers = if apart { cores_from(2) } else { "0,1".to_owned() };
    let rows: Vec<Row> = measure(&servers, &Load { cores: callers, ..load.clone() }, rounds);
    let (least, half, most) = rows[0].ratio_to(&rows[1], |seen| seen.cpu);
    let gain = format!(
        "Two cores do {:.2} times one, by a core's time ({:.2} to {:.2}).",
        half * 2.0,
        least * 2.0,
        most * 2.0
    );
    let title = if apart { "Cores" } else { "Cores, which the callers share" };
    format!("{}\n{gain}\n", table(title, &rows))
}

/// Starts nginx and Varnish.
fn peers(place: &Place) -> (Running, Running) {
    let own_file = |name: &str| {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(name))
            .expect("a file of ours")
    };
    let words = [
        ("UPSTREAM", UPSTREAM.to_string()),
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
    let [nginx, varnish] =
        [nginx_command, varnish_command].map(|mut command| Running(command.spawn().expect("a process")));
    [NGINX_DICT, NGINX_CACHE, NGINX_SIGN, VARNISH].into_iter().for_each(wait_for);
    (nginx, varnish)
}

fn program(name: &str) -> PathBuf {
    let found =
        ["/usr/sbin", "/usr/bin"].map(|folder| Path::new(folder).join(name)).into_iter().find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is not installed: benches/peers/setup installs it"))
}
