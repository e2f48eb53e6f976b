//! `server.*`

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::rate::{at_least_one, longer_than_nothing};
use super::reader::Table;
use super::value::Size;
use super::{seconds, tls};
use crate::secret::KeyHash;
use crate::tls::Tls;

/// `server.*`
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Where callers come in.
    pub listen: SocketAddr,
    /// Where operators come in.
    pub admin_listen: SocketAddr,
    /// The hashes of the operators' keys; none: beyond loopback nothing is shown that tells of customers.
    pub admin_keys: Vec<KeyHash>,
    /// Whether callers beyond loopback may come in without a key.
    pub allow_anonymous: bool,
    /// Names that anonymous callers may use in `Host`.
    pub hosts: Vec<String>,
    /// What callers' connections are secured with; none: not at all.
    pub tls: Option<Arc<Tls>>,
    /// Worker threads; 0: one a core.
    pub workers: u32,
    /// Connections at once.
    pub max_connections: u32,
    /// Requests at once on a connection of HTTP/2; those on one of HTTP/1.1 are taken one after another.
    pub max_streams: u32,
    /// Longest head of a request.
    pub max_head: Size,
    /// Fields in it.
    pub max_headers: u32,
    /// Longest request body.
    pub max_body: Size,
    /// How long a request's head may take, from its first byte; a connection's first head, from the connection on.
    pub header_timeout: Duration,
    /// How long a request's body may take.
    pub body_timeout: Duration,
    /// How long a connection may stay open without a request.
    pub idle_timeout: Duration,
    /// The whole answer to a read.
    pub request_timeout: Duration,
    /// The whole answer to a write.
    pub write_request_timeout: Duration,
    /// How long to go on accepting, not ready, once told to stop.
    pub drain_delay: Duration,
    /// How long what is in hand may take to finish after that.
    pub drain_timeout: Duration,
}

impl ServerSettings {
    pub(super) fn read(mut table: Table<'_>, has_callers: bool) -> Self {
        let settings = Self {
            listen: table.with_default("listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))),
            admin_listen: table.with_default("admin_listen", SocketAddr::from((Ipv4Addr::LOCALHOST, 9464))),
            admin_keys: table.hashes("admin_key_sha256").unwrap_or_default(),
            allow_anonymous: table.with_default("allow_anonymous", false),
            hosts: table.optional_checked("hosts", are_hosts).unwrap_or_default(),
            tls: tls::read(table.table("tls")),
            workers: table.checked("workers", 0, |n| if *n <= 1024 { Ok(()) } else { Err("0 (one a core) to 1024") }),
            // A connection costs memory and a file descriptor; usual descriptor limits leave room for these.
            max_connections: table.checked("max_connections", 10_000, at_least_one),
            // As many as browsers and other gateways take: callers with more to ask open another connection.
            max_streams: table.checked("max_streams", 100, at_least_one),
            // Room for long tokens and traces of whatever stands in front.
            max_head: table.checked("max_head", Size(64 << 10), is_head),
            max_headers: table
                .checked("max_headers", 100, |n| if (1..=1000).contains(n) { Ok(()) } else { Err("1 to 1000") }),
            // The longest published request is under 1 KiB; a redemption of a full page of cards is under 4.
            max_body: table.with_default("max_body", Size(64 << 10)),
            header_timeout: table.checked("header_timeout", seconds(5), longer_than_nothing),
            body_timeout: table.checked("body_timeout", seconds(10), longer_than_nothing),
            idle_timeout: table.checked("idle_timeout", seconds(60), longer_than_nothing),
            // Room for a full wait, a connection and two attempts.
            request_timeout: table.checked("request_timeout", seconds(15), longer_than_nothing),
            // Room for a full wait, a connection and the one attempt.
            write_request_timeout: table.checked("write_request_timeout", seconds(25), longer_than_nothing),
            drain_delay: table.with_default("drain_delay", Duration::ZERO),
            // Longer than any answer may take.
            drain_timeout: table.with_default("drain_timeout", seconds(30)),
        };
        if !settings.listen.ip().is_loopback() && !settings.allow_anonymous && !has_callers {
            table.mistake(
                "listen",
                format!(
                    "{} is beyond loopback, so that anybody who reaches it could use the merchants' keys; wanted a loopback address, callers with keys, or server.allow_anonymous = true",
                    settings.listen
                ),
            );
        }
        table.finish();
        settings
    }
}

fn is_head(size: &Size) -> Result<(), &'static str> {
    if (1 << 10..=1 << 20).contains(&size.0) { Ok(()) } else { Err("1KiB to 1MiB") }
}

#[expect(clippy::ptr_arg, reason = "the reader hands over the type of the setting")]
fn are_hosts(hosts: &Vec<String>) -> Result<(), &'static str> {
    let is_name = |host: &String| host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
    if hosts.iter().all(is_name) {
        Ok(())
    } else {
        Err("names of this gateway without ports, such as [\"zvgate.internal\"]")
    }
}
