//! A failing platform: its breaker opens, callers are answered immediately, and nothing is sent until a probe succeeds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::scripted::{Action, Scripted};
use crate::support::{Platform, READ, TestGateway, Upstream, WRITE, loopback};

const BODY: &str = r#"{"params":{"customerId":"1"}}"#;
const OPEN: &str = "zvgate_breaker_open{route=\"/v3/crm/coupon/getCustomerCoupons\",tenant=\"one\"}";

/// How often the breaker of a route of the first tenant entered a state.
async fn transitions(gateway: &TestGateway, route: &str, to: &str) -> f64 {
    let labels = format!("{{route=\"{route}\",tenant=\"one\",to=\"{to}\"}}");
    gateway.metric(&format!("zvgate_breaker_transitions_total{labels}")).await
}

/// An upstream that hangs until it is allowed to answer.
async fn switchable() -> (Scripted, Arc<AtomicBool>) {
    let answers = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&answers);
    let upstream = Scripted::start(move |_, _| {
        if switch.load(Ordering::SeqCst) { Action::success(r#"[{"useStatus":1}]"#) } else { Action::Hang }
    })
    .await;
    (upstream, answers)
}

#[tokio::test(flavor = "multi_thread")]
async fn five_consecutive_failures_open_the_breaker_of_one_route_and_a_probe_closes_it() {
    let (upstream, answers) = switchable().await;
    let overrides = [("upstream.attempt_timeout", "500ms"), ("upstream.retries", "0")];
    let gateway = Arc::new(TestGateway::start(&upstream, &overrides).await);
    for customer in 0..5 {
        assert_eq!(gateway.metric(OPEN).await, 0.0);
        gateway.read(&customer.to_string()).await.assert_error(504, "upstream_timeout");
    }
    assert_eq!(gateway.metric(OPEN).await, 1.0);
    let rejected = gateway.read("1").await;
    rejected.assert_error(503, "unavailable");
    assert_eq!(
        (rejected.header("retry-after"), rejected.header("proxy-status")),
        ("1", "zvgate; error=destination_unavailable")
    );
    assert_eq!(upstream.seen().len(), 5, "nothing was sent");
    gateway.post(READ, &[("x-zvgate-tenant", "two")], BODY).await.assert_error(504, "upstream_timeout");
    assert_eq!(gateway.metric(&OPEN.replace("one", "two")).await, 0.0);
    assert_eq!(transitions(&gateway, READ, "open").await, 1.0);

    gateway.clock.advance(Duration::from_secs(1));
    let probes: Vec<_> = (0..8)
        .map(|customer| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move { gateway.read(&format!("probe-{customer}")).await.status })
        })
        .collect();
    let mut statuses = Vec::new();
    for probe in probes {
        statuses.push(probe.await.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [[503; 7].as_slice(), &[504]].concat(), "one attempt probes");
    assert_eq!((upstream.seen().len(), gateway.metric(OPEN).await), (7, 1.0));

    answers.store(true, Ordering::SeqCst);
    gateway.read("1").await.assert_error(503, "unavailable");
    gateway.clock.advance(Duration::from_secs(2));
    assert_eq!(gateway.read("1").await.status, 200);
    assert_eq!((gateway.metric(OPEN).await, gateway.read("2").await.status), (0.0, 200));
    let counted = [transitions(&gateway, READ, "open").await, transitions(&gateway, READ, "half_open").await];
    assert_eq!((counted, transitions(&gateway, READ, "closed").await), ([2.0, 2.0], 1.0));
}

/// A slow platform is not an outage: a response within the attempt's timeout is a success.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_platform_does_not_open_the_breaker() {
    let platform = Platform::unlimited().await;
    platform.faults(json!({ "latency_ms": 2100 })).await;
    let gateway = Arc::new(TestGateway::start(&platform, &[]).await);
    let request = |number: u32| {
        let gateway = Arc::clone(&gateway);
        let write = json!({ "params": { "bizId": "b", "customerId": number.to_string() } }).to_string();
        tokio::spawn(async move {
            match number % 5 {
                0 => gateway.post(WRITE, &[], &write).await.status,
                _ => gateway.read(&number.to_string()).await.status,
            }
        })
    };
    let callers: Vec<_> = (0..24).map(request).collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), 200);
    }
    assert_eq!(gateway.metric(OPEN).await, 0.0);
}

/// A probe has the same timeout as any attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_probe_closes_the_breaker() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("upstream.retries", "0")]).await;
    platform.faults(json!({ "fault": "http500" })).await;
    for customer in 0..5 {
        assert_eq!(gateway.read(&customer.to_string()).await.status, 500);
    }
    gateway.read("1").await.assert_error(503, "unavailable");
    platform.faults(json!({ "fault": "none", "latency_ms": 2500 })).await;
    gateway.clock.advance(Duration::from_secs(1));
    assert_eq!((gateway.read("1").await.status, gateway.metric(OPEN).await), (200, 0.0));
}

/// The failures of one path under a wildcard do not count for others.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_path_under_a_wildcard_does_not_affect_other_paths() {
    let upstream =
        Scripted::start(|_, request| if request.contains("/v3/bad") { Action::Close } else { Action::success("[]") })
            .await;
    let overrides = [("limits.upstream.rate", "0")];
    let file = "[[routes]]\npath = \"/v3/**\"\nkind = \"pass\"\n";
    let gateway = TestGateway::with_file(&upstream, &overrides, file).await;
    for _ in 0..20 {
        assert!(gateway.post("/v3/bad", &[], BODY).await.status >= 500);
        assert_eq!(gateway.post("/v3/good", &[], BODY).await.status, 200);
    }
    gateway.post("/v3/bad", &[], BODY).await.assert_error(503, "unavailable");
    assert_eq!(gateway.metric("zvgate_breaker_open{route=\"other\",tenant=\"one\"}").await, 1.0);
    assert_eq!(gateway.metric(OPEN).await, 0.0);
}

/// An address on which no process listens.
struct Unreachable;

impl Upstream for Unreachable {
    fn url(&self) -> String {
        let socket = std::net::TcpListener::bind(loopback()).unwrap();
        format!("http://{}", socket.local_addr().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_failures_open_the_breakers_of_all_routes_of_a_tenant() {
    let wildcards =
        "[[routes]]\npath = \"/v3/a/**\"\nkind = \"pass\"\n[[routes]]\npath = \"/v3/b/**\"\nkind = \"pass\"\n";
    let gateway = TestGateway::with_file(&Unreachable, &[("upstream.retries", "0")], wildcards).await;
    for customer in 0..5 {
        gateway.read(&customer.to_string()).await.assert_error(502, "upstream_failed");
    }
    gateway.read("1").await.assert_error(503, "unavailable");
    gateway.post(WRITE, &[], BODY).await.assert_error(503, "unavailable");
    let of_writes = OPEN.replace(READ, WRITE);
    assert_eq!((gateway.metric(OPEN).await, gateway.metric(&of_writes).await), (1.0, 1.0));
    assert_eq!((transitions(&gateway, READ, "open").await, transitions(&gateway, WRITE, "open").await), (1.0, 1.0));
    assert_eq!(transitions(&gateway, "other", "open").await, 1.0, "once for all routes that share a label");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_breaker_can_be_disabled() {
    let upstream = Scripted::start(|_, _| Action::Close).await;
    let off = [
        ("upstream.breaker.consecutive", "0"),
        ("upstream.breaker.ratio", "0"),
        ("upstream.retries", "0"),
        ("limits.upstream.rate", "0"),
    ];
    let gateway = TestGateway::start(&upstream, &off).await;
    for customer in 0..30 {
        gateway.read(&customer.to_string()).await.assert_error(502, "upstream_failed");
    }
    assert_eq!(gateway.metric(OPEN).await, 0.0);
}

/// A deadline shorter than the upstream's response time is not an upstream failure.
#[tokio::test(flavor = "multi_thread")]
async fn callers_with_short_deadlines_do_not_open_the_breaker() {
    let platform = Platform::unlimited().await;
    platform.faults(json!({ "latency_ms": 300 })).await;
    let gateway = TestGateway::start(&platform, &[("cache.mode", "off"), ("limits.upstream.rate", "0")]).await;
    for _ in 0..8 {
        gateway.post(READ, &[("x-request-timeout-ms", "50")], BODY).await.assert_error(504, "upstream_timeout");
    }
    assert_eq!((gateway.metric(OPEN).await, gateway.read("1").await.status), (0.0, 200));
}

/// They are answered then, and do not wait until their deadline.
#[tokio::test(flavor = "multi_thread")]
async fn callers_waiting_for_a_slot_are_rejected_when_the_breaker_opens() {
    let upstream = Scripted::start(|_, _| Action::Hang).await;
    let overrides = [
        ("limits.upstream.rate", "5"),
        ("limits.upstream.per", "20s"),
        ("limits.max_wait", "1h"),
        ("server.request_timeout", "1h"),
        ("upstream.attempt_timeout", "500ms"),
        ("upstream.retries", "0"),
    ];
    let gateway = Arc::new(TestGateway::start(&upstream, &overrides).await);
    let callers: Vec<_> = (0..8)
        .map(|customer| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move { gateway.read(&customer.to_string()).await.status })
        })
        .collect();
    let mut statuses = Vec::new();
    for caller in callers {
        statuses.push(caller.await.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [503, 503, 503, 504, 504, 504, 504, 504]);
    assert_eq!(upstream.seen().len(), 5);
}

/// In the queue, callers would only wait for a rejection.
#[tokio::test(flavor = "multi_thread")]
async fn no_caller_waits_for_a_slot_while_the_breaker_is_open() {
    let upstream = Scripted::start(|_, _| Action::Close).await;
    let overrides = [("limits.upstream.rate", "5"), ("limits.upstream.per", "1h"), ("upstream.retries", "0")];
    let gateway = TestGateway::start(&upstream, &overrides).await;
    for customer in 0..5 {
        gateway.read(&customer.to_string()).await.assert_error(502, "upstream_failed");
    }
    gateway.read("6").await.assert_error(503, "unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_answers_are_served_while_the_breaker_is_open() {
    let (upstream, answers) = switchable().await;
    let overrides = [("upstream.attempt_timeout", "500ms"), ("upstream.retries", "0")];
    let gateway = TestGateway::start(&upstream, &overrides).await;
    answers.store(true, Ordering::SeqCst);
    gateway.read("kept").await;
    answers.store(false, Ordering::SeqCst);
    gateway.clock.advance(Duration::from_secs(31));
    for customer in 0..5 {
        gateway.read(&customer.to_string()).await;
    }
    let stale = gateway.read("kept").await;
    let cache_status = stale.header("cache-status");
    let (ttl, detail) = cache_status.strip_prefix("zvgate; hit; ttl=-").unwrap().split_once("; ").unwrap();
    assert_eq!((stale.status, detail), (200, "detail=stale-if-error"));
    assert!((2..60).contains(&ttl.parse::<u32>().unwrap()), "{cache_status}");
    assert_eq!(upstream.seen().len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_ratio_of_half_opens_the_breaker_and_error_bodies_do_not() {
    let platform = Platform::unlimited().await;
    let overrides = [("upstream.retries", "0"), ("limits.upstream.rate", "0")];
    let gateway = TestGateway::start(&platform, &overrides).await;
    for fault in ["error", "garbage", "redirect"] {
        platform.faults(json!({ "fault": fault })).await;
        for customer in 0..12 {
            gateway.read(&customer.to_string()).await;
        }
        assert_eq!(gateway.metric(OPEN).await, 0.0, "{fault}");
    }
    gateway.clock.advance(Duration::from_secs(31));
    platform.faults(json!({ "fault": "http500", "every": 2 })).await;
    for customer in 0..10 {
        assert_eq!(gateway.metric(OPEN).await, 0.0);
        gateway.read(&customer.to_string()).await;
    }
    assert_eq!(gateway.metric(OPEN).await, 1.0);
}

/// One merchant's calls hang; the other's continue at their pace.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_tenant_does_not_affect_other_tenants() {
    let broken = crate::support::MERCHANTS[1].0;
    let upstream =
        Scripted::start(move |_, request| if request.contains(broken) { Action::Hang } else { Action::success("[]") })
            .await;
    let gateway =
        Arc::new(TestGateway::start(&upstream, &[("limits.upstream.rate", "0"), ("upstream.max_inflight", "4")]).await);
    let hanging: Vec<_> = (0..8)
        .map(|customer| {
            let gateway = Arc::clone(&gateway);
            let body = json!({ "params": { "customerId": customer.to_string() } }).to_string();
            tokio::spawn(async move { gateway.post(READ, &[("x-zvgate-tenant", "two")], &body).await.status })
        })
        .collect();
    while upstream.seen().len() < 4 {
        tokio::task::yield_now().await;
    }
    let mut served = 0;
    while hanging.iter().any(|task| !task.is_finished()) {
        served += 1;
        assert_eq!(gateway.read(&served.to_string()).await.status, 200);
    }
    assert!(served > 10);
    for task in hanging {
        let status = task.await.unwrap();
        assert!(status == 503 || status == 504, "{status}");
    }
}

/// Callers wait for a permit of `upstream.max_inflight` for at most `limits.max_wait`.
#[tokio::test(flavor = "multi_thread")]
async fn attempts_beyond_max_inflight_are_rejected() {
    let (upstream, _answers) = switchable().await;
    let overrides = [
        ("upstream.max_inflight", "2"),
        ("upstream.attempt_timeout", "2s"),
        ("upstream.retries", "0"),
        ("limits.max_wait", "200ms"),
    ];
    let gateway = Arc::new(TestGateway::start(&upstream, &overrides).await);
    let hung: Vec<_> = (0..2)
        .map(|customer| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move { gateway.read(&customer.to_string()).await.status })
        })
        .collect();
    while upstream.seen().len() < 2 {
        tokio::task::yield_now().await;
    }
    gateway.read("further").await.assert_error(503, "unavailable");
    assert_eq!((gateway.metric(OPEN).await, upstream.seen().len()), (0.0, 2));
    for task in hung {
        assert_eq!(task.await.unwrap(), 504);
    }
}
