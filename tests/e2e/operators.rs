//! What operators see and do: the status page and its data, explanations, access to them, and metrics that stay bounded.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::redis::Redis;
use crate::support::{Caller, Platform, READ, REVERSE, Reply, TestGateway, WRITE, send, until};

async fn ask(gateway: &TestGateway, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "localhost");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(gateway.admin, request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await
}

async fn explain(gateway: &TestGateway, path: &str, body: Value, headers: &[(&str, &str)]) -> Value {
    let asked = json!({ "path": path, "body": body }).to_string();
    let reply = ask(gateway, Method::POST, "/explain", headers, &asked).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

/// The hash of a key, as it is configured.
fn hash_of(key: &str) -> String {
    Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_of(customer: &str) -> Value {
    json!({ "params": { "customerId": customer } })
}

async fn status(gateway: &TestGateway) -> Value {
    gateway.page("/status.json").await.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_says_what_would_happen_and_why() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let explained = explain(&gateway, READ, read_of("1"), &[]).await;
    assert_eq!(
        (&explained["would"], &explained["cached"], &explained["tenant"]),
        (&json!("miss"), &Value::Null, &json!("one"))
    );
    assert_eq!(explained["breaker"], "closed");
    gateway.read("1").await;
    let explained = explain(&gateway, READ, read_of("1"), &[]).await;
    assert_eq!(explained["would"], "hit", "{explained}");
    assert!(explained["cached"]["fresh_for"].as_f64().unwrap() > 0.0 && explained["cached"]["bound"].is_string());
    assert_eq!(explained["customers"][0]["id"], "1");
    let signed = explained["string_to_sign"].as_str().unwrap();
    assert!(signed.starts_with("grantCode=***&nonce=NONCE&openId=***&timestamp="), "{signed}");
    let other = json!({ "params": { "customerId": "1", "useStatus": "1" } });
    let explained = explain(&gateway, READ, other, &[]).await;
    assert!(explained["because"].as_str().unwrap().contains("other questions"), "{explained}");
    assert_eq!(explained["other_questions"].as_array().unwrap().len(), 1);
    let explained = explain(&gateway, READ, read_of("1"), &[("cache-control", "no-cache")]).await;
    assert_eq!(explained["would"], "miss");
    assert_eq!(explain(&gateway, READ, read_of("1"), &[("x-zvgate-tenant", "two")]).await["tenant"], "two");
    let write = json!({ "params": { "bizId": "1", "customerId": "1", "couponsCardList": [] } });
    let explained = explain(&gateway, WRITE, write.clone(), &[]).await;
    assert_eq!((&explained["would"], &explained["kind"]), (&json!("bypass"), &json!("write")));
    gateway.post(WRITE, &[], &write.to_string()).await;
    let explained = explain(&gateway, READ, read_of("1"), &[]).await;
    assert!(explained["settles_for_s"].as_f64().unwrap() > 0.0, "{explained}");
    assert!(explained["because"].as_str().unwrap().contains("write"), "{explained}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_names_the_error_that_a_caller_would_get() {
    let platform = Platform::unlimited().await;
    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let overrides = [("callers.a.key_sha256", hash), ("callers.a.tenants", "one"), ("callers.a.routes", READ)];
    let gateway = TestGateway::start(&platform, &overrides).await;
    for (asked, status, error) in [
        (json!({ "path": "/nowhere", "body": {} }), 404, "unknown_route"),
        (json!({ "path": READ, "body": "no JSON" }), 400, "bad_request"),
        (json!({ "path": READ, "body": {} }), 400, "bad_request"),
        (json!({ "path": READ, "body": "{\"params\":{\"a\":1,\"a\":2}}" }), 400, "bad_request"),
        (
            json!({ "path": READ, "body": { "openId": "x", "grantCode": "y", "params": { "customerId": "1" } } }),
            400,
            "unknown_tenant",
        ),
        (json!({ "path": WRITE, "body": read_of("1"), "caller": "a" }), 403, "forbidden"),
        (json!({ "path": READ, "body": read_of("1"), "caller": "nobody" }), 400, "bad_request"),
    ] {
        let reply = ask(&gateway, Method::POST, "/explain", &[], &asked.to_string()).await.json();
        assert_eq!(
            (&reply["would"], &reply["error"]["status"], &reply["error"]["error"]),
            (&json!("rejected"), &json!(status), &json!(error)),
            "{asked}"
        );
        assert_eq!(reply["because"], reply["error"]["message"]);
    }
    for invalid in ["", "[]", "{\"path\":1,\"body\":{}}", "{\"path\":\"/\"}", "{\"path\":\"/\",\"body\":{},\"more\":1}"]
    {
        let reply = ask(&gateway, Method::POST, "/explain", &[], invalid).await;
        assert!(reply.status == 400 && reply.text().contains("expected {\"path\""), "{reply:?}");
    }
    assert_eq!(ask(&gateway, Method::GET, "/explain", &[], "").await.status, 405);
}

/// What is explained of a request, and what then becomes of it: `would`, the error, and `Cache-Status`.
async fn explained_and_done(gateway: &TestGateway, customer: &str, headers: &[(&str, &str)]) -> (Value, Reply) {
    let explained = explain(gateway, READ, read_of(customer), headers).await;
    (explained, gateway.post(READ, headers, &read_of(customer).to_string()).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_agrees_with_what_happens() {
    let platform = Platform::unlimited().await;
    let overrides = [
        ("upstream.retries", "0"),
        ("cache.stale_if_error", "60s"),
        ("cache.settle", "0s"),
        ("limits.upstream.rate", "0"),
        ("limits.max_waiters", "1"),
    ];
    let gateway = TestGateway::start(&platform, &overrides).await;
    let only_if_cached = [("cache-control", "only-if-cached")];
    let (explained, reply) = explained_and_done(&gateway, "1", &only_if_cached).await;
    assert_eq!((&explained["error"]["error"], reply.status), (&json!("not_cached"), 504), "{explained}");

    gateway.read("1").await;
    let (explained, reply) = explained_and_done(&gateway, "1", &only_if_cached).await;
    assert_eq!(explained["would"], "hit", "{explained}");
    assert!(reply.header("cache-status").contains("hit"));

    // A call in flight is joined, but not by whoever wants a newer one, and not by too many.
    platform.faults(json!({ "latency_ms": 1500 })).await;
    let waiting = async || {
        let (waiting, check) = tokio::join!(gateway.read("2"), async {
            until("it is sent", async || gateway.metric("zvgate_upstream_inflight{tenant=\"one\"}").await > 0.0).await;
            let joins = explain(&gateway, READ, read_of("2"), &[]).await;
            let newer = explain(&gateway, READ, read_of("2"), &[("cache-control", "no-cache")]).await;
            (joins, newer, gateway.read("2").await)
        });
        assert_eq!(waiting.status, 200);
        check
    };
    let (joins, newer, reply) = waiting().await;
    assert_eq!((&joins["error"]["error"], reply.status), (&json!("unavailable"), 503), "{joins}");
    assert_eq!(newer["would"], "miss", "{newer}");
    platform.without_faults().await;

    // While the breaker is open nothing is sent; a stale answer is served in place of the error.
    platform.faults(json!({ "fault": "http500" })).await;
    for customer in 10..16 {
        gateway.read(&customer.to_string()).await;
    }
    let (explained, reply) = explained_and_done(&gateway, "3", &[]).await;
    assert_eq!(explained["would"], "rejected", "{explained}");
    assert_eq!((&explained["error"]["status"], reply.status), (&json!(503), 503), "{explained}");
    assert_eq!(explained["error"]["message"], reply.json()["message"]);
    let write = json!({ "params": { "bizId": "1", "customerId": "1", "couponsCardList": [] } });
    assert_eq!(explain(&gateway, WRITE, write, &[]).await["would"], "bypass", "writes have a breaker of their own");
    // As long as it is open: its time does not pass here.
    let stale = TestGateway::start(
        &platform,
        &[overrides.as_slice(), &[("upstream.breaker.open_min", "60s"), ("upstream.breaker.open_max", "60s")]].concat(),
    )
    .await;
    platform.without_faults().await;
    stale.read("1").await;
    stale.clock.advance(std::time::Duration::from_secs(31));
    let (explained, reply) = explained_and_done(&stale, "1", &only_if_cached).await;
    assert_eq!((&explained["error"]["error"], reply.status), (&json!("not_cached"), 504), "{explained}");
    platform.faults(json!({ "fault": "http500" })).await;
    for customer in 10..16 {
        stale.read(&customer.to_string()).await;
    }
    let (explained, reply) = explained_and_done(&stale, "1", &[]).await;
    assert_eq!((&explained["would"], reply.status), (&json!("stale"), 200), "{explained}");
    assert!(reply.header("cache-status").contains("stale-if-error"), "{reply:?}");
    platform.without_faults().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_knows_the_callers_own_rules_and_pauses() {
    let platform = Platform::unlimited().await;
    let key = "a caller's key";
    let hash = hash_of(key);
    let overrides = [
        ("callers.a.key_sha256", hash.as_str()),
        ("callers.a.tenants", "*"),
        ("callers.a.routes", "*"),
        ("callers.a.no_cache", "ignore"),
        ("limits.max_wait", "1s"),
        ("upstream.retries", "0"),
    ];
    let gateway = TestGateway::start(&platform, &overrides).await;
    let headers = [("authorization", &*format!("Bearer {key}")), ("cache-control", "no-cache")];
    gateway.post(READ, &headers, &read_of("1").to_string()).await;
    let asked = json!({ "path": READ, "body": read_of("1"), "caller": "a" }).to_string();
    let explained = ask(&gateway, Method::POST, "/explain", &[("cache-control", "no-cache")], &asked).await.json();
    assert_eq!(explained["would"], "hit", "{explained}");
    assert!(gateway.post(READ, &headers, &read_of("1").to_string()).await.header("cache-status").contains("hit"));

    platform.faults(json!({ "fault": "throttle" })).await;
    gateway.post(READ, &headers, &read_of("2").to_string()).await;
    gateway.post(READ, &headers, &read_of("3").to_string()).await;
    let asked = json!({ "path": READ, "body": read_of("4"), "caller": "a" }).to_string();
    let explained = ask(&gateway, Method::POST, "/explain", &[], &asked).await.json();
    let reply = gateway.post(READ, &headers, &read_of("4").to_string()).await;
    assert_eq!((&explained["error"]["status"], reply.status), (&json!(429), 429), "{explained} {reply:?}");
    assert_eq!(explained["error"]["error"], "upstream_limited");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_knows_what_other_replicas_stored() {
    let (platform, mut redis) = (Platform::unlimited().await, Redis::start());
    let shared = [("limits.upstream.rate", "100"), ("cluster.unfenced_writes", "refuse")];
    let one = redis.replica(&platform, &shared).await;
    let other = redis.replica(&platform, &shared).await;
    until("there is a slot", async || one.read("1").await.status == 200).await;
    assert!(!one.page("/metrics").await.text().contains("op=\"inspect\""), "it is not counted");
    let explained = explain(&other, READ, read_of("1"), &[]).await;
    assert_eq!(explained["would"], "hit", "{explained}");
    assert!(explained["because"].as_str().unwrap().contains("detail=shared"), "{explained}");
    assert_eq!(explain(&other, READ, read_of("1"), &[("cache-control", "no-cache")]).await["would"], "miss");
    assert!(other.read("1").await.header("cache-status").contains("detail=shared"));

    redis.kill();
    until("it is cut off", async || other.metric("zvgate_cluster_up").await == 0.0).await;
    let explained = explain(&other, READ, read_of("1"), &[]).await;
    assert_eq!(explained["shared"], Value::Null, "{explained}");
    assert!(explained.as_object().unwrap().contains_key("shared"), "{explained}");
    assert!(explained["because"].as_str().unwrap().contains("cut off"), "{explained}");
    let write = json!({ "params": { "bizId": "1", "customerId": "1", "couponsCardList": [] } });
    assert_eq!(explain(&other, WRITE, write, &[]).await["error"]["status"], 503);
    let verdict = status(&other).await["verdict"].clone();
    assert!(verdict["summary"].as_str().unwrap().contains("cut off from the other 2 replicas"), "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_sends_and_changes_nothing() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("cache.stale_while_revalidate", "60s")]).await;
    gateway.read("1").await;
    gateway.clock.advance(std::time::Duration::from_secs(31));
    let page = async || {
        let text = gateway.page("/metrics").await.text();
        let ours = text.lines().filter(|line| line.starts_with("zvgate_") && !line.contains("_skew_"));
        ours.map(str::to_owned).collect::<Vec<_>>()
    };
    let (before, sent) = (page().await, platform.stats().await["requests"].clone());
    for customer in 0..50 {
        explain(&gateway, READ, read_of(&customer.to_string()), &[]).await;
        explain(&gateway, REVERSE, read_of(&customer.to_string()), &[]).await;
    }
    let changed: Vec<String> = page().await.into_iter().filter(|line| !before.contains(line)).collect();
    assert_eq!((changed, &platform.stats().await["requests"]), (Vec::new(), &sent));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_its_data_require_the_key_and_no_other_site_can_write() {
    let platform = Platform::unlimited().await;
    let key = "operators-key";
    let hash = hash_of(key);
    let gateway = TestGateway::start(&platform, &[("server.admin_key_sha256", &hash)]).await;
    let basic = |password: &str| {
        use base64::Engine;
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("anybody:{password}")))
    };
    let (right, wrong, bearer) = (basic(key), basic("x"), format!("Bearer {key}"));
    for (path, authorization, expected) in [
        ("/", "", 401),
        ("/", &*wrong, 401),
        ("/", &*right, 200),
        ("/", &*bearer, 200),
        ("/status.json", &*right, 200),
        ("/config", &*right, 401),
        ("/config", &*bearer, 200),
        ("/", "Basic Og==", 401),
        ("/", "Basic ???", 401),
    ] {
        let reply = ask(&gateway, Method::GET, path, &[("authorization", authorization)], "").await;
        assert_eq!(reply.status, expected, "{path} {authorization}");
        if expected == 401 {
            assert_eq!(reply.header("www-authenticate").starts_with("Basic "), path != "/config", "{reply:?}");
        }
    }
    let form = "tenant=one&customer=1&do=purge";
    for (host, origin, expected) in [
        ("localhost", "", 200),
        ("localhost", "http://localhost", 200),
        ("127.0.0.1:9464", "http://127.0.0.1:9464", 200),
        ("localhost", "http://evil.example", 403),
        ("localhost", "http://localhost:81", 403),
        ("localhost", "null", 403),
        ("evil.example", "http://evil.example", 403),
        ("evil.example", "", 200),
    ] {
        let mut headers = vec![("host", host), ("authorization", &right)];
        headers.extend((!origin.is_empty()).then_some(("origin", origin)));
        let reply = ask(&gateway, Method::POST, "/", &headers, form).await;
        assert_eq!(reply.status, expected, "{host} {origin}");
        headers[1].1 = &bearer;
        let purged = ask(&gateway, Method::DELETE, "/cache?all=true", &headers, "").await;
        assert_eq!(purged.status, expected, "{host} {origin}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_a_page_of_this_machine_may_write_and_others_may_not() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let form = "tenant=one&customer=%3Cscript%3E&do=look-up";
    for (origin, expected) in [("http://localhost", 200), ("http://evil.example", 403), ("null", 403)] {
        let reply = ask(&gateway, Method::POST, "/", &[("origin", origin)], form).await;
        assert_eq!(reply.status, expected, "{origin}");
        assert!(!reply.text().contains("customer <script>"), "it is escaped");
    }
    for invalid in
        ["", "tenant=one&customer=&do=purge", "tenant=one&customer=1&do=drop", "tenant=nobody&customer=1&do=purge"]
    {
        let reply = ask(&gateway, Method::POST, "/", &[], invalid).await;
        assert!([400, 404].contains(&reply.status), "{invalid}");
    }
    let page = gateway.page("/").await;
    let policy = page.header("content-security-policy").to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("cache-control"), "no-store");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_failed_requests_are_shown_with_hashed_customers() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("upstream.retries", "0")]).await;
    platform.faults(json!({ "latency_ms": 30 })).await;
    let slow = gateway.post(READ, &[("x-request-id", "slow-one")], &read_of("383933091455959041").to_string()).await;
    assert_eq!(slow.status, 200);
    platform.faults(json!({ "fault": "http500" })).await;
    gateway.post(READ, &[("x-request-id", "failed-one")], &read_of("383933091455959042").to_string()).await;
    gateway.post("/nowhere", &[("x-request-id", "rejected-one")], "{}").await;
    let reply = gateway.page("/status.json").await;
    let requests = &reply.json()["requests"];
    let ids = |list: &str| -> Vec<String> {
        requests[list].as_array().unwrap().iter().map(|one| one["request_id"].as_str().unwrap().to_owned()).collect()
    };
    assert!(ids("slowest").contains(&"slow-one".to_owned()), "{requests}");
    assert_eq!((ids("failed"), ids("rejected")), (vec!["failed-one".to_owned()], vec!["rejected-one".to_owned()]));
    assert_eq!(requests["failed"][0]["status"], 500);
    assert_eq!(requests["failed"][0]["customers"][0].as_str().unwrap().len(), 16);
    assert!(!reply.text().contains("38393309145595904"), "no customer's id");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_refused_after_its_customer_was_served_from_the_cache_is_counted() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let metric = format!("zvgate_stale_shown_total{{route=\"{WRITE}\"}}");
    let refused = r#"{"params":{"bizId":"1","customerId":"1","couponsCardList":["no such card"]}}"#;
    gateway.post(WRITE, &[], refused).await;
    assert_eq!(gateway.metric(&metric).await, 0.0, "nobody was served");
    gateway.read("1").await;
    gateway.post(WRITE, &[], refused).await;
    assert_eq!(gateway.metric(&metric).await, 0.0, "that was no answer from the cache");
    gateway.clock.advance(std::time::Duration::from_secs(5));
    gateway.read("1").await;
    assert!(gateway.read("1").await.is_hit());
    let answer = gateway.post(WRITE, &[], refused).await;
    assert_ne!(answer.json()["code"], 0);
    assert_eq!(gateway.metric(&metric).await, 1.0);
    gateway.clock.advance(std::time::Duration::from_secs(601));
    gateway.post(WRITE, &[], refused).await;
    assert_eq!(gateway.metric(&metric).await, 1.0, "ten minutes later it is not counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_verdict_names_what_is_wrong() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("upstream.retries", "0")]).await;
    assert_eq!(status(&gateway).await["verdict"]["level"], "ok");
    platform.faults(json!({ "fault": "http500" })).await;
    for customer in 0..6 {
        gateway.read(&customer.to_string()).await;
    }
    let verdict = status(&gateway).await["verdict"].clone();
    assert_eq!(
        (&verdict["level"], &verdict["findings"][0]["runbook"]),
        (&json!("critical"), &json!("ZvgateBreakerOpen"))
    );
    let said = verdict["summary"].as_str().unwrap();
    assert!(said.contains("circuit breaker") && said.contains(READ) && said.contains("HTTP status 500"), "{said}");
    assert!(gateway.page("/").await.text().contains("HTTP status 500"));
    // However long nobody calls, it is no longer critical once its time has passed.
    gateway.clock.advance(std::time::Duration::from_secs(60));
    let verdict = status(&gateway).await["verdict"].clone();
    let finding =
        verdict["findings"].as_array().unwrap().iter().find(|finding| finding["runbook"] == "ZvgateBreakerOpen");
    assert_eq!(finding.unwrap()["severity"], "notice", "{verdict}");
    assert!(finding.unwrap()["what"].as_str().unwrap().contains("the next call probes"), "{verdict}");
    assert!(gateway.page("/").await.text().contains("half-open: the next call probes"));

    // A single failure is shown as what it was, and for ten minutes.
    let single = TestGateway::start(&platform, &[("upstream.retries", "0")]).await;
    single.read("1").await;
    let what = async || status(&single).await["verdict"]["summary"].as_str().unwrap().to_owned();
    assert!(what().await.contains("A call of tenant one"), "{}", what().await);
    single.clock.advance(std::time::Duration::from_secs(601));
    assert_eq!(status(&single).await["verdict"]["findings"], json!([]));

    // What all routes have in common is said once for each tenant.
    let nowhere =
        TestGateway::start(&platform, &[("upstream.base_url", "http://127.0.0.1:1"), ("upstream.retries", "0")]).await;
    for customer in 0..6 {
        nowhere.read(&customer.to_string()).await;
    }
    let findings = status(&nowhere).await["verdict"]["findings"].clone();
    let open = findings.as_array().unwrap().iter().filter(|finding| finding["runbook"] == "ZvgateBreakerOpen");
    let open: Vec<&str> = open.map(|finding| finding["what"].as_str().unwrap()).collect();
    assert!(matches!(open.as_slice(), [one] if one.contains("all routes") && one.contains("refused")), "{findings}");

    // Limits that are reached.
    let small = TestGateway::start(&platform, &[("server.max_connections", "1")]).await;
    let mut only = Caller::connect(small.address).await;
    only.read("1").await;
    small.page("/metrics").await;
    small.read("2").await.assert_error(503, "unavailable");
    let verdict = status(&small).await["verdict"].clone();
    assert!(verdict.to_string().contains("ZvgateConnectionsRejected"), "{verdict}");

    platform.faults(json!({ "fault": "throttle" })).await;
    let other = TestGateway::start(&platform, &[("upstream.retries", "0")]).await;
    other.read("1").await;
    let verdict = status(&other).await["verdict"].clone();
    assert_eq!(verdict["findings"][0]["runbook"], "ZvgateThrottledByOthers", "{verdict}");
}

#[test]
fn each_condition_has_its_section_in_the_runbook_with_its_advice() {
    let runbook = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/runbook.md")).unwrap();
    let runbook = runbook.split_whitespace().collect::<Vec<_>>().join(" ");
    for (alert, advice) in zvgate::gateway::CONDITIONS {
        let section = runbook.split("## ").find(|section| section.starts_with(&format!("{alert} ")));
        assert!(section.is_some_and(|section| section.contains(advice)), "{alert}: {advice}");
    }
}

/// Whatever callers send, there are at most 2,000 series at the defaults.
#[tokio::test(flavor = "multi_thread")]
async fn callers_cannot_make_series() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("limits.upstream.rate", "0")]).await;
    let count = async || {
        let text = gateway.page("/metrics").await.text();
        text.lines().filter(|line| !line.starts_with('#')).count()
    };
    let at_start = count().await;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let requests = (
        prop_oneof![Just(READ.to_owned()), Just(WRITE.to_owned()), "/[a-z/._%-]{0,20}"],
        prop_oneof!["\\{\"params\":\\{\"customerId\":\"[a-z0-9]{1,9}\",\"[a-z]{1,5}\":[0-9]{1,4}\\}\\}", ".{0,40}"],
        proptest::collection::vec(
            (
                prop_oneof![
                    Just("x-zvgate-tenant"),
                    Just("x-request-id"),
                    Just("cache-control"),
                    Just("traceparent"),
                    Just("content-type")
                ],
                "[ -~]{0,30}",
            ),
            0..3,
        ),
    );
    for _ in 0..400 {
        let (path, body, headers) = requests.new_tree(&mut runner).unwrap().current();
        let mut request = Request::post(path.replace('%', "%25")).header("host", "localhost");
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in &headers {
            request = request.header(*name, value.trim());
        }
        let mut caller = Caller::connect(gateway.address).await;
        let _ = caller.send(request.body(Full::new(Bytes::from(body))).unwrap()).await;
    }
    until("idle", async || gateway.metric("zvgate_upstream_inflight{tenant=\"one\"}").await == 0.0).await;
    let series = count().await;
    assert!(series <= 2000 && series - at_start < 200, "{at_start} at the start, {series} at the end");
}
