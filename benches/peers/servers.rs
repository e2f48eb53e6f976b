//! Servers for comparison with the gateway: the limits of the machine and of the HTTP library, and the obvious implementation.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use redis::AsyncCommands;

use crate::process::{COUPONS, ROUTE};

/// A list of this many coupons of about 330 bytes each, as the platform writes them. None ends soon.
pub(crate) fn coupons(count: usize) -> String {
    let coupon = r#"{"beginAt":"2019-08-24 00:00:00","cardId":"390913445498200065","channel":"naixue","couponId":"390913445519171584","couponType":"0","createdAt":"2019-10-15 17:10:28","customerId":"383933091455959041","title":"","updatedAt":"2019-10-15 17:10:2","useStatus":"0","templateId":"951","endAt":"2999-11-03 23:59:59","extra":""}"#;
    format!(r#"{{"status":"true","code":"0","message":"","data":[{}]}}"#, vec![coupon; count].join(","))
}

/// Answers every request with the same bytes and parses nothing: the limit of the machine. Each request must arrive in one
/// read.
pub(crate) fn bare_loop(address: SocketAddr, count: usize) {
    let body = coupons(count);
    let answer =
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut socket = TcpListener::bind(address).expect("a free address");
    let mut poll = Poll::new().expect("a poll");
    poll.registry().register(&mut socket, Token(0), Interest::READABLE).expect("room in the poll");
    let (mut streams, mut next) = (HashMap::<Token, TcpStream>::new(), 1);
    let (mut events, mut buffer) = (Events::with_capacity(1024), [0; 16 << 10]);
    loop {
        poll.poll(&mut events, None).expect("events");
        for event in &events {
            if event.token() == Token(0) {
                while let Ok((mut stream, _)) = socket.accept() {
                    stream.set_nodelay(true).expect("an option of every stream");
                    poll.registry().register(&mut stream, Token(next), Interest::READABLE).expect("room in the poll");
                    streams.insert(Token(next), stream);
                    next += 1;
                }
                continue;
            }
            let Some(stream) = streams.get_mut(&event.token()) else { continue };
            match stream.read(&mut buffer) {
                Ok(length) if length > 0 => stream.write_all(answer.as_bytes()).unwrap_or_default(),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                _ => drop(streams.remove(&event.token())),
            }
        }
    }
}

fn respond(body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

/// Serves with hyper on one thread; `answer` gets the request's body.
fn serve(address: SocketAddr, answer: impl AsyncFn(Bytes) -> Bytes + Clone + 'static) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let socket = tokio::net::TcpListener::bind(address).await.expect("a free address");
        loop {
            let Ok((stream, _)) = socket.accept().await else { continue };
            stream.set_nodelay(true).expect("an option of every stream");
            let answer = answer.clone();
            tokio::task::spawn_local(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let answer = answer.clone();
                    async move {
                        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
                        Ok::<_, Infallible>(respond(answer(body.unwrap_or_default()).await))
                    }
                });
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

/// hyper with a fixed answer.
pub(crate) fn bare_hyper(address: SocketAddr, count: usize) {
    let body = Bytes::from(coupons(count));
    serve(address, async move |_| body.clone());
}

/// hyper with a separate copy of the answer for each customer, served in an order that defeats the caches of the CPU: what a
/// gateway with this many customers could do if the lookup took no time.
pub(crate) fn each_their_own(address: SocketAddr, count: usize) {
    let body = coupons(count);
    let bodies: Vec<Bytes> = (0..10_000).map(|_| Bytes::copy_from_slice(body.as_bytes())).collect();
    let (bodies, turn) = (Rc::new(bodies), Rc::new(Cell::new(0)));
    serve(address, async move |_| {
        turn.set((turn.get() + 6151) % bodies.len());
        bodies[turn.get()].clone()
    });
}

/// hyper that forwards each request to the mock of the platform on kept connections, and returns its answer: what a proxy with
/// this library can do that does not parse, sign, limit, count or cache anything.
pub(crate) fn forwarding(address: SocketAddr, platform: SocketAddr) {
    let idle: Rc<RefCell<Vec<SendRequest<Full<Bytes>>>>> = Rc::default();
    serve(address, async move |request| {
        let kept = idle.borrow_mut().pop();
        let mut connection = match kept {
            Some(connection) => connection,
            None => connect(platform).await,
        };
        let request = Request::post(ROUTE).header(http::header::HOST, "platform").body(Full::new(request));
        let answer = connection.send_request(request.expect("a request")).await.expect("an answer");
        let answer = answer.into_body().collect().await.expect("a whole answer").to_bytes();
        idle.borrow_mut().push(connection);
        answer
    });
}

async fn connect(platform: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = tokio::net::TcpStream::connect(platform).await.expect("a platform");
    stream.set_nodelay(true).expect("an option of every stream");
    let (connection, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a connection");
    tokio::task::spawn_local(driver);
    connection
}

/// hyper, serde_json's `Value`, and a lookup in moka: the first implementation that one would write. Each customer has a
/// separate copy of the answer, as if it came from upstream.
pub(crate) fn obvious(address: SocketAddr, count: usize) {
    let cache = moka::sync::Cache::builder().max_capacity(1 << 20).time_to_live(Duration::from_secs(3600)).build();
    let body = Bytes::from(coupons(count));
    serve(address, async move |request: Bytes| cache.get_with(key(&request), || Bytes::copy_from_slice(&body)));
}

/// What an answer depends on.
fn key(request: &[u8]) -> (String, String, String) {
    let parsed: serde_json::Value = serde_json::from_slice(request).unwrap_or_default();
    let customer = parsed.pointer("/params/customerId").and_then(|id| id.as_str()).unwrap_or_default();
    (customer.to_owned(), parsed["params"]["useStatus"].to_string(), parsed["params"]["cardId"].to_string())
}

/// hyper, `Value`, and Redis as the cache.
pub(crate) fn redis(address: SocketAddr, redis: SocketAddr) {
    let client = redis::Client::open(format!("redis://{redis}")).expect("an address");
    let body = Bytes::from(coupons(COUPONS));
    let connection: Rc<tokio::sync::OnceCell<redis::aio::MultiplexedConnection>> = Rc::default();
    serve(address, async move |request: Bytes| {
        let connect = || async { client.get_multiplexed_async_connection().await.expect("Redis") };
        let mut connection = connection.get_or_init(connect).await.clone();
        let (customer, status, card) = key(&request);
        let key = format!("{customer}|{status}|{card}");
        let known: Option<Vec<u8>> = connection.get(&key).await.expect("an answer of Redis");
        match known {
            Some(answer) => answer.into(),
            None => {
                let _: () = connection.set_ex(&key, &*body, 3600).await.expect("an answer of Redis");
                body.clone()
            }
        }
    });
}
