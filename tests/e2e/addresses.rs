//! The addresses of the platform's host name, which change while the process runs.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::CertificateParams;
use tokio_rustls::TlsAcceptor;

use crate::program::{Running, serve_with, write_config};
use crate::scripted::{Action, Scripted};
use crate::support::{MERCHANTS, Platform, READ, WRITE, post};
use crate::tls::{Authority, TlsFront};

/// The library that lets a process resolve names by a file of its own.
pub(crate) fn nss_wrapper() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().filter_map(Result::ok);
    let found = folders.map(|folder| folder.path().join("libnss_wrapper.so")).find(|path| path.exists());
    found.expect(".ci/setup installs libnss-wrapper")
}

/// Two platforms on one port of two addresses.
async fn two_platforms() -> (Scripted, Scripted, u16) {
    for _ in 0..100 {
        let first = Scripted::start(|_, _| Action::success(r#"[{"useStatus":1,"from":"first"}]"#)).await;
        let port = first.address.port();
        let other = SocketAddr::from(([127, 0, 0, 2], port));
        if let Ok(listener) = tokio::net::TcpListener::bind(other).await {
            let second = Scripted::on(listener, |_, _| Action::success(r#"[{"useStatus":1,"from":"second"}]"#));
            return (first, second, port);
        }
    }
    panic!("no port is free on both addresses");
}

fn resolve_to(hosts: &Path, address: Option<IpAddr>) {
    let text = address.map_or_else(String::new, |address| format!("{address} platform.test\n"));
    let next = hosts.with_extension("next");
    std::fs::write(&next, text).unwrap();
    std::fs::rename(next, hosts).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_address_is_used_and_a_failed_lookup_keeps_the_last_good_one() {
    let (first, second, port) = two_platforms().await;
    let folder = tempfile::tempdir().unwrap();
    let (hosts, config) = (folder.path().join("hosts"), folder.path().join("zvgate.toml"));
    resolve_to(&hosts, Some(first.address.ip()));
    let (open_id, grant_code, open_key) = MERCHANTS[0];
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n[upstream]\nbase_url = \"http://platform.test:{port}\"\nallow_plaintext = true\n[cache]\nmode = \"off\"\n[tenants.a]\nopen_id = \"{open_id}\"\ngrant_code = \"{grant_code}\"\nopen_key = \"{open_key}\"\n"
    );
    std::fs::write(&config, text).unwrap();
    let wrapped = [("LD_PRELOAD", nss_wrapper()), ("NSS_WRAPPER_HOSTS", hosts.clone())];
    let (_gateway, mut log, record): (Running, _, _) = serve_with(&config, &wrapped);
    let address: SocketAddr = record["listen"].as_str().unwrap().parse().unwrap();
    let ask = async || {
        let reply = post(address, READ, &[], r#"{"params":{"customerId":"1"}}"#).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.text().contains("first")
    };
    let mut wait_for = move |text: &str| {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert!(std::io::BufRead::read_line(&mut log, &mut line).unwrap() > 0, "no line has {text:?}");
        }
    };
    assert!(ask().await);

    resolve_to(&hosts, None);
    tokio::task::block_in_place(|| wait_for("upstream DNS lookup failed"));
    assert!(ask().await, "the last good address is still used");

    resolve_to(&hosts, Some(second.address.ip()));
    let mut requests = 0;
    while ask().await {
        requests += 1;
        assert!(requests < 300, "a busy connection does not keep the old address in use for 30 s");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!ask().await);
    tokio::task::block_in_place(|| wait_for("upstream DNS changed"));
    assert!(!second.seen().is_empty());
}

/// What listens on the first of two addresses.
enum First {
    /// Nothing.
    Refuses,
    /// TLS with a certificate for another name.
    IsAnother,
    /// TLS that is never answered.
    Hangs,
}

/// Both addresses are in the answer to one lookup, and the first one does not serve.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_address_is_tried_if_the_first_refuses_fails_in_tls_or_hangs() {
    for first in [First::Refuses, First::IsAnother, First::Hangs] {
        let (platform, authority) = (Platform::unlimited().await, Authority::new());
        let acceptor = |name: &str| {
            let params = CertificateParams::new([name.to_owned()]).unwrap();
            TlsAcceptor::from(Arc::new(authority.server(&params)))
        };
        let good = TlsFront::start(platform.address, acceptor("platform.test")).await;
        let other = SocketAddr::from(([127, 0, 0, 2], good.port));
        let counted = Arc::new(AtomicUsize::new(0));
        if !matches!(first, First::Refuses) {
            let (listener, counter) = (tokio::net::TcpListener::bind(other).await.unwrap(), Arc::clone(&counted));
            let wrong = matches!(first, First::IsAnother).then(|| acceptor("another.test"));
            tokio::spawn(async move {
                let mut open = Vec::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    counter.fetch_add(1, Ordering::SeqCst);
                    match &wrong {
                        Some(acceptor) => drop(tokio::spawn(acceptor.accept(stream))),
                        None => open.push(stream),
                    }
                }
            });
        }
        let folder = tempfile::tempdir().unwrap();
        let hosts = folder.path().join("hosts");
        std::fs::write(&hosts, "127.0.0.2 platform.test\n127.0.0.1 platform.test\n").unwrap();
        let config = write_config(folder.path(), &format!("https://platform.test:{}", good.port), "");
        let text = std::fs::read_to_string(&config).unwrap();
        let ca = format!("[upstream]\nca = \"{}\"\n", authority.path("ca"));
        std::fs::write(&config, text.replace("[upstream]\n", &ca)).unwrap();
        let wrapped = [("LD_PRELOAD", nss_wrapper()), ("NSS_WRAPPER_HOSTS", hosts.clone())];
        let (_gateway, _log, record) = serve_with(&config, &wrapped);
        let address = record["listen"].as_str().unwrap().parse().unwrap();
        for customer in ["1", "2"] {
            let body = format!("{{\"params\":{{\"customerId\":\"{customer}\"}}}}");
            let reply = post(address, WRITE, &[], &body).await;
            assert_eq!((reply.status, reply.header("x-zvgate-outcome")), (200, "refused"), "{reply:?}");
        }
        let tried = counted.load(Ordering::SeqCst);
        assert!(matches!(first, First::Refuses) || tried >= 1, "the first address was tried: {tried}");
        assert_eq!(platform.requests(WRITE).await, 2);
    }
}
