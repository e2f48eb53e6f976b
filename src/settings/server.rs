//! `server.*`: the listeners, and what callers may use of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::effective::Scope;
use super::rate::{at_least_one, greater_than_zero};
use super::reader::Table;
use super::seconds;
use super::value::Size;
use crate::secret::KeyHash;
use crate::tls::TlsFiles;

/// The keys of `server.*` that need a restart.
#[derive(Clone, Debug)]
pub struct ListenerSettings {
    /// The data listener.
    pub listen: SocketAddr,
    /// The admin listener.
    pub admin_listen: SocketAddr,
    /// The hashes of the operators' keys; none: beyond loopback only metrics and health are served.
    pub admin_keys: Vec<KeyHash>,
    /// Worker threads; 0: one per core.
    pub workers: u32,
    /// Open connections.
    pub max_connections: u32,
    /// Concurrent requests on one HTTP/2 connection.
    pub max_streams: u32,
    /// Longest request head.
    pub max_head: Size,
    /// Header fields in it.
    pub max_headers: u32,
    /// How long a request head may take from its first byte on; the first one of a connection, from the connection on.
    pub header_timeout: Duration,
    /// How long a connection may be open without a request.
    pub idle_timeout: Duration,
    /// How long to keep accepting connections, not ready, after a signal to stop.
    pub drain_delay: Duration,
    /// How long requests in progress may take to finish after that.
    pub drain_timeout: Duration,
}

/// The keys of `server.*` that can be reloaded.
#[derive(Clone, Debug)]
pub struct RequestSettings {
    /// Whether callers beyond loopback may connect without a key.
    pub allow_anonymous: bool,
    /// Names that anonymous callers may use in `Host`.
    pub hosts: Vec<String>,
    /// Longest request body.
    pub max_body: Size,
    /// How long a request body may take.
    pub body_timeout: Duration,
    /// How long the complete answer to a read may take.
    pub request_timeout: Duration,
    /// How long the complete answer to a write may take.
    pub write_request_timeout: Duration,
}

/// Reads the table.
pub(super) fn read(mut table: Table<'_>, has_callers: bool) -> (ListenerSettings, RequestSettings) {
    let requests = RequestSettings {
        allow_anonymous: table.with_default("allow_anonymous", false),
        hosts: table.optional_checked("hosts", are_hosts).unwrap_or_default(),
        // The longest published request is under 1 KiB; a redemption of a full page of cards is under 4.
        max_body: table.with_default("max_body", Size(64 << 10)),
        body_timeout: table.checked("body_timeout", seconds(10), greater_than_zero),
        // Enough for a full wait, a connection and two attempts.
        request_timeout: table.checked("request_timeout", seconds(15), greater_than_zero),
        // Enough for a full wait, a connection and the one attempt.
        write_request_timeout: table.checked("write_request_timeout", seconds(25), greater_than_zero),
    };
    read_tls(table.table("tls"));
    table.set_scope(Scope::Static);
    let listeners =
        ListenerSettings {
            listen: table.with_default("listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))),
            admin_listen: table.with_default("admin_listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 9464))),
            admin_keys: table.hashes("admin_key_sha256").unwrap_or_default(),
            workers: table.checked("workers", 0, |n| if *n <= 1024 { Ok(()) } else { Err("0 (one per core) to 1024") }),
            // A connection costs memory and a file descriptor; usual descriptor limits allow this many.
            max_connections: table.checked("max_connections", 10_000, at_least_one),
            // As many as browsers and other gateways allow.
            max_streams: table.checked("max_streams", 100, at_least_one),
            // Enough for the long tokens and traces of other proxies.
            max_head: table.checked("max_head", Size(64 << 10), is_head),
            max_headers: table
                .checked("max_headers", 100, |n| if (1..=1000).contains(n) { Ok(()) } else { Err("1 to 1000") }),
            header_timeout: table.checked("header_timeout", seconds(5), greater_than_zero),
            // Above the 60 s for which load balancers keep idle connections.
            idle_timeout: table.checked("idle_timeout", seconds(75), greater_than_zero),
            drain_delay: table.with_default("drain_delay", Duration::ZERO),
            // Longer than any answer may take.
            drain_timeout: table.with_default("drain_timeout", seconds(30)),
        };
    if !listeners.listen.ip().is_loopback() && !requests.allow_anonymous && !has_callers {
        table.error(
            "listen",
            format!(
                "{} is not a loopback address, so that anybody who can connect could use the merchants' keys; expected a loopback address, callers with keys, or server.allow_anonymous = true",
                listeners.listen
            ),
        );
    }
    table.finish();
    (listeners, requests)
}

/// Notes the files of `server.tls`, which are read later.
fn read_tls(mut table: Table<'_>) {
    if !table.is_empty() {
        for key in ["cert", "key"].into_iter().filter(|key| !table.has(key)) {
            table.error(
                key,
                "is missing; TLS needs a certificate and its private key: server.tls.cert and server.tls.key",
            );
        }
    }
    let (cert, key, client_ca) = (table.path("cert"), table.path("key"), table.path("client_ca"));
    if let Some((cert, key)) = cert.zip(key) {
        table.note_tls(TlsFiles { cert, key, client_ca });
    }
    table.finish();
}

fn is_head(size: &Size) -> Result<(), &'static str> {
    if (1 << 10..=1 << 20).contains(&size.0) { Ok(()) } else { Err("1KiB to 1MiB") }
}

#[expect(clippy::ptr_arg, reason = "the reader passes the setting's own type")]
fn are_hosts(hosts: &Vec<String>) -> Result<(), &'static str> {
    let is_name = |host: &String| host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
    if hosts.iter().all(is_name) {
        Ok(())
    } else {
        Err("names of this gateway without ports, such as [\"zvgate.internal\"]")
    }
}
