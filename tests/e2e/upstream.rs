//! Connections to the platform: reuse, idle timeout, and TLS.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::scripted::{Action, Scripted, http_text};
use crate::support::{Platform, TestGateway, Upstream};
use crate::tls::TlsFront;

const EMPTY: &str = r#"{"status":true,"code":0,"data":[]}"#;

async fn connections_for_two_reads(headers: &'static str, between: Duration) -> usize {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let upstream = Scripted::start(move |_, _| Action::Respond(http_text("200 OK", headers, EMPTY))).await;
    let target = upstream.address;
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let mut far = tokio::net::TcpStream::connect(target).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    let gateway = TestGateway::start(&CountingProxy(address), &[]).await;
    gateway.read("1").await;
    gateway.clock.advance(between);
    gateway.read("2").await;
    count.load(std::sync::atomic::Ordering::SeqCst)
}

/// A proxy in front of the upstream that counts connections.
struct CountingProxy(std::net::SocketAddr);

impl Upstream for CountingProxy {
    fn url(&self) -> String {
        format!("http://{}", self.0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_upstream_connection_is_reused_until_its_idle_timeout() {
    assert_eq!(connections_for_two_reads("", Duration::from_secs(10)).await, 1);
    assert_eq!(connections_for_two_reads("", Duration::from_secs(16)).await, 2, "upstream.pool_idle");
    assert_eq!(connections_for_two_reads("Keep-Alive: timeout=5\r\n", Duration::from_secs(3)).await, 1);
    assert_eq!(
        connections_for_two_reads("Keep-Alive: timeout=5\r\n", Duration::from_secs(5)).await,
        2,
        "the upstream's Keep-Alive hint"
    );
    assert_eq!(connections_for_two_reads("Connection: close\r\n", Duration::ZERO).await, 2);
}

/// The upstream closes each connection right after its response, without `Connection: close`.
#[tokio::test(flavor = "multi_thread")]
async fn no_read_fails_on_an_upstream_connection_closed_while_idle() {
    let upstream = Scripted::start(|_, _| Action::RespondAndClose(http_text("200 OK", "", EMPTY))).await;
    let gateway = TestGateway::start(&upstream, &[("limits.upstream.rate", "0")]).await;
    for customer in 0..20 {
        let reply = gateway.read(&customer.to_string()).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(upstream.seen().len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_base_path_is_prefixed_to_every_route() {
    struct Prefixed(Scripted);
    impl Upstream for Prefixed {
        fn url(&self) -> String {
            format!("{}/open/", self.0.url())
        }
    }
    let upstream = Prefixed(Scripted::start(|_, _| Action::success("[]")).await);
    let gateway = TestGateway::start(&upstream, &[]).await;
    gateway.read("1").await;
    assert!(upstream.0.seen()[0].starts_with("POST /open/v3/crm/coupon/getCustomerCoupons HTTP/1.1\r\n"));
}

/// A TLS proxy in front of the sandbox, with a self-signed certificate.
async fn tls_proxy(platform: &Platform) -> (u16, String) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let front = TlsFront::start(platform.address, TlsAcceptor::from(Arc::new(config))).await;
    (front.port, certified.cert.pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn https_upstreams_need_a_certificate_that_the_system_trusts() {
    let platform = Platform::unlimited().await;
    let (port, certificate) = tls_proxy(&platform).await;
    let folder = tempfile::tempdir().unwrap();
    let (trusted, config) = (folder.path().join("ca.pem"), folder.path().join("zvgate.toml"));
    std::fs::write(&trusted, certificate).unwrap();
    let (open_id, grant_code, open_key) = crate::support::MERCHANTS[0];
    let text = format!(
        "[upstream]\nbase_url = \"https://localhost:{port}\"\n[tenants.a]\nopen_id = \"{open_id}\"\ngrant_code = \"{grant_code}\"\nopen_key = \"{open_key}\"\n"
    );
    std::fs::write(&config, text).unwrap();
    let check = |trust: Option<&std::path::Path>| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_zvgate"));
        command.args(["check", "--live", "--config"]).arg(&config).env_clear();
        trust.map(|file| command.env("SSL_CERT_FILE", file));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = tokio::task::block_in_place(|| check(Some(&trusted)));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("live a: signed call accepted"), "{text}");
    let (code, text) = tokio::task::block_in_place(|| check(None));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("live a: certificate_unknown_ca: no TLS connection"), "{text}");
}
