//! Laws 1 and 3, and what callers ask of freshness.

use std::time::Duration;

use serde_json::json;

use crate::scripted::{Act, Scripted};
use crate::support::{Gate, Platform, READ, unix_now, unix_of};

const CUSTOMER: &str = "383933091455959041";

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_read_is_served_from_the_cache_with_its_age() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[]).await;
    let miss = gate.read(CUSTOMER).await;
    assert_eq!(miss.header("cache-status"), "zvgate; fwd=miss; stored; ttl=30");
    assert_eq!(miss.header("age"), "");
    gate.hands.advance(Duration::from_secs(10));
    let hit = gate.read(CUSTOMER).await;
    assert_eq!(hit.header("age"), "10");
    assert_eq!(hit.header("cache-status"), "zvgate; hit; ttl=19");
    assert_eq!((hit.body, platform.requests(READ).await), (miss.body, 1));
    gate.hands.advance(Duration::from_secs(20));
    assert!(gate.read(CUSTOMER).await.is_stored_miss());
}

#[tokio::test(flavor = "multi_thread")]
async fn equivalent_bodies_share_an_entry_and_tenants_do_not() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[]).await;
    assert!(gate.read(CUSTOMER).await.is_stored_miss());
    let respelt = format!(
        r#"{{ "nonce":1, "params" : {{ "useStatus":"", "cardId":null, "customerId":"\u0033{}" }} }}"#,
        &CUSTOMER[1..]
    );
    assert!(gate.post(READ, &[], &respelt).await.is_hit());
    let of_two = gate.post(READ, &[("x-zvgate-tenant", "two")], &respelt).await;
    assert!(of_two.is_stored_miss());
    let used = format!(r#"{{"params":{{"customerId":"{CUSTOMER}","useStatus":1}}}}"#);
    assert!(gate.post(READ, &[], &used).await.is_stored_miss());
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_misses_for_one_question_make_one_call() {
    let platform = Platform::open().await;
    platform.faults(json!({ "latency_ms": 1500 })).await;
    let gate = std::sync::Arc::new(Gate::start(&platform, &[]).await);
    let callers = (0..300).map(|_| {
        let gate = std::sync::Arc::clone(&gate);
        tokio::spawn(async move { gate.read(CUSTOMER).await })
    });
    let replies = join(callers).await;
    assert_eq!(platform.requests(READ).await, 1);
    assert!(replies.iter().all(|reply| reply.status == 200 && reply.body == replies[0].body));
    let ways = |way: &str| replies.iter().filter(|reply| reply.header("cache-status").contains(way)).count();
    assert_eq!((ways("stored"), ways("collapsed") + ways("hit")), (1, 299));
    assert!(ways("collapsed") > 0);
}

async fn join<T>(tasks: impl Iterator<Item = tokio::task::JoinHandle<T>>) -> Vec<T> {
    let tasks: Vec<_> = tasks.collect();
    let mut all = Vec::new();
    for task in tasks {
        all.push(task.await.unwrap());
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_disconnects_does_not_affect_other_waiters() {
    let platform = Platform::open().await;
    platform.faults(json!({ "latency_ms": 400 })).await;
    let gate = std::sync::Arc::new(Gate::start(&platform, &[]).await);
    let first = {
        let gate = std::sync::Arc::clone(&gate);
        tokio::spawn(async move { gate.read(CUSTOMER).await })
    };
    while platform.requests(READ).await < 1 {
        tokio::task::yield_now().await;
    }
    first.abort();
    let second = gate.read(CUSTOMER).await;
    assert!(second.header("cache-status").ends_with("collapsed") || second.is_hit(), "{second:?}");
    assert_eq!(platform.requests(READ).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_list_is_served_from_the_cache_at_or_after_its_first_end() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[("cache.expiry_margin", "0s")]).await;
    let issued = platform.change(CUSTOMER, "issue", json!({ "seconds": 3 })).await;
    let end = unix_of(issued["endAt"].as_str().unwrap());
    let old = gate.read(CUSTOMER).await;
    assert!(old.is_stored_miss());
    let mut hits_before = 0;
    while unix_now() < end as f64 + 0.5 {
        let asked = unix_now();
        let reply = gate.read(CUSTOMER).await;
        if asked >= end as f64 {
            assert_ne!(reply.body, old.body, "served at or after its first end");
        } else if reply.is_hit() && unix_now() < end as f64 {
            assert_eq!(reply.body, old.body);
            hits_before += 1;
        }
    }
    assert!(hits_before > 10, "{hits_before}");
}

/// A moved clock: the same law, with the margin, whichever clock moves.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_expires_in_time_if_either_clock_steps() {
    for (advance, step) in [(100, 0), (0, 100_000), (100, -3_600_000)] {
        let platform = Platform::open().await;
        let gate = Gate::start(&platform, &[("cache.ttl", "1h")]).await;
        platform.change(CUSTOMER, "issue", json!({ "seconds": 60 })).await;
        assert!(gate.read(CUSTOMER).await.is_stored_miss());
        assert!(gate.read(CUSTOMER).await.is_hit());
        gate.hands.advance(Duration::from_secs(advance));
        gate.hands.step_wall(step);
        assert!(!gate.read(CUSTOMER).await.is_hit(), "{advance} {step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_ends_within_the_margin_is_returned_but_not_stored() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[("cache.expiry_margin", "5s")]).await;
    platform.change(CUSTOMER, "issue", json!({ "seconds": 4 })).await;
    for _ in 0..2 {
        let reply = gate.read(CUSTOMER).await;
        assert_eq!((reply.status, reply.header("cache-status")), (200, "zvgate; fwd=miss"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn negative_and_unsettled_answers_expire_soon_and_errors_are_not_stored() {
    let upstream = Scripted::start(|_, request| {
        let about = |id: &str| request.contains(&format!("\"{id}\""));
        match () {
            () if about("empty") => Act::success("[]"),
            () if about("exception") => Act::json(r#"{"status":true,"code":"200001","message":"none"}"#),
            () if about("unsettled") => Act::success(r#"[{"useStatus":0,"endAt":"2001-01-01 00:00:00"}]"#),
            () if about("settled") => Act::success(r#"[{"useStatus":6,"endAt":"2001-01-01 00:00:00"}]"#),
            () if about("error") => Act::json(r#"{"status":false,"code":100001}"#),
            () if about("throttled") => Act::json(r#"{"status":true,"code":110004}"#),
            () => Act::json("not json"),
        }
    })
    .await;
    let words = [("cache.negative_ttl", "4s"), ("cache.unsettled_ttl", "5s"), ("upstream.retries", "0")];
    let gate = Gate::start(&upstream, &words).await;
    for (customer, life) in [("empty", 4), ("exception", 4), ("unsettled", 5), ("settled", 30)] {
        let status = format!("zvgate; fwd=miss; stored; ttl={life}");
        assert_eq!(gate.read(customer).await.header("cache-status"), status, "{customer}");
        assert!(gate.read(customer).await.is_hit(), "{customer}");
    }
    for customer in ["error", "garbage", "throttled"] {
        for _ in 0..2 {
            let reply = gate.read(customer).await;
            assert_eq!((reply.status, reply.header("cache-status")), (200, "zvgate; fwd=miss"), "{customer}");
            assert_eq!(reply.header("proxy-status"), "", "upstream's word is not the gateway's");
            gate.hands.advance(Duration::from_secs(1));
        }
    }
    let lookups = |result: &str| format!("zvgate_cache_lookups_total{{result=\"{result}\",route=\"{READ}\"}}");
    assert_eq!(gate.metric(&lookups("negative_hit")).await, 2.0);
    assert_eq!(gate.metric(&lookups("hit")).await, 2.0);
    assert_eq!(gate.metric(&lookups("miss")).await, 10.0);
    assert_eq!(gate.metric("zvgate_cache_entries").await, 4.0);
    for (bound, lives) in [("negative", 2.0), ("unsettled", 1.0), ("ttl", 1.0), ("end_at", 0.0)] {
        assert_eq!(
            gate.metric(&format!("zvgate_cache_ttl_seconds_count{{bound=\"{bound}\"}}")).await,
            lives,
            "{bound}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_cache_forces_a_fetch_and_drops_the_customers_other_entries() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[]).await;
    let used = format!(r#"{{"params":{{"customerId":"{CUSTOMER}","useStatus":1}}}}"#);
    gate.read(CUSTOMER).await;
    gate.read("another").await;
    gate.post(READ, &[], &used).await;
    assert!(gate.post(READ, &[], &used).await.is_hit());
    platform.change(CUSTOMER, "use", json!({})).await;
    let body = format!(r#"{{"params":{{"customerId":"{CUSTOMER}"}}}}"#);
    let renewed = gate.post(READ, &[("cache-control", "no-cache")], &body).await;
    assert_eq!(renewed.header("cache-status"), "zvgate; fwd=request");
    assert!(renewed.text().contains("version=1"));
    let hit = gate.read(CUSTOMER).await;
    assert!(hit.is_hit() && hit.text().contains("version=1"));
    assert!(gate.post(READ, &[], &used).await.is_stored_miss(), "its other entries are dropped");
    assert!(gate.read("another").await.is_hit(), "other customers' are not");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_no_cache_fetch_keeps_the_stored_answer() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[]).await;
    gate.read(CUSTOMER).await;
    platform.faults(json!({ "fault": "error" })).await;
    let body = format!(r#"{{"params":{{"customerId":"{CUSTOMER}"}}}}"#);
    let failed = gate.post(READ, &[("cache-control", "no-cache")], &body).await;
    assert_eq!(failed.json()["status"], false);
    assert!(gate.read(CUSTOMER).await.is_hit());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_no_cache_fetch_is_shared_only_with_later_callers() {
    let platform = Platform::open().await;
    platform.faults(json!({ "latency_ms": 300 })).await;
    let gate = std::sync::Arc::new(Gate::start(&platform, &[]).await);
    let ask = |headers: &'static [(&str, &str)]| {
        let gate = std::sync::Arc::clone(&gate);
        let body = format!(r#"{{"params":{{"customerId":"{CUSTOMER}"}}}}"#);
        tokio::spawn(async move { gate.post(READ, headers, &body).await })
    };
    let calls = async |number: u64| {
        while platform.requests(READ).await < number {
            tokio::task::yield_now().await;
        }
    };
    let before = ask(&[]);
    calls(1).await;
    let demanded = ask(&[("cache-control", "no-cache")]);
    calls(2).await;
    let after = ask(&[]).await.unwrap();
    assert_eq!(after.header("cache-status"), "zvgate; fwd=miss; collapsed");
    assert_eq!(
        before.await.unwrap().header("cache-status"),
        "zvgate; fwd=miss",
        "its answer is older than the new call"
    );
    assert_eq!(demanded.await.unwrap().header("cache-status"), "zvgate; fwd=request");
    assert_eq!(platform.requests(READ).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn max_age_and_only_if_cached_are_respected() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[]).await;
    let body = format!(r#"{{"params":{{"customerId":"{CUSTOMER}"}}}}"#);
    let ask = async |control: &'static str| gate.post(READ, &[("cache-control", control)], &body).await;
    ask("only-if-cached").await.is_error(504, "not_cached");
    assert_eq!(platform.requests(READ).await, 0);
    assert!(ask("max-age=5").await.is_stored_miss());
    gate.hands.advance(Duration::from_secs(10));
    assert!(ask("max-age=15").await.is_hit());
    assert!(ask("only-if-cached").await.is_hit());
    assert!(ask("max-age=5").await.is_stored_miss());
    assert!(ask("max-age=5").await.is_hit());
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_beyond_max_waiters_are_rejected() {
    let platform = Platform::open().await;
    platform.faults(json!({ "latency_ms": 400 })).await;
    let gate = std::sync::Arc::new(Gate::start(&platform, &[("limits.max_waiters", "2")]).await);
    let callers = (0..6).map(|_| {
        let gate = std::sync::Arc::clone(&gate);
        tokio::spawn(async move { gate.read(CUSTOMER).await })
    });
    let replies = join(callers).await;
    let refused: Vec<_> = replies.iter().filter(|reply| reply.status == 503).collect();
    assert_eq!(refused.len(), 4);
    refused[0].is_error(503, "unavailable");
    assert_eq!(gate.metric("zvgate_limited_total{caller=\"anonymous\",limit=\"waiters\"}").await, 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_stays_within_max_bytes_and_drops_expired_entries() {
    let upstream = Scripted::start(|_, _| Act::success(&format!("[\"{}\"]", "x".repeat(2000)))).await;
    let words = [("cache.max_bytes", "64KiB"), ("limits.upstream.rate", "0"), ("cache.unsettled_ttl", "1s")];
    let gate = Gate::start(&upstream, &words).await;
    for customer in 0..100 {
        assert!(gate.read(&customer.to_string()).await.is_stored_miss());
    }
    let bytes = gate.metric("zvgate_cache_bytes").await;
    assert!(bytes > 30_000.0 && bytes <= 65_536.0, "{bytes}");
    assert!(gate.read("99").await.is_hit(), "the newest is kept");
    assert!(gate.metric("zvgate_cache_evictions_total{cause=\"size\"}").await > 60.0);
    while gate.metric("zvgate_cache_entries").await > 0.0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(gate.metric("zvgate_cache_evictions_total{cause=\"expired\"}").await > 10.0);
}
