//! `zvgate health`: asks a gateway whether it is ready, for health checks of containers, which have no other client.

use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{FAILED, eprint, fail, print, runtime};

/// A health check does not wait for longer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// The reason is shorter, in bytes.
const MAX_REASON: usize = 4096;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The address of the admin listener
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464")]
    admin: String,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), u8> {
    let asked = runtime()?.block_on(async { tokio::time::timeout(ANSWERS_WITHIN, ask(&arguments.admin)).await });
    let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWERS_WITHIN.as_secs())));
    let (status, reason) = asked.map_err(|error| fail(format!("{}: {error}", arguments.admin)))?;
    if status == http::StatusCode::OK {
        return print(&reason);
    }
    eprint(&format!("zvgate: {}: {status}: {}", arguments.admin, reason.trim_end()));
    Err(FAILED)
}

/// The status and the text of `/readyz`.
async fn ask(admin: &str) -> Result<(http::StatusCode, String), String> {
    let stream = TcpStream::connect(admin).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let request = http::Request::get("/readyz").header(HOST, "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_REASON).collect().await.map_err(|error| error.to_string())?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    };
    tokio::select! {
        answered = answered => answered,
        // It ends when the answer was read, or before.
        _ = connection => Err("the connection was closed".to_owned()),
    }
}
