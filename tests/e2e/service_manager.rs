//! What the program reports to the service manager that started it, over the socket that systemd would give it.

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use http::Request;
use http_body_util::Full;

use crate::program::{Running, serve_with, write_config};
use crate::redis::Redis;
use crate::support::{Platform, READ, Upstream, post, send};

const BODY: &str = r#"{"params":{"customerId":"1"}}"#;

/// The service manager's end of the socket.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(socket)
    }

    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).expect("a message");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// The next message with this in it.
    fn until(&self, text: &str) -> String {
        loop {
            let message = self.next();
            if message.contains(text) {
                return message;
            }
        }
    }
}

fn start(folder: &Path, upstream: &str, more: &str) -> (Running, Manager, [SocketAddr; 2]) {
    let manager = Manager::listen(&folder.join("notify"));
    let config = write_config(folder, upstream, more);
    let environment = [("NOTIFY_SOCKET", folder.join("notify")), ("WATCHDOG_USEC", "1500000".into())];
    let (process, mut log, record) = serve_with(&config, &environment);
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    let addresses = ["listen", "admin_listen"].map(|name| record[name].as_str().unwrap().parse().unwrap());
    (process, manager, addresses)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_learns_when_it_is_ready_alive_reloading_and_stopping() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let more = "[server]\ndrain_delay = \"1s\"\ndrain_timeout = \"100s\"\n";
    let config = write_config(folder.path(), &platform.url(), "");
    let text = std::fs::read_to_string(&config).unwrap().replacen("[server]\n", more, 1);
    let (mut process, manager, [address, _]) = start(folder.path(), &platform.url(), "");
    manager.until("READY=1");
    // A third of the time after which it would be killed.
    let alive = manager.until("WATCHDOG=1");
    assert!(alive.contains("STATUS=serving 0.0 requests a second"), "{alive}");

    for _ in 0..50 {
        assert_eq!(post(address, READ, &[], BODY).await.status, 200);
    }
    let reports: Vec<String> = std::iter::repeat_with(|| manager.until("WATCHDOG=1")).take(10).collect();
    let is_busy = |report: &&String| report.contains(" requests a second") && !report.contains(" 0.0 ");
    assert!(reports.iter().any(|report| is_busy(&report)), "50 requests are not reported: {reports:?}");

    std::fs::write(&config, "[server]\nlissten = 1\n").unwrap();
    process.signal("HUP");
    let reloading = manager.until("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.until("READY=1");
    manager.until("the last reload failed");
    // Both keys need a restart: the running values count.
    std::fs::write(&config, text).unwrap();
    process.signal("HUP");
    manager.until("RELOADING=1");
    manager.until("READY=1");
    let mended = manager.until("WATCHDOG=1");
    assert!(!mended.contains("failed"), "{mended}");

    process.signal("TERM");
    // drain_delay, drain_timeout (30 s unless configured) and a margin.
    assert_eq!(manager.until("STOPPING=1").trim(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000");
    assert_eq!(tokio::task::block_in_place(|| process.code()), 0);
}

/// Its queue holds a few messages; then sending blocks.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_manager_that_does_not_read_stops_nothing() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let _unread = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    let config = write_config(folder.path(), &platform.url(), "");
    let environment = [("NOTIFY_SOCKET", folder.path().join("notify")), ("WATCHDOG_USEC", "15000".into())];
    let (mut process, _log, record) = serve_with(&config, &environment);
    let address = |name: &str| record[name].as_str().unwrap().parse::<SocketAddr>().unwrap();
    // More than the queues hold, one each 5 ms.
    let capacity: u64 = std::fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").unwrap().trim().parse().unwrap();
    tokio::time::sleep(Duration::from_millis(5 * capacity + 1000)).await;
    let page = Request::get("/healthz").header("host", "localhost").body(Full::default()).unwrap();
    let healthy = tokio::time::timeout(Duration::from_secs(10), send(address("admin_listen"), page)).await;
    assert_eq!(healthy.expect("an answer").status, 200);
    assert_eq!(post(address("listen"), READ, &[], BODY).await.status, 200);
    process.signal("TERM");
    assert_eq!(tokio::task::block_in_place(|| process.code()), 0);
}

/// A replica is ready once Redis has answered, or after ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn it_is_not_ready_before_readyz_says_so() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("hash"), "0123456789abcdef0123456789abcdef").unwrap();
    // Nobody listens there.
    let more = "[log]\nhash_key_file = \"hash\"\n[cluster]\nreplicas = 2\nurl = \"redis://127.0.0.1:1\"\n";
    let (process, manager, [_, admin]) = start(folder.path(), &platform.url(), more);
    let waiting = manager.next();
    assert!(waiting.starts_with("STATUS="), "{waiting}");
    // A reload does not make it ready.
    process.signal("HUP");
    let readyz = async || {
        let page = Request::get("/readyz").header("host", "localhost").body(Full::default()).unwrap();
        send(admin, page).await.status
    };
    loop {
        let (was_ready, message) = (readyz().await == 200, tokio::task::block_in_place(|| manager.next()));
        assert!(!message.contains("RELOADING=1"), "{message}");
        if message.contains("READY=1") {
            break;
        }
        assert!(!was_ready || message.starts_with("STATUS="), "{message}");
    }
    assert_eq!(readyz().await, 200);
}

/// Which a replica of another version is until the others have stopped: whoever started it must not wait for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_cannot_join_does_not_keep_the_service_manager_waiting() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let replica = |key: &str| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("hash"), format!("{key}-0123456789abcdef")).unwrap();
        let more = format!("[log]\nhash_key_file = \"hash\"\n[cluster]\nreplicas = 2\nurl = {:?}\n", redis.url());
        (start(folder.path(), &platform.url(), &more), folder)
    };
    let (first, _folder) = replica("one");
    tokio::task::block_in_place(|| first.1.until("READY=1"));
    // With another key.
    let (second, _folder) = replica("another");
    tokio::task::block_in_place(|| second.1.until("READY=1"));
    let status = tokio::task::block_in_place(|| second.1.until("STATUS="));
    assert!(status.contains("another key"), "{status}");
}
