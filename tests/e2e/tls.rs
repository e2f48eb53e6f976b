//! Callers over TLS, by HTTP/1.1 and HTTP/2.

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
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zvgate::settings::Sources;

use crate::program::{run, serve, write_config};
use crate::scripted::{Act, Scripted};
use crate::support::{Gate, Platform, READ, Reply, Upstream, raw, settings};

const BODY: &str = r#"{"params":{"customerId":"1"}}"#;

/// Who signs certificates, and a folder for them.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

impl Authority {
    /// With a certificate of the gateway's, `cert.pem` and `key.pem`, and its own, `ca.pem`.
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

    /// Writes a new certificate and its key into these files, and answers the certificate.
    fn issue(&self, cert: &str, key: &str) -> Vec<u8> {
        let own = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let signed = params.signed_by(&own, &self.issuer).unwrap();
        std::fs::write(self.file(cert), signed.pem()).unwrap();
        std::fs::write(self.file(key), own.serialize_pem()).unwrap();
        signed.der().to_vec()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.pem"))
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    async fn gate(&self, upstream: &impl Upstream, words: crate::support::Words<'_>) -> Gate {
        let (cert, key) = (self.path("cert"), self.path("key"));
        let mut all = vec![("server.tls.cert", cert.as_str()), ("server.tls.key", key.as_str())];
        all.extend(words);
        Gate::start(upstream, &all).await
    }

    async fn connect(&self, address: SocketAddr) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }

    /// The certificate that new connections are served with.
    async fn served(&self, address: SocketAddr) -> Vec<u8> {
        let stream = self.connect(address).await;
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    async fn caller(&self, address: SocketAddr) -> Caller {
        let stream = self.connect(address).await;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        Caller { sender, connection: tokio::spawn(async move { connection.await.ok() }) }
    }

    /// `curl`, over the file system: it knows the authority, and the gateway by its name.
    fn curl(&self, address: SocketAddr, more: &[&str]) -> (i32, String) {
        let mut command = Command::new("curl");
        command.args(["-sS", "--cacert", &self.path("ca"), "-w", "\n%{http_version} %{http_code}"]);
        command.args(["-H", "Content-Type: application/json", "-d", BODY]).args(more);
        command.arg(format!("https://localhost:{}{READ}", address.port()));
        let (code, out, err) = tokio::task::block_in_place(|| run(&mut command));
        (code, out + &err)
    }
}

/// A caller by HTTP/2.
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
async fn callers_come_over_tls_by_either_protocol_and_no_other_way() {
    let (platform, authority) = (Platform::open().await, Authority::new());
    let gate = authority.gate(&platform, &[]).await;
    for (option, version) in [("--http1.1", "1.1"), ("--http2", "2"), ("--tls-max=1.2", "2"), ("--no-alpn", "1.1")] {
        let option: Vec<&str> = option.split('=').collect();
        let (code, out) = authority.curl(gate.address, &option);
        assert_eq!((code, out.lines().last()), (0, Some(&*format!("{version} 200"))), "{out}");
        assert!(out.contains("couponId"), "{out}");
    }
    let plain = tokio::task::block_in_place(|| raw(gate.address, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    assert!(!plain.contains("HTTP/"), "{plain}");
    assert_eq!(gate.page("/healthz").await.status, 200, "operators come as before");
    assert_eq!(platform.requests(READ).await, 1);
    for (option, code) in [("--tlsv1.3", 0), ("--tls-max=1.1", 35)] {
        let option: Vec<&str> = option.split('=').collect();
        assert_eq!(authority.curl(gate.address, &option).0, code, "{option:?}");
    }
}

/// A stream that is ended while its caller still sends loses many callers the answer.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_before_his_body_came_hears_why() {
    let (platform, authority) = (Platform::open().await, Authority::new());
    let gate = authority.gate(&platform, &[]).await;
    for _ in 0..30 {
        let (code, out) = authority.curl(gate.address, &["--http2", "-H", "Origin: http://shop.example"]);
        assert_eq!((code, out.lines().last()), (0, Some("2 403")), "{out}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_ca_is_given_callers_need_a_certificate_of_its() {
    let (platform, authority, strangers) = (Platform::open().await, Authority::new(), Authority::new());
    let gate = authority.gate(&platform, &[("server.tls.client_ca", &authority.path("ca"))]).await;
    authority.issue("caller", "caller-key");
    let own = ["--cert", &authority.path("caller"), "--key", &authority.path("caller-key")];
    let (code, out) = authority.curl(gate.address, &own);
    assert_eq!((code, out.lines().last()), (0, Some("2 200")), "{out}");
    assert_ne!(authority.curl(gate.address, &[]).0, 0);
    let other = ["--cert", &strangers.path("cert"), "--key", &strangers.path("key")];
    assert_ne!(authority.curl(gate.address, &other).0, 0);
    assert_eq!(platform.requests(READ).await, 1);
}

/// As a renewal does it: one file after the other. Connections that are there go on.
#[tokio::test(flavor = "multi_thread")]
async fn new_certificates_are_served_without_a_restart() {
    let (platform, authority) = (Platform::open().await, Authority::new());
    let gate = authority.gate(&platform, &[]).await;
    let (old, caller) = (authority.served(gate.address).await, authority.caller(gate.address).await);
    caller.read("1").await.unwrap();
    let new = authority.issue("next", "next-key");
    std::fs::copy(authority.file("next"), authority.file("cert")).unwrap();
    // Longer than it takes to look twice.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(authority.served(gate.address).await, old, "a certificate without its key is none");
    std::fs::copy(authority.file("next-key"), authority.file("key")).unwrap();
    while authority.served(gate.address).await != new {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(caller.read("1").await.unwrap().is_hit(), "the connection of before");
    std::fs::write(authority.file("cert"), "half a certif").unwrap();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(authority.served(gate.address).await, new);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_configuration_brings_other_certificates() {
    let (platform, authority) = (Platform::open().await, Authority::new());
    let gate = authority.gate(&platform, &[]).await;
    let new = authority.issue("next", "next-key");
    let (next, next_key) = (authority.path("next"), authority.path("next-key"));
    let words = [("server.tls.cert", next.as_str()), ("server.tls.key", next_key.as_str())];
    assert!(gate.gateway.reload(Ok(&settings(&platform, &words, None))));
    assert_eq!(authority.served(gate.address).await, new);
    // The files of now are those that are looked at.
    let newer = authority.issue("next", "next-key");
    while authority.served(gate.address).await != newer {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn certificates_of_no_use_are_mistakes_in_the_configuration() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let (cert, key) = (authority.path("cert"), authority.path("key"));
    std::fs::write(authority.file("broken"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    for (cert, key, client_ca, told) in [
        (cert.as_str(), "", "", "server.tls.key: is missing"),
        ("", key.as_str(), "", "server.tls.cert: is missing"),
        ("", "", key.as_str(), "server.tls.cert: is missing"),
        (&key, &key, "", "server.tls.cert: names a file without a certificate in PEM"),
        (&cert, &cert, "", "server.tls.key: names a file without a private key in PEM"),
        (&cert, &strangers.path("key"), "", "server.tls.key: does not fit server.tls.cert"),
        (&authority.path("none"), &key, "", "server.tls.cert: names a file that cannot be read"),
        (&cert, &key, &key, "server.tls.client_ca: names a file without a certificate in PEM"),
        (&cert, &key, &authority.path("broken"), "server.tls.client_ca: holds a certificate of no use"),
    ] {
        let given = [("CERT", cert), ("KEY", key), ("CLIENT_CA", client_ca)];
        let given = given.into_iter().filter(|(_, file)| !file.is_empty());
        let variables = given.map(|(name, file)| (format!("ZVGATE__SERVER__TLS__{name}"), file.to_owned())).collect();
        let mistakes = Sources { variables, ..Sources::default() }.load().expect_err(told).to_string();
        assert!(mistakes.contains(told), "{mistakes}");
        assert!(!mistakes.contains("PRIVATE"), "{mistakes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_carries_many_requests_and_no_more_than_there_is_room_for() {
    let upstream = Scripted::start(|_, _| Act::Hang).await;
    let authority = Authority::new();
    let words = [("server.max_connections", "3"), ("server.max_streams", "5"), ("limits.upstream.rate", "0")];
    let gate = authority.gate(&upstream, &words).await;
    let caller = authority.caller(gate.address).await;
    let mut asked = tokio::task::JoinSet::new();
    for customer in ["11", "12", "13", "14", "15"] {
        let sender = caller.sender.clone();
        asked.spawn(async move {
            let caller = Caller { sender, connection: tokio::spawn(async { None }) };
            caller.read(customer).await.unwrap()
        });
    }
    for _ in 0..2 {
        asked.join_next().await.unwrap().unwrap().is_error(503, "unavailable");
    }
    assert_eq!(gate.metric("zvgate_limited_total{caller=\"anonymous\",limit=\"connections\"}").await, 2.0);
    assert_eq!(asked.len(), 3, "the others are in hand");
}

/// Between requests a caller of HTTP/2 may send what belongs to none: that is no head that is late.
#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_connection_of_http2_lives_until_it_is_idle_for_too_long() {
    let (platform, authority) = (Platform::open().await, Authority::new());
    let words = [("server.header_timeout", "200ms"), ("server.idle_timeout", "2s")];
    let gate = authority.gate(&platform, &words).await;
    let caller = authority.caller(gate.address).await;
    caller.read("1").await.unwrap();
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(caller.read("1").await.unwrap().is_hit());
    tokio::time::timeout(Duration::from_secs(20), caller.connection).await.unwrap().unwrap();
    let quiet = authority.connect(gate.address).await;
    let (_sender, connection) =
        http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(quiet)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), connection).await.unwrap().ok();
    let slow = TcpStream::connect(gate.address).await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), slow.readable()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_tells_callers_of_http2_and_finishes_what_is_in_hand() {
    let platform = Platform::open().await;
    platform.faults(serde_json::json!({ "latency_ms": 700 })).await;
    let authority = Authority::new();
    let gate = authority.gate(&platform, &[]).await;
    let caller = authority.caller(gate.address).await;
    let (answered, ()) = tokio::join!(caller.read("1"), async {
        while platform.requests(READ).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        gate.stop.cancel();
    });
    assert_eq!(answered.unwrap().status, 200);
    // Long before its idle time is over.
    tokio::time::timeout(Duration::from_secs(20), caller.connection).await.unwrap().unwrap();
    gate.done.await.unwrap();
}

/// The process reads its files again at SIGHUP too.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_serves_tls_as_its_file_says() {
    let (platform, authority) = (Platform::open().await, Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let table = |folder: &Path, name: &str| {
        let file = |kind: &str| authority.path(&format!("{name}{kind}"));
        let more = format!("[server.tls]\ncert = {:?}\nkey = {:?}\n", file("cert"), file("key"));
        write_config(folder, &platform.url(), &more)
    };
    let (gateway, _log, told) = serve(&table(folder.path(), ""));
    let address = told["listen"].as_str().unwrap().parse().unwrap();
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
async fn a_connection_carries_as_many_requests_as_configured() {
    let upstream = Scripted::start(|_, _| Act::Hang).await;
    let authority = Authority::new();
    let gate = authority.gate(&upstream, &[("server.max_streams", "2"), ("limits.upstream.rate", "0")]).await;
    let begun = async |wanted: usize| {
        while upstream.requests.lock().unwrap().len() < wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (caller, other) = (authority.caller(gate.address).await, authority.caller(gate.address).await);
    // What may be sent at once is told with the first answer of all, the settings.
    tokio::select! {
        _ = caller.read("11") => panic!("nobody answers"),
        () = begun(1) => {}
    }
    tokio::select! {
        _ = async { tokio::join!(caller.read("12"), caller.read("13"), caller.read("14")) } => panic!("nobody answers"),
        () = async {
            begun(3).await;
            tokio::select! {
                _ = other.read("21") => panic!("nobody answers"),
                () = begun(4) => {}
            }
        } => {}
    }
    assert!(upstream.requests.lock().unwrap()[3].contains("\"21\""), "the caller's third request waits");
}
