//! Why the platform cannot be reached: each cause has its own name in the log, the metrics, `Proxy-Status` and `check --live`.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, date_time_ymd};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::addresses::nss_wrapper;
use crate::program::{Running, log_record, run, serve_with, zvgate};
use crate::support::{MERCHANTS, Platform, READ, loopback, metric, post};
use crate::tls::Authority;

/// A gateway's configuration, with lines for `[upstream]`.
fn write(folder: &Path, upstream: &str) -> PathBuf {
    let (open_id, grant_code, open_key) = MERCHANTS[0];
    let path = folder.join("zvgate.toml");
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n[limits.upstream]\nper = \"100ms\"\ntransit = \"0s\"\n[upstream]\nretries = 0\n{upstream}\n[tenants.a]\nopen_id = \"{open_id}\"\ngrant_code = \"{grant_code}\"\nopen_key = \"{open_key}\"\n"
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    path
}

/// What one failing call shows: its status with the error and the type in `Proxy-Status`, the outcome that is counted, and the
/// reason in the log, which `check --live` shows too.
async fn shown(upstream: &str, environment: &[(&str, PathBuf)]) -> (u16, String, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let config = write(folder.path(), upstream);
    let (_gateway, mut log, record) = serve_with(&config, environment);
    let address = |key: &str| record[key].as_str().unwrap().parse::<SocketAddr>().unwrap();
    let reply = post(address("listen"), READ, &[], r#"{"params":{"customerId":"1"}}"#).await;
    let line = tokio::task::block_in_place(|| log_record(&mut log, "upstream attempts failing"));
    assert_eq!((&line["tenant"], &line["route"], &line["level"]), (&"a".into(), &READ.into(), &"WARN".into()));
    let (outcome, reason) = (line["outcome"].as_str().unwrap(), line["reason"].as_str().unwrap());
    assert!(line["cause"].as_str().unwrap().len() > 30, "{line}");
    let counted = format!("zvgate_upstream_attempts_total{{outcome=\"{outcome}\",route=\"{READ}\",tenant=\"a\"}}");
    assert_eq!(metric(address("admin_listen"), &counted).await, Some(1.0), "{counted}");
    let mut check = zvgate();
    check.args(["check", "--live", "--config"]).arg(&config).envs(environment.iter().cloned());
    let (code, out, _) = tokio::task::block_in_place(|| run(&mut check));
    assert!(code == 1 && out.contains(&format!("live a: {reason}: ")), "{reason}: {out}");
    let error_type = reply.header("proxy-status").strip_prefix("zvgate; error=").unwrap().to_owned();
    assert_eq!(
        reply.json()["error"].as_str().unwrap(),
        if reply.status == 504 { "upstream_timeout" } else { "upstream_failed" }
    );
    (reply.status, error_type, outcome.to_owned(), reason.to_owned())
}

async fn assert_shown(upstream: &str, error_type: &str, outcome: &str, reason: &str) {
    let expected = (502, error_type.to_owned(), outcome.to_owned(), reason.to_owned());
    assert_eq!(shown(upstream, &[]).await, expected);
}

/// Accepts TLS with a certificate of the authority's, for this name and until this year; answers nothing.
async fn tls_server(authority: &Authority, name: &str, until: i32) -> (SocketAddr, DropGuard) {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(until - 1, 1, 1), date_time_ymd(until, 1, 1));
    let acceptor = TlsAcceptor::from(Arc::new(authority.server(&params)));
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move { acceptor.accept(stream).await.map(drop) });
        }
    }));
    (address, stop.drop_guard())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_resolve_is_a_dns_error() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 another.test\n").unwrap();
    let wrapped = [("LD_PRELOAD", nss_wrapper()), ("NSS_WRAPPER_HOSTS", hosts)];
    let upstream = "base_url = \"http://platform.test:1\"\nallow_plaintext = true";
    let expected = (502, "dns_error".to_owned(), "dns".to_owned(), "dns_error".to_owned());
    assert_eq!(shown(upstream, &wrapped).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_and_unroutable_addresses_are_distinguished() {
    let free = TcpListener::bind(loopback()).await.unwrap().local_addr().unwrap();
    assert_shown(&format!("base_url = \"http://{free}\""), "connection_refused", "connect", "connection_refused").await;
    let broadcast = "base_url = \"http://255.255.255.255\"\nallow_plaintext = true";
    assert_shown(broadcast, "destination_ip_unroutable", "connect", "unroutable").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reasons_to_reject_a_certificate_are_distinguished() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let ca = authority.path("ca");
    for (server, reason) in [
        (tls_server(&authority, "localhost", 2020).await, "certificate_expired"),
        (tls_server(&authority, "localhost", 2999).await, "certificate_not_yet_valid"),
        (tls_server(&authority, "another.test", 2027).await, "certificate_wrong_name"),
        (tls_server(&stranger, "localhost", 2027).await, "certificate_unknown_ca"),
    ] {
        let upstream = format!("base_url = \"https://localhost:{}\"\nca = \"{ca}\"", server.0.port());
        assert_shown(&upstream, "tls_certificate_error", "tls", reason).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_a_server_that_speaks_none_or_nothing_fails_in_time() {
    let platform = Platform::unlimited().await;
    let plain = format!("base_url = \"https://localhost:{}\"", platform.address.port());
    assert_shown(&plain, "tls_protocol_error", "tls", "tls_error").await;
    let silent = TcpListener::bind(loopback()).await.unwrap();
    let upstream = format!(
        "connect_timeout = \"300ms\"\nbase_url = \"https://localhost:{}\"",
        silent.local_addr().unwrap().port()
    );
    assert_shown(&upstream, "connection_timeout", "tls", "tls_timeout").await;
}

/// A forward proxy on a free port; `more` is added to its configuration.
async fn tinyproxy(folder: &Path, more: &str) -> (Running, SocketAddr) {
    let address = TcpListener::bind(loopback()).await.unwrap().local_addr().unwrap();
    let config = folder.join("tinyproxy.conf");
    let mut file = std::fs::File::create(&config).unwrap();
    writeln!(file, "Port {}\nListen 127.0.0.1\nTimeout 60\nMaxClients 20\n{more}", address.port()).unwrap();
    let mut command = Command::new("tinyproxy");
    command.arg("-d").arg("-c").arg(config).stdout(std::process::Stdio::null());
    let running = Running(command.spawn().expect(".ci/setup installs tinyproxy"));
    while TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (running, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_through_a_forward_proxy_and_its_refusals_are_distinguished() {
    let folder = tempfile::tempdir().unwrap();
    let platform = Platform::unlimited().await;
    let (_open, open) = tinyproxy(folder.path(), "").await;
    let gateway = async |upstream: &str| {
        let place = tempfile::tempdir().unwrap();
        let config = write(place.path(), &format!("base_url = \"http://{}\"\n{upstream}", platform.address));
        let (gateway, _log, record) = serve_with(&config, &[]);
        let address = record["listen"].as_str().unwrap().parse().unwrap();
        for customer in ["1", "2"] {
            let body = format!("{{\"params\":{{\"customerId\":\"{customer}\"}}}}");
            let reply = post(address, READ, &[], &body).await;
            assert_eq!(reply.status, 200, "{reply:?}");
        }
        drop(gateway);
    };
    gateway(&format!("proxy = \"http://{open}\"")).await;

    let secured = tempfile::tempdir().unwrap();
    let (_secured, address) = tinyproxy(secured.path(), "BasicAuth user secret-password").await;
    let credentials = secured.path().join("credentials");
    std::fs::write(&credentials, "user:secret-password\n").unwrap();
    let with_credentials = format!("proxy = \"http://{address}\"\nproxy_auth_file = \"{}\"", credentials.display());
    gateway(&with_credentials).await;
    let upstream = |proxy: &str| format!("base_url = \"http://{}\"\n{proxy}", platform.address);
    let proxy = |address: SocketAddr| upstream(&format!("proxy = \"http://{address}\""));
    assert_shown(&proxy(address), "proxy_configuration_error", "proxy", "proxy_unauthenticated").await;

    let strict = tempfile::tempdir().unwrap();
    let (_strict, address) = tinyproxy(strict.path(), "ConnectPort 443").await;
    assert_shown(&proxy(address), "destination_unavailable", "proxy", "proxy_rejected").await;
    let silent = TcpListener::bind(loopback()).await.unwrap();
    let hanging = format!("connect_timeout = \"300ms\"\n{}", proxy(silent.local_addr().unwrap()));
    assert_shown(&hanging, "connection_timeout", "proxy", "proxy_timeout").await;
    let free = TcpListener::bind(loopback()).await.unwrap().local_addr().unwrap();
    assert_shown(&proxy(free), "destination_unavailable", "proxy", "proxy_unreachable").await;
}

/// TLS through a tunnel is with the platform, not with the proxy.
#[tokio::test(flavor = "multi_thread")]
async fn tls_goes_through_a_forward_proxy_to_the_platform() {
    let folder = tempfile::tempdir().unwrap();
    let (_proxy, address) = tinyproxy(folder.path(), "").await;
    let authority = Authority::new();
    let (server, _stop) = tls_server(&authority, "localhost", 2020).await;
    let ca = authority.path("ca");
    let upstream =
        format!("base_url = \"https://localhost:{}\"\nca = \"{ca}\"\nproxy = \"http://{address}\"", server.port());
    assert_shown(&upstream, "tls_certificate_error", "tls", "certificate_expired").await;
}

#[test]
fn trusted_cas_are_never_widened_silently() {
    let folder = tempfile::tempdir().unwrap();
    let (empty, missing) = (folder.path().join("empty.pem"), folder.path().join("missing.pem"));
    std::fs::write(&empty, "no certificate\n").unwrap();
    let check = |upstream: &str, environment: &[(&str, &Path)]| {
        let config = write(folder.path(), upstream);
        run(zvgate().args(["check", "--config"]).arg(config).envs(environment.iter().copied()))
    };
    let https = "base_url = \"https://localhost:1\"";
    for file in [&empty, &missing] {
        let (code, _, err) = check(&format!("{https}\nca = \"{}\"", file.display()), &[]);
        assert!(code == 2 && err.contains("upstream.ca") && err.contains(&file.display().to_string()), "{err}");
        let (code, _, err) = check(https, &[("SSL_CERT_FILE", file)]);
        assert!(code == 2 && err.contains("SSL_CERT_FILE"), "{err}");
    }
    let authority = Authority::new();
    let (code, _, err) = check(https, &[("SSL_CERT_FILE", &authority.file("ca"))]);
    assert_eq!((code, err.as_str()), (0, ""));
    let (code, _, err) = check(https, &[("HTTPS_PROXY", Path::new("http://user:secret@proxy"))]);
    assert!(code == 0 && err.contains("HTTPS_PROXY is not used") && !err.contains("secret"), "{err}");
}
