//! Stale answers: when they are served, and with which headers; and the cache operations of operators and callers.

use std::time::Duration;

use http::{Method, Request};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::scripted::{Action, Scripted, http_text};
use crate::support::{Platform, READ, Reply, TestGateway, WRITE, send};

const CUSTOMER: &str = "383933091455959041";
const SWR: (&str, &str) = ("cache.stale_while_revalidate", "20s");

fn metric(result: &str) -> String {
    format!("zvgate_cache_lookups_total{{result=\"{result}\",route=\"{READ}\"}}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_answer_is_served_immediately_while_one_call_refreshes_it() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[SWR]).await;
    let first = gateway.read(CUSTOMER).await;
    platform.change(CUSTOMER, "use", json!({})).await;
    platform.faults(json!({ "latency_ms": 300 })).await;
    gateway.clock.advance(Duration::from_secs(33));
    for _ in 0..5 {
        let stale = gateway.read(CUSTOMER).await;
        assert!(stale.header("cache-status").starts_with("zvgate; hit; ttl=-"), "{stale:?}");
        assert!(stale.header("cache-status").ends_with("; detail=stale-while-revalidate"), "{stale:?}");
        assert_eq!((stale.header("age"), &stale.body), ("33", &first.body));
    }
    loop {
        let reply = gateway.read(CUSTOMER).await;
        if reply.is_hit() && !reply.header("cache-status").contains("detail") {
            assert!(reply.text().contains("version=1"));
            break;
        }
    }
    assert_eq!(platform.requests(READ).await, 2, "one refresh, not one for each hit");
    assert_eq!(gateway.metric(&metric("refresh")).await, 1.0);
    assert!(gateway.metric(&metric("stale")).await >= 5.0);
    let refetched = format!("zvgate_cache_refetch_total{{changed=\"yes\",route=\"{READ}\"}}");
    assert_eq!(gateway.metric(&refetched).await, 1.0);
}

/// A retry waits in the queue for slots, in which a refresh that nobody waits for has no place.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_refresh_is_not_retried_while_nobody_waits_for_it() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[SWR]).await;
    gateway.read(CUSTOMER).await;
    platform.faults(json!({ "fault": "http500" })).await;
    gateway.clock.advance(Duration::from_secs(31));
    assert!(gateway.read(CUSTOMER).await.header("cache-status").contains("stale-while-revalidate"));
    // Longer than the pauses before two retries.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(platform.requests(READ).await, 2, "the first read, and one refresh");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_refreshes_back_off_and_do_not_extend_the_stale_period() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[SWR, ("cache.stale_if_error", "0s")]).await;
    gateway.read(CUSTOMER).await;
    platform.faults(json!({ "fault": "http500" })).await;
    gateway.clock.advance(Duration::from_secs(31));
    for _ in 0..30 {
        assert!(gateway.read(CUSTOMER).await.header("cache-status").contains("stale-while-revalidate"));
    }
    assert!(platform.requests(READ).await <= 3, "no refresh for each hit");
    gateway.clock.advance(Duration::from_secs(20));
    assert_eq!(gateway.read(CUSTOMER).await.status, 500, "after the stale period the upstream's response is returned");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_does_not_start_without_a_free_slot() {
    let platform = Platform::unlimited().await;
    let overrides = [SWR, ("limits.upstream.rate", "1"), ("limits.upstream.per", "1h"), ("limits.max_wait", "0s")];
    let gateway = TestGateway::start(&platform, &overrides).await;
    gateway.read(CUSTOMER).await;
    gateway.clock.advance(Duration::from_secs(31));
    assert!(gateway.read(CUSTOMER).await.header("cache-status").contains("stale-while-revalidate"));
    assert_eq!(gateway.metric(&metric("refresh")).await, 0.0, "the only slot is used up");
    assert_eq!(platform.requests(READ).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_if_error_applies_to_every_kind_of_failure() {
    let failing = [
        (http_text("502 Bad Gateway", "", "x"), "zvgate; fwd=stale; fwd-status=502; ttl=-6; detail=stale-if-error"),
        (http_text("429 Too Many", "", "x"), "zvgate; fwd=stale; fwd-status=429; ttl=-6; detail=stale-if-error"),
        (
            http_text("200 OK", "", r#"{"status":false,"code":1}"#),
            "zvgate; fwd=stale; fwd-status=200; ttl=-6; detail=stale-if-error",
        ),
        (
            http_text("200 OK", "", r#"{"status":true,"code":110007}"#),
            "zvgate; fwd=stale; fwd-status=200; ttl=-6; detail=stale-if-error",
        ),
        (http_text("200 OK", "", "garbage"), "zvgate; fwd=stale; fwd-status=200; ttl=-6; detail=stale-if-error"),
        (Vec::new(), "zvgate; fwd=stale; ttl=-6; detail=stale-if-error"),
    ];
    for (answer, expected) in failing {
        let good = http_text("200 OK", "", r#"{"status":true,"code":0,"data":[{"useStatus":1}]}"#);
        let upstream = Scripted::start(move |number, _| {
            Action::RespondAndClose(if number == 0 { good.clone() } else { answer.clone() })
        })
        .await;
        let gateway = TestGateway::start(&upstream, &[("upstream.retries", "0")]).await;
        let first = gateway.read("1").await;
        gateway.clock.advance(Duration::from_millis(35_500));
        let stale = gateway.read("1").await;
        assert_eq!((stale.status, stale.header("cache-status"), stale.header("age")), (200, expected, "35"));
        assert_eq!((&stale.body, stale.header("proxy-status")), (&first.body, ""));
        let demanding = gateway.post(READ, &[("cache-control", "no-cache")], r#"{"params":{"customerId":"1"}}"#).await;
        assert!(!demanding.header("cache-status").contains("stale"), "{demanding:?}");
        let aged = gateway.post(READ, &[("cache-control", "max-age=100")], r#"{"params":{"customerId":"1"}}"#).await;
        assert!(!aged.header("cache-status").contains("stale"), "{aged:?}");
        gateway.clock.advance(Duration::from_secs(60));
        assert!(!gateway.read("1").await.header("cache-status").contains("stale"), "its stale period has ended");
    }
}

/// A caller that joins a refresh and accepts nothing stale is served as by any fetch.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_callers_joined_is_retried() {
    let upstream =
        Scripted::start(|number, _| if number == 1 { Action::Hang } else { Action::success(r#"[{"useStatus":1}]"#) })
            .await;
    let overrides = [("cache.stale_while_revalidate", "1h"), ("upstream.attempt_timeout", "500ms")];
    let gateway = std::sync::Arc::new(TestGateway::start(&upstream, &overrides).await);
    gateway.read("1").await;
    gateway.clock.advance(Duration::from_secs(31));
    assert!(gateway.read("1").await.header("cache-status").contains("stale-while-revalidate"));
    let joined = gateway.post(READ, &[("cache-control", "max-age=1")], r#"{"params":{"customerId":"1"}}"#).await;
    assert_eq!((joined.status, upstream.seen().len()), (200, 3));
    let saved = format!("zvgate_upstream_calls_saved_total{{route=\"{READ}\",tenant=\"one\"}}");
    assert_eq!(
        gateway.metric(&saved).await,
        1.0,
        "counted for the caller that joined, not for the one that started the refresh"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_answer_is_served_if_no_call_can_be_sent() {
    let platform = Platform::unlimited().await;
    let overrides = [("limits.upstream.rate", "1"), ("limits.upstream.per", "1h"), ("limits.max_wait", "0s")];
    let gateway = TestGateway::start(&platform, &overrides).await;
    gateway.read("1").await;
    gateway.clock.advance(Duration::from_millis(30_500));
    let stale = gateway.read("1").await;
    assert_eq!(stale.header("cache-status"), "zvgate; hit; ttl=-1; detail=stale-if-error");
    gateway.read("2").await.assert_error(429, "upstream_limited");
    let gateway = TestGateway::start(&platform, &[]).await;
    gateway.read("1").await;
    drop(platform);
    gateway.clock.advance(Duration::from_secs(31));
    assert!(gateway.read("1").await.header("cache-status").starts_with("zvgate; hit; ttl=-"));
    gateway.read("2").await.assert_error(502, "upstream_failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_stale_answer_is_served_after_its_first_end_or_after_a_write() {
    for write in [false, true] {
        let platform = Platform::unlimited().await;
        let overrides =
            [("cache.stale_while_revalidate", "1h"), ("cache.stale_if_error", "1h"), ("upstream.retries", "0")];
        let gateway = TestGateway::start(&platform, &overrides).await;
        let refreshed =
            format!("zvgate_upstream_attempts_total{{outcome=\"http_5xx\",route=\"{READ}\",tenant=\"one\"}}");
        platform.change(CUSTOMER, "issue", json!({ "seconds": 60 })).await;
        gateway.read(CUSTOMER).await;
        platform.faults(json!({ "fault": "http500", "route": READ })).await;
        gateway.clock.advance(Duration::from_secs(40));
        assert!(gateway.read(CUSTOMER).await.header("cache-status").contains("stale"));
        while gateway.metric(&refreshed).await < 1.0 {
            tokio::task::yield_now().await;
        }
        if write {
            gateway.post(WRITE, &[], &json!({ "params": { "bizId": "b", "customerId": CUSTOMER } }).to_string()).await;
        } else {
            gateway.clock.advance(Duration::from_secs(20));
        }
        assert_eq!(gateway.read(CUSTOMER).await.status, 500);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_fetched_within_the_settle_time_have_a_short_lifetime() {
    for (answer, settles) in [
        (Action::success("{}"), 3),
        (Action::RespondAndClose(Vec::new()), 30),
        (Action::Respond(http_text("500 No", "", "x")), 30),
    ] {
        let answer = std::sync::Mutex::new(Some(answer));
        let upstream = Scripted::start(move |_, request| {
            if request.contains(WRITE) {
                answer.lock().unwrap().take().unwrap()
            } else {
                Action::success(r#"[{"useStatus":1}]"#)
            }
        })
        .await;
        let gateway =
            TestGateway::start(&upstream, &[("cache.unsettled_ttl", "1s"), ("limits.upstream.rate", "0")]).await;
        gateway.post(WRITE, &[], r#"{"params":{"customerId":"1"}}"#).await;
        let cache_status = async |customer: &str| gateway.read(customer).await.header("cache-status").to_owned();
        assert_eq!(cache_status("1").await, "zvgate; fwd=miss; stored; ttl=1");
        assert_eq!(cache_status("2").await, "zvgate; fwd=miss; stored; ttl=30");
        gateway.clock.advance(Duration::from_secs(settles - 1));
        assert_eq!(cache_status("1").await, "zvgate; fwd=miss; stored; ttl=1");
        gateway.clock.advance(Duration::from_secs(2));
        assert_eq!(cache_status("1").await, "zvgate; fwd=miss; stored; ttl=30");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_cache_off_every_read_is_sent_upstream() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("cache.mode", "off")]).await;
    for _ in 0..3 {
        assert_eq!(gateway.read("1").await.header("cache-status"), "zvgate; fwd=bypass");
    }
    assert_eq!((platform.requests(READ).await, gateway.metric("zvgate_cache_entries").await), (3, 0.0));
    let only = gateway.post(READ, &[("cache-control", "only-if-cached")], r#"{"params":{"customerId":"1"}}"#).await;
    only.assert_error(504, "not_cached");
}

async fn admin(gateway: &TestGateway, method: Method, path: &str) -> Reply {
    let request =
        Request::builder().method(method).uri(path).header("host", "localhost").body(Full::default()).unwrap();
    send(gateway.admin, request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_can_inspect_and_purge_cached_answers() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("cache.settle", "0s")]).await;
    let second_tenant = [("x-zvgate-tenant", "two")];
    let body = |customer: &str| json!({ "params": { "customerId": customer } }).to_string();
    for customer in ["1", "2", "客 3"] {
        gateway.read(customer).await;
    }
    gateway.post(READ, &[], r#"{"params":{"customerId":"1","useStatus":0}}"#).await;
    gateway.post(READ, &second_tenant, &body("1")).await;
    gateway.clock.advance(Duration::from_secs(10));
    let shown = admin(&gateway, Method::GET, "/cache/customers/1").await.json();
    assert_eq!((&shown["tenant"], shown["answers"].as_array().unwrap().len()), (&json!("one"), 2));
    let first = &shown["answers"][0];
    assert_eq!(first["question"], format!("{READ} {{\"params\":{{\"customerId\":1}}}}"));
    assert!(
        (9.9..11.0).contains(&first["age"].as_f64().unwrap())
            && (18.0..20.1).contains(&first["fresh_for"].as_f64().unwrap())
    );
    let dropped = async |path: &str| admin(&gateway, Method::DELETE, path).await.json()["dropped"].clone();
    assert_eq!(dropped("/cache/customers/1").await, 2);
    assert_eq!(dropped("/cache/customers/1").await, 0);
    assert_eq!(dropped("/cache/customers/%E5%AE%A2%203").await, 1);
    assert!(!gateway.read("1").await.is_hit() && gateway.read("2").await.is_hit());
    assert!(gateway.post(READ, &second_tenant, &body("1")).await.is_hit());
    assert_eq!(dropped("/cache?tenant=two").await, 1);
    assert_eq!(dropped("/cache?all=true").await, 2);
    gateway.read("4").await;
    gateway.clock.advance(Duration::from_secs(91));
    assert_eq!(dropped("/cache/customers/4").await, 0, "entries that can no longer be served are not counted");
    assert!(!gateway.read("2").await.is_hit());
    assert_eq!(gateway.metric("zvgate_cache_invalidations_total{cause=\"purge\"}").await, 7.0);
    gateway.read("5").await;
    for path in [
        "/cache",
        "/cache?",
        "/cache?tenant",
        "/cache?tenant=",
        "/cache?all=",
        "/cache?all=1",
        "/cache?all=false",
        "/cache?tenat=one",
        "/cache?Tenant=one",
        "/cache?tenant=one&all=true",
        "/cache?tenant=one&tenant=one",
        "/cache?tenant=one&",
        "/cache?all=true&x=1",
        "/cache/customers/5?tenant=",
        "/cache/customers/5?all=true",
        "/cache/customers/5?tenat=one",
        "/cache/customers/5?",
    ] {
        assert_eq!(admin(&gateway, Method::DELETE, path).await.status, 400, "{path}");
        assert!(gateway.read("5").await.is_hit(), "{path}");
    }
    assert_eq!(admin(&gateway, Method::GET, "/cache/customers/5?tenat=one").await.status, 400);
    assert_eq!(admin(&gateway, Method::DELETE, "/cache?tenant=three").await.status, 404);
    assert_eq!(dropped("/cache/customers/5?tenant=one").await, 1);
    for (method, path, status) in [
        (Method::GET, "/cache/customers/1?tenant=three", 404),
        (Method::POST, "/cache/customers/1", 405),
        (Method::GET, "/cache", 405),
        (Method::GET, "/cache/customers/", 404),
    ] {
        assert_eq!(admin(&gateway, method, path).await.status, status, "{path}");
    }
    let beyond = TestGateway::start(&platform, &[("server.admin_listen", "0.0.0.0:0")]).await;
    let pages = async |method, path| {
        let request = Request::builder().method(method).uri(path).header("host", "a").body(Full::default()).unwrap();
        send(std::net::SocketAddr::from(([127, 0, 0, 1], beyond.admin.port())), request).await.status
    };
    assert_eq!((pages(Method::GET, "/metrics").await, pages(Method::GET, "/readyz").await), (200, 200));
    assert_eq!((pages(Method::GET, "/cache/customers/1").await, pages(Method::DELETE, "/cache").await), (404, 404));
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_can_invalidate_customers() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    for customer in ["1", "2", "3"] {
        gateway.read(customer).await;
    }
    let reply = gateway.post("/v1/invalidate", &[], r#"{"customerIds":["1",2,"9"]}"#).await;
    assert_eq!((reply.status, reply.json()), (200, json!({ "dropped": 2 })));
    assert_eq!((reply.header("cache-status"), reply.header("x-request-id").len()), ("", 32));
    for (customer, hit) in [("1", false), ("2", false), ("3", true)] {
        assert_eq!(gateway.read(customer).await.is_hit(), hit, "{customer}");
    }
    assert_eq!(gateway.metric("zvgate_cache_invalidations_total{cause=\"invalidate\"}").await, 3.0);
    for bad in ["{}", "[]", r#"{"customerIds":"1"}"#, r#"{"customerIds":[""]}"#, r#"{"customerIds":[null]}"#] {
        gateway.post("/v1/invalidate", &[], bad).await.assert_error(400, "bad_request");
    }
    let many: Vec<Value> = (0..1001).map(Value::from).collect();
    gateway
        .post("/v1/invalidate", &[], &json!({ "customerIds": many }).to_string())
        .await
        .assert_error(400, "bad_request");
    gateway
        .post("/v1/invalidate", &[("x-zvgate-tenant", "x")], r#"{"customerIds":["1"]}"#)
        .await
        .assert_error(400, "unknown_tenant");
    let other = gateway.post("/v1/invalidate", &[("x-zvgate-tenant", "two")], r#"{"customerIds":["3"]}"#).await;
    assert_eq!((other.json(), gateway.read("3").await.is_hit()), (json!({ "dropped": 0 }), true));
    let beyond =
        TestGateway::start(&platform, &[("server.listen", "0.0.0.0:0"), ("server.allow_anonymous", "true")]).await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], beyond.address.port()));
    crate::support::post(address, "/v1/invalidate", &[], r#"{"customerIds":["1"]}"#)
        .await
        .assert_error(403, "forbidden");
}

/// The wall clock is an hour fast when a list is fetched whose redeemed coupon ends in half an hour, and is put right then: by the
/// later clock that end had passed, and by the platform's it had not.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_lies_ahead_by_either_clock_counts() {
    let end = std::process::Command::new("date").env("TZ", "UTC-8").args(["-d", "+30 min", "+%F %T"]).output().unwrap();
    let end = String::from_utf8(end.stdout).unwrap().trim().to_owned();
    let upstream = Scripted::start(move |_, _| {
        let body = format!(r#"{{"status":true,"code":0,"data":[{{"useStatus":1,"endAt":"{end}"}}]}}"#);
        let date = std::process::Command::new("date").args(["-u", "+%a, %d %b %Y %T GMT"]).env("LC_ALL", "C").output();
        let date = String::from_utf8(date.unwrap().stdout).unwrap();
        Action::Respond(http_text("200 OK", &format!("Date: {}\r\n", date.trim()), &body))
    })
    .await;
    let gateway = TestGateway::start(&upstream, &[("cache.ttl", "2h")]).await;
    gateway.clock.step_wall(3_600_000);
    let fetched = gateway.read("9").await;
    assert_eq!((fetched.status, fetched.header("cache-status")), (200, "zvgate; fwd=miss"), "its end may have passed");
    gateway.clock.step_wall(-3_600_000);
    assert!(gateway.read("9").await.is_stored_miss());
    gateway.clock.advance(Duration::from_secs(1801));
    assert!(!gateway.read("9").await.is_hit(), "its end has passed");
}
