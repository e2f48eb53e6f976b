//! A stand-in for the open platform: to try the gateway, and to test services against it, without the platform, its
//! credentials or its bill.
//!
//! It knows the platform's rules from their publication and shares no code with the signer that it checks.

mod control;
mod coupons;
mod faults;
mod gatekeeper;
mod interface;
mod shape;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, ORIGIN, RETRY_AFTER};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use self::coupons::Coupons;
pub use self::faults::{Fault, Faults};
use self::gatekeeper::Gatekeeper;
pub use self::gatekeeper::Merchant;
pub use self::shape::{Format, Members, Shape};
use crate::clock::{Clock, Now, Wall};

/// Longest body of a request.
const MAX_BODY: usize = 1 << 20;

/// How the sandbox is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whom it knows.
    pub merchants: Vec<Merchant>,
    /// Calls allowed in any second, for each merchant and route; 0: any number.
    pub rate: usize,
    /// How it misbehaves at first.
    pub faults: Faults,
    /// How its answers are written at first.
    pub format: Format,
}

/// A sandbox that listens.
pub struct Sandbox {
    listener: TcpListener,
    platform: Arc<Platform>,
}

/// The platform's state.
struct Platform {
    clock: Clock,
    /// How it was made, to be reset to.
    options: Options,
    gatekeeper: Mutex<Gatekeeper>,
    coupons: Mutex<Coupons>,
    faults: Mutex<Faults>,
    format: Mutex<Format>,
    seen: Mutex<control::Seen>,
}

type Body = BoxBody<Bytes, io::Error>;

impl Sandbox {
    /// Binds the listener.
    ///
    /// # Errors
    /// Where the address is taken.
    pub async fn bind(listen: SocketAddr, options: Options, clock: Clock) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let platform = Platform {
            gatekeeper: Mutex::new(Gatekeeper::new(options.merchants.clone(), options.rate)),
            coupons: Mutex::new(Coupons::new(clock.wall())),
            faults: Mutex::new(options.faults.clone()),
            format: Mutex::new(options.format),
            seen: Mutex::default(),
            options,
            clock,
        };
        Ok(Self { listener, platform: Arc::new(platform) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the system does not report it.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The first coupon that a customer could redeem.
    pub fn first_card(&self, customer: &str) -> Option<String> {
        let list = self.platform.coupons.lock().list(customer, Some("0"), None, self.platform.now().wall).ok()?;
        list.first()?.get("cardId")?.as_str().map(str::to_owned)
    }

    /// Serves until `stop`; requests in progress are dropped, as when a platform fails.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    self.platform.seen.lock().connections += 1;
                    let serving = serve(Arc::clone(&self.platform), stream);
                    let stop = stop.clone();
                    tokio::spawn(async move { stop.run_until_cancelled(serving).await });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

async fn serve(platform: Arc<Platform>, stream: TcpStream) {
    // A second handle, so that the connection can be reset under the server.
    let Ok(handle) = stream.as_fd().try_clone_to_owned() else { return };
    let handle = Arc::new(handle);
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| Arc::clone(&platform).answer(request, Arc::clone(&handle)));
    // A connection that breaks, by a fault or by its caller, is dropped.
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
}

impl Platform {
    /// Both clocks as the platform has them.
    fn now(&self) -> Now {
        let now = self.clock.now();
        let skew = self.faults.lock().clock_skew;
        Now { wall: Wall::from_unix_seconds(now.wall.unix_seconds() + skew), ..now }
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: Arc<OwnedFd>,
    ) -> Result<Response<Body>, Infallible> {
        let (head, body) = request.into_parts();
        let Ok(body) = Limited::new(body, MAX_BODY).collect().await.map(http_body_util::Collected::to_bytes) else {
            return Ok(json(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("{{\"error\":\"expected a body of at most {MAX_BODY} bytes\"}}"),
            ));
        };
        if let Some(page) = head.uri.path().strip_prefix("/_sandbox/") {
            // A web page in a browser on this machine must not change anything.
            if head.headers.contains_key(ORIGIN) {
                return Ok(json(
                    StatusCode::FORBIDDEN,
                    "{\"error\":\"requests of web pages are rejected\"}".to_owned(),
                ));
            }
            return Ok(self.control(&head.method, page, &body));
        }
        let (latency, jitter) = {
            let faults = self.faults.lock();
            (faults.latency, faults.jitter)
        };
        tokio::time::sleep(jitter.mul_f64(fastrand::f64())).await;
        let path = head.uri.path();
        let number = self.seen.lock().count(path);
        let fault = self.faults.lock().strike(path, number);
        let text = self.interface(path, &body, fault);
        self.seen.lock().record(path, &head.headers, &body, &text);
        tokio::time::sleep(latency).await;
        let mut response = self.faulty(fault, text, &connection).await;
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(self.now().wall.unix_seconds().unsigned_abs());
        if let Ok(date) = httpdate::fmt_http_date(date).parse() {
            response.headers_mut().insert(DATE, date);
        }
        Ok(response)
    }

    /// The answer that a request would get, as the fault leaves it.
    async fn faulty(&self, fault: Fault, text: String, connection: &OwnedFd) -> Response<Body> {
        match fault {
            Fault::None => json(StatusCode::OK, text),
            Fault::Throttle => json(StatusCode::OK, self.failure(110_004, "调用频率超限 (too many calls)")),
            Fault::Exception => json(StatusCode::OK, self.exception(coupons::NOT_FOUND)),
            Fault::Error => json(StatusCode::OK, self.failure(100_001, "系统错误 (system error)")),
            Fault::Http500 => json(StatusCode::INTERNAL_SERVER_ERROR, "{\"error\":\"sandbox\"}".to_owned()),
            Fault::Http503 => {
                let mut response = json(StatusCode::SERVICE_UNAVAILABLE, "{\"error\":\"sandbox\"}".to_owned());
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("7"));
                response
            }
            Fault::Redirect => {
                let mut response = json(StatusCode::FOUND, String::new());
                response.headers_mut().insert(http::header::LOCATION, HeaderValue::from_static("/elsewhere"));
                response
            }
            Fault::Garbage => json(StatusCode::OK, "<html>502 Bad Gateway</html>".to_owned()),
            Fault::Hang => std::future::pending().await,
            Fault::Truncate => cut(&text),
            Fault::Reset => {
                // Without lingering, closing a connection resets it.
                let _ = rustix::net::sockopt::set_socket_linger(connection, Some(Duration::ZERO));
                cut(" ")
            }
        }
    }
}

fn json(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json;charset=UTF-8"));
    response
}

/// An answer that breaks off: half of its text, and when that has left, nothing.
struct Cut {
    half: Option<Bytes>,
    announced: u64,
    pause: Pin<Box<tokio::time::Sleep>>,
}

/// Time for what was written to leave.
const CUT_AFTER: Duration = Duration::from_millis(20);

impl hyper::body::Body for Cut {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(half) = self.half.take() {
            return Poll::Ready(Some(Ok(Frame::data(half))));
        }
        self.pause.as_mut().poll(cx).map(|()| Some(Err(io::ErrorKind::ConnectionReset.into())))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.announced)
    }
}

fn cut(text: &str) -> Response<Body> {
    let half = Bytes::copy_from_slice(text.as_bytes().get(..text.len() / 2).unwrap_or_default());
    let pause = Box::pin(tokio::time::sleep(CUT_AFTER));
    Response::new(BodyExt::boxed(Cut { half: Some(half), announced: text.len() as u64, pause }))
}
