//! Who serves which connection.

use std::future::Future;

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// Runtimes that share connections, each on one thread of its own. A connection stays where it began: no core waits for
/// another's queue, and each takes its tasks in the order in which they woke.
#[derive(Debug)]
pub struct Workers(Vec<Handle>);

impl Workers {
    /// These; none: the runtime that accepts serves as well.
    pub const fn new(runtimes: Vec<Handle>) -> Self {
        Self(runtimes)
    }

    /// Runs `connection` where the fewest tasks are.
    pub(super) fn serve(&self, connection: impl Future<Output = ()> + Send + 'static, all: &TaskTracker) {
        match self.0.iter().min_by_key(|worker| worker.metrics().num_alive_tasks()) {
            Some(worker) => all.spawn_on(connection, worker),
            None => all.spawn(connection),
        };
    }
}
