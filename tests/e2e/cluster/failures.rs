//! Redis fails, or is out of reach, or is another one; nothing stale is read, and the platform rejects no call.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use super::answers::is_shared;
use super::history::{OVERRIDES, Run, part, platform};
use crate::redis::{Redis, connections, free_port};
use crate::support::{Caller, Platform, READ, TestGateway, WRITE, until};

async fn replicas(platform: &Platform, redis: &Redis, more: &[(&str, &str)]) -> [Arc<TestGateway>; 3] {
    let overrides: Vec<_> = OVERRIDES.iter().chain(more).copied().collect();
    redis.replicas(platform, &overrides).await.map(Arc::new)
}

async fn pause(parts: f64) {
    tokio::time::sleep(part().mul_f64(parts)).await;
}

async fn joined(gateways: &[Arc<TestGateway>]) {
    for gateway in gateways {
        until("all have joined", async || gateway.metric("zvgate_cluster_up").await == 1.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_fails() {
    for lease in ["200ms", "0s"] {
        let (platform, redis) = (platform().await, Redis::start());
        let gateways = replicas(&platform, &redis, &[("cluster.lease", lease)]).await;
        let run = Run::start("nothing fails", &platform, &gateways).await;
        pause(2.0).await;
        let counts = run.finish(&platform).await;
        assert_eq!((counts.unfenced, counts.failed), (0, 0));
        for gateway in &gateways {
            assert_eq!(gateway.metric("zvgate_cluster_fence_missed_total").await, 0.0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_stopped_and_continues() {
    let (platform, redis) = (platform().await, Redis::start());
    let gateways = replicas(&platform, &redis, &[]).await;
    let run = Run::start("Redis stopped for 5 s", &platform, &gateways).await;
    pause(1.0).await;
    redis.signal("STOP");
    tokio::time::sleep(Duration::from_secs(5)).await;
    redis.signal("CONT");
    joined(&gateways).await;
    pause(1.0).await;
    run.finish(&platform).await;
}

/// Shorter than it takes until a replica is cut off: commands are executed late.
#[tokio::test(flavor = "multi_thread")]
async fn redis_stutters() {
    let (platform, redis) = (platform().await, Redis::start());
    let gateways = replicas(&platform, &redis, &[]).await;
    let run = Run::start("Redis stutters", &platform, &gateways).await;
    for _ in 0..part().as_secs() * 6 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        redis.signal("STOP");
        tokio::time::sleep(Duration::from_millis(fastrand::u64(200..450))).await;
        redis.signal("CONT");
    }
    joined(&gateways).await;
    run.finish(&platform).await;
    let lost = gateways[0].metric("zvgate_cluster_lease_lost_total").await;
    assert!(lost > 1.0, "{lost}: heartbeats were late");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_killed_and_restarted() {
    let (platform, mut redis) = (platform().await, Redis::start());
    let gateways = replicas(&platform, &redis, &[]).await;
    let run = Run::start("Redis killed, at once and for a while", &platform, &gateways).await;
    for outage in [0, 2] {
        pause(1.0).await;
        let mut before = Vec::new();
        for gateway in &gateways {
            before.push(connections(gateway).await);
        }
        redis.kill();
        tokio::time::sleep(Duration::from_secs(outage)).await;
        redis.launch();
        for (gateway, before) in gateways.iter().zip(before) {
            until("it has connected again", async || connections(gateway).await > before).await;
        }
        joined(&gateways).await;
    }
    pause(1.0).await;
    run.finish(&platform).await;
}

/// What it does for consistency needs hardly any memory, and is allowed to have it.
#[tokio::test(flavor = "multi_thread")]
async fn redis_is_full() {
    let (platform, redis) = (platform().await, Redis::start());
    let gateways = replicas(&platform, &redis, &[]).await;
    let run = Run::start("Redis is full", &platform, &gateways).await;
    pause(1.0).await;
    assert_eq!(redis.command(&["config", "set", "maxmemory", "1000"]), "OK");
    assert!(redis.command(&["set", "a", "b"]).contains("OOM"));
    let before = gateways[0].metric("zvgate_cluster_requests_total{op=\"end\",result=\"ok\"}").await;
    pause(1.0).await;
    run.finish(&platform).await;
    assert!(gateways[0].metric("zvgate_cluster_requests_total{op=\"end\",result=\"ok\"}").await > before);
    for gateway in &gateways {
        assert_eq!(gateway.metric("zvgate_cluster_up").await, 1.0);
        assert_eq!(gateway.metric("zvgate_cluster_fence_missed_total").await, 0.0);
    }
}

/// A proxy before Redis, which may stop to pass anything on.
struct Proxy {
    address: SocketAddr,
    is_open: Arc<AtomicBool>,
}

impl Proxy {
    async fn start(to: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, is_open) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(true)));
        let opens = Arc::clone(&is_open);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await else { continue };
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                tokio::spawn(pass_on(from_client, to_server, Arc::clone(&opens)));
                tokio::spawn(pass_on(from_server, to_client, Arc::clone(&opens)));
            }
        });
        Self { address, is_open }
    }
}

async fn pass_on(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    is_open: Arc<AtomicBool>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut bytes = vec![0; 65536];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        while !is_open.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_out_of_reach_for_one_replica() {
    let (platform, redis) = (platform().await, Redis::start());
    let proxy = Proxy::start(redis.port).await;
    let url = format!("redis://{}", proxy.address);
    let far: Vec<_> = OVERRIDES.iter().copied().chain([("cluster.url", url.as_str())]).collect();
    let gateways = [
        Arc::new(redis.replica(&platform, OVERRIDES).await),
        Arc::new(redis.replica(&platform, OVERRIDES).await),
        Arc::new(redis.replica(&platform, &far).await),
    ];
    let run = Run::start("Redis out of reach for one replica", &platform, &gateways).await;
    for outage in [0.4, 4.0] {
        pause(1.0).await;
        proxy.is_open.store(false, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs_f64(outage)).await;
        if outage > 1.0 {
            let up = [gateways[0].metric("zvgate_cluster_up").await, gateways[2].metric("zvgate_cluster_up").await];
            assert_eq!(up, [1.0, 0.0]);
        }
        proxy.is_open.store(true, Ordering::SeqCst);
        joined(&gateways).await;
    }
    pause(1.0).await;
    run.finish(&platform).await;
}

/// A clock that jumps begins a new namespace: nothing that was measured by it counts any more.
#[tokio::test(flavor = "multi_thread")]
async fn the_clock_of_a_replica_jumps() {
    let (platform, redis) = (platform().await, Redis::start());
    let gateways = replicas(&platform, &redis, &[]).await;
    let run = Run::start("a replica's clock jumps", &platform, &gateways).await;
    for jump in [300, 20_000] {
        pause(1.0).await;
        gateways[1].clock.advance(Duration::from_millis(jump));
    }
    pause(1.0).await;
    joined(&gateways).await;
    run.finish(&platform).await;
    assert_ne!(redis.command(&["get", "zvgate:jumps"]), "");
}

/// Its wall clock alone steps, which nothing here is measured by.
#[tokio::test(flavor = "multi_thread")]
async fn the_wall_clock_of_a_replica_steps() {
    let (platform, redis) = (platform().await, Redis::start());
    let gateways = replicas(&platform, &redis, &[]).await;
    let run = Run::start("a replica's wall clock steps", &platform, &gateways).await;
    for step in [100_000, -200_000] {
        pause(0.5).await;
        gateways[1].clock.step_wall(step);
    }
    run.finish(&platform).await;
    assert_eq!(redis.command(&["get", "zvgate:jumps"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_of_redis_jumps() {
    let platform = platform().await;
    let mut redis = Redis::start();
    redis.kill();
    let (library, clock) = (redis.file("clock.so"), redis.file("clock"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/cluster/clock.c");
    let compiled = std::process::Command::new("cc").args(["-shared", "-fPIC", "-o", &library, source]).status();
    assert!(compiled.unwrap().success());
    std::fs::write(&clock, "0").unwrap();
    redis.environment = vec![("LD_PRELOAD".to_owned(), library), ("CLOCK_FILE".to_owned(), clock.clone())];
    redis.launch();
    let gateways = replicas(&platform, &redis, &[]).await;
    let run = Run::start("Redis' clock jumps", &platform, &gateways).await;
    for jump in ["60", "-3600"] {
        pause(1.0).await;
        std::fs::write(&clock, jump).unwrap();
    }
    pause(1.0).await;
    joined(&gateways).await;
    let rate = format!("zvgate_upstream_rate{{route=\"{READ}\",tenant=\"one\"}}");
    run.finish(&platform).await;
    for gateway in &gateways {
        assert_eq!(gateway.metric(&rate).await, 100.0);
        until("nothing waits for the old time", async || gateway.read("new").await.status == 200).await;
    }
    let jumps: u32 = redis.command(&["get", "zvgate:jumps"]).parse().unwrap();
    assert!(jumps >= 2, "{jumps}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_primary_takes_over_and_back_under_sentinel() {
    let platform = platform().await;
    let mut redis = Redis::start();
    let port = redis.port.to_string();
    let mut other = Redis::with(&["--replicaof", "127.0.0.1", &port]);
    let sentinel = free_port();
    let file = redis.file("sentinel.conf");
    let settings = format!(
        "port {sentinel}\nbind 127.0.0.1\nsentinel monitor primary 127.0.0.1 {port} 1\nsentinel down-after-milliseconds primary 500\nsentinel failover-timeout primary 2000\n"
    );
    std::fs::write(&file, settings).unwrap();
    let process = std::process::Command::new("redis-sentinel").arg(&file).stdout(std::process::Stdio::null()).spawn();
    let _sentinel = crate::program::Running(process.unwrap());
    // The first two do not answer.
    let deaf = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let deaf = deaf.local_addr().unwrap();
    let url = format!("redis+sentinel://{deaf},{deaf},127.0.0.1:{sentinel}/primary");
    let gateways = replicas(&platform, &redis, &[("cluster.url", &url)]).await;
    let role = |redis: &Redis| redis.command(&["role"]).lines().next().unwrap_or_default().to_owned();
    let run = Run::start("failover and failback", &platform, &gateways).await;
    pause(1.0).await;
    until("the other follows", async || other.command(&["info", "replication"]).contains("master_link_status:up"))
        .await;
    redis.kill();
    until("the other is the primary", async || role(&other) == "master").await;
    joined(&gateways).await;
    pause(1.0).await;
    redis.launch();
    until("the first follows", async || redis.command(&["info", "replication"]).contains("master_link_status:up"))
        .await;
    other.kill();
    until("the first is the primary again", async || role(&redis) == "master").await;
    joined(&gateways).await;
    pause(1.0).await;
    run.finish(&platform).await;
    other.launch();
}

/// A primary gets a new replication id when a replica of it attaches, and runs on: nobody may stay in the namespace of the old one.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_redis_attaches() {
    let (platform, redis) = (platform().await, Redis::start());
    let gateways = replicas(&platform, &redis, &[]).await;
    let run = Run::start("a replica of Redis attaches", &platform, &gateways).await;
    pause(1.0).await;
    let other = Redis::with(&["--replicaof", "127.0.0.1", &redis.port.to_string()]);
    until("the other follows", async || other.command(&["info", "replication"]).contains("master_link_status:up"))
        .await;
    // One of the gateways connects again, and is in a namespace that the others have to follow it to.
    let id = redis.command(&["client", "list", "type", "pubsub"]);
    let id = id.split(' ').next().unwrap().trim_start_matches("id=").to_owned();
    let mut before = Vec::new();
    for gateway in &gateways {
        before.push(connections(gateway).await);
    }
    assert_eq!(redis.command(&["client", "kill", "id", &id]), "1");
    for (gateway, before) in gateways.iter().zip(before) {
        until("it has connected again", async || connections(gateway).await > before).await;
        until("all act as one", async || gateway.metric("zvgate_cluster_replicas").await == 3.0).await;
    }
    pause(1.0).await;
    run.finish(&platform).await;
}

/// The connection that no heartbeat uses is lost: it is noticed.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_connections_is_lost() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let gateway = redis.replica(&platform, &[("limits.upstream.rate", "0")]).await;
    let before = connections(&gateway).await;
    let list = redis.command(&["client", "list", "type", "normal"]);
    let data = list.lines().find(|line| line.contains(" cmd=time ") || line.contains(" cmd=info ")).unwrap();
    let id = data.split(' ').next().unwrap().trim_start_matches("id=");
    assert_eq!(redis.command(&["client", "kill", "id", id]), "1");
    until("it has connected again", async || connections(&gateway).await > before).await;
    until("it has joined", async || gateway.metric("zvgate_cluster_up").await == 1.0).await;
    assert_eq!(gateway.read("1").await.header("cache-status"), "zvgate; fwd=miss; stored; ttl=30");
}

/// Longer than it takes until a silent replica is cut off.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_lease_does_not_cut_off() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let gateway = redis.replica(&platform, &[("cluster.lease", "5s"), ("limits.upstream.rate", "0")]).await;
    gateway.read("1").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(gateway.read("1").await.is_hit());
    assert_eq!(connections(&gateway).await, 1.0);
}

/// A caller that does not wait until it is certain gets what is held all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_short_deadline_is_no_error_if_memory_holds_an_answer() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let gateway = redis.replica(&platform, &[("limits.upstream.rate", "0")]).await;
    gateway.read("1").await;
    redis.signal("STOP");
    tokio::time::sleep(Duration::from_millis(220)).await;
    let body = |customer: &str| json!({ "params": { "customerId": customer } }).to_string();
    let hurry = [("x-request-timeout-ms", "50")];
    let held = gateway.post(READ, &hurry, &body("1")).await;
    assert!(held.header("cache-status").ends_with("; detail=stale-if-error"), "{held:?}");
    gateway.post(READ, &hurry, &body("2")).await.assert_error(504, "upstream_timeout");
    assert_eq!(gateway.metric("zvgate_cluster_unfenced_hits_total").await, 1.0);
    redis.signal("CONT");
}

/// What memory holds is served in place of failures, at once, and counted; nothing goes to the platform for a while, then this
/// replica's own part of the rate.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_served_while_redis_is_out_of_reach() {
    const UNFENCED: &str = "zvgate_cluster_unfenced_hits_total";
    let (platform, redis) = (Platform::rate_limited().await, Redis::start());
    let overrides = [("limits.max_wait", "100ms"), ("cache.unsettled_ttl", "1s"), ("cache.settle", "0s")];
    let [one, two, three] = redis.replicas(&platform, &overrides).await;
    let customers: Vec<String> = (0..8).map(|number| number.to_string()).collect();
    for customer in &customers {
        until("there is a slot", async || one.read(customer).await.status == 200).await;
    }
    let stored = platform.requests(READ).await;
    redis.signal("STOP");
    until("it is cut off", async || one.metric("zvgate_cluster_up").await == 0.0).await;
    assert_eq!(one.metric(UNFENCED).await, 0.0);
    for customer in &customers {
        let held = one.read(customer).await;
        let status = held.header("cache-status");
        assert!(status.starts_with("zvgate; hit; ttl=") && status.ends_with("; detail=stale-if-error"), "{held:?}");
    }
    assert_eq!(one.metric(UNFENCED).await, 8.0);
    let unknown = one.read("nobody").await;
    unknown.assert_error(429, "upstream_limited");
    assert_eq!(one.page("/readyz").await.status, 200);
    assert_eq!(platform.requests(READ).await, stored);
    assert_eq!(two.read("nobody").await.status, 429, "nor through another");
    // Then a third of ten, of which what is held takes nothing that others wait for.
    until("its part may be used", async || one.read("nobody").await.status == 200).await;
    let fetched = one.read("nobody").await;
    assert!(fetched.is_hit(), "{fetched:?}");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let refetched = one.read("nobody").await;
    assert!(refetched.header("cache-status").starts_with("zvgate; fwd=miss; stored; ttl=1"), "{refetched:?}");
    for _ in 0..30 {
        for customer in &customers {
            assert_eq!(one.read(customer).await.status, 200, "it is held");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    redis.signal("CONT");
    for replica in [&one, &two, &three] {
        until("it has joined", async || replica.metric("zvgate_cluster_up").await == 1.0).await;
    }
    assert!(is_shared(&one.read("0").await), "its own memory is not served any more");
    assert_eq!(platform.stats().await["refused"], json!({}), "the platform rejected a call");
}

/// A write while Redis is out of reach is sent and counted, or rejected, and is published later.
#[tokio::test(flavor = "multi_thread")]
async fn writes_while_redis_is_out_of_reach_are_sent_or_refused() {
    for refuses in [false, true] {
        let (platform, redis) = (Platform::unlimited().await, Redis::start());
        let proxy = Proxy::start(redis.port).await;
        let url = format!("redis://{}", proxy.address);
        let unfenced = ("cluster.unfenced_writes", if refuses { "refuse" } else { "send" });
        let overrides = [("limits.upstream.rate", "0"), ("cache.settle", "0s"), unfenced];
        let near = redis.replica(&platform, &overrides).await;
        let far: Vec<_> = overrides.iter().copied().chain([("cluster.url", url.as_str())]).collect();
        let far = redis.replica(&platform, &far).await;
        let card = near.read("1").await.json()["data"]["list"][0]["cardId"].clone();
        far.read("1").await;
        proxy.is_open.store(false, Ordering::SeqCst);
        until("it is cut off", async || far.metric("zvgate_cluster_up").await == 0.0).await;
        let body = json!({ "params": { "bizId": "b", "customerId": "1", "couponsCardList": [card] } }).to_string();
        let written = far.post(WRITE, &[], &body).await;
        let missed = far.metric("zvgate_cluster_fence_missed_total").await;
        if refuses {
            written.assert_error(503, "unavailable");
            assert_eq!((written.header("x-zvgate-outcome"), missed), ("not-sent", 0.0));
            assert_eq!(platform.requests(WRITE).await, 0);
        } else {
            assert_eq!((written.header("x-zvgate-outcome"), missed), ("executed", 1.0));
            assert!(far.read("1").await.text().contains("version=1"), "written through this replica");
            assert!(near.read("1").await.text().contains("version=0"), "it cannot know");
        }
        proxy.is_open.store(true, Ordering::SeqCst);
        until("it has joined", async || far.metric("zvgate_cluster_up").await == 1.0).await;
        let version = if refuses { "version=0" } else { "version=1" };
        until("the others learn of it", async || near.read("1").await.text().contains(version)).await;
        if refuses {
            assert_eq!(far.post(WRITE, &[], &body).await.header("x-zvgate-outcome"), "executed");
        }
    }
}

/// Whoever asks just then waits until it is certain that Redis is out of reach, and nobody waits after that.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_redis_delays_a_hit_once() {
    let (platform, redis) = (platform().await, Redis::start());
    let overrides: Vec<_> = OVERRIDES.iter().copied().chain([("cache.ttl", "1h")]).collect();
    let [one, ..] = redis.replicas(&platform, &overrides).await;
    assert!(one.read("1").await.is_stored_miss() && one.read("1").await.is_hit());
    let mut caller = Caller::connect(one.address).await;
    let clock = zvgate::clock::Clock::system();
    let (began, mut took) = (clock.boot(), Vec::new());
    redis.signal("STOP");
    // Until it may use its part of the rate, and fetches again.
    while clock.boot().since(began) < Duration::from_millis(2500) {
        let asked = clock.boot();
        let reply = caller.read("1").await;
        took.push(clock.boot().since(asked));
        assert!(reply.header("cache-status").starts_with("zvgate; hit; ttl="), "{reply:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    took.sort_unstable();
    println!("{} hits; the slowest: {:?}", took.len(), took.iter().rev().take(3).collect::<Vec<_>>());
    let delayed = took.iter().filter(|took| **took > Duration::from_millis(150)).count();
    assert_eq!(delayed, 1, "it takes longer than a lease to be certain");
}
