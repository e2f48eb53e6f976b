//! The platform's addresses: resolved again while the gateway runs, and kept if that fails.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use tokio::net::lookup_host;

use crate::settings::BaseUrl;

/// The addresses of the platform.
#[derive(Debug)]
pub(super) struct Addresses {
    host: String,
    port: u16,
    known: RwLock<Arc<[SocketAddr]>>,
    /// Whether the last resolution failed.
    failing: AtomicBool,
}

/// What a resolution changed.
#[derive(Debug)]
pub enum Resolved {
    /// Nothing.
    Unchanged,
    /// There are other addresses now.
    Changed,
    /// It failed, unlike the one before; the last good addresses are kept.
    Failed(io::Error),
}

impl Addresses {
    pub(super) fn new(base_url: &BaseUrl) -> Self {
        Self {
            host: base_url.host().to_owned(),
            port: base_url.port(),
            known: RwLock::new(Arc::new([])),
            failing: AtomicBool::new(false),
        }
    }

    /// The addresses; resolved first if none is known yet.
    ///
    /// # Errors
    /// If there is none.
    pub(super) async fn current(&self) -> io::Result<Arc<[SocketAddr]>> {
        if self.known.read().is_empty() {
            self.learn(self.lookup().await?);
        }
        Ok(Arc::clone(&self.known.read()))
    }

    /// Whether an address is still one of them.
    pub(super) fn contain(&self, address: SocketAddr) -> bool {
        self.known.read().contains(&address)
    }

    /// Resolves the name again.
    pub(super) async fn resolve(&self) -> Resolved {
        if self.host.parse::<IpAddr>().is_ok() && !self.known.read().is_empty() {
            return Resolved::Unchanged;
        }
        match self.lookup().await {
            Ok(found) => {
                self.failing.store(false, Ordering::Relaxed);
                if self.learn(found) { Resolved::Changed } else { Resolved::Unchanged }
            }
            Err(_) if self.failing.swap(true, Ordering::Relaxed) => Resolved::Unchanged,
            Err(error) => Resolved::Failed(error),
        }
    }

    async fn lookup(&self) -> io::Result<Vec<SocketAddr>> {
        let found: Vec<SocketAddr> = lookup_host((self.host.as_str(), self.port)).await?.collect();
        if found.is_empty() { Err(io::Error::other("the name has no addresses")) } else { Ok(found) }
    }

    /// Replaces the addresses; returns whether they differ from earlier ones.
    fn learn(&self, found: Vec<SocketAddr>) -> bool {
        let mut known = self.known.write();
        let is_same = known.len() == found.len() && found.iter().all(|address| known.contains(address));
        let is_first = known.is_empty();
        *known = found.into();
        !is_same && !is_first
    }
}
