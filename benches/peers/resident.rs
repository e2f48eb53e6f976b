//! Resources of the gateway: memory of an idle connection and of an entry, start time, and the size of the program.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::drive::{CONNECTIONS, Drive, body};
use crate::process::{COUPONS, PROGRAM, Place, ROUTE, Running, gateway, gateway_command, gateways, platform};
use crate::table::middle;
use crate::{Bench, loopback};

const UPSTREAM: u16 = 18_900;
const GATEWAY: u16 = 18_910;
const IDLE: usize = 10_000;
const ENTRIES: u64 = 100_000;
const STARTS: usize = 20;

pub(crate) fn run(bench: &mut Bench) {
    let _platform = platform(UPSTREAM, COUPONS);
    let mut text = "### Memory, start, size\n\n| what | measured |\n| --- | --- |\n".to_owned();
    let idle = idle_connection() / 1024.0;
    let _ = writeln!(text, "| resident for each of 10,000 idle connections that carried a hit | {idle:.1} KiB |");
    for (which, stored, hit) in entry(bench) {
        let _ =
            writeln!(text, "| resident for each of 100,000 entries, beyond body and key{which} | {stored:.0} bytes |");
        let _ = writeln!(text, "| the same once each was asked for three times{which} | {hit:.0} bytes |");
    }
    let (least, half, most) = starts();
    let _ = writeln!(
        text,
        "| from the program's start to ready: min / median / max of {STARTS} | {least:.1} / {half:.1} / {most:.1} ms |"
    );
    let size = std::fs::metadata(PROGRAM).map_or(0, |file| file.len());
    let _ = writeln!(text, "| the program's file | {:.1} MB |", size as f64 / 1e6);
    bench.report(&text);
}

/// Memory of an idle connection that has served a hit.
fn idle_connection() -> f64 {
    let place = Place::new();
    let server = gateway(&place, "0", GATEWAY, UPSTREAM, "");
    Drive { connections: 10, requests: 1000, rate: None, customer: |_| 1 }.run(GATEWAY);
    let before = settled(&server);
    let body = body(1);
    let request = format!(
        "POST {ROUTE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut buffer = [0; 8 << 10];
    let open = |_| {
        let mut stream = TcpStream::connect(loopback(GATEWAY)).expect("room for a connection");
        stream.write_all(request.as_bytes()).expect("a connection");
        let length = stream.read(&mut buffer).expect("a connection");
        assert!(buffer[..length].starts_with(b"HTTP/1.1 200 "), "connections are kept");
        stream
    };
    let _streams: Vec<TcpStream> = (0..IDLE).map(open).collect();
    (settled(&server) - before) / IDLE as f64
}

/// Memory of an entry beyond its body and key, after it is stored and after it is hit; of each program.
fn entry(bench: &Bench) -> Vec<(&'static str, f64, f64)> {
    let place = Place::new();
    let servers = gateways(bench, &place, "0", GATEWAY, UPSTREAM, "max_bytes = \"1GiB\"");
    let measured = servers.iter().map(|(which, port, server)| {
        let ask = |from: u64, requests: u64| {
            Drive { connections: CONNECTIONS, requests, rate: None, customer: |number| from + number }.run(*port);
        };
        // Warm-up, so that memory that any used gateway has is not counted.
        ask(1_000_000, 1000);
        let before = settled(server);
        ask(0, ENTRIES);
        let stored = settled(server);
        for _ in 0..3 {
            ask(0, ENTRIES);
        }
        let hit = settled(server);
        // The key is the path and the body, without empty optional members.
        let key = ROUTE.len() + r#" {"params":{"customerId":"383933090000000001"}}"#.len();
        let own = (crate::servers::coupons(COUPONS).len() + key) as f64;
        let each = |resident: f64| (resident - before) / ENTRIES as f64 - own;
        (*which, each(stored), each(hit))
    });
    measured.collect()
}

/// Resident memory once no request is in flight.
fn settled(server: &Running) -> f64 {
    std::thread::sleep(Duration::from_secs(5));
    server.resident()
}

/// Milliseconds from start to ready.
#[expect(clippy::disallowed_methods, reason = "a bench measures with the clock that is made for it")]
fn starts() -> (f64, f64, f64) {
    let place = Place::new();
    let start = |_| {
        let command = gateway_command(Path::new(PROGRAM), &place, "0", GATEWAY, UPSTREAM, "");
        let begun = Instant::now();
        let _running = Running::start(command);
        while !is_ready() {
            std::thread::sleep(Duration::from_micros(200));
        }
        begun.elapsed().as_secs_f64() * 1000.0
    };
    middle((0..STARTS).map(start).collect())
}

fn is_ready() -> bool {
    let Ok(mut stream) = TcpStream::connect(loopback(GATEWAY + 1)) else { return false };
    let mut text = String::new();
    let asked = stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    asked.and_then(|()| stream.read_to_string(&mut text)).is_ok() && text.starts_with("HTTP/1.1 200")
}
