//! The way to the platform: HTTP/1.1, one attempt at a time on a connection, and only for what is signed.

mod addresses;
mod breaker;
mod circuit;
mod connect;
mod exchange;
mod failure;
mod pool;
mod recent;
mod retry;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

pub use self::addresses::Resolved;
pub use self::breaker::Health;
pub use self::circuit::{Attempt, Circuit, Shut};
use self::connect::Connector;
pub use self::connect::NoConnector;
pub use self::exchange::{Connection, Exchanged};
pub use self::failure::{Failure, FailureKind};
use self::pool::Pool;
pub use self::retry::pause_before;
use crate::clock::Clock;
use crate::settings::{BaseUrl, UpstreamSettings};
use crate::tenant::Tenant;

/// How long an idle connection may take to be ready, which is a matter of its task's next step.
const READY_WITHIN: Duration = Duration::from_millis(100);

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
    /// One for each tenant, made when it is first asked for.
    circuits: RwLock<Vec<Arc<Circuit>>>,
    max_inflight: u32,
    clock: Clock,
}

impl Upstream {
    /// The way to `base_url`, with nothing on it yet.
    ///
    /// # Errors
    /// Where TLS is wanted and cannot be had.
    pub fn new(base_url: BaseUrl, settings: &UpstreamSettings, clock: &Clock) -> Result<Self, NoConnector> {
        let connector = Connector::new(base_url, settings.connect_timeout)?;
        Ok(Self {
            connector,
            pool: Arc::new(Pool::new(settings.pool_idle, clock.clone())),
            max_response: settings.max_response.bytes(),
            circuits: RwLock::default(),
            max_inflight: settings.max_inflight,
            clock: clock.clone(),
        })
    }

    /// A tenant's circuit.
    pub fn circuit(&self, tenant: &Tenant) -> Arc<Circuit> {
        if let Some(known) = self.circuits.read().get(tenant.index) {
            return Arc::clone(known);
        }
        let mut circuits = self.circuits.write();
        while circuits.len() <= tenant.index {
            circuits.push(Arc::new(Circuit::new(self.max_inflight, &self.clock)));
        }
        circuits.get(tenant.index).map(Arc::clone).expect("one was made for each number up to the tenant's")
    }

    /// A connection to make one attempt on.
    ///
    /// # Errors
    /// Where none can be made in `upstream.connect_timeout`.
    pub async fn connection(&self, reuse: Reuse) -> Result<Connection, Failure> {
        let is_wanted = |address| self.connector.addresses.contain(address);
        let home = (reuse != Reuse::Own).then(|| Arc::clone(&self.pool));
        while reuse == Reuse::Idle
            && let Some(mut idle) = self.pool.take(is_wanted)
        {
            if tokio::time::timeout(READY_WITHIN, idle.sender.ready()).await.is_ok_and(|ready| ready.is_ok()) {
                return Ok(Connection::reused(idle, home, self.connector.base_url(), self.max_response));
            }
        }
        // Apart, so that calls on kept connections have no room for it.
        let stream = Box::pin(self.connector.connect()).await.map_err(Failure::before)?;
        Connection::open(stream, home, self.connector.base_url(), self.max_response).await
    }

    /// Looks the platform's name up again. Connections to addresses that are gone are used no more.
    pub async fn look_up(&self) -> Resolved {
        self.connector.addresses.look_up().await
    }

    /// Closes connections that have been idle for too long, or lead elsewhere by now.
    pub fn tidy(&self) {
        self.pool.tidy(|address| self.connector.addresses.contain(address));
    }
}
