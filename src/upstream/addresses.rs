//! Where the platform's name leads: looked up again while the gateway runs, and kept where that fails.

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
    /// Whether the last look-up failed.
    failing: AtomicBool,
}

/// What a look-up changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// Nothing.
    Same,
    /// There are other addresses now.
    Changed,
    /// It failed, unlike the one before; the last good addresses stay.
    Failed,
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

    /// The addresses; looked up where none is known yet. None: there is none.
    pub(super) async fn current(&self) -> Arc<[SocketAddr]> {
        if self.known.read().is_empty() {
            self.look_up().await;
        }
        Arc::clone(&self.known.read())
    }

    /// Whether an address is still one of them.
    pub(super) fn contain(&self, address: SocketAddr) -> bool {
        self.known.read().contains(&address)
    }

    /// Looks the name up again.
    pub(super) async fn look_up(&self) -> Resolved {
        if self.host.parse::<IpAddr>().is_ok() && !self.known.read().is_empty() {
            return Resolved::Same;
        }
        let found = lookup_host((self.host.as_str(), self.port)).await;
        let found: Vec<SocketAddr> = found.map(Iterator::collect).unwrap_or_default();
        let failed_before = self.failing.swap(found.is_empty(), Ordering::Relaxed);
        if found.is_empty() {
            return if failed_before { Resolved::Same } else { Resolved::Failed };
        }
        let mut known = self.known.write();
        let same = known.len() == found.len() && found.iter().all(|address| known.contains(address));
        let first = known.is_empty();
        *known = found.into();
        if same || first { Resolved::Same } else { Resolved::Changed }
    }
}
