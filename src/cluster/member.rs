//! This replica as a member: a thread of its own that keeps the connections, sends heartbeats, and receives the messages of others.
//!
//! It has its own thread so that nothing else that the process does delays a heartbeat.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::connection::Connector;
use super::ends::end;
use super::lease::release;
use super::receiver::send_acknowledgements;
use super::running::Running;
use super::slots::serve_slots;
use super::{Command, Shared};
use crate::clock::millis;
use crate::limit::SlotRequest;

/// How long a replica that leaves waits for the ends of its last writes.
const FINISH_ENDS_WITHIN: Duration = Duration::from_secs(1);
/// Bytes of a member's id.
const ID_LENGTH: usize = 12;

/// What the other replicas change in this one.
pub trait Replica: Send + Sync + 'static {
    /// A write ended through another replica: to these subjects, by their names, or to all of a merchant. For `settle` the platform
    /// may lag.
    fn ended(&self, merchant: &str, subjects: Option<&[&str]>, settle: Duration);
    /// The platform throttled another replica's call of this pace.
    fn throttled(&self, pace: &str);
    /// The platform asked another replica for a pause of this pace.
    fn paused(&self, pace: &str, pause: Duration);
    /// Invalidations may have been missed: nothing that is in memory or being fetched is served any more.
    fn distrust(&self);
    /// Slots come from elsewhere now.
    fn slots_changed(&self);
    /// Whether no call that this replica made in its own part of the rate limit counts any more.
    fn has_cooled(&self) -> bool;
}

/// A random id.
pub(super) fn new_id() -> String {
    (0..ID_LENGTH).map(|_| fastrand::alphanumeric()).collect()
}

/// A replica that shares a Redis with others, to be started.
pub struct Member {
    shared: Arc<Shared>,
    connector: Connector,
    commands: UnboundedReceiver<Command>,
    slots: UnboundedReceiver<SlotRequest>,
    about: String,
}

impl Member {
    pub(super) fn new(
        shared: Arc<Shared>,
        connector: Connector,
        commands: UnboundedReceiver<Command>,
        slots: UnboundedReceiver<SlotRequest>,
        instance: &str,
    ) -> Self {
        let about = format!("{} {instance}", millis(shared.settings.lease));
        Self { shared, connector, commands, slots, about }
    }

    /// Starts its thread, which ends when this replica leaves, or with the last handle of the cluster. What is returned completes when
    /// it has ended, for whatever reason.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start(self, replica: Arc<dyn Replica>) -> io::Result<impl Future<Output = ()> + Send + 'static> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (running, ended) = oneshot::channel::<()>();
        let run = move || {
            // Dropped when the thread ends, also by a panic.
            let _running = running;
            runtime.block_on(self.run(replica));
        };
        thread::Builder::new().name("cluster".to_owned()).spawn(run)?;
        Ok(async move { drop(ended.await) })
    }

    async fn run(self, replica: Arc<dyn Replica>) {
        let Self { shared, connector, commands, slots, about } = self;
        let (acknowledge, acknowledgements) = unbounded_channel();
        let running = Running::new(Arc::clone(&shared), Arc::clone(&replica), connector, about, acknowledge);
        tokio::select! {
            () = serve_commands(&shared, &replica, commands) => {}
            () = running.stay_connected() => {}
            () = running.watch() => {}
            () = serve_slots(&shared, slots) => {}
            () = send_acknowledgements(&shared, acknowledgements) => {}
            () = running.publish_missed() => {}
        }
    }
}

async fn serve_commands(shared: &Arc<Shared>, replica: &Arc<dyn Replica>, mut commands: UnboundedReceiver<Command>) {
    let ends = TaskTracker::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::End(ending, done) => {
                let (shared, replica) = (Arc::clone(shared), Arc::clone(replica));
                ends.spawn(async move {
                    let moved = end(&shared, &*replica, ending).await;
                    // Whoever waited may have been dropped.
                    let _ = done.send(moved);
                });
            }
            Command::Release(fetch, deadline) => {
                let shared = Arc::clone(shared);
                tokio::spawn(async move { release(&shared, &fetch, deadline).await });
            }
            Command::Leave(done) => {
                shared.is_leaving.store(true, Ordering::SeqCst);
                ends.close();
                // Those that take longer are lost with the process.
                let _ = tokio::time::timeout(FINISH_ENDS_WITHIN, ends.wait()).await;
                if let Some(link) = shared.link.load_full() {
                    link.leave().await;
                }
                let _ = done.send(());
                return;
            }
        }
    }
}
