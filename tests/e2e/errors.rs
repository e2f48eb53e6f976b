//! Gateway errors, each with its status and headers, and the order of the checks.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use http_body_util::Full;
use serde_json::json;

use crate::scripted::{Action, Scripted, http_text};
use crate::support::{Caller, Platform, READ, TestGateway, WRITE, loopback, raw, send};

const BODY: &str = r#"{"params":{"customerId":"1"}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_rejection_has_its_status_and_error_and_sends_nothing_upstream() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("server.max_body", "1KiB")]).await;
    let deep = format!(r#"{{"params":{{"customerId":"1","a":{}{}}}}}"#, "[".repeat(40), "]".repeat(40));
    let long = format!(r#"{{"params":{{"customerId":"{}"}}}}"#, "1".repeat(2000));
    for body in [
        "",
        "{",
        "[]",
        r#"{"params":"{}"}"#,
        r#"{"nothing":1}"#,
        r#"{"params":{}}"#,
        r#"{"params":{"customerId":""}}"#,
        r#"{"params":{"customerId":"1","customerId":"2"}}"#,
        r#"{"params":{"customerId":"\ud800"}}"#,
        &deep,
    ] {
        gateway.post(READ, &[], body).await.assert_error(400, "bad_request");
    }
    gateway.post(READ, &[("x-request-timeout-ms", "soon")], BODY).await.assert_error(400, "bad_request");
    gateway.post(READ, &[("x-zvgate-tenant", "three")], BODY).await.assert_error(400, "unknown_tenant");
    let other = r#"{"openId":"a","grantCode":"b","params":{"customerId":"1"}}"#;
    gateway.post(READ, &[], other).await.assert_error(400, "unknown_tenant");
    gateway.post("/v3/other", &[], BODY).await.assert_error(404, "unknown_route");
    gateway.post("/v1/customers", &[], "{}").await.assert_error(404, "unknown_route");
    gateway.post(READ, &[("content-type", "text/plain")], BODY).await.assert_error(415, "unsupported_media_type");
    for encoding in ["gzip", "br", "identity, gzip"] {
        let reply = gateway.post(READ, &[("content-encoding", encoding)], BODY).await;
        reply.assert_error(415, "unsupported_media_type");
    }
    for path in ["?useStatus=1", "?"].map(|query| format!("{READ}{query}")) {
        gateway.post(&path, &[], BODY).await.assert_error(400, "bad_request");
    }
    gateway.post(READ, &[], &long).await.assert_error(413, "body_too_large");
    let chunked = format!(
        "POST {READ} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n{}\r\n0\r\n\r\n",
        "x".repeat(2000)
    );
    assert!(raw(gateway.address, chunked.as_bytes()).starts_with("HTTP/1.1 413"));
    assert_eq!(platform.stats().await["requests"], json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_405_names_the_allowed_method() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let request = Request::builder().method(method).uri(READ).header("host", "a").body(Full::default()).unwrap();
        let reply = send(gateway.address, request).await;
        reply.assert_error(405, "method_not_allowed");
        assert_eq!(reply.header("allow"), "POST");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_run_in_the_documented_order() {
    let platform = Platform::unlimited().await;
    let overrides = [("limits.caller.rate", "1"), ("limits.caller.per", "1h"), ("server.max_body", "64B")];
    let gateway = TestGateway::start(&platform, &overrides).await;
    let long = "x".repeat(100);
    let wrong = [("content-type", "text/plain"), ("x-zvgate-tenant", "three")];
    gateway.post("/nowhere", &wrong, &long).await.assert_error(404, "unknown_route");
    let get =
        Request::get(READ).header("host", "a").header("content-type", "text/plain").body(Full::default()).unwrap();
    send(gateway.address, get).await.assert_error(405, "method_not_allowed");
    gateway.post(READ, &wrong, &long).await.assert_error(415, "unsupported_media_type");
    gateway.post(READ, &wrong, &long).await.assert_error(429, "caller_limited");

    let gateway = TestGateway::start(&platform, &[("server.max_body", "64B")]).await;
    gateway.post(READ, &[("x-zvgate-tenant", "three")], &long).await.assert_error(413, "body_too_large");
    gateway.post(READ, &[("x-zvgate-tenant", "three")], "{").await.assert_error(400, "bad_request");
    gateway.post(READ, &[("x-zvgate-tenant", "three")], r#"{"params":{}}"#).await.assert_error(400, "bad_request");
    gateway.post(READ, &[("x-zvgate-tenant", "three")], BODY).await.assert_error(400, "unknown_tenant");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limited_caller_gets_retry_after_and_ratelimit_headers() {
    let platform = Platform::unlimited().await;
    let overrides = [("limits.caller.rate", "2"), ("limits.caller.per", "100s"), ("limits.caller.burst", "3")];
    let gateway = TestGateway::start(&platform, &overrides).await;
    for _ in 0..3 {
        assert_eq!(gateway.read("1").await.status, 200, "hits count too");
    }
    let limited = gateway.read("1").await;
    limited.assert_error(429, "caller_limited");
    assert_eq!(limited.header("ratelimit-policy"), "\"caller\";q=2;w=100");
    assert_eq!(limited.header("ratelimit"), format!("\"caller\";r=0;t={}", limited.header("retry-after")));
    assert!((45..=50).contains(&limited.header("retry-after").parse::<u32>().unwrap()));
    assert_eq!(gateway.metric("zvgate_limited_total{caller=\"anonymous\",limit=\"caller\"}").await, 1.0);
}

/// A request whose task panics is a gateway error, not a disconnected caller.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_counted_as_a_500() {
    let upstream = Scripted::start(|_, _| Action::Hang).await;
    let gateway = TestGateway::start(&upstream, &[]).await;
    let (listener, inner) = (tokio::net::TcpListener::bind(loopback()).await.unwrap(), Arc::clone(&gateway.inner));
    let address = listener.local_addr().unwrap();
    // Serves one request with the gateway, and panics while it is handled.
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(move |request| {
            let handled = Arc::clone(&inner).handle(request, zvgate::gateway::Capacity::Available, loopback());
            async move {
                let mut handled = std::pin::pin!(handled);
                let waited = tokio::time::timeout(Duration::from_millis(200), handled.as_mut()).await;
                assert!(waited.is_ok(), "the expected panic");
                Ok::<_, std::convert::Infallible>(waited.unwrap().0.map(Full::new))
            }
        });
        let stream = hyper_util::rt::TokioIo::new(stream);
        hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await.ok();
    });
    let body = r#"{"params":{"customerId":"1"}}"#;
    let request = format!(
        "POST {READ} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(tokio::task::spawn_blocking(move || raw(address, request.as_bytes())).await.unwrap(), "");
    assert!(served.await.unwrap_err().is_panic());
    let counted = async |status: u16| {
        gateway
            .metric(&format!("zvgate_requests_total{{caller=\"anonymous\",route=\"{READ}\",status=\"{status}\"}}"))
            .await
    };
    assert_eq!((counted(500).await, counted(499).await), (1.0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_clock_that_is_far_behind_is_a_negative_skew() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    gateway.clock.step_wall(3_000_000_000);
    gateway.read("1").await;
    let skew = gateway.metric("zvgate_clock_skew_seconds").await;
    assert!((-3_000_002.0..-2_999_997.0).contains(&skew), "{skew}");
}

#[tokio::test(flavor = "multi_thread")]
async fn durations_of_hits_are_measured() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    gateway.read("1").await;
    for _ in 0..10 {
        assert!(gateway.read("1").await.is_hit());
    }
    let of_hits = |what: &str| format!("zvgate_request_duration_seconds_{what}{{cache=\"hit\",route=\"{READ}\"}}");
    assert_eq!(gateway.metric(&of_hits("count")).await, 10.0);
    assert!(gateway.metric(&of_hits("sum")).await > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_body_gets_a_408_and_a_slow_head_closes_the_connection() {
    let platform = Platform::unlimited().await;
    let overrides =
        [("server.body_timeout", "200ms"), ("server.header_timeout", "300ms"), ("server.idle_timeout", "500ms")];
    let gateway = TestGateway::start(&platform, &overrides).await;
    let head = format!(
        "POST {READ} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 29\r\n\r\n{{\"par"
    );
    let reply = raw(gateway.address, head.as_bytes());
    assert!(reply.starts_with("HTTP/1.1 408") && reply.contains("\"error\":\"too_slow\""), "{reply}");
    let took = format!("zvgate_request_duration_seconds_sum{{cache=\"none\",route=\"{READ}\"}}");
    assert!(gateway.metric(&took).await >= 0.2, "its duration is measured");
    assert_eq!(raw(gateway.address, b"POST /v3/crm"), "", "an incomplete head closes the connection");
    assert_eq!(raw(gateway.address, b""), "", "so does no head at all");
    let whole = format!(
        "POST {READ} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 29\r\n\r\n{BODY}"
    );
    let reply = raw(gateway.address, whole.as_bytes());
    assert!(reply.starts_with("HTTP/1.1 200"), "an idle connection is closed after its response: {reply}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_may_be_idle_for_longer_than_the_header_timeout() {
    let platform = Platform::unlimited().await;
    let gateway =
        TestGateway::start(&platform, &[("server.header_timeout", "100ms"), ("server.idle_timeout", "60s")]).await;
    let mut caller = Caller::connect(gateway.address).await;
    assert!(caller.read("1").await.is_stored_miss());
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(caller.read("1").await.is_hit());
}

/// Pipelined requests whose responses are not read fill every buffer; the connection is then closed like an idle one.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_caller_does_not_read_is_closed() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("server.idle_timeout", "400ms")]).await;
    gateway.read("1").await;
    let request = format!(
        "POST {READ} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 29\r\n\r\n{BODY}"
    );
    let (mut stream, many) = (std::net::TcpStream::connect(gateway.address).unwrap(), request.repeat(100));
    stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    while std::io::Write::write_all(&mut stream, many.as_bytes()).is_ok() {}
    while gateway.metric("zvgate_connections").await > 0.0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exhausted_max_inflight_is_a_503() {
    let upstream = Scripted::start(|_, _| Action::Hang).await;
    let overrides = [("upstream.max_inflight", "1"), ("limits.max_wait", "200ms"), ("upstream.retries", "0")];
    let gateway = Arc::new(TestGateway::start(&upstream, &overrides).await);
    let hung = Arc::clone(&gateway);
    let hung = tokio::spawn(async move { hung.read("1").await });
    while upstream.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    gateway.read("2").await.assert_error(503, "unavailable");
    let other_tenant = gateway.post(READ, &[("x-zvgate-tenant", "two"), ("x-request-timeout-ms", "300")], BODY).await;
    other_tenant.assert_error(504, "upstream_timeout");
    hung.await.unwrap().assert_error(504, "upstream_timeout");
    assert_eq!(upstream.seen().len(), 2, "the rejected request was not sent");
}

/// A listener whose queue is full accepts no connection at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_accepts_no_connection_is_a_502_in_time() {
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
    struct Full(String);
    impl crate::support::Upstream for Full {
        fn url(&self) -> String {
            self.0.clone()
        }
    }
    let full = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&full, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    listen(&full, 0).unwrap();
    let address = std::net::SocketAddr::try_from(getsockname(&full).unwrap()).unwrap();
    let _waiting = std::net::TcpStream::connect(address).unwrap();
    let gateway =
        TestGateway::start(&Full(format!("http://{address}")), &[("upstream.connect_timeout", "200ms")]).await;
    let reply = gateway.post(READ, &[("x-request-timeout-ms", "9000")], BODY).await;
    reply.assert_error(502, "upstream_failed");
    assert_eq!(reply.header("proxy-status"), "zvgate; error=connection_timeout");
    gateway.post(WRITE, &[], BODY).await.assert_error(502, "upstream_failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_max_connections_get_a_503() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("server.max_connections", "2")]).await;
    let mut first = Caller::connect(gateway.address).await;
    let mut second = Caller::connect(gateway.address).await;
    assert_eq!((first.read("1").await.status, second.read("1").await.status), (200, 200));
    gateway.read("1").await.assert_error(503, "unavailable");
    drop(first);
    while gateway.read("1").await.status == 503 {
        tokio::task::yield_now().await;
    }
    assert!(gateway.metric("zvgate_limited_total{caller=\"anonymous\",limit=\"connections\"}").await >= 1.0);
    let rejected = format!("zvgate_requests_total{{caller=\"anonymous\",route=\"{READ}\",status=\"503\"}}");
    assert!(gateway.metric(&rejected).await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_invalid_upstream_response_is_a_502() {
    for (name, bytes) in [
        ("closed", Vec::new()),
        ("cut", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"stat".to_vec()),
        ("redirect", http_text("302 Found", "Location: /elsewhere\r\n", "")),
        ("switching protocols", b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec()),
        ("not http", b"220 smtp ready\r\n\r\n".to_vec()),
        ("oversized", http_text("200 OK", "", &"x".repeat(3000))),
        ("oversized, unannounced", format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(3000)).into_bytes()),
    ] {
        let upstream = Scripted::start(move |_, _| Action::RespondAndClose(bytes.clone())).await;
        let gateway =
            TestGateway::start(&upstream, &[("upstream.max_response", "2KiB"), ("upstream.retries", "0")]).await;
        for _ in 0..2 {
            gateway.read("1").await.assert_error(502, "upstream_failed");
        }
        assert_eq!(upstream.seen().len(), 2, "{name}: an error is never stored");
    }
    let stopped = Scripted::start(|_, _| Action::Hang).await;
    let gateway = TestGateway::start(&stopped, &[]).await;
    drop(stopped);
    let rejected = gateway.read("1").await;
    rejected.assert_error(502, "upstream_failed");
    assert_eq!(rejected.header("proxy-status"), "zvgate; error=connection_refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_hangs_is_a_504_in_time() {
    let upstream = Scripted::start(|_, _| Action::Hang).await;
    let gateway = TestGateway::start(&upstream, &[("upstream.attempt_timeout", "200ms")]).await;
    gateway.read("1").await.assert_error(504, "upstream_timeout");
    let gateway = TestGateway::start(&upstream, &[("server.request_timeout", "200ms")]).await;
    gateway.read("1").await.assert_error(504, "upstream_timeout");
    let gateway = TestGateway::start(&upstream, &[]).await;
    gateway.post(READ, &[("x-request-timeout-ms", "200")], BODY).await.assert_error(504, "upstream_timeout");
    let attempts = format!("zvgate_upstream_attempts_total{{outcome=\"timeout\",route=\"{READ}\",tenant=\"one\"}}");
    while gateway.metric(&attempts).await < 1.0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Each byte arrives in time, but the response never ends.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_trickles_is_a_504_in_time() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 4096]).await.ok();
                let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n";
                let mut sent = tokio::io::AsyncWriteExt::write_all(&mut stream, head).await;
                while sent.is_ok() {
                    sent = tokio::io::AsyncWriteExt::write_all(&mut stream, b" ").await;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
        }
    });
    struct Trickling(String);
    impl crate::support::Upstream for Trickling {
        fn url(&self) -> String {
            self.0.clone()
        }
    }
    let overrides = [("server.request_timeout", "2s"), ("server.write_request_timeout", "2s")];
    let gateway = TestGateway::start(&Trickling(url), &overrides).await;
    gateway.read("1").await.assert_error(504, "upstream_timeout");
    gateway.post(WRITE, &[], BODY).await.assert_error(504, "outcome_unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_a_response_has_an_unknown_outcome_once_it_was_sent() {
    let upstream = Scripted::start(|_, _| Action::RespondAndClose(Vec::new())).await;
    let gateway = TestGateway::start(&upstream, &[]).await;
    gateway.post(WRITE, &[], BODY).await.assert_error(502, "outcome_unknown");
    let redirecting =
        Scripted::start(|_, _| Action::Respond(http_text("307 Temporary Redirect", "Location: /\r\n", ""))).await;
    let gateway = TestGateway::start(&redirecting, &[]).await;
    gateway.post(WRITE, &[], BODY).await.assert_error(502, "outcome_unknown");
    let hung = Scripted::start(|_, _| Action::Hang).await;
    let gateway = TestGateway::start(&hung, &[("upstream.write_timeout", "200ms")]).await;
    gateway.post(WRITE, &[], BODY).await.assert_error(504, "outcome_unknown");
    drop(hung);
    gateway.post(WRITE, &[], BODY).await.assert_error(502, "upstream_failed");
    assert_eq!((upstream.seen().len(), redirecting.seen().len()), (1, 1), "a write is never retried");
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_responses_pass_through_with_their_status() {
    let upstream = Scripted::start(|number, _| {
        let headers = "Content-Type: text/plain\r\nContent-Encoding: identity\r\nRetry-After: 7\r\nX-Secret: 1\r\nSet-Cookie: a=b\r\n";
        Action::Respond(http_text(["503 Busy", "404 Not Found", "200 OK"][number % 3], headers, "upstream's own words"))
    })
    .await;
    let file = "[[routes]]\npath = \"/v3/pass\"\nkind = \"pass\"\n";
    let gateway = TestGateway::with_file(&upstream, &[("upstream.retries", "0")], file).await;
    for (status, path) in [(503, READ), (404, READ), (200, "/v3/pass")] {
        let reply = gateway.post(path, &[], BODY).await;
        gateway.clock.advance(Duration::from_secs(8));
        assert_eq!((reply.status, reply.text().as_str()), (status, "upstream's own words"));
        assert_eq!((reply.header("retry-after"), reply.header("content-encoding")), ("7", "identity"));
        let cache_status = if path == READ { "zvgate; fwd=miss" } else { "zvgate; fwd=bypass" };
        assert_eq!((reply.header("content-type"), reply.header("cache-status")), ("text/plain", cache_status));
        assert_eq!((reply.header("x-secret"), reply.header("set-cookie"), reply.header("proxy-status")), ("", "", ""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_valid_request_id_is_kept_and_others_are_replaced() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    assert_eq!(gateway.post(READ, &[("x-request-id", "a-1.B_2")], BODY).await.header("x-request-id"), "a-1.B_2");
    let rejected = gateway.post("/nowhere", &[("x-request-id", "kept")], BODY).await;
    assert_eq!(rejected.json()["requestId"], "kept");
    let made = gateway.post(READ, &[("x-request-id", "not; kept")], BODY).await;
    assert_eq!(made.header("x-request-id").len(), 32);
}

/// An ambiguous request is not interpreted either way.
#[tokio::test(flavor = "multi_thread")]
async fn duplicate_headers_and_members_are_rejected() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let twice = [("x-zvgate-tenant", "one"), ("x-zvgate-tenant", "one")];
    gateway.post(READ, &twice, r#"{"params":{"customerId":"1"}}"#).await.assert_error(400, "bad_request");
    let twice = r#"{"customerIds":["1"],"customerIds":["2"]}"#;
    gateway.post("/v1/invalidate", &[], twice).await.assert_error(400, "bad_request");
}
