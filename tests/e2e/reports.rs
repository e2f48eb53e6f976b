//! Failures that users of other programs reported in public, and what the gateway does in their place. Each case names the program
//! and the number of the report.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::scripted::{Action, Scripted};
use crate::support::{READ, TestGateway, WRITE, loopback, post, raw};

/// A success with one coupon, which is settled.
const GOOD: &str = r#"{"status":true,"code":0,"message":"","data":[{"cardId":"1","useStatus":1}]}"#;
const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";

/// How an answer ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The connection stays open.
    Open,
    Close,
    Reset,
}
use End::{Close, Open, Reset};

/// What a read gets.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// The answer, stored.
    Stored,
    /// The answer with this status, from so many attempts, not stored.
    Passed(u16, usize),
    /// A 502 with this error type (RFC 9209) after so many attempts; a write, whose outcome is unknown, after one.
    Failed(&'static str, usize),
}
use Expected::{Failed, Passed, Stored};

/// The report, the answer in parts, how it ends, and what is expected.
type Case = (&'static str, Vec<Vec<u8>>, End, Expected);

fn with_length(lines: &str) -> Vec<u8> {
    format!("{HEAD}{lines}Content-Length: {}\r\n\r\n{GOOD}", GOOD.len()).into()
}

fn with_status_line(line: &str) -> Vec<u8> {
    format!("{line}\r\nContent-Length: {}\r\n\r\n{GOOD}", GOOD.len()).into()
}

fn chunked(lines: &str, trailers: &str) -> Vec<u8> {
    format!("{HEAD}{lines}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{GOOD}\r\n0\r\n{trailers}\r\n", GOOD.len()).into()
}

fn whole(bytes: impl Into<Vec<u8>>) -> Vec<Vec<u8>> {
    vec![bytes.into()]
}

fn lengths_and_codings() -> Vec<Case> {
    let (length, protocol) = (GOOD.len(), "http_protocol_error");
    let coding = "http_response_transfer_coding";
    let other = format!("{HEAD}Content-Length: {length}\r\nContent-Length: 5\r\n\r\n{GOOD}");
    let list = format!("{HEAD}Content-Length: {length}, {length}\r\n\r\n{GOOD}");
    let chunk = |chunk: &str| whole(format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n{chunk}"));
    vec![
        ("hyperium/hyper#4181: a length beside chunked", whole(chunked("Content-Length: 500\r\n", "")), Open, Stored),
        (
            "hyperium/hyper#2058: Transfer-Encoding: identity",
            whole(with_length("Transfer-Encoding: identity\r\n")),
            Open,
            Failed(coding, 1),
        ),
        ("linkerd/linkerd#1468: two lengths", whole(other), Open, Failed(protocol, 1)),
        (
            "boostorg/beast#1880: equal lengths",
            whole(with_length(&format!("Content-Length: {length}\r\n"))),
            Open,
            Stored,
        ),
        ("boostorg/beast#1880: a list of equal lengths", whole(list), Open, Stored),
        ("nginx/nginx#1115: a trailer", whole(chunked("", "X-T: 1\r\nContent-Length: 0\r\n")), Open, Stored),
        (
            "martian56/raven#739: a body that is cut",
            whole(format!("{HEAD}Content-Length: 999\r\n\r\n{GOOD}")),
            Close,
            Failed("http_response_incomplete", 3),
        ),
        ("vislee/leevis.com#166: a size that is no number", chunk("zz\r\n"), Open, Failed(coding, 1)),
        ("vislee/leevis.com#166: a size beyond 64 bits", chunk("FFFFFFFFFFFFFFFFF\r\n"), Open, Failed(coding, 1)),
        ("h2o/h2o#725: a body that ends with the connection", whole(format!("{HEAD}\r\n{GOOD}")), Close, Stored),
        (
            "h2o/h2o#725: a body that ends too early",
            whole(format!("{HEAD}\r\n{}", &GOOD[..GOOD.len() - 5])),
            Close,
            Failed(protocol, 1),
        ),
        (
            "h2o/h2o#725: a body that ends in a reset",
            whole(format!("{HEAD}\r\n{GOOD}")),
            Reset,
            Failed("http_response_incomplete", 3),
        ),
        (
            "varnishcache/varnish-cache#1810: HTTP/1.0",
            whole(format!("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{GOOD}")),
            Close,
            Stored,
        ),
        (
            "varnishcache/varnish-cache#1810: chunked in HTTP/1.0",
            whole(String::from_utf8(chunked("", "")).unwrap().replace("HTTP/1.1", "HTTP/1.0")),
            Close,
            Failed(protocol, 1),
        ),
        (
            "Kong/kong#14777: a compressed answer",
            whole(with_length("Content-Encoding: gzip\r\n")),
            Open,
            Failed("http_response_content_coding", 1),
        ),
        ("locustio/locust#1233: a charset as coding", whole(with_length("Content-Encoding: UTF-8\r\n")), Open, Stored),
        ("yhirose/cpp-httplib#2518: an empty coding", whole(with_length("Content-Encoding:\r\n")), Open, Stored),
        (
            "restsharp/RestSharp#826: a byte order mark",
            whole(format!("{HEAD}Content-Length: {}\r\n\r\n\u{feff}{GOOD}", length + 3)),
            Open,
            Stored,
        ),
    ]
}

fn statuses_and_heads() -> Vec<Case> {
    let protocol = "http_protocol_error";
    let interim = |interim: &str| [interim.as_bytes(), &with_length("")].concat();
    let blank = format!("{HEAD}Content-Length : {}\r\n\r\n{GOOD}", GOOD.len());
    let not_ascii = [HEAD.as_bytes(), b"X-A: \xe9\xff\r\n", &with_length("")[HEAD.len()..]].concat();
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let mut cases = vec![
        (
            "nginx/nginx#1427: a length in a 100",
            whole(interim("HTTP/1.1 100 Continue\r\nContent-Length: 168\r\n\r\n")),
            Open,
            Stored,
        ),
        ("nginx/nginx#1427: many 102", whole(interim(&"HTTP/1.1 102 Processing\r\n\r\n".repeat(50))), Open, Stored),
        ("mitmproxy/mitmproxy#2229: 103 and the answer at once", whole(interim(hints)), Open, Stored),
        ("cloudflare/pingora#596: 103, then the answer", vec![hints.into(), with_length("")], Open, Stored),
        (
            "apache/httpcomponents-core#57: a 204 with a body",
            whole(with_status_line("HTTP/1.1 204 No Content")),
            Open,
            Failed(protocol, 1),
        ),
        (
            "h2o/h2o#276: a 304 with a length",
            whole("HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n"),
            Open,
            Failed(protocol, 1),
        ),
        (
            "fabiocicerchia/go-proxy-cache#265: a part",
            whole(with_status_line("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-72/400")),
            Open,
            Passed(206, 1),
        ),
        ("httpwg/http-core#717: 600", whole(with_status_line("HTTP/1.1 600 Beyond")), Open, Passed(600, 3)),
        ("encode/httpcore#723: 413", whole(with_status_line("HTTP/1.1 413 Too Large")), Close, Passed(413, 1)),
        ("dotnet/corefx#21314: a blank before a colon", whole(with_length("X-A : b\r\n")), Open, Stored),
        ("dotnet/corefx#21314: a blank before the length's colon", whole(blank), Open, Stored),
        ("seanmonstar/httparse#84: no reason", whole(with_status_line("HTTP/1.1 200")), Open, Stored),
        ("seanmonstar/httparse#55: a reason in Chinese", whole(with_status_line("HTTP/1.1 200 成功")), Open, Stored),
        ("dotnet/corefx#21314: bytes that are not ASCII", whole(not_ascii), Open, Stored),
    ];
    for line in ["HTTP/2 200", "HTTP/1.2 200 OK", "ICY 200 OK", "HTTP/1.1 2000 OK", "HTTP/1.1 099 X", "HTTP/1.1 200 \0"]
    {
        cases.push(("nginx/nginx#723: a status line", whole(with_status_line(line)), Open, Failed(protocol, 1)));
    }
    for line in ["some -test: b\r\n", "X-A: b\r\n c\r\n", "garbage line\r\n"] {
        cases.push(("dotnet/corefx#21314: a header line", whole(with_length(line)), Open, Failed(protocol, 1)));
    }
    cases
}

/// What a case's upstream does with every request.
fn action(parts: &[Vec<u8>], end: End) -> Action {
    match end {
        Open => Action::RespondInParts(parts.to_vec()),
        Close => Action::RespondAndClose(parts.concat()),
        Reset => Action::RespondAndReset(parts.concat()),
    }
}

const OVERRIDES: [(&str, &str); 4] = [
    ("limits.upstream.rate", "0"),
    ("upstream.breaker.consecutive", "0"),
    ("upstream.breaker.ratio", "0"),
    ("upstream.attempt_timeout", "3s"),
];

/// What is wrong with how the gateway treats a case, if anything.
async fn mistakes((name, parts, end, expected): Case) -> String {
    let upstream = Scripted::start(move |_, _| action(&parts, end)).await;
    let gateway = TestGateway::start(&upstream, &OVERRIDES).await;
    let mut wrong = String::new();
    let mut check = |is_right: bool, seen: String| {
        if !is_right {
            writeln!(wrong, "{name}: expected {expected:?}, and saw {seen}").unwrap();
        }
    };
    let read = gateway.read("1").await;
    let reads = upstream.seen().len();
    let write = gateway.post(WRITE, &[], r#"{"params":{"bizId":"b","customerId":"2"}}"#).await;
    let writes = upstream.seen().len() - reads;
    check(writes == 1, format!("{writes} writes"));
    let again = gateway.read("1").await;
    match expected {
        Stored => {
            let is_good = read.is_stored_miss() && read.text().trim_start_matches('\u{feff}') == GOOD;
            check(is_good && reads == 1, format!("{reads} attempts: {read:?}"));
            check(again.is_hit() && again.body == read.body, format!("again {again:?}"));
            check(write.header("x-zvgate-outcome") == "executed", format!("the write {write:?}"));
        }
        Passed(status, attempts) => {
            let is_passed = read.status == status && read.header("cache-status") == "zvgate; fwd=miss";
            check(is_passed && reads == attempts, format!("{reads} attempts: {read:?}"));
            check(!again.is_hit() && write.status == status, format!("again {again:?}, the write {write:?}"));
        }
        Failed(error_type, attempts) => {
            let is_failed = |status: u16, shown: &str| status == 502 && shown == format!("zvgate; error={error_type}");
            check(is_failed(read.status, read.header("proxy-status")), format!("{read:?}"));
            check(reads == attempts, format!("{reads} attempts"));
            check(is_failed(write.status, write.header("proxy-status")), format!("the write {write:?}"));
            check(write.header("x-zvgate-outcome") == "unknown", format!("the write {write:?}"));
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_of_a_strange_server_is_passed_on_or_rejected_as_documented() {
    let cases: Vec<_> = lengths_and_codings().into_iter().chain(statuses_and_heads()).collect();
    let mut wrong = String::new();
    for batch in cases.chunks(8) {
        let running: Vec<_> = batch.iter().cloned().map(|case| tokio::spawn(mistakes(case))).collect();
        for one in running {
            wrong.push_str(&one.await.unwrap());
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// What comes on a connection after an answer never becomes another one's answer.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_an_answer_is_never_taken_for_the_next_one() {
    let evil = GOOD.replace("\"1\"", "\"EVIL\"");
    let second = String::from_utf8(with_length("")).unwrap().replace(GOOD, &evil);
    let second = second.replace(&GOOD.len().to_string(), &evil.len().to_string());
    let late = "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let length = |line: &str| vec![with_length(line)];
    for (name, parts, connections) in [
        ("hyperium/hyper#753: a newline", vec![[&with_length("")[..], b"\r\n"].concat()], 3),
        ("projectdiscovery/nuclei#7671: at once", vec![[&with_length("")[..], second.as_bytes()].concat()], 3),
        ("projectdiscovery/nuclei#7671: later", vec![with_length(""), second.clone().into_bytes()], 3),
        ("openshift/release#378: a 408 before the close", vec![with_length(""), late.into()], 3),
        ("apache/httpcomponents-core#57: a 204 with a body", vec![with_status_line("HTTP/1.1 204 No Content")], 3),
        ("hyperium/hyper#4181: a length beside chunked", vec![chunked("Content-Length: 500\r\n", "")], 3),
        ("hyperium/hyper#4201: close and another", length("Connection: close, x\r\nConnection: keep-alive\r\n"), 3),
        ("hyperium/hyper#4201: keep-alive and close", length("Connection: keep-alive, close\r\n"), 3),
        ("an ordinary answer", length(""), 1),
    ] {
        let upstream = Scripted::start(move |_, _| Action::RespondInParts(parts.clone())).await;
        let gateway = TestGateway::start(&upstream, &OVERRIDES).await;
        for customer in ["1", "2", "3"] {
            let reply = gateway.read(customer).await;
            assert!([200, 502].contains(&reply.status) && !reply.text().contains("EVIL"), "{name}: {reply:?}");
            // The upstream sends its second part meanwhile.
            tokio::time::sleep(Duration::from_millis(120)).await;
        }
        assert_eq!((upstream.seen().len(), upstream.connections()), (3, connections), "{name}");
    }
}

/// A connection that breaks after a byte of an answer was not closed while it was idle.
#[tokio::test(flavor = "multi_thread")]
async fn a_reused_connection_that_breaks_within_an_answer_is_a_failed_attempt() {
    // winddriver/Delphi-Cross-Socket#201, gatling/gatling#3609
    for part in ["HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 100 Continue\r\n\r\n", "H"] {
        let upstream = Scripted::start(move |number, _| match number {
            0 => Action::Respond(with_length("")),
            _ => Action::RespondAndClose(part.into()),
        })
        .await;
        let gateway = TestGateway::start(&upstream, &[("upstream.retries", "0"), OVERRIDES[0]]).await;
        assert_eq!(gateway.read("1").await.status, 200);
        gateway.read("2").await.assert_error(502, "upstream_failed");
        assert_eq!(upstream.seen().len(), 2, "{part:?}: one billed call");
        let attempts = format!("zvgate_upstream_attempts_total{{outcome=\"reset\",route=\"{READ}\",tenant=\"one\"}}");
        assert_eq!(gateway.metric(&attempts).await + gateway.metric(&attempts.replace("reset", "garbage")).await, 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirection_that_a_stale_answer_covers_is_named_as_an_answer() {
    // meziantou/Meziantou.Framework#2824
    for (line, cache_status) in [
        ("HTTP/1.1 302 Found\r\nLocation: /login", "zvgate; fwd=stale; fwd-status=302; ttl=-1; detail=stale-if-error"),
        ("HTTP/1.1 304 Not Modified", "zvgate; fwd=stale; fwd-status=304; ttl=-1; detail=stale-if-error"),
        ("HTTP/1.1 404 Not Found", "zvgate; fwd=miss"),
        ("HTTP/1.1 403 Forbidden", "zvgate; fwd=miss"),
    ] {
        let upstream = Scripted::start(move |number, _| match number {
            0 => Action::Respond(with_length("")),
            _ => Action::Respond(with_status_line(line)),
        })
        .await;
        let gateway = TestGateway::start(&upstream, &[("cache.ttl", "1s"), OVERRIDES[0]]).await;
        assert!(gateway.read("1").await.is_stored_miss());
        gateway.clock.advance(Duration::from_millis(1100));
        let reply = gateway.read("1").await;
        assert_eq!(reply.header("cache-status"), cache_status, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_beyond_all_numbers_is_a_long_pause() {
    // urllib3/urllib3#3743
    for seconds in ["18446744073709551615", "99999999999999999999999"] {
        let answer = format!("HTTP/1.1 429 Slow Down\r\nRetry-After: {seconds}\r\nContent-Length: 0\r\n\r\n");
        let upstream = Scripted::start(move |_, _| Action::Respond(answer.clone().into())).await;
        let gateway = TestGateway::start(&upstream, &[]).await;
        assert_eq!(gateway.read("1").await.status, 429);
        let next = gateway.read("2").await;
        next.assert_error(429, "upstream_limited");
        assert!(next.header("retry-after") == "60" && upstream.seen().len() == 1, "{next:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_shared_a_failed_fetch_each_get_an_error_of_their_own() {
    // redis/rueidis#1014
    // Late enough for all of them to have come.
    let late = || [vec![Vec::new(); 10], vec![b"nonsense\r\n\r\n".to_vec()]].concat();
    let upstream = Scripted::start(move |_, _| Action::RespondInParts(late())).await;
    let gateway = Arc::new(TestGateway::start(&upstream, &OVERRIDES).await);
    let callers: Vec<_> = (0..5)
        .map(|number| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move {
                let (id, body) = (format!("caller-{number}"), r#"{"params":{"customerId":"1"}}"#);
                let reply = gateway.post(READ, &[("x-request-id", &id)], body).await;
                reply.assert_error(502, "upstream_failed");
                assert_eq!(reply.header("x-request-id"), id);
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(upstream.seen().len(), 1);
    assert_eq!(gateway.page("/cache/customers/1").await.json()["answers"], json!([]));
}

/// A proxy that answers CONNECT with these parts, and is the platform from then on.
async fn proxy(parts: Vec<&'static str>) -> String {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let parts = parts.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 8192];
                let length = stream.read(&mut buffer).await.unwrap();
                assert!(buffer[..length].starts_with(b"CONNECT "));
                for part in parts {
                    stream.write_all(part.as_bytes()).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {
                    stream.write_all(&with_length("")).await.unwrap();
                }
            });
        }
    });
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_a_forward_proxy_are_read_as_http_says() {
    let upstream = Scripted::start(|_, _| Action::Close).await;
    for (report, parts, error_type) in [
        ("curl/curl#1317: a length", vec!["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"], ""),
        ("linkerd/linkerd2#8539: chunked", vec!["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"], ""),
        ("hyperium/hyper-util#315: two parts", vec!["HTTP/1.1 2", "00 OK\r\n\r\n"], ""),
        ("hyperium/hyper-util#315: 201", vec!["HTTP/1.1 201 Created\r\n\r\n"], ""),
        ("hyperium/hyper-util#315: HTTP/1.0", vec!["HTTP/1.0 200 Connection established\r\n\r\n"], ""),
        ("hyperium/hyper-util#315: 2000", vec!["HTTP/1.1 2000 OK\r\n\r\n"], "destination_unavailable"),
        ("aneoconsulting/ArmoniK.Api#702: 302", vec!["HTTP/1.1 302 Found\r\n\r\n"], "destination_unavailable"),
        ("aneoconsulting/ArmoniK.Api#702: 407", vec!["HTTP/1.1 407 Who\r\n\r\n"], "proxy_configuration_error"),
    ] {
        let proxy = proxy(parts).await;
        let gateway = TestGateway::start(&upstream, &[("upstream.proxy", &proxy), OVERRIDES[0]]).await;
        let write = gateway.post(WRITE, &[], r#"{"params":{"bizId":"b","customerId":"1"}}"#).await;
        let (status, outcome) = if error_type.is_empty() { (200, "executed") } else { (502, "not-sent") };
        assert_eq!((write.status, write.header("x-zvgate-outcome")), (status, outcome), "{report}: {write:?}");
        let shown = if error_type.is_empty() { String::new() } else { format!("zvgate; error={error_type}") };
        assert_eq!(write.header("proxy-status"), shown, "{report}");
    }
    assert_eq!(upstream.connections(), 0, "all calls go through the proxy");
}

/// A request, the statuses of its responses, and what they must contain.
type Request = (&'static str, String, &'static [&'static str], &'static [&'static str]);

fn requests() -> Vec<Request> {
    let body = r#"{"params":{"customerId":"1"}}"#;
    let post = |version: &str, lines: &str, body: &str| {
        let length = body.len();
        format!(
            "POST {READ} HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{lines}\r\n{body}"
        )
    };
    let close = |lines: &str| post("1.1", &format!("Connection: close\r\n{lines}"), body);
    let bad_chunk = close("").replace(&format!("Content-Length: {}", body.len()), "Transfer-Encoding: chunked");
    let bad_chunk = bad_chunk.replace(body, "zz\r\n");
    let kept = "Connection: keep-alive\r\n";
    let expects = |path: &str, kind: &str, length: usize| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {kind}\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    vec![
        (
            "daurnimator/lua-http#41: Expect in HTTP/1.0",
            post("1.0", "Expect: 100-continue\r\n", body),
            &["200"],
            &[GOOD],
        ),
        ("reactphp/http#256: no route", expects("/nowhere", "application/json", 29), &["404"], &["unknown_route"]),
        ("reactphp/http#256: too large", expects(READ, "application/json", 99_999), &["413"], &["body_too_large"]),
        ("reactphp/http#256: another type", expects(READ, "text/plain", 29), &["415"], &["unsupported_media_type"]),
        (
            "hyperium/hyper#1614: keep-alive in HTTP/1.0",
            post("1.0", kept, body) + &post("1.0", "", body),
            &["200", "200"],
            &["connection: keep-alive"],
        ),
        (
            "mtrudel/bandit#655: keep-alive and close",
            post("1.1", "Connection: keep-alive, close\r\n", body) + &close(""),
            &["200"],
            &["connection: close"],
        ),
        ("Kong/kong#14777: Accept-Encoding", close("Accept-Encoding: gzip\r\n"), &["200"], &["hit; ttl=", GOOD]),
        ("Kong/kong#14777: Range", close("Range: bytes=0-3\r\n"), &["200"], &["hit; ttl=", GOOD]),
        ("Kong/kong#14777: If-None-Match", close("If-None-Match: *\r\n"), &["200"], &["hit; ttl=", GOOD]),
        (
            "fastify/secure-json-parse#5: a byte order mark",
            post("1.0", "", &format!("\u{feff}{body}")),
            &["200"],
            &[GOOD],
        ),
        (
            "apache/apisix#7096: another method",
            close("").replace("POST", "GET"),
            &["405"],
            &["method_not_allowed", "allow: POST"],
        ),
        ("varnishcache/varnish-cache#4329: a chunk size", bad_chunk, &["400"], &[]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_of_a_strange_caller_is_answered_as_documented() {
    let upstream = Scripted::start(|_, _| Action::Respond(with_length(""))).await;
    let gateway = TestGateway::start(&upstream, &OVERRIDES).await;
    assert!(gateway.read("1").await.is_stored_miss());
    for (name, text, statuses, contained) in requests() {
        let address = gateway.address;
        let reply = tokio::task::spawn_blocking(move || raw(address, text.as_bytes())).await.unwrap();
        let seen: Vec<&str> = reply.split("HTTP/1.").skip(1).map(|rest| &rest[2..5]).collect();
        assert_eq!(seen, statuses, "{name}: {reply}");
        for part in contained {
            assert!(reply.contains(part), "{name}: {part:?} is missing in {reply}");
        }
    }
    assert_eq!(upstream.seen().len(), 1, "all of them ask the same question");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_with_more_digits_than_fit_is_the_longest() {
    let upstream = Scripted::start(|_, _| Action::Respond(with_length(""))).await;
    let gateway = TestGateway::start(&upstream, &OVERRIDES).await;
    let body = r#"{"params":{"customerId":"1"}}"#;
    for (name, value, status) in [
        ("x-request-timeout-ms", "99999999999999999999999999", 200),
        ("x-request-timeout-ms", "0", 400),
        ("x-request-timeout-ms", "", 400),
        ("x-request-timeout-ms", "-1", 400),
        ("x-request-timeout-ms", "1.5", 400),
    ] {
        assert_eq!(post(gateway.address, READ, &[(name, value)], body).await.status, status, "{name}: {value}");
    }
}
