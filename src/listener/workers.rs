//! The threads that serve connections.

use std::future::Future;

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// Runtimes that share connections, each on its own thread. A connection stays on the one where it began: no core waits for
/// the queue of another, and each runs its tasks in the order in which they were woken.
#[derive(Debug)]
pub struct Workers(Vec<Handle>);

impl Workers {
    /// These runtimes; none: the runtime that accepts connections serves them too.
    pub const fn new(runtimes: Vec<Handle>) -> Self {
        Self(runtimes)
    }

    /// Runs a connection on the runtime with the fewest tasks.
    pub(super) fn serve(&self, connection: impl Future<Output = ()> + Send + 'static, all: &TaskTracker) {
        match self.0.iter().min_by_key(|worker| worker.metrics().num_alive_tasks()) {
            Some(worker) => all.spawn_on(connection, worker),
            None => all.spawn(connection),
        };
    }
}
