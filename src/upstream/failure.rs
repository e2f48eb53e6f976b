//! Why upstream gave no answer.

use std::fmt;

/// An attempt without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong.
    pub kind: FailureKind,
    /// Whether a byte of the request left: then it may have been carried out.
    pub left: bool,
    /// Whether it went wrong on a connection that had been idle before.
    pub reused: bool,
    /// Whether an answer had begun.
    pub answering: bool,
}

impl Failure {
    /// A failure before anything left.
    pub const fn before(kind: FailureKind) -> Self {
        Self { kind, left: false, reused: false, answering: false }
    }

    /// Whether an idle connection turned out to be closed before anything left: another one is all it takes.
    pub const fn is_stale_connection(&self) -> bool {
        self.is_idle_close() && !self.left
    }

    /// Whether an idle connection was closed just when it was used.
    pub const fn is_idle_close(&self) -> bool {
        self.reused && !self.answering && matches!(self.kind, FailureKind::Reset)
    }
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The name has no address.
    Resolve,
    /// Nobody accepts connections there.
    Connect,
    /// No trust, or no TLS.
    Tls,
    /// No connection in time.
    ConnectTimeout,
    /// No answer in time.
    Timeout,
    /// The connection broke.
    Reset,
    /// The answer is longer than `upstream.max_response`.
    Oversized,
    /// The answer is a redirection, which a signed call does not follow.
    Redirect,
    /// The answer is not HTTP.
    NotHttp,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "the open platform's name could not be resolved",
            Self::Connect => "the open platform accepts no connection",
            Self::Tls => "no TLS connection to the open platform could be made",
            Self::ConnectTimeout => "no connection to the open platform could be made in time",
            Self::Timeout => "the open platform did not answer in time",
            Self::Reset => "the connection to the open platform broke before its answer was whole",
            Self::Oversized => "the open platform's answer is longer than upstream.max_response",
            Self::Redirect => "the open platform redirects, which is not followed",
            Self::NotHttp => "the open platform's answer is not HTTP",
        })
    }
}
