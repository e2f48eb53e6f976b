//! Consistency under load: reads see every earlier write, and no ended coupon is served.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::support::{Caller, Platform, READ, REVERSE, TestGateway, WRITE, unix_now, unix_of};

const CUSTOMERS: usize = 20;

fn version(text: &str) -> u64 {
    let (_, rest) = text.split_once("version=").unwrap_or_else(|| panic!("{text}"));
    rest.split('"').next().unwrap().parse().unwrap()
}

/// 200 readers and 5 writers.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_starts_after_a_write_was_answered_sees_that_write() {
    for settle in ["3s", "0s"] {
        let platform = Platform::unlimited().await;
        platform.faults(json!({ "jitter_ms": 20 })).await;
        let overrides = [
            ("limits.upstream.rate", "0"),
            ("cache.settle", settle),
            ("upstream.max_inflight", "64"),
            ("limits.max_wait", "15s"),
        ];
        let gateway = Arc::new(TestGateway::start(&platform, &overrides).await);
        let written: Arc<Vec<AtomicU64>> = Arc::new((0..CUSTOMERS).map(|_| AtomicU64::new(0)).collect());
        let (reads, hits) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let stop = tokio_util::sync::CancellationToken::new();
        let mut tasks = Vec::new();
        for writer in 0..5 {
            let (gateway, written, stop) = (Arc::clone(&gateway), Arc::clone(&written), stop.clone());
            tasks.push(tokio::spawn(async move {
                let mut number = 0;
                while !stop.is_cancelled() {
                    // Each writer has its own customers, so that it knows the version that it wrote.
                    let customer = writer + 5 * (number % (CUSTOMERS / 5));
                    let biz = format!("{writer}-{number}");
                    let card = gateway.read(&format!("c{customer}")).await.json()["data"]["list"][0]["cardId"].clone();
                    // The customer is named in the request, in the answer alone, or in both.
                    let params = match number % 2 {
                        0 => json!({ "bizId": biz, "customerId": format!("c{customer}"), "couponsCardList": [card] }),
                        _ => json!({ "bizId": biz, "couponsCardList": [card] }),
                    };
                    for (path, params) in [(WRITE, params), (REVERSE, json!({ "bizId": biz }))] {
                        let reply = gateway.post(path, &[], &json!({ "params": params }).to_string()).await;
                        assert_eq!(reply.json()["code"], 0, "{reply:?}");
                        written[customer].fetch_add(1, Ordering::SeqCst);
                    }
                    number += 1;
                }
            }));
        }
        for reader in 0..200 {
            let (gateway, written, stop) = (Arc::clone(&gateway), Arc::clone(&written), stop.clone());
            let (reads, hits) = (Arc::clone(&reads), Arc::clone(&hits));
            tasks.push(tokio::spawn(async move {
                let mut connection = Caller::connect(gateway.address).await;
                while !stop.is_cancelled() {
                    let customer = (reader * 7 + reads.fetch_add(1, Ordering::Relaxed)) % CUSTOMERS;
                    let before = written[customer].load(Ordering::SeqCst);
                    let reply = connection.read(&format!("c{customer}")).await;
                    let seen = version(&reply.text());
                    assert!(seen >= before, "c{customer}: {seen} after {before}: {reply:?}");
                    hits.fetch_add(usize::from(reply.is_hit()), Ordering::Relaxed);
                }
            }));
        }
        // Enough requests for a meaningful result, however fast the machine is.
        let count = || (hits.load(Ordering::Relaxed), written.iter().map(|count| count.load(Ordering::SeqCst)).sum());
        while !matches!(count(), (20_000.., 500u64..)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        stop.cancel();
        for task in tasks {
            task.await.unwrap();
        }
        let (reads, hits) = (reads.load(Ordering::Relaxed), hits.load(Ordering::Relaxed));
        let writes: u64 = written.iter().map(|count| count.load(Ordering::SeqCst)).sum();
        println!("settle {settle}: {reads} reads, {hits} hits, {writes} writes");
    }
}

/// About 2,000 requests a second around the second in which a coupon ends, with upstream failing from just before: no
/// response that arrives at or after that second contains the coupon.
#[tokio::test(flavor = "multi_thread")]
async fn no_ended_coupon_is_served_even_if_upstream_fails() {
    const CUSTOMER: &str = "383933091455959041";
    let platform = Platform::unlimited().await;
    let overrides = [
        ("cache.stale_while_revalidate", "1h"),
        ("cache.stale_if_error", "1h"),
        ("cache.ttl", "2s"),
        ("limits.upstream.rate", "0"),
    ];
    let gateway = Arc::new(TestGateway::start(&platform, &overrides).await);
    let issued = platform.change(CUSTOMER, "issue", json!({ "seconds": 5 })).await;
    let card = issued["cardId"].as_str().unwrap().to_owned();
    let end = unix_of(issued["endAt"].as_str().unwrap()) as f64;
    assert!(gateway.read(CUSTOMER).await.is_stored_miss());
    let (served, late) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..40)
        .map(|_| {
            let (gateway, card, served, late) =
                (Arc::clone(&gateway), card.clone(), Arc::clone(&served), Arc::clone(&late));
            tokio::spawn(async move {
                let mut connection = Caller::connect(gateway.address).await;
                let mut ticks = tokio::time::interval(Duration::from_millis(20));
                while unix_now() < end + 2.0 {
                    ticks.tick().await;
                    let reply = connection.read(CUSTOMER).await;
                    let arrived = unix_now();
                    if reply.status == 200 && reply.text().contains(&card) {
                        assert!(arrived < end, "{} s after its end: {reply:?}", arrived - end);
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    late.fetch_add(usize::from(arrived >= end), Ordering::Relaxed);
                }
            })
        })
        .collect();
    while unix_now() < end - 1.5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    platform.faults(json!({ "fault": "http500", "route": READ })).await;
    for caller in callers {
        caller.await.unwrap();
    }
    let (served, late) = (served.load(Ordering::Relaxed), late.load(Ordering::Relaxed));
    println!("{served} answers with the coupon before its end, {late} requests at or after it");
    assert!(served > 50 && late > 50, "{served} {late}: too few for a meaningful result");
}
