//! Callers that are slow on purpose, by slowhttptest: slow heads, slow bodies, ranges, slow reading.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::program::{Running, serve, write_config};
use crate::support::{Caller, Platform, READ, Upstream, metric, post, unix_now};

/// How long each attack lasts, and on how many connections.
const SECONDS: u64 = 30;
const CONNECTIONS: u64 = 1000;

/// Reads as another caller; returns the duration of each request in milliseconds.
async fn ask_until(address: SocketAddr, end: Arc<AtomicBool>) -> Vec<f64> {
    let mut caller = Caller::connect(address).await;
    let mut times = Vec::new();
    while !end.load(Ordering::Relaxed) {
        let sent = unix_now();
        assert_eq!(caller.read("1").await.status, 200);
        times.push((unix_now() - sent) * 1000.0);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    times
}

/// Five other callers read for this long; returns the 99th percentile of their durations, in milliseconds.
async fn p99_of_others(address: SocketAddr, time: Duration) -> f64 {
    let end = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..5).map(|_| tokio::spawn(ask_until(address, Arc::clone(&end)))).collect();
    tokio::time::sleep(time).await;
    end.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for caller in callers {
        times.extend(caller.await.unwrap());
    }
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() * 99 / 100]
}

fn attack(mode: &[&str], url: &str) -> Child {
    let number = |number: u64| number.to_string();
    let mut command = Command::new("slowhttptest");
    command.args(["-c", &number(CONNECTIONS), "-r", "400", "-l", &number(SECONDS), "-p", "3", "-v", "0", "-u", url]);
    command.args(mode).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// All four attacks at the same time, on the data and on the admin listener. What they cost other callers is printed.
#[tokio::test(flavor = "multi_thread")]
async fn slow_callers_do_not_block_others() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let more = "[log]\naccess = \"none\"\n[cache]\nttl = \"1h\"\n";
    let (_gateway, _log, record) = serve(&write_config(folder.path(), &platform.url(), more));
    let address = |key: &str| record[key].as_str().unwrap().parse::<SocketAddr>().unwrap();
    let (data, admin) = (address("listen"), address("admin_listen"));
    assert_eq!(post(data, READ, &[], r#"{"params":{"customerId":"1"}}"#).await.status, 200);
    let quiet = p99_of_others(data, Duration::from_secs(5)).await;
    let (route, metrics) = (format!("http://{data}{READ}"), format!("http://{admin}/metrics"));
    let json = ["-f", "application/json"];
    let _attackers = [
        attack(&["-H", "-t", "POST", "-i", "1"], &route),
        attack(&[&["-B", "-i", "1", "-s", "60000"], &json[..]].concat(), &route),
        attack(&["-R", "-t", "POST"], &route),
        attack(&["-X", "-k", "5", "-w", "10", "-y", "20", "-n", "5", "-z", "32"], &metrics),
    ]
    .map(Running);
    // Once the number of connections no longer grows, any further growth of memory is a leak.
    let mut most = 0.0;
    let early = async {
        let mut ticks_at_most = 0;
        for _ in 0..200 {
            let now = metric(admin, "zvgate_connections").await.unwrap();
            ticks_at_most = if now > most { 0 } else { ticks_at_most + 1 };
            most = f64::max(most, now);
            if ticks_at_most == 80 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        metric(admin, "process_resident_memory_bytes").await.unwrap()
    };
    let (attacked, early) = tokio::join!(p99_of_others(data, Duration::from_secs(SECONDS)), early);
    let late = metric(admin, "process_resident_memory_bytes").await.unwrap();
    println!(
        "others' p99 {quiet:.1} ms alone, {attacked:.1} ms under attack; resident {:.1} MiB once all are connected, {:.1} MiB after {SECONDS} s; at most {most} connections",
        early / f64::from(1 << 20),
        late / f64::from(1 << 20)
    );
    assert!(most >= 100.0, "no attack: {most} connections");
}
