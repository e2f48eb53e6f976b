//! Tasks of fetches, writes and passes: they are not dropped with their callers.

use std::future::Future;

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::reply::{GatewayError, OverCapacity};

/// The tasks of a gateway; cheap to clone.
#[derive(Clone)]
pub(super) struct Tasks {
    tracker: TaskTracker,
    max: usize,
}

impl Tasks {
    /// No tasks yet, and at most as many as callers may be connected: callers disconnect, and what they asked for continues.
    pub(super) fn new(max: u32) -> Self {
        Self { tracker: TaskTracker::new(), max: usize::try_from(max).unwrap_or(usize::MAX) }
    }

    /// Rejects a request that needs a task while too many are running.
    pub(super) fn check_capacity(&self) -> Result<(), GatewayError> {
        if self.tracker.len() < self.max { Ok(()) } else { Err(GatewayError::OverCapacity(OverCapacity::Connections)) }
    }

    pub(super) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.tracker.spawn(task)
    }

    /// Waits until all tasks have ended. None may begin any more.
    pub(super) async fn finish(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}
