//! The listening sockets: new ones, or inherited from the process that started this one, so that a restart refuses no
//! connection.

use std::io;
use std::net::{self, SocketAddr};
use std::time::Duration;

use tokio::net::TcpListener;

use super::StartError;
use crate::settings::Settings;

/// How often to try to bind the admin listener while the previous process has its address.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Inherited listening sockets; those that are missing are bound as configured.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The data listener's.
    pub data: Option<net::TcpListener>,
    /// The admin listener's.
    pub admin: Option<net::TcpListener>,
}

/// The sockets of a gateway.
pub(super) struct Sockets {
    pub(super) data: TcpListener,
    pub(super) admin: AdminSocket,
}

/// The admin listener's socket.
pub(super) enum AdminSocket {
    Open(TcpListener),
    /// The previous process, which passed its other socket on, still listens here.
    Taken(SocketAddr),
}

impl Sockets {
    pub(super) async fn open(settings: &Settings, inherited: Inherited) -> Result<Self, StartError> {
        let follows = inherited.data.is_some();
        let data = open("server.listen", settings.fixed.listeners.listen, inherited.data).await?;
        let admin = open("server.admin_listen", settings.fixed.listeners.admin_listen, inherited.admin).await;
        let admin = match admin {
            Err(StartError::Listen(_, address, error)) if follows && error.kind() == io::ErrorKind::AddrInUse => {
                tracing::warn!(%address, "admin address in use, probably by the previous process; retrying");
                AdminSocket::Taken(address)
            }
            admin => AdminSocket::Open(admin?),
        };
        let sockets = Self { data, admin };
        // An inherited socket is where it is, whatever is configured.
        let dynamic = &settings.dynamic;
        if sockets.is_loopback() || dynamic.requests.allow_anonymous || !dynamic.callers.is_empty() {
            return Ok(sockets);
        }
        Err(StartError::Unusable(
            "server.listen: the inherited socket is not on loopback; expected callers with keys, or server.allow_anonymous = true"
                .to_owned(),
        ))
    }

    /// Whether only callers on this machine can connect.
    pub(super) fn is_loopback(&self) -> bool {
        self.data.local_addr().is_ok_and(|address| address.ip().is_loopback())
    }

    /// Whether only operators on this machine can connect.
    pub(super) fn admin_is_loopback(&self) -> bool {
        self.admin.address().is_ok_and(|address| address.ip().is_loopback())
    }
}

impl AdminSocket {
    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Open(socket) => socket.local_addr(),
            Self::Taken(address) => Ok(*address),
        }
    }

    /// The socket, once its address is free.
    pub(super) async fn open(self) -> TcpListener {
        match self {
            Self::Open(socket) => socket,
            Self::Taken(address) => loop {
                tokio::time::sleep(RETRY_AFTER).await;
                if let Ok(socket) = TcpListener::bind(address).await {
                    tracing::info!(%address, "admin listener started");
                    return socket;
                }
            },
        }
    }
}

async fn open(
    key: &'static str,
    address: SocketAddr,
    inherited: Option<net::TcpListener>,
) -> Result<TcpListener, StartError> {
    let failed = |error| StartError::Listen(key, address, error);
    match inherited {
        None => TcpListener::bind(address).await.map_err(failed),
        Some(socket) => {
            socket.set_nonblocking(true).map_err(failed)?;
            TcpListener::from_std(socket).map_err(failed)
        }
    }
}
