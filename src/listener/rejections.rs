//! What peers send that is no request: counted, and logged at a bounded rate, since they choose how often they do it.

use std::error::Error;
use std::io;
use std::net::SocketAddr;

use prometheus::IntCounter;

use crate::line_limit::LineLimit;
use crate::metrics::{Label, Per, Unparsed};

/// Failed handshakes and requests that could not be parsed.
#[derive(Debug)]
pub struct Rejections {
    handshake_failures: IntCounter,
    unparsed: Per<Unparsed, IntCounter>,
    lines: LineLimit,
}

impl Rejections {
    /// Counts with these.
    pub fn new(handshake_failures: IntCounter, unparsed: Per<Unparsed, IntCounter>) -> Self {
        Self { handshake_failures, unparsed, lines: LineLimit::default() }
    }

    /// A TLS handshake failed. A peer that connects and disconnects, as health checks do, is none.
    pub(super) fn handshake(&self, peer: SocketAddr, error: &io::Error) {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return;
        }
        self.handshake_failures.inc();
        if let Some(suppressed) = self.lines.next() {
            tracing::warn!(%peer, cause = %error, suppressed, "TLS handshake failed");
        }
    }

    /// A connection ended with an error; `is_first`: before its first request, `is_idle`: while no request was in progress.
    pub(super) fn connection(&self, peer: SocketAddr, error: &hyper::Error, is_first: bool, is_idle: bool) {
        let Some(reason) = reason(error, is_first, is_idle) else { return };
        self.unparsed.of(reason).inc();
        if let Some(suppressed) = self.lines.next() {
            tracing::warn!(%peer, reason = reason.name(), cause = %error, suppressed, "request rejected by the parser");
        }
    }

    /// A body with another transfer coding than chunked.
    pub(super) fn transfer_coding(&self, peer: SocketAddr) {
        self.unparsed.of(Unparsed::Framing).inc();
        if let Some(suppressed) = self.lines.next() {
            let (reason, cause) = (Unparsed::Framing.name(), "the transfer coding is another than chunked");
            tracing::warn!(%peer, reason, cause, suppressed, "request rejected by the parser");
        }
    }

    /// A head with too many fields.
    pub(super) fn too_many_fields(&self) {
        self.unparsed.of(Unparsed::HeadSize).inc();
    }
}

fn reason(error: &hyper::Error, is_first: bool, is_idle: bool) -> Option<Unparsed> {
    if error.is_parse_too_large() {
        return Some(Unparsed::HeadSize);
    }
    if error.is_parse() {
        // hyper has no other way to tell them apart.
        let text = error.to_string();
        let is_not_http =
            is_first && ["invalid HTTP version", "invalid HTTP method"].iter().any(|part| text.contains(part));
        return Some(if is_not_http { Unparsed::NotHttp } else { Unparsed::Framing });
    }
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    let is_timeout = source.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
    (is_timeout && is_idle).then_some(Unparsed::HeadTimeout)
}
