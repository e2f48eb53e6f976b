//! The cache: no answer is served past the first end in it, concurrent misses share one call, and `Cache-Control` of requests.

use std::time::Duration;

use serde_json::json;

use crate::scripted::{Action, Scripted};
use crate::support::{Platform, READ, TestGateway, unix_now, unix_of};

const CUSTOMER: &str = "383933091455959041";

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_read_is_served_from_the_cache_with_its_age() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let miss = gateway.read(CUSTOMER).await;
    assert_eq!(miss.header("cache-status"), "zvgate; fwd=miss; stored; ttl=30");
    assert_eq!(miss.header("age"), "");
    gateway.clock.advance(Duration::from_secs(10));
    let hit = gateway.read(CUSTOMER).await;
    assert_eq!(hit.header("age"), "10");
    assert_eq!(hit.header("cache-status"), "zvgate; hit; ttl=19");
    assert_eq!((hit.body, platform.requests(READ).await), (miss.body, 1));
    gateway.clock.advance(Duration::from_secs(20));
    assert!(gateway.read(CUSTOMER).await.is_stored_miss());
}

#[tokio::test(flavor = "multi_thread")]
async fn equivalent_bodies_share_an_entry_and_tenants_do_not() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    assert!(gateway.read(CUSTOMER).await.is_stored_miss());
    let equivalent = format!(
        r#"{{ "nonce":1, "params" : {{ "useStatus":"", "cardId":null, "customerId":"\u0033{}" }} }}"#,
        &CUSTOMER[1..]
    );
    assert!(gateway.post(READ, &[], &equivalent).await.is_hit());
    let second_tenant = gateway.post(READ, &[("x-zvgate-tenant", "two")], &equivalent).await;
    assert!(second_tenant.is_stored_miss());
    let used = format!(r#"{{"params":{{"customerId":"{CUSTOMER}","useStatus":1}}}}"#);
    assert!(gateway.post(READ, &[], &used).await.is_stored_miss());
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_misses_for_one_question_make_one_call() {
    let platform = Platform::unlimited().await;
    platform.faults(json!({ "latency_ms": 1500 })).await;
    let gateway = std::sync::Arc::new(TestGateway::start(&platform, &[]).await);
    let callers = (0..300).map(|_| {
        let gateway = std::sync::Arc::clone(&gateway);
        tokio::spawn(async move { gateway.read(CUSTOMER).await })
    });
    let replies = join(callers).await;
    assert_eq!(platform.requests(READ).await, 1);
    assert!(replies.iter().all(|reply| reply.status == 200 && reply.body == replies[0].body));
    let count = |status: &str| replies.iter().filter(|reply| reply.header("cache-status").contains(status)).count();
    assert_eq!((count("stored"), count("collapsed") + count("hit")), (1, 299));
    assert!(count("collapsed") > 0);
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
    let platform = Platform::unlimited().await;
    platform.faults(json!({ "latency_ms": 400 })).await;
    let gateway = std::sync::Arc::new(TestGateway::start(&platform, &[]).await);
    let first = {
        let gateway = std::sync::Arc::clone(&gateway);
        tokio::spawn(async move { gateway.read(CUSTOMER).await })
    };
    while platform.requests(READ).await < 1 {
        tokio::task::yield_now().await;
    }
    first.abort();
    let second = gateway.read(CUSTOMER).await;
    assert!(second.header("cache-status").ends_with("collapsed") || second.is_hit(), "{second:?}");
    assert_eq!(platform.requests(READ).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_list_is_served_from_the_cache_at_or_after_its_first_end() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("cache.expiry_margin", "0s")]).await;
    let issued = platform.change(CUSTOMER, "issue", json!({ "seconds": 3 })).await;
    let end = unix_of(issued["endAt"].as_str().unwrap());
    let old = gateway.read(CUSTOMER).await;
    assert!(old.is_stored_miss());
    let mut hits_before = 0;
    while unix_now() < end as f64 + 0.5 {
        let sent = unix_now();
        let reply = gateway.read(CUSTOMER).await;
        if sent >= end as f64 {
            assert_ne!(reply.body, old.body, "served at or after its first end");
        } else if reply.is_hit() && unix_now() < end as f64 {
            assert_eq!(reply.body, old.body);
            hits_before += 1;
        }
    }
    assert!(hits_before > 10, "{hits_before}");
}

/// The same with the expiry margin, whichever clock steps.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_expires_in_time_if_either_clock_steps() {
    for (advance, step) in [(100, 0), (0, 100_000), (100, -3_600_000)] {
        let platform = Platform::unlimited().await;
        let gateway = TestGateway::start(&platform, &[("cache.ttl", "1h")]).await;
        platform.change(CUSTOMER, "issue", json!({ "seconds": 60 })).await;
        assert!(gateway.read(CUSTOMER).await.is_stored_miss());
        assert!(gateway.read(CUSTOMER).await.is_hit());
        gateway.clock.advance(Duration::from_secs(advance));
        gateway.clock.step_wall(step);
        assert!(!gateway.read(CUSTOMER).await.is_hit(), "{advance} {step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_ends_within_the_margin_is_returned_but_not_stored() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("cache.expiry_margin", "5s")]).await;
    platform.change(CUSTOMER, "issue", json!({ "seconds": 4 })).await;
    for _ in 0..2 {
        let reply = gateway.read(CUSTOMER).await;
        assert_eq!((reply.status, reply.header("cache-status")), (200, "zvgate; fwd=miss"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn negative_and_unsettled_answers_expire_soon_and_errors_are_not_stored() {
    let upstream = Scripted::start(|_, request| {
        let about = |id: &str| request.contains(&format!("\"{id}\""));
        match () {
            () if about("empty") => Action::success("[]"),
            () if about("exception") => Action::json(r#"{"status":true,"code":"200001","message":"none"}"#),
            () if about("unsettled") => Action::success(r#"[{"useStatus":0,"endAt":"2001-01-01 00:00:00"}]"#),
            () if about("settled") => Action::success(r#"[{"useStatus":6,"endAt":"2001-01-01 00:00:00"}]"#),
            () if about("error") => Action::json(r#"{"status":false,"code":100001}"#),
            () if about("throttled") => Action::json(r#"{"status":true,"code":110004}"#),
            () => Action::json("not json"),
        }
    })
    .await;
    let overrides = [("cache.negative_ttl", "4s"), ("cache.unsettled_ttl", "5s"), ("upstream.retries", "0")];
    let gateway = TestGateway::start(&upstream, &overrides).await;
    for (customer, lifetime) in [("empty", 4), ("exception", 4), ("unsettled", 5), ("settled", 30)] {
        let status = format!("zvgate; fwd=miss; stored; ttl={lifetime}");
        assert_eq!(gateway.read(customer).await.header("cache-status"), status, "{customer}");
        assert!(gateway.read(customer).await.is_hit(), "{customer}");
    }
    for _ in 0..2 {
        gateway.read("garbage").await.assert_error(502, "upstream_failed");
    }
    for customer in ["error", "throttled"] {
        for _ in 0..2 {
            let reply = gateway.read(customer).await;
            assert_eq!((reply.status, reply.header("cache-status")), (200, "zvgate; fwd=miss"), "{customer}");
            assert_eq!(reply.header("proxy-status"), "", "an upstream error is not a gateway error");
            gateway.clock.advance(Duration::from_secs(1));
        }
    }
    let lookups = |result: &str| format!("zvgate_cache_lookups_total{{result=\"{result}\",route=\"{READ}\"}}");
    assert_eq!(gateway.metric(&lookups("negative_hit")).await, 2.0);
    assert_eq!(gateway.metric(&lookups("hit")).await, 2.0);
    assert_eq!(gateway.metric(&lookups("miss")).await, 10.0);
    assert_eq!(gateway.metric("zvgate_cache_entries").await, 4.0);
    for (bound, count) in [("negative", 2.0), ("unsettled", 1.0), ("ttl", 1.0), ("end_at", 0.0)] {
        assert_eq!(
            gateway.metric(&format!("zvgate_cache_ttl_seconds_count{{bound=\"{bound}\"}}")).await,
            count,
            "{bound}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_cache_forces_a_fetch_and_drops_the_customers_other_entries() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let used = format!(r#"{{"params":{{"customerId":"{CUSTOMER}","useStatus":1}}}}"#);
    gateway.read(CUSTOMER).await;
    gateway.read("another").await;
    gateway.post(READ, &[], &used).await;
    assert!(gateway.post(READ, &[], &used).await.is_hit());
    platform.change(CUSTOMER, "use", json!({})).await;
    let body = format!(r#"{{"params":{{"customerId":"{CUSTOMER}"}}}}"#);
    let renewed = gateway.post(READ, &[("cache-control", "no-cache")], &body).await;
    assert_eq!(renewed.header("cache-status"), "zvgate; fwd=request");
    assert!(renewed.text().contains("version=1"));
    let hit = gateway.read(CUSTOMER).await;
    assert!(hit.is_hit() && hit.text().contains("version=1"));
    assert!(gateway.post(READ, &[], &used).await.is_stored_miss(), "the customer's other entries are dropped");
    assert!(gateway.read("another").await.is_hit(), "other customers' are not");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_no_cache_fetch_keeps_the_stored_answer() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    gateway.read(CUSTOMER).await;
    platform.faults(json!({ "fault": "error" })).await;
    let body = format!(r#"{{"params":{{"customerId":"{CUSTOMER}"}}}}"#);
    let failed = gateway.post(READ, &[("cache-control", "no-cache")], &body).await;
    assert_eq!(failed.json()["status"], false);
    assert!(gateway.read(CUSTOMER).await.is_hit());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_no_cache_fetch_is_shared_only_with_later_callers() {
    let platform = Platform::unlimited().await;
    platform.faults(json!({ "latency_ms": 300 })).await;
    let gateway = std::sync::Arc::new(TestGateway::start(&platform, &[]).await);
    let ask = |headers: &'static [(&str, &str)]| {
        let gateway = std::sync::Arc::clone(&gateway);
        let body = format!(r#"{{"params":{{"customerId":"{CUSTOMER}"}}}}"#);
        tokio::spawn(async move { gateway.post(READ, headers, &body).await })
    };
    let calls = async |number: u64| {
        while platform.requests(READ).await < number {
            tokio::task::yield_now().await;
        }
    };
    let before = ask(&[]);
    calls(1).await;
    let forced = ask(&[("cache-control", "no-cache")]);
    calls(2).await;
    let after = ask(&[]).await.unwrap();
    assert_eq!(after.header("cache-status"), "zvgate; fwd=miss; collapsed");
    assert_eq!(
        before.await.unwrap().header("cache-status"),
        "zvgate; fwd=miss",
        "its fetch is older than the forced one"
    );
    assert_eq!(forced.await.unwrap().header("cache-status"), "zvgate; fwd=request");
    assert_eq!(platform.requests(READ).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn max_age_and_only_if_cached_are_respected() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let body = format!(r#"{{"params":{{"customerId":"{CUSTOMER}"}}}}"#);
    let ask = async |control: &'static str| gateway.post(READ, &[("cache-control", control)], &body).await;
    ask("only-if-cached").await.assert_error(504, "not_cached");
    assert_eq!(platform.requests(READ).await, 0);
    assert!(ask("max-age=5").await.is_stored_miss());
    gateway.clock.advance(Duration::from_secs(10));
    assert!(ask("max-age=15").await.is_hit());
    assert!(ask("only-if-cached").await.is_hit());
    assert!(ask("max-age=5").await.is_stored_miss());
    assert!(ask("max-age=5").await.is_hit());
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_beyond_max_waiters_are_rejected() {
    let platform = Platform::unlimited().await;
    platform.faults(json!({ "latency_ms": 400 })).await;
    let gateway = std::sync::Arc::new(TestGateway::start(&platform, &[("limits.max_waiters", "2")]).await);
    let callers = (0..6).map(|_| {
        let gateway = std::sync::Arc::clone(&gateway);
        tokio::spawn(async move { gateway.read(CUSTOMER).await })
    });
    let replies = join(callers).await;
    let rejected: Vec<_> = replies.iter().filter(|reply| reply.status == 503).collect();
    assert_eq!(rejected.len(), 4);
    rejected[0].assert_error(503, "unavailable");
    assert_eq!(gateway.metric("zvgate_limited_total{caller=\"anonymous\",limit=\"waiters\"}").await, 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_stays_within_max_bytes_and_drops_expired_entries() {
    let upstream = Scripted::start(|_, _| Action::success(&format!("[\"{}\"]", "x".repeat(2000)))).await;
    let overrides = [("cache.max_bytes", "64KiB"), ("limits.upstream.rate", "0"), ("cache.unsettled_ttl", "1s")];
    let gateway = TestGateway::start(&upstream, &overrides).await;
    for customer in 0..100 {
        assert!(gateway.read(&customer.to_string()).await.is_stored_miss());
    }
    let bytes = gateway.metric("zvgate_cache_bytes").await;
    assert!(bytes > 30_000.0 && bytes <= 65_536.0, "{bytes}");
    assert!(gateway.read("99").await.is_hit(), "the newest entry is kept");
    assert!(gateway.metric("zvgate_cache_evictions_total{cause=\"size\"}").await > 60.0);
    while gateway.metric("zvgate_cache_entries").await > 0.0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(gateway.metric("zvgate_cache_evictions_total{cause=\"expired\"}").await > 10.0);
}

/// A byte order mark, an encoding of nothing, an empty list of parameters: what several HTTP clients send.
#[tokio::test(flavor = "multi_thread")]
async fn requests_in_the_ways_of_other_clients_ask_the_same_question() {
    let platform = Platform::unlimited().await;
    let file = "[[routes]]\npath = \"/v3/crm/coupon/status\"\nkind = \"cached\"\ncustomer = []\n";
    let gateway = TestGateway::with_file(&platform, &[], file).await;
    let body = format!(r#"{{"params":{{"customerId":"{CUSTOMER}"}}}}"#);
    assert!(gateway.post(READ, &[], &format!("\u{feff}{body}")).await.is_stored_miss());
    assert!(gateway.post(READ, &[("content-encoding", "identity")], &body).await.is_hit());
    assert!(gateway.post(READ, &[], &format!("\u{feff}{body}")).await.is_hit());
    assert!(gateway.post("/v3/crm/coupon/status", &[], r#"{"params":[]}"#).await.is_stored_miss());
    assert!(gateway.post("/v3/crm/coupon/status", &[], r#"{"params":{}}"#).await.is_hit());
    let last = platform.last().await["request"].as_str().unwrap().to_owned();
    assert!(last.contains(r#""params":{}"#), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_no_store_answer_is_new_and_neither_stored_nor_drops_anything() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let used = format!(r#"{{"params":{{"customerId":"{CUSTOMER}","useStatus":1}}}}"#);
    gateway.read(CUSTOMER).await;
    gateway.post(READ, &[], &used).await;
    platform.change(CUSTOMER, "use", json!({})).await;
    let body = format!(r#"{{"params":{{"customerId":"{CUSTOMER}"}}}}"#);
    let renewed = gateway.post(READ, &[("cache-control", "no-store")], &body).await;
    assert_eq!(renewed.header("cache-status"), "zvgate; fwd=request");
    assert!(renewed.text().contains("version=1"));
    let hit = gateway.read(CUSTOMER).await;
    assert!(hit.is_hit() && !hit.text().contains("version=1"), "the stored answer stays");
    assert!(gateway.post(READ, &[], &used).await.is_hit());
    let unknown = r#"{"params":{"customerId":"7"}}"#;
    gateway.post(READ, &[("cache-control", "no-store")], unknown).await;
    assert!(gateway.read("7").await.is_stored_miss());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_no_cache_reads_at_once_cost_two_calls() {
    let platform = Platform::unlimited().await;
    platform.faults(json!({ "latency_ms": 100 })).await;
    for directive in ["no-cache", "no-store"] {
        let gateway = std::sync::Arc::new(TestGateway::start(&platform, &[]).await);
        let before = platform.requests(READ).await;
        let mut reads = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let gateway = std::sync::Arc::clone(&gateway);
            let body = format!(r#"{{"params":{{"customerId":"{CUSTOMER}"}}}}"#);
            reads.spawn(async move { gateway.post(READ, &[("cache-control", directive)], &body).await });
        }
        for reply in reads.join_all().await {
            assert_eq!((reply.status, reply.header("cache-status")), (200, "zvgate; fwd=request"));
        }
        let calls = platform.requests(READ).await - before;
        assert!((1..=2).contains(&calls), "{directive}: {calls}");
    }
}

/// To try the cache without trusting it.
#[tokio::test]
async fn in_shadow_mode_every_read_is_forwarded_and_compared_with_the_cache() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(
        &platform,
        &[("cache.mode", "shadow"), ("limits.upstream.rate", "0"), ("cache.settle", "0s")],
    )
    .await;
    let counted = async || {
        let name = |result: &str| format!("zvgate_shadow_total{{result={result:?},route=\"{READ}\"}}");
        (gateway.metric(&name("same")).await, gateway.metric(&name("different")).await)
    };
    let read = async || {
        let reply = gateway.read("1").await;
        assert_eq!((reply.status, reply.header("cache-status")), (200, "zvgate; fwd=bypass"), "{reply:?}");
        reply
    };
    assert_eq!(counted().await, (0.0, 0.0), "from the start");
    for _ in 0..3 {
        read().await;
    }
    assert_eq!((platform.requests(READ).await, counted().await), (3, (2.0, 0.0)));
    let card = platform.change("1", "issue", json!({ "seconds": 3600 })).await["cardId"].clone();
    assert!(read().await.text().contains(card.as_str().unwrap()), "the platform's answer is served");
    read().await;
    assert_eq!(counted().await, (3.0, 1.0), "the cache has the newer answer from then on");
    // What the cache would not have served is not compared: what is stale, was invalidated, or is asked for anew.
    gateway.clock.advance(Duration::from_secs(31));
    read().await;
    gateway.post("/v1/invalidate", &[], r#"{"customerIds":["1"]}"#).await;
    read().await;
    gateway.post(READ, &[("cache-control", "no-cache")], r#"{"params":{"customerId":"1"}}"#).await;
    assert_eq!(counted().await, (3.0, 1.0));
    // A failure says nothing of the cache, and leaves it as it is.
    platform.faults(json!({ "fault": "http500" })).await;
    assert_eq!(gateway.read("1").await.status, 500);
    platform.without_faults().await;
    read().await;
    assert_eq!(counted().await, (4.0, 1.0));
    let only = gateway.post(READ, &[("cache-control", "only-if-cached")], r#"{"params":{"customerId":"1"}}"#).await;
    only.assert_error(504, "not_cached");
    let before = platform.requests(READ).await;
    let callers = (0..10).map(|_| gateway.read("1"));
    futures_util::future::join_all(callers).await;
    assert_eq!(platform.requests(READ).await, before + 10, "each of them");
    assert_eq!(gateway.metric("zvgate_cache_entries").await, 1.0);
}
