//! Pacing and signing, measured at the platform: it throttles no call and rejects no signature.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};
use zvgate::configuration::Configuration;
use zvgate::settings::Sources;

use crate::scripted::{Action, Scripted, http_text};
use crate::support::{Caller, MERCHANTS, Platform, READ, Reply, TestGateway, Upstream, WRITE};

/// Sends `rate` requests a second, each for another customer, for `seconds`.
async fn flood(gateway: &Arc<TestGateway>, rate: u32, seconds: u32) -> Vec<Reply> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut callers = Vec::new();
    for number in 0..rate * seconds {
        ticks.tick().await;
        let gateway = Arc::clone(gateway);
        callers.push(tokio::spawn(async move { gateway.read(&format!("flood-{number}")).await }));
    }
    let mut replies = Vec::new();
    for caller in callers {
        replies.push(caller.await.unwrap());
    }
    replies
}

#[tokio::test(flavor = "multi_thread")]
async fn load_at_ten_times_the_pace_is_never_throttled_by_the_platform() {
    let platform = Platform::rate_limited().await;
    platform.faults(json!({ "jitter_ms": 400 })).await;
    let gateway = Arc::new(TestGateway::start(&platform, &[]).await);
    let clock = zvgate::clock::Clock::system();
    let started = clock.boot();
    let replies = flood(&gateway, 100, 60).await;
    let took = clock.boot().since(started);
    assert_eq!(platform.stats().await["refused"], json!({}), "the platform rejected a call");
    let (served, rejected): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 200);
    assert!(served.iter().all(|reply| reply.text().contains("\"code\":0")));
    assert_eq!(served.len() as u64, platform.requests(READ).await);
    // A slot is busy from the beginning of its call until `per` after its answer; this is the busy share of all slots.
    let metric = |name: &str| format!("zvgate_upstream_duration_seconds_{name}{{route=\"{READ}\",tenant=\"one\"}}");
    let busy = gateway.metric(&metric("sum")).await + gateway.metric(&metric("count")).await;
    let share = busy / (10.0 * took.as_secs_f64());
    println!("{} calls, slots busy for {share:.3} of the time", served.len());
    assert!(served.len() > 60, "{} calls are too few for a meaningful result", served.len());
    for reply in &rejected {
        reply.assert_error(429, "upstream_limited");
        assert_eq!(reply.header("ratelimit-policy"), "\"upstream\";q=10;w=1");
        assert_eq!(reply.header("ratelimit"), format!("\"upstream\";r=0;t={}", reply.header("retry-after")));
        assert!(reply.header("retry-after").parse::<u32>().unwrap() >= 1);
    }
    assert_eq!(
        gateway.metric("zvgate_limited_total{caller=\"anonymous\",limit=\"upstream\"}").await,
        rejected.len() as f64
    );
}

/// The platform also counts calls that it rejects, breaks off or never answers.
#[tokio::test(flavor = "multi_thread")]
async fn the_pace_holds_under_every_fault() {
    for fault in ["hang", "reset", "truncate", "http500", "garbage", "redirect"] {
        let platform = Platform::rate_limited().await;
        platform.faults(json!({ "jitter_ms": 400, "fault": fault, "every": 3 })).await;
        let overrides = [("upstream.attempt_timeout", "1s"), ("upstream.retries", "5"), ("limits.max_wait", "2s")];
        let gateway = Arc::new(TestGateway::start(&platform, &overrides).await);
        flood(&gateway, 40, 4).await;
        assert_eq!(platform.stats().await["refused"], json!({}), "{fault}");
        assert!(platform.requests(READ).await >= 10, "{fault}");
    }
}

/// Calls that were counted by the common pace stay counted there when the path could get its own pace again.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_stays_on_the_common_pace_while_its_calls_count_there() {
    let platform = Platform::unlimited().await;
    let file = "[[routes]]\npath = \"/v3/w/**\"\nkind = \"pass\"\npace = { rate = 1, per = \"1h\" }\n[[routes]]\npath = \"/v4/**\"\nkind = \"pass\"\n";
    let gateway = TestGateway::with_file(&platform, &[("limits.max_wait", "0s")], file).await;
    let pass = async |number: u32| gateway.post(&format!("/v3/w/{number}"), &[], r#"{"params":{}}"#).await.status;
    let other = "zvgate_upstream_rate{route=\"other\",tenant=\"one\"}";
    assert_eq!(gateway.metric(other).await, 1.0, "the slowest of the routes that share the label");
    assert_eq!((pass(0).await, pass(1).await), (200, 200));
    gateway.clock.advance(Duration::from_secs(1800));
    for number in 2..257 {
        assert_eq!(pass(number).await, 200, "{number}");
    }
    gateway.clock.advance(Duration::from_secs(1801));
    assert_eq!(pass(256).await, 429, "the common pace counted it half an hour ago");
    gateway.clock.advance(Duration::from_secs(1800));
    assert_eq!(pass(256).await, 200);
}

/// Another process may have made calls just before: all slots are busy for the first `per`.
#[tokio::test(flavor = "multi_thread")]
async fn a_cold_gateway_waits_one_period_before_its_first_call() {
    let platform = Platform::rate_limited().await;
    let overrides = [("limits.upstream.per", "1h"), ("limits.max_wait", "0s")];
    let gateway = TestGateway::cold(&platform, &overrides).await;
    let rejected = gateway.read("1").await;
    rejected.assert_error(429, "upstream_limited");
    assert_eq!(rejected.header("retry-after"), "3600");
    // Calls of the process before may have been counted `transit` after it ended.
    gateway.clock.advance(Duration::from_secs(3600));
    gateway.read("1").await.assert_error(429, "upstream_limited");
    gateway.clock.advance(Duration::from_secs(1));
    assert_eq!(gateway.read("1").await.status, 200);
}

/// It pauses, longer each time, and its rate is halved until a minute without throttling has passed.
#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_route_backs_off() {
    let platform = Platform::unlimited().await;
    let overrides = [("limits.max_wait", "0s"), ("upstream.retries", "0"), ("upstream.follow_clock", "false")];
    let gateway = TestGateway::start(&platform, &overrides).await;
    let rate = |route: &str, tenant: &str| format!("zvgate_upstream_rate{{route=\"{route}\",tenant=\"{tenant}\"}}");
    platform.faults(json!({ "fault": "throttle", "times": 2 })).await;
    for (pause, rest) in [(1, 5.0), (2, 2.0)] {
        assert!(gateway.read("1").await.text().contains("110004"));
        assert_eq!(gateway.metric(&rate(READ, "one")).await, 0.0);
        let rejected = gateway.read("1").await;
        rejected.assert_error(429, "upstream_limited");
        assert_eq!(rejected.header("retry-after"), pause.to_string());
        gateway.clock.advance(Duration::from_secs(pause));
        assert_eq!(gateway.metric(&rate(READ, "one")).await, rest);
    }
    assert_eq!((gateway.read("1").await.status, gateway.read("2").await.status), (200, 200));
    gateway.read("3").await.assert_error(429, "upstream_limited");
    for (route, tenant) in [(READ, "two"), (WRITE, "one")] {
        assert_eq!(gateway.metric(&rate(route, tenant)).await, 10.0);
    }
    gateway.clock.advance(Duration::from_secs(60));
    assert_eq!(gateway.metric(&rate(READ, "one")).await, 10.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_read_is_retried_after_the_pause() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("limits.upstream.per", "200ms")]).await;
    platform.faults(json!({ "fault": "throttle", "times": 2 })).await;
    assert!(gateway.read("1").await.is_stored_miss());
    assert_eq!(platform.requests(READ).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tenant_and_route_has_its_own_pace() {
    let platform = Platform::rate_limited().await;
    let file = "[[routes]]\npath = \"/v3/slow/**\"\nkind = \"pass\"\npace = { rate = 1, per = \"1h\" }\n";
    let gateway =
        TestGateway::with_file(&platform, &[("limits.max_wait", "0s"), ("tenants.two.pace.rate", "2")], file).await;
    for customer in 0..10 {
        assert_eq!(gateway.read(&customer.to_string()).await.status, 200);
    }
    gateway.read("eleven").await.assert_error(429, "upstream_limited");
    let read_second_tenant = async |customer: &str| {
        let body = json!({ "params": { "customerId": customer } }).to_string();
        gateway.post(READ, &[("x-zvgate-tenant", "two")], &body).await
    };
    assert_eq!((read_second_tenant("1").await.status, read_second_tenant("2").await.status), (200, 200));
    let limited = read_second_tenant("3").await;
    limited.assert_error(429, "upstream_limited");
    assert_eq!(limited.header("ratelimit-policy"), "\"upstream\";q=2;w=1");
    let pass = async |path: &str| gateway.post(path, &[], r#"{"params":{}}"#).await;
    assert_eq!(pass("/v3/slow/a").await.header("cache-status"), "zvgate; fwd=bypass");
    pass("/v3/slow/a").await.assert_error(429, "upstream_limited");
    assert_eq!(pass("/v3/slow/b").await.status, 200, "each path under a wildcard has its own pace");
}

/// 256 paths have their own pace; further ones share one, until a path no longer needs its own.
#[tokio::test(flavor = "multi_thread")]
async fn paths_under_a_wildcard_release_their_pace_when_unused() {
    let platform = Platform::unlimited().await;
    let file = "[[routes]]\npath = \"/v3/w/**\"\nkind = \"pass\"\npace = { rate = 1, per = \"1h\" }\n";
    let gateway = TestGateway::with_file(&platform, &[("limits.max_wait", "0s")], file).await;
    let pass = async |number: u32| gateway.post(&format!("/v3/w/{number}"), &[], r#"{"params":{}}"#).await.status;
    for number in 0..257 {
        assert_eq!(pass(number).await, 200, "{number}");
    }
    assert_eq!(pass(257).await, 429, "the common pace is used up");
    gateway.clock.advance(Duration::from_secs(7200));
    assert_eq!((pass(258).await, pass(259).await), (200, 200));
    assert_eq!(pass(259).await, 429);
}

/// A caller that disconnects during a pass changes neither the pace nor the counts.
#[tokio::test(flavor = "multi_thread")]
async fn callers_that_disconnect_do_not_break_the_pace() {
    let platform = Platform::rate_limited().await;
    let file = "[[routes]]\npath = \"/v3/pass\"\nkind = \"pass\"\n";
    let gateway = TestGateway::with_file(&platform, &[], file).await;
    let request = "POST /v3/pass HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Request-Timeout-Ms: 1\r\nContent-Length: 13\r\n\r\n{\"params\":{}}";
    let address = gateway.address;
    let disconnecting: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || {
                for micros in (0..1500).step_by(5) {
                    let mut stream = std::net::TcpStream::connect(address).unwrap();
                    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
                    std::thread::sleep(Duration::from_micros(micros));
                    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
                }
            })
        })
        .collect();
    tokio::task::block_in_place(|| disconnecting.into_iter().for_each(|thread| thread.join().unwrap()));
    assert_eq!(platform.stats().await["refused"], json!({}));
    assert_eq!(
        gateway.metric("zvgate_breaker_open{route=\"/v3/pass\",tenant=\"one\"}").await,
        0.0,
        "a caller's short deadline is not a platform failure"
    );
    while gateway.metric("zvgate_upstream_inflight{tenant=\"one\"}").await > 0.0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_within_max_wait_get_a_slot() {
    let platform = Platform::rate_limited().await;
    let gateway = Arc::new(TestGateway::start(&platform, &[]).await);
    let replies = flood(&gateway, 15, 1).await;
    assert!(replies.iter().all(|reply| reply.status == 200));
    assert_eq!(platform.stats().await["refused"], json!({}));
    let waited = format!("zvgate_limit_wait_seconds_count{{route=\"{READ}\",tenant=\"one\"}}");
    assert_eq!(gateway.metric(&waited).await, 15.0);
}

/// 3,000 calls on 32 connections: the platform's check finds no signature invalid, and none used twice.
#[tokio::test(flavor = "multi_thread")]
async fn every_signature_is_valid_and_unique() {
    let platform = Platform::unlimited().await;
    let gateway = Arc::new(TestGateway::start(&platform, &[("limits.upstream.rate", "0")]).await);
    let callers: Vec<_> = (0..32)
        .map(|caller| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move {
                let mut connection = Caller::connect(gateway.address).await;
                for number in 0..94 {
                    let reply = connection.read(&format!("{caller}-{number}")).await;
                    assert!(reply.is_stored_miss(), "{reply:?}");
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let stats = platform.stats().await;
    assert_eq!((&stats["requests"][READ], &stats["refused"]), (&json!(32 * 94), &json!({})));
}

/// The platform counts by `openId`, under whatever grant.
#[tokio::test(flavor = "multi_thread")]
async fn tenants_with_one_open_id_share_its_rate() {
    let upstream = Scripted::start(|_, _| Action::success("[]")).await;
    let file =
        format!("[tenants.three]\nopen_id = \"{}\"\ngrant_code = \"another\"\nopen_key = \"key\"\n", MERCHANTS[0].0);
    let gateway = TestGateway::with_file(&upstream, &[("limits.max_wait", "0s")], &file).await;
    let mut statuses = Vec::new();
    for number in 0..15 {
        for tenant in ["one", "three"] {
            let body = format!(r#"{{"params":{{"customerId":"{number}"}}}}"#);
            statuses.push(gateway.post(READ, &[("x-zvgate-tenant", tenant)], &body).await.status);
        }
    }
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 10, "{statuses:?}");
    assert_eq!(upstream.seen().len(), 10);
}

/// A grant that changes by a reload takes neither the rate nor the fence along.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_grant_gets_no_second_rate_and_sees_writes_of_the_old_one() {
    let may_end = Arc::new(AtomicBool::new(false));
    let write_may_end = Arc::clone(&may_end);
    let upstream = Scripted::start(move |_, request| {
        while request.contains(WRITE) && !write_may_end.load(Ordering::Relaxed) {
            tokio::task::block_in_place(|| std::thread::sleep(Duration::from_millis(5)));
        }
        Action::success(r#"[{"useStatus":1}]"#)
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zvgate.toml");
    let load = |grant: &str| {
        let tenant = format!("[tenants.a]\nopen_id = \"i\"\ngrant_code = \"{grant}\"\nopen_key = \"k\"\n");
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n[upstream]\nbase_url = \"{}\"\n[limits]\nmax_wait = \"0s\"\n{tenant}",
            upstream.url()
        );
        std::fs::write(&path, text).unwrap();
        Configuration::load(&Sources { file: Some(path.clone()), ..Sources::default() })
    };
    let gateway = Arc::new(TestGateway::of(load("old").unwrap()).await);
    for customer in 0..6 {
        assert_eq!(gateway.read(&customer.to_string()).await.status, 200);
    }
    let other = Arc::clone(&gateway);
    let write = tokio::spawn(async move { other.post(WRITE, &[], r#"{"params":{"customerId":"0"}}"#).await });
    while upstream.seen().len() < 7 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(gateway.inner.reload(load("new")));
    assert!(!gateway.read("0").await.is_hit(), "another grant may see other coupons");
    assert!(gateway.read("0").await.is_hit());
    may_end.store(true, Ordering::Relaxed);
    assert_eq!(write.await.unwrap().status, 200);
    assert!(!gateway.read("0").await.is_hit(), "the write has ended");
    let mut answered = 0;
    for customer in 10..20 {
        answered += u32::from(gateway.read(&customer.to_string()).await.status == 200);
    }
    assert_eq!(answered, 2, "eight of ten slots are taken");
}

/// The call of a caller that asked for much waits behind that; whoever joins it has a turn of their own.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_joins_the_fetch_of_a_busy_one_does_not_wait_for_all_it_asked() {
    let hash = |key: &str| Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let answer = || vec![Vec::new(), http_text("200 OK", "", r#"{"status":true,"code":0,"data":[]}"#)];
    let upstream = Scripted::start(move |_, _| Action::RespondInParts(answer())).await;
    let (busy, other) = (hash("busy"), hash("other"));
    let overrides = [
        ("callers.busy.key_sha256", busy.as_str()),
        ("callers.busy.tenants", "*"),
        ("callers.busy.routes", "*"),
        ("callers.other.key_sha256", &other),
        ("callers.other.tenants", "*"),
        ("callers.other.routes", "*"),
        ("upstream.max_inflight", "1"),
        ("limits.upstream.rate", "100"),
    ];
    let gateway = Arc::new(TestGateway::start(&upstream, &overrides).await);
    let ask = |key: &'static str, customer: usize| {
        let gateway = Arc::clone(&gateway);
        tokio::spawn(async move {
            let body = json!({ "params": { "customerId": format!("c{customer}") } }).to_string();
            gateway.post(READ, &[("authorization", &format!("Bearer {key}"))], &body).await
        })
    };
    let mut busy = Vec::new();
    for customer in 0..20 {
        busy.push(ask("busy", customer));
        // They wait in this order.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (before, wanted) = (upstream.seen().len(), 19);
    let reply = ask("other", wanted).await.unwrap();
    assert_eq!(reply.header("cache-status"), "zvgate; fwd=miss; collapsed");
    let calls = upstream.seen().len() - before;
    assert!(calls <= 3, "{calls} calls were made before its own");
    for reply in busy {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    assert_eq!(upstream.seen().len(), 20);
}

/// What a caller with `priority = "batch"` asked first is served last, but for every second slot.
#[tokio::test(flavor = "multi_thread")]
async fn the_calls_of_a_batch_caller_queue_behind_interactive_ones() {
    const MANY: usize = 60;
    const FEW: usize = 12;
    let platform = Platform::unlimited().await;
    let key = |name: &str| zvgate::secret::hex(&Sha256::digest(name));
    // Served in turn with the others, each of them would get as much as the interactive one.
    let callers = ["nightly-a", "nightly-b", "nightly-c", "shop"];
    let keys = callers.map(key);
    let own = callers.iter().zip(&keys).flat_map(|(caller, key)| {
        let priority = if *caller == "shop" { "interactive" } else { "batch" };
        [("key_sha256", key.as_str()), ("tenants", "one"), ("routes", "*"), ("priority", priority)]
            .map(|(setting, value)| (format!("callers.{caller}.{setting}"), value))
    });
    let own: Vec<(String, &str)> = own.collect();
    let mut overrides: Vec<(&str, &str)> = own.iter().map(|(setting, value)| (setting.as_str(), *value)).collect();
    overrides.extend([
        ("limits.upstream.rate", "2"),
        ("limits.upstream.per", "100ms"),
        ("limits.upstream.transit", "10ms"),
        ("limits.max_wait", "30s"),
        ("server.request_timeout", "40s"),
    ]);
    let gateway = Arc::new(TestGateway::start(&platform, &overrides).await);
    let order = Arc::new(std::sync::Mutex::new(Vec::new()));
    let ask = |caller: &'static str, number: usize| {
        let (gateway, order) = (Arc::clone(&gateway), Arc::clone(&order));
        tokio::spawn(async move {
            let (key, customer) = (format!("Bearer {caller}"), format!("{caller}-{number}"));
            let body = json!({ "params": { "customerId": customer } }).to_string();
            assert_eq!(gateway.post(READ, &[("authorization", &key)], &body).await.status, 200);
            order.lock().unwrap().push(caller);
        })
    };
    let mut requests: Vec<_> = (0..MANY).map(|number| ask(callers[number % 3], number)).collect();
    crate::support::until("all calls of the batch wait", async || {
        gateway.metric("zvgate_limit_waiting{route=\"/v3/crm/coupon/getCustomerCoupons\",tenant=\"one\"}").await
            + order.lock().unwrap().len() as f64
            >= MANY as f64 - 2.0
    })
    .await;
    let before = order.lock().unwrap().len();
    requests.extend((0..FEW).map(|number| ask("shop", number)));
    for request in requests {
        request.await.unwrap();
    }
    let order = order.lock().unwrap();
    let last = order.iter().rposition(|caller| *caller == "shop").unwrap();
    let batch = order[before..last].iter().filter(|caller| **caller != "shop").count();
    assert!(batch <= FEW + 4, "{batch} batch calls were served before {FEW} interactive ones");
    assert!(batch >= FEW / 2, "batch calls starve: {batch} among {FEW} interactive ones");
}
