//! The client of the platform: HTTP/1.1, one attempt at a time on a connection, and only for signed requests.

mod addresses;
mod breaker;
mod circuit;
mod connect;
mod counting_io;
mod error;
mod exchange;
mod failures;
mod http1;
mod outcome;
mod pool;
mod recent;
mod retry;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

pub use self::addresses::Resolved;
pub use self::breaker::{BreakerPosition, Transition};
use self::circuit::TenantCircuits;
pub use self::circuit::{Attempt, Circuit, Health, LastFailure, Observer, Rejected, Retry, Scope};
use self::connect::Connector;
pub use self::connect::ConnectorError;
pub use self::error::{AttemptError, ExchangeError, Failure, with_sources};
use self::exchange::Target;
pub use self::exchange::{Connection, Exchanged};
pub use self::failures::Episode;
use self::http1::Http1Connection;
pub use self::outcome::{Answered, Effect, NotSent, Outcome};
use self::pool::Pool;
pub use self::retry::pause_before_retry;
use crate::clock::Clock;
use crate::configuration::ConnectKeys;
use crate::route::Route;
use crate::settings::{BaseUrl, BreakerSettings, ClientSettings};
use crate::tenant::Tenant;

/// Which connection an attempt may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// An idle one, if there is one.
    Idle,
    /// A new one, kept for others afterwards.
    New,
    /// A new one, closed afterwards: nobody knows what became of a request on an idle connection that was closing.
    Own,
}

/// The client of the platform.
pub struct Upstream {
    connector: Connector,
    pool: Arc<Pool>,
    target: Arc<Target>,
    /// By the tenants' numbers, made when they are first needed.
    circuits: RwLock<Vec<Arc<TenantCircuits>>>,
    connect_timeout: Duration,
    max_inflight: u32,
    clock: Clock,
}

impl Upstream {
    /// A client for `base_url`, without connections yet.
    ///
    /// # Errors
    /// If the host of `base_url` cannot be verified by TLS, or a proxy cannot be asked for it.
    pub fn new(
        base_url: &BaseUrl,
        settings: &ClientSettings,
        keys: ConnectKeys,
        clock: &Clock,
    ) -> Result<Self, ConnectorError> {
        let target = Arc::new(Target::new(base_url, settings.max_response.bytes()));
        Ok(Self {
            target,
            connector: Connector::new(base_url, settings.proxy.as_ref(), keys, settings.connect_timeout)?,
            pool: Arc::new(Pool::new(settings.pool_idle, clock.clone())),
            circuits: RwLock::default(),
            connect_timeout: settings.connect_timeout,
            max_inflight: settings.max_inflight,
            clock: clock.clone(),
        })
    }

    /// How long it may take to open a connection.
    pub const fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// The circuit of a tenant's calls to a path that a route serves.
    pub fn circuit(&self, tenant: &Tenant, route: &Route, path: &str) -> Circuit {
        self.circuits_of(tenant).of(route, path)
    }

    /// The breaker of a tenant's calls to a route, under a wildcard the one of its paths that is furthest from closed, or of one
    /// path.
    pub fn breaker(
        &self,
        settings: &BreakerSettings,
        tenant: &Tenant,
        route: &Route,
        path: Option<&str>,
    ) -> BreakerPosition {
        self.circuits_of(tenant).breaker(settings, route, path)
    }

    /// The breaker of all of a tenant's calls, and its last failure to connect.
    pub fn connect_breaker(
        &self,
        settings: &BreakerSettings,
        tenant: &Tenant,
    ) -> (BreakerPosition, Option<LastFailure>) {
        self.circuits_of(tenant).connect_breaker(settings)
    }

    /// What fails of a tenant's calls to a route, and what failed last.
    pub fn failures(&self, tenant: &Tenant, route: &Route) -> (Vec<Episode>, Option<LastFailure>) {
        self.circuits_of(tenant).failures(route)
    }

    /// Whether the last lookup of the platform's name failed, so that its last good addresses are used.
    pub fn is_dns_failing(&self) -> bool {
        self.connector.addresses.is_failing()
    }

    /// The addresses of the platform, or of the forward proxy, that are used; none before they were first needed.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.connector.addresses.known()
    }

    /// A tenant's failures that have ended, with their paths.
    pub fn ended_failures(&self, tenant: &Tenant) -> Vec<(Arc<str>, Episode)> {
        self.circuits_of(tenant).ended_failures()
    }

    /// Whether a tenant's key may be refused.
    pub fn is_key_suspect(&self, tenant: &Tenant) -> bool {
        self.circuits_of(tenant).is_key_suspect()
    }

    /// The time in which a tenant's retry budget was exhausted, if it has ended.
    pub fn ended_denial(&self, tenant: &Tenant) -> Option<Episode> {
        self.circuits_of(tenant).ended_denial()
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

    /// A connection for one attempt.
    ///
    /// # Errors
    /// If none can be opened within `upstream.connect_timeout`.
    pub async fn connection(&self, reuse: Reuse) -> Result<Connection, ExchangeError> {
        let is_current = |address| self.connector.addresses.contain(address);
        let pool = (reuse != Reuse::Own).then(|| Arc::clone(&self.pool));
        let idle = if reuse == Reuse::Idle { self.pool.take(is_current) } else { None };
        let reused = idle.is_some();
        let http1 = match idle {
            Some(http1) => http1,
            // Boxed, so that calls on idle connections need no memory for it.
            None => Box::pin(self.open()).await.map_err(ExchangeError::before)?,
        };
        Ok(Connection::new(http1, reused, pool, &self.target))
    }

    async fn open(&self) -> Result<Http1Connection, AttemptError> {
        let connected = self.connector.connect().await?;
        Http1Connection::open(connected).await.map_err(|error| AttemptError::Connect(io::Error::other(error)))
    }

    /// Resolves the platform's name again. Connections to addresses that it no longer has are not used any more.
    pub async fn resolve(&self) -> Resolved {
        self.connector.addresses.resolve().await
    }

    /// Closes connections that have been idle for too long or lead to an earlier address.
    pub fn close_expired(&self) {
        self.pool.close_expired(|address| self.connector.addresses.contain(address));
    }
}
