//! Opens connections to the platform: TCP to one of its addresses, or a tunnel through a forward proxy; then TLS.

use std::convert::Infallible;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::header::{HOST, PROXY_AUTHORIZATION};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::addresses::Addresses;
use super::error::{AttemptError, ProxyError, Stage};
use crate::configuration::ConnectKeys;
use crate::settings::BaseUrl;

/// How long an address has to answer before another one is tried beside it (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// A byte stream.
pub(super) trait Stream: AsyncRead + AsyncWrite + Debug + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Debug + Send + Unpin> Stream for T {}

/// How to reach the platform.
pub(super) struct Connector {
    /// Those of the forward proxy if there is one, else the platform's.
    pub(super) addresses: Addresses,
    timeout: Duration,
    tunnel: Option<Tunnel>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// What a forward proxy is asked for.
struct Tunnel {
    /// The platform's host and port.
    target: Uri,
    authorization: Option<HeaderValue>,
}

/// Why no connector can be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectorError {
    /// The host is neither a name nor an address that a certificate could be issued for.
    #[error("upstream.base_url: {0:?} is not a host name that TLS can verify")]
    Host(String),
    /// The host cannot be asked for at a proxy.
    #[error("upstream.base_url: {0:?} is not a host that a proxy can be asked for")]
    Target(String),
}

/// The furthest stage of the attempts at a connection, for the error if none succeeds in time.
#[derive(Debug)]
struct Furthest(AtomicU8);

impl Furthest {
    fn reach(&self, stage: Stage) {
        self.0.fetch_max(stage as u8, Ordering::Relaxed);
    }

    fn stage(&self) -> Stage {
        let stages = [Stage::Dns, Stage::Tcp, Stage::Proxy, Stage::Tls];
        stages.into_iter().rfind(|stage| *stage as u8 <= self.0.load(Ordering::Relaxed)).unwrap_or(Stage::Dns)
    }
}

impl Connector {
    pub(super) fn new(
        base_url: &BaseUrl,
        proxy: Option<&BaseUrl>,
        keys: ConnectKeys,
        timeout: Duration,
    ) -> Result<Self, ConnectorError> {
        let name = ServerName::try_from(base_url.host().to_owned());
        let tls = match keys.tls {
            None => None,
            Some(tls) => {
                let name = name.map_err(|_| ConnectorError::Host(base_url.host().to_owned()))?;
                Some((TlsConnector::from(tls), name))
            }
        };
        let target = || {
            let target = format!("{}:{}", base_url.bracketed_host(), base_url.port());
            Uri::builder().authority(target.as_str()).build().map_err(|_| ConnectorError::Target(target))
        };
        let authorization = keys.proxy_authorization;
        let tunnel = proxy.map(|_| target().map(|target| Tunnel { target, authorization })).transpose()?;
        Ok(Self { addresses: Addresses::new(proxy.unwrap_or(base_url)), timeout, tunnel, tls })
    }

    /// Opens a connection within `upstream.connect_timeout`; returns it with its address.
    pub(super) async fn connect(&self) -> Result<(Box<dyn Stream>, SocketAddr), AttemptError> {
        let furthest = Furthest(AtomicU8::new(Stage::Dns as u8));
        let dialed = tokio::time::timeout(self.timeout, self.dial(&furthest)).await;
        dialed.unwrap_or_else(|_| Err(AttemptError::ConnectTimeout(furthest.stage())))
    }

    /// Tries the addresses one after another, the next one as soon as one fails or is slow; the first connection that is
    /// complete, TLS included, is used (RFC 8305).
    async fn dial(&self, furthest: &Furthest) -> Result<(Box<dyn Stream>, SocketAddr), AttemptError> {
        let addresses = self.addresses.current().await.map_err(|error| match &self.tunnel {
            None => AttemptError::Dns(error),
            Some(_) => AttemptError::Proxy(ProxyError::Dns(error)),
        })?;
        let mut untried = interleaved(&addresses).into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut failure: Option<AttemptError> = None;
        loop {
            if let Some(address) = untried.next() {
                attempts.push(async move { (self.open(address, furthest).await, address) });
            }
            let is_last = untried.len() == 0;
            let opened = tokio::select! {
                opened = attempts.next() => opened,
                () = tokio::time::sleep(ATTEMPT_DELAY), if !is_last => continue,
            };
            match opened {
                Some((Ok(stream), address)) => return Ok((stream, address)),
                // What got furthest explains most.
                Some((Err(error), _)) if failure.as_ref().is_none_or(|other| other.stage() <= error.stage()) => {
                    failure = Some(error);
                }
                Some(_) => {}
                None => return Err(failure.unwrap_or(AttemptError::ConnectTimeout(Stage::Dns))),
            }
        }
    }

    async fn open(&self, address: SocketAddr, furthest: &Furthest) -> Result<Box<dyn Stream>, AttemptError> {
        furthest.reach(Stage::Tcp);
        let tcp = TcpStream::connect(address).await.map_err(|error| match &self.tunnel {
            None => AttemptError::Connect(error),
            Some(_) => AttemptError::Proxy(ProxyError::Connect(error)),
        })?;
        // Requests are written in one piece, so that Nagle's algorithm would only add delay. An error does no harm.
        let _ = tcp.set_nodelay(true);
        let Some(tunnel) = &self.tunnel else { return self.secured(tcp, furthest).await };
        furthest.reach(Stage::Proxy);
        let stream = tunnel.open(tcp).await.map_err(AttemptError::Proxy)?;
        self.secured(stream, furthest).await
    }

    async fn secured<S: Stream + 'static>(
        &self,
        stream: S,
        furthest: &Furthest,
    ) -> Result<Box<dyn Stream>, AttemptError> {
        let Some((connector, name)) = &self.tls else { return Ok(Box::new(stream)) };
        furthest.reach(Stage::Tls);
        let stream = connector.connect(name.clone(), stream).await.map_err(AttemptError::Tls)?;
        Ok(Box::new(stream))
    }
}

impl Tunnel {
    /// Asks a proxy for a tunnel (RFC 9110, section 9.3.6).
    async fn open(&self, tcp: TcpStream) -> Result<impl Stream + use<>, ProxyError> {
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await;
        let (mut sender, driver) = handshake.map_err(ProxyError::NotHttp)?;
        let mut request = Request::new(Empty::<Bytes>::new());
        (*request.method_mut(), *request.uri_mut()) = (Method::CONNECT, self.target.clone());
        if let Ok(host) = HeaderValue::from_str(&self.target.to_string()) {
            request.headers_mut().insert(HOST, host);
        }
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization.clone());
        }
        let asked = async {
            let response = sender.send_request(request).await?;
            match response.status() {
                status if status.is_success() => Ok(Ok(hyper::upgrade::on(response).await?)),
                StatusCode::PROXY_AUTHENTICATION_REQUIRED => Ok(Err(ProxyError::Unauthenticated)),
                status => Ok(Err(ProxyError::Rejected(status))),
            }
        };
        // The driver ends with the upgrade, or with the connection, whose error also reaches the request.
        let driven = async {
            let _ = driver.with_upgrades().await;
            std::future::pending::<Infallible>().await
        };
        let tunneled: hyper::Result<_> = tokio::select! {
            tunneled = asked => tunneled,
            never = driven => match never {},
        };
        tunneled.unwrap_or_else(|error| Err(ProxyError::NotHttp(error))).map(TokioIo::new)
    }
}

/// Addresses of both families in turns, that of the first one first (RFC 8305, section 4).
fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let is_first_family = |address: &&SocketAddr| addresses.first().is_some_and(|a| a.is_ipv6() == address.is_ipv6());
    let (first, second): (Vec<&SocketAddr>, Vec<&SocketAddr>) = addresses.iter().partition(is_first_family);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut order = Vec::with_capacity(addresses.len());
    while order.len() < addresses.len() {
        order.extend(first.next().into_iter().chain(second.next()));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_are_tried_in_turns() {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let order = interleaved(&parse(&["[::1]:1", "[::2]:1", "[::3]:1", "1.0.0.1:1"]));
        assert_eq!(order, parse(&["[::1]:1", "1.0.0.1:1", "[::2]:1", "[::3]:1"]));
        assert_eq!(interleaved(&parse(&["1.0.0.1:1", "[::1]:1"])), parse(&["1.0.0.1:1", "[::1]:1"]));
        assert_eq!(interleaved(&[]), []);
    }
}
