//! Writes: a write invalidates the cached answers of its customers, and of no others.

use std::sync::Arc;

use serde_json::json;

use crate::scripted::{Action, Scripted, http_text};
use crate::support::{Platform, READ, REVERSE, TestGateway, Upstream, WRITE, envelope};

/// A write route whose successful answers in the sandbox name no customer.
const UNKNOWN: &str = "[[routes]]\npath = \"/v3/crm/coupon/recycleCoupons\"\nkind = \"write\"\n";

/// The first card of a customer that can be redeemed.
async fn card(gateway: &TestGateway, customer: &str) -> String {
    gateway.read(customer).await.json()["data"]["list"][0]["cardId"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_has_its_own_timeout() {
    let platform = Platform::unlimited().await;
    platform.faults(json!({ "latency_ms": 700 })).await;
    let overrides = [("upstream.attempt_timeout", "300ms"), ("upstream.retries", "0")];
    let gateway = TestGateway::start(&platform, &overrides).await;
    let write = json!({ "params": { "bizId": "b", "customerId": "1" } }).to_string();
    assert_eq!(gateway.post(WRITE, &[], &write).await.status, 200, "upstream.write_timeout");
    gateway.read("1").await.assert_error(504, "upstream_timeout");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_seen_by_the_next_read_and_keeps_other_customers_entries() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let (card, _) = (card(&gateway, "1").await, gateway.read("2").await);
    let redeem = json!({ "params": { "bizId": "b", "customerId": "1", "couponsCardList": [card] } }).to_string();
    let written = gateway.post(WRITE, &[], &redeem).await;
    assert_eq!((written.status, written.header("cache-status")), (200, "zvgate; fwd=bypass"));
    assert_eq!(written.json()["data"]["cardIdList"], json!([card]));
    let read = gateway.read("1").await;
    assert!(read.is_stored_miss() && read.text().contains("version=1"));
    assert!(gateway.read("2").await.is_hit());
    assert_eq!(gateway.metric("zvgate_cache_invalidations_total{cause=\"write\"}").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_names_the_customer_invalidates_only_that_customer() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let (card, _) = (card(&gateway, "1").await, gateway.read("2").await);
    let redeem = json!({ "params": { "bizId": "b", "couponsCardList": [{ "cardId": card }] } }).to_string();
    assert_eq!(gateway.post(WRITE, &[], &redeem).await.json()["data"]["userInfo"]["customer_id"], "1");
    assert!(gateway.read("1").await.text().contains("version=1"));
    assert!(gateway.read("2").await.is_hit());
    let reverse = json!({ "params": { "bizId": "b" } }).to_string();
    assert_eq!(gateway.post(REVERSE, &[], &reverse).await.json()["code"], 0);
    assert!(gateway.read("1").await.text().contains("version=2"));
    assert!(gateway.read("2").await.is_hit());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_invalidates_every_customer_that_its_header_names() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    for customer in ["1", "2", "3", "4"] {
        gateway.read(customer).await;
    }
    let body = r#"{"params":{"bizId":"b","customerId":"3"}}"#;
    gateway.post(WRITE, &[("x-zvgate-customer", "1, 2")], body).await;
    for (customer, hit) in [("1", false), ("2", false), ("3", false), ("4", true)] {
        assert_eq!(gateway.read(customer).await.is_hit(), hit, "{customer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_a_customer_follows_the_routes_unknown_customer_setting() {
    let no_customer = r#"{"params":{"bizId":"b"}}"#;
    let one = r#"{"params":{"customerId":"1"}}"#;
    let platform = Platform::unlimited().await;
    for (unknown_customer, status, is_kept) in [("tenant", 200, false), ("ttl", 200, true), ("refuse", 400, true)] {
        let file = format!(
            "[[routes]]\npath = \"/v3/crm/coupon/recycleCoupons\"\nkind = \"write\"\nunknown_customer = \"{unknown_customer}\"\n"
        );
        let gateway = TestGateway::with_file(&platform, &[], &file).await;
        gateway.read("1").await;
        gateway.post(READ, &[("x-zvgate-tenant", "two")], one).await;
        let sent = platform.requests("/v3/crm/coupon/recycleCoupons").await;
        assert_eq!(
            gateway.post("/v3/crm/coupon/recycleCoupons", &[], no_customer).await.status,
            status,
            "{unknown_customer}"
        );
        assert_eq!(platform.requests("/v3/crm/coupon/recycleCoupons").await - sent, u64::from(status == 200));
        assert_eq!(gateway.read("1").await.is_hit(), is_kept, "{unknown_customer}");
        assert!(gateway.post(READ, &[("x-zvgate-tenant", "two")], one).await.is_hit(), "entries of other tenants stay");
        let counted = gateway.metric("zvgate_cache_invalidations_total{cause=\"unknown_customer\"}").await;
        assert_eq!(counted, f64::from(u8::from(unknown_customer == "tenant")));
    }
}

/// A write that was certainly not executed invalidates nothing; one that the platform rejected, at most its own customers.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_not_executed_invalidates_no_more_than_necessary() {
    let throttled = r#"{"status":false,"code":110004,"message":"","data":null}"#;
    let exception = r#"{"status":true,"code":200001,"message":""}"#;
    let error = r#"{"status":false,"code":100002,"message":""}"#;
    let (named, no_customer) = (r#"{"params":{"bizId":"b","customerId":"1"}}"#, r#"{"params":{"bizId":"b"}}"#);
    let ok = |body: &'static str| (200, body);
    // The platform's answer, and whether the entries of customers 1 and 2 stay after a write that names 1 and one without a customer.
    for ((status, body), of_named, of_no_customer) in [
        (ok(throttled), [true, true], [true, true]),
        ((429, "{}"), [true, true], [true, true]),
        (ok(exception), [false, true], [true, true]),
        (ok(error), [false, true], [true, true]),
        ((400, "{}"), [false, true], [true, true]),
        (ok("not JSON"), [false, true], [false, false]),
        ((500, "{}"), [false, true], [false, false]),
        (ok(r#"{"status":true,"code":0}"#), [false, true], [false, false]),
    ] {
        for (write, stays) in [(named, of_named), (no_customer, of_no_customer)] {
            let upstream = Scripted::start(move |_, request| {
                let written = Action::Respond(http_text(&format!("{status} Status"), "", body));
                if request.contains(WRITE) { written } else { Action::success(r#"[{"useStatus":1}]"#) }
            })
            .await;
            let gateway = TestGateway::start(&upstream, &[]).await;
            gateway.read("1").await;
            gateway.read("2").await;
            gateway.post(WRITE, &[], write).await;
            for (customer, stays) in ["1", "2"].into_iter().zip(stays) {
                assert_eq!(gateway.read(customer).await.is_hit(), stays, "{status} {body} {write}: {customer}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_not_sent_invalidates_nothing() {
    let platform = Platform::unlimited().await;
    let overrides = [("limits.max_wait_write", "0s"), ("limits.upstream.rate", "1"), ("limits.upstream.per", "1h")];
    let gateway = TestGateway::start(&platform, &overrides).await;
    let body = r#"{"params":{"bizId":"b","customerId":"1"}}"#;
    gateway.post(WRITE, &[], body).await;
    gateway.read("1").await;
    gateway.post(WRITE, &[], body).await.assert_error(429, "upstream_limited");
    assert!(gateway.read("1").await.is_hit());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_with_an_unknown_outcome_invalidates_its_customers() {
    let upstream = Scripted::start(|_, request| {
        if request.contains(WRITE) {
            Action::RespondAndClose(Vec::new())
        } else {
            Action::success(r#"[{"useStatus":1}]"#)
        }
    })
    .await;
    let gateway = TestGateway::start(&upstream, &[]).await;
    gateway.read("1").await;
    gateway.read("2").await;
    gateway.post(WRITE, &[], r#"{"params":{"customerId":"1"}}"#).await.assert_error(502, "outcome_unknown");
    assert!(!gateway.read("1").await.is_hit());
    assert!(gateway.read("2").await.is_hit());
}

/// While a write is in flight, reads may return earlier data; what they fetch meanwhile is not stored beyond its answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_begun_before_a_writes_answer_is_neither_stored_nor_joined_after_it() {
    let platform = Platform::unlimited().await;
    let gateway = Arc::new(TestGateway::start(&platform, &[]).await);
    let card = card(&gateway, "1").await;
    gateway.clock.advance(std::time::Duration::from_secs(31));
    platform.faults(json!({ "latency_ms": 600, "route": READ })).await;
    let early = {
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move { gateway.read("1").await })
    };
    while platform.requests(READ).await < 2 {
        tokio::task::yield_now().await;
    }
    platform.faults(json!({ "latency_ms": 0 })).await;
    let redeem = json!({ "params": { "bizId": "b", "customerId": "1", "couponsCardList": [card] } }).to_string();
    assert_eq!(gateway.post(WRITE, &[], &redeem).await.json()["code"], 0);
    let after = gateway.read("1").await;
    assert!(after.is_stored_miss() && after.text().contains("version=1"), "{after:?}");
    let early = early.await.unwrap();
    assert_eq!(early.header("cache-status"), "zvgate; fwd=miss", "returned to its caller, and not stored");
    assert!(early.text().contains("version=0"));
    assert!(gateway.read("1").await.text().contains("version=1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_completed_if_its_caller_disconnects() {
    let platform = Platform::unlimited().await;
    let gateway = Arc::new(TestGateway::start(&platform, &[]).await);
    let card = card(&gateway, "1").await;
    platform.faults(json!({ "latency_ms": 400, "route": WRITE })).await;
    let redeem = json!({ "params": { "bizId": "b", "customerId": "1", "couponsCardList": [card] } }).to_string();
    let disconnecting = {
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move { gateway.post(WRITE, &[], &redeem).await })
    };
    while platform.requests(WRITE).await < 1 {
        tokio::task::yield_now().await;
    }
    disconnecting.abort();
    while gateway.metric("zvgate_cache_invalidations_total{cause=\"write\"}").await < 1.0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(gateway.read("1").await.text().contains("version=1"));
}

/// The fence then covers the whole tenant.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_a_customer_fences_fetches_in_flight() {
    let platform = Platform::unlimited().await;
    let gateway = Arc::new(TestGateway::with_file(&platform, &[], UNKNOWN).await);
    platform.faults(json!({ "latency_ms": 600 })).await;
    let early = {
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move { gateway.read("1").await })
    };
    while platform.requests(READ).await < 1 {
        tokio::task::yield_now().await;
    }
    platform.change("1", "use", json!({})).await;
    platform.faults(json!({ "latency_ms": 0 })).await;
    assert_eq!(
        gateway.post("/v3/crm/coupon/recycleCoupons", &[], r#"{"params":{"bizId":"b"}}"#).await.json()["code"],
        0
    );
    let after = gateway.read("1").await;
    assert!(after.is_stored_miss() && after.text().contains("version=1"), "{after:?}");
    assert_eq!(early.await.unwrap().header("cache-status"), "zvgate; fwd=miss", "it is not stored");
    assert!(gateway.read("1").await.text().contains("version=1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn customer_headers_may_be_utf8_and_are_limited_in_number() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    gateway.read("客1").await;
    let body = r#"{"params":{"bizId":"b","customerId":"other"}}"#;
    gateway.post(WRITE, &[("x-zvgate-customer", "客1")], body).await;
    assert!(!gateway.read("客1").await.is_hit());
    let many = vec!["7"; 1001].join(",");
    gateway.post(WRITE, &[("x-zvgate-customer", &many)], body).await.assert_error(400, "bad_request");
    let raw = format!(
        "POST {WRITE} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\nX-Zvgate-Customer: ",
        body.len()
    );
    let bytes = [raw.as_bytes(), b"\xff\r\n\r\n", body.as_bytes()].concat();
    assert!(crate::support::raw(gateway.address, &bytes).contains("\"error\":\"bad_request\""));
    assert_eq!(platform.requests(WRITE).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_waits_for_a_slot_up_to_max_wait_write() {
    let platform = Platform::unlimited().await;
    let overrides = [("limits.max_wait", "0s"), ("limits.upstream.rate", "1"), ("limits.upstream.per", "300ms")];
    let gateway = TestGateway::start(&platform, &overrides).await;
    let write =
        async |id: u8| gateway.post(WRITE, &[], &format!(r#"{{"params":{{"bizId":"{id}","customerId":"1"}}}}"#)).await;
    assert_eq!((write(1).await.status, write(2).await.status, gateway.read("1").await.status), (200, 200, 200));
    gateway.read("2").await.assert_error(429, "upstream_limited");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_uses_a_new_connection() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    gateway.read("1").await;
    let connections = async || platform.stats().await["connections"].as_u64().unwrap();
    // Reading the statistics takes a connection as well.
    let before = connections().await;
    for number in 0..3 {
        gateway.post(WRITE, &[], &format!(r#"{{"params":{{"bizId":"{number}","customerId":"1"}}}}"#)).await;
    }
    gateway.read("1").await;
    assert_eq!(
        connections().await - before,
        3 + 1,
        "three writes and the statistics; the read's connection was reused"
    );
}

/// A write continues if its caller disconnects, and still counts towards the limit. Operators are served meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn writes_of_disconnected_callers_are_bounded() {
    let upstream = Scripted::start(|_, _| Action::Hang).await;
    let gateway =
        TestGateway::start(&upstream, &[("server.max_connections", "5"), ("limits.upstream.rate", "0")]).await;
    let body = r#"{"params":{"customerId":"1"}}"#;
    let mut begun = 0;
    let rejected = loop {
        let write = gateway.post(WRITE, &[], body);
        match tokio::time::timeout(std::time::Duration::from_millis(300), write).await {
            Ok(rejected) => break rejected,
            Err(_) => begun += 1,
        }
        assert!(begun <= 5, "{begun} are in flight");
    };
    rejected.assert_error(503, "unavailable");
    assert_eq!(begun, 5);
    assert_eq!(gateway.page("/healthz").await.status, 200);
}

/// Frequent requests lead to their answers by the memo of hits, which checks the tenant's generation.
#[tokio::test(flavor = "multi_thread")]
async fn invalidating_a_tenant_includes_frequently_requested_answers() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::with_file(&platform, &[], UNKNOWN).await;
    let read_often = async || {
        gateway.read("1").await;
        for _ in 0..3 {
            assert!(gateway.read("1").await.is_hit());
        }
    };
    read_often().await;
    assert_eq!(
        gateway.post("/v3/crm/coupon/recycleCoupons", &[], r#"{"params":{"bizId":"b"}}"#).await.json()["code"],
        0
    );
    assert!(!gateway.read("1").await.is_hit(), "after a write without a known customer");
    read_often().await;
    let purge = http::Request::delete("/cache?tenant=one").header("host", "localhost");
    let purge = crate::support::send(gateway.admin, purge.body(http_body_util::Full::default()).unwrap()).await;
    assert_eq!(purge.json(), json!({ "dropped": 1 }));
    assert!(!gateway.read("1").await.is_hit(), "after a purge of the tenant");
}

/// A write removes the flight of a waiting read; a later read stores a newer answer, which the first read gets if its fetch
/// fails.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_whose_fetch_fails_is_served_from_a_newer_fetch() {
    let upstream = Scripted::start(|number, _| match number {
        0 => Action::Hang,
        _ => Action::success(r#"[{"useStatus":6}]"#),
    })
    .await;
    let gateway = TestGateway::start(&upstream, &[("upstream.attempt_timeout", "1s"), ("upstream.retries", "0")]).await;
    let early = async || gateway.read("1").await;
    let later = async || {
        while upstream.seen().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(gateway.post(WRITE, &[], r#"{"params":{"customerId":"1"}}"#).await.status, 200);
        assert!(gateway.read("1").await.is_stored_miss());
    };
    let (early, ()) = tokio::join!(early(), later());
    assert!(early.is_hit() && early.status == 200, "{early:?}");
}

/// What a write did, by everything that the platform may answer: repeat only what was not sent.
#[tokio::test(flavor = "multi_thread")]
async fn every_response_to_a_write_has_its_outcome() {
    let upstream = Scripted::start(|_, request| {
        let case = envelope(request)["params"]["case"].as_str().unwrap().to_owned();
        let json = |status: &str, body: &str| {
            Action::Respond(http_text(status, "Content-Type: application/json\r\nRetry-After: 7\r\n", body))
        };
        match case.as_str() {
            "success" => json("200 OK", r#"{"status":true,"code":0}"#),
            "created" => json("201 Created", r#"{"status":true,"code":0}"#),
            "exception" => json("200 OK", r#"{"status":true,"code":7}"#),
            "error" => json("200 OK", r#"{"status":false,"code":7}"#),
            "busy" => json("200 OK", r#"{"status":false,"code":110007}"#),
            "bad request" => json("400 Bad Request", "{}"),
            "server error" => json("503 Service Unavailable", r#"{"status":false}"#),
            "twice" => json("200 OK", r#"{"status":true,"code":0,"code":1}"#),
            "page" => json("200 OK", "<html>Welcome</html>"),
            "compressed" => {
                Action::Respond(http_text("200 OK", "Content-Encoding: gzip\r\n", r#"{"status":true,"code":0}"#))
            }
            "redirect" => Action::Respond(http_text("302 Found", "Location: /\r\n", "")),
            "reset" => Action::Close,
            _ => panic!("{case}"),
        }
    })
    .await;
    let overrides = [("limits.upstream.rate", "0"), ("server.max_body", "1KiB")];
    let gateway = TestGateway::start(&upstream, &overrides).await;
    for (case, status, outcome) in [
        ("success", 200, "executed"),
        ("created", 201, "executed"),
        ("exception", 200, "refused"),
        ("error", 200, "refused"),
        ("busy", 200, "refused"),
        ("bad request", 400, "refused"),
        ("server error", 503, "unknown"),
        ("twice", 200, "unknown"),
        ("page", 502, "unknown"),
        ("compressed", 502, "unknown"),
        ("redirect", 502, "unknown"),
        ("reset", 502, "unknown"),
    ] {
        let body = format!(r#"{{"params":{{"customerId":"{case}","case":"{case}"}}}}"#);
        let reply = gateway.post(WRITE, &[], &body).await;
        assert_eq!((reply.status, reply.header("x-zvgate-outcome")), (status, outcome), "{case}: {reply:?}");
        let is_error = reply.headers.contains_key("proxy-status");
        assert_eq!(is_error, status == 502, "{case}: {reply:?}");
        if is_error {
            reply.assert_error(502, "outcome_unknown");
        }
        if outcome == "unknown" {
            assert!(!reply.headers.contains_key("retry-after"), "{case}: nobody shall repeat it");
        }
        // The pauses that the platform asked for are another test's.
        gateway.clock.advance(std::time::Duration::from_secs(61));
    }
    let sent = upstream.seen().len();
    let long = format!(r#"{{"params":{{"case":"{}"}}}}"#, "x".repeat(2000));
    for (headers, body, status) in [
        (&[("x-zvgate-tenant", "nobody")][..], "{}", 400),
        (&[("content-type", "text/plain")], "{}", 415),
        (&[], "{}", 400),
        (&[], &long, 413),
    ] {
        let reply = gateway.post(WRITE, headers, body).await;
        assert_eq!((reply.status, reply.header("x-zvgate-outcome")), (status, "not-sent"), "{reply:?}");
    }
    let read = gateway.post(READ, &[], r#"{"params":{"customerId":"1","case":"success"}}"#).await;
    assert!(!read.headers.contains_key("x-zvgate-outcome"), "{read:?}");
    assert_eq!(upstream.seen().len(), sent + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_reaches_no_platform_or_finds_no_slot_is_not_sent() {
    struct Nowhere;
    impl Upstream for Nowhere {
        fn url(&self) -> String {
            "http://127.0.0.1:1".to_owned()
        }
    }
    let gateway = TestGateway::start(&Nowhere, &[]).await;
    let reply = gateway.post(WRITE, &[], r#"{"params":{"customerId":"1"}}"#).await;
    reply.assert_error(502, "upstream_failed");
    assert_eq!(reply.header("x-zvgate-outcome"), "not-sent");
    let slots = [("limits.upstream.per", "1h"), ("limits.max_wait_write", "0s")];
    let gateway = TestGateway::cold(&Nowhere, &slots).await;
    let reply = gateway.post(WRITE, &[], r#"{"params":{"customerId":"1"}}"#).await;
    reply.assert_error(429, "upstream_limited");
    assert_eq!(reply.header("x-zvgate-outcome"), "not-sent");
}
