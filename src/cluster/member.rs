//! This replica as a member: a thread of its own that keeps the connections, sends heartbeats, and hears of what others do.
//!
//! It has its own thread so that nothing else that the process does delays a heartbeat.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use redis::PushInfo;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::connection::{ClusterError, Connector, TIMEOUT};
use super::ends::{self, TELL_AGAIN_AFTER, tell_missed};
use super::link::{Beat, Link, Namespace, Pulse, ServerInfo};
use super::offset::Offset;
use super::receiver::{receiver, send_acknowledgements};
use super::slots::serve_slots;
use super::{Command, Shared};
use crate::backoff::Backoff;
use crate::clock::{Boot, millis};
use crate::limit::{SILENCE, SlotRequest, SlotSource};
use crate::metrics::ClusterOp;

/// Pauses between attempts to connect.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
/// How often heartbeats are sent at least, if every read asks for one.
const SLOWEST_BEAT: Duration = Duration::from_millis(50);
/// A timer that fires later was not on time.
const PUNCTUAL: Duration = Duration::from_millis(50);
/// How often a Sentinel is asked for the primary.
const ASK_SENTINEL: Duration = Duration::from_secs(1);
/// Bytes of a member's id.
const ID_LENGTH: usize = 12;

/// What the other replicas change in this one.
pub trait Replica: Send + Sync + 'static {
    /// A write ended through another replica: to these customers, by their names in the cluster, or to all of a merchant. For
    /// `settle` the platform may lag.
    fn ended(&self, merchant: &str, customers: Option<&[&str]>, settle: Duration);
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

    /// Starts its thread, which ends when this replica leaves, or with the last handle of the cluster.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start(self, replica: Arc<dyn Replica>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("cluster".to_owned()).spawn(move || runtime.block_on(self.run(replica)))?;
        Ok(())
    }

    async fn run(self, replica: Arc<dyn Replica>) {
        let Self { shared, connector, commands, slots, about } = self;
        let (acknowledge, acknowledgements) = unbounded_channel();
        let protocol = shared.names.protocol();
        let started = shared.started;
        let running = Running {
            replica,
            connector,
            about,
            protocol,
            acknowledge,
            last: Mutex::new(None),
            answered: AtomicU64::new(started.nanos()),
            live_heartbeat: AtomicU64::new(started.nanos()),
            members: AtomicU32::new(0),
            is_live: AtomicBool::new(false),
            cut: Notify::new(),
            joined: Notify::new(),
            shared,
        };
        tokio::select! {
            () = serve_commands(&running.shared, commands) => {}
            () = running.stay_connected() => {}
            () = running.watch() => {}
            () = serve_slots(&running.shared, slots) => {}
            () = send_acknowledgements(&running.shared, acknowledgements) => {}
            () = running.tell_missed() => {}
        }
    }
}

/// What is known of the namespace that it joined last.
#[derive(Clone)]
struct Last {
    namespace: Namespace,
    /// When it first heard of it.
    since: Boot,
    offset: Arc<Mutex<Offset>>,
}

/// A member that runs.
struct Running {
    shared: Arc<Shared>,
    replica: Arc<dyn Replica>,
    connector: Connector,
    /// Lease and name.
    about: String,
    protocol: String,
    acknowledge: UnboundedSender<(String, String)>,
    last: Mutex<Option<Last>>,
    /// When a heartbeat was last answered, in nanoseconds since boot, or the process started.
    answered: AtomicU64,
    /// When one was last sent by which this replica may have counted as live, or the process started.
    live_heartbeat: AtomicU64,
    /// As Redis last said.
    members: AtomicU32,
    /// Whether it counts as live for slots.
    is_live: AtomicBool,
    /// Notified when it is cut off, and when it has joined.
    cut: Notify,
    joined: Notify,
}

fn boot(nanos: &AtomicU64) -> Boot {
    Boot::from_duration(Duration::from_nanos(nanos.load(Ordering::Relaxed)))
}

impl Running {
    /// Connects, joins, sends heartbeats until that fails, and does so again.
    async fn stay_connected(&self) {
        let mut failures = 0;
        let mut reported = None;
        loop {
            let ended = match self.join().await {
                Ok(link) => {
                    failures = 0;
                    reported = None;
                    self.beat(link).await
                }
                Err(error) => error,
            };
            if let ClusterError::Jumped = ended
                && let Some(link) = self.shared.link.load_full()
            {
                // Another replica may see to it if this fails.
                let _ = link.jump().await;
            }
            self.shared.joining.lock().is_incompatible = matches!(ended, ClusterError::Incompatible);
            let cause = ended.to_string();
            // Each cause once, until it has joined again.
            if reported.as_ref() != Some(&cause) {
                tracing::warn!(cause, "cluster: connection to Redis failed, connecting again");
                reported = Some(cause);
            }
            tokio::time::sleep(BACKOFF.with_equal_jitter(failures, fastrand::f64())).await;
            failures = failures.saturating_add(1);
        }
    }

    /// Connects and joins the others.
    async fn join(&self) -> Result<Arc<Link>, ClusterError> {
        let opened = self.open().await;
        self.shared.metrics.count(ClusterOp::Connect, opened.as_ref().map(|_| ()).map_err(ClusterError::is_timeout));
        let link = Arc::new(opened?);
        link.subscribe().await?;
        let beat = self.heartbeat(&link, true).await?;
        self.install(&link, beat);
        Ok(link)
    }

    async fn open(&self) -> Result<Link, ClusterError> {
        let Shared { settings, clock, .. } = &*self.shared;
        let primary = self.connector.primary().await?;
        let on_push = receiver(&self.shared, &self.replica, &self.acknowledge);
        let control = self.connector.open(&primary, Some(on_push)).await?;
        let data = self.connector.open(&primary, None::<fn(PushInfo)>).await?;
        let server = ServerInfo::of(&control.0).await?;
        if server != ServerInfo::of(&data.0).await? {
            return Err(ClusterError::Moved);
        }
        if !server.never_evicts() {
            tracing::warn!(
                policy = server.memory_policy,
                "cluster: Redis evicts what it needs when it is full; expected maxmemory-policy noeviction"
            );
        }
        let namespace = Namespace::of(&control.0, &settings.prefix, &server).await?;
        let known = self.last.lock().clone().filter(|last| last.namespace == namespace);
        let since = known.as_ref().map_or_else(|| clock.boot(), |last| last.since);
        let offset = known.map(|last| last.offset);
        Link::new(namespace, since, (control, data), offset, &self.shared).await
    }

    /// From now on this replica acts as one with the others. What it held is not served any more: it may have missed events.
    fn install(&self, link: &Arc<Link>, beat: Beat) {
        let shared = &self.shared;
        let Link { namespace, since, offset, .. } = &**link;
        let last = Last { namespace: namespace.clone(), since: *since, offset: Arc::clone(offset) };
        *self.last.lock() = Some(last);
        shared.right.revoke();
        self.replica.distrust();
        shared.link.store(Some(Arc::clone(link)));
        shared.sharing.change(SlotSource::Shared);
        self.replica.slots_changed();
        {
            let mut joining = shared.joining.lock();
            (joining.has_joined, joining.is_incompatible) = (true, false);
        }
        shared.metrics.up.set(1);
        self.answered(beat);
        self.joined.notify_one();
        shared.ends.has_missed.notify_one();
        tracing::info!(replicas = beat.live, namespace = link.namespace.name(""), "cluster: joined");
    }

    /// Sends a heartbeat, and waits for its reply.
    async fn heartbeat(&self, link: &Link, joins: bool) -> Result<Beat, ClusterError> {
        // Others use the part of a replica that counts as live only if it does not use it itself.
        if !joins && !self.is_live.load(Ordering::Relaxed) && self.replica.has_cooled() {
            self.is_live.store(true, Ordering::Relaxed);
        }
        let is_live = self.is_live.load(Ordering::Relaxed);
        if is_live {
            self.live_heartbeat.store(self.shared.clock.boot().nanos(), Ordering::Relaxed);
        }
        link.heartbeat(Pulse { about: &self.about, protocol: &self.protocol, is_live, joins }).await
    }

    fn answered(&self, beat: Beat) {
        let shared = &self.shared;
        let now = shared.clock.boot();
        self.answered.store(now.nanos(), Ordering::Relaxed);
        self.members.store(beat.members, Ordering::Relaxed);
        shared.metrics.replicas.set(beat.live.into());
        if shared.right.extend(beat.sent, now) {
            shared.metrics.lease_lost.inc();
        }
    }

    /// Sends heartbeats, until that fails or this replica is cut off.
    async fn beat(&self, link: Arc<Link>) -> ClusterError {
        let lease = self.shared.settings.lease;
        let every = if lease.is_zero() { SLOWEST_BEAT } else { lease / 4 };
        let (mut ticks, mut sentinel) = (tokio::time::interval(every), tokio::time::interval(ASK_SENTINEL));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        sentinel.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let primary = self.connector.primary().await;
        let mut beats = FuturesUnordered::new();
        // Those that requests wait for are sent one after another.
        let (mut is_asked, mut is_wanted) = (false, false);
        loop {
            let mut sends = false;
            tokio::select! {
                _ = ticks.tick() => beats.push(self.tagged(&link, false)),
                () = self.shared.right.wanted.notified() => sends = true,
                Some((was_asked, answer)) = beats.next() => {
                    match answer {
                        Ok(beat) => self.answered(beat),
                        // The next one may be answered; without any, the watch cuts off.
                        Err(ClusterError::Timeout | ClusterError::Late) => {}
                        Err(error) => return error,
                    }
                    is_asked &= !was_asked;
                    sends = was_asked && std::mem::take(&mut is_wanted);
                }
                _ = sentinel.tick(), if self.connector.asks_sentinels() => {
                    let now = self.connector.primary().await;
                    if matches!((&now, &primary), (Ok(now), Ok(before)) if now != before) {
                        return ClusterError::Moved;
                    }
                }
                () = self.cut.notified() => return ClusterError::Timeout,
            }
            if sends {
                is_wanted = is_asked;
                if !is_asked {
                    is_asked = true;
                    beats.push(self.tagged(&link, true));
                }
            }
        }
    }

    /// A heartbeat, with whether requests wait for it.
    async fn tagged(&self, link: &Link, is_asked: bool) -> (bool, Result<Beat, ClusterError>) {
        (is_asked, self.heartbeat(link, false).await)
    }

    /// Cuts this replica off whenever no heartbeat was answered for too long.
    async fn watch(&self) {
        loop {
            let answered = boot(&self.answered);
            let silent_at = answered + SILENCE;
            tokio::time::sleep(silent_at.since(self.shared.clock.boot())).await;
            if self.shared.clock.boot().since(silent_at) > PUNCTUAL {
                // This process itself was suspended, or had no CPU: Redis may have answered meanwhile.
                tokio::time::sleep(TIMEOUT).await;
            }
            if boot(&self.answered) == answered {
                self.cut_off();
                // It may have been notified of an earlier time that it joined.
                while boot(&self.answered) == answered {
                    self.joined.notified().await;
                }
            }
        }
    }

    fn cut_off(&self) {
        let shared = &self.shared;
        shared.link.store(None);
        self.is_live.store(false, Ordering::Relaxed);
        shared.right.revoke();
        self.replica.distrust();
        let replicas = shared.replicas.max(self.members.load(Ordering::Relaxed));
        shared.sharing.change(SlotSource::CutOff { last_heartbeat: boot(&self.live_heartbeat), replicas });
        self.replica.slots_changed();
        shared.right.cut_off();
        shared.metrics.up.set(0);
        shared.metrics.replicas.set(0);
        self.cut.notify_one();
        tracing::warn!(
            replicas,
            "cluster: Redis unreachable, this replica acts alone: it serves what it held only in place of failures, and uses its own part of the rate limit after a pause"
        );
    }

    /// Tells all replicas of ends that they missed, as soon as it can.
    async fn tell_missed(&self) {
        loop {
            self.shared.ends.has_missed.notified().await;
            while self.shared.link.load().is_some() && !tell_missed(&self.shared).await {
                tokio::time::sleep(TELL_AGAIN_AFTER).await;
            }
        }
    }
}

async fn serve_commands(shared: &Arc<Shared>, mut commands: UnboundedReceiver<Command>) {
    while let Some(command) = commands.recv().await {
        match command {
            Command::End(ending, done) => {
                let shared = Arc::clone(shared);
                tokio::spawn(async move {
                    ends::end(&shared, ending).await;
                    // Whoever waited may be gone.
                    let _ = done.send(());
                });
            }
            Command::Leave(done) => {
                if let Some(link) = shared.link.load_full() {
                    link.leave().await;
                }
                let _ = done.send(());
                return;
            }
        }
    }
}
