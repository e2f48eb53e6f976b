//! Idle connections: they are reused, or closed in time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::scripted::{Action, Scripted};
use crate::support::{Caller, Platform, READ, TestGateway, WRITE};
use crate::tls::Authority;

const BODY: &str = r#"{"params":{"customerId":"1"}}"#;
const IDLE: (&str, &str) = ("server.idle_timeout", "2s");
/// Shorter than the idle timeout.
const PAUSE: Duration = Duration::from_millis(1200);

fn request() -> String {
    let head = "Host: localhost\r\nContent-Type: application/json";
    format!("POST {READ} HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n{BODY}", BODY.len())
}

/// Reads one response, which fits into the buffer.
fn answer(stream: &mut TcpStream) -> String {
    let mut bytes = [0; 16 << 10];
    let length = stream.read(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_reused_however_its_next_request_arrives() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[IDLE]).await;
    let mut stream = TcpStream::connect(gateway.address).unwrap();
    stream.set_nodelay(true).unwrap();
    for cuts in [&[][..], &[], &[], &[1], &[1, 2], &[30], &[request().len() - 5]] {
        let text = request();
        let mut from = 0;
        for cut in cuts.iter().copied().chain([text.len()]) {
            stream.write_all(&text.as_bytes()[from..cut]).unwrap();
            from = cut;
            std::thread::sleep(Duration::from_millis(20));
        }
        let answer = answer(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{cuts:?}: {answer}");
        std::thread::sleep(PAUSE);
    }
    stream.write_all(request().repeat(2).as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(answer(&mut stream).matches("HTTP/1.1 200 OK\r\n").count(), 2, "two pipelined requests");
}

/// The beginning of the head arrives together with the request before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_began_before_a_pause_is_completed_or_times_out() {
    let platform = Platform::unlimited().await;
    let (text, cut) = (request(), 40);
    let begin = |gateway: &TestGateway| {
        let mut stream = TcpStream::connect(gateway.address).unwrap();
        stream.write_all(format!("{text}{}", &text[..cut]).as_bytes()).unwrap();
        assert!(answer(&mut stream).starts_with("HTTP/1.1 200 OK\r\n"));
        stream
    };
    let gateway = TestGateway::start(&platform, &[IDLE, ("server.header_timeout", "3s")]).await;
    let mut stream = begin(&gateway);
    std::thread::sleep(PAUSE);
    stream.write_all(&text.as_bytes()[cut..]).unwrap();
    let second = answer(&mut stream);
    assert!(second.starts_with("HTTP/1.1 200 OK\r\n"), "{second}");
    let gateway =
        TestGateway::start(&platform, &[("server.idle_timeout", "1s"), ("server.header_timeout", "200ms")]).await;
    let mut stream = begin(&gateway);
    assert_eq!(answer(&mut stream), "", "the connection is closed");
}

/// The rest of a rejected request's body may arrive late.
#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_a_rejected_body_is_never_parsed_as_a_request() {
    let upstream = Scripted::start(|_, _| Action::success("[]")).await;
    for (idle_timeout, pause) in [("400ms", 300), ("1s", 700), ("2s", 1200), ("3s", 1700)] {
        let gateway = TestGateway::start(&upstream, &[("server.idle_timeout", idle_timeout)]).await;
        let hidden = request().replace(READ, WRITE);
        let mut stream = TcpStream::connect(gateway.address).unwrap();
        let head = format!("POST /nope HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", hidden.len());
        stream.write_all(head.as_bytes()).unwrap();
        assert!(answer(&mut stream).starts_with("HTTP/1.1 404 "));
        std::thread::sleep(Duration::from_millis(pause));
        // The gateway may have closed the connection by now.
        let _ = stream.write_all(hidden.as_bytes());
        let mut more = Vec::new();
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let _ = stream.read_to_end(&mut more);
        assert_eq!(String::from_utf8_lossy(&more), "", "idle_timeout {idle_timeout}");
        assert_eq!(upstream.seen().len(), 0, "idle_timeout {idle_timeout}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_tls_connection_is_reused() {
    let (platform, authority) = (Platform::unlimited().await, Authority::new());
    let gateway = authority.gateway(&platform, &[IDLE]).await;
    let mut caller = Caller::over(authority.connect_by(gateway.address, b"http/1.1").await).await;
    for _ in 0..3 {
        assert_eq!(caller.read("1").await.status, 200);
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_stalls_after_a_pause_times_out() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[IDLE, ("server.header_timeout", "200ms")]).await;
    let mut stream = TcpStream::connect(gateway.address).unwrap();
    stream.write_all(request().as_bytes()).unwrap();
    assert!(answer(&mut stream).starts_with("HTTP/1.1 200 OK\r\n"));
    std::thread::sleep(PAUSE);
    stream.write_all(b"POST ").unwrap();
    // Shorter than the idle timeout.
    stream.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    assert_eq!(answer(&mut stream), "", "the connection is closed");
}

/// Even if another timer expired while the response was pending.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_closed_at_the_idle_timeout_after_a_slow_response() {
    let platform = Platform::unlimited().await;
    platform.faults(serde_json::json!({ "latency_ms": 900 })).await;
    let timeouts = [("server.header_timeout", "300ms"), ("server.idle_timeout", "400ms")];
    let gateway = TestGateway::start(&platform, &timeouts).await;
    let text = crate::support::raw(gateway.address, request().as_bytes());
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
}
