//! Why an attempt got no answer.

use std::error::Error;
use std::io;

use rustls::CertificateError;

/// Why an attempt got no answer; the sources say what the system, TLS or HTTP reported.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The name has no address.
    #[error("the open platform's name cannot be resolved")]
    Dns(#[source] io::Error),
    /// No connection to any of its addresses.
    #[error("no connection to the open platform")]
    Connect(#[source] io::Error),
    /// No tunnel through `upstream.proxy`.
    #[error("no connection through upstream.proxy")]
    Proxy(#[source] ProxyError),
    /// No TLS, or a certificate that is not trusted.
    #[error("no TLS connection to the open platform")]
    Tls(#[source] io::Error),
    /// No connection within `upstream.connect_timeout`.
    #[error("no connection to the open platform in time: {0} took too long")]
    ConnectTimeout(Stage),
    /// No answer in time.
    #[error("no answer from the open platform in time")]
    Timeout,
    /// The connection broke before an answer.
    #[error("the connection to the open platform broke before it answered")]
    Reset(#[source] Option<hyper::Error>),
    /// The connection broke in the middle of the answer.
    #[error("the connection to the open platform broke before its answer was complete")]
    Incomplete(#[source] Option<hyper::Error>),
    /// The answer is longer than `upstream.max_response`.
    #[error("the open platform's answer is longer than upstream.max_response")]
    Oversized,
    /// The answer is a redirection, which a signed call does not follow.
    #[error("the open platform redirects, which is not followed")]
    Redirect(u16),
    /// The answer is not HTTP.
    #[error("the open platform's answer is not HTTP")]
    NotHttp(#[source] Option<hyper::Error>),
    /// The answer's transfer coding is another than chunked, or is invalid (RFC 9112, section 6.1).
    #[error("the transfer coding of the open platform's answer is invalid")]
    TransferCoding(#[source] Option<hyper::Error>),
    /// The answer has this status, 2xx, and is not JSON.
    #[error("the open platform's answer is not JSON")]
    NotJson(u16),
    /// The answer has this status, 2xx, and is compressed.
    #[error("the open platform's answer is compressed, which was not asked for")]
    Compressed(u16),
}

/// Why there is no tunnel through a forward proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The proxy's name has no address.
    #[error("the proxy's name cannot be resolved")]
    Dns(#[source] io::Error),
    /// No connection to the proxy.
    #[error("no connection to the proxy")]
    Connect(#[source] io::Error),
    /// The proxy wants other credentials.
    #[error("the proxy requires authentication (407); check upstream.proxy_auth_file")]
    Unauthenticated,
    /// The proxy does not connect.
    #[error("the proxy answered CONNECT with {0}")]
    Rejected(http::StatusCode),
    /// The proxy does not answer as one.
    #[error("the proxy did not answer CONNECT with HTTP")]
    NotHttp(#[source] hyper::Error),
}

/// A stage of opening a connection, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Resolving the name.
    Dns,
    /// Connecting.
    Tcp,
    /// Asking the forward proxy for a tunnel.
    Proxy,
    /// The TLS handshake.
    Tls,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dns => "resolving its name",
            Self::Tcp => "connecting",
            Self::Proxy => "the CONNECT request to upstream.proxy",
            Self::Tls => "the TLS handshake",
        })
    }
}

/// Kinds of failures that an operator mends in different ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The name cannot be resolved.
    Dns,
    /// The resolver does not answer.
    DnsTimeout,
    /// Nothing listens there.
    Refused,
    /// There is no route there.
    Unroutable,
    /// Connecting takes too long.
    ConnectTimeout,
    /// Connecting fails in another way.
    Connect,
    /// The proxy cannot be reached.
    ProxyUnreachable,
    /// The proxy wants other credentials.
    ProxyUnauthenticated,
    /// The proxy does not connect.
    ProxyRejected,
    /// The proxy does not answer in time.
    ProxyTimeout,
    /// The certificate has expired.
    CertificateExpired,
    /// The certificate is not valid yet, or this machine's clock is behind.
    CertificateNotYetValid,
    /// The certificate's CA is not trusted.
    CertificateUnknownCa,
    /// The certificate is for another name.
    CertificateWrongName,
    /// The certificate is invalid in another way.
    Certificate,
    /// The other side ended the handshake by an alert.
    TlsAlert,
    /// The handshake fails in another way.
    Tls,
    /// The handshake takes too long.
    TlsTimeout,
    /// No answer in time.
    Timeout,
    /// The connection broke before an answer.
    Reset,
    /// The connection broke in the middle of the answer.
    Incomplete,
    /// The answer is too long.
    Oversized,
    /// The answer is a redirection.
    Redirect,
    /// The answer is not HTTP.
    NotHttp,
    /// The answer's transfer coding is invalid.
    TransferCoding,
    /// The answer is not JSON.
    NotJson,
    /// The answer is compressed.
    Compressed,
}

impl Failure {
    /// Its name in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns_error",
            Self::DnsTimeout => "dns_timeout",
            Self::Refused => "connection_refused",
            Self::Unroutable => "unroutable",
            Self::ConnectTimeout => "connect_timeout",
            Self::Connect => "connect_error",
            Self::ProxyUnreachable => "proxy_unreachable",
            Self::ProxyUnauthenticated => "proxy_unauthenticated",
            Self::ProxyRejected => "proxy_rejected",
            Self::ProxyTimeout => "proxy_timeout",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateNotYetValid => "certificate_not_yet_valid",
            Self::CertificateUnknownCa => "certificate_unknown_ca",
            Self::CertificateWrongName => "certificate_wrong_name",
            Self::Certificate => "certificate_invalid",
            Self::TlsAlert => "tls_alert",
            Self::Tls => "tls_error",
            Self::TlsTimeout => "tls_timeout",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Incomplete => "incomplete",
            Self::Oversized => "oversized",
            Self::Redirect => "redirect",
            Self::NotHttp => "not_http",
            Self::TransferCoding => "transfer_coding",
            Self::NotJson => "not_json",
            Self::Compressed => "compressed",
        }
    }

    /// What a system error at connecting says.
    fn of_connecting(error: &io::Error) -> Self {
        use io::ErrorKind;
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::AddrNotAvailable
            | ErrorKind::InvalidInput => Self::Unroutable,
            ErrorKind::TimedOut => Self::ConnectTimeout,
            _ => Self::Connect,
        }
    }

    /// What a TLS error says.
    fn of_tls(error: &io::Error) -> Self {
        match error.get_ref().and_then(|error| error.downcast_ref()) {
            Some(rustls::Error::InvalidCertificate(certificate)) => match certificate {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::CertificateExpired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::CertificateNotYetValid
                }
                // A signature that does not verify is one by another CA of the same name.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::CertificateUnknownCa,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Self::CertificateWrongName
                }
                _ => Self::Certificate,
            },
            Some(rustls::Error::AlertReceived(_)) => Self::TlsAlert,
            Some(_) | None => Self::Tls,
        }
    }
}

impl AttemptError {
    /// What kind of failure it is.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Dns(_) => Failure::Dns,
            Self::Connect(error) => Failure::of_connecting(error),
            Self::Proxy(ProxyError::Dns(_) | ProxyError::Connect(_)) => Failure::ProxyUnreachable,
            Self::Proxy(ProxyError::Unauthenticated) => Failure::ProxyUnauthenticated,
            Self::Proxy(ProxyError::Rejected(_) | ProxyError::NotHttp(_)) => Failure::ProxyRejected,
            Self::Tls(error) => Failure::of_tls(error),
            Self::ConnectTimeout(Stage::Dns) => Failure::DnsTimeout,
            Self::ConnectTimeout(Stage::Tcp) => Failure::ConnectTimeout,
            Self::ConnectTimeout(Stage::Proxy) => Failure::ProxyTimeout,
            Self::ConnectTimeout(Stage::Tls) => Failure::TlsTimeout,
            Self::Timeout => Failure::Timeout,
            Self::Reset(_) => Failure::Reset,
            Self::Incomplete(_) => Failure::Incomplete,
            Self::Oversized => Failure::Oversized,
            Self::Redirect(_) => Failure::Redirect,
            Self::NotHttp(_) => Failure::NotHttp,
            Self::TransferCoding(_) => Failure::TransferCoding,
            Self::NotJson(_) => Failure::NotJson,
            Self::Compressed(_) => Failure::Compressed,
        }
    }

    /// The HTTP status of the answer, if there was a complete one.
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::NotJson(status) | Self::Compressed(status) | Self::Redirect(status) => Some(*status),
            _ => None,
        }
    }

    /// How far opening a connection got.
    pub(super) const fn stage(&self) -> Stage {
        match self {
            Self::Dns(_) | Self::Proxy(ProxyError::Dns(_)) => Stage::Dns,
            Self::Proxy(ProxyError::Unauthenticated | ProxyError::Rejected(_) | ProxyError::NotHttp(_)) => Stage::Proxy,
            Self::ConnectTimeout(stage) => *stage,
            Self::Tls(_) => Stage::Tls,
            _ => Stage::Tcp,
        }
    }
}

/// An error with all its sources, in one line.
pub fn with_sources(error: &dyn Error) -> String {
    let (mut text, mut source) = (error.to_string(), error.source());
    while let Some(error) = source {
        let next = error.to_string();
        // Some libraries repeat their source in their own text.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
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
    /// Whether a byte of an answer was received.
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
