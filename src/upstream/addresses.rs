//! The addresses of a name: resolved again while the gateway runs, and kept if that fails.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use tokio::net::lookup_host;

use crate::settings::BaseUrl;

/// Connections to an address are used for so many lookups after the last one that returned it: resolvers that rotate their answers
/// would empty the pool otherwise.
const RETAINED_LOOKUPS: u32 = 2;

/// The addresses of a host.
#[derive(Debug)]
pub(super) struct Addresses {
    host: String,
    port: u16,
    known: RwLock<Known>,
    /// Whether the last lookup failed.
    failing: AtomicBool,
}

#[derive(Debug, Default)]
struct Known {
    /// What the last lookup returned.
    current: Arc<[SocketAddr]>,
    /// Those, and earlier ones with the number of lookups since.
    retained: Vec<(SocketAddr, u32)>,
}

/// What a lookup changed.
#[derive(Debug)]
pub enum Resolved {
    /// Nothing.
    Unchanged,
    /// There are other addresses now.
    Changed,
    /// It failed, unlike the one before; the last good addresses are kept.
    Failed(io::Error),
    /// It succeeded again.
    Recovered,
}

impl Addresses {
    pub(super) fn new(url: &BaseUrl) -> Self {
        Self {
            host: url.host().to_owned(),
            port: url.port(),
            known: RwLock::default(),
            failing: AtomicBool::new(false),
        }
    }

    /// The addresses; resolved first if none is known yet.
    ///
    /// # Errors
    /// If there is none.
    pub(super) async fn current(&self) -> io::Result<Arc<[SocketAddr]>> {
        if self.known.read().current.is_empty() {
            let found = self.lookup().await?;
            self.known.write().learn(found);
        }
        Ok(Arc::clone(&self.known.read().current))
    }

    /// Whether the last lookup failed.
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Those that are known.
    pub(super) fn known(&self) -> Vec<SocketAddr> {
        self.known.read().current.to_vec()
    }

    /// Whether an address is one of them, or was until a short time ago.
    pub(super) fn contain(&self, address: SocketAddr) -> bool {
        self.known.read().retained.iter().any(|(known, _)| *known == address)
    }

    /// Resolves the name again.
    pub(super) async fn resolve(&self) -> Resolved {
        if self.host.parse::<IpAddr>().is_ok() && !self.known.read().current.is_empty() {
            return Resolved::Unchanged;
        }
        match self.lookup().await {
            Ok(found) => {
                let (has_recovered, has_changed) =
                    (self.failing.swap(false, Ordering::Relaxed), self.known.write().learn(found));
                match (has_recovered, has_changed) {
                    (_, true) => Resolved::Changed,
                    (true, false) => Resolved::Recovered,
                    (false, false) => Resolved::Unchanged,
                }
            }
            Err(_) if self.failing.swap(true, Ordering::Relaxed) => Resolved::Unchanged,
            Err(error) => Resolved::Failed(error),
        }
    }

    async fn lookup(&self) -> io::Result<Vec<SocketAddr>> {
        let found: Vec<SocketAddr> = lookup_host((self.host.as_str(), self.port)).await?.collect();
        if found.is_empty() { Err(io::Error::other("the name has no addresses")) } else { Ok(found) }
    }
}

impl Known {
    /// Learns what a lookup returned; returns whether there are addresses that are not among those retained.
    fn learn(&mut self, found: Vec<SocketAddr>) -> bool {
        let is_first = self.retained.is_empty();
        self.retained.iter_mut().for_each(|(_, age)| *age += 1);
        let mut has_new = false;
        for address in &found {
            match self.retained.iter_mut().find(|(known, _)| known == address) {
                Some((_, age)) => *age = 0,
                None => {
                    has_new = true;
                    self.retained.push((*address, 0));
                }
            }
        }
        self.retained.retain(|(_, age)| *age <= RETAINED_LOOKUPS);
        self.current = found.into();
        has_new && !is_first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_rotate_keep_connections_and_addresses_that_are_gone_do_not() {
        let address = |last| SocketAddr::from(([127, 0, 0, last], 1));
        let addresses = Addresses::new(&BaseUrl::parse("http://a").unwrap());
        let learn = |last| addresses.known.write().learn(vec![address(last)]);
        assert!(!learn(1), "the first answer changes nothing");
        assert!(learn(2), "a new address");
        for round in 0..10 {
            assert!(!learn(1 + round % 2));
            assert!(addresses.contain(address(1)) && addresses.contain(address(2)));
            assert_eq!(*addresses.known.read().current, [address(1 + round % 2)], "new connections go to the latest");
        }
        (0..RETAINED_LOOKUPS).for_each(|_| assert!(!learn(1)));
        assert!(addresses.contain(address(2)));
        assert!(!learn(1));
        assert!(!addresses.contain(address(2)));
    }
}
