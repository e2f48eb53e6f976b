//! HTTP/2 callers that do not read their responses, at the level of frames (RFC 9113).

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

/// Frame types.
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

/// The header block of a read request.
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

/// A connection on which the test writes the frames.
struct Raw {
    /// The received frames, read by a separate task, so that waiting for one can be cancelled at any time.
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
    /// Opens a connection with this initial window for each stream.
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

    /// Sends a read request.
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

    /// Reads frames until one of this type arrives on the stream.
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
        let is_complete = reader.read_exact(&mut payload).await.is_ok();
        if !is_complete || frames.send(Frame { kind, stream: u32::from_be_bytes(stream), payload }).is_err() {
            return;
        }
    }
}

/// Settings for one caller with a key for all tenants and routes.
fn caller_settings() -> [(&'static str, String); 3] {
    let hash: String = Sha256::digest(KEY).iter().map(|byte| format!("{byte:02x}")).collect();
    [("callers.a.key_sha256", hash), ("callers.a.tenants", "*".to_owned()), ("callers.a.routes", "*".to_owned())]
}

/// Unread responses to unauthenticated requests hold no permit of `server.max_connections`.
#[tokio::test(flavor = "multi_thread")]
async fn unauthenticated_requests_use_no_shared_capacity() {
    let (platform, authority, key) = (Platform::unlimited().await, Authority::new(), caller_settings());
    let mut overrides: Vec<(&str, &str)> = key.iter().map(|(name, value)| (*name, value.as_str())).collect();
    overrides.push(("server.max_connections", "4"));
    let gateway = authority.gateway(&platform, &overrides).await;
    let mut unauthenticated = Vec::new();
    for _ in 0..3 {
        let mut connection = Raw::open(&authority, gateway.address, 0).await;
        for stream in [1, 3, 5, 7, 9] {
            connection.ask(stream, None).await;
        }
        // The head of the last response: all are answered, with bodies that are not read.
        connection.until(HEADERS, 9).await.unwrap();
        unauthenticated.push(connection);
    }
    let mut caller = Raw::open(&authority, gateway.address, 1 << 20).await;
    caller.ask(1, Some(KEY)).await;
    let body = caller.until(DATA, 1).await.unwrap().payload;
    assert!(String::from_utf8_lossy(&body).contains("\"cardId\""), "{}", String::from_utf8_lossy(&body));
    // An authenticated caller does use that capacity.
    caller.ask(3, Some("wrong")).await;
    assert!(String::from_utf8_lossy(&caller.until(DATA, 3).await.unwrap().payload).contains("unauthenticated"));
    let mut authenticated = unauthenticated.remove(0);
    for stream in (11..21).step_by(2) {
        authenticated.ask(stream, Some(KEY)).await;
    }
    authenticated.until(HEADERS, 19).await.unwrap();
    caller.ask(5, Some(KEY)).await;
    assert!(String::from_utf8_lossy(&caller.until(DATA, 5).await.unwrap().payload).contains("\"unavailable\""));
}

/// A response that is not read is aborted in time, whatever other traffic its connection has, and the connection stays open.
#[tokio::test(flavor = "multi_thread")]
async fn each_response_has_its_own_send_deadline() {
    let list = format!("[{}]", vec![r#"{"useStatus":1}"#; 4000].join(","));
    let upstream = Scripted::start(move |_, _| Action::success(&list)).await;
    let authority = Authority::new();
    let gateway = authority.gateway(&upstream, &[("server.idle_timeout", "1s"), ("server.max_connections", "2")]).await;
    // None of the first response is read, and only the beginning of the second.
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
        // The connection stays open, and the permit of the response is free again.
        caller.ask(stream, None).await;
        caller.send(WINDOW_UPDATE, 0, stream, &(1u32 << 20).to_be_bytes()).await;
        let body = caller.until(DATA, stream).await.unwrap().payload;
        assert!(body.starts_with(b"{\"status\":true"), "{}", String::from_utf8_lossy(&body));
    }
}

/// A response that is read slowly but steadily is sent to its end.
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
