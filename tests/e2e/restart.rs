//! Restarts: one process after another on the same socket, without a failed request.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use serde_json::Value;

use crate::program::{Running, log_record, run, write_config};
use crate::support::{Caller, Overrides, Platform, READ, TestGateway, Upstream, WRITE, post, send};

const BODY: &str = r#"{"params":{"customerId":"1"}}"#;
const ZVGATE: &str = env!("CARGO_BIN_EXE_zvgate");

/// `serve` as systemd starts it, with these sockets in descriptors 3 and 4, of which the second is passed as standard output.
fn serve_with_sockets(config: &Path, data: &TcpListener, admin: Option<&TcpListener>) -> Command {
    let fd = |socket: &TcpListener| Stdio::from(OwnedFd::from(socket.try_clone().unwrap()));
    let mut command = Command::new("sh");
    let count = if admin.is_some() { 2 } else { 1 };
    command.args([
        "-c",
        "exec 3<&0 4<&1 </dev/null >/dev/null; LISTEN_PID=$$ exec \"$0\" serve --config \"$1\"",
        ZVGATE,
    ]);
    command.arg(config).env_clear().env("LISTEN_FDS", count.to_string()).stdin(fd(data));
    command.stdout(admin.map_or_else(Stdio::null, fd)).stderr(Stdio::piped());
    command
}

/// Starts the command; returns the process and the log record with its addresses.
fn started(command: &mut Command) -> (Running, Value) {
    let mut child = command.spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let process = Running(child);
    let record = log_record(&mut log, "serving");
    // Later log lines are discarded, so that the pipe never fills.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    (process, record)
}

fn bound() -> (TcpListener, SocketAddr) {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// A caller that sends ten requests a second and reconnects when a response says that it is the last.
async fn ask_until(address: SocketAddr, end: Arc<AtomicBool>, requests: Arc<AtomicU64>) {
    let mut caller = Caller::connect(address).await;
    while !end.load(Ordering::Relaxed) {
        let request = Request::post(READ).header("host", "localhost").header("content-type", "application/json");
        let reply = caller.send(request.body(Full::new(BODY.into())).unwrap()).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        requests.fetch_add(1, Ordering::Relaxed);
        if reply.header("connection") == "close" {
            caller = Caller::connect(address).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// 50 callers on kept connections send ten requests a second each, another writes, and another reads so rarely that its
/// connection times out, while the process is replaced: three times by one that already runs, and twice by one that starts
/// after the old one has exited.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_loses_no_request() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), &platform.url(), "");
    let (data, address) = bound();
    let start = || tokio::task::block_in_place(|| started(&mut serve_with_sockets(&config, &data, None)).0);
    let mut current = start();
    let (end, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> =
        (0..50).map(|_| tokio::spawn(ask_until(address, Arc::clone(&end), Arc::clone(&requests)))).collect();
    let other = |path: &'static str, pause: u64| {
        let end = Arc::clone(&end);
        tokio::spawn(async move {
            let mut caller = Caller::connect(address).await;
            while !end.load(Ordering::Relaxed) {
                // As clients do: a closed connection is replaced.
                if caller.is_closed() {
                    caller = Caller::connect(address).await;
                }
                let request =
                    Request::post(path).header("host", "localhost").header("content-type", "application/json");
                let reply = caller.send(request.body(Full::new(BODY.into())).unwrap()).await.unwrap();
                assert_eq!(reply.status, 200, "{reply:?}");
                if reply.header("connection") == "close" {
                    caller = Caller::connect(address).await;
                }
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        })
    };
    let others = [other(WRITE, 250), other(READ, 1700)];
    for overlapping in [true, false, true, false, true] {
        let before = requests.load(Ordering::Relaxed);
        while requests.load(Ordering::Relaxed) < before + 500 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let next = overlapping.then(start);
        current.signal("TERM");
        assert_eq!(tokio::task::block_in_place(|| current.code()), 0);
        current = next.unwrap_or_else(start);
    }
    end.store(true, Ordering::Relaxed);
    for caller in callers.into_iter().chain(others) {
        caller.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_listening_sockets_can_be_inherited() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), &platform.url(), "");
    let ((data, address), (admin, admin_address)) = (bound(), bound());
    let (_process, record) = started(&mut serve_with_sockets(&config, &data, Some(&admin)));
    let both = (record["listen"].as_str().unwrap(), record["admin_listen"].as_str().unwrap());
    assert_eq!(both, (&*address.to_string(), &*admin_address.to_string()));
    assert_eq!(post(address, READ, &[], BODY).await.status, 200);
    let page = |path: &str| Request::get(path).header("host", "localhost").body(Full::default()).unwrap();
    assert_eq!(send(admin_address, page("/readyz")).await.status, 200);
    assert_eq!(send(admin_address, page("/config")).await.status, 200);
}

/// Two processes cannot share the admin listener unless it is inherited: the new process binds it once the old one exits.
#[tokio::test(flavor = "multi_thread")]
async fn the_admin_listener_is_bound_once_the_old_process_exits() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let (data, address) = bound();
    let admin = bound().1;
    let config = write_config(folder.path(), &platform.url(), "");
    let serve = || {
        let mut command = serve_with_sockets(&config, &data, None);
        command.env("ZVGATE__SERVER__ADMIN_LISTEN", admin.to_string());
        started(&mut command).0
    };
    let mut first = serve();
    let _second = serve();
    first.signal("TERM");
    assert_eq!(first.code(), 0);
    let page = Request::get("/readyz").header("host", "localhost").body(Full::default()).unwrap();
    while std::net::TcpStream::connect(admin).is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(send(admin, page).await.status, 200);
    assert_eq!(post(address, READ, &[], BODY).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn unsafe_or_invalid_inherited_sockets_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), "http://127.0.0.1:1", "");
    let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let (code, _, err) = run(&mut serve_with_sockets(&config, &everywhere, None));
    assert_eq!((code, err.contains("is not on loopback")), (2, true), "{err}");
    let mut many = serve_with_sockets(&config, &everywhere, None);
    let (code, _, err) = run(many.env("LISTEN_FDS", "3"));
    assert_eq!((code, err.contains("LISTEN_FDS: 3 sockets are too many")), (2, true), "{err}");
    let not_listening =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&not_listening, &crate::support::loopback()).unwrap();
    let (code, _, err) = run(&mut serve_with_sockets(&config, &not_listening.into(), None));
    assert_eq!((code, err.contains("does not listen")), (2, true), "{err}");
    let mut no_socket = serve_with_sockets(&config, &everywhere, None);
    let (code, _, err) = run(no_socket.env("LISTEN_FDS", "1").stdin(Stdio::null()));
    assert_eq!((code, err.contains("LISTEN_FDS: ")), (2, true), "{err}");
}

/// They may come in any order then, or one of them alone.
#[tokio::test(flavor = "multi_thread")]
async fn inherited_sockets_may_have_names() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), &platform.url(), "");
    let ((first, one), (second, other)) = (bound(), bound());
    for (names, listen, admin) in [
        ("listen:admin_listen", one, other),
        ("admin_listen:listen", other, one),
        ("zvgate.socket:zvgate.socket", one, other),
    ] {
        let mut command = serve_with_sockets(&config, &first, Some(&second));
        let (_process, record) = started(command.env("LISTEN_FDNAMES", names));
        let seen = (record["listen"].as_str().unwrap(), record["admin_listen"].as_str().unwrap());
        assert_eq!(seen, (&*listen.to_string(), &*admin.to_string()), "{names}");
    }
    let mut alone = serve_with_sockets(&config, &first, None);
    let (_process, record) = started(alone.env("LISTEN_FDNAMES", "admin_listen"));
    assert_eq!(record["admin_listen"], one.to_string());
    assert_ne!(record["listen"], one.to_string());
    // Variables for another process are none of ours (sd_listen_fds(3)).
    for variables in [
        &[("LISTEN_FDNAMES", "listen")][..],
        &[("LISTEN_PID", "1"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "listen:admin_listen")],
    ] {
        let mut foreign = Command::new(ZVGATE);
        foreign
            .args(["serve", "--config"])
            .arg(&config)
            .env_clear()
            .envs(variables.iter().copied())
            .stderr(Stdio::piped());
        let (_process, record) = started(&mut foreign);
        assert!(record["listen"] != one.to_string() && record["listen"] != other.to_string());
    }
    for names in ["listen:listen", "listen:admin", "listen"] {
        let mut command = serve_with_sockets(&config, &first, Some(&second));
        let (code, _, err) = run(command.env("LISTEN_FDNAMES", names));
        assert!(code == 2 && err.contains(&names.replace(':', ", ")) && err.contains("admin_listen"), "{names}: {err}");
    }
}

/// With the socket activation of systemd itself.
#[tokio::test(flavor = "multi_thread")]
async fn systemd_socket_activation_is_supported() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), &platform.url(), "");
    let address = bound().1;
    let mut command = Command::new("systemd-socket-activate");
    command.args(["--listen", &address.to_string(), ZVGATE, "serve", "--config"]).arg(config);
    let _process = Running(command.stderr(Stdio::null()).spawn().unwrap());
    while std::net::TcpStream::connect(address).is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(post(address, READ, &[], BODY).await.status, 200);
}

/// A request may be on its way on a kept connection when the gateway is signalled to stop.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_sends_connection_close_on_kept_connections() {
    let platform = Platform::unlimited().await;
    // Just used, and idle for a while.
    let idle_for_a_while: Overrides<'_> = &[("server.idle_timeout", "2s")];
    for (overrides, pause) in [(&[][..], Duration::ZERO), (idle_for_a_while, Duration::from_millis(1200))] {
        let gateway = TestGateway::start(&platform, overrides).await;
        let (mut kept, mut idle) = (Caller::connect(gateway.address).await, Caller::connect(gateway.address).await);
        assert_eq!(kept.read("1").await.header("connection"), "");
        idle.read("1").await;
        tokio::time::sleep(pause).await;
        gateway.stop.cancel();
        while std::net::TcpStream::connect(gateway.address).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let last = kept.read("1").await;
        assert_eq!((last.status, last.header("connection")), (200, "close"));
        gateway.done.await.unwrap().unwrap();
        assert!(idle.wait_until_closed().await, "an unused connection does not delay the stop");
    }
}

/// Every connection made before the stop is served, even if it was not accepted yet.
#[tokio::test(flavor = "multi_thread")]
async fn connections_in_the_accept_queue_are_served_before_the_stop() {
    let platform = Platform::unlimited().await;
    for _ in 0..20 {
        let gateway = TestGateway::start(&platform, &[]).await;
        gateway.read("1").await;
        let request = format!(
            "POST {READ} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{BODY}",
            BODY.len()
        );
        let waiting: Vec<_> = (0..50).map(|_| std::net::TcpStream::connect(gateway.address).unwrap()).collect();
        gateway.stop.cancel();
        for mut stream in &waiting {
            stream.write_all(request.as_bytes()).unwrap();
        }
        for mut stream in waiting {
            let mut reply = [0; 4096];
            let length = stream.read(&mut reply).unwrap();
            let reply = String::from_utf8_lossy(&reply[..length]);
            assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
        }
    }
}
