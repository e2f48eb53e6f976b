//! The sockets that a gateway listens on: its own, or handed over by what started it, so that one process can follow
//! another without refusing a connection.

use std::io;
use std::net::{self, SocketAddr};
use std::time::Duration;

use tokio::net::TcpListener;

use super::StartError;
use crate::settings::Settings;

/// How often to try for the admin listener's address while the process before has it.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Sockets that listen already; each that is not given is bound as configured.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Where callers come in.
    pub data: Option<net::TcpListener>,
    /// Where operators come in.
    pub admin: Option<net::TcpListener>,
}

/// The sockets of a gateway.
pub(super) struct Sockets {
    pub(super) data: TcpListener,
    pub(super) admin: Desk,
}

/// Where operators come in.
pub(super) enum Desk {
    Open(TcpListener),
    /// The process before this one, which handed its other socket over, still listens here.
    Taken(SocketAddr),
}

impl Sockets {
    pub(super) async fn open(settings: &Settings, inherited: Inherited) -> Result<Self, StartError> {
        let follows = inherited.data.is_some();
        let data = open("server.listen", settings.server.listen, inherited.data).await?;
        let admin = open("server.admin_listen", settings.server.admin_listen, inherited.admin).await;
        let admin = match admin {
            Err(StartError::Listen(_, address, error)) if follows && error.kind() == io::ErrorKind::AddrInUse => {
                tracing::warn!(%address, "server.admin_listen is taken, by the process before as it seems; it is tried again");
                Desk::Taken(address)
            }
            admin => Desk::Open(admin?),
        };
        let sockets = Self { data, admin };
        // A socket that was handed over is where it is, whatever is configured.
        if sockets.are_private() || settings.server.allow_anonymous || !settings.callers.is_empty() {
            return Ok(sockets);
        }
        Err(StartError::Unusable(
            "server.listen: the socket that was handed over is beyond loopback; wanted callers with keys, or server.allow_anonymous = true".to_owned(),
        ))
    }

    /// Whether only this machine can ask.
    pub(super) fn are_private(&self) -> bool {
        self.data.local_addr().is_ok_and(|address| address.ip().is_loopback())
    }

    /// Whether only this machine's operators can ask.
    pub(super) fn operators_are_private(&self) -> bool {
        self.admin.address().is_ok_and(|address| address.ip().is_loopback())
    }
}

impl Desk {
    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Open(socket) => socket.local_addr(),
            Self::Taken(address) => Ok(*address),
        }
    }

    /// The socket, once it is free.
    pub(super) async fn open(self) -> TcpListener {
        match self {
            Self::Open(socket) => socket,
            Self::Taken(address) => loop {
                tokio::time::sleep(TRY_AGAIN_AFTER).await;
                if let Ok(socket) = TcpListener::bind(address).await {
                    tracing::info!(%address, "operators are served");
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
    let refused = |error| StartError::Listen(key, address, error);
    match inherited {
        None => TcpListener::bind(address).await.map_err(refused),
        Some(socket) => {
            socket.set_nonblocking(true).map_err(refused)?;
            TcpListener::from_std(socket).map_err(refused)
        }
    }
}
