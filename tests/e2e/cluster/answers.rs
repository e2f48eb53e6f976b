//! What ends through one replica, ends through all.

use std::io::Read;

use http::Method;
use serde_json::{Value, json};

use crate::redis::Redis;
use crate::support::{Platform, READ, Reply, TestGateway, WRITE, send, until};

const UNLIMITED: [(&str, &str); 2] = [("limits.upstream.rate", "0"), ("cache.settle", "0s")];

fn write_off(customer: Option<&str>, card: &Value, biz: &str) -> String {
    json!({ "params": { "bizId": biz, "customerId": customer, "couponsCardList": [card] } }).to_string()
}

/// Reads a customer through all replicas until it is a hit; returns its first coupon.
async fn warm(replicas: &[TestGateway], customer: &str) -> Value {
    for replica in replicas {
        replica.read(customer).await;
        assert!(replica.read(customer).await.is_hit());
    }
    replicas[0].read(customer).await.json()["data"]["list"][0]["cardId"].clone()
}

pub(super) async fn delete(gateway: &TestGateway, page: &str) -> Reply {
    let request = http::Request::builder().method(Method::DELETE).uri(page).header("host", "localhost");
    send(gateway.admin, request.body(http_body_util::Full::default()).unwrap()).await
}

/// Whether another replica had fetched it.
pub(super) fn is_shared(reply: &Reply) -> bool {
    let cache_status = reply.header("cache-status");
    cache_status.starts_with("zvgate; hit; ttl=") && cache_status.ends_with("; detail=shared")
}

/// Which replicas answer from their own memory.
async fn hits(replicas: &[TestGateway], customer: &str) -> Vec<bool> {
    let mut hits = Vec::new();
    for replica in replicas {
        let reply = replica.read(customer).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        hits.push(reply.is_hit() && !is_shared(&reply));
    }
    hits
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_one_replica_is_seen_through_the_others() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let replicas = redis.replicas(&platform, &UNLIMITED).await;
    let card = warm(&replicas, "1").await;
    let written = replicas[1].post(WRITE, &[], &write_off(Some("1"), &card, "b")).await;
    assert_eq!(written.header("x-zvgate-outcome"), "executed", "{written:?}");
    for replica in &replicas {
        let read = replica.read("1").await;
        assert!(read.is_stored_miss() || is_shared(&read), "{read:?}");
        assert!(read.text().contains("version=1"), "{read:?}");
        assert!(replica.read("1").await.is_hit());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_ends_answers_does_so_in_all_replicas() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let replicas = redis.replicas(&platform, &UNLIMITED).await;
    let [one, two, three] = &replicas;
    for customer in ["1", "2"] {
        warm(&replicas, customer).await;
    }
    let body = json!({ "customerIds": ["1"] }).to_string();
    assert_eq!(one.post("/v1/invalidate", &[], &body).await.json(), json!({ "dropped": 1 }));
    assert_eq!(hits(&replicas, "1").await, [false; 3]);
    assert_eq!(hits(&replicas, "2").await, [true; 3]);

    assert_eq!(delete(two, "/cache/customers/2").await.json(), json!({ "dropped": 1 }));
    assert_eq!(hits(&replicas, "2").await, [false; 3]);
    assert_eq!(hits(&replicas, "1").await, [true; 3]);

    assert_eq!(delete(three, "/cache?tenant=two").await.status, 200);
    assert_eq!(hits(&replicas, "1").await, [true; 3], "another merchant's");
    for purge in ["/cache?tenant=one", "/cache?all=true"] {
        assert_eq!(delete(three, purge).await.status, 200);
        assert_eq!(hits(&replicas, "1").await, [false; 3], "{purge}");
    }

    // Nobody knows whose coupon it is: the platform does not know it either.
    let card = warm(&replicas, "1").await;
    platform.faults(json!({ "fault": "http500", "route": WRITE })).await;
    let unknown = one.post(WRITE, &[], &write_off(None, &card, "x")).await;
    assert_eq!(unknown.header("x-zvgate-outcome"), "unknown", "{unknown:?}");
    assert_eq!(hits(&replicas, "1").await, [false; 3]);
    platform.without_faults().await;

    let other = json!({ "params": { "customerId": "1", "useStatus": "0" } }).to_string();
    for replica in &replicas {
        replica.post(READ, &[], &other).await;
    }
    warm(&replicas, "1").await;
    let fetched = two.post(READ, &[("cache-control", "no-cache")], &other).await;
    assert_eq!(fetched.header("cache-status"), "zvgate; fwd=request");
    assert_eq!(hits(&replicas, "1").await, [false; 3], "a newer answer was served");
    assert!(two.post(READ, &[], &other).await.is_hit(), "that one");
    assert!(one.post(READ, &[], &other).await.body == fetched.body);

    // One that fails is no newer answer.
    for replica in &replicas {
        replica.read("1").await;
    }
    platform.faults(json!({ "fault": "http500", "route": READ })).await;
    two.post(READ, &[("cache-control", "no-cache")], &other).await;
    assert_eq!(hits(&replicas, "1").await, [true; 3], "nothing newer was served");
}

/// It was not notified of the write, and the platform may lag behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_joins_late_knows_that_the_platform_may_lag() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let overrides = [("limits.upstream.rate", "0"), ("cache.settle", "30s"), ("cache.unsettled_ttl", "1s")];
    let early = redis.replica(&platform, &overrides).await;
    let card = early.read("1").await.json()["data"]["list"][0]["cardId"].clone();
    early.post(WRITE, &[], &write_off(Some("1"), &card, "b")).await;
    let late = redis.replica(&platform, &overrides).await;
    assert_eq!(late.read("1").await.header("cache-status"), "zvgate; fwd=miss; stored; ttl=1");
    assert_eq!(late.read("2").await.header("cache-status"), "zvgate; fwd=miss; stored; ttl=30");
    // After a write of whose customer nobody knows, this goes for all of the merchant's.
    platform.faults(json!({ "fault": "http500", "route": WRITE })).await;
    early.post(WRITE, &[], &write_off(None, &card, "x")).await;
    platform.without_faults().await;
    let last = redis.replica(&platform, &overrides).await;
    assert_eq!(last.read("3").await.header("cache-status"), "zvgate; fwd=miss; stored; ttl=1");
}

/// A refresh needs a slot that must be asked for, and nobody waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_answer_is_refreshed_with_a_shared_slot() {
    let (platform, redis) = (Platform::rate_limited().await, Redis::start());
    let overrides = [("cache.ttl", "1s"), ("cache.stale_while_revalidate", "20s")];
    let [one, ..] = redis.replicas(&platform, &overrides).await;
    let before = platform.requests(READ).await;
    let first = one.read("1").await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let stale = one.read("1").await;
    assert!(stale.header("cache-status").ends_with("; detail=stale-while-revalidate"), "{first:?} {stale:?}");
    until("it is refreshed", async || platform.requests(READ).await == before + 2).await;
    until("it is fresh", async || one.read("1").await.is_hit()).await;
}

/// Customers have other names in memory, and the log shows the same hashes all the same.
#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_shows_the_same_customer_for_a_hit_as_for_a_miss() {
    let log = crate::support::captured_log();
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let overrides = [("limits.upstream.rate", "0"), ("log.access", "all")];
    let one = redis.replica(&platform, &overrides).await;
    for _ in 0..3 {
        one.read("1").await;
    }
    let lines = log.lines();
    let customers: Vec<_> =
        lines.iter().filter(|line| line["message"] == "request").map(|line| line["customers"].clone()).collect();
    assert_eq!(customers.len(), 3);
    assert_eq!(customers, vec![json!(one.inner.pseudonym("1")); 3]);
    let page = one.page("/cache/customers/1").await.json();
    assert_eq!(page["answers"].as_array().unwrap().len(), 1, "{page}");
}

/// What is stored in Redis and sent through it names no customer, no merchant and no coupon.
#[tokio::test(flavor = "multi_thread")]
async fn redis_learns_no_customer_and_no_coupon() {
    const CUSTOMER: &str = "383933091455959041";
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let replicas = redis.replicas(&platform, &[]).await;
    let mut monitor = redis.monitor();
    let card = replicas[0].read(CUSTOMER).await.json()["data"]["list"][0]["cardId"].clone();
    replicas[0].post(WRITE, &[], &write_off(Some(CUSTOMER), &card, "b")).await;
    replicas[1].read(CUSTOMER).await;
    let keys = redis.command(&["keys", "*"]);
    assert!(keys.contains("entry:") && keys.contains("slots:"), "{keys}");
    let mut seen = Vec::new();
    let mut bytes = vec![0; 65536];
    while !String::from_utf8_lossy(&seen).contains(" ended ") || seen.len() < 200_000 {
        let read = monitor.read(&mut bytes).unwrap_or(0);
        seen.extend_from_slice(&bytes[..read]);
    }
    // Everything that is stored, as it would be written to a disk.
    until("answers are stored", async || {
        replicas[1].metric("zvgate_cache_shared_total{result=\"stored\"}").await > 0.0
    })
    .await;
    redis.command(&["config", "set", "rdbcompression", "no"]);
    assert_eq!(redis.command(&["save"]), "OK");
    let dump = std::fs::read(redis.file("dump.rdb")).unwrap();
    let dump = String::from_utf8_lossy(&dump);
    assert!(dump.contains("entry:") && dump.len() > 1000, "{} bytes", dump.len());
    let seen = String::from_utf8_lossy(&seen);
    let (open_id, grant_code, open_key) = crate::support::MERCHANTS[0];
    let path = "getCustomerCoupons";
    for secret in [CUSTOMER, card.as_str().unwrap(), "cardId", path, open_id, grant_code, open_key] {
        assert!(![&*seen, &*keys, &*dump].iter().any(|text| text.contains(secret)), "{secret}");
    }
}
