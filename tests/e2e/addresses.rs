//! The addresses of the platform's host name, which change while the process runs.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::program::{Running, serve_with};
use crate::scripted::{Action, Scripted};
use crate::support::{MERCHANTS, READ, post};

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
