//! An upstream that follows a script.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{Upstream, loopback};

/// The pause between parts of an answer.
const PAUSE: Duration = Duration::from_millis(50);

/// What a scripted upstream does with a request.
pub(crate) enum Action {
    /// Sends these bytes and keeps the connection open.
    Respond(Vec<u8>),
    /// Sends these bytes and closes the connection.
    RespondAndClose(Vec<u8>),
    /// Sends these parts, with a pause before each but the first, and keeps the connection open.
    RespondInParts(Vec<Vec<u8>>),
    /// Sends these bytes and resets the connection.
    RespondAndReset(Vec<u8>),
    /// Sends nothing and closes the connection.
    Close,
    /// Sends nothing and keeps the connection open.
    Hang,
}

impl Action {
    /// A success with these coupons.
    pub(crate) fn success(data: &str) -> Self {
        Self::json(&format!(r#"{{"status":true,"code":0,"message":"","data":{data}}}"#))
    }

    pub(crate) fn json(body: &str) -> Self {
        Self::Respond(http_text("200 OK", "Content-Type: application/json\r\n", body))
    }
}

pub(crate) fn http_text(status: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// An upstream that follows a script, and records every request.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    pub(crate) requests: Arc<std::sync::Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    _stop: DropGuard,
}

impl Scripted {
    /// `script` gets the number of the request, from 0 on, and its text.
    pub(crate) async fn start(script: impl Fn(usize, &str) -> Action + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind(loopback()).await.unwrap(), script)
    }

    pub(crate) fn on(listener: TcpListener, script: impl Fn(usize, &str) -> Action + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(std::sync::Mutex::new(Vec::new()));
        let script = Arc::new(script);
        let stop = CancellationToken::new();
        let connections = Arc::new(AtomicUsize::new(0));
        let (seen, counter, token) = (Arc::clone(&requests), Arc::clone(&connections), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                let connection = serve(stream, Arc::clone(&seen), Arc::clone(&script));
                tokio::spawn(token.clone().run_until_cancelled_owned(connection));
            }
        }));
        Self { address, requests, connections, _stop: stop.drop_guard() }
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Upstream for Scripted {
    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn serve(
    mut stream: TcpStream,
    seen: Arc<std::sync::Mutex<Vec<String>>>,
    script: Arc<impl Fn(usize, &str) -> Action>,
) {
    let mut buffer = Vec::new();
    loop {
        let request = loop {
            if let Some(length) = request_length(&buffer) {
                break String::from_utf8(buffer.drain(..length).collect()).unwrap();
            }
            let mut part = [0; 4096];
            match stream.read(&mut part).await {
                Ok(read) if read > 0 => buffer.extend_from_slice(&part[..read]),
                _ => return,
            }
        };
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.push(request.clone());
            seen.len() - 1
        };
        match script(number, &request) {
            Action::Respond(bytes) => stream.write_all(&bytes).await.unwrap(),
            Action::RespondAndClose(bytes) => {
                stream.write_all(&bytes).await.unwrap();
                return;
            }
            Action::RespondInParts(parts) => {
                for (number, part) in parts.iter().enumerate() {
                    if number > 0 {
                        tokio::time::sleep(PAUSE).await;
                    }
                    // The gateway may have closed it.
                    if stream.write_all(part).await.is_err() {
                        return;
                    }
                }
            }
            Action::RespondAndReset(bytes) => {
                stream.write_all(&bytes).await.unwrap();
                tokio::time::sleep(PAUSE).await;
                stream.set_zero_linger().unwrap();
                return;
            }
            Action::Close => return,
            Action::Hang => std::future::pending().await,
        }
    }
}

/// The length of the first request, once all of it has arrived.
fn request_length(buffer: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(buffer);
    let head = text.find("\r\n\r\n")? + 4;
    let length = text.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let whole = head + length.unwrap_or(0);
    (buffer.len() >= whole).then_some(whole)
}
