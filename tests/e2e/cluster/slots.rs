//! The rate towards the platform, which counts strictly: shared through Redis, or split.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use super::history::{RATE, part, platform};
use crate::redis::Redis;
use crate::support::{Platform, READ, TestGateway, WRITE, until};

/// Callers that ask each replica for one customer after another.
struct Flood {
    /// Reads that were answered, by replica.
    counts: Vec<Arc<AtomicUsize>>,
    _tasks: tokio::task::JoinSet<()>,
}

impl Flood {
    fn start(replicas: &[Arc<TestGateway>], callers: usize) -> Self {
        let (mut counts, mut tasks) = (Vec::new(), tokio::task::JoinSet::new());
        for (place, replica) in replicas.iter().enumerate() {
            let count = Arc::<AtomicUsize>::default();
            counts.push(Arc::clone(&count));
            for caller in 0..callers {
                let (replica, count) = (Arc::clone(replica), Arc::clone(&count));
                tasks.spawn(async move {
                    for number in 0.. {
                        let reply = replica.read(&format!("{place}-{caller}-{number}")).await;
                        count.fetch_add(usize::from(reply.status == 200), Ordering::SeqCst);
                    }
                });
            }
        }
        Self { counts, _tasks: tasks }
    }

    fn counts(&self) -> Vec<usize> {
        self.counts.iter().map(|count| count.load(Ordering::SeqCst)).collect()
    }

    /// Waits until so many more were answered; returns how many each replica had, and how long that took. Calls come in bursts, one in
    /// each `per`: only whole periods can be compared.
    async fn measure(&self, calls: usize) -> (Vec<usize>, Duration) {
        let clock = zvgate::clock::Clock::system();
        let (began, before) = (clock.boot(), self.counts());
        let difference =
            || -> Vec<usize> { self.counts().iter().zip(&before).map(|(now, before)| now - before).collect() };
        while difference().iter().sum::<usize>() < calls {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        (difference(), clock.boot().since(began))
    }
}

/// The part of the rate that was used.
fn used(calls: usize, took: Duration) -> f64 {
    calls as f64 / took.as_secs_f64() / RATE as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn flooded_replicas_use_the_shared_rate_and_a_third_of_it_each() {
    let (platform, redis) = (platform().await, Redis::start());
    let overrides = [("limits.upstream.rate", "100"), ("limits.max_wait", "10s")];
    let replicas = redis.replicas(&platform, &overrides).await.map(Arc::new);
    let flood = Flood::start(&replicas, 20);
    flood.measure(2 * RATE).await;
    let calls = 2 * RATE * usize::try_from(part().as_secs()).unwrap();
    let (counts, took) = flood.measure(calls).await;
    println!("{counts:?} in {took:?}: {:.3} of the rate", used(calls, took));
    assert_eq!(platform.stats().await["refused"], json!({}), "the platform rejected a call");
    assert!(used(calls, took) >= 0.9);
    for count in counts {
        let third = calls as f64 / 3.0;
        assert!((count as f64 - third).abs() <= 0.2 * third, "{count} of {calls}");
    }
}

/// One that is alone in asking may use what the others do not.
#[tokio::test(flavor = "multi_thread")]
async fn one_busy_replica_uses_the_whole_rate() {
    let (platform, redis) = (platform().await, Redis::start());
    let overrides = [("limits.upstream.rate", "100"), ("limits.max_wait", "10s")];
    let replicas = redis.replicas(&platform, &overrides).await.map(Arc::new);
    let flood = Flood::start(&replicas[..1], 60);
    flood.measure(2 * RATE).await;
    let calls = RATE * usize::try_from(part().as_secs()).unwrap();
    let (_, took) = flood.measure(calls).await;
    println!("{took:?}: {:.3} of the rate", used(calls, took));
    assert_eq!(platform.stats().await["refused"], json!({}), "the platform rejected a call");
    assert!(used(calls, took) >= 0.9);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_each_replica_uses_its_part_of_the_rate() {
    let platform = Platform::rate_limited().await;
    let overrides = [("cluster.replicas", "3"), ("limits.max_wait", "0s")];
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(Arc::new(TestGateway::start(&platform, &overrides).await));
    }
    let rate = format!("zvgate_upstream_rate{{route=\"{READ}\",tenant=\"one\"}}");
    assert_eq!(replicas[0].metric(&rate).await, 3.0);
    for replica in &replicas {
        let mut statuses = Vec::new();
        for number in 0..4 {
            statuses.push(replica.read(&format!("{}-{number}", replica.address)).await.status);
        }
        assert_eq!(statuses, [200, 200, 200, 429]);
    }
    let flood = Flood::start(&replicas, 10);
    flood.measure(9 * 3).await;
    drop(flood);
    assert_eq!(platform.stats().await["refused"], json!({}), "the platform rejected a call");
    assert_eq!(replicas[0].page("/readyz").await.status, 200);
    assert!(!replicas[0].page("/metrics").await.text().contains("zvgate_cluster_"), "there is no Redis");
}

/// A free slot is granted, and one that is not is rejected with the time when it is, although nobody waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_wait_gets_a_slot_that_is_free() {
    let (platform, redis) = (Platform::rate_limited().await, Redis::start());
    let overrides = [("limits.max_wait", "0s"), ("limits.upstream.per", "60s"), ("limits.upstream.transit", "0s")];
    let one = Arc::new(redis.replica(&platform, &overrides).await);
    let before = one.read("0").await;
    before.assert_error(429, "upstream_limited");
    assert!(before.header("retry-after").parse::<u32>().unwrap() > 50, "a new namespace: {before:?}");
    let overrides = [("limits.max_wait", "0s"), ("limits.upstream.transit", "0s"), ("cluster.replicas", "1")];
    let two = Redis::start();
    let one = Arc::new(two.replica(&platform, &overrides).await);
    until("there is a slot", async || one.read("0").await.status == 200).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let reads = (0..20).map(|number| {
        let one = Arc::clone(&one);
        tokio::spawn(async move { one.read(&format!("n{number}")).await })
    });
    let mut statuses = Vec::new();
    for read in reads.collect::<Vec<_>>() {
        let reply = read.await.unwrap();
        if reply.status != 200 {
            reply.assert_error(429, "upstream_limited");
        }
        statuses.push(reply.status);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 10, "{statuses:?}");
}

/// Connecting took longer than a slot is reserved for: the call takes another one, and gives the first one back.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_came_too_early_is_taken_again() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (platform, redis) = (Platform::rate_limited().await, Redis::start());
    let listener = tokio::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let address = platform.address;
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let length = client.read(&mut head).await?;
                assert!(head[..length].starts_with(b"CONNECT "));
                tokio::time::sleep(Duration::from_millis(700)).await;
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                let mut server = tokio::net::TcpStream::connect(address).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    let overrides = [("upstream.proxy", proxy.as_str()), ("cluster.replicas", "1"), ("upstream.max_inflight", "1")];
    let one = redis.replica(&platform, &overrides).await;
    const TAKEN: &str = "zvgate_cluster_requests_total{op=\"take\",result=\"ok\"}";
    const CHANGED: &str = "zvgate_cluster_requests_total{op=\"slot\",result=\"ok\"}";
    // The namespace is new.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let before = (one.metric(TAKEN).await, one.metric(CHANGED).await);
    assert_eq!(one.read("1").await.status, 200);
    until("all is counted", async || one.metric(CHANGED).await == before.1 + 3.0).await;
    assert_eq!(one.metric(TAKEN).await, before.0 + 2.0, "released, sent, answered");
    assert_eq!(platform.requests(READ).await, 1);
}

/// Throttling of one's call, and a pause that the platform asks one replica for, hold for all.
#[tokio::test(flavor = "multi_thread")]
async fn throttling_and_pauses_are_shared() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let overrides = [("limits.max_wait", "100ms"), ("upstream.retries", "0"), ("cache.stale_if_error", "0s")];
    let [one, two, _three] = redis.replicas(&platform, &overrides).await;
    let rate = format!("zvgate_upstream_rate{{route=\"{WRITE}\",tenant=\"one\"}}");
    assert_eq!(two.metric(&rate).await, 10.0);
    platform.faults(json!({ "fault": "throttle", "route": WRITE })).await;
    let body = json!({ "params": { "bizId": "b", "customerId": "1", "couponsCardList": ["1"] } }).to_string();
    assert_eq!(one.post(WRITE, &[], &body).await.json()["code"], 110_004);
    until("the other is throttled, too", async || two.metric(&rate).await < 10.0).await;
    platform.faults(json!({ "fault": "http503", "route": READ, "times": 1 })).await;
    let paused = one.read("1").await;
    assert_eq!((paused.status, paused.header("retry-after")), (503, "7"));
    platform.without_faults().await;
    until("the other pauses, too", async || two.read("2").await.status == 429).await;
    two.read("3").await.assert_error(429, "upstream_limited");
}
