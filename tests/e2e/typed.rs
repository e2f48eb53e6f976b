//! The typed API: one shape of coupons, problem details, entity tags, and batches.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::scripted::{Action, Scripted, http_text};
use crate::support::{Platform, READ, Reply, TestGateway, WRITE, captured_log, post, raw, send, until};

const LIST: &str = "/v1/coupons:list";
const BATCH: &str = "/v1/coupons:batchGet";

fn coupons(customer: &str) -> String {
    format!("/v1/customers/{customer}/coupons")
}

impl TestGateway {
    pub(crate) async fn get(&self, target: &str, headers: &[(&str, &str)]) -> Reply {
        self.request(Method::GET, target, headers).await
    }

    async fn request(&self, method: Method, target: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = Request::builder().method(method).uri(target).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        send(self.address, request.body(Full::default()).unwrap()).await
    }

    async fn batch(&self, customers: &[String], headers: &[(&str, &str)]) -> Reply {
        self.post(BATCH, headers, &json!({ "customerIds": customers }).to_string()).await
    }
}

impl Reply {
    /// Asserts that this is the problem of this name, with all parts that each has.
    #[track_caller]
    fn assert_problem(&self, status: u16, name: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        let body = self.json();
        assert_eq!(body["type"], format!("urn:problem-type:zvgate:{name}"), "{body}");
        assert_eq!((&body["status"], &body["code"]), (&json!(status), &json!(990_000 + u32::from(status))));
        assert!(["title", "detail"].iter().all(|text| !body[text].as_str().unwrap().is_empty()), "{body}");
        assert_eq!(body["requestId"], self.header("x-request-id"));
        assert_eq!(self.header("content-type"), "application/problem+json");
        let cache_control = if name.starts_with("platform_") { "private, no-cache" } else { "no-store" };
        assert_eq!(self.header("cache-control"), cache_control);
        // The platform spoke, or the gateway did.
        let is_platforms = name.starts_with("platform_");
        assert_eq!(self.header("proxy-status").is_empty(), is_platforms, "{self:?}");
        assert_eq!(self.header("cache-status").is_empty(), !is_platforms, "{self:?}");
        body
    }
}

/// The typed API, the platform's own interface, and the memo of hits are one cache.
#[tokio::test(flavor = "multi_thread")]
async fn all_ways_to_ask_share_one_entry_and_one_fetch() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let first = gateway.get(&coupons("383933091455959041"), &[]).await;
    assert_eq!((first.status, first.header("content-type")), (200, "application/json"), "{first:?}");
    assert!(first.is_stored_miss(), "{first:?}");
    assert_eq!(first.header("cache-control"), "private, no-cache");
    let body = first.json();
    assert_eq!(body["customerId"], "383933091455959041");
    let coupon = &body["coupons"][0];
    assert_eq!(coupon["status"], json!({ "code": 0, "name": "unused" }), "{body}");
    assert_eq!(coupon["more"], json!({}), "the sandbox sends some members under two names");
    for _ in 0..2 {
        let again = gateway.get(&coupons("383933091455959041"), &[]).await;
        assert!(again.is_hit() && !again.header("age").is_empty(), "{again:?}");
        assert_eq!((&again.body, again.header("etag")), (&first.body, first.header("etag")));
        let list = gateway.post(LIST, &[], r#"{"customerId":"383933091455959041"}"#).await;
        assert!(list.is_hit() && list.body == first.body, "{list:?}");
        let raw = gateway.read("383933091455959041").await;
        assert!(raw.is_hit() && raw.json()["data"].is_object(), "{raw:?}");
        let batch = gateway.batch(&["383933091455959041".to_owned()], &[]).await;
        assert_eq!(batch.json()["results"][0]["coupons"], body["coupons"]);
    }
    assert_eq!(platform.requests(READ).await, 1);
    // Another status is another question, however it is asked.
    let unused = gateway.get(&format!("{}?useStatus=0&cardId=&usable=", coupons("1")), &[]).await;
    assert!(unused.is_stored_miss(), "{unused:?}");
    let raw = gateway.post(READ, &[], r#"{"params":{"useStatus":"0","customerId":"1"}}"#).await;
    assert!(raw.is_hit(), "{raw:?}");
    // A write invalidates all of it.
    let write = json!({ "params": { "customerId": "383933091455959041", "bizId": "b", "couponsCardList": [coupon["cardId"]] } });
    let write = gateway.post(WRITE, &[], &write.to_string()).await;
    assert_eq!(write.header("x-zvgate-outcome"), "executed", "{write:?}");
    let after = gateway.get(&coupons("383933091455959041"), &[]).await;
    assert!(!after.is_hit() && after.header("etag") != first.header("etag"), "{after:?}");
    assert_eq!(after.json()["coupons"][0]["status"], json!({ "code": 1, "name": "redeemed" }));
    let usable = gateway.get(&format!("{}?usable=true", coupons("383933091455959041")), &[]).await;
    assert!(usable.json()["coupons"].as_array().unwrap().iter().all(|coupon| coupon["status"]["code"] == 0));
}

/// The contents decide, and not when they were fetched.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_has_the_coupons_gets_304() {
    let upstream = Scripted::start(|_, request| match request.contains("changed") {
        true => Action::success(r#"[{"cardId":"2","useStatus":1}]"#),
        false => Action::success(r#"[{"cardId":"1","useStatus":1}]"#),
    })
    .await;
    let gateway = TestGateway::start(&upstream, &[]).await;
    let first = gateway.get(&coupons("1"), &[]).await;
    let tag = first.header("etag").to_owned();
    assert!(tag.starts_with("W/\""), "{tag}");
    for known in [&tag, "*", tag.trim_start_matches("W/"), &format!("\"x\", {tag}"), &format!("{tag},\"y\"")] {
        for cache_control in ["max-age=60", "no-cache"] {
            let headers = [("if-none-match", known), ("cache-control", cache_control)];
            let reply = gateway.get(&coupons("1"), &headers).await;
            assert_eq!((reply.status, reply.body.len()), (304, 0), "{known}: {reply:?}");
            assert_eq!((reply.header("etag"), reply.header("cache-control")), (tag.as_str(), "private, no-cache"));
            assert!(!reply.header("cache-status").is_empty() && reply.header("content-type").is_empty(), "{reply:?}");
        }
    }
    let headers = [("if-none-match", tag.as_str())];
    assert_eq!(gateway.post(LIST, &headers, r#"{"customerId":"1"}"#).await.status, 304);
    assert_eq!(gateway.get(&coupons("changed"), &headers).await.status, 200);
    assert_eq!(gateway.get(&coupons("1"), &[("if-none-match", "\"other\"")]).await.status, 200);
    // Nothing is usable: another list, and another tag.
    let usable = gateway.get(&format!("{}?usable=true", coupons("1")), &headers).await;
    assert_eq!((usable.status, &usable.json()["coupons"]), (200, &json!([])));
    let head = gateway.request(Method::HEAD, &coupons("1"), &[]).await;
    assert_eq!((head.status, head.body.len(), head.header("etag")), (200, 0, tag.as_str()));
    assert_eq!(
        gateway
            .metric(
                "zvgate_requests_total{caller=\"anonymous\",route=\"/v3/crm/coupon/getCustomerCoupons\",status=\"304\"}"
            )
            .await,
        11.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_platform_says_in_place_of_coupons_is_a_problem() {
    let upstream = Scripted::start(|_, request| {
        let answer = |text: &str| Action::json(text);
        let http = |status: &str, body: &str| Action::Respond(http_text(status, "Retry-After: 7\r\n", body));
        match () {
            () if request.contains("exception") => answer(r#"{"status":true,"code":"20001","message":"无\u0000此"}"#),
            () if request.contains("system") => answer(r#"{"status":"false","code":"100002","message":"参数"}"#),
            () if request.contains("twice") => answer(r#"{"status":true,"code":0,"code":1,"data":[]}"#),
            () if request.contains("limited") => http("429 Too Many Requests", "slow down"),
            () if request.contains("missing") => http("404 Not Found", "{\"code\":404}"),
            () if request.contains("html") => Action::Respond(http_text("200 OK", "", "<html>")),
            () => http("500 Internal Server Error", ""),
        }
    })
    .await;
    let log = captured_log();
    let overrides = [
        ("upstream.retries", "0"),
        ("upstream.breaker.consecutive", "0"),
        ("upstream.breaker.ratio", "0"),
        ("log.access", "errors"),
    ];
    let gateway = TestGateway::start(&upstream, &overrides).await;
    let exception = gateway.get(&coupons("exception"), &[]).await;
    let body = exception.assert_problem(422, "platform_exception");
    assert_eq!((&body["platformCode"], &body["platformMessage"]), (&json!("20001"), &json!("无\0此")));
    let again = gateway.get(&coupons("exception"), &[]).await;
    again.assert_problem(422, "platform_exception");
    assert!(again.is_hit(), "an exception is cached for a short time: {again:?}");
    let body = gateway.get(&coupons("system"), &[]).await.assert_problem(502, "platform_error");
    assert_eq!((&body["platformCode"], &body["platformMessage"]), (&json!("100002"), &json!("参数")));
    gateway.get(&coupons("twice"), &[]).await.assert_problem(502, "platform_error");
    gateway.get(&coupons("html"), &[]).await.assert_problem(502, "upstream_failed");
    // The last one makes the gateway pause.
    for customer in ["missing", "broken", "limited"] {
        let reply = gateway.get(&coupons(customer), &[]).await;
        let body = reply.assert_problem(502, "platform_error");
        assert_eq!((body.get("platformMessage"), reply.header("retry-after")), (None, "7"), "{customer}");
    }
    // The log has the name of the error and the platform's code, and never its message.
    until("the requests are logged", async || {
        log.lines().iter().filter(|line| line["message"] == "request").count() == 8
    })
    .await;
    let lines = log.lines();
    let logged =
        |error: &str| lines.iter().find(|line| line["error"] == error && line["code"] != Value::Null).unwrap().clone();
    assert_eq!(logged("platform_exception")["code"], "20001");
    assert_eq!(logged("platform_error")["code"], "100002");
    assert!(!lines.iter().any(|line| line.to_string().contains('参')), "the platform's message is not logged");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rejection_is_a_problem_that_says_what_would_be_right() {
    let platform = Platform::unlimited().await;
    let key = zvgate::secret::hex(&Sha256::digest("key"));
    let overrides = [
        ("callers.shop.key_sha256", key.as_str()),
        ("callers.shop.tenants", "one"),
        ("callers.shop.routes", READ),
        ("callers.other.key_sha256", &zvgate::secret::hex(&Sha256::digest("other"))),
        ("callers.other.tenants", "*"),
        ("callers.other.routes", WRITE),
        ("callers.none.key_sha256", &zvgate::secret::hex(&Sha256::digest("none"))),
        ("callers.none.tenants", ""),
        ("callers.none.routes", ""),
        ("server.max_body", "1KiB"),
    ];
    let gateway = TestGateway::start(&platform, &overrides).await;
    let (shop, other) = (("authorization", "Bearer key"), ("authorization", "Bearer other"));
    let says = |body: Value, text: &str| assert!(body["detail"].as_str().unwrap().contains(text), "{body}");
    gateway.get(&coupons("1"), &[]).await.assert_problem(401, "unauthenticated");
    says(gateway.get(&coupons("1"), &[other]).await.assert_problem(403, "forbidden"), "route");
    says(
        gateway.get(&format!("{}?tenant=two", coupons("1")), &[shop]).await.assert_problem(403, "forbidden"),
        "tenant",
    );
    says(
        gateway.get(&format!("{}?tenant=three", coupons("1")), &[shop]).await.assert_problem(400, "unknown_tenant"),
        "tenant",
    );
    let both = [shop, ("x-zvgate-tenant", "one")];
    says(
        gateway.get(&format!("{}?tenant=two", coupons("1")), &both).await.assert_problem(400, "bad_request"),
        "X-Zvgate-Tenant",
    );
    assert_eq!(gateway.get(&format!("{}?tenant=one", coupons("1")), &both).await.status, 200);
    says(
        gateway.get(&format!("{}?status=0", coupons("1")), &[shop]).await.assert_problem(400, "bad_request"),
        "useStatus",
    );
    let put = gateway.request(Method::PUT, &coupons("1"), &[shop]).await;
    says(put.assert_problem(405, "method_not_allowed"), "GET");
    assert_eq!(put.header("allow"), "GET, HEAD");
    let get = gateway.get(LIST, &[shop]).await;
    get.assert_problem(405, "method_not_allowed");
    assert_eq!(get.header("allow"), "POST");
    let text = [shop, ("content-type", "text/plain")];
    says(gateway.post(LIST, &text, "{}").await.assert_problem(415, "unsupported_media_type"), "application/json");
    says(gateway.post(LIST, &[shop], "{}").await.assert_problem(400, "bad_request"), "customerId");
    says(gateway.post(BATCH, &[shop], "{}").await.assert_problem(400, "bad_request"), "customerIds");
    says(gateway.post(BATCH, &[shop], &"x".repeat(2000)).await.assert_problem(413, "body_too_large"), "1024");
    says(gateway.post(&format!("{LIST}?a=b"), &[shop], "{}").await.assert_problem(400, "bad_request"), "query");
    let cached = [shop, ("cache-control", "only-if-cached")];
    gateway.get(&coupons("2"), &cached).await.assert_problem(504, "not_cached");
    // What is not the typed API keeps the platform's shape.
    gateway.get("/v1/customers/1", &[shop]).await.assert_error(404, "unknown_route");
    gateway.get("/v1/invalidate", &[shop]).await.assert_error(405, "method_not_allowed");
    assert_eq!(gateway.get("/openapi.json", &[other]).await.status, 200);
    gateway.get("/openapi.json", &[("authorization", "Bearer none")]).await.assert_problem(403, "forbidden");
}

/// A page of another site can send a GET without an `Origin`, and each could cost a call.
#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_of_another_site_causes_no_call() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    for site in ["cross-site", "same-site", "anything"] {
        let reply = gateway.get(&coupons("1"), &[("sec-fetch-site", site), ("sec-fetch-mode", "no-cors")]).await;
        reply.assert_problem(403, "forbidden");
    }
    gateway.get(&coupons("1"), &[("origin", "https://evil.example")]).await.assert_problem(403, "forbidden");
    gateway
        .get(&coupons("1"), &[("sec-fetch-site", "none"), ("sec-fetch-site", "none")])
        .await
        .assert_problem(403, "forbidden");
    assert_eq!(platform.requests(READ).await, 0);
    for site in ["none", "same-origin"] {
        assert_eq!(gateway.get(&coupons("1"), &[("sec-fetch-site", site)]).await.status, 200);
    }
}

/// Without the cached route there is nothing that the typed API could ask.
#[tokio::test(flavor = "multi_thread")]
async fn the_typed_api_needs_its_route() {
    let platform = Platform::unlimited().await;
    for kind in ["off", "pass"] {
        let file = format!("[[routes]]\npath = \"{READ}\"\nkind = \"{kind}\"\n");
        let gateway = TestGateway::with_file(&platform, &[], &file).await;
        gateway.get(&coupons("1"), &[]).await.assert_problem(404, "unknown_route");
        gateway.post(BATCH, &[], r#"{"customerIds":["1"]}"#).await.assert_problem(404, "unknown_route");
    }
}

/// With the cache off or in shadow mode, coupons are typed all the same.
#[tokio::test(flavor = "multi_thread")]
async fn coupons_are_typed_in_every_mode_of_the_cache() {
    let platform = Platform::unlimited().await;
    for (mode, status) in [("off", "zvgate; fwd=bypass"), ("shadow", "zvgate; fwd=bypass")] {
        let gateway = TestGateway::start(&platform, &[("cache.mode", mode)]).await;
        for _ in 0..2 {
            let reply = gateway.get(&coupons("1"), &[]).await;
            assert_eq!((reply.status, reply.header("cache-status")), (200, status), "{mode}: {reply:?}");
            assert!(reply.json()["coupons"].is_array());
        }
        let reply = gateway.batch(&["1".to_owned(), "2".to_owned()], &[]).await;
        assert_eq!(reply.json()["results"][1]["status"], 200, "{mode}: {reply:?}");
    }
}

/// The typed form takes memory beside the answer that it was made of, which counts.
#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_typed_forms_is_counted_and_bounded() {
    let many = format!("[{}]", vec!["{}"; 2000].join(","));
    let upstream = Scripted::start(move |_, _| Action::success(&many)).await;
    let gateway = TestGateway::start(
        &upstream,
        &[("cache.unsettled_ttl", "10m"), ("cache.ttl", "10m"), ("cache.max_bytes", "64MiB")],
    )
    .await;
    gateway.read("1").await;
    let bytes = async || gateway.metric("zvgate_cache_bytes").await;
    let before = bytes().await;
    let typed = gateway.get(&coupons("1"), &[]).await;
    assert!(typed.is_hit(), "{typed:?}");
    until("it is counted", async || bytes().await > before + typed.body.len() as f64).await;
    assert_eq!(gateway.metric("zvgate_cache_entries").await, 1.0);
    let raw = gateway.read("1").await;
    assert!(raw.is_hit() && raw.body.len() < typed.body.len() / 50, "what was sent is small");
    // One that would take several times what an answer may is not made.
    let gateway = TestGateway::start(&upstream, &[("upstream.max_response", "64KiB")]).await;
    assert_eq!(gateway.read("1").await.status, 200);
    for _ in 0..2 {
        gateway.get(&coupons("1"), &[]).await.assert_problem(502, "upstream_failed");
        let batch = gateway.batch(&["1".to_owned()], &[]).await;
        assert_eq!(batch.json()["results"][0]["status"], 502, "{batch:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_answers_each_customer_in_the_order_asked() {
    let upstream = Scripted::start(|_, request| match () {
        () if request.contains("\"cust-3\"") => Action::json(r#"{"status":true,"code":7,"message":"none"}"#),
        () if request.contains("\"cust-4\"") => Action::json(r#"{"status":false,"code":9,"message":"broken"}"#),
        () if request.contains("\"cust-5\"") => Action::Respond(http_text("200 OK", "", "<html>")),
        () => Action::success(r#"{"list":[{"cardId":"1","useStatus":0}],"total":2}"#),
    })
    .await;
    let gateway = TestGateway::start(&upstream, &[("limits.upstream.rate", "0"), ("upstream.retries", "0")]).await;
    let customers: Vec<String> =
        ["cust-7", "cust-3", "cust-1", "cust-4", "cust-1", "cust-5", "cust-2"].map(str::to_owned).into();
    gateway.read("cust-2").await;
    for _ in 0..2 {
        let reply = gateway.post(BATCH, &[], &json!({ "customerIds": customers, "usable": true }).to_string()).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, "application/json"));
        let results = reply.json()["results"].as_array().unwrap().clone();
        let asked: Vec<_> = results.iter().map(|one| one["customerId"].as_str().unwrap()).collect();
        assert_eq!(asked, customers);
        let statuses: Vec<_> = results.iter().map(|one| one["status"].as_u64().unwrap()).collect();
        assert_eq!(statuses, [200, 422, 200, 502, 200, 502, 200]);
        for one in &results {
            if one["status"] == 200 {
                assert_eq!((&one["complete"], &one["coupons"][0]["cardId"]), (&json!(false), &json!("1")), "{one}");
                assert_eq!(one.as_object().unwrap().len(), 4, "{one}");
            } else {
                assert_eq!((&one["error"]["status"], one.get("coupons")), (&one["status"], None), "{one}");
                assert_eq!(one["error"]["requestId"], reply.header("x-request-id"));
            }
        }
        assert_eq!(results[1]["error"]["platformCode"], "7");
        assert_eq!(results[5]["error"]["type"], "urn:problem-type:zvgate:upstream_failed");
    }
    let calls = |customer: &str| upstream.seen().iter().filter(|request| request.contains(customer)).count();
    assert_eq!(
        ["cust-1", "cust-2", "cust-3", "cust-7"].map(calls),
        [1, 1, 1, 1],
        "customers that are asked twice cost one call"
    );
}

/// What cannot have a slot in time is refused at once, and what others wait for comes first.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_takes_its_place_behind_interactive_calls() {
    let platform = Platform::unlimited().await;
    let overrides = [
        ("limits.upstream.rate", "4"),
        ("limits.upstream.per", "500ms"),
        ("limits.upstream.transit", "10ms"),
        ("limits.max_wait", "3s"),
    ];
    let gateway = Arc::new(TestGateway::start(&platform, &overrides).await);
    let customers: Vec<String> = (0..100).map(|number| format!("b{number}")).collect();
    let clock = zvgate::clock::Clock::system();
    let started = clock.boot();
    let (batch, read) = tokio::join!(gateway.batch(&customers, &[]), async {
        until("the batch waits", async || platform.requests(READ).await >= 4).await;
        let asked = clock.boot();
        let reply = gateway.read("interactive").await;
        (reply, clock.boot().since(asked))
    });
    let took = clock.boot().since(started);
    assert_eq!(read.0.status, 200);
    assert!(read.1 < took / 2, "an interactive call waited for {:?} of {took:?}", read.1);
    let results = batch.json()["results"].as_array().unwrap().clone();
    let (served, limited): (Vec<_>, Vec<_>) = results.iter().partition(|one| one["status"] == 200);
    assert!(served.len() >= 12 && limited.len() >= 60, "{} were served", served.len());
    for one in limited {
        assert_eq!(
            (&one["status"], &one["error"]["type"]),
            (&json!(429), &json!("urn:problem-type:zvgate:upstream_limited"))
        );
        assert!(one["error"]["retryAfter"].as_u64().unwrap() >= 1, "{one}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_customer_of_a_batch_counts_against_the_callers_limit() {
    let platform = Platform::unlimited().await;
    let overrides = [
        ("limits.caller.rate", "1"),
        ("limits.caller.per", "10m"),
        ("limits.caller.burst", "5"),
        ("limits.upstream.rate", "0"),
    ];
    let gateway = TestGateway::start(&platform, &overrides).await;
    let customers: Vec<String> = (0..7).map(|number| number.to_string()).collect();
    let reply = gateway.batch(&customers, &[]).await;
    let statuses: Vec<_> =
        reply.json()["results"].as_array().unwrap().iter().map(|one| one["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429]);
    assert_eq!(reply.json()["results"][6]["error"]["type"], "urn:problem-type:zvgate:caller_limited");
    assert_eq!(gateway.metric("zvgate_limited_total{caller=\"anonymous\",limit=\"caller\"}").await, 2.0);
    assert_eq!(platform.requests(READ).await, 5);
    gateway.batch(&customers, &[]).await.assert_problem(429, "caller_limited");
}

/// All results together are no longer than one answer may be.
#[tokio::test(flavor = "multi_thread")]
async fn the_results_of_a_batch_have_a_bound_together() {
    let upstream =
        Scripted::start(|_, _| Action::success(&format!("[{{\"extra\":\"{}\"}}]", "x".repeat(30_000)))).await;
    let gateway = TestGateway::start(
        &upstream,
        &[("upstream.max_response", "64KiB"), ("limits.upstream.rate", "0"), ("cache.unsettled_ttl", "10m")],
    )
    .await;
    let customers: Vec<String> = (0..6).map(|number| number.to_string()).collect();
    for _ in 0..2 {
        let reply = gateway.batch(&customers, &[]).await;
        assert_eq!(reply.status, 200);
        assert!(reply.body.len() < 70_000, "{}", reply.body.len());
        let results = reply.json()["results"].as_array().unwrap().clone();
        assert_eq!(results.iter().filter(|one| one["status"] == 200).count(), 2);
        assert!(
            results
                .iter()
                .filter(|one| one["status"] == 503)
                .all(|one| one["error"]["type"] == "urn:problem-type:zvgate:unavailable")
        );
    }
}

/// Paths, queries and bodies as attackers write them.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_targets_are_answered_with_4xx() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    for target in [
        "/v1/customers/%00/coupons",
        "/v1/customers/%ff/coupons",
        "/v1/customers/%E5%88%B8%0a/coupons",
        "/v1/customers//coupons",
        "/v1/customers/1/coupons?%",
        "/v1/customers/1/coupons?useStatus=%00",
        "/v1/customers/1/coupons?useStatus=99999999999999999999999",
        "/v1/customers/1/coupons?=&=",
        "/v1/customers/1/coupons/../coupons",
        "/v1/coupons:list",
        "/v1/coupons:nothing",
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let reply = tokio::task::block_in_place(|| raw(gateway.address, request.as_bytes()));
        assert!(reply.starts_with("HTTP/1.1 4"), "{target}: {reply}");
    }
    assert_eq!(platform.requests(READ).await, 0);
    // An id is passed on as it is, whatever it holds.
    let reply = gateway.get("/v1/customers/%22%5C%2F%E5%88%B8%20+/coupons", &[]).await;
    assert_eq!(reply.json()["customerId"], "\"\\/券 +", "{reply:?}");
    let asked = platform.last().await["request"].as_str().unwrap().to_owned();
    assert!(
        asked.contains(r#"{"params":{"customerId":"\"\\/券 +"}"#)
            || asked.contains(r#""params":{"customerId":"\"\\/券 +"}"#),
        "{asked}"
    );
    let long = "9".repeat(8000);
    let reply = gateway.get(&coupons(&long), &[]).await;
    reply.assert_problem(400, "bad_request");
    let deep = format!("{{\"customerId\":{}1{}}}", "[".repeat(40), "]".repeat(40));
    gateway.post(LIST, &[], &deep).await.assert_problem(400, "bad_request");
    let reply = send(
        gateway.address,
        Request::post(LIST)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from_static(b"\xef\xbb\xbf{\"customerId\":\"1\"}")))
            .unwrap(),
    )
    .await;
    assert_eq!(reply.status, 200, "a byte order mark is skipped: {reply:?}");
}

/// What operators see of a typed request is what they see of the platform's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_typed_request_is_explained_as_the_question_that_it_asks() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let explain = async |path: &str, body: Value| {
        let body = json!({ "path": path, "body": body }).to_string();
        post(gateway.admin, "/explain", &[], &body).await.json()
    };
    let raw = json!({ "params": { "customerId": "1", "useStatus": 0 } });
    for expected in ["miss", "hit"] {
        let plain = explain(READ, raw.clone()).await;
        assert_eq!(plain["would"], expected, "{plain}");
        let asked = [
            explain("/v1/customers/1/coupons?useStatus=0", Value::Null).await,
            explain(LIST, json!({ "customerId": "1", "useStatus": 0 })).await,
            explain(BATCH, json!({ "customerIds": ["1", "2"], "useStatus": 0 })).await,
        ];
        for typed in asked {
            for member in ["would", "question", "customers", "tenant", "route"] {
                assert_eq!(typed[member], plain[member], "{typed}");
            }
        }
        gateway.post(READ, &[], &raw.to_string()).await;
    }
    let wrong = explain("/v1/customers/1/coupons?status=0", Value::Null).await;
    assert_eq!((&wrong["would"], &wrong["error"]["status"]), (&json!("rejected"), &json!(400)), "{wrong}");
    let other = explain("/v1/customers/1/coupons?tenant=two", Value::Null).await;
    assert_eq!(other["tenant"], "two");
}

/// What is cached is not served past its end because something else was waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_coupon_that_ends_while_its_batch_waits_is_not_served() {
    let platform = Platform::unlimited().await;
    platform.change("ends", "clear", json!({})).await;
    platform.change("ends", "issue", json!({ "seconds": 60 })).await;
    let gateway = Arc::new(TestGateway::start(&platform, &[("cache.ttl", "10m")]).await);
    let customers: Vec<String> = ["ends", "stays", "waits", "ends"].map(str::to_owned).into();
    for customer in &customers[..2] {
        assert!(gateway.get(&coupons(customer), &[]).await.is_stored_miss());
    }
    platform.faults(json!({ "latency_ms": 1500 })).await;
    let asked = platform.requests(READ).await;
    let (reply, ()) = tokio::join!(gateway.batch(&customers, &[]), async {
        until("the batch waits", async || platform.requests(READ).await > asked).await;
        gateway.clock.advance(std::time::Duration::from_secs(60));
    });
    let results = reply.json()["results"].as_array().unwrap().clone();
    let statuses: Vec<_> = results.iter().map(|one| one["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [503, 200, 200, 503], "{}", reply.text());
    assert!(results[0]["error"]["detail"].as_str().unwrap().contains("ended"), "{}", results[0]);
    assert!(!results[0].to_string().contains("cardId"));
}

/// Customers that are named twice wait once, and what fails within a batch is seen from outside.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_asks_once_for_each_customer_and_its_failures_are_logged() {
    let upstream = Scripted::start(|_, request| match request.contains("cust-7") {
        true => Action::Respond(http_text("200 OK", "", "<html>")),
        false => Action::success(r#"[{"cardId":"1","useStatus":1}]"#),
    })
    .await;
    let log = captured_log();
    let overrides = [
        ("limits.max_waiters", "1"),
        ("upstream.retries", "0"),
        ("log.access", "errors"),
        ("limits.upstream.rate", "0"),
    ];
    let gateway = TestGateway::start(&upstream, &overrides).await;
    let same = vec!["cust-1".to_owned(); 50];
    let reply = gateway.batch(&same, &[]).await;
    let results = reply.json()["results"].as_array().unwrap().clone();
    assert!(
        results.len() == 50 && results.iter().all(|one| one["status"] == 200 && one["coupons"][0]["cardId"] == "1"),
        "{reply:?}"
    );
    assert_eq!(upstream.seen().len(), 1);
    let duration = |cache: &str| {
        format!(
            "zvgate_request_duration_seconds_count{{cache=\"{cache}\",route=\"/v3/crm/coupon/getCustomerCoupons\"}}"
        )
    };
    assert_eq!(gateway.metric(&duration("miss")).await, 1.0);
    gateway.batch(&same, &[]).await;
    assert_eq!(gateway.metric(&duration("hit")).await, 1.0);
    assert!(!log.has("request"), "nothing failed");
    let reply = gateway.batch(&["cust-1".to_owned(), "cust-7".to_owned()], &[]).await;
    assert_eq!(reply.status, 200);
    until("it is logged", async || log.has("request")).await;
    let line = log.lines().into_iter().find(|line| line["message"] == "request").unwrap();
    assert_eq!(
        (&line["status"], &line["failed"], &line["error"]),
        (&json!(200), &json!(1), &json!("upstream_failed")),
        "{line}"
    );
    assert_eq!((&line["path"], &line["reason"]), (&json!(BATCH), &json!("not_json")), "{line}");
    // So is a single one, by its own path.
    gateway.get(&coupons("cust-7"), &[]).await.assert_problem(502, "upstream_failed");
    until("it is logged", async || log.lines().iter().any(|line| line["method"] == "GET")).await;
    let line = log.lines().into_iter().find(|line| line["method"] == "GET").unwrap();
    assert_eq!(line["path"], "/v1/customers/…/coupons", "{line}");
}

/// What is wrong with the request itself is no matter of its customers.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_its_route_does_not_allow_is_rejected_as_a_whole() {
    let platform = Platform::unlimited().await;
    let file = format!("[[routes]]\npath = \"{READ}\"\nkind = \"cached\"\nparams = [\"customerId\"]\n");
    let gateway = TestGateway::with_file(&platform, &[], &file).await;
    let reply = gateway.post(BATCH, &[], r#"{"customerIds":["1","2"],"useStatus":0}"#).await;
    let body = reply.assert_problem(400, "bad_request");
    assert!(body["detail"].as_str().unwrap().contains("useStatus"), "{body}");
    assert_eq!(gateway.batch(&["1".to_owned()], &[]).await.json()["results"][0]["status"], 200);
}
