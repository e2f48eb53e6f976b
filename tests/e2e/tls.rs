//! Callers over TLS, with HTTP/1.1 and HTTP/2.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use zvgate::configuration::Configuration;
use zvgate::settings::Sources;

use crate::program::{run, serve, write_config};
use crate::scripted::{Action, Scripted};
use crate::support::{Platform, READ, Reply, TestGateway, Upstream, configuration, loopback, raw};

const BODY: &str = r#"{"params":{"customerId":"1"}}"#;

/// A certificate authority, and a folder for the certificates that it issues.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

/// TLS in front of the platform, with a certificate that can be replaced.
pub(crate) struct TlsFront {
    pub(crate) port: u16,
    acceptor: Arc<std::sync::Mutex<TlsAcceptor>>,
}

impl TlsFront {
    pub(crate) async fn start(platform: SocketAddr, acceptor: TlsAcceptor) -> Self {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let (port, acceptor) = (listener.local_addr().unwrap().port(), Arc::new(std::sync::Mutex::new(acceptor)));
        let current = Arc::clone(&acceptor);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = current.lock().unwrap().clone();
                tokio::spawn(async move {
                    let mut secured = acceptor.accept(stream).await?;
                    let mut plain = TcpStream::connect(platform).await?;
                    tokio::io::copy_bidirectional(&mut secured, &mut plain).await
                });
            }
        });
        Self { port, acceptor }
    }

    /// Uses another certificate from now on.
    pub(crate) fn replace(&self, acceptor: TlsAcceptor) {
        *self.acceptor.lock().unwrap() = acceptor;
    }
}

impl Authority {
    /// Issues a certificate for the gateway, `cert.pem` and `key.pem`; that of the authority is `ca.pem`.
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        let authority = Self { issuer, folder };
        authority.issue("cert", "key");
        authority
    }

    /// Writes a new certificate and its key to these files; returns the certificate.
    pub(crate) fn issue(&self, cert: &str, key: &str) -> Vec<u8> {
        let own = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let signed = params.signed_by(&own, &self.issuer).unwrap();
        std::fs::write(self.file(cert), signed.pem()).unwrap();
        std::fs::write(self.file(key), own.serialize_pem()).unwrap();
        signed.der().to_vec()
    }

    /// TLS of a server that has a certificate with these parameters.
    pub(crate) fn server(&self, params: &CertificateParams) -> rustls::ServerConfig {
        let key = KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        builder.unwrap().with_no_client_auth().with_single_cert(vec![signed.der().clone()], key).unwrap()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.pem"))
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    pub(crate) async fn gateway(
        &self,
        upstream: &impl Upstream,
        overrides: crate::support::Overrides<'_>,
    ) -> TestGateway {
        let (cert, key) = (self.path("cert"), self.path("key"));
        let mut all = vec![("server.tls.cert", cert.as_str()), ("server.tls.key", key.as_str())];
        all.extend(overrides);
        TestGateway::start(upstream, &all).await
    }

    async fn connect(&self, address: SocketAddr) -> tokio_rustls::client::TlsStream<TcpStream> {
        self.connect_by(address, b"h2").await
    }

    /// Connects with this ALPN protocol (RFC 7301).
    pub(crate) async fn connect_by(
        &self,
        address: SocketAddr,
        protocol: &[u8],
    ) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let tcp = TcpStream::connect(address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }

    /// The certificate that is presented on new connections.
    async fn served(&self, address: SocketAddr) -> Vec<u8> {
        let stream = self.connect(address).await;
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    async fn caller(&self, address: SocketAddr) -> Caller {
        let stream = self.connect(address).await;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        Caller { sender, connection: tokio::spawn(async move { connection.await.ok() }) }
    }

    /// Runs `curl`, which trusts the authority and connects by the name `localhost`.
    pub(crate) fn curl(&self, address: SocketAddr, more: &[&str]) -> (i32, String) {
        let mut command = Command::new("curl");
        command.args(["-sS", "--cacert", &self.path("ca"), "-w", "\n%{http_version} %{http_code}"]);
        command.args(["-H", "Content-Type: application/json", "-d", BODY]).args(more);
        command.arg(format!("https://localhost:{}{READ}", address.port()));
        let (code, out, err) = tokio::task::block_in_place(|| run(&mut command));
        (code, out + &err)
    }
}

/// A caller over HTTP/2.
struct Caller {
    sender: http2::SendRequest<Full<Bytes>>,
    connection: tokio::task::JoinHandle<Option<()>>,
}

impl Caller {
    async fn read(&self, customer: &str) -> hyper::Result<Reply> {
        let mut sender = self.sender.clone();
        sender.ready().await?;
        let body = BODY.replace('1', customer);
        let request = Request::post(format!("https://localhost{READ}")).header("content-type", "application/json");
        let (head, body) = sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await?.into_parts();
        assert_eq!(head.version, Version::HTTP_2);
        Ok(Reply { status: head.status.as_u16(), headers: head.headers, body: body.collect().await?.to_bytes() })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_callers_may_use_http1_or_http2_and_plain_http_is_rejected() {
    let (platform, authority) = (Platform::unlimited().await, Authority::new());
    let gateway = authority.gateway(&platform, &[]).await;
    for (option, version) in [("--http1.1", "1.1"), ("--http2", "2"), ("--tls-max=1.2", "2"), ("--no-alpn", "1.1")] {
        let option: Vec<&str> = option.split('=').collect();
        let (code, out) = authority.curl(gateway.address, &option);
        assert_eq!((code, out.lines().last()), (0, Some(&*format!("{version} 200"))), "{out}");
        assert!(out.contains("couponId"), "{out}");
    }
    let plain = tokio::task::block_in_place(|| raw(gateway.address, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    assert!(!plain.contains("HTTP/"), "{plain}");
    assert_eq!(gateway.page("/healthz").await.status, 200, "the admin listener has no TLS");
    assert_eq!(platform.requests(READ).await, 1);
    for (option, code) in [("--tlsv1.3", 0), ("--tls-max=1.1", 35)] {
        let option: Vec<&str> = option.split('=').collect();
        assert_eq!(authority.curl(gateway.address, &option).0, code, "{option:?}");
    }
}

/// If a stream is reset while its caller still sends, many clients do not report the response.
#[tokio::test(flavor = "multi_thread")]
async fn an_http2_caller_rejected_before_its_body_arrived_gets_the_response() {
    let (platform, authority) = (Platform::unlimited().await, Authority::new());
    let gateway = authority.gateway(&platform, &[]).await;
    for _ in 0..30 {
        let (code, out) = authority.curl(gateway.address, &["--http2", "-H", "Origin: http://shop.example"]);
        assert_eq!((code, out.lines().last()), (0, Some("2 403")), "{out}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_client_ca_callers_need_a_certificate_from_it() {
    let (platform, authority, strangers) = (Platform::unlimited().await, Authority::new(), Authority::new());
    let gateway = authority.gateway(&platform, &[("server.tls.client_ca", &authority.path("ca"))]).await;
    authority.issue("caller", "caller-key");
    let own = ["--cert", &authority.path("caller"), "--key", &authority.path("caller-key")];
    let (code, out) = authority.curl(gateway.address, &own);
    assert_eq!((code, out.lines().last()), (0, Some("2 200")), "{out}");
    assert_ne!(authority.curl(gateway.address, &[]).0, 0);
    let other = ["--cert", &strangers.path("cert"), "--key", &strangers.path("key")];
    assert_ne!(authority.curl(gateway.address, &other).0, 0);
    assert_eq!(platform.requests(READ).await, 1);
}

/// A session that resumes does not show the certificate again, which may have expired meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn callers_with_certificates_show_them_on_each_connection() {
    let (platform, authority) = (Platform::unlimited().await, Authority::new());
    authority.issue("caller", "caller-key");
    let pem = |name: &str| std::fs::read(authority.file(name)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem("ca")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions: [&[&SupportedProtocolVersion]; 2] = [&[&rustls::version::TLS13], &[&rustls::version::TLS12]];
    for version in versions {
        for (client_ca, resumes) in [(None, true), (Some(authority.path("ca")), false)] {
            let overrides = client_ca.as_deref().map(|ca| ("server.tls.client_ca", ca));
            let gateway = authority.gateway(&platform, overrides.as_slice()).await;
            let chain = vec![CertificateDer::from_pem_slice(&pem("caller")).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(&pem("caller-key")).unwrap();
            let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(version)
                .unwrap()
                .with_root_certificates(roots.clone())
                .with_client_auth_cert(chain, key)
                .unwrap();
            let connector = TlsConnector::from(Arc::new(config));
            let mut kinds = Vec::new();
            for _ in 0..2 {
                let stream = TcpStream::connect(gateway.address).await.unwrap();
                let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
                let request = format!(
                    "POST {READ} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{BODY}",
                    BODY.len()
                );
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut reply = Vec::new();
                stream.read_to_end(&mut reply).await.unwrap();
                assert!(reply.starts_with(b"HTTP/1.1 200 "));
                kinds.push(stream.get_ref().1.handshake_kind().unwrap());
            }
            let second = if resumes { HandshakeKind::Resumed } else { HandshakeKind::Full };
            assert_eq!(kinds, [HandshakeKind::Full, second], "{version:?}, {client_ca:?}");
        }
    }
}

/// As a renewal does, one file is replaced after the other. Existing connections stay open.
#[tokio::test(flavor = "multi_thread")]
async fn new_certificates_are_served_without_a_restart() {
    let (platform, authority) = (Platform::unlimited().await, Authority::new());
    let gateway = authority.gateway(&platform, &[]).await;
    let (old, caller) = (authority.served(gateway.address).await, authority.caller(gateway.address).await);
    caller.read("1").await.unwrap();
    let new = authority.issue("next", "next-key");
    std::fs::copy(authority.file("next"), authority.file("cert")).unwrap();
    // Longer than two reads of the files take.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(authority.served(gateway.address).await, old, "a certificate without its key is not used");
    std::fs::copy(authority.file("next-key"), authority.file("key")).unwrap();
    while authority.served(gateway.address).await != new {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(caller.read("1").await.unwrap().is_hit(), "the existing connection is still served");
    std::fs::write(authority.file("cert"), "half a certif").unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(authority.served(gateway.address).await, new);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_can_change_the_certificate_files() {
    let (platform, authority) = (Platform::unlimited().await, Authority::new());
    let gateway = authority.gateway(&platform, &[]).await;
    let new = authority.issue("next", "next-key");
    let (next, next_key) = (authority.path("next"), authority.path("next-key"));
    let overrides = [("server.tls.cert", next.as_str()), ("server.tls.key", next_key.as_str())];
    assert!(gateway.inner.reload(Ok(configuration(&platform, &overrides, None))));
    assert_eq!(authority.served(gateway.address).await, new);
    // From now on the new files are watched.
    let newer = authority.issue("next", "next-key");
    while authority.served(gateway.address).await != newer {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn unusable_certificates_are_configuration_errors() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let (cert, key) = (authority.path("cert"), authority.path("key"));
    std::fs::write(authority.file("broken"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    for (cert, key, client_ca, expected) in [
        (cert.as_str(), "", "", "server.tls.key: is missing"),
        ("", key.as_str(), "", "server.tls.cert: is missing"),
        ("", "", key.as_str(), "server.tls.cert: is missing"),
        (&key, &key, "", "server.tls.cert: names a file without a certificate in PEM"),
        (&cert, &cert, "", "server.tls.key: names a file without a private key in PEM"),
        (&cert, &strangers.path("key"), "", "server.tls.key: does not match server.tls.cert"),
        (&authority.path("none"), &key, "", "none.pem, which cannot be read"),
        (&cert, &key, &key, "server.tls.client_ca: names a file without a certificate in PEM"),
        (&cert, &key, &authority.path("broken"), "server.tls.client_ca: contains an invalid certificate"),
    ] {
        let given = [("CERT", cert), ("KEY", key), ("CLIENT_CA", client_ca)];
        let given = given.into_iter().filter(|(_, file)| !file.is_empty());
        let variables = given.map(|(name, file)| (format!("ZVGATE__SERVER__TLS__{name}"), file.to_owned())).collect();
        let loaded = Configuration::load(&Sources { variables, ..Sources::default() });
        let errors = loaded.err().expect(expected).to_string();
        assert!(errors.contains(expected), "{errors}");
        assert!(!errors.contains("PRIVATE"), "{errors}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_one_connection_count_towards_max_connections() {
    let upstream = Scripted::start(|_, _| Action::Hang).await;
    let authority = Authority::new();
    let overrides = [("server.max_connections", "3"), ("server.max_streams", "5"), ("limits.upstream.rate", "0")];
    let gateway = authority.gateway(&upstream, &overrides).await;
    let caller = authority.caller(gateway.address).await;
    let mut requests = tokio::task::JoinSet::new();
    for customer in ["11", "12", "13", "14", "15"] {
        let sender = caller.sender.clone();
        requests.spawn(async move {
            let caller = Caller { sender, connection: tokio::spawn(async { None }) };
            caller.read(customer).await.unwrap()
        });
    }
    for _ in 0..2 {
        requests.join_next().await.unwrap().unwrap().assert_error(503, "unavailable");
    }
    assert_eq!(gateway.metric("zvgate_limited_total{caller=\"anonymous\",limit=\"connections\"}").await, 2.0);
    assert_eq!(requests.len(), 3, "the others are in flight");
}

/// Between requests, frames that belong to no request do not start the header timeout.
#[tokio::test(flavor = "multi_thread")]
async fn an_http2_connection_without_requests_is_closed_at_the_idle_timeout() {
    let (platform, authority) = (Platform::unlimited().await, Authority::new());
    let overrides = [("server.header_timeout", "200ms"), ("server.idle_timeout", "2s")];
    let gateway = authority.gateway(&platform, &overrides).await;
    let caller = authority.caller(gateway.address).await;
    caller.read("1").await.unwrap();
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(caller.read("1").await.unwrap().is_hit());
    tokio::time::timeout(Duration::from_secs(20), caller.connection).await.unwrap().unwrap();
    let quiet = authority.connect(gateway.address).await;
    let (_sender, connection) =
        http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(quiet)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), connection).await.unwrap().ok();
    let slow = TcpStream::connect(gateway.address).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), slow.readable()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_completes_http2_requests_in_flight_and_closes_the_connection() {
    let platform = Platform::unlimited().await;
    platform.faults(serde_json::json!({ "latency_ms": 700 })).await;
    let authority = Authority::new();
    let gateway = authority.gateway(&platform, &[]).await;
    let caller = authority.caller(gateway.address).await;
    let (answered, ()) = tokio::join!(caller.read("1"), async {
        while platform.requests(READ).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        gateway.stop.cancel();
    });
    assert_eq!(answered.unwrap().status, 200);
    // Long before the idle timeout.
    tokio::time::timeout(Duration::from_secs(20), caller.connection).await.unwrap().unwrap();
    gateway.done.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_uses_tls_as_configured_and_reloads_it_on_sighup() {
    let (platform, authority) = (Platform::unlimited().await, Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let table = |folder: &Path, name: &str| {
        let file = |kind: &str| authority.path(&format!("{name}{kind}"));
        let more = format!("[server.tls]\ncert = {:?}\nkey = {:?}\n", file("cert"), file("key"));
        write_config(folder, &platform.url(), &more)
    };
    let (gateway, _log, record) = serve(&table(folder.path(), ""));
    let address = record["listen"].as_str().unwrap().parse().unwrap();
    let (code, out) = authority.curl(address, &[]);
    assert_eq!((code, out.lines().last()), (0, Some("2 200")), "{out}");
    let new = authority.issue("new-cert", "new-key");
    table(folder.path(), "new-");
    gateway.signal("HUP");
    while authority.served(address).await != new {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_connection_carries_at_most_max_streams_requests() {
    let upstream = Scripted::start(|_, _| Action::Hang).await;
    let authority = Authority::new();
    let gateway = authority.gateway(&upstream, &[("server.max_streams", "2"), ("limits.upstream.rate", "0")]).await;
    let wait_for = async |count: usize| {
        while upstream.requests.lock().unwrap().len() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (caller, other) = (authority.caller(gateway.address).await, authority.caller(gateway.address).await);
    // The limit is known to the caller once it has received the SETTINGS frame.
    tokio::select! {
        _ = caller.read("11") => panic!("upstream does not answer"),
        () = wait_for(1) => {}
    }
    tokio::select! {
        _ = async { tokio::join!(caller.read("12"), caller.read("13"), caller.read("14")) } => panic!("upstream does not answer"),
        () = async {
            wait_for(3).await;
            tokio::select! {
                _ = other.read("21") => panic!("upstream does not answer"),
                () = wait_for(4) => {}
            }
        } => {}
    }
    assert!(upstream.requests.lock().unwrap()[3].contains("\"21\""), "the caller's third request waits");
}

/// The connection preface with an empty SETTINGS frame (RFC 9113, section 3.4).
const CLIENT_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The types of the frames in these bytes.
fn frames(mut bytes: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    while let [a, b, c, kind, ..] = bytes {
        types.push(*kind);
        let length = 9 + (usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c));
        bytes = bytes.get(length..).unwrap_or_default();
    }
    types
}

/// The type of a GOAWAY frame.
const GOAWAY: u8 = 7;

async fn read_until_closed(stream: &mut tokio_rustls::client::TlsStream<TcpStream>) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A connection closed without close_notify is closed as well.
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await.unwrap().ok();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_http2_request_is_counted_and_its_connection_times_out() {
    let upstream = Scripted::start(|_, _| Action::Hang).await;
    let authority = Authority::new();
    let gateway = authority.gateway(&upstream, &[("server.idle_timeout", "1s")]).await;
    let caller = authority.caller(gateway.address).await;
    tokio::select! {
        _ = caller.read("1") => panic!("upstream does not answer"),
        () = async {
            while upstream.requests.lock().unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        } => {}
    }
    let left = format!("zvgate_requests_total{{caller=\"anonymous\",route=\"{READ}\",status=\"499\"}}");
    while gateway.metric(&left).await < 1.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::timeout(Duration::from_secs(20), caller.connection).await.unwrap().unwrap();
}

/// Neither a connection without requests nor one whose responses are not read.
#[tokio::test(flavor = "multi_thread")]
async fn pings_do_not_keep_a_connection_open() {
    let (platform, authority) = (Platform::unlimited().await, Authority::new());
    let gateway = authority.gateway(&platform, &[("server.idle_timeout", "1s"), ("server.max_connections", "3")]).await;
    let ping = async |stream: &mut tokio_rustls::client::TlsStream<TcpStream>| {
        let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[7; 8]].concat();
        for _ in 0..60 {
            if stream.write_all(&ping).await.is_err() || stream.flush().await.is_err() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        false
    };
    let mut idle = authority.connect(gateway.address).await;
    idle.write_all(CLIENT_PREFACE).await.unwrap();
    // Requests whose responses have no window: SETTINGS_INITIAL_WINDOW_SIZE is 0.
    let mut stalled = authority.connect(gateway.address).await;
    let head = crate::http2::read_head();
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream][..], payload].concat()
    };
    let preface = &CLIENT_PREFACE[..24];
    stalled.write_all(preface).await.unwrap();
    stalled.write_all(&frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])).await.unwrap();
    for number in [1, 3, 5] {
        stalled.write_all(&frame(1, 4, number, &head)).await.unwrap();
        stalled.write_all(&frame(0, 1, number, BODY.as_bytes())).await.unwrap();
    }
    stalled.flush().await.unwrap();
    while platform.requests(READ).await < 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let other = authority.caller(gateway.address).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    other.read("1").await.unwrap().assert_error(503, "unavailable");
    let closed = tokio::join!(ping(&mut idle), ping(&mut stalled));
    assert_eq!(closed, (true, true));
    assert_eq!(authority.caller(gateway.address).await.read("1").await.unwrap().status, 200);
}

/// A caller that sends a request at that moment must know whether it was processed.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_http2_connection_gets_goaway_before_it_is_closed() {
    let (platform, authority) = (Platform::unlimited().await, Authority::new());
    let gateway =
        authority.gateway(&platform, &[("server.idle_timeout", "1s"), ("server.header_timeout", "30s")]).await;
    let caller = authority.caller(gateway.address).await;
    caller.read("1").await.unwrap();
    let mut quiet = authority.connect(gateway.address).await;
    // With a request, so that the connection is idle and its head is not late.
    let head = b"\x83\x86\x84\x41\x09localhost";
    let request = [CLIENT_PREFACE, &[0, 0, u8::try_from(head.len()).unwrap(), 1, 5, 0, 0, 0, 1], head].concat();
    quiet.write_all(&request).await.unwrap();
    quiet.flush().await.unwrap();
    let bytes = read_until_closed(&mut quiet).await;
    assert!(frames(&bytes).contains(&GOAWAY), "{:?}", frames(&bytes));
}

/// A caller that does not answer GOAWAY does not delay a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_does_not_wait_for_a_silent_connection() {
    let (platform, authority) = (Platform::unlimited().await, Authority::new());
    let gateway = authority.gateway(&platform, &[]).await;
    let mut silent = authority.connect(gateway.address).await;
    silent.write_all(CLIENT_PREFACE).await.unwrap();
    silent.flush().await.unwrap();
    let mut first = [0; 9];
    silent.read_exact(&mut first).await.unwrap();
    gateway.stop.cancel();
    tokio::time::timeout(Duration::from_secs(15), gateway.done).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_get_a_503_and_may_retry() {
    let (platform, authority) = (Platform::unlimited().await, Authority::new());
    let gateway = authority.gateway(&platform, &[("server.max_connections", "1")]).await;
    let first = authority.caller(gateway.address).await;
    assert_eq!(first.read("1").await.unwrap().status, 200);
    let long = format!(r#"{{"params":{{"customerId":"1","x":"{}"}}}}"#, "x".repeat(50_000));
    for option in ["--http2", "--http1.1"] {
        for body in [BODY, &long] {
            for _ in 0..10 {
                let (code, out) = authority.curl(gateway.address, &[option, "-H", "Expect:", "--data", body]);
                let version = if option == "--http2" { "2" } else { "1.1" };
                assert_eq!((code, out.lines().last()), (0, Some(&*format!("{version} 503"))), "{option}: {out}");
            }
        }
    }
    let rejected = authority.caller(gateway.address).await;
    rejected.read("1").await.unwrap().assert_error(503, "unavailable");
    tokio::time::timeout(Duration::from_secs(15), rejected.connection).await.unwrap().unwrap();
    drop(first);
    loop {
        if authority.caller(gateway.address).await.read("1").await.is_ok_and(|reply| reply.status == 200) {
            break;
        }
    }
    // Silent connections do not use up the connections on which rejections are answered.
    let _silent: Vec<_> = (0..300).map(|_| std::net::TcpStream::connect(gateway.address).unwrap()).collect();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let (code, _) = authority.curl(gateway.address, &["--http2"]);
    assert_eq!(code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn max_headers_applies_to_http2_too() {
    let (platform, authority) = (Platform::unlimited().await, Authority::new());
    let gateway = authority.gateway(&platform, &[("server.max_headers", "20")]).await;
    let ask = |count: usize| {
        let fields: Vec<String> = (0..count).map(|number| format!("X-{number}: a")).collect();
        let options: Vec<&str> = fields.iter().flat_map(|field| ["-H", field]).collect();
        authority.curl(gateway.address, &options).1.lines().last().unwrap().to_owned()
    };
    assert_eq!((ask(10).as_str(), ask(30).as_str()), ("2 200", "2 431"));
}

/// Cancelled streams leave state behind in their connection, so no connection serves requests without limit.
#[tokio::test(flavor = "multi_thread")]
async fn an_http2_connection_serves_a_bounded_number_of_requests() {
    let (platform, authority) = (Platform::unlimited().await, Authority::new());
    let gateway = authority.gateway(&platform, &[]).await;
    let caller = authority.caller(gateway.address).await;
    let mut count = 0;
    while caller.read("1").await.is_ok_and(|reply| reply.status == 200) {
        count += 1;
        assert!(count <= 11_000, "the connection is never closed");
    }
    assert!(count >= 10_000, "{count}");
    assert_eq!(authority.caller(gateway.address).await.read("1").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metric_has_when_the_certificate_expires() {
    let platform = Platform::unlimited().await;
    let authority = Authority::new();
    let name = "zvgate_tls_certificate_expiry_timestamp_seconds";
    let plain = TestGateway::start(&platform, &[]).await;
    assert!(!plain.page("/metrics").await.text().contains(&format!("\n{name} ")));
    let secured = authority.gateway(&platform, &[]).await;
    let shown = secured.metric(name).await;
    let mut command = Command::new("openssl");
    command.args(["x509", "-noout", "-enddate", "-in", &authority.path("cert")]);
    let (_, end, _) = tokio::task::block_in_place(|| run(&mut command));
    let mut date = Command::new("date");
    date.args(["-u", "+%s", "-d", end.trim().trim_start_matches("notAfter=")]);
    let (_, expected, _) = tokio::task::block_in_place(|| run(&mut date));
    assert_eq!(shown, expected.trim().parse::<f64>().unwrap(), "{end}");
}
