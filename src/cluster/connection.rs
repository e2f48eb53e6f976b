//! Connections to the primary: found directly or by Sentinels, with TLS or without.

use std::future::Future;
use std::io;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::configuration::RedisKeys;
use crate::limit::REPLY_WITHIN;
use crate::metrics::ClusterResult;
use crate::settings::{HostPort, RedisServer, RedisSettings};

/// Why Redis cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No connection.
    #[error("{address}: {source}")]
    Connect {
        /// To this address.
        address: String,
        /// For this reason.
        source: io::Error,
    },
    /// No answer in time, to what is named.
    #[error("{0}: no answer within {limit} ms", limit = REPLY_WITHIN.as_millis())]
    Timeout(String),
    /// The server refuses or does not understand something, or closed the connection.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// A Sentinel does not monitor the primary.
    #[error("Sentinel {sentinel} monitors no primary {name:?}")]
    UnknownPrimary {
        /// Its address.
        sentinel: String,
        /// The name of the primary.
        name: String,
    },
    /// The server is not a primary.
    #[error("the server is not a primary: its role is {0:?}")]
    NotPrimary(String),
    /// Other replicas speak another protocol or have another key.
    #[error("the other replicas have another version of the protocol, or another key in log.hash_key_file")]
    Incompatible,
    /// The namespace that a command was for is not the current one any more.
    #[error("a new namespace began: Redis was restarted, or a clock jumped")]
    Moved,
    /// Sentinels name another primary.
    #[error("another primary took over")]
    OtherPrimary,
    /// A clock jumped.
    #[error("the clock of Redis or of this machine jumped")]
    Jumped,
    /// Redis executed a command too late.
    #[error("Redis executed a command too late")]
    Late,
    /// There is no connection.
    #[error("not connected")]
    Disconnected,
}

/// A result, for metrics.
pub(super) const fn result_of<T>(result: &Result<T, ClusterError>) -> ClusterResult {
    match result {
        Ok(_) => ClusterResult::Ok,
        Err(ClusterError::Timeout(_)) => ClusterResult::Timeout,
        Err(_) => ClusterResult::Error,
    }
}

/// Waits for Redis, for a bounded time. `what`: for what.
pub(super) async fn bounded<T, E: Into<ClusterError>>(
    what: impl FnOnce() -> String,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, ClusterError> {
    let answered = tokio::time::timeout(REPLY_WITHIN, answer).await;
    answered.map_or_else(|_| Err(ClusterError::Timeout(what())), |answer| answer.map_err(Into::into))
}

/// Sends Redis one command, and waits for its reply. `what`: its name in errors.
pub(super) async fn send<T: FromRedisValue>(
    what: &str,
    connection: &MultiplexedConnection,
    command: &redis::Cmd,
) -> Result<T, ClusterError> {
    let mut connection = connection.clone();
    bounded(|| what.to_owned(), command.query_async(&mut connection)).await
}

/// How the primary is reached.
pub(super) struct Connector {
    settings: RedisSettings,
    keys: RedisKeys,
}

impl Connector {
    pub(super) const fn new(settings: RedisSettings, keys: RedisKeys) -> Self {
        Self { settings, keys }
    }

    /// The address of the primary; under Sentinel the one that a Sentinel names.
    pub(super) async fn primary(&self) -> Result<HostPort, ClusterError> {
        if let RedisServer::Direct { address, .. } = &self.settings.url.server {
            return Ok(address.clone());
        }
        let mut failure = None;
        for sentinel in self.settings.url.sentinels() {
            match self.primary_by(sentinel).await {
                Ok(primary) => return Ok(primary),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or(ClusterError::Disconnected))
    }

    /// Whether Sentinels say where the primary is, which may change.
    pub(super) const fn uses_sentinels(&self) -> bool {
        matches!(self.settings.url.server, RedisServer::Sentinel { .. })
    }

    /// The address of the primary that one Sentinel names.
    pub(super) async fn primary_by(&self, sentinel: &HostPort) -> Result<HostPort, ClusterError> {
        let RedisServer::Sentinel { name, .. } = &self.settings.url.server else {
            return Err(ClusterError::Disconnected);
        };
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let connection = connect(sentinel, &info, AsyncConnectionConfig::new(), None).await?;
        let command = redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name).take();
        let address: Option<(String, u16)> = send(&format!("Sentinel {sentinel}"), &connection.0, &command).await?;
        let unknown = || ClusterError::UnknownPrimary { sentinel: sentinel.to_string(), name: name.clone() };
        address.map(|(host, port)| HostPort { host, port }).ok_or_else(unknown)
    }

    /// Opens a connection to the primary. Messages go to `on_push`, in the order in which they and replies were sent.
    pub(super) async fn open(
        &self,
        primary: &HostPort,
        on_push: Option<impl Fn(PushInfo) + Send + Sync + 'static>,
    ) -> Result<Connection, ClusterError> {
        let info =
            RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_db(self.settings.url.database);
        let mut info = info.set_skip_set_lib_name();
        if let Some(user) = &self.settings.url.user {
            info = info.set_username(user);
        }
        if let Some(password) = &self.keys.password {
            info = info.set_password(password.expose());
        }
        let mut config = AsyncConnectionConfig::new();
        if let Some(on_push) = on_push {
            config = config.set_push_sender(move |push: PushInfo| {
                on_push(push);
                Ok::<(), ()>(())
            });
        }
        let tls = self.keys.tls.as_ref().map(|tls| TlsConnector::from(std::sync::Arc::clone(tls)));
        connect(primary, &info, config, tls).await
    }
}

/// A connection, closed when this is dropped.
pub(super) struct Connection(pub(super) MultiplexedConnection, tokio::task::AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.1.abort();
    }
}

async fn connect(
    address: &HostPort,
    info: &RedisConnectionInfo,
    config: AsyncConnectionConfig,
    tls: Option<TlsConnector>,
) -> Result<Connection, ClusterError> {
    let failed = |source: io::Error| ClusterError::Connect { address: address.to_string(), source };
    // Each command is bounded by whoever sends it.
    let config = config.set_response_timeout(None);
    let tcp = bounded(|| format!("connecting to {address}"), async {
        let tcp = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        Ok::<_, ClusterError>(tcp)
    });
    let tcp = tcp.await?;
    let Some(tls) = tls else { return begin(address, info, tcp, config).await };
    let name = ServerName::try_from(address.host.clone()).map_err(|error| failed(io::Error::other(error)))?;
    let secured =
        bounded(|| format!("TLS handshake with {address}"), async { tls.connect(name, tcp).await.map_err(failed) });
    begin(address, info, secured.await?, config).await
}

async fn begin(
    address: &HostPort,
    info: &RedisConnectionInfo,
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    config: AsyncConnectionConfig,
) -> Result<Connection, ClusterError> {
    let (connection, driver) =
        bounded(|| format!("login at {address}"), MultiplexedConnection::new_with_config(info, stream, config)).await?;
    Ok(Connection(connection, tokio::spawn(driver).abort_handle()))
}
