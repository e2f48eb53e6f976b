//! The gateway compared with the others: hits, misses, cores.

use std::path::{Path, PathBuf};

use crate::drive::{CONNECTIONS, fill};
use crate::process::{
    COUPONS, Place, Running, cores, cores_from, forward, gateway, gateways, own, pinned, platform, program, wait_for,
    with_redis,
};
use crate::table::{Row, Server, measure, named, table};
use crate::wrk::{Customers, Load};
use crate::{BEFORE, Bench, chart};

/// Customers that callers ask for, few enough that their answers stay in the core's caches.
const FEW: usize = 100;
/// Customers that callers ask for in a large cache.
const CUSTOMERS: usize = 10_000;
/// Answers in a large cache.
const ENTRIES: usize = 100_000;
const UPSTREAM: u16 = 18_500;
const LOOP: u16 = 18_501;
const HYPER: u16 = 18_502;
const EACH: u16 = 18_503;
const OBVIOUS: u16 = 18_504;
const FORWARD: u16 = 18_505;
const REDIS: u16 = 18_506;
const GATEWAY: u16 = 18_510;
const TWO_CORES: u16 = 18_512;
const UNFILLED: u16 = 18_514;
const FULL: u16 = 18_516;
const NGINX_DICT: u16 = 18_520;
const NGINX_CACHE: u16 = 18_521;
const NGINX_SIGN: u16 = 18_522;
const VARNISH: u16 = 18_523;
const NGINX_FULL: u16 = 18_524;
/// Memory for 100,000 answers and more.
const LARGE_CACHE: &str = "max_bytes = \"512MiB\"";
/// Memory for about 7,000 answers: once it is full, each evicts another.
const SMALL_CACHE: &str = "max_bytes = \"16MiB\"";

/// Servers that are no gateways.
fn others<'a>(servers: &[(&str, u16, &'a Running)]) -> Vec<Server<'a>> {
    servers.iter().map(|(name, port, server)| ((*name).to_owned(), *port, *server)).collect()
}

fn load(bench: &Bench, customers: usize) -> Load {
    Load::new(bench, CONNECTIONS, Customers::Uniform(customers))
}

pub(crate) fn hits(bench: &mut Bench) {
    let place = &Place::new();
    let _platform = platform(UPSTREAM, COUPONS);
    let (nginx, varnish) = (&nginx(place), &varnish(place));
    let kinds = [("loop", LOOP), ("hyper", HYPER), ("each", EACH), ("obvious", OBVIOUS)];
    let [bare_loop, hyper, each, obvious] = kinds.map(|(kind, port)| own(kind, port));
    let redis = with_redis(place, REDIS, REDIS + 1);
    let zvgate = gateways(bench, place, "0", GATEWAY, UPSTREAM, LARGE_CACHE);
    let mut servers = named(&zvgate, "");
    servers.extend(others(&[("bare TCP loop", LOOP, &bare_loop), ("bare hyper", HYPER, &hyper)]));
    let few = measure(&servers, &load(bench, FEW), bench.rounds);
    bench.report(&table("Hits: 100 customers, 66 connections, 1.7 kB, one core", &few));
    bench.keep_raw("hits, 100 customers", &few);
    let mut servers = named(&zvgate, "");
    let caches = [OBVIOUS, REDIS, NGINX_DICT, NGINX_CACHE, VARNISH];
    servers.iter().map(|server| server.1).chain(caches).for_each(|port| fill(port, ENTRIES));
    servers.extend(others(&[
        ("bare TCP loop", LOOP, &bare_loop),
        ("bare hyper", HYPER, &hyper),
        ("bare hyper, an answer for each customer", EACH, &each),
        ("hyper + Value + moka", OBVIOUS, &obvious),
        ("hyper + Value + Redis", REDIS, &redis),
        ("nginx + Lua shared dictionary", NGINX_DICT, nginx),
        ("nginx + Lua proxy_cache", NGINX_CACHE, nginx),
        ("Varnish, POST by body", VARNISH, varnish),
    ]));
    let hits = measure(&servers, &load(bench, CUSTOMERS), bench.rounds);
    bench.report(&table("Hits: 10,000 customers of 100,000 cached, 66 connections, 1.7 kB, one core", &hits));
    bench.keep_raw("hits, large cache", &hits);
    let current: Vec<Row> = hits.into_iter().filter(|row| !row.name.ends_with(BEFORE)).collect();
    bench.keep("peers.svg", &chart::bars(&current));
}

/// Ever new customers: no cached answer is requested again.
pub(crate) fn misses(bench: &mut Bench) {
    let place = &Place::new();
    let _platform = platform(UPSTREAM, COUPONS);
    let nginx = &nginx(place);
    let forwarding = forward(FORWARD, UPSTREAM);
    let full = gateways(bench, place, "0", FULL, UPSTREAM, SMALL_CACHE);
    let unfilled = gateway(place, "0", UNFILLED, UPSTREAM, "max_bytes = \"4GiB\"");
    let mut servers = named(&full, ", full");
    servers.iter().map(|server| server.1).chain([NGINX_FULL]).for_each(|port| fill(port, 20_000));
    servers.extend(others(&[
        ("zvgate, not full", UNFILLED, &unfilled),
        ("nginx + Lua shared dictionary, full", NGINX_FULL, nginx),
        ("nginx + Lua, signing, no cache", NGINX_SIGN, nginx),
        ("bare hyper, forwarding", FORWARD, &forwarding),
    ]));
    let misses = measure(&servers, &load(bench, 1_000_000_000), bench.rounds);
    bench.report(&table("Misses: sign, forward, store; full: 16 MiB, each answer evicts another; one core", &misses));
    bench.keep_raw("misses", &misses);
    let resident = full[0].2.resident() / f64::from(1 << 20);
    bench.report(&format!("Resident after that, with `cache.max_bytes` of 16 MiB: {resident:.0} MiB.\n"));
}

/// Two cores compared with one. Without two more cores for the callers, they share the server's, and hits a second are not
/// comparable: the CPU time of a hit is.
pub(crate) fn by_cores(bench: &mut Bench) {
    let place = &Place::new();
    let _platform = platform(UPSTREAM, COUPONS);
    let one = gateways(bench, place, "0", GATEWAY, UPSTREAM, LARGE_CACHE);
    let two = gateways(bench, place, "0,1", TWO_CORES, UPSTREAM, LARGE_CACHE);
    let mut servers = named(&one, ", one core");
    servers.extend(named(&two, ", two cores"));
    let apart = cores() >= 4;
    let callers = if apart { cores_from(2) } else { "0,1".to_owned() };
    let rows: Vec<Row> = measure(&servers, &Load { cores: callers, ..load(bench, CUSTOMERS) }, bench.rounds);
    let title = if apart { "Cores" } else { "Cores, which the callers share" };
    bench.report(&table(title, &rows));
    let (one, two) = rows.split_at(bench.programs.len());
    for ((one, two), (which, _)) in one.iter().zip(two).zip(bench.programs.clone()) {
        let (least, half, most) = one.ratio_to(two, |seen| seen.cpu);
        let [least, half, most] = [least, half, most].map(|ratio| ratio * 2.0);
        bench
            .report(&format!("Two cores do {half:.2} times one, by a core's time ({least:.2} to {most:.2}){which}.\n"));
    }
    bench.keep_raw("cores", &rows);
}

/// A file of this folder, filled in.
fn filled(place: &Place, name: &str) -> PathBuf {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(name));
    let ports = [
        ("UPSTREAM", UPSTREAM),
        ("DICT", NGINX_DICT),
        ("CACHE", NGINX_CACHE),
        ("SIGN", NGINX_SIGN),
        ("FULL", NGINX_FULL),
    ];
    place.write(name, &text.expect("a file of ours"), &ports.map(|(word, port)| (word, port.to_string())))
}

fn nginx(place: &Place) -> Running {
    let mut command = pinned("0", &program("nginx"));
    command.arg("-c").arg(filled(place, "nginx.conf")).args(["-g", "daemon off; master_process off;"]);
    let running = Running::start(command);
    [NGINX_DICT, NGINX_CACHE, NGINX_SIGN, NGINX_FULL].into_iter().for_each(wait_for);
    running
}

fn varnish(place: &Place) -> Running {
    let mut command = pinned("0", &program("varnishd"));
    command
        .args(["-F", "-a", &format!("127.0.0.1:{VARNISH}"), "-T", "none", "-s", "malloc,512m", "-f"])
        .arg(filled(place, "varnish.vcl"));
    command.arg("-n").arg(place.0.path().join("varnish"));
    let running = Running::start(command);
    wait_for(VARNISH);
    running
}
