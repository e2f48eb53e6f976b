//! Signing while its inputs change: the platform's clock and the merchant's key.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha1::Sha1;

use crate::support::{MERCHANTS, Overrides, Platform, READ, Reply, TestGateway, until};

const NEW_KEY: &str = "the-key-that-comes-after";

fn is_success(reply: &Reply) -> bool {
    reply.status == 200 && reply.text().contains("\"code\":0")
}

/// Starts callers that read until the flag is cleared; each returns the number of its failed reads.
fn load(gateway: &Arc<TestGateway>, callers: u32, on: &Arc<AtomicBool>) -> Vec<tokio::task::JoinHandle<u32>> {
    let read = |caller| {
        let (gateway, on) = (Arc::clone(gateway), Arc::clone(on));
        tokio::spawn(async move {
            let (mut number, mut failed) = (0, 0);
            while on.load(Ordering::SeqCst) {
                number += 1;
                failed += u32::from(!is_success(&gateway.read(&format!("{caller}-{number}")).await));
            }
            failed
        })
    };
    (0..callers).map(read).collect()
}

async fn finish(load: Vec<tokio::task::JoinHandle<u32>>, on: &AtomicBool) -> u32 {
    on.store(false, Ordering::SeqCst);
    let mut failed = 0;
    for caller in load {
        failed += caller.await.unwrap();
    }
    failed
}

/// Waits until the platform has received this many more requests.
async fn wait_for_requests(platform: &Platform, more: u64) {
    let expected = platform.requests(READ).await + more;
    until("the platform has received them", async || platform.requests(READ).await >= expected).await;
}

const OVERRIDES: Overrides<'static> = &[("limits.upstream.rate", "0"), ("upstream.retries", "0")];

/// The platform accepts timestamps within 300 s of its clock; here both clocks step away from each other.
#[tokio::test(flavor = "multi_thread")]
async fn calls_recover_when_the_clocks_diverge_under_load() {
    for skew in [250, -250, 380, -380] {
        let platform = Platform::unlimited().await;
        let gateway = Arc::new(TestGateway::start(&platform, OVERRIDES).await);
        let on = Arc::new(AtomicBool::new(true));
        let load = load(&gateway, 2, &on);
        wait_for_requests(&platform, 20).await;
        gateway.clock.step_wall(if skew > 0 { -100_000 } else { 100_000 });
        wait_for_requests(&platform, 5).await;
        platform.faults(json!({ "clock_skew_s": skew })).await;
        wait_for_requests(&platform, 50).await;
        let failed = finish(load, &on).await;
        let refused = platform.stats().await["refused"].clone();
        assert!(refused["clock"].as_u64().unwrap_or(0) <= 5, "{skew}: {refused}");
        assert_eq!(u64::from(failed), refused["clock"].as_u64().unwrap_or(0), "{skew}: {refused}");
        let ahead = gateway.metric("zvgate_clock_skew_seconds").await;
        let expected = f64::from(skew + if skew > 0 { 100 } else { -100 });
        assert!((ahead - expected).abs() < 2.0, "{ahead}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_follow_clock_calls_are_signed_by_the_own_clock_and_skew_is_reported() {
    let platform = Platform::unlimited().await;
    platform.faults(json!({ "clock_skew_s": 400 })).await;
    let overrides = [OVERRIDES, &[("upstream.follow_clock", "false")]].concat();
    let gateway = TestGateway::start(&platform, &overrides).await;
    for customer in 0..5 {
        assert!(gateway.read(&customer.to_string()).await.text().contains("110002"));
    }
    assert!((gateway.metric("zvgate_clock_skew_seconds").await - 400.0).abs() < 2.0);
}

/// If the platform's clock is ahead of the gateway's, a coupon ends by the platform's.
#[tokio::test(flavor = "multi_thread")]
async fn a_coupon_ends_by_the_later_clock() {
    for follow in ["true", "false"] {
        let platform = Platform::unlimited().await;
        platform.faults(json!({ "clock_skew_s": 100 })).await;
        platform.change("1", "issue", json!({ "seconds": 60 })).await;
        let gateway = TestGateway::start(&platform, &[("cache.ttl", "1h"), ("upstream.follow_clock", follow)]).await;
        assert!(gateway.read("1").await.is_stored_miss());
        gateway.clock.advance(Duration::from_secs(57));
        assert!(gateway.read("1").await.is_hit());
        gateway.clock.advance(Duration::from_secs(3));
        assert!(gateway.read("1").await.header("cache-status").starts_with("zvgate; fwd=miss"));
    }
}

/// Whether a request that the platform saw was signed with a key.
fn is_signed_with(request: &Value, key: &str) -> bool {
    let body: Value = serde_json::from_str(request["request"].as_str().unwrap()).unwrap();
    let text = |name: &str| body[name].as_str().unwrap();
    let joined = format!(
        "grantCode={}&nonce={}&openId={}&timestamp={}",
        text("grantCode"),
        text("nonce"),
        text("openId"),
        text("timestamp")
    );
    let mut mac = Hmac::<Sha1>::new_from_slice(key.as_bytes()).unwrap();
    mac.update(joined.as_bytes());
    let token = STANDARD.encode(mac.finalize().into_bytes());
    percent_encoding::percent_decode_str(text("token")).decode_utf8().unwrap() == token
}

fn replace(path: &Path, key: &str) {
    let next = path.with_extension("next");
    std::fs::write(&next, key).unwrap();
    std::fs::rename(next, path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_rotates_under_load_without_a_failed_call() {
    let (platform, folder) = (Platform::unlimited().await, tempfile::tempdir().unwrap());
    let path = folder.path().join("key");
    let old = MERCHANTS[0].2;
    std::fs::write(&path, old).unwrap();
    let overrides = [OVERRIDES, &[("tenants.one.open_key_file", path.to_str().unwrap())]].concat();
    let gateway = Arc::new(TestGateway::start(&platform, &overrides).await);
    let on = Arc::new(AtomicBool::new(true));
    let load = load(&gateway, 2, &on);
    wait_for_requests(&platform, 20).await;
    platform.keys(&[old, NEW_KEY]).await;
    replace(&path, NEW_KEY);
    while !is_signed_with(&platform.last().await, NEW_KEY) {
        wait_for_requests(&platform, 1).await;
    }
    platform.keys(&[NEW_KEY]).await;
    wait_for_requests(&platform, 20).await;
    std::fs::write(&path, "").unwrap();
    wait_for_requests(&platform, 20).await;
    assert_eq!(finish(load, &on).await, 0);
    assert_eq!(platform.stats().await["refused"], json!({}));
}

/// The platform and the file change at the same time: the few calls that are rejected meanwhile do not slow the route down.
#[tokio::test(flavor = "multi_thread")]
async fn calls_recover_when_a_key_changes_without_notice() {
    let (platform, folder) = (Platform::unlimited().await, tempfile::tempdir().unwrap());
    let path = folder.path().join("key");
    std::fs::write(&path, MERCHANTS[0].2).unwrap();
    let overrides = [("tenants.one.open_key_file", path.to_str().unwrap()), ("limits.max_wait", "10s")];
    let gateway = Arc::new(TestGateway::start(&platform, &overrides).await);
    let on = Arc::new(AtomicBool::new(true));
    let load = load(&gateway, 2, &on);
    wait_for_requests(&platform, 20).await;
    platform.keys(&[NEW_KEY]).await;
    while platform.stats().await["refused"]["signature"] == Value::Null {
        tokio::task::yield_now().await;
    }
    replace(&path, NEW_KEY);
    while !is_signed_with(&platform.last().await, NEW_KEY) {
        wait_for_requests(&platform, 1).await;
    }
    let rate = format!("zvgate_upstream_rate{{route=\"{READ}\",tenant=\"one\"}}");
    assert_eq!(gateway.metric(&rate).await, 10.0, "what looked like throttling no longer counts");
    wait_for_requests(&platform, 20).await;
    finish(load, &on).await;
    let refused = platform.stats().await["refused"].clone();
    assert!(refused["signature"].as_u64().unwrap_or(0) <= 5, "{refused}");
    assert_eq!(refused["too_many"], Value::Null);
}
