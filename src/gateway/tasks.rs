//! Tasks of fetches, writes and passes: they are not dropped with their callers.

use std::future::Future;

use prometheus::IntCounter;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::reply::{GatewayError, OverCapacity};

/// The tasks of a gateway; cheap to clone.
#[derive(Clone)]
pub(super) struct Tasks {
    tracker: TaskTracker,
    max: usize,
    panics: IntCounter,
}

/// Counts a task that panics while it holds this.
pub(super) struct PanicCounter(IntCounter);

impl Drop for PanicCounter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.inc();
        }
    }
}

impl Tasks {
    /// No tasks yet, and at most as many as callers may be connected: callers disconnect, and what they asked for continues.
    pub(super) fn new(max: u32, panics: IntCounter) -> Self {
        Self { tracker: TaskTracker::new(), max: usize::try_from(max).unwrap_or(usize::MAX), panics }
    }

    /// Rejects a request that needs a task while too many are running.
    pub(super) fn check_capacity(&self) -> Result<(), GatewayError> {
        if self.tracker.len() < self.max { Ok(()) } else { Err(GatewayError::OverCapacity(OverCapacity::Connections)) }
    }

    /// Spawns a task, boxed: the runtime moves it several times, and some are large.
    pub(super) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.tracker.spawn(Box::pin(task))
    }

    /// For a task to hold.
    pub(super) fn panic_counter(&self) -> PanicCounter {
        PanicCounter(self.panics.clone())
    }

    /// Waits until all tasks have ended. None may begin any more.
    pub(super) async fn finish(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_counted() {
        let panics = IntCounter::new("panics", "panics").unwrap();
        let tasks = Tasks::new(1, panics.clone());
        assert_eq!((tasks.spawn(async { 1 }).await.unwrap(), panics.get()), (1, 0));
        let counter = tasks.panic_counter();
        let task = async move {
            let _counter = counter;
            panic!("a defect")
        };
        assert!(tasks.spawn(task).await.unwrap_err().is_panic());
        assert_eq!(panics.get(), 1);
    }
}
