//! How replicas find each other, and what keeps them from it.

use std::time::Duration;

use crate::program::{run, write_config, zvgate};
use crate::redis::Redis;
use crate::support::{Platform, TestGateway, Upstream, captured_log, configuration, until};

const UNLIMITED: &[(&str, &str)] = &[("limits.upstream.rate", "0"), ("limits.max_wait", "0s")];

async fn readiness(gateway: &TestGateway) -> (u16, String) {
    let page = gateway.page("/readyz").await;
    (page.status, page.text())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_waits_ten_seconds_for_redis_before_it_is_ready_without() {
    let (platform, mut redis) = (Platform::unlimited().await, Redis::start());
    redis.kill();
    let gateway = redis.early_replica(&platform, UNLIMITED).await;
    assert_eq!(readiness(&gateway).await, (503, "cluster: Redis has not answered yet\n".to_owned()));
    gateway.clock.advance(Duration::from_millis(10_001));
    assert_eq!(readiness(&gateway).await, (200, "ready\n".to_owned()));
    assert_eq!(gateway.read("1").await.status, 200);
    redis.launch();
    until("it has joined", async || gateway.metric("zvgate_cluster_up").await == 1.0).await;
    let other = redis.early_replica(&platform, UNLIMITED).await;
    until("it is ready at once", async || readiness(&other).await.0 == 200).await;
}

/// It could neither be notified of writes nor notify others.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_another_hash_key_does_not_join() {
    let log = captured_log();
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let first = redis.replica(&platform, UNLIMITED).await;
    let key = redis.file("other-key");
    std::fs::write(&key, "another key of the customer hash").unwrap();
    let other: Vec<_> = UNLIMITED.iter().copied().chain([("log.hash_key_file", key.as_str())]).collect();
    let other = redis.early_replica(&platform, &other).await;
    const REASON: &str =
        "cluster: the other replicas have another version of the protocol, or another key in log.hash_key_file\n";
    until("it is not ready, and says why", async || readiness(&other).await == (503, REASON.to_owned())).await;
    other.clock.advance(Duration::from_secs(60));
    assert_eq!(readiness(&other).await.0, 503);
    assert_eq!(first.metric("zvgate_cluster_replicas").await, 1.0);
    let lines = log.lines();
    let failed = lines.iter().filter(|line| line["message"] == "cluster: connection to Redis failed, connecting again");
    let failed = failed.filter(|line| line["cause"].as_str().unwrap().contains("hash_key_file"));
    assert_eq!(failed.count(), 1, "once");
    // Once the others have gone, it is the first.
    drop(first);
    until("it has joined", async || other.metric("zvgate_cluster_up").await == 1.0).await;
    assert_eq!(readiness(&other).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_ends_in_order_is_not_counted_any_more() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let [one, two, three] = redis.replicas(&platform, UNLIMITED).await;
    three.stop.cancel();
    three.done.await.unwrap().unwrap();
    until("two are left", async || one.metric("zvgate_cluster_replicas").await == 2.0).await;
    let members = redis.command(&["keys", "zvgate:*:members"]);
    assert_eq!(redis.command(&["zcard", &members]), "2");
    drop(two);
}

/// Each transition is a log line, once.
#[tokio::test(flavor = "multi_thread")]
async fn transitions_are_logged() {
    let log = captured_log();
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let gateway = redis.replica(&platform, UNLIMITED).await;
    let count = |message: &str| log.lines().iter().filter(|line| line["message"] == message).count();
    assert_eq!(count("cluster: joined"), 1);
    redis.signal("STOP");
    until("it is cut off", async || gateway.metric("zvgate_cluster_up").await == 0.0).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    redis.signal("CONT");
    until("it has joined", async || gateway.metric("zvgate_cluster_up").await == 1.0).await;
    assert_eq!(count("cluster: joined"), 2);
    let lines = log.lines();
    let of = |message: &str| {
        let all = lines.iter().filter(|line| line["message"].as_str().unwrap().starts_with(message));
        all.cloned().collect::<Vec<_>>()
    };
    let disconnected = of("cluster: disconnected");
    assert_eq!(disconnected.len(), 1, "{disconnected:?}");
    assert_eq!(disconnected[0]["cause"], "heartbeat: no answer within 300 ms");
    let failed = of("cluster: connection to Redis failed");
    let causes: std::collections::BTreeSet<_> = failed.iter().map(|line| line["cause"].as_str().unwrap()).collect();
    assert_eq!(causes.len(), failed.len(), "each cause once: {failed:?}");
    let joined = of("cluster: joined");
    assert!(joined[1]["disconnected_ms"].as_u64().unwrap() > 3000, "{joined:?}");
    assert_eq!(joined[1]["primary"], format!("127.0.0.1:{}", redis.port));
    assert!(gateway.metric("zvgate_cluster_lease_lost_total").await > 0.0);
}

/// From the start, and only with Redis.
#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_cluster_exists_from_the_start() {
    let (platform, mut redis) = (Platform::unlimited().await, Redis::start());
    redis.kill();
    let gateway = redis.early_replica(&platform, UNLIMITED).await;
    let page = gateway.page("/metrics").await.text();
    for series in [
        "zvgate_cluster_up 0",
        "zvgate_cluster_replicas 0",
        "zvgate_cluster_lease_lost_total 0",
        "zvgate_cluster_fence_missed_total 0",
        "zvgate_cluster_unfenced_hits_total 0",
        "zvgate_cache_shared_total{result=\"hit\"} 0",
        "zvgate_cache_shared_total{result=\"refused\"} 0",
        "zvgate_cluster_requests_total{op=\"take\",result=\"ok\"} 0",
        "zvgate_cluster_duration_seconds_count{op=\"end\"} 0",
    ] {
        assert!(page.lines().any(|line| line == series), "{series}");
    }
}

/// It is counted, and both lines say what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_command_is_reported() {
    let log = captured_log();
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let gateway = redis.replica(&platform, UNLIMITED).await;
    gateway.read("1").await;
    assert_eq!(redis.command(&["acl", "setuser", "default", "-publish"]), "OK");
    let dropped = gateway.post("/v1/invalidate", &[], r#"{"customerIds":["1"]}"#).await;
    assert_eq!((dropped.status, gateway.metric("zvgate_cluster_fence_missed_total").await), (200, 1.0));
    let lines = log.lines();
    let line = |message: &str| lines.iter().find(|line| line["message"].as_str().unwrap().starts_with(message));
    let refused = line("cluster: Redis refuses a command").unwrap();
    assert!(
        refused["op"] == "end" && refused["error"].as_str().unwrap().contains("can't run this command"),
        "{refused}"
    );
    assert!(line("cluster: invalidation not published").is_some());
    redis.command(&["acl", "setuser", "default", "+publish"]);
    const ENDS: &str = "zvgate_cluster_requests_total{op=\"end\",result=\"ok\"}";
    until("it is published", async || gateway.metric(ENDS).await > 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_a_password_and_the_least_permissions_are_enough() {
    let platform = Platform::unlimited().await;
    let authority = crate::tls::Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/redis");
    let users = folder.path().join("users.acl");
    let acl = std::fs::read_to_string(root.join("users.acl")).unwrap();
    assert!(acl.contains(">REPLACE-THIS-PASSWORD ") && acl.contains(">REPLACE-THIS-PASSWORD-TOO "));
    let acl = acl.replace(">REPLACE-THIS-PASSWORD ", ">correct-horse ").replace(">REPLACE-THIS-PASSWORD-TOO ", ">x ");
    std::fs::write(&users, acl).unwrap();
    let port = crate::redis::free_port();
    let config = std::fs::read_to_string(root.join("redis.conf")).unwrap();
    let config = config.replace("/etc/redis/users.acl", users.to_str().unwrap());
    let file = folder.path().join("redis.conf");
    std::fs::write(&file, config).unwrap();
    let (cert, key) = (authority.path("cert"), authority.path("key"));
    let tls_port = port.to_string();
    let redis = Redis::of(
        &file,
        &["--tls-port", &tls_port, "--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-auth-clients", "no"],
    );
    let password = folder.path().join("password");
    std::fs::write(&password, "correct-horse\n").unwrap();
    let (url, ca) = (format!("rediss://zvgate@localhost:{port}"), authority.path("ca"));
    let overrides = [
        ("limits.upstream.rate", "10"),
        ("cluster.url", url.as_str()),
        ("cluster.ca", ca.as_str()),
        ("cluster.password_file", password.to_str().unwrap()),
    ];
    let [one, two, _three] = redis.replicas(&platform, &overrides).await;
    until("there is a slot", async || one.read("1").await.status == 200).await;
    two.read("1").await;
    let dropped = one.post("/v1/invalidate", &[], r#"{"customerIds":["1"]}"#).await;
    assert_eq!(dropped.text(), r#"{"dropped":1}"#);
    assert!(two.read("1").await.is_stored_miss());
    one.stop.cancel();
    one.done.await.unwrap().unwrap();
    let policy =
        redis.command(&["--user", "admin", "--pass", "x", "--no-auth-warning", "config", "get", "maxmemory-policy"]);
    assert!(policy.ends_with("noeviction"), "{policy}");
    let refused = redis.command(&["--user", "admin", "--pass", "x", "--no-auth-warning", "acl", "log"]);
    assert_eq!(refused, "");

    let config = |more: &str| {
        let more = format!(
            "[log]\nhash_key_file = {:?}\n[cluster]\nreplicas = 3\nurl = {url:?}\n{more}",
            redis.file("hash-key")
        );
        write_config(folder.path(), &platform.url(), &more)
    };
    let live = |more: &str| {
        let config = config(more);
        run(zvgate().args(["check", "--live", "--config"]).arg(config))
    };
    let password = format!("password_file = {password:?}\n");
    let (code, out, err) = live(&format!("ca = {ca:?}\n{password}"));
    assert!(code == 0 && out.contains("live redis: all commands accepted"), "{out}{err}");
    assert!(!out.contains("correct-horse"));
    let (code, out, _) = live(&password);
    assert!(code == 1 && out.contains("live redis: localhost:") && out.contains("UnknownIssuer"), "{out}");
    let (code, _, err) = live(&format!("ca = {ca:?}\n"));
    assert!(code == 2 && err.contains("names a user, without cluster.password_file"), "{err}");
    std::fs::write(folder.path().join("password"), "wrong").unwrap();
    let (code, out, _) = live(&format!("ca = {ca:?}\n{password}"));
    assert!(code == 1 && out.contains("WRONGPASS"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_what_redis_refuses() {
    let platform = Platform::unlimited().await;
    let redis = Redis::with(&[
        "--user",
        "few",
        "on",
        ">few",
        "~zvgate:*",
        "&other:*",
        "+@all",
        "-zadd",
        "-info",
        "--maxmemory-policy",
        "allkeys-lru",
    ]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(redis.file("password"), "few").unwrap();
    let live = |url: &str| {
        let (key, password) = (redis.file("hash-key"), redis.file("password"));
        let more = format!("[log]\nhash_key_file = {key:?}\n[cluster]\nreplicas = 3\nurl = {url:?}\n");
        let more = if url.contains('@') { format!("{more}password_file = {password:?}\n") } else { more };
        run(zvgate().args(["check", "--live", "--config"]).arg(write_config(folder.path(), &platform.url(), &more)))
    };
    let (code, out, _) = live(&redis.url());
    assert!(code == 1 && out.contains("live redis: maxmemory-policy is allkeys-lru; expected noeviction"), "{out}");
    assert_eq!(out.matches("live redis:").count(), 1, "{out}");
    let (code, out, _) = live(&redis.url().replace("//", "//few@"));
    assert_eq!(code, 1);
    for refused in ["ZADD in a script: ", "INFO: ", "PUBLISH:", "SUBSCRIBE:"] {
        assert!(out.contains(&format!("live redis: {refused}")), "{refused}: {out}");
    }
    let (code, out, _) = live("redis://127.0.0.1:1");
    assert!(code == 1 && out.contains("live redis: 127.0.0.1:1: Connection refused"), "{out}");
    let (code, out, _) = live(&format!("redis+sentinel://127.0.0.1:{}/primary", redis.port));
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("live redis:"), "{out}");
}

/// The lowest rate is split, whichever it is, also by a reload.
#[tokio::test(flavor = "multi_thread")]
async fn a_rate_that_cannot_be_split_is_rejected_at_a_reload() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("cluster.replicas", "4")]).await;
    let reload = |overrides: &[(&str, &str)]| gateway.inner.reload(Ok(configuration(&platform, overrides, None)));
    assert!(!reload(&[("limits.upstream.rate", "3")]), "the process counts on four");
    assert!(reload(&[("limits.upstream.rate", "4")]));
}
