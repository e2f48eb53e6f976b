//! The way to the platform: HTTP/1.1, one attempt at a time on a connection, and only for what is signed.

mod addresses;
mod breaker;
mod circuit;
mod connect;
mod exchange;
mod failure;
mod failures;
mod link;
mod pool;
mod recent;
mod retry;
mod wire;

use std::sync::Arc;

use parking_lot::RwLock;

pub use self::addresses::Resolved;
pub use self::breaker::Transition;
use self::circuit::TenantCircuits;
pub use self::circuit::{Attempt, Circuit, Health, Observer, Rejected, Scope};
use self::connect::Connector;
pub use self::connect::NoConnector;
use self::exchange::Target;
pub use self::exchange::{Connection, Exchanged};
pub use self::failure::{Failure, FailureKind};
pub use self::failures::Episode;
use self::link::Link;
use self::pool::Pool;
pub use self::retry::pause_before;
use crate::clock::Clock;
use crate::route::Route;
use crate::settings::{BaseUrl, BreakerSettings, UpstreamSettings};
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
    target: Arc<Target>,
    /// By the tenants' numbers, made when they are first needed.
    circuits: RwLock<Vec<Arc<TenantCircuits>>>,
    max_inflight: u32,
    clock: Clock,
}

impl Upstream {
    /// The way to `base_url`, with nothing on it yet.
    ///
    /// # Errors
    /// Where TLS is wanted and cannot be had.
    pub fn new(base_url: &BaseUrl, settings: &UpstreamSettings, clock: &Clock) -> Result<Self, NoConnector> {
        let target = Arc::new(Target::new(base_url, settings.max_response.bytes()));
        Ok(Self {
            target,
            connector: Connector::new(base_url, settings.connect_timeout)?,
            pool: Arc::new(Pool::new(settings.pool_idle, clock.clone())),
            circuits: RwLock::default(),
            max_inflight: settings.max_inflight,
            clock: clock.clone(),
        })
    }

    /// The circuit of a tenant's calls to a path that a route serves.
    pub fn circuit(&self, tenant: &Tenant, route: &Route, path: &str) -> Circuit {
        self.circuits_of(tenant).of(route, path)
    }

    /// Whether a breaker suspends a tenant's calls to a route, or under a wildcard to one of its paths.
    pub fn is_open(&self, settings: &BreakerSettings, tenant: &Tenant, route: &Route) -> bool {
        self.circuits_of(tenant).is_open(settings, route)
    }

    /// A tenant's failures that are over, with the path and the pattern of its route.
    pub fn ended_failures(&self, tenant: &Tenant) -> Vec<(Arc<str>, Arc<str>, Episode)> {
        self.circuits_of(tenant).ended_failures()
    }

    fn circuits_of(&self, tenant: &Tenant) -> Arc<TenantCircuits> {
        if let Some(known) = self.circuits.read().get(tenant.index) {
            return Arc::clone(known);
        }
        let mut circuits = self.circuits.write();
        while circuits.len() <= tenant.index {
            circuits.push(Arc::new(TenantCircuits::new(self.max_inflight, &self.clock)));
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
        let idle = if reuse == Reuse::Idle { self.pool.take(is_wanted) } else { None };
        let reused = idle.is_some();
        let link = match idle {
            Some(link) => link,
            // Apart, so that calls on kept connections have no room for it.
            None => Box::pin(self.open()).await.map_err(Failure::before)?,
        };
        Ok(Connection::new(link, reused, home, &self.target))
    }

    async fn open(&self) -> Result<Link, FailureKind> {
        Link::open(self.connector.connect().await?).await.map_err(|_| FailureKind::Connect)
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
