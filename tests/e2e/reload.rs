//! Reloads: another configuration takes effect while requests are served.

use std::io::{BufRead, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use zvgate::configuration::Configuration;
use zvgate::settings::Sources;

use crate::program::{serve, write_config};
use crate::scripted::{Action, Scripted};
use crate::support::{Caller, MERCHANTS, Overrides, Platform, READ, TestGateway, Upstream, WRITE, configuration, post};

const SUCCESS: &str = "zvgate_config_reload_success";
const BODY: &str = r#"{"params":{"customerId":"1"}}"#;

fn reload(gateway: &TestGateway, upstream: &impl Upstream, overrides: Overrides<'_>, file: &str) -> bool {
    gateway.inner.reload(Ok(configuration(upstream, overrides, Some(file))))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_effect_immediately_and_keeps_the_cache() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    gateway.read("1").await;
    let file =
        format!("[[routes]]\npath = \"/v3/new\"\nkind = \"pass\"\n[[routes]]\npath = \"{WRITE}\"\nkind = \"off\"\n");
    gateway.post("/v3/new", &[], BODY).await.assert_error(404, "unknown_route");
    assert!(reload(&gateway, &platform, &[("cache.ttl", "5s"), ("server.max_body", "1KiB")], &file));
    assert!(gateway.read("1").await.is_hit(), "the cache is kept");
    assert_eq!(gateway.read("2").await.header("cache-status"), "zvgate; fwd=miss; stored; ttl=5");
    assert_eq!(gateway.post("/v3/new", &[], BODY).await.status, 200);
    gateway.post(WRITE, &[], BODY).await.assert_error(404, "unknown_route");
    gateway.post(READ, &[], &"x".repeat(2000)).await.assert_error(413, "body_too_large");
    assert!(gateway.page("/config").await.text().contains("cache.ttl = \"5s\""));
    assert!(reload(&gateway, &platform, &[("cache.mode", "off")], ""));
    assert_eq!(gateway.read("1").await.header("cache-status"), "zvgate; fwd=bypass");
    assert!(reload(
        &gateway,
        &platform,
        &[("callers.a.tenants", "*"), ("callers.a.routes", "*"), ("callers.a.key_sha256", &"0".repeat(64))],
        ""
    ));
    gateway.read("1").await.assert_error(401, "unauthenticated");
}

/// Purged entries stay purged when a removed tenant is configured again.
#[tokio::test(flavor = "multi_thread")]
async fn purging_everything_includes_removed_tenants() {
    let upstream = Scripted::start(|_, _| Action::success(r#"[{"useStatus":1}]"#)).await;
    let gateway = TestGateway::start(&upstream, &[]).await;
    let read_second_tenant = async || gateway.post(READ, &[("x-zvgate-tenant", "two")], BODY).await;
    read_second_tenant().await;
    assert!(read_second_tenant().await.is_hit());
    let other = [("tenants.two.open_id", "another")];
    assert!(reload(&gateway, &upstream, &other, ""));
    let purge = http::Request::delete("/cache?all=true").header("host", "localhost");
    let purge = purge.body(http_body_util::Full::default()).unwrap();
    assert_eq!(crate::support::send(gateway.admin, purge).await.json(), serde_json::json!({ "dropped": 1 }));
    assert!(reload(&gateway, &upstream, &[], ""));
    assert!(!read_second_tenant().await.is_hit());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_configuration_changes_nothing() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    assert_eq!(gateway.metric(SUCCESS).await, 1.0);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[cache]\nttl = 5\nmode = \"of\"\n").unwrap();
    let broken = Configuration::load(&Sources { file: Some(file.path().to_path_buf()), ..Sources::default() });
    assert!(!gateway.inner.reload(broken));
    std::fs::write(file.path(), "").unwrap();
    let empty = Configuration::load(&Sources { file: Some(file.path().to_path_buf()), ..Sources::default() });
    assert!(!gateway.inner.reload(empty), "there is no tenant");
    assert_eq!(gateway.metric(SUCCESS).await, 0.0);
    assert!(gateway.read("1").await.is_stored_miss());
    assert!(reload(&gateway, &platform, &[], ""));
    assert_eq!(gateway.metric(SUCCESS).await, 1.0);
}

/// A reload does not move the listener, so a configuration that is valid on loopback may be invalid for it.
#[tokio::test(flavor = "multi_thread")]
async fn no_reload_allows_anonymous_callers_beyond_loopback() {
    let platform = Platform::unlimited().await;
    let caller = format!("[callers.a]\nkey_sha256 = \"{}\"\ntenants = [\"*\"]\nroutes = [\"*\"]\n", "0".repeat(64));
    let gateway = TestGateway::with_file(&platform, &[("server.listen", "0.0.0.0:0")], &caller).await;
    assert!(!reload(&gateway, &platform, &[], ""));
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], gateway.address.port()));
    post(address, READ, &[], BODY).await.assert_error(401, "unauthenticated");
    assert!(gateway.page("/config").await.text().contains("server.listen = \"0.0.0.0:0\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_does_not_reset_slots_or_limits() {
    let platform = Platform::unlimited().await;
    let base = [("limits.max_wait", "0s"), ("limits.upstream.per", "1h"), ("upstream.follow_clock", "false")];
    let with = |rate: &'static str| [&base[..], &[("limits.upstream.rate", rate)]].concat();
    let gateway = TestGateway::start(&platform, &with("2")).await;
    assert_eq!((gateway.read("1").await.status, gateway.read("2").await.status), (200, 200));
    assert!(reload(&gateway, &platform, &with("2"), ""));
    gateway.read("3").await.assert_error(429, "upstream_limited");
    let exact = format!("[[routes]]\npath = \"{READ}\"\nkind = \"cached\"\npace = {{ rate = 3 }}\n");
    assert!(reload(&gateway, &platform, &with("1"), &exact));
    assert_eq!(gateway.read("3").await.status, 200, "one more call than before");
    gateway.read("4").await.assert_error(429, "upstream_limited");
    assert!(reload(&gateway, &platform, &with("1"), ""));
    gateway.clock.advance(Duration::from_secs(3600));
    assert_eq!(gateway.read("4").await.status, 200);
    gateway.read("5").await.assert_error(429, "upstream_limited");

    let limit = |burst: &'static str| {
        [("limits.caller.rate", "1"), ("limits.caller.per", "1h"), ("limits.caller.burst", burst)]
    };
    let gateway = TestGateway::start(&platform, &limit("2")).await;
    assert_eq!((gateway.read("1").await.status, gateway.read("1").await.status), (200, 200));
    for burst in ["2", "5"] {
        assert!(reload(&gateway, &platform, &limit(burst), ""));
        gateway.read("1").await.assert_error(429, "caller_limited");
    }
}

/// The name of a tenant may be given to another merchant; its stored answers are not.
#[tokio::test(flavor = "multi_thread")]
async fn no_answer_of_another_merchant_is_served_after_a_reload() {
    let second = MERCHANTS[1].0;
    let upstream = Scripted::start(move |_, request| {
        Action::success(if request.contains(second) {
            r#"[{"useStatus":1,"of":"second"}]"#
        } else {
            r#"[{"useStatus":1}]"#
        })
    })
    .await;
    let gateway = TestGateway::start(&upstream, &[]).await;
    assert!(!gateway.read("1").await.text().contains("second"));
    let swapped = [
        ("tenants.one.open_id", MERCHANTS[1].0),
        ("tenants.one.grant_code", MERCHANTS[1].1),
        ("tenants.two.open_id", MERCHANTS[0].0),
        ("tenants.two.grant_code", MERCHANTS[0].1),
    ];
    assert!(reload(&gateway, &upstream, &swapped, ""));
    let now = gateway.read("1").await;
    assert!(now.is_stored_miss() && now.text().contains("second"), "{now:?}");
    let first = gateway.post(READ, &[("x-zvgate-tenant", "two")], BODY).await;
    assert!(
        first.is_hit() && !first.text().contains("second"),
        "the merchant's answers stay its own under the new name"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_added_by_a_reload_is_cached_and_invalidated() {
    let upstream = Scripted::start(|_, _| Action::success(r#"[{"useStatus":1}]"#)).await;
    let gateway = TestGateway::start(&upstream, &[]).await;
    let third = [("tenants.three.open_id", "i"), ("tenants.three.grant_code", "g"), ("tenants.three.open_key", "k")];
    assert!(reload(&gateway, &upstream, &third, ""));
    let read = async || gateway.post(READ, &[("x-zvgate-tenant", "three")], BODY).await;
    assert!(read().await.is_stored_miss() && read().await.is_hit());
    let write = gateway.post(WRITE, &[("x-zvgate-tenant", "three")], r#"{"params":{"bizId":"b"}}"#).await;
    assert_eq!(write.status, 200);
    assert!(!read().await.is_hit(), "a write without a known customer invalidates the whole tenant");
}

/// By the new rules, a stored answer may end earlier.
#[tokio::test(flavor = "multi_thread")]
async fn changed_parsing_rules_invalidate_stored_answers() {
    let upstream = Scripted::start(|_, _| Action::success(r#"[{"useStatus":1,"goneAt":"2999-01-01 00:00:00"}]"#)).await;
    let gateway = TestGateway::start(&upstream, &[]).await;
    gateway.read("1").await;
    let route = format!("[[routes]]\npath = \"{READ}\"\nkind = \"cached\"\nexpires = [\"goneAt\"]\n");
    assert!(reload(&gateway, &upstream, &[], &route));
    assert!(!gateway.read("1").await.is_hit() && gateway.read("1").await.is_hit());
    assert!(reload(&gateway, &upstream, &[("cache.ttl", "9s")], &route));
    assert!(gateway.read("1").await.is_hit());
    assert!(reload(&gateway, &upstream, &[("cache.expiry_margin", "9s")], &route));
    assert!(!gateway.read("1").await.is_hit());
}

/// By the new rules, the stored answer is throttling, which is never stored.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_whose_code_becomes_a_retry_code_is_no_longer_served() {
    let upstream = Scripted::start(|_, _| Action::json(r#"{"status":true,"code":"200001","message":"none"}"#)).await;
    let gateway = TestGateway::start(&upstream, &[]).await;
    assert!(gateway.read("1").await.is_stored_miss() && gateway.read("1").await.is_hit());
    assert!(reload(&gateway, &upstream, &[("upstream.retry_codes", "200001"), ("upstream.retries", "0")], ""));
    let reply = gateway.read("1").await;
    assert_eq!(reply.header("cache-status"), "zvgate; fwd=miss", "{reply:?}");
}

/// A request is handled by the rules under which it arrived; its answer is not served under other rules.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_a_request_from_before_a_reload_is_not_stored() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("cache.expiry_margin", "0s")]).await;
    platform.change("1", "issue", serde_json::json!({ "seconds": 300 })).await;
    let mut caller = std::net::TcpStream::connect(gateway.address).unwrap();
    let head = format!(
        "POST {READ} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        BODY.len()
    );
    caller.write_all(format!("{head}{}", &BODY[..5]).as_bytes()).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(reload(&gateway, &platform, &[("cache.expiry_margin", "10m")], ""));
    caller.write_all(&BODY.as_bytes()[5..]).unwrap();
    let mut reply = String::new();
    tokio::task::block_in_place(|| caller.read_to_string(&mut reply)).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 ") && !reply.contains("stored"), "{reply}");
    assert!(!gateway.read("1").await.is_hit() && !gateway.read("1").await.is_hit(), "it ends too soon to be stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_the_hosts_of_both_listeners() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let ask = async || {
        let page = http::Request::get("/config").header("host", "gate.internal");
        let page = crate::support::send(gateway.admin, page.body(http_body_util::Full::default()).unwrap()).await;
        (gateway.post(READ, &[("host", "gate.internal")], BODY).await.status, page.status)
    };
    assert_eq!(ask().await, (421, 421));
    assert!(reload(&gateway, &platform, &[("server.hosts", "gate.internal")], ""));
    assert_eq!(ask().await, (200, 200));
}

/// 200 reloads, a third of them of invalid files: no request fails, and the platform sees no burst.
#[tokio::test(flavor = "multi_thread")]
async fn reloads_by_sighup_under_load_fail_no_request() {
    let platform = Platform::rate_limited().await;
    let folder = tempfile::tempdir().unwrap();
    let config = |more: &str| write_config(folder.path(), &platform.url(), more);
    let (gateway, mut log, record) = serve(&config(""));
    let address = record["listen"].as_str().unwrap().parse().unwrap();
    let (on, answered) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let (on, answered) = (Arc::clone(&on), Arc::clone(&answered));
            tokio::spawn(async move {
                let mut connection = Caller::connect(address).await;
                while on.load(Ordering::SeqCst) {
                    let reply = connection.read(&caller.to_string()).await;
                    assert_eq!(reply.status, 200, "{reply:?}");
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    // Others read what is not cached, as fast as they are answered, so that every slot is used.
    let calls = Arc::new(AtomicU64::new(0));
    let missing: Vec<_> = (0..4)
        .map(|caller| {
            let (on, calls) = (Arc::clone(&on), Arc::clone(&calls));
            tokio::spawn(async move {
                let mut connection = Caller::connect(address).await;
                let mut number = 0;
                while on.load(Ordering::SeqCst) {
                    number += 1;
                    let reply = connection.read(&format!("9{caller}{number:09}")).await;
                    assert!([200, 429].contains(&reply.status), "{reply:?}");
                    calls.fetch_add(u64::from(reply.status == 200), Ordering::SeqCst);
                }
            })
        })
        .collect();
    tokio::task::block_in_place(|| {
        for number in 0..200 {
            let broken = number % 3 == 0;
            config(&if broken {
                "[cache]\nttl = 5\n".to_owned()
            } else {
                format!("[cache]\nttl = \"{}s\"\n", 1 + number % 7)
            });
            gateway.signal("HUP");
            let message = if broken { "configuration reload failed" } else { "configuration reloaded" };
            next_line(&mut log, message, folder.path());
            // Long enough for the platform to see a burst within its second.
            std::thread::sleep(Duration::from_millis(40));
            let before = answered.load(Ordering::SeqCst);
            while answered.load(Ordering::SeqCst) < before + 5 {
                std::thread::yield_now();
            }
        }
    });
    on.store(false, Ordering::SeqCst);
    for caller in callers.into_iter().chain(missing) {
        caller.await.unwrap();
    }
    assert!(calls.load(Ordering::SeqCst) > 40, "the slots were not used: {calls:?}");
    assert_eq!(platform.stats().await["refused"], serde_json::json!({}));
}

fn next_line(log: &mut impl BufRead, message: &str, folder: &Path) {
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    assert!(line.contains(message), "{line}");
    assert!(!line.contains("ERROR") || line.contains(folder.to_str().unwrap()), "the file is named: {line}");
}

/// Series of names that left go, those that stay continue, and those that come begin at zero.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_follow_the_names_of_the_configuration() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("zvgate.toml");
    let load = |name: &str| {
        let tenant = |name: &str, id: &str| {
            format!("[tenants.{name}]\nopen_id = \"{id}\"\ngrant_code = \"g\"\nopen_key = \"k\"\n")
        };
        let text = format!(
            "[upstream]\nbase_url = \"{}\"\n[[routes]]\npath = \"/v3/{name}\"\nkind = \"pass\"\n{}{}",
            platform.url(),
            tenant(name, name),
            tenant("stays", "s")
        );
        std::fs::write(&path, text).unwrap();
        Configuration::load(&Sources { file: Some(path.clone()), ..Sources::default() })
    };
    let gateway = TestGateway::of(load("first").unwrap()).await;
    gateway.post(READ, &[("x-zvgate-tenant", "stays")], r#"{"params":{"customerId":"1"}}"#).await;
    gateway.post("/v3/first", &[("x-zvgate-tenant", "first")], r#"{"params":{"customerId":"1"}}"#).await;
    let before = gateway.page("/metrics").await.text();
    assert!(before.contains("tenant=\"first\"") && before.contains("route=\"/v3/first\""));
    for number in 0..20 {
        assert!(gateway.inner.reload(load(&format!("n{number}"))));
    }
    let after = gateway.page("/metrics").await.text();
    for gone in ["\"first\"", "\"/v3/first\"", "\"n0\"", "\"/v3/n18\""] {
        assert!(!after.contains(gone), "{gone}");
    }
    assert_eq!(before.lines().count(), after.lines().count() + 1, "one status was counted for the first route");
    let attempts = format!("zvgate_upstream_attempts_total{{outcome=\"throttled\",route=\"{READ}\",tenant=\"stays\"}}");
    let error = attempts.replace("throttled", "error");
    assert!(gateway.metric(&attempts).await + gateway.metric(&error).await >= 1.0, "its counters continue");
    assert_eq!(gateway.metric(&attempts.replace("stays", "n19")).await, 0.0);
}

/// Paths beyond the first 256 of a wildcard share one limit, and one that gets a route of its own takes no other along.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_gets_its_own_route_keeps_the_limit_that_it_shared() {
    let upstream = Scripted::start(|_, _| Action::success("[]")).await;
    let overrides = [("limits.upstream.per", "1h"), ("limits.max_wait", "0s"), ("limits.upstream.rate", "4")];
    let wildcard = "[[routes]]\npath = \"/v3/**\"\nkind = \"pass\"\n";
    let gateway = TestGateway::with_file(&upstream, &overrides, wildcard).await;
    let body = r#"{"params":{}}"#;
    for number in 0..257 {
        assert_eq!(gateway.post(&format!("/v3/p{number}"), &[], body).await.status, 200);
    }
    let mut statuses = Vec::new();
    for _ in 0..2 {
        statuses.push(gateway.post("/v3/own", &[], body).await.status);
    }
    let own = format!("{wildcard}[[routes]]\npath = \"/v3/own\"\nkind = \"pass\"\n");
    assert!(gateway.inner.reload(Ok(configuration(&upstream, &overrides, Some(&own)))));
    for _ in 0..4 {
        statuses.push(gateway.post("/v3/own", &[], body).await.status);
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429], "four calls of the shared limit, one of them to another path");
}
