//! The threads that serve connections.

use std::future::Future;

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// Runtimes that share connections, each on its own thread. A connection stays on the one where it began: no core waits for
/// the queue of another, and each runs its tasks in the order in which they were woken.
#[derive(Clone, Debug)]
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

    /// Returns once each runtime has run a task: never, if one of them is stuck.
    pub async fn respond(&self) {
        for worker in &self.0 {
            // It fails only if the runtime has ended, with the process.
            let _ = worker.spawn(async {}).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Which is what the watchdog relies on.
    #[test]
    fn a_worker_that_is_stuck_does_not_respond() {
        let build = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let (stuck, other) = (build(), build());
        let workers = Workers::new(vec![other.handle().clone(), stuck.handle().clone()]);
        let (release, released) = std::sync::mpsc::channel::<()>();
        stuck.spawn(async move { released.recv() });
        other.block_on(async {
            tokio::time::timeout(Duration::from_millis(200), workers.respond()).await.unwrap_err();
            drop(release);
            workers.respond().await;
        });
    }
}
