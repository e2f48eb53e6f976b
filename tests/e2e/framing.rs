//! Requests whose framing is invalid, ambiguous or hostile: each is rejected or answered once, and none is forwarded twice.
//!
//! Where RFC 9112 leaves a choice to the recipient, these tests fix the gateway's: a line may end in a bare LF (section 2.2), equal
//! lengths count as one (6.3), chunked overrides a length and closes the connection (6.1).

use std::fmt::Write as _;
use std::io::{Read, Write as _};

use crate::scripted::{Action, Scripted};
use crate::support::{READ, TestGateway, raw};

/// The bodies of the request, and of the one smuggled in it.
const BODY: &str = r#"{"params":{"customerId":"1"}}"#;
const HIDDEN: &str = r#"{"params":{"customerId":"smuggled"}}"#;

/// A request with these additional lines in its head, followed by `rest`.
fn post(lines: &str, rest: &str) -> Vec<u8> {
    format!("POST {READ} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{lines}\r\n{rest}").into()
}

/// A request with another request line.
fn request(line: &str, lines: &str) -> Vec<u8> {
    let length = BODY.len();
    format!("{line}\r\nContent-Type: application/json\r\n{lines}Content-Length: {length}\r\n\r\n{BODY}").into()
}

fn sized(lines: &str) -> Vec<u8> {
    post(&format!("{lines}Content-Length: {}\r\n", BODY.len()), BODY)
}

fn hidden() -> String {
    String::from_utf8(post(&format!("Content-Length: {}\r\n", HIDDEN.len()), HIDDEN)).unwrap()
}

/// The body as one chunk, with these bytes after its size, after its data, and at the end.
fn chunk(extension: &str, after: &str, end: &str) -> String {
    format!("{:x}{extension}{BODY}{after}{end}", BODY.len())
}

fn chunked(lines: &str) -> Vec<u8> {
    post(lines, &chunk("\r\n", "\r\n", "0\r\n\r\n"))
}

fn chunks(text: &str) -> Vec<u8> {
    post("Transfer-Encoding: chunked\r\n", text)
}

/// A name, the bytes that are sent, and the statuses of all responses.
type Case = (&'static str, Vec<u8>, &'static [u16]);

fn content_lengths() -> Vec<Case> {
    let length = BODY.len();
    let with = |value: &str| post(&format!("Content-Length: {value}\r\n"), BODY);
    vec![
        ("a length", with(&length.to_string()), &[200]),
        ("equal lengths", sized(&format!("Content-Length: {length}\r\n")), &[200]),
        ("unequal lengths", sized("Content-Length: 3\r\n"), &[400]),
        (
            "unequal lengths, the other way",
            post(&format!("Content-Length: {length}\r\nContent-Length: 3\r\n"), BODY),
            &[400],
        ),
        ("a list of lengths", with(&format!("{length}, {length}")), &[400]),
        ("a length with a plus", with(&format!("+{length}")), &[400]),
        ("a negative length", with("-1"), &[400]),
        ("a length in hex", with("0x1d"), &[400]),
        ("a length with a letter", with("29a"), &[400]),
        ("a fractional length", with("29.0"), &[400]),
        ("two numbers", with("29 29"), &[400]),
        ("an empty length", with(""), &[400]),
        ("a length beyond 64 bits", with("99999999999999999999"), &[400]),
        ("the largest length of 64 bits", with("18446744073709551615"), &[431]),
        ("a long length", with("9223372036854775807"), &[413]),
        ("a length over the limit", with("70000"), &[413]),
        ("a length in whitespace", with(&format!("  {length} \t")), &[200]),
        ("a body that does not arrive", post("Content-Length: 100\r\n", BODY), &[408]),
        ("a length of zero before a request", post("Content-Length: 0\r\n", &hidden()), &[400, 200]),
        ("no length before a request", post("", &hidden()), &[400, 200]),
        ("a short length", post("Content-Length: 28\r\n", BODY), &[400, 400]),
        ("a space before the colon", post(&format!("Content-Length : {length}\r\n"), BODY), &[400]),
        ("a space in the name", post(&format!("Content Length: {length}\r\n"), BODY), &[400]),
        ("a length named in Connection", sized("Connection: content-length\r\n"), &[200]),
    ]
}

fn transfer_codings() -> Vec<Case> {
    let te = |value: &str| chunked(&format!("Transfer-Encoding: {value}\r\n"));
    let length = BODY.len();
    vec![
        ("chunked", te("chunked"), &[200]),
        ("chunked in upper case", te("CHUNKED"), &[200]),
        ("chunked after a tab", te("\tchunked"), &[200]),
        (
            "a length, and chunked",
            chunked(&format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n")),
            &[200],
        ),
        ("chunked, and a length", chunked("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"), &[200]),
        (
            "chunked before a request that a length covers",
            post(
                &format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", 5 + hidden().len()),
                &format!("0\r\n\r\n{}", hidden()),
            ),
            &[400],
        ),
        (
            "a length before a request that chunked covers",
            post(
                "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
                &format!("{:x}\r\n{}\r\n0\r\n\r\n", hidden().len(), hidden()),
            ),
            &[400],
        ),
        ("identity", te("identity"), &[400]),
        ("an unknown coding", te("xchunked"), &[400]),
        ("chunked not last", te("chunked, identity"), &[400]),
        ("a coding before chunked", te("gzip, chunked"), &[400]),
        ("identity before chunked", te("identity, chunked"), &[400]),
        ("chunked twice", te("chunked, chunked"), &[400]),
        ("chunked in two lines", te("chunked\r\nTransfer-Encoding: chunked"), &[400]),
        ("chunked in quotes", te("\"chunked\""), &[400]),
        ("chunked with a parameter", te("chunked;q=1"), &[400]),
        ("chunked, then not", te("chunked\r\nTransfer-Encoding: identity"), &[400]),
        ("a vertical tab", te("\x0bchunked"), &[400]),
        ("an empty coding", te(""), &[400]),
        ("a space before the colon", chunked("Transfer-Encoding : chunked\r\n"), &[400]),
        ("a folded line", chunked("X-A: b\r\n Transfer-Encoding: chunked\r\n"), &[400]),
        ("a folded value", chunked("Transfer-Encoding:\r\n chunked\r\n"), &[400]),
        ("a folded first line", post(" X: y\r\n", BODY), &[400]),
        ("HTTP/1.0", request(&format!("POST {READ} HTTP/1.0"), "Transfer-Encoding: chunked\r\n"), &[400]),
        ("chunked behind a bare LF", chunked("X-A: b\nTransfer-Encoding: chunked\r\n"), &[200]),
        ("a length behind a bare LF", sized("X-A: b\nContent-Length: 3\r\n"), &[400]),
        ("chunked behind a bare CR", chunked("X-A: b\rTransfer-Encoding: chunked\r\n"), &[400]),
    ]
}

fn chunk_syntax() -> Vec<Case> {
    let end = "0\r\n\r\n";
    let long = "x".repeat(70_000);
    vec![
        ("an extension", chunks(&chunk(";a=b\r\n", "\r\n", end)), &[200]),
        ("a request after the end", chunks(&chunk("\r\n", "\r\n", &(end.to_owned() + &hidden()))), &[200, 200]),
        ("a prefix", chunks(&format!("0x{}", chunk("\r\n", "\r\n", end))), &[400]),
        ("a sign", chunks(&format!("-{}", chunk("\r\n", "\r\n", end))), &[400]),
        ("a size beyond 64 bits", chunks("FFFFFFFFFFFFFFFFF\r\nx\r\n0\r\n\r\n"), &[400]),
        ("the largest size of 64 bits", chunks("FFFFFFFFFFFFFFFF\r\nx"), &[408]),
        ("a size in a bare LF", chunks(&chunk("\n", "\r\n", end)), &[400]),
        ("a size in a bare CR", chunks(&chunk("\r", "\r\n", end)), &[400]),
        ("an extension in a bare LF", chunks(&chunk(";a\nb\r\n", "\r\n", end)), &[400]),
        ("a long extension", chunks(&chunk(&format!(";{long}\r\n"), "\r\n", end)), &[400]),
        ("data longer than its size", chunks(&chunk("\r\n", "xx\r\n", end)), &[400]),
        ("data without an end", chunks(&chunk("\r\n", "", end)), &[400]),
        ("data that ends in a bare LF", chunks(&chunk("\r\n", "\n", end)), &[400]),
        ("an end in a bare LF", chunks(&chunk("\r\n", "\r\n", "0\n\n")), &[400]),
        ("no size", chunks("\r\n\r\n"), &[400]),
        ("no end", chunks(&chunk("\r\n", "\r\n", "")), &[408]),
        ("a trailer", chunks(&chunk("\r\n", "\r\n", "0\r\nX-A: b\r\n\r\n")), &[200]),
        ("a trailer with a length", chunks(&chunk("\r\n", "\r\n", "0\r\nContent-Length: 9\r\n\r\n")), &[200]),
        ("a long trailer", chunks(&chunk("\r\n", "\r\n", &format!("0\r\nX-A: {long}\r\n\r\n"))), &[400]),
        ("a chunk over the limit", chunks(&format!("11170\r\n{}\r\n0\r\n\r\n", "x".repeat(70_000))), &[413]),
    ]
}

fn request_lines() -> Vec<Case> {
    let version = |version: &str| request(&format!("POST {READ} {version}\r\nHost: localhost"), "");
    let target = |target: &str| request(&format!("POST {target} HTTP/1.1\r\nHost: localhost"), "");
    let method = |method: &str| request(&format!("{method} {READ} HTTP/1.1\r\nHost: localhost"), "");
    vec![
        ("HTTP/1.0", request(&format!("POST {READ} HTTP/1.0"), ""), &[200]),
        ("HTTP/0.9", format!("POST {READ}\r\n\r\n{BODY}").into(), &[400]),
        ("HTTP/1.2", version("HTTP/1.2"), &[400]),
        ("HTTP/2.0", version("HTTP/2.0"), &[400]),
        ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), &[]),
        ("a version in lower case", version("http/1.1"), &[400]),
        ("two versions", version("HTTP/1.1 HTTP/1.1"), &[400]),
        ("two spaces", version(" HTTP/1.1"), &[400]),
        ("a tab", request(&format!("POST\t{READ}\tHTTP/1.1\r\nHost: localhost"), ""), &[400]),
        ("a method with a NUL", method("PO\0ST"), &[400]),
        ("a method in lower case", method("post"), &[405]),
        ("an unknown method", method("BREW"), &[405]),
        ("a target with a space", target("/v3 /crm"), &[400]),
        ("a target with a NUL", target("/v3\0"), &[400]),
        ("a target that is not UTF-8", [b"POST /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n".as_slice()].concat(), &[400]),
        ("a target with dot segments", target(&format!("/x/..{READ}")), &[404]),
        ("a percent-encoded target", target(&READ.replace('/', "%2f")), &[400]),
        ("a target with two slashes", target(&format!("/{READ}")), &[404]),
        ("a target with a query", target(&format!("{READ}?a=b")), &[400]),
        ("a long target", target(&"/x".repeat(35_000)), &[431]),
        ("an absolute target", target(&format!("http://localhost{READ}")), &[200]),
        ("an absolute target with another host", target(&format!("http://shop.example{READ}")), &[421]),
        ("an absolute target with a user", target(&format!("http://localhost@shop.example{READ}")), &[421]),
        ("a target of CONNECT", request("CONNECT localhost:80 HTTP/1.1\r\nHost: localhost", ""), &[404]),
        ("a target of OPTIONS", request("OPTIONS * HTTP/1.1\r\nHost: localhost", ""), &[404]),
        ("empty lines before", [b"\r\n\r\n".as_slice(), &sized("")].concat(), &[200]),
        ("lines that end in a bare LF", String::from_utf8(sized("")).unwrap().replace("\r\n", "\n").into(), &[200]),
        ("binary data", vec![0x80; 64], &[400]),
        ("a TLS ClientHello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), &[400]),
    ]
}

fn header_fields() -> Vec<Case> {
    let mut many = String::new();
    (0..100).for_each(|i| write!(many, "X-{i}: a\r\n").unwrap());
    let host = |lines: &str| request(&format!("POST {READ} HTTP/1.1\r\n{lines}"), "");
    vec![
        ("no colon", sized("X-A\r\n"), &[400]),
        ("no name", sized(": a\r\n"), &[400]),
        ("a name that is not a token", sized("X(A: b\r\n"), &[400]),
        ("a name that is not ASCII", sized("X-\u{e9}: b\r\n"), &[400]),
        ("a NUL in a name", sized("X\0: b\r\n"), &[400]),
        ("a NUL in a value", sized("X-A: b\0c\r\n"), &[400]),
        ("a bare CR in a value", sized("X-A: b\rc\r\n"), &[400]),
        ("too many fields", sized(&many), &[431]),
        ("a long head", sized(&format!("X-A: {}\r\n", "x".repeat(70_000))), &[431]),
        ("two hosts", host("Host: localhost\r\nHost: localhost"), &[400]),
        ("no host", host("X-A: b"), &[400]),
        ("a host with a path", host("Host: localhost/shop.example"), &[421]),
        ("a host with a space", host("Host: local host"), &[421]),
        ("two types", sized("Content-Type: text/plain\r\n"), &[415]),
        ("an upgrade", sized("Connection: upgrade\r\nUpgrade: websocket\r\n"), &[200]),
        (
            "an upgrade to HTTP/2",
            sized("Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
            &[200],
        ),
        ("Expect: 100-continue", sized("Expect: 100-continue\r\n"), &[100, 200]),
        ("an unknown expectation", sized("Expect: the-unexpected\r\n"), &[200]),
        ("a method override", sized("X-HTTP-Method-Override: DELETE\r\n"), &[200]),
        ("a target override", sized("X-Original-URL: /v1/invalidate\r\n"), &[200]),
    ]
}

/// The body of a request that is rejected by its head must not be parsed as the next request.
fn rejected_heads() -> Vec<Case> {
    let covered = |line: &str, lines: &str| {
        let body = hidden();
        format!("{line} HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Length: {}\r\n\r\n{body}", body.len())
            .into_bytes()
    };
    vec![
        ("no route", covered("POST /nowhere", ""), &[404]),
        ("no method", covered(&format!("GET {READ}"), ""), &[405]),
        ("no type", covered(&format!("POST {READ}"), ""), &[415]),
        ("no JSON", covered(&format!("POST {READ}"), "Content-Type: application/json\r\n"), &[400]),
        ("a web page", covered(&format!("POST {READ}"), "Origin: http://shop.example\r\n"), &[403]),
    ]
}

/// The statuses of all responses of a connection, in order.
fn statuses(text: &str) -> Vec<u16> {
    let lines = text.split("HTTP/1.").skip(1);
    lines.map(|rest| rest.get(2..5).and_then(|status| status.parse().ok()).unwrap_or(0)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_framing_is_rejected_or_forwarded_at_most_once() {
    let upstream = Scripted::start(|_, _| Action::success("[]")).await;
    let overrides = [
        ("cache.mode", "off"),
        ("limits.upstream.rate", "0"),
        ("server.header_timeout", "500ms"),
        ("server.body_timeout", "500ms"),
        ("server.idle_timeout", "500ms"),
    ];
    let gateway = TestGateway::start(&upstream, &overrides).await;
    let cases =
        [content_lengths(), transfer_codings(), chunk_syntax(), request_lines(), header_fields(), rejected_heads()]
            .concat();
    assert!(cases.len() >= 60, "{}", cases.len());
    let mut wrong = String::new();
    let (mut answered, mut hidden) = (0, 0);
    // In batches: each case waits for the end of its connection.
    for batch in cases.chunks(16) {
        let address = gateway.address;
        let replies: Vec<_> = batch
            .iter()
            .map(|(_, bytes, _)| bytes.clone())
            .map(|bytes| tokio::task::spawn_blocking(move || raw(address, &bytes)))
            .collect();
        for ((name, bytes, expected), reply) in batch.iter().zip(replies) {
            let text = reply.await.unwrap();
            let seen = statuses(&text);
            if seen != *expected {
                writeln!(wrong, "{name}: {seen:?}, not {expected:?}: {text:.300}").unwrap();
            }
            answered += seen.iter().filter(|status| **status == 200).count();
            // The second request is sent on purpose only if two follow each other.
            let is_pipelined =
                expected.len() == 2 && expected[1] == 200 && bytes.windows(8).any(|part| part == b"smuggled");
            hidden += usize::from(is_pipelined);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let requests = upstream.requests.lock().unwrap().clone();
    assert_eq!(requests.len(), answered, "each forwarded request was answered");
    assert_eq!(requests.iter().filter(|request| request.contains("smuggled")).count(), hidden);
    assert!(requests.iter().all(|request| request.starts_with(&format!("POST {READ} HTTP/1.1\r\n"))));
    assert_eq!(gateway.page("/healthz").await.status, 200);
}

/// The connection is kept, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_rejected_before_its_body_arrived_may_continue() {
    let upstream = Scripted::start(|_, _| Action::success("[]")).await;
    let gateway = TestGateway::start(&upstream, &[]).await;
    let mut stream = std::net::TcpStream::connect(gateway.address).unwrap();
    let mut answer = |bytes: &[u8]| {
        stream.write_all(bytes).unwrap();
        let mut buffer = [0; 4096];
        let length = tokio::task::block_in_place(|| stream.read(&mut buffer)).unwrap();
        statuses(&String::from_utf8_lossy(&buffer[..length]))
    };
    let rejected = format!("POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", BODY.len());
    assert_eq!(answer(rejected.as_bytes()), [404]);
    assert_eq!(answer(&[BODY.as_bytes(), &sized("")].concat()), [200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn request_heads_are_bounded_as_configured() {
    let upstream = Scripted::start(|_, _| Action::success("[]")).await;
    let gateway = TestGateway::start(&upstream, &[("server.max_head", "2KiB"), ("server.max_headers", "8")]).await;
    let ask = async |lines: String| {
        let (address, bytes) = (gateway.address, sized(&format!("Connection: close\r\n{lines}")));
        statuses(&tokio::task::spawn_blocking(move || raw(address, &bytes)).await.unwrap())
    };
    let long = |length: usize| format!("X-A: {}\r\n", "x".repeat(length));
    assert_eq!(ask(long(1700)).await, [200]);
    assert_eq!(ask(long(2048)).await, [431]);
    assert_eq!(ask("X-A: b\r\n".repeat(4)).await, [200]);
    assert_eq!(ask("X-A: b\r\n".repeat(5)).await, [431]);
}

/// A connection has one request in progress; further pipelined ones wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_handled_one_at_a_time() {
    let upstream = Scripted::start(|_, _| Action::Hang).await;
    let gateway = TestGateway::start(&upstream, &[("limits.upstream.rate", "0")]).await;
    let mut pipelined = std::net::TcpStream::connect(gateway.address).unwrap();
    for customer in 10..30 {
        let body = BODY.replace('1', &customer.to_string());
        pipelined.write_all(&post(&format!("Content-Length: {}\r\n", body.len()), &body)).unwrap();
    }
    let wait_for = async |count: usize| {
        while upstream.requests.lock().unwrap().len() < count {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        upstream.requests.lock().unwrap().len()
    };
    assert_eq!(wait_for(1).await, 1);
    let other = gateway.read("9");
    tokio::select! {
        reply = other => panic!("upstream does not answer: {reply:?}"),
        count = wait_for(2) => assert_eq!(count, 2, "the other caller's and one of the pipelined requests"),
    }
    assert!(upstream.requests.lock().unwrap()[1].contains("\"9\""));
}
