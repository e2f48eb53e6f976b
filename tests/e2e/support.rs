//! A gateway, a platform and callers, all over real sockets on free ports.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use zvgate::app::{App, Surroundings, TaskEnded, Workers};
use zvgate::clock::{Clock, Hands};
use zvgate::configuration::Configuration;
use zvgate::gateway::Gateway;
use zvgate::limit::EarlierCalls;
use zvgate::sandbox::{Faults, Format, Merchant, Options, Sandbox};
use zvgate::secret::Secret;
use zvgate::settings::Sources;

pub(crate) const READ: &str = "/v3/crm/coupon/getCustomerCoupons";
pub(crate) const WRITE: &str = "/v3/crm/coupon/writeOffCoupon";
pub(crate) const REVERSE: &str = "/v3/crm/coupon/couponReverse";

/// The merchant of the platform's published example, and a second one for tests.
pub(crate) const MERCHANTS: [(&str, &str, &str); 2] = [
    ("d14c1559e87b747d577c834b275a4310", "ba67d4fa46", "LyvrkvkxRkG2R6aM55bXpPwjYAbkEXTbVnKwfDYvVHjNwNFAmx"),
    ("fake-open-id-for-test-only-0001", "fake-grant-code-0001", "fake-open-key-for-test-only-0001"),
];

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// An upstream for a gateway.
pub(crate) trait Upstream {
    fn url(&self) -> String;
}

/// The sandbox, running as a task.
pub(crate) struct Platform {
    pub(crate) address: SocketAddr,
    _stop: DropGuard,
}

impl Platform {
    /// With the platform's limit of 10 calls in any second.
    pub(crate) async fn rate_limited() -> Self {
        Self::start(10, Clock::system()).await
    }

    /// Without a limit.
    pub(crate) async fn unlimited() -> Self {
        Self::start(0, Clock::system()).await
    }

    pub(crate) async fn start(rate: usize, clock: Clock) -> Self {
        let merchants = MERCHANTS.map(|(open_id, grant_code, open_key)| Merchant {
            open_id: open_id.to_owned(),
            grant_code: grant_code.to_owned(),
            open_keys: vec![Secret::new(open_key.to_owned())],
        });
        let options =
            Options { merchants: merchants.into(), rate, faults: Faults::default(), format: Format::default() };
        let sandbox = Sandbox::bind(loopback(), options, clock).await.unwrap();
        let address = sandbox.address().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(sandbox.run(stop.clone()));
        Self { address, _stop: stop.drop_guard() }
    }

    pub(crate) async fn stats(&self) -> Value {
        self.page(Method::GET, "stats", "").await
    }

    /// The number of requests received on a path.
    pub(crate) async fn requests(&self, path: &str) -> u64 {
        self.stats().await["requests"][path].as_u64().unwrap_or(0)
    }

    pub(crate) async fn last(&self) -> Value {
        self.page(Method::GET, "last", "").await
    }

    pub(crate) async fn faults(&self, faults: Value) {
        let shown = self.page(Method::POST, "faults", &faults.to_string()).await;
        assert_eq!(shown.get("error"), None, "{shown}");
    }

    /// Ends all faults.
    pub(crate) async fn without_faults(&self) {
        self.page(Method::DELETE, "faults", "").await;
    }

    /// Changes a coupon directly in the sandbox, so that the gateway does not see the change.
    pub(crate) async fn change(&self, customer: &str, change: &str, body: Value) -> Value {
        let changed = self.page(Method::POST, &format!("customers/{customer}/{change}"), &body.to_string()).await;
        assert_eq!(changed.get("error"), None, "{changed}");
        changed
    }

    /// Sets the keys with which the first merchant may sign.
    pub(crate) async fn keys(&self, keys: &[&str]) {
        let body = json!({ "openId": MERCHANTS[0].0, "openKeys": keys });
        assert_eq!(self.page(Method::POST, "keys", &body.to_string()).await, json!({}));
    }

    async fn page(&self, method: Method, page: &str, body: &str) -> Value {
        let request = Request::builder().method(method).uri(format!("/_sandbox/{page}")).header("host", "sandbox");
        let reply = send(self.address, request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await;
        reply.json()
    }
}

impl Upstream for Platform {
    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Configuration keys and their values, such as `("cache.ttl", "5s")`.
pub(crate) type Overrides<'a> = &'a [(&'a str, &'a str)];

/// The configuration of a gateway in front of `upstream`, with both merchants as tenants: `one`, the default, and `two`.
pub(crate) fn configuration(upstream: &impl Upstream, overrides: Overrides<'_>, file: Option<&str>) -> Configuration {
    let mut variables = BTreeMap::new();
    let mut set = |key: &str, value: &str| {
        variables.insert(format!("ZVGATE__{}", key.to_uppercase().replace('.', "__")), value.to_owned());
    };
    set("server.listen", "127.0.0.1:0");
    set("server.admin_listen", "127.0.0.1:0");
    set("upstream.base_url", &upstream.url());
    set("log.access", "none");
    for (name, (open_id, grant_code, open_key)) in ["one", "two"].into_iter().zip(MERCHANTS) {
        set(&format!("tenants.{name}.open_id"), open_id);
        set(&format!("tenants.{name}.grant_code"), grant_code);
        if !overrides.iter().any(|(key, _)| *key == format!("tenants.{name}.open_key_file")) {
            set(&format!("tenants.{name}.open_key"), open_key);
        }
    }
    set("tenants.one.default", "true");
    for (key, value) in overrides {
        set(key, value);
    }
    let file = file.map(|text| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    });
    let path = file.as_ref().map(|file| file.path().to_path_buf());
    let sources = Sources { file: path, variables, ..Sources::default() };
    Configuration::load(&sources).unwrap_or_else(|errors| panic!("{errors}"))
}

/// A gateway, running as a task.
pub(crate) struct TestGateway {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) clock: Arc<Hands>,
    pub(crate) inner: Arc<Gateway>,
    pub(crate) stop: CancellationToken,
    pub(crate) done: tokio::task::JoinHandle<Result<(), TaskEnded>>,
    _stop: DropGuard,
}

impl TestGateway {
    pub(crate) async fn start(upstream: &impl Upstream, overrides: Overrides<'_>) -> Self {
        Self::run(configuration(upstream, overrides, None), EarlierCalls::None).await
    }

    /// Starts as a new process does, without knowing which calls were made before.
    pub(crate) async fn cold(upstream: &impl Upstream, overrides: Overrides<'_>) -> Self {
        Self::run(configuration(upstream, overrides, None), EarlierCalls::Unknown).await
    }

    pub(crate) async fn with_file(upstream: &impl Upstream, overrides: Overrides<'_>, file: &str) -> Self {
        Self::run(configuration(upstream, overrides, Some(file)), EarlierCalls::None).await
    }

    /// With a configuration of its own.
    pub(crate) async fn of(configuration: Configuration) -> Self {
        Self::run(configuration, EarlierCalls::None).await
    }

    async fn run(configuration: Configuration, earlier: EarlierCalls) -> Self {
        let (clock, control) = Clock::shifted();
        let app = App::bind(configuration, clock, Surroundings::new(earlier)).await.unwrap();
        let (address, admin) = (app.address().unwrap(), app.admin_address().unwrap());
        let inner = app.gateway();
        let stop = CancellationToken::new();
        let done = tokio::spawn(app.run(Workers::new(Vec::new()), stop.clone()));
        Self { address, admin, clock: control, inner, done, _stop: stop.clone().drop_guard(), stop }
    }

    /// Reads a customer's coupons.
    pub(crate) async fn read(&self, customer: &str) -> Reply {
        self.post(READ, &[], &json!({ "params": { "customerId": customer } }).to_string()).await
    }

    pub(crate) async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        post(self.address, path, headers, body).await
    }

    pub(crate) async fn page(&self, path: &str) -> Reply {
        admin_page(self.admin, path).await
    }

    /// The value of a metric, named with its labels as on the metrics page; 0 if it is absent.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        metric(self.admin, name).await.unwrap_or(0.0)
    }
}

/// A page of an admin listener.
pub(crate) async fn admin_page(admin: SocketAddr, path: &str) -> Reply {
    let request = Request::get(path).header("host", "localhost").body(Full::default()).unwrap();
    send(admin, request).await
}

/// The value of a metric, named with its labels as on the metrics page, if it is there.
pub(crate) async fn metric(admin: SocketAddr, name: &str) -> Option<f64> {
    let page = admin_page(admin, "/metrics").await.text();
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(|value| value.parse().unwrap())
}

/// A response to a caller.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn is_hit(&self) -> bool {
        self.header("cache-status").starts_with("zvgate; hit; ttl=")
    }

    pub(crate) fn is_stored_miss(&self) -> bool {
        self.header("cache-status").starts_with("zvgate; fwd=miss; stored; ttl=")
    }

    /// Asserts that this is the given gateway error, with all parts that every gateway error has.
    #[track_caller]
    pub(crate) fn assert_error(&self, status: u16, error: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let body = self.json();
        assert_eq!(body["error"], error, "{body}");
        assert_eq!((&body["status"], &body["code"]), (&json!(false), &json!(990_000 + u32::from(status))));
        assert!(!body["message"].as_str().unwrap().is_empty());
        assert_eq!(body["requestId"], self.header("x-request-id"));
        assert!(self.header("proxy-status").starts_with("zvgate; error="), "{self:?}");
        assert_eq!(self.header("cache-status"), "");
        assert_eq!(self.header("content-type"), "application/json");
        assert_eq!(self.headers.contains_key("retry-after"), status == 429 || status == 503, "{self:?}");
    }
}

pub(crate) async fn post(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let mut request = Request::post(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "localhost");
    }
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(address, request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await
}

/// Sends a request on a new connection.
pub(crate) async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Reply {
    let mut caller = Caller::connect(address).await;
    caller.send(request).await.unwrap()
}

/// A caller with a connection that stays open.
pub(crate) struct Caller(hyper::client::conn::http1::SendRequest<Full<Bytes>>);

impl Caller {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap()).await
    }

    pub(crate) async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(async move { connection.await.ok() });
        Self(sender)
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Reply> {
        self.0.ready().await?;
        let response = self.0.send_request(request).await?;
        let (head, body) = response.into_parts();
        Ok(Reply { status: head.status.as_u16(), headers: head.headers, body: body.collect().await?.to_bytes() })
    }

    /// Whether the peer has closed the connection.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Waits until the peer closes the connection.
    pub(crate) async fn wait_until_closed(&mut self) -> bool {
        while self.0.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    pub(crate) async fn read(&mut self, customer: &str) -> Reply {
        let body = json!({ "params": { "customerId": customer } }).to_string();
        let request = Request::post(READ).header("host", "localhost").header("content-type", "application/json");
        self.send(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap()
    }
}

/// Waits until something holds, for a while.
pub(crate) async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    for _ in 0..2000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not in ten seconds: {what}");
}

/// Sends bytes unchanged, and reads until the peer closes the connection.
pub(crate) fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

/// The members of a forwarded envelope.
pub(crate) fn envelope(request: &str) -> Value {
    serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// The caller's clock: seconds since the Unix epoch.
pub(crate) fn unix_now() -> f64 {
    #[expect(clippy::disallowed_methods, reason = "a caller has its own clock")]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Seconds since the Unix epoch at a date of the platform, according to `date`.
pub(crate) fn unix_of(date: &str) -> i64 {
    let output = std::process::Command::new("date").args(["-d", &format!("{date} +0800"), "+%s"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// The log of this process, as JSON. Each test runs in a process of its own.
#[derive(Clone, Default)]
pub(crate) struct CapturedLog(Arc<std::sync::Mutex<Vec<u8>>>);

/// Captures the log from here on.
pub(crate) fn captured_log() -> CapturedLog {
    let log = CapturedLog::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    log
}

impl CapturedLog {
    pub(crate) fn lines(&self) -> Vec<Value> {
        let bytes = self.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Whether there is a line with this message.
    pub(crate) fn has(&self, message: &str) -> bool {
        self.lines().iter().any(|line| line["message"] == message)
    }
}

impl Write for CapturedLog {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
