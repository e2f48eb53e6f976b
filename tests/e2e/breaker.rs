//! A platform that fails: its breaker opens, callers are answered at once, and nothing is sent until a probe succeeds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::scripted::{Act, Scripted};
use crate::support::{Gate, Platform, READ, Upstream, WRITE, loopback};

const BODY: &str = r#"{"params":{"customerId":"1"}}"#;
const OPEN: &str = "zvgate_breaker_open{route=\"/v3/crm/coupon/getCustomerCoupons\",tenant=\"one\"}";

/// How often the breaker of a tenant's reads entered a state.
async fn transitions(gate: &Gate, route: &str, to: &str) -> f64 {
    let labels = format!("{{route=\"{route}\",tenant=\"one\",to=\"{to}\"}}");
    gate.metric(&format!("zvgate_breaker_transitions_total{labels}")).await
}

/// An upstream that hangs until it is allowed to answer.
async fn switched() -> (Scripted, Arc<AtomicBool>) {
    let answers = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&answers);
    let upstream =
        Scripted::start(
            move |_, _| {
                if switch.load(Ordering::SeqCst) { Act::success(r#"[{"useStatus":1}]"#) } else { Act::Hang }
            },
        )
        .await;
    (upstream, answers)
}

#[tokio::test(flavor = "multi_thread")]
async fn five_consecutive_failures_open_the_breaker_of_one_route_and_a_probe_closes_it() {
    let (upstream, answers) = switched().await;
    let words = [("upstream.attempt_timeout", "500ms"), ("upstream.retries", "0")];
    let gate = Arc::new(Gate::start(&upstream, &words).await);
    for customer in 0..5 {
        assert_eq!(gate.metric(OPEN).await, 0.0);
        gate.read(&customer.to_string()).await.is_error(504, "upstream_timeout");
    }
    assert_eq!(gate.metric(OPEN).await, 1.0);
    let refused = gate.read("1").await;
    refused.is_error(503, "unavailable");
    assert_eq!(
        (refused.header("retry-after"), refused.header("proxy-status")),
        ("1", "zvgate; error=destination_unavailable")
    );
    assert_eq!(upstream.seen().len(), 5, "nothing was sent");
    gate.post(READ, &[("x-zvgate-tenant", "two")], BODY).await.is_error(504, "upstream_timeout");
    assert_eq!(gate.metric(&OPEN.replace("one", "two")).await, 0.0);
    assert_eq!(transitions(&gate, READ, "open").await, 1.0);

    gate.hands.advance(Duration::from_secs(1));
    let probes: Vec<_> = (0..8)
        .map(|customer| {
            let gate = Arc::clone(&gate);
            tokio::spawn(async move { gate.read(&format!("probe-{customer}")).await.status })
        })
        .collect();
    let mut statuses = Vec::new();
    for probe in probes {
        statuses.push(probe.await.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [[503; 7].as_slice(), &[504]].concat(), "one probes");
    assert_eq!((upstream.seen().len(), gate.metric(OPEN).await), (7, 1.0));

    answers.store(true, Ordering::SeqCst);
    gate.read("1").await.is_error(503, "unavailable");
    gate.hands.advance(Duration::from_secs(2));
    assert_eq!(gate.read("1").await.status, 200);
    assert_eq!((gate.metric(OPEN).await, gate.read("2").await.status), (0.0, 200));
    let counted = [transitions(&gate, READ, "open").await, transitions(&gate, READ, "half_open").await];
    assert_eq!((counted, transitions(&gate, READ, "closed").await), ([2.0, 2.0], 1.0));
}

/// A slow platform is not an outage: an answer within its own timeout is a success.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_platform_does_not_open_the_breaker() {
    let platform = Platform::open().await;
    platform.faults(json!({ "latency_ms": 2100 })).await;
    let gate = Arc::new(Gate::start(&platform, &[]).await);
    let asking = |number: u32| {
        let gate = Arc::clone(&gate);
        let write = json!({ "params": { "bizId": "b", "customerId": number.to_string() } }).to_string();
        tokio::spawn(async move {
            match number % 5 {
                0 => gate.post(WRITE, &[], &write).await.status,
                _ => gate.read(&number.to_string()).await.status,
            }
        })
    };
    let callers: Vec<_> = (0..24).map(asking).collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), 200);
    }
    assert_eq!(gate.metric(OPEN).await, 0.0);
}

/// A probe has the time that any attempt has.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_probe_closes_the_breaker() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[("upstream.retries", "0")]).await;
    platform.faults(json!({ "fault": "http500" })).await;
    for customer in 0..5 {
        assert_eq!(gate.read(&customer.to_string()).await.status, 500);
    }
    gate.read("1").await.is_error(503, "unavailable");
    platform.faults(json!({ "fault": "none", "latency_ms": 2500 })).await;
    gate.hands.advance(Duration::from_secs(1));
    assert_eq!((gate.read("1").await.status, gate.metric(OPEN).await), (200, 0.0));
}

/// One caller's failing path under a wildcard says nothing about the paths of others.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_path_under_a_wildcard_does_not_affect_other_paths() {
    let upstream =
        Scripted::start(|_, request| if request.contains("/v3/bad") { Act::Close } else { Act::success("[]") }).await;
    let words = [("limits.upstream.rate", "0")];
    let file = "[[routes]]\npath = \"/v3/**\"\nkind = \"pass\"\n";
    let gate = Gate::with_file(&upstream, &words, file).await;
    for _ in 0..20 {
        assert!(gate.post("/v3/bad", &[], BODY).await.status >= 500);
        assert_eq!(gate.post("/v3/good", &[], BODY).await.status, 200);
    }
    gate.post("/v3/bad", &[], BODY).await.is_error(503, "unavailable");
    assert_eq!(gate.metric("zvgate_breaker_open{route=\"other\",tenant=\"one\"}").await, 1.0);
    assert_eq!(gate.metric(OPEN).await, 0.0);
}

/// Nobody listens there.
struct Nobody;

impl Upstream for Nobody {
    fn url(&self) -> String {
        let socket = std::net::TcpListener::bind(loopback()).unwrap();
        format!("http://{}", socket.local_addr().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_failures_open_the_breakers_of_all_routes_of_a_tenant() {
    let wildcards =
        "[[routes]]\npath = \"/v3/a/**\"\nkind = \"pass\"\n[[routes]]\npath = \"/v3/b/**\"\nkind = \"pass\"\n";
    let gate = Gate::with_file(&Nobody, &[("upstream.retries", "0")], wildcards).await;
    for customer in 0..5 {
        gate.read(&customer.to_string()).await.is_error(502, "upstream_failed");
    }
    gate.read("1").await.is_error(503, "unavailable");
    gate.post(WRITE, &[], BODY).await.is_error(503, "unavailable");
    let of_writes = OPEN.replace(READ, WRITE);
    assert_eq!((gate.metric(OPEN).await, gate.metric(&of_writes).await), (1.0, 1.0));
    assert_eq!((transitions(&gate, READ, "open").await, transitions(&gate, WRITE, "open").await), (1.0, 1.0));
    assert_eq!(transitions(&gate, "other", "open").await, 1.0, "once for all routes that share a label");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_breaker_can_be_disabled() {
    let upstream = Scripted::start(|_, _| Act::Close).await;
    let off = [
        ("upstream.breaker.consecutive", "0"),
        ("upstream.breaker.ratio", "0"),
        ("upstream.retries", "0"),
        ("limits.upstream.rate", "0"),
    ];
    let gate = Gate::start(&upstream, &off).await;
    for customer in 0..30 {
        gate.read(&customer.to_string()).await.is_error(502, "upstream_failed");
    }
    assert_eq!(gate.metric(OPEN).await, 0.0);
}

/// Callers who have less time than upstream needs know nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn callers_with_short_deadlines_do_not_open_the_breaker() {
    let platform = Platform::open().await;
    platform.faults(json!({ "latency_ms": 300 })).await;
    let gate = Gate::start(&platform, &[("cache.mode", "off"), ("limits.upstream.rate", "0")]).await;
    for _ in 0..8 {
        gate.post(READ, &[("x-request-timeout-ms", "50")], BODY).await.is_error(504, "upstream_timeout");
    }
    assert_eq!((gate.metric(OPEN).await, gate.read("1").await.status), (0.0, 200));
}

/// Callers that already wait for a slot are answered too, instead of waiting until their deadline.
#[tokio::test(flavor = "multi_thread")]
async fn callers_waiting_for_a_slot_are_rejected_when_the_breaker_opens() {
    let upstream = Scripted::start(|_, _| Act::Hang).await;
    let words = [
        ("limits.upstream.rate", "5"),
        ("limits.upstream.per", "20s"),
        ("limits.max_wait", "1h"),
        ("server.request_timeout", "1h"),
        ("upstream.attempt_timeout", "500ms"),
        ("upstream.retries", "0"),
    ];
    let gate = Arc::new(Gate::start(&upstream, &words).await);
    let callers: Vec<_> = (0..8)
        .map(|customer| {
            let gate = Arc::clone(&gate);
            tokio::spawn(async move { gate.read(&customer.to_string()).await.status })
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

/// A queue would only let callers wait for a refusal.
#[tokio::test(flavor = "multi_thread")]
async fn no_caller_waits_for_a_slot_while_the_breaker_is_open() {
    let upstream = Scripted::start(|_, _| Act::Close).await;
    let words = [("limits.upstream.rate", "5"), ("limits.upstream.per", "1h"), ("upstream.retries", "0")];
    let gate = Gate::start(&upstream, &words).await;
    for customer in 0..5 {
        gate.read(&customer.to_string()).await.is_error(502, "upstream_failed");
    }
    gate.read("6").await.is_error(503, "unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_answers_are_served_while_the_breaker_is_open() {
    let (upstream, answers) = switched().await;
    let words = [("upstream.attempt_timeout", "500ms"), ("upstream.retries", "0")];
    let gate = Gate::start(&upstream, &words).await;
    answers.store(true, Ordering::SeqCst);
    gate.read("kept").await;
    answers.store(false, Ordering::SeqCst);
    gate.hands.advance(Duration::from_secs(31));
    for customer in 0..5 {
        gate.read(&customer.to_string()).await;
    }
    let stale = gate.read("kept").await;
    let cache_status = stale.header("cache-status");
    let (ttl, detail) = cache_status.strip_prefix("zvgate; hit; ttl=-").unwrap().split_once("; ").unwrap();
    assert_eq!((stale.status, detail), (200, "detail=stale-if-error"));
    assert!((2..60).contains(&ttl.parse::<u32>().unwrap()), "{cache_status}");
    assert_eq!(upstream.seen().len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_ratio_of_half_opens_the_breaker_and_error_bodies_do_not() {
    let platform = Platform::open().await;
    let words = [("upstream.retries", "0"), ("limits.upstream.rate", "0")];
    let gate = Gate::start(&platform, &words).await;
    for fault in ["error", "garbage", "redirect"] {
        platform.faults(json!({ "fault": fault })).await;
        for customer in 0..12 {
            gate.read(&customer.to_string()).await;
        }
        assert_eq!(gate.metric(OPEN).await, 0.0, "{fault}");
    }
    gate.hands.advance(Duration::from_secs(31));
    platform.faults(json!({ "fault": "http500", "every": 2 })).await;
    for customer in 0..10 {
        assert_eq!(gate.metric(OPEN).await, 0.0);
        gate.read(&customer.to_string()).await;
    }
    assert_eq!(gate.metric(OPEN).await, 1.0);
}

/// One merchant's calls hang: the other's go on at their pace.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_tenant_does_not_affect_other_tenants() {
    let broken = crate::support::MERCHANTS[1].0;
    let upstream =
        Scripted::start(move |_, request| if request.contains(broken) { Act::Hang } else { Act::success("[]") }).await;
    let gate = Arc::new(Gate::start(&upstream, &[("limits.upstream.rate", "0"), ("upstream.max_inflight", "4")]).await);
    let hanging: Vec<_> = (0..8)
        .map(|customer| {
            let gate = Arc::clone(&gate);
            let body = json!({ "params": { "customerId": customer.to_string() } }).to_string();
            tokio::spawn(async move { gate.post(READ, &[("x-zvgate-tenant", "two")], &body).await.status })
        })
        .collect();
    while upstream.seen().len() < 4 {
        tokio::task::yield_now().await;
    }
    let mut served = 0;
    while hanging.iter().any(|one| !one.is_finished()) {
        served += 1;
        assert_eq!(gate.read(&served.to_string()).await.status, 200);
    }
    assert!(served > 10);
    for one in hanging {
        let status = one.await.unwrap();
        assert!(status == 503 || status == 504, "{status}");
    }
}

/// Those who wait for room in flight wait as long as for a slot, and no longer.
#[tokio::test(flavor = "multi_thread")]
async fn attempts_beyond_max_inflight_are_rejected() {
    let (upstream, _answers) = switched().await;
    let words = [
        ("upstream.max_inflight", "2"),
        ("upstream.attempt_timeout", "2s"),
        ("upstream.retries", "0"),
        ("limits.max_wait", "200ms"),
    ];
    let gate = Arc::new(Gate::start(&upstream, &words).await);
    let hung: Vec<_> = (0..2)
        .map(|customer| {
            let gate = Arc::clone(&gate);
            tokio::spawn(async move { gate.read(&customer.to_string()).await.status })
        })
        .collect();
    while upstream.seen().len() < 2 {
        tokio::task::yield_now().await;
    }
    gate.read("further").await.is_error(503, "unavailable");
    assert_eq!((gate.metric(OPEN).await, upstream.seen().len()), (0.0, 2));
    for one in hung {
        assert_eq!(one.await.unwrap(), 504);
    }
}
