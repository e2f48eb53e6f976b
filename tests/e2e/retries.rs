//! Retries: which attempts are retried, and which never are.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::json;

use crate::scripted::{Action, Scripted, http_text};
use crate::support::{Platform, READ, Reply, TestGateway, WRITE, envelope};

const EMPTY: &str = r#"{"status":true,"code":0,"data":[]}"#;

fn is_success(reply: &Reply) -> bool {
    reply.status == 200 && reply.text().contains("\"code\":0")
}

/// Every second call fails: each read that fails is retried once, as long as the budget allows it.
#[tokio::test(flavor = "multi_thread")]
async fn reads_are_retried_within_the_retry_budget() {
    for fault in ["http500", "reset", "truncate", "hang", "throttle"] {
        let platform = Platform::unlimited().await;
        let overrides = [("upstream.attempt_timeout", "300ms"), ("limits.upstream.per", "50ms")];
        let gateway = TestGateway::start(&platform, &overrides).await;
        platform.faults(json!({ "fault": fault, "every": 2 })).await;
        for round in 0..2 {
            for customer in 0..4 {
                let reply = gateway.read(&format!("{round}-{customer}")).await;
                assert!(is_success(&reply), "{fault} {round} {customer}: {reply:?}");
            }
            assert!(!is_success(&gateway.read("over").await), "{fault}: at most three retries in ten seconds");
            assert_eq!(platform.requests(READ).await, 8 * (round + 1), "{fault}");
            gateway.clock.advance(Duration::from_secs(31));
        }
        assert_eq!(platform.stats().await["refused"], json!({}), "{fault}: each attempt has a new signature");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_retry_budget_grows_with_the_number_of_reads() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("limits.upstream.rate", "0")]).await;
    for customer in 0..50 {
        assert!(is_success(&gateway.read(&customer.to_string()).await));
    }
    platform.faults(json!({ "fault": "http500", "every": 4 })).await;
    let mut failed = 0;
    for customer in 50..90 {
        failed += u32::from(!is_success(&gateway.read(&customer.to_string()).await));
    }
    assert!(platform.requests(READ).await <= 90 + 90 / 5);
    assert_eq!(failed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_write_and_no_pass_is_retried() {
    for fault in ["http500", "reset", "truncate", "hang", "throttle"] {
        let platform = Platform::unlimited().await;
        let overrides = [("upstream.attempt_timeout", "200ms"), ("upstream.write_timeout", "200ms")];
        let gateway = TestGateway::with_file(
            &platform,
            &overrides,
            "[[routes]]\npath = \"/v3/crm/coupon/status\"\nkind = \"pass\"\n",
        )
        .await;
        platform.faults(json!({ "fault": fault })).await;
        for path in [WRITE, "/v3/crm/coupon/status"] {
            let reply = gateway.post(path, &[], r#"{"params":{"bizId":"1","customerId":"1"}}"#).await;
            assert!(!is_success(&reply), "{fault}: {reply:?}");
            assert_eq!(platform.requests(path).await, 1, "{fault} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_response_is_returned_if_no_slot_is_left_for_a_retry() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("limits.upstream.rate", "1"), ("limits.upstream.per", "1h")]).await;
    platform.faults(json!({ "fault": "http503" })).await;
    let reply = gateway.read("1").await;
    assert_eq!((reply.status, reply.header("retry-after"), reply.header("proxy-status")), (503, "7", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_retried_with_the_cache_off_too() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("cache.mode", "off")]).await;
    platform.faults(json!({ "fault": "reset", "times": 2 })).await;
    assert!(is_success(&gateway.read("1").await));
    assert_eq!(platform.requests(READ).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn permanent_failures_are_not_retried() {
    let answers = [
        http_text("200 OK", "", "not json"),
        http_text("200 OK", "", r#"{"status":false,"code":100001}"#),
        http_text("200 OK", "", r#"{"status":true,"code":200001}"#),
        http_text("404 Not Found", "", "x"),
        http_text("302 Found", "Location: /\r\n", ""),
    ];
    for answer in answers {
        let bytes = answer.clone();
        let upstream = Scripted::start(move |_, _| Action::Respond(bytes.clone())).await;
        let gateway = TestGateway::start(&upstream, &[]).await;
        gateway.read("1").await;
        assert_eq!(upstream.seen().len(), 1, "{}", String::from_utf8_lossy(&answer));
    }
    let upstream = Scripted::start(|_, _| Action::Close).await;
    let gateway = TestGateway::start(&upstream, &[("upstream.retries", "0")]).await;
    gateway.read("1").await.assert_error(502, "upstream_failed");
    assert_eq!(upstream.seen().len(), 1, "upstream.retries");
}

/// The upstream closes an idle connection once it has received a request on it. The read is sent again, even though the
/// budget does not allow so many retries.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_on_a_connection_that_just_closed_is_sent_again() {
    let upstream =
        Scripted::start(
            |number, _| {
                if number % 2 == 0 { Action::Respond(http_text("200 OK", "", EMPTY)) } else { Action::Close }
            },
        )
        .await;
    let gateway = TestGateway::start(&upstream, &[("limits.upstream.rate", "0")]).await;
    for customer in 0..20 {
        let reply = gateway.read(&customer.to_string()).await;
        assert!(is_success(&reply), "{customer}: {reply:?}");
    }
    let seen = upstream.seen();
    let tokens: HashSet<String> = seen.iter().map(|request| envelope(request)["token"].to_string()).collect();
    assert_eq!((seen.len(), tokens.len()), (39, 39), "each attempt has a new signature");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_no_caller_waits_for_is_not_retried() {
    let upstream = Scripted::start(|_, _| Action::Hang).await;
    let overrides = [("upstream.attempt_timeout", "200ms"), ("upstream.retries", "9")];
    let gateway = TestGateway::start(&upstream, &overrides).await;
    let reply = gateway.post(READ, &[("x-request-timeout-ms", "100")], r#"{"params":{"customerId":"1"}}"#).await;
    reply.assert_error(504, "upstream_timeout");
    let timeouts = format!("zvgate_upstream_attempts_total{{outcome=\"timeout\",route=\"{READ}\",tenant=\"one\"}}");
    while gateway.metric(&timeouts).await < 1.0 {
        tokio::task::yield_now().await;
    }
    gateway.read("2").await.assert_error(504, "upstream_timeout");
    let about_one = upstream.seen().iter().filter(|request| request.contains("\"1\"")).count();
    assert_eq!(about_one, 1);
}

/// The next call in the queue gets its slot.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_no_caller_waits_for_leaves_the_queue() {
    let upstream = Scripted::start(|_, _| Action::success("[]")).await;
    let file = "[[routes]]\npath = \"/v3/pass\"\nkind = \"pass\"\npace = { rate = 1, per = \"600ms\" }\n";
    let overrides = [("limits.upstream.rate", "1"), ("limits.upstream.per", "600ms")];
    let gateway = TestGateway::with_file(&upstream, &overrides, file).await;
    for path in [READ, "/v3/pass"] {
        let body = |customer: &str| format!(r#"{{"params":{{"customerId":"{customer}"}}}}"#);
        gateway.post(path, &[], &body("first")).await;
        let timed_out = gateway.post(path, &[("x-request-timeout-ms", "50")], &body("left")).await;
        assert!(timed_out.status == 504 || timed_out.status == 429, "{timed_out:?}");
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
            body("gone").len(),
            body("gone")
        );
        let mut disconnected = std::net::TcpStream::connect(gateway.address).unwrap();
        std::io::Write::write_all(&mut disconnected, request.as_bytes()).unwrap();
        drop(disconnected);
        assert!(is_success(&gateway.post(path, &[], &body("last")).await));
        let sent: Vec<_> = upstream.seen().iter().map(|request| envelope(request)["params"].to_string()).collect();
        assert!(sent.iter().all(|params| params.contains("first") || params.contains("last")), "{sent:?}");
    }
    assert_eq!(upstream.seen().len(), 4);
}

/// By seconds or a date, with any status or code that says to wait, and for a minute at most.
#[tokio::test(flavor = "multi_thread")]
async fn retry_after_of_the_platform_pauses_its_route() {
    for (status, body, retry_after, pause) in [
        ("503 Service Unavailable", "{}", "7", 7),
        ("429 Too Many Requests", "{}", "7", 7),
        ("200 OK", r#"{"status":false,"code":110007}"#, "7", 7),
        ("503 Service Unavailable", "{}", "86400", 60),
    ] {
        let upstream = Scripted::start(move |number, _| {
            let headers = format!("Retry-After: {retry_after}\r\n");
            if number == 0 { Action::Respond(http_text(status, &headers, body)) } else { Action::success("[]") }
        })
        .await;
        let gateway = TestGateway::start(&upstream, &[("upstream.retries", "0"), ("limits.max_wait", "0s")]).await;
        gateway.read("1").await;
        let limited = gateway.read("2").await;
        limited.assert_error(429, "upstream_limited");
        let seconds: u64 = limited.header("retry-after").parse().unwrap();
        assert!((pause - 1..=pause).contains(&seconds), "{status} {seconds}");
        gateway.clock.advance(Duration::from_secs(pause - 1));
        gateway.read("2").await.assert_error(429, "upstream_limited");
        gateway.clock.advance(Duration::from_secs(2));
        assert_eq!(gateway.read("2").await.status, 200, "{status}");
    }
}

/// The upstream says that an idle connection took too long, and closes it, just when it is used.
#[tokio::test(flavor = "multi_thread")]
async fn a_408_on_an_idle_connection_costs_no_read() {
    let upstream = Scripted::start(|number, _| match number % 2 {
        0 => Action::Respond(http_text("200 OK", "", EMPTY)),
        _ => Action::RespondAndClose(http_text("408 Request Timeout", "Connection: close\r\n", "")),
    })
    .await;
    let gateway = TestGateway::start(&upstream, &[("limits.upstream.rate", "0"), ("upstream.retries", "0")]).await;
    for customer in 0..20 {
        let reply = gateway.read(&customer.to_string()).await;
        assert!(is_success(&reply), "{customer}: {reply:?}");
    }
    assert_eq!(upstream.seen().len(), 39);
}

/// The first attempt was sent and broke, and nothing listens there any more for the second.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_cannot_be_sent_leaves_the_outcome_of_what_was() {
    let upstream = Scripted::start(|_, _| Action::Hang).await;
    let gateway = std::sync::Arc::new(TestGateway::start(&upstream, &[]).await);
    let other = std::sync::Arc::clone(&gateway);
    let read = tokio::spawn(async move { other.read("1").await });
    while upstream.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(upstream);
    let reply = read.await.unwrap();
    reply.assert_error(502, "upstream_failed");
    assert_eq!(reply.header("proxy-status"), "zvgate; error=connection_terminated", "it may have been executed");
}
