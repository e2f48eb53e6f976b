//! Allocations of a hit, and those of the HTTP library for any response: a count does not depend on the machine.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use zvgate::app::{App, Surroundings, Workers};
use zvgate::clock::Clock;
use zvgate::configuration::Configuration;
use zvgate::limit::EarlierCalls;
use zvgate::sandbox::{Faults, Format, Merchant, Options, Sandbox};
use zvgate::secret::Secret;
use zvgate::settings::Sources;

/// The merchant of the platform's published example.
const IDENTITY: [&str; 3] =
    ["d14c1559e87b747d577c834b275a4310", "ba67d4fa46", "LyvrkvkxRkG2R6aM55bXpPwjYAbkEXTbVnKwfDYvVHjNwNFAmx"];
const BODY: &str = r#"{"params":{"customerId":"383933091455959041","useStatus":"","cardId":""}}"#;
const REQUESTS: u64 = 1000;

fn request() -> String {
    format!(
        "POST /v3/crm/coupon/getCustomerCoupons HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    )
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// Allocations for one request to a server that runs on this thread.
fn allocations(serve: impl AsyncFnOnce() -> SocketAddr) -> f64 {
    let (runtime, request) = (runtime(), request());
    let mut stream = runtime.block_on(async { connect(serve().await).await });
    let mut buffer = vec![0; 64 << 10];
    let mut ask = async |times| {
        for _ in 0..times {
            stream.write_all(request.as_bytes()).await.unwrap();
            let length = stream.read(&mut buffer).await.unwrap();
            assert!(buffer[..length].starts_with(b"HTTP/1.1 200 OK\r\n"));
        }
    };
    // Allocations that are made only once.
    runtime.block_on(ask(10));
    let counted = allocation_counter::measure(|| runtime.block_on(ask(REQUESTS)));
    counted.count_total as f64 / REQUESTS as f64
}

async fn bare_hyper() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = socket.accept().await.unwrap();
        let body = Bytes::from(vec![b' '; 1673]);
        let service = service_fn(move |request: Request<Incoming>| {
            let body = body.clone();
            async move {
                request.into_body().collect().await.unwrap();
                let mut response = Response::new(Full::new(body));
                response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
                Ok::<_, Infallible>(response)
            }
        });
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.unwrap();
    });
    address
}

async fn gateway() -> SocketAddr {
    let [open_id, grant_code, open_key] = IDENTITY.map(str::to_owned);
    let merchant = Merchant {
        open_id: open_id.clone(),
        grant_code: grant_code.clone(),
        open_keys: vec![Secret::new(open_key.clone())],
    };
    let options = Options { merchants: vec![merchant], rate: 0, faults: Faults::default(), format: Format::default() };
    let sandbox = Sandbox::bind("127.0.0.1:0".parse().unwrap(), options, Clock::system()).await.unwrap();
    let variables = [
        ("SERVER__LISTEN", "127.0.0.1:0".to_owned()),
        ("SERVER__ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
        ("UPSTREAM__BASE_URL", format!("http://{}", sandbox.address().unwrap())),
        ("TENANTS__A__OPEN_ID", open_id),
        ("TENANTS__A__GRANT_CODE", grant_code),
        ("TENANTS__A__OPEN_KEY", open_key),
    ];
    let variables = variables.map(|(name, value)| (format!("ZVGATE__{name}"), value));
    let sources = Sources { variables: BTreeMap::from(variables), ..Sources::default() };
    let configuration = Configuration::load(&sources).unwrap();
    let app = App::bind(configuration, Clock::system(), Surroundings::new(EarlierCalls::None)).await.unwrap();
    let address = app.address().unwrap();
    tokio::spawn(sandbox.run(CancellationToken::new()));
    tokio::spawn(app.run(Workers::new(Vec::new()), CancellationToken::new()));
    address
}

#[test]
fn a_hit_allocates_no_more_than_bare_hyper() {
    let (library, hit) = (allocations(bare_hyper), allocations(gateway));
    println!("allocations for a request: bare hyper {library:.2}, a hit {hit:.2}");
    assert!(library > 1.0, "allocations are counted");
    assert!(hit <= library, "{hit} for a hit, {library} for bare hyper");
}
