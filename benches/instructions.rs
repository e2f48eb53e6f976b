//! Instructions that the gateway executes for a hit and for a miss: a count that does not depend on the load of the machine.
//!
//! `cargo bench --bench instructions` runs `zvgate serve` under callgrind, sends requests until it is warm, and counts the
//! instructions of further requests. A count more than 5 % above that in `benches/instructions.txt` is a failure; `-- --keep`
//! rewrites the file. In the same run, a hit of a replica that shares a Redis with others may have 3 % more than one that is alone, a
//! hit of the typed API 15 %, and a batch of 100 hits 25 times as many. It needs valgrind and Redis, which `.ci/setup` installs.
//! Instructions in the kernel are not counted.

#![expect(clippy::print_stdout, reason = "a bench prints its figures on standard output")]
#![allow(clippy::panic, clippy::indexing_slicing, reason = "a bench that cannot go on ends")]

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The increase over the recorded count that is a failure, in percent.
const TOLERANCE: u64 = 5;
/// Customers of the hits; few, so that hardly two of their requests share a slot in the memo of hits.
const CUSTOMERS: u64 = 100;

/// A count: the number of warm-up requests and of counted ones, and each request.
struct Counted {
    name: &'static str,
    requests: [u64; 2],
    request: fn(u64) -> String,
    /// Whether the gateway shares a Redis with others.
    is_replica: bool,
}

const HIT: Counted =
    Counted { name: "hit", requests: [1000, 2000], request: |number| read(number % CUSTOMERS), is_replica: false };
const MISS: Counted = Counted { name: "miss", requests: [500, 1000], request: read, is_replica: false };
/// Those that are compared with a hit of the same run, each with how many times its instructions it may have, in percent.
const COMPARED: [(Counted, u64); 3] = [
    (Counted { name: "replica_hit", is_replica: true, ..HIT }, 103),
    (Counted { name: "typed_hit", request: |number| typed(number % CUSTOMERS), ..HIT }, 115),
    (Counted { name: "batch_of_100_hits", requests: [20, 100], request: |_| batch(), ..HIT }, 2500),
];

fn id(customer: u64) -> String {
    format!("38393309{customer:010}")
}

fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn read(customer: u64) -> String {
    let body = format!(r#"{{"params":{{"customerId":"{}","useStatus":"","cardId":""}}}}"#, id(customer));
    post("/v3/crm/coupon/getCustomerCoupons", &body)
}

fn typed(customer: u64) -> String {
    format!("GET /v1/customers/{}/coupons HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", id(customer))
}

fn batch() -> String {
    let ids: Vec<_> = (0..CUSTOMERS).map(|customer| format!("\"{}\"", id(customer))).collect();
    post("/v1/coupons:batchGet", &format!("{{\"customerIds\":[{}]}}", ids.join(",")))
}

fn main() {
    let upstream = platform();
    let counted = [HIT, MISS].map(|path| (path.name, count(upstream, &path) / path.requests[1]));
    let [(_, alone), _] = counted;
    let mut is_over = false;
    for (path, percent) in COMPARED {
        let instructions = count(upstream, &path) / path.requests[1];
        let times = instructions as f64 / alone as f64;
        println!("{}: {instructions} instructions, {times:.3} times those of a hit, {percent} % allowed", path.name);
        is_over |= instructions * 100 > alone * percent;
    }
    assert!(!is_over, "more than what is allowed in comparison with a hit");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt");
    if std::env::args().any(|word| word == "--keep") {
        keep(&file, &counted);
        return;
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    if !kept.contains(std::env::consts::ARCH) {
        let arch = std::env::consts::ARCH;
        println!("NOT CHECKED: {} has no counts for {arch}; -- --keep writes it anew", file.display());
        counted.iter().for_each(|(name, instructions)| println!("{name}: {instructions} instructions"));
        return;
    }
    let mut grown = false;
    for (name, instructions) in counted {
        let line = kept.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        let before = line.unwrap_or_else(|| panic!("{} has no count of a {name}", file.display()));
        println!("{name}: {instructions} instructions, {before} kept");
        grown |= instructions * 100 > before * (100 + TOLERANCE);
    }
    assert!(!grown, "more than {TOLERANCE} % above what is kept: make it less, or say why and keep it by -- --keep");
}

/// Writes the counts to the file, with the compiler that was used.
fn keep(file: &Path, counted: &[(&str, u64)]) {
    let compiler = Command::new("rustc").arg("--version").output().expect("rustc");
    let mut text = format!(
        "# Instructions of a request, by `cargo bench --bench instructions -- --keep`: {}, {}",
        std::env::consts::ARCH,
        String::from_utf8_lossy(&compiler.stdout)
    );
    for (name, instructions) in counted {
        let _ = writeln!(text, "{name} {instructions}");
        println!("{name}: {instructions} instructions");
    }
    std::fs::write(file, text).expect("room for a file");
}

/// Instructions of a gateway for the counted requests.
fn count(upstream: SocketAddr, path: &Counted) -> u64 {
    let place = tempfile::tempdir().expect("a folder");
    let listen = free_address();
    let config = place.path().join("zvgate.toml");
    let text = format!(
        r#"[server]
listen = "{listen}"
admin_listen = "127.0.0.1:0"
workers = 1
[upstream]
base_url = "http://{upstream}"
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
"#
    );
    let redis = path.is_replica.then(|| redis(place.path()));
    // Heartbeats are counted, too: with this lease there are few.
    let cluster = redis.as_ref().map(|(_, port)| {
        std::fs::write(place.path().join("key"), "a key of the customer hash").expect("room for a file");
        format!("[cluster]\nreplicas = 1\nurl = \"redis://127.0.0.1:{port}\"\nlease = \"5s\"\n")
    });
    let text = match cluster {
        None => text,
        Some(cluster) => text.replace("[log]\n", "[log]\nhash_key_file = \"key\"\n") + &cluster,
    };
    std::fs::write(&config, text).expect("room for a file");
    let counts = place.path().join("callgrind.out");
    let mut gateway = start(&config, &counts);
    let mut stream = connect(&mut gateway.0, listen);
    let [before, counted] = path.requests;
    ask(&mut stream, (0..before).map(path.request));
    gateway.dump();
    ask(&mut stream, (before..before + counted).map(path.request));
    gateway.dump();
    // The second dump counts from the first one on.
    let counts = std::fs::read_to_string(counts.with_extension("out.2")).expect("what callgrind wrote");
    let totals = counts.lines().find_map(|line| line.strip_prefix("totals: ")?.parse().ok());
    totals.expect("a line of totals")
}

/// A process, such as a gateway under callgrind, killed by its own id when this value is dropped.
struct Gateway(Child);

impl Gateway {
    /// Makes callgrind write its counts since the last dump.
    fn dump(&self) {
        let output = Command::new("vgdb").arg(format!("--pid={}", self.0.id())).arg("dump").output();
        let output = output.expect("vgdb, of valgrind");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn start(config: &Path, counts: &Path) -> Gateway {
    let mut command = Command::new("valgrind");
    command.args(["-q", "--tool=callgrind"]).arg(format!("--callgrind-out-file={}", counts.display()));
    command.arg(env!("CARGO_BIN_EXE_zvgate")).args(["serve", "--config"]).arg(config);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Gateway(command.spawn().expect("valgrind: .ci/setup installs it"))
}

/// A Redis, ended with the value that is returned.
fn redis(folder: &Path) -> (Gateway, u16) {
    let port = free_address().port();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"]).arg(folder);
    let mut redis = Gateway(command.stdout(Stdio::null()).spawn().expect("redis-server: .ci/setup installs it"));
    drop(connect(&mut redis.0, SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    (redis, port)
}

/// Sends requests, one after another.
fn ask(stream: &mut TcpStream, requests: impl Iterator<Item = String>) {
    let mut received = Vec::new();
    for request in requests {
        stream.write_all(request.as_bytes()).expect("a connection");
        read_message(stream, &mut received);
        assert!(received.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&received));
    }
}

fn connect(gateway: &mut Child, address: SocketAddr) -> TcpStream {
    for _ in 0..600 {
        if let Ok(stream) = TcpStream::connect(address) {
            stream.set_nodelay(true).expect("an option of every stream");
            return stream;
        }
        assert!(gateway.try_wait().expect("a child").is_none(), "the gateway ended");
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("the gateway does not come up under callgrind");
}

fn free_address() -> SocketAddr {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    socket.local_addr().expect("a bound socket")
}

/// A mock of the platform, in this process: it answers any call with a list of five coupons.
fn platform() -> SocketAddr {
    let coupon = r#"{"beginAt":"2019-08-24 00:00:00","cardId":"390913445498200065","channel":"naixue","couponId":"390913445519171584","couponType":"0","createdAt":"2019-10-15 17:10:28","customerId":"383933091455959041","title":"","updatedAt":"2019-10-15 17:10:2","useStatus":"0","templateId":"951","endAt":"2999-11-03 23:59:59","extra":""}"#;
    let body = format!(r#"{{"status":"true","code":"0","message":"","data":[{}]}}"#, [coupon; 5].join(","));
    let answer =
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = socket.local_addr().expect("a bound socket");
    std::thread::spawn(move || {
        for mut stream in socket.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let mut received = Vec::new();
                while read_message(&mut stream, &mut received) {
                    stream.write_all(answer.as_bytes()).expect("a gateway");
                }
            });
        }
    });
    address
}

/// Reads a message with its body; returns whether one arrived.
fn read_message(stream: &mut TcpStream, message: &mut Vec<u8>) -> bool {
    message.clear();
    let mut buffer = [0; 8 << 10];
    loop {
        let length = stream.read(&mut buffer).unwrap_or_default();
        if length == 0 {
            return false;
        }
        message.extend_from_slice(&buffer[..length]);
        let Some(head) = message.windows(4).position(|end| end == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&message[..head]).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        if message.len() == head + 4 + length.unwrap_or_default() {
            return true;
        }
    }
}
