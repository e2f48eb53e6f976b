//! The table of gateway errors, row by row, and the order of the checks.

use std::sync::Arc;

use http::{Method, Request};
use http_body_util::Full;
use serde_json::json;

use crate::scripted::{Act, Scripted, http_text};
use crate::support::{Caller, Gate, Platform, READ, WRITE, loopback, raw, send};

const BODY: &str = r#"{"params":{"customerId":"1"}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_rejection_has_its_status_and_error_and_sends_nothing_upstream() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[("server.max_body", "1KiB")]).await;
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
        gate.post(READ, &[], body).await.is_error(400, "bad_request");
    }
    gate.post(READ, &[("x-request-timeout-ms", "soon")], BODY).await.is_error(400, "bad_request");
    gate.post(READ, &[("x-zvgate-tenant", "three")], BODY).await.is_error(400, "unknown_tenant");
    let other = r#"{"openId":"a","grantCode":"b","params":{"customerId":"1"}}"#;
    gate.post(READ, &[], other).await.is_error(400, "unknown_tenant");
    gate.post("/v3/other", &[], BODY).await.is_error(404, "unknown_route");
    gate.post("/v1/customers", &[], "{}").await.is_error(404, "unknown_route");
    gate.post(READ, &[("content-type", "text/plain")], BODY).await.is_error(415, "unsupported_media_type");
    gate.post(READ, &[], &long).await.is_error(413, "body_too_large");
    let chunked = format!(
        "POST {READ} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n{}\r\n0\r\n\r\n",
        "x".repeat(2000)
    );
    assert!(raw(gate.address, chunked.as_bytes()).starts_with("HTTP/1.1 413"));
    assert_eq!(platform.stats().await["requests"], json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_405_names_the_allowed_method() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[]).await;
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let request = Request::builder().method(method).uri(READ).header("host", "a").body(Full::default()).unwrap();
        let reply = send(gate.address, request).await;
        reply.is_error(405, "method_not_allowed");
        assert_eq!(reply.header("allow"), "POST");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_run_in_the_documented_order() {
    let platform = Platform::open().await;
    let words = [("limits.caller.rate", "1"), ("limits.caller.per", "1h"), ("server.max_body", "64B")];
    let gate = Gate::start(&platform, &words).await;
    let long = "x".repeat(100);
    let wrong = [("content-type", "text/plain"), ("x-zvgate-tenant", "three")];
    gate.post("/nowhere", &wrong, &long).await.is_error(404, "unknown_route");
    let get =
        Request::get(READ).header("host", "a").header("content-type", "text/plain").body(Full::default()).unwrap();
    send(gate.address, get).await.is_error(405, "method_not_allowed");
    gate.post(READ, &wrong, &long).await.is_error(415, "unsupported_media_type");
    gate.post(READ, &wrong, &long).await.is_error(429, "caller_limited");

    let gate = Gate::start(&platform, &[("server.max_body", "64B")]).await;
    gate.post(READ, &[("x-zvgate-tenant", "three")], &long).await.is_error(413, "body_too_large");
    gate.post(READ, &[("x-zvgate-tenant", "three")], "{").await.is_error(400, "bad_request");
    gate.post(READ, &[("x-zvgate-tenant", "three")], r#"{"params":{}}"#).await.is_error(400, "bad_request");
    gate.post(READ, &[("x-zvgate-tenant", "three")], BODY).await.is_error(400, "unknown_tenant");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limited_caller_gets_retry_after_and_ratelimit_headers() {
    let platform = Platform::open().await;
    let words = [("limits.caller.rate", "2"), ("limits.caller.per", "100s"), ("limits.caller.burst", "3")];
    let gate = Gate::start(&platform, &words).await;
    for _ in 0..3 {
        assert_eq!(gate.read("1").await.status, 200, "hits count as well");
    }
    let limited = gate.read("1").await;
    limited.is_error(429, "caller_limited");
    assert_eq!(limited.header("ratelimit-policy"), "\"caller\";q=2;w=100");
    assert_eq!(limited.header("ratelimit"), format!("\"caller\";r=0;t={}", limited.header("retry-after")));
    assert!((45..=50).contains(&limited.header("retry-after").parse::<u32>().unwrap()));
    assert_eq!(gate.metric("zvgate_limited_total{caller=\"anonymous\",limit=\"caller\"}").await, 1.0);
}

/// A request whose task panics is an error of the gateway, not a caller that left.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_counted_as_a_500() {
    let upstream = Scripted::start(|_, _| Act::Hang).await;
    let gate = Gate::start(&upstream, &[]).await;
    let (listener, gateway) = (tokio::net::TcpListener::bind(loopback()).await.unwrap(), Arc::clone(&gate.gateway));
    let address = listener.local_addr().unwrap();
    // Serves one request with the gateway, and panics while it is being answered.
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(move |request| {
            let handled = Arc::clone(&gateway).handle(request, zvgate::gateway::Capacity::Available);
            async move {
                let mut handled = std::pin::pin!(handled);
                let waited = tokio::time::timeout(std::time::Duration::from_millis(200), handled.as_mut()).await;
                assert!(waited.is_ok(), "the panic that is wanted here");
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
        gate.metric(&format!("zvgate_requests_total{{caller=\"anonymous\",route=\"{READ}\",status=\"{status}\"}}"))
            .await
    };
    assert_eq!((counted(500).await, counted(499).await), (1.0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_clock_that_is_far_behind_is_a_negative_skew() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[]).await;
    gate.hands.step_wall(3_000_000_000);
    gate.read("1").await;
    let skew = gate.metric("zvgate_clock_skew_seconds").await;
    assert!((-3_000_002.0..-2_999_997.0).contains(&skew), "{skew}");
}

#[tokio::test(flavor = "multi_thread")]
async fn durations_of_hits_are_measured() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[]).await;
    gate.read("1").await;
    for _ in 0..10 {
        assert!(gate.read("1").await.is_hit());
    }
    let of_hits = |what: &str| format!("zvgate_request_duration_seconds_{what}{{cache=\"hit\",route=\"{READ}\"}}");
    assert_eq!(gate.metric(&of_hits("count")).await, 10.0);
    assert!(gate.metric(&of_hits("sum")).await > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_body_gets_a_408_and_a_slow_head_closes_the_connection() {
    let platform = Platform::open().await;
    let words =
        [("server.body_timeout", "200ms"), ("server.header_timeout", "300ms"), ("server.idle_timeout", "500ms")];
    let gate = Gate::start(&platform, &words).await;
    let head = format!(
        "POST {READ} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 29\r\n\r\n{{\"par"
    );
    let reply = raw(gate.address, head.as_bytes());
    assert!(reply.starts_with("HTTP/1.1 408") && reply.contains("\"error\":\"too_slow\""), "{reply}");
    let took = format!("zvgate_request_duration_seconds_sum{{cache=\"none\",route=\"{READ}\"}}");
    assert!(gate.metric(&took).await >= 0.2, "its duration is counted");
    assert_eq!(raw(gate.address, b"POST /v3/crm"), "", "a head that stops is closed");
    assert_eq!(raw(gate.address, b""), "", "so is a connection without one");
    let whole = format!(
        "POST {READ} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 29\r\n\r\n{BODY}"
    );
    let reply = raw(gate.address, whole.as_bytes());
    assert!(reply.starts_with("HTTP/1.1 200"), "an idle connection is closed after its answer: {reply}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_may_be_idle_for_longer_than_the_header_timeout() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[("server.header_timeout", "100ms"), ("server.idle_timeout", "60s")]).await;
    let mut caller = Caller::connect(gate.address).await;
    assert!(caller.read("1").await.is_stored_miss());
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    assert!(caller.read("1").await.is_hit());
}

/// Pipelined requests whose answers nobody reads fill every buffer; the connection is then closed like an idle one.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_caller_does_not_read_is_closed() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[("server.idle_timeout", "400ms")]).await;
    gate.read("1").await;
    let one = format!(
        "POST {READ} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 29\r\n\r\n{BODY}"
    );
    let (mut stream, many) = (std::net::TcpStream::connect(gate.address).unwrap(), one.repeat(100));
    stream.set_write_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
    while std::io::Write::write_all(&mut stream, many.as_bytes()).is_ok() {}
    while gate.metric("zvgate_connections").await > 0.0 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exhausted_max_inflight_is_a_503() {
    let upstream = Scripted::start(|_, _| Act::Hang).await;
    let words = [("upstream.max_inflight", "1"), ("limits.max_wait", "200ms"), ("upstream.retries", "0")];
    let gate = Arc::new(Gate::start(&upstream, &words).await);
    let hung = Arc::clone(&gate);
    let hung = tokio::spawn(async move { hung.read("1").await });
    while upstream.seen().is_empty() {
        tokio::task::yield_now().await;
    }
    gate.read("2").await.is_error(503, "unavailable");
    let other_tenant = gate.post(READ, &[("x-zvgate-tenant", "two"), ("x-request-timeout-ms", "300")], BODY).await;
    other_tenant.is_error(504, "upstream_timeout");
    hung.await.unwrap().is_error(504, "upstream_timeout");
    assert_eq!(upstream.seen().len(), 2, "the refused one was not sent");
}

/// A listener whose queue is full answers no connection at all.
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
    let gate = Gate::start(&Full(format!("http://{address}")), &[("upstream.connect_timeout", "200ms")]).await;
    let reply = gate.post(READ, &[("x-request-timeout-ms", "9000")], BODY).await;
    reply.is_error(502, "upstream_failed");
    assert_eq!(reply.header("proxy-status"), "zvgate; error=connection_timeout");
    gate.post(WRITE, &[], BODY).await.is_error(502, "upstream_failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_max_connections_get_a_503() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[("server.max_connections", "2")]).await;
    let mut first = Caller::connect(gate.address).await;
    let mut second = Caller::connect(gate.address).await;
    assert_eq!((first.read("1").await.status, second.read("1").await.status), (200, 200));
    gate.read("1").await.is_error(503, "unavailable");
    drop(first);
    while gate.read("1").await.status == 503 {
        tokio::task::yield_now().await;
    }
    assert!(gate.metric("zvgate_limited_total{caller=\"anonymous\",limit=\"connections\"}").await >= 1.0);
    assert!(gate.metric("zvgate_requests_total{caller=\"anonymous\",route=\"none\",status=\"503\"}").await >= 1.0);
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
        let upstream = Scripted::start(move |_, _| Act::Last(bytes.clone())).await;
        let gate = Gate::start(&upstream, &[("upstream.max_response", "2KiB"), ("upstream.retries", "0")]).await;
        for _ in 0..2 {
            gate.read("1").await.is_error(502, "upstream_failed");
        }
        assert_eq!(upstream.seen().len(), 2, "{name}: an error is never kept");
    }
    let gone = Scripted::start(|_, _| Act::Hang).await;
    let gate = Gate::start(&gone, &[]).await;
    drop(gone);
    let refused = gate.read("1").await;
    refused.is_error(502, "upstream_failed");
    assert_eq!(refused.header("proxy-status"), "zvgate; error=connection_refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_hangs_is_a_504_in_time() {
    let upstream = Scripted::start(|_, _| Act::Hang).await;
    let gate = Gate::start(&upstream, &[("upstream.attempt_timeout", "200ms")]).await;
    gate.read("1").await.is_error(504, "upstream_timeout");
    let gate = Gate::start(&upstream, &[("server.request_timeout", "200ms")]).await;
    gate.read("1").await.is_error(504, "upstream_timeout");
    let gate = Gate::start(&upstream, &[]).await;
    gate.post(READ, &[("x-request-timeout-ms", "200")], BODY).await.is_error(504, "upstream_timeout");
    let attempts = format!("zvgate_upstream_attempts_total{{outcome=\"timeout\",route=\"{READ}\",tenant=\"one\"}}");
    while gate.metric(&attempts).await < 1.0 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Each byte comes in time, and the answer never ends.
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
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
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
    let words = [("server.request_timeout", "2s"), ("server.write_request_timeout", "2s")];
    let gate = Gate::start(&Trickling(url), &words).await;
    gate.read("1").await.is_error(504, "upstream_timeout");
    gate.post(WRITE, &[], BODY).await.is_error(504, "outcome_unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_a_response_has_an_unknown_outcome_once_it_was_sent() {
    let upstream = Scripted::start(|_, _| Act::Last(Vec::new())).await;
    let gate = Gate::start(&upstream, &[]).await;
    gate.post(WRITE, &[], BODY).await.is_error(502, "outcome_unknown");
    let redirecting =
        Scripted::start(|_, _| Act::Answer(http_text("307 Temporary Redirect", "Location: /\r\n", ""))).await;
    let gate = Gate::start(&redirecting, &[]).await;
    gate.post(WRITE, &[], BODY).await.is_error(502, "outcome_unknown");
    let hung = Scripted::start(|_, _| Act::Hang).await;
    let gate = Gate::start(&hung, &[("upstream.write_timeout", "200ms")]).await;
    gate.post(WRITE, &[], BODY).await.is_error(504, "outcome_unknown");
    drop(hung);
    gate.post(WRITE, &[], BODY).await.is_error(502, "upstream_failed");
    assert_eq!((upstream.seen().len(), redirecting.seen().len()), (1, 1), "a write is never repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_responses_pass_through_with_their_status() {
    let upstream = Scripted::start(|number, _| {
        let headers = "Content-Type: text/plain\r\nContent-Encoding: identity\r\nRetry-After: 7\r\nX-Secret: 1\r\nSet-Cookie: a=b\r\n";
        Act::Answer(http_text(["503 Busy", "404 Not Found", "200 OK"][number % 3], headers, "upstream's own words"))
    })
    .await;
    let gate = Gate::start(&upstream, &[("upstream.retries", "0")]).await;
    for status in [503, 404, 200] {
        let reply = gate.read("1").await;
        assert_eq!((reply.status, reply.text().as_str()), (status, "upstream's own words"));
        assert_eq!((reply.header("retry-after"), reply.header("content-encoding")), ("7", "identity"));
        assert_eq!((reply.header("content-type"), reply.header("cache-status")), ("text/plain", "zvgate; fwd=miss"));
        assert_eq!((reply.header("x-secret"), reply.header("set-cookie"), reply.header("proxy-status")), ("", "", ""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_valid_request_id_is_kept_and_others_are_replaced() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[]).await;
    assert_eq!(gate.post(READ, &[("x-request-id", "a-1.B_2")], BODY).await.header("x-request-id"), "a-1.B_2");
    let refused = gate.post("/nowhere", &[("x-request-id", "kept")], BODY).await;
    assert_eq!(refused.json()["requestId"], "kept");
    let made = gate.post(READ, &[("x-request-id", "not; kept")], BODY).await;
    assert_eq!(made.header("x-request-id").len(), 32);
}

/// What can be read in two ways is read in none.
#[tokio::test(flavor = "multi_thread")]
async fn duplicate_headers_and_members_are_rejected() {
    let platform = Platform::open().await;
    let gate = Gate::start(&platform, &[]).await;
    let twice = [("x-zvgate-tenant", "one"), ("x-zvgate-tenant", "one")];
    gate.post(READ, &twice, r#"{"params":{"customerId":"1"}}"#).await.is_error(400, "bad_request");
    let twice = r#"{"customerIds":["1"],"customerIds":["2"]}"#;
    gate.post("/v1/invalidate", &[], twice).await.is_error(400, "bad_request");
}
