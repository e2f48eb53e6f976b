//! Callers of HTTP/2 that do not take what they are sent, frame by frame (RFC 9113).

use std::net::SocketAddr;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;

use crate::scripted::{Action, Scripted};
use crate::support::{Platform, READ};
use crate::tls::Authority;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const BODY: &str = r#"{"params":{"customerId":"1"}}"#;
const KEY: &str = "a caller's key";

/// Types of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;

/// A header field as a literal without indexing (RFC 7541, section 6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).unwrap();
    [&[0, length(name)][..], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
}

/// The header block of a read.
pub(crate) fn read_head() -> Vec<u8> {
    [
        field(":method", "POST"),
        field(":scheme", "https"),
        field(":authority", "localhost"),
        field(":path", READ),
        field("content-type", "application/json"),
    ]
    .concat()
}

/// A connection whose frames are written by hand.
struct Raw {
    /// Those that came, read by a task of its own, so that waiting for one can be given up at any moment.
    frames: mpsc::UnboundedReceiver<Frame>,
    writer: WriteHalf<TlsStream<TcpStream>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Raw {
    /// A connection on which each stream may send so many bytes at first.
    async fn open(authority: &Authority, address: SocketAddr, window: u32) -> Self {
        let (reader, writer) = tokio::io::split(authority.connect_by(address, b"h2").await);
        let (sender, frames) = mpsc::unbounded_channel();
        tokio::spawn(read_frames(reader, sender));
        let mut raw = Self { frames, writer };
        raw.writer.write_all(PREFACE).await.unwrap();
        // SETTINGS_INITIAL_WINDOW_SIZE.
        raw.send(SETTINGS, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat()).await;
        raw
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.writer.write_all(&[&head, payload].concat()).await.unwrap();
        self.writer.flush().await.unwrap();
    }

    /// A read.
    async fn ask(&mut self, stream: u32, key: Option<&str>) {
        let mut head = read_head();
        head.extend(key.iter().flat_map(|key| field("authorization", &format!("Bearer {key}"))));
        self.send(HEADERS, 4, stream, &head).await;
        self.send(DATA, 1, stream, BODY.as_bytes()).await;
    }

    async fn cancel(&mut self, stream: u32) {
        self.send(RST_STREAM, 0, stream, &8u32.to_be_bytes()).await;
    }

    /// The next frame; `None` at the end of the connection.
    async fn frame(&mut self) -> Option<Frame> {
        tokio::time::timeout(Duration::from_secs(20), self.frames.recv()).await.unwrap()
    }

    /// Reads frames until one of this type comes on a stream.
    async fn until(&mut self, kind: u8, stream: u32) -> Option<Frame> {
        loop {
            let frame = self.frame().await?;
            if (frame.kind, frame.stream) == (kind, stream) {
                return Some(frame);
            }
        }
    }
}

async fn read_frames(mut reader: ReadHalf<TlsStream<TcpStream>>, frames: mpsc::UnboundedSender<Frame>) {
    let mut head = [0; 9];
    while reader.read_exact(&mut head).await.is_ok() {
        let [a, b, c, kind, _, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        let whole = reader.read_exact(&mut payload).await.is_ok();
        if !whole || frames.send(Frame { kind, stream: u32::from_be_bytes(stream), payload }).is_err() {
            return;
        }
    }
}

/// One caller with a key, on all routes.
fn with_a_key() -> [(&'static str, String); 3] {
    let hash: String = Sha256::digest(KEY).iter().map(|byte| format!("{byte:02x}")).collect();
    [("callers.a.key_sha256", hash), ("callers.a.tenants", "*".to_owned()), ("callers.a.routes", "*".to_owned())]
}

/// Responses that nobody takes, to requests of nobody known, take nothing that callers share.
#[tokio::test(flavor = "multi_thread")]
async fn unauthenticated_requests_use_no_shared_capacity() {
    let (platform, authority, key) = (Platform::unlimited().await, Authority::new(), with_a_key());
    let mut overrides: Vec<(&str, &str)> = key.iter().map(|(name, value)| (*name, value.as_str())).collect();
    overrides.push(("server.max_connections", "4"));
    let gateway = authority.gateway(&platform, &overrides).await;
    let mut strangers = Vec::new();
    for _ in 0..3 {
        let mut stranger = Raw::open(&authority, gateway.address, 0).await;
        for stream in [1, 3, 5, 7, 9] {
            stranger.ask(stream, None).await;
        }
        // The head of the response to the last one: all are answered, and hold a body that nobody takes.
        stranger.until(HEADERS, 9).await.unwrap();
        strangers.push(stranger);
    }
    let mut caller = Raw::open(&authority, gateway.address, 1 << 20).await;
    caller.ask(1, Some(KEY)).await;
    let body = caller.until(DATA, 1).await.unwrap().payload;
    assert!(String::from_utf8_lossy(&body).contains("\"cardId\""), "{}", String::from_utf8_lossy(&body));
    // A caller that is known does use it up.
    caller.ask(3, Some("wrong")).await;
    assert!(String::from_utf8_lossy(&caller.until(DATA, 3).await.unwrap().payload).contains("unauthenticated"));
    let mut greedy = strangers.remove(0);
    for stream in (11..21).step_by(2) {
        greedy.ask(stream, Some(KEY)).await;
    }
    greedy.until(HEADERS, 19).await.unwrap();
    caller.ask(5, Some(KEY)).await;
    assert!(String::from_utf8_lossy(&caller.until(DATA, 5).await.unwrap().payload).contains("\"unavailable\""));
}

/// Whatever else moves on its connection, a response that is not taken is given up in time, and its connection goes on.
#[tokio::test(flavor = "multi_thread")]
async fn each_response_has_its_own_send_deadline() {
    let list = format!("[{}]", vec![r#"{"useStatus":1}"#; 4000].join(","));
    let upstream = Scripted::start(move |_, _| Action::success(&list)).await;
    let authority = Authority::new();
    let gateway = authority.gateway(&upstream, &[("server.idle_timeout", "1s"), ("server.max_connections", "2")]).await;
    // Nothing is taken of the first response, and of the second only its beginning.
    for window in [0, 20_000] {
        let mut caller = Raw::open(&authority, gateway.address, window).await;
        caller.ask(1, None).await;
        caller.until(HEADERS, 1).await.unwrap();
        let mut stream = 3;
        let (mut tick, mut reset) = (tokio::time::interval(Duration::from_millis(200)), false);
        while !reset && stream < 200 {
            tokio::select! {
                frame = caller.until(RST_STREAM, 1) => reset = frame.is_some(),
                _ = tick.tick() => {
                    caller.ask(stream, None).await;
                    caller.cancel(stream).await;
                    stream += 2;
                }
            }
        }
        assert!(reset, "window {window}");
        // The connection goes on, and what the response had of the shared limit is free again.
        caller.ask(stream, None).await;
        caller.send(WINDOW_UPDATE, 0, stream, &(1u32 << 20).to_be_bytes()).await;
        let body = caller.until(DATA, stream).await.unwrap().payload;
        assert!(body.starts_with(b"{\"status\":true"), "{}", String::from_utf8_lossy(&body));
    }
}

/// A response that is taken slowly, but taken, is sent to its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_gets_its_whole_response() {
    let list = format!("[{}]", vec![r#"{"useStatus":1}"#; 4000].join(","));
    let length = list.len();
    let upstream = Scripted::start(move |_, _| Action::success(&list)).await;
    let authority = Authority::new();
    let gateway = authority.gateway(&upstream, &[("server.idle_timeout", "2s")]).await;
    let mut caller = Raw::open(&authority, gateway.address, 0).await;
    caller.ask(1, None).await;
    let mut received = 0;
    while received < length {
        tokio::time::sleep(Duration::from_millis(300)).await;
        caller.send(WINDOW_UPDATE, 0, 1, &20_000u32.to_be_bytes()).await;
        caller.send(WINDOW_UPDATE, 0, 0, &20_000u32.to_be_bytes()).await;
        let mut granted = 20_000;
        while granted > 0 && received < length {
            let data = caller.until(DATA, 1).await.unwrap().payload.len();
            (granted, received) = (granted - data, received + data);
        }
    }
}
