use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::secret::Secret;
use crate::settings::{KeySource, TenantSettings};
use crate::signer::{Call, Nonces};
use crate::tenant::{Identities, TenantKeys, Tenants};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

async fn http1(near: tokio::io::DuplexStream) -> Http1Connection {
    Http1Connection::open((Box::new(near), NOWHERE)).await.unwrap()
}

fn target() -> Arc<Target> {
    Arc::new(Target::new(&BaseUrl::parse("http://a").unwrap(), 1 << 20))
}

/// Lets a request time out; returns whether it counts as sent, and whether the server received any of it.
async fn given_up(within: Duration) -> (bool, bool) {
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let connection = Connection::new(http1(near).await, false, None, &target());
    let failure = connection.exchange(&signed(), within, || {}, || {}).await.unwrap_err();
    let mut seen = Vec::new();
    far.read_to_end(&mut seen).await.unwrap();
    assert!(matches!(failure.error, AttemptError::Timeout));
    (failure.sent, !seen.is_empty())
}

fn signed() -> SignedRequest {
    let tenants = Tenants::new(
        &[TenantSettings {
            name: "a".to_owned(),
            open_id: "i".to_owned(),
            grant_code: "g".to_owned(),
            key: KeySource::Inline(Secret::new("k".to_owned())),
            default: true,
            pace: None,
        }],
        &TenantKeys::new([("a".to_owned(), Secret::new("k".to_owned()))].into()),
        &mut Identities::default(),
    );
    let call = Call { tenant: Arc::clone(&tenants.all()[0]), path: "/".into(), members: "\"params\":{}".into() };
    SignedRequest::sign(&call, &Nonces::new().unwrap(), Wall::from_unix_seconds(0))
}

/// At whatever moment the timeout occurs.
#[tokio::test(flavor = "multi_thread")]
async fn a_timed_out_request_counts_as_sent_if_the_server_received_any_of_it() {
    let mut sent = 0;
    for nanos in [0, 1, 10_000, 30_000, 100_000, 1_000_000].into_iter().cycle().take(3000) {
        let (counted, seen) = given_up(Duration::from_nanos(nanos)).await;
        assert_eq!(counted, seen, "within {nanos} ns");
        sent += u32::from(counted);
    }
    assert!((100..2900).contains(&sent), "{sent}: both cases must occur");
}

/// A stream that records whether it was shut down, which makes TLS send close_notify.
#[derive(Debug)]
struct Recorded(tokio::io::DuplexStream, Arc<AtomicBool>);

impl AsyncRead for Recorded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Recorded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.1.store(true, Ordering::Relaxed);
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_connection_that_is_not_kept_is_shut_down_only_after_its_response() {
    for answers in [true, false] {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let shut_down = Arc::new(AtomicBool::new(false));
        let http1 = Http1Connection::open((Box::new(Recorded(near, Arc::clone(&shut_down))), NOWHERE)).await.unwrap();
        let platform = async {
            far.read_u8().await.unwrap();
            if answers {
                far.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
            }
            far.read_to_end(&mut Vec::new()).await.unwrap();
        };
        let (request, connection) = (signed(), Connection::new(http1, false, None, &target()));
        let answered = connection.exchange(&request, Duration::from_millis(500), || {}, || {});
        let (answered, ()) = tokio::join!(answered, platform);
        assert_eq!((answered.is_ok(), shut_down.load(Ordering::Relaxed)), (answers, answers));
    }
}

#[tokio::test]
async fn nothing_is_sent_on_an_idle_connection_that_was_closed() {
    let (near, far) = tokio::io::duplex(1 << 16);
    let idle = Connection::new(http1(near).await, true, None, &target());
    drop(far);
    let failure = idle.exchange(&signed(), Duration::from_secs(5), || {}, || {}).await.unwrap_err();
    assert!(failure.is_idle_close() && !failure.sent, "{failure:?}");
}

/// An answer that was there before the request says nothing about it.
#[tokio::test]
async fn what_a_server_sends_before_the_request_is_no_answer() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    let (near, mut far) = tokio::io::duplex(1 << 16);
    far.write_all(ANSWER).await.unwrap();
    let connection = Connection::new(http1(near).await, false, None, &target());
    let failure = connection.exchange(&signed(), Duration::from_secs(5), || {}, || {}).await.unwrap_err();
    assert!(!failure.sent, "{failure:?}");

    // It comes while nothing can be sent.
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let http1 = Http1Connection::open((Box::new(Unwritable(near)), NOWHERE)).await.unwrap();
    let (request, connection) = (signed(), Connection::new(http1, false, None, &target()));
    let answered = connection.exchange(&request, Duration::from_secs(5), || {}, || {});
    let (answered, written) = tokio::join!(answered, far.write_all(ANSWER));
    assert!(written.is_ok() && !answered.unwrap_err().sent);
}

/// A stream that takes nothing.
#[derive(Debug)]
struct Unwritable(tokio::io::DuplexStream);

impl AsyncRead for Unwritable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Unwritable {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Frames without end, each complete in itself, let others run, and end with the attempt's time.
#[tokio::test]
async fn an_answer_in_tiny_parts_or_interim_responses_without_end_are_cut_off() {
    const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let unending: [(&[u8], &[u8], u64); 2] =
        [(CHUNKED, b"1\r\n \r\n", 300), (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", 60_000)];
    for (head, part, within) in unending {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        // Not cut off because it is too long.
        let target = Arc::new(Target::new(&BaseUrl::parse("http://a").unwrap(), 1 << 30));
        let connection = Connection::new(http1(near).await, false, None, &target);
        let request = signed();
        let answered = connection.exchange(&request, Duration::from_millis(within), || {}, || {});
        let platform = async {
            far.read_u8().await.unwrap();
            let parts = part.repeat(1000);
            let mut written = far.write_all(head).await;
            while written.is_ok() {
                written = far.write_all(&parts).await;
            }
        };
        let mut others = 0u32;
        let other = async {
            loop {
                others += 1;
                tokio::task::yield_now().await;
            }
        };
        let failure = tokio::select! {
            (answered, ()) = async { tokio::join!(answered, platform) } => answered.unwrap_err(),
            () = other => unreachable!("it never ends"),
        };
        match head {
            CHUNKED => assert!(matches!(failure.error, AttemptError::Timeout), "{failure:?}"),
            _ => assert!(matches!(failure.error, AttemptError::NotHttp(None)), "{failure:?}"),
        }
        assert!(others > 5, "others ran {others} times");
    }
}

#[test]
fn a_date_header_is_ignored_if_the_response_has_an_age() {
    let value = HeaderValue::from_static("Wed, 21 Oct 2015 07:28:00 GMT");
    let mut headers = HeaderMap::from_iter([(DATE, value)]);
    assert_eq!(date(&headers), Some(Wall::from_unix_seconds(1_445_412_480)));
    headers.insert(AGE, HeaderValue::from_static("0"));
    assert_eq!(date(&headers), None);
    for bad in ["", "yesterday", "Wed, 21 Oct 1915 07:28:00 GMT"] {
        let headers = HeaderMap::from_iter([(DATE, HeaderValue::from_static(bad))]);
        assert_eq!(date(&headers), None, "{bad}");
    }
}

#[test]
fn the_keep_alive_timeout_is_found_among_other_parameters() {
    let hint = |value| keep_alive_hint(&HeaderMap::from_iter([(KEEP_ALIVE, HeaderValue::from_static(value))]));
    assert_eq!(hint("timeout=5, max=100"), Some(Duration::from_secs(5)));
    assert_eq!(hint("max=100, timeout=7"), Some(Duration::from_secs(7)));
    assert_eq!(hint("max=100"), None);
    assert_eq!(hint("timeout=soon"), None);
}
