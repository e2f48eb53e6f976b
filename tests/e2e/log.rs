//! The log: access lines, the audit trail, and what is counted of lines that are dropped.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::program::{log_record, serve, write_config};
use crate::support::{Platform, READ, TestGateway, Upstream, WRITE, admin_page, metric, post, raw, until};
use crate::tls::Authority;

/// Waits until a series has this value: a connection is counted when it has ended.
async fn wait_for(admin: SocketAddr, name: &str, value: f64) {
    until(name, async || metric(admin, name).await.unwrap() == value).await;
}

fn addresses(record: &Value) -> (SocketAddr, SocketAddr) {
    let address = |key: &str| record[key].as_str().unwrap().parse().unwrap();
    (address("listen"), address("admin_listen"))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_writes_and_operators_leave_lines_that_explain_them() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let more = "[log]\naccess = \"all\"\n[limits.upstream]\nper = \"100ms\"\n";
    let (_gateway, mut log, record) = serve(&write_config(folder.path(), &platform.url(), more));
    let (address, admin) = addresses(&record);
    let mut line = |message: &str| tokio::task::block_in_place(|| log_record(&mut log, message));
    let loopback = |line: &Value| line["peer"].as_str().unwrap().starts_with("127.0.0.1:");

    let reply = post(address, READ, &[], r#"{"params":{"customerId":"1"}}"#).await;
    let read = line("request");
    assert_eq!((&read["method"], &read["path"], &read["status"]), (&"POST".into(), &READ.into(), &200.into()));
    assert_eq!(read["bytes"], reply.body.len());
    let call: [(&str, Value); 3] = [("attempts", 1.into()), ("code", "0".into()), ("cache", "miss".into())];
    for (key, value) in call {
        assert_eq!(read[key], value, "{key}: {read}");
    }
    // The first call waits until calls of an earlier process are no longer counted.
    let times = ["queue_ms", "upstream_ms", "ms"].map(|key| read[key].as_u64().unwrap());
    assert!(times[0] > 0 && times[0] + times[1] <= times[2], "{read}");
    post(address, READ, &[], r#"{"params":{"customerId":"1"}}"#).await;
    let hit = line("request");
    assert!(hit["cache"] == "hit" && hit["attempts"].is_null() && hit["code"].is_null(), "{hit}");
    assert!(loopback(&read), "{read}");
    let long = format!("/nowhere/{}", "x".repeat(1000));
    post(address, &long, &[], "{}").await;
    let rejected = line("request");
    assert_eq!((rejected["path"].as_str().unwrap().len(), &rejected["error"]), (128, &"unknown_route".into()));

    let body = r#"{"params":{"customerId":"1","bizId":"b-1","couponsCardList":["7","8"]}}"#;
    post(address, WRITE, &[], body).await;
    let write = line("write");
    let expected: [(&str, Value); 5] = [
        ("outcome", "refused".into()),
        ("biz_id", "b-1".into()),
        ("cards", 2.into()),
        ("attempts", 1.into()),
        ("tenant", "a".into()),
    ];
    for (key, value) in expected {
        assert_eq!(write[key], value, "{key}: {write}");
    }
    assert!(
        write["code"].is_string() && write["upstream_ms"].is_u64() && write["ms"].is_u64() && loopback(&write),
        "{write}"
    );
    post(address, WRITE, &[], "{}").await;
    while line("request")["status"] != 400 {}

    post(address, "/v1/invalidate", &[], r#"{"customerIds":["1"]}"#).await;
    let invalidated = line("invalidate");
    assert_eq!((&invalidated["dropped"], &invalidated["tenant"]), (&0.into(), &"a".into()));
    admin_page(admin, "/cache/customers/1").await;
    let inspected = line("inspect");
    assert!(inspected["customers"].is_string() && loopback(&inspected), "{inspected}");
}

/// What is under way counts, too.
#[tokio::test(flavor = "multi_thread")]
async fn the_line_of_a_request_that_timed_out_has_the_time_until_then() {
    let upstream = crate::scripted::Scripted::start(|_, _| crate::scripted::Action::Hang).await;
    let folder = tempfile::tempdir().unwrap();
    let more = "[limits.upstream]\nper = \"50ms\"\n";
    let (_gateway, mut log, record) = serve(&write_config(folder.path(), &upstream.url(), more));
    let (address, _) = addresses(&record);
    let body = r#"{"params":{"customerId":"1"}}"#;
    let reply = post(address, READ, &[("x-request-timeout-ms", "1500")], body).await;
    assert_eq!(reply.status, 504);
    let line = tokio::task::block_in_place(|| log_record(&mut log, "request"));
    let [queue, upstream, all] = ["queue_ms", "upstream_ms", "ms"].map(|key| line[key].as_u64().unwrap());
    assert!(line["attempts"] == 1 && upstream > 500 && queue + upstream <= all + 5, "{line}");
}

/// A failed write has its own line; one that was rejected before it was sent has that of a request.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_is_logged_once() {
    let folder = tempfile::tempdir().unwrap();
    let (_gateway, mut log, record) = serve(&write_config(folder.path(), "http://127.0.0.1:1", ""));
    let (address, _) = addresses(&record);
    let body = r#"{"params":{"customerId":"1"}}"#;
    assert_eq!(post(address, WRITE, &[], body).await.status, 502);
    let mut line = |message: &str| tokio::task::block_in_place(|| log_record(&mut log, message));
    let write = line("write");
    assert_eq!((&write["outcome"], &write["reason"]), (&"not-sent".into(), &"connection_refused".into()));
    assert_eq!(post(address, WRITE, &[], "{}").await.status, 400);
    assert_eq!(line("request")["status"], 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_counted_and_logged_at_a_bounded_rate() {
    let platform = Platform::unlimited().await;
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let tls = format!("[server.tls]\ncert = \"{}\"\nkey = \"{}\"\n", authority.path("cert"), authority.path("key"));
    let (_secured, mut log, record) = serve(&write_config(folder.path(), &platform.url(), &tls));
    let (address, admin) = addresses(&record);
    for _ in 0..20 {
        tokio::task::spawn_blocking(move || raw(address, b"GET / HTTP/1.1\r\n\r\n")).await.unwrap();
    }
    let line = tokio::task::block_in_place(|| log_record(&mut log, "TLS handshake failed"));
    assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:") && line["cause"].is_string(), "{line}");
    wait_for(admin, "zvgate_tls_handshake_failures_total", 20.0).await;

    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), &platform.url(), "");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("[server]\n", "[server]\nheader_timeout = \"300ms\"\nmax_head = \"8KiB\"\n"))
        .unwrap();
    let (_plain, mut log, record) = serve(&config);
    let (address, admin) = addresses(&record);
    let long = format!("POST {READ} HTTP/1.1\r\nX-A: {}\r\n\r\n", "x".repeat(9000));
    for (reason, bytes) in [
        ("not_http", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("framing", format!("POST {READ} HTTP/1.1\r\nHost : a\r\n\r\n").into_bytes()),
        ("head_size", long.into_bytes()),
        ("head_timeout", format!("POST {READ} HTTP/1.1\r\nHost: ").into_bytes()),
    ] {
        tokio::task::spawn_blocking(move || raw(address, &bytes)).await.unwrap();
        let name = format!("zvgate_rejected_requests_total{{reason=\"{reason}\"}}");
        wait_for(admin, &name, 1.0).await;
        if reason == "not_http" {
            let line = tokio::task::block_in_place(|| log_record(&mut log, "request rejected by the parser"));
            assert_eq!(line["reason"], "not_http", "{line}");
        }
    }
}

/// A slow reader of the log loses lines of requests, which are counted, and none of a write.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_other_lines_drops_no_line_of_a_write() {
    const WRITES: usize = 50;
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let more = "[limits.upstream]\nrate = 0\n";
    let (mut gateway, log, record) = serve(&write_config(folder.path(), &platform.url(), more));
    let (address, admin) = addresses(&record);
    let flood = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let request = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".repeat(500);
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        for _ in 0..40 {
            stream.write_all(&request).unwrap();
            let mut answered = 0;
            while answered < 500 {
                let mut line = String::new();
                assert!(reader.read_line(&mut line).unwrap() > 0);
                answered += usize::from(line.contains("HTTP/1.1 404"));
            }
        }
    });
    flood.await.unwrap();
    for number in 0..WRITES {
        post(address, WRITE, &[], &format!(r#"{{"params":{{"customerId":"{number}"}}}}"#)).await;
    }
    let dropped = metric(admin, "zvgate_log_lines_dropped_total").await.unwrap();
    assert!(dropped > 1000.0);
    let reading = tokio::task::spawn_blocking(move || log.lines().map_while(Result::ok).collect::<Vec<_>>());
    // Longer than it takes to report what was dropped.
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    gateway.signal("TERM");
    tokio::task::block_in_place(|| gateway.code());
    let lines = reading.await.unwrap();
    let writes = lines.iter().filter(|line| line.contains("\"message\":\"write\"")).count();
    assert_eq!(writes, WRITES, "of {} lines", lines.len());
    let lines = lines.iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
    // Each line reports those since the last one that was certainly written: if one more was dropped just then, all of them again.
    let reported: Vec<f64> = lines.filter_map(|line| line["other"].as_f64()).collect();
    let (sum, most) = (reported.iter().sum::<f64>(), reported.iter().copied().fold(0.0, f64::max));
    assert!(sum == dropped || most == dropped, "the log itself says how many: {reported:?} of {dropped}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_be_refused_is_reported_until_a_call_succeeds() {
    let platform = Platform::unlimited().await;
    platform.keys(&["another key"]).await;
    let gateway = TestGateway::start(&platform, &[("upstream.retries", "0"), ("upstream.follow_clock", "false")]).await;
    assert_eq!(gateway.metric("zvgate_key_suspect{tenant=\"one\"}").await, 0.0);
    for customer in ["1", "2", "3"] {
        assert_eq!(gateway.read(customer).await.json()["status"], false);
        gateway.clock.advance(std::time::Duration::from_secs(31));
    }
    assert_eq!(gateway.metric("zvgate_key_suspect{tenant=\"one\"}").await, 1.0);
    assert_eq!(gateway.metric("zvgate_key_suspect{tenant=\"two\"}").await, 0.0);
    gateway.read("4").await;
    let limited = gateway.read("5").await;
    limited.assert_error(429, "upstream_limited");
    assert!(limited.text().contains("signing key may be refused"), "{limited:?}");
    platform.keys(&[crate::support::MERCHANTS[0].2]).await;
    gateway.clock.advance(std::time::Duration::from_secs(31));
    assert_eq!(gateway.read("6").await.json()["status"], true);
    assert_eq!(gateway.metric("zvgate_key_suspect{tenant=\"one\"}").await, 0.0);
}

/// One line for all of them, and each is counted.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_rejected_by_a_limit_are_reported_when_that_begins() {
    let log = crate::support::captured_log();
    let counted = "zvgate_limited_total{caller=\"anonymous\",limit=\"upstream\"}";
    let upstream = crate::scripted::Scripted::start(|_, _| crate::scripted::Action::Hang).await;
    let of_slots = [("limits.upstream.rate", "1"), ("limits.upstream.per", "1h"), ("limits.max_wait", "0s")];
    let in_flight = [("limits.upstream.rate", "0"), ("upstream.max_inflight", "1"), ("limits.max_wait", "0s")];
    for (overrides, reason, status) in [(of_slots, "no_slot", 429), (in_flight, "too_many_in_flight", 503)] {
        let gateway = std::sync::Arc::new(TestGateway::start(&upstream, &overrides).await);
        let before = upstream.seen().len();
        let first = {
            let gateway = std::sync::Arc::clone(&gateway);
            tokio::spawn(async move { gateway.read("0").await })
        };
        while upstream.seen().len() == before {
            tokio::task::yield_now().await;
        }
        for customer in ["1", "2", "3"] {
            assert_eq!(gateway.read(customer).await.status, status, "{reason}");
        }
        assert_eq!(gateway.metric(counted).await, 3.0, "{reason}");
        first.abort();
    }
    let lines = log.lines();
    let reasons: Vec<_> = lines.iter().filter(|line| line["message"] == "upstream calls rejected").collect();
    let shown = |line: &&Value| [&line["level"], &line["tenant"], &line["route"], &line["reason"]].map(Clone::clone);
    let expected = ["no_slot", "too_many_in_flight"].map(|reason| ["WARN", "one", READ, reason].map(Value::from));
    assert_eq!(reasons.iter().map(shown).collect::<Vec<_>>(), expected, "{lines:#?}");
}

/// A mistyped key must not bring a customer's id into the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_admin_key_is_logged_without_the_customer() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), &platform.url(), "");
    let text = std::fs::read_to_string(&config).unwrap();
    let key = format!("[server]\nadmin_key_sha256 = \"{}\"\n", "ab".repeat(32));
    std::fs::write(&config, text.replace("[server]\n", &key)).unwrap();
    let (_gateway, mut log, record) = serve(&config);
    let (_, admin) = addresses(&record);
    for page in ["/cache/customers/383933091455959041", "/cache/customers/42?tenant=a"] {
        assert_eq!(admin_page(admin, page).await.status, 401);
        let line = tokio::task::block_in_place(|| log_record(&mut log, "admin key refused"));
        assert!(line["path"] == "/cache/customers/" && !line.to_string().contains("3839"), "{line}");
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    }
}
