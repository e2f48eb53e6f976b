//! The way to the platform: HTTP/1.1, one attempt at a time on a connection, and only for what is signed.

mod connect;
mod exchange;
mod failure;
mod pool;
mod wire;

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::connect::Connector;
pub use self::connect::NoConnector;
pub use self::exchange::Connection;
pub use self::failure::{Failure, FailureKind};
use self::pool::Pool;
use crate::clock::Clock;
use crate::settings::{BaseUrl, UpstreamSettings};
use crate::tenant::Tenant;

/// Which connection an attempt may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// An idle one, where there is one.
    Idle,
    /// A new one, kept for others afterwards.
    New,
    /// A new one, closed afterwards: on an idle one that is closing, nobody knows what became of a request.
    Own,
}

/// The platform.
pub struct Upstream {
    connector: Connector,
    pool: Arc<Pool>,
    max_response: usize,
    /// Attempts of each tenant at once.
    inflight: Vec<Arc<Semaphore>>,
}

impl Upstream {
    /// The way to `base_url`, with nothing on it yet.
    ///
    /// # Errors
    /// Where TLS is wanted and cannot be had.
    pub fn new(
        base_url: BaseUrl,
        settings: &UpstreamSettings,
        tenants: usize,
        clock: &Clock,
    ) -> Result<Self, NoConnector> {
        let max_inflight = usize::try_from(settings.max_inflight).unwrap_or(Semaphore::MAX_PERMITS);
        let connector = Connector::new(base_url, settings.connect_timeout)?;
        Ok(Self {
            connector,
            pool: Arc::new(Pool::new(settings.pool_idle, clock.clone())),
            max_response: settings.max_response.bytes(),
            inflight: (0..tenants).map(|_| Arc::new(Semaphore::new(max_inflight))).collect(),
        })
    }

    /// Waits until the tenant has fewer attempts under way than `upstream.max_inflight`.
    pub async fn permit(&self, tenant: &Tenant) -> Option<OwnedSemaphorePermit> {
        Arc::clone(self.inflight.get(tenant.index)?).acquire_owned().await.ok()
    }

    /// A connection to make one attempt on.
    ///
    /// # Errors
    /// Where none can be made in `upstream.connect_timeout`.
    pub async fn connection(&self, reuse: Reuse) -> Result<Connection, Failure> {
        let idle = if reuse == Reuse::Idle { self.pool.take() } else { None };
        let home = (reuse != Reuse::Own).then(|| Arc::clone(&self.pool));
        if let Some(idle) = idle {
            return Ok(Connection::reused(idle, home, self.connector.base_url(), self.max_response));
        }
        let stream = self.connector.connect().await.map_err(Failure::before)?;
        Connection::open(stream, home, self.connector.base_url(), self.max_response).await
    }

    /// Closes connections that have been idle for too long.
    pub fn tidy(&self) {
        self.pool.tidy();
    }
}
