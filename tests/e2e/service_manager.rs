//! What the program reports to the service manager that started it, over the socket that systemd would give it.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use crate::program::{Running, serve_with, write_config};
use crate::support::{Platform, READ, Upstream, post};

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

fn start(folder: &Path, upstream: &str, more: &str) -> (Running, Manager, std::net::SocketAddr) {
    let manager = Manager::listen(&folder.join("notify"));
    let config = write_config(folder, upstream, more);
    let environment = [("NOTIFY_SOCKET", folder.join("notify")), ("WATCHDOG_USEC", "1500000".into())];
    let (process, mut log, record) = serve_with(&config, &environment);
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    (process, manager, record["listen"].as_str().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_learns_when_it_is_ready_alive_reloading_and_stopping() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let more = "[server]\ndrain_delay = \"1s\"\ndrain_timeout = \"100s\"\n";
    let config = write_config(folder.path(), &platform.url(), "");
    let text = std::fs::read_to_string(&config).unwrap().replacen("[server]\n", more, 1);
    let (mut process, manager, address) = start(folder.path(), &platform.url(), "");
    manager.until("READY=1");
    // A third of the time after which it would be killed.
    let alive = manager.until("WATCHDOG=1");
    assert!(alive.contains("STATUS=serving 0.0 requests a second"), "{alive}");

    for _ in 0..50 {
        assert_eq!(post(address, READ, &[], BODY).await.status, 200);
    }
    let busy =
        std::iter::repeat_with(|| manager.until("WATCHDOG=1")).take(3).find(|message| !message.contains(" 0.0 "));
    assert!(busy.is_some_and(|message| message.contains(" requests a second")), "50 requests are not seen");

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

/// A replica is ready once Redis has answered, or after ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn it_is_not_ready_before_readyz_says_so_and_asks_for_patience() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("hash"), "0123456789abcdef0123456789abcdef").unwrap();
    // Nobody listens there.
    let more = "[log]\nhash_key_file = \"hash\"\n[cluster]\nreplicas = 2\nurl = \"redis://127.0.0.1:1\"\n";
    let (_process, manager, _) = start(folder.path(), &platform.url(), more);
    let waiting = manager.next();
    assert!(waiting.contains("EXTEND_TIMEOUT_USEC="), "{waiting}");
    assert!(waiting.contains("STATUS=") && !waiting.contains("READY=1"), "{waiting}");
    assert!(manager.until("READY=1").starts_with("READY=1"));
}
