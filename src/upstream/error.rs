//! Why an attempt got no answer.

use std::io;

/// Why an attempt got no answer; the sources say what the system, TLS or HTTP reported.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The name has no address.
    #[error("the open platform's name cannot be resolved")]
    Dns(#[source] io::Error),
    /// No connection to any of its addresses.
    #[error("no connection to the open platform")]
    Connect(#[source] io::Error),
    /// No TLS, or a certificate that is not trusted.
    #[error("no TLS connection to the open platform")]
    Tls(#[source] io::Error),
    /// No connection within `upstream.connect_timeout`.
    #[error("no connection to the open platform in time")]
    ConnectTimeout,
    /// No answer in time.
    #[error("no answer from the open platform in time")]
    Timeout,
    /// The connection broke.
    #[error("the connection to the open platform broke before its answer was complete")]
    Reset(#[source] Option<hyper::Error>),
    /// The answer is longer than `upstream.max_response`.
    #[error("the open platform's answer is longer than upstream.max_response")]
    Oversized,
    /// The answer is a redirection, which a signed call does not follow.
    #[error("the open platform redirects, which is not followed")]
    Redirect,
    /// The answer is not HTTP.
    #[error("the open platform's answer is not HTTP")]
    NotHttp(#[source] Option<hyper::Error>),
}

impl AttemptError {
    /// Whether it happened before there was a connection.
    pub const fn is_connect(&self) -> bool {
        matches!(self, Self::Dns(_) | Self::Connect(_) | Self::Tls(_) | Self::ConnectTimeout)
    }
}

/// A failed exchange on a connection.
#[derive(Debug)]
pub struct ExchangeError {
    /// What went wrong.
    pub error: AttemptError,
    /// Whether a byte of the request was sent: then it may have been executed.
    pub sent: bool,
    /// Whether the connection had been idle before.
    pub reused: bool,
    /// Whether an answer had begun.
    pub answering: bool,
}

impl ExchangeError {
    /// An error before anything was sent.
    pub const fn before(error: AttemptError) -> Self {
        Self { error, sent: false, reused: false, answering: false }
    }

    /// Whether an idle connection was closed just when it was used.
    pub const fn is_idle_close(&self) -> bool {
        self.reused && !self.answering && matches!(self.error, AttemptError::Reset(_))
    }
}
