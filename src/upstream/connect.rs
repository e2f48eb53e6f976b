//! Makes connections: TCP, TLS.

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
use super::failure::FailureKind;
use crate::settings::BaseUrl;

/// Anything that bytes can go through.
pub(super) trait Stream: AsyncRead + AsyncWrite + Debug + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Debug + Send + Unpin> Stream for T {}

/// How to reach the platform.
pub(super) struct Connector {
    pub(super) addresses: Addresses,
    timeout: Duration,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// Why no connector can be made: the base address is of no use for TLS.
#[derive(Debug)]
pub struct NoConnector(String);

impl std::fmt::Display for NoConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoConnector {}

impl Connector {
    pub(super) fn new(base_url: &BaseUrl, timeout: Duration) -> Result<Self, NoConnector> {
        let tls = base_url.is_tls().then(|| tls(base_url)).transpose()?;
        Ok(Self { addresses: Addresses::new(base_url), timeout, tls })
    }

    /// A new connection, in time, and the address that it leads to.
    pub(super) async fn connect(&self) -> Result<(Box<dyn Stream>, SocketAddr), FailureKind> {
        tokio::time::timeout(self.timeout, self.dial()).await.unwrap_or(Err(FailureKind::ConnectTimeout))
    }

    async fn dial(&self) -> Result<(Box<dyn Stream>, SocketAddr), FailureKind> {
        let addresses = self.addresses.current().await;
        // An address that does not answer must leave time for the others.
        let share = self.timeout / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        let mut failure = FailureKind::Resolve;
        for address in addresses.iter().copied() {
            match tokio::time::timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => return Ok((self.secured(tcp).await?, address)),
                Ok(Err(_)) => failure = FailureKind::Connect,
                Err(_) => failure = FailureKind::ConnectTimeout,
            }
        }
        Err(failure)
    }

    async fn secured(&self, tcp: TcpStream) -> Result<Box<dyn Stream>, FailureKind> {
        // Requests are written whole; holding the last packet back would only add delay. Failing to set it does no harm.
        let _ = tcp.set_nodelay(true);
        match &self.tls {
            None => Ok(Box::new(tcp)),
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), tcp).await.map_err(|_| FailureKind::Tls)?;
                Ok(Box::new(stream))
            }
        }
    }
}

/// TLS with the system's trusted roots, or the bundled ones where the system has none.
fn tls(base_url: &BaseUrl) -> Result<(TlsConnector, ServerName<'static>), NoConnector> {
    let name = ServerName::try_from(base_url.host().to_owned())
        .map_err(|_| NoConnector(format!("upstream.base_url: {} is no name for TLS", base_url.host())))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| NoConnector(format!("TLS cannot be set up: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((TlsConnector::from(Arc::new(config)), name))
}
