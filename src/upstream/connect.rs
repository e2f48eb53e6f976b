//! Opens connections to the platform: TCP, then TLS.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::addresses::Addresses;
use super::error::AttemptError;
use crate::settings::BaseUrl;

/// A byte stream.
pub(super) trait Stream: AsyncRead + AsyncWrite + Debug + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Debug + Send + Unpin> Stream for T {}

/// How to reach the platform.
pub(super) struct Connector {
    pub(super) addresses: Addresses,
    timeout: Duration,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// Why no connector can be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectorError {
    /// The host is neither a name nor an address that a certificate could be issued for.
    #[error("upstream.base_url: {0:?} is not a host name that TLS can verify")]
    Host(String),
    /// TLS cannot be configured.
    #[error("upstream.base_url: TLS cannot be configured")]
    Tls(#[source] rustls::Error),
}

impl Connector {
    pub(super) fn new(base_url: &BaseUrl, timeout: Duration) -> Result<Self, ConnectorError> {
        let tls = base_url.is_tls().then(|| tls(base_url)).transpose()?;
        Ok(Self { addresses: Addresses::new(base_url), timeout, tls })
    }

    /// Opens a connection within `upstream.connect_timeout`; returns it with its address.
    pub(super) async fn connect(&self) -> Result<(Box<dyn Stream>, SocketAddr), AttemptError> {
        tokio::time::timeout(self.timeout, self.dial()).await.unwrap_or(Err(AttemptError::ConnectTimeout))
    }

    async fn dial(&self) -> Result<(Box<dyn Stream>, SocketAddr), AttemptError> {
        let addresses = self.addresses.current().await.map_err(AttemptError::Dns)?;
        // An address that does not answer must leave time for the others.
        let share = self.timeout / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        let mut failure = AttemptError::ConnectTimeout;
        for address in addresses.iter().copied() {
            match tokio::time::timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => return Ok((self.secured(tcp).await?, address)),
                Ok(Err(error)) => failure = AttemptError::Connect(error),
                Err(_) => failure = AttemptError::ConnectTimeout,
            }
        }
        Err(failure)
    }

    async fn secured(&self, tcp: TcpStream) -> Result<Box<dyn Stream>, AttemptError> {
        // Requests are written in one piece, so that Nagle's algorithm would only add delay. An error does no harm.
        let _ = tcp.set_nodelay(true);
        match &self.tls {
            None => Ok(Box::new(tcp)),
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), tcp).await.map_err(AttemptError::Tls)?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// TLS with the system's trusted roots, or with the bundled ones if the system has none.
fn tls(base_url: &BaseUrl) -> Result<(TlsConnector, ServerName<'static>), ConnectorError> {
    let name = ServerName::try_from(base_url.host().to_owned())
        .map_err(|_| ConnectorError::Host(base_url.host().to_owned()))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ConnectorError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((TlsConnector::from(Arc::new(config)), name))
}
