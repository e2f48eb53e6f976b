//! Replicas as processes, of which one is suspended or killed.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use crate::program::{Running, serve_with, write_config};
use crate::redis::Redis;
use crate::support::{Platform, READ, Upstream, WRITE, metric, post, until};

pub(super) struct Process {
    pub(super) running: Running,
    _log: std::io::BufReader<std::process::ChildStderr>,
    pub(super) address: SocketAddr,
    pub(super) admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Process {
    async fn start(platform: &Platform, redis: &Redis, more: &str) -> Self {
        Self::start_with(platform, redis, more, &[]).await
    }

    /// Starts it with these environment variables.
    pub(super) async fn start_with(
        platform: &Platform,
        redis: &Redis,
        more: &str,
        environment: &[(&str, std::path::PathBuf)],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let more = format!(
            "[log]\nhash_key_file = {:?}\naccess = \"none\"\nwrites = false\n[cluster]\nreplicas = 3\nurl = {:?}\n[cache]\nsettle = \"0s\"\n{more}",
            redis.file("hash-key"),
            redis.url()
        );
        let config = write_config(folder.path(), &platform.url(), &more);
        let (running, log, record) = serve_with(&config, environment);
        let address = |name: &str| record[name].as_str().unwrap().parse().unwrap();
        let (address, admin) = (address("listen"), address("admin_listen"));
        until("it has joined", async || metric(admin, "zvgate_cluster_up").await == Some(1.0)).await;
        Self { running, _log: log, address, admin, _folder: folder }
    }

    async fn read(&self) -> crate::support::Reply {
        post(self.address, READ, &[], r#"{"params":{"customerId":"1"}}"#).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_replica_delays_a_write_by_a_lease_and_serves_nothing_from_before_it() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let (one, two) = (Process::start(&platform, &redis, "").await, Process::start(&platform, &redis, "").await);
    let card = until_read(&one).await.json()["data"]["list"][0]["cardId"].clone();
    let mut served = 0;
    for number in 1..6 {
        until("it holds the answer", async || two.read().await.is_hit()).await;
        // Sometimes while the end of the write waits for it.
        let (suspended, resumed) = (Duration::from_millis(20 * (number % 2)), Duration::from_millis(150 * number));
        let path = if number % 2 == 1 { WRITE } else { crate::support::REVERSE };
        let body = json!({ "params": {
            "bizId": format!("b{}", number.div_ceil(2)), "customerId": "1", "couponsCardList": [card],
        } });
        let write = tokio::spawn(async move { post(one.address, path, &[], &body.to_string()).await });
        tokio::time::sleep(suspended).await;
        two.running.signal("STOP");
        let written = tokio::time::timeout(Duration::from_secs(5), write).await.unwrap().unwrap();
        assert_eq!(written.json()["code"], 0, "{written:?}");
        // Asked while it is suspended: it answers when it continues.
        let address = two.address;
        let read = tokio::spawn(async move { post(address, READ, &[], r#"{"params":{"customerId":"1"}}"#).await });
        tokio::time::sleep(resumed).await;
        two.running.signal("CONT");
        let read = read.await.unwrap();
        served += usize::from(read.status == 200);
        assert!(read.status != 200 || read.text().contains(&format!("version={number}")), "{number}: {read:?}");
        until("it has joined", async || metric(two.admin, "zvgate_cluster_up").await == Some(1.0)).await;
    }
    assert!(served > 0, "no read succeeded");
    assert_eq!(metric(one.admin, "zvgate_cluster_fence_missed_total").await, Some(0.0));
}

async fn until_read(process: &Process) -> crate::support::Reply {
    until("there is a slot", async || process.read().await.status == 200).await;
    process.read().await
}

/// Nobody may use its part of the rate until it has been silent for a while, and it may be among those that are live again.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_is_replaced_without_a_rejected_call() {
    let (platform, redis) = (Platform::start(9, zvgate::clock::Clock::system()).await, Redis::start());
    let rate = "[limits]\nmax_wait = \"10s\"\nupstream = { rate = 9, per = \"1s\", transit = \"500ms\" }\n";
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(Process::start(&platform, &redis, rate).await);
    }
    let flood = |address: SocketAddr, name: &'static str| {
        tokio::spawn(async move {
            let mut number = 0;
            loop {
                number += 1;
                let body = json!({ "params": { "customerId": format!("{name}-{number}") } }).to_string();
                let address = tokio::net::TcpStream::connect(address).await.map(|_| address);
                let Ok(address) = address else { return };
                post(address, READ, &[], &body).await;
            }
        })
    };
    until("there is a slot", async || all[0].read().await.status == 200).await;
    let flooding = [flood(all[0].address, "a"), flood(all[1].address, "b"), flood(all[2].address, "c")];
    let replicas = async || metric(all[0].admin, "zvgate_cluster_replicas").await;
    until("all are live", async || replicas().await == Some(3.0)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // The last one.
    let killed = &all[2].running;
    killed.signal("KILL");
    until("it is silent", async || replicas().await == Some(2.0)).await;
    let next = Process::start(&platform, &redis, rate).await;
    until("another is live", async || replicas().await == Some(3.0)).await;
    let flooding_next = flood(next.address, "d");
    let before = platform.requests(READ).await;
    until("calls are made again", async || platform.requests(READ).await > before + 20).await;
    flooding.iter().chain([&flooding_next]).for_each(tokio::task::JoinHandle::abort);
    assert_eq!(platform.stats().await["refused"], json!({}), "the platform rejected a call");
}

/// Whoever starts is warm, and whoever waits for the dead does not wait for long.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_killed_and_replaced_under_load_fetches_nothing_that_is_shared() {
    const CUSTOMERS: usize = 40;
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let unlimited = "ttl = \"600s\"\n[limits]\nupstream = { rate = 0 }\n";
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(Process::start(&platform, &redis, unlimited).await);
    }
    let ask = async |address: SocketAddr, customer: usize| {
        let body = json!({ "params": { "customerId": format!("c{customer}") } }).to_string();
        post(address, READ, &[], &body).await
    };
    for customer in 0..CUSTOMERS {
        until("there is an answer", async || ask(all[customer % 3].address, customer).await.status == 200).await;
    }
    let stored = async || {
        let mut sum = 0.0;
        for process in &all {
            sum += metric(process.admin, "zvgate_cache_shared_total{result=\"stored\"}").await.unwrap();
        }
        sum
    };
    until("all are stored", async || stored().await >= CUSTOMERS as f64).await;
    let load: Vec<_> = all[..2]
        .iter()
        .map(|process| {
            let address = process.address;
            tokio::spawn(async move {
                for number in 0.. {
                    let body = json!({ "params": { "customerId": format!("c{}", number % CUSTOMERS) } }).to_string();
                    let reply = post(address, READ, &[], &body).await;
                    assert_eq!(reply.status, 200, "{reply:?}");
                }
            })
        })
        .collect();
    let before = platform.requests(READ).await;
    // One that fetches while it is killed, for which another waits.
    platform.faults(json!({ "latency_ms": 60_000 })).await;
    let (killed, waiting) = (all[2].address, all[0].address);
    let lost = tokio::spawn(async move { ask_late(killed).await });
    until("it was sent", async || platform.requests(READ).await == before + 1).await;
    platform.without_faults().await;
    let waits = tokio::spawn(async move { ask_late(waiting).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    all[2].running.signal("KILL");
    let reply = tokio::time::timeout(Duration::from_secs(5), waits).await.unwrap().unwrap();
    assert_eq!((reply.status, platform.requests(READ).await), (200, before + 2), "{reply:?}");
    let next = Process::start(&platform, &redis, unlimited).await;
    for customer in 0..CUSTOMERS {
        let reply = ask(next.address, customer).await;
        assert!(super::answers::is_shared(&reply), "{reply:?}");
    }
    assert_eq!(platform.requests(READ).await, before + 2);
    assert!(load.iter().all(|task| !task.is_finished()), "the others served all the time");
    load.iter().for_each(tokio::task::JoinHandle::abort);
    lost.abort();
}

async fn ask_late(address: SocketAddr) -> crate::support::Reply {
    let address = tokio::net::TcpStream::connect(address).await.map(|_| address).unwrap();
    post(address, READ, &[], r#"{"params":{"customerId":"late"}}"#).await
}
