//! A member that runs: connecting, joining, heartbeats, and being cut off.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use redis::PushInfo;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use super::Shared;
use super::connection::{ClusterError, Connector, result_of};
use super::ends::{PUBLISH_AGAIN_AFTER, publish_missed};
use super::link::{Heartbeat, HeartbeatReply, Link};
use super::member::Replica;
use super::namespace::{Namespace, ServerInfo};
use super::offset::Offset;
use super::receiver::receiver;
use crate::backoff::Backoff;
use crate::clock::{Boot, millis};
use crate::limit::{REPLY_WITHIN, SILENCE, SlotSource};
use crate::metrics::ClusterOp;

/// Pauses between attempts to connect.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
/// How often heartbeats are sent at least, if every read requests one.
const HEARTBEAT_WITHOUT_LEASE: Duration = Duration::from_millis(50);
/// How often the connection that no heartbeat uses is checked.
const CHECK_DATA: Duration = Duration::from_secs(1);
/// How often Sentinels are queried for the primary.
const SENTINEL_INTERVAL: Duration = Duration::from_secs(1);
/// A timer that fires later was not on time.
const PUNCTUAL: Duration = Duration::from_millis(50);

/// What is known of the namespace that it joined last.
#[derive(Clone)]
struct Last {
    namespace: Namespace,
    /// When this replica first joined the others in it.
    joined: Boot,
    offset: Arc<Mutex<Offset>>,
}

/// A member that runs.
pub(super) struct Running {
    shared: Arc<Shared>,
    replica: Arc<dyn Replica>,
    connector: Connector,
    /// Lease and name.
    about: String,
    protocol: String,
    acknowledge: UnboundedSender<(String, String)>,
    last: Mutex<Option<Last>>,
    /// When the last heartbeat that was answered was sent, in nanoseconds since boot, or the process started.
    answered: AtomicU64,
    /// When one was last sent by which this replica may have counted as live, or the process started.
    live_heartbeat: AtomicU64,
    /// How many members Redis last reported.
    members: AtomicU32,
    /// Whether it counts as live for slots.
    is_live: AtomicBool,
    /// Since when it is cut off.
    disconnected: Mutex<Option<Boot>>,
    /// Notified when it is cut off, and when it has joined.
    cut: Notify,
    joined: Notify,
}

fn boot(nanos: &AtomicU64) -> Boot {
    Boot::from_duration(Duration::from_nanos(nanos.load(Ordering::Relaxed)))
}

impl Running {
    /// One that has not joined yet.
    pub(super) fn new(
        shared: Arc<Shared>,
        replica: Arc<dyn Replica>,
        connector: Connector,
        about: String,
        acknowledge: UnboundedSender<(String, String)>,
    ) -> Self {
        let started = shared.started.nanos();
        Self {
            replica,
            connector,
            about,
            protocol: shared.names.protocol(),
            acknowledge,
            last: Mutex::new(None),
            answered: AtomicU64::new(started),
            live_heartbeat: AtomicU64::new(started),
            members: AtomicU32::new(0),
            is_live: AtomicBool::new(false),
            disconnected: Mutex::new(None),
            cut: Notify::new(),
            joined: Notify::new(),
            shared,
        }
    }

    /// Connects, joins, sends heartbeats until that fails, and does so again.
    pub(super) async fn stay_connected(&self) {
        let mut failures = 0;
        let mut reported = BTreeSet::new();
        loop {
            let ended = match self.join().await {
                Ok(link) => {
                    failures = 0;
                    reported.clear();
                    self.send_heartbeats(link).await
                }
                Err(error) => error,
            };
            if let ClusterError::Jumped = ended
                && let Some(link) = self.shared.link.load_full()
            {
                // Another replica may see to it if this fails.
                let _ = link.jump().await;
            }
            let cause = ended.to_string();
            *self.shared.cause.lock() = cause.clone();
            // Until it joins: that Redis does not answer does not make it compatible.
            if matches!(ended, ClusterError::Incompatible) && !self.shared.joining.lock().is_incompatible {
                self.shared.joining.lock().is_incompatible = true;
                self.cut_off();
            }
            // Each cause once, until it has joined again.
            if !reported.contains(&cause) {
                tracing::warn!(cause, "cluster: connection to Redis failed, connecting again");
                reported.insert(cause);
            }
            tokio::time::sleep(BACKOFF.with_equal_jitter(failures, fastrand::f64())).await;
            failures = failures.saturating_add(1);
        }
    }

    /// Connects and joins the others.
    async fn join(&self) -> Result<Arc<Link>, ClusterError> {
        let opened = self.open().await;
        self.shared.metrics.count(ClusterOp::Connect, result_of(&opened));
        let link = Arc::new(opened?);
        link.subscribe().await?;
        let beat = self.heartbeat(&link, true).await?;
        self.install(&link, beat);
        Ok(link)
    }

    async fn open(&self) -> Result<Link, ClusterError> {
        let Shared { settings, clock, metrics, .. } = &*self.shared;
        let began = clock.boot();
        let primary = self.connector.primary().await?;
        let on_push = receiver(&self.shared, &self.replica, &self.acknowledge);
        let control = self.connector.open(&primary, Some(on_push)).await?;
        let data = self.connector.open(&primary, None::<fn(PushInfo)>).await?;
        let server = ServerInfo::of(&control.0).await?;
        if server != ServerInfo::of(&data.0).await? {
            return Err(ClusterError::Moved);
        }
        let namespace = Namespace::of(&control.0, &settings.prefix, &server).await?;
        let known = self.last.lock().clone().filter(|last| last.namespace == namespace);
        if known.is_none() && !server.never_evicts() {
            let policy = server.memory_policy;
            tracing::warn!(policy, "cluster: Redis evicts keys when it is full; expected maxmemory-policy noeviction");
        }
        let offset = known.map(|last| last.offset);
        let link = Link::new(primary, namespace, (control, data), offset, &self.shared).await;
        metrics.duration.of(ClusterOp::Connect).observe(clock.boot().since(began).as_secs_f64());
        link
    }

    /// From now on this replica acts as one with the others. What it held is not served any more: it may have missed events.
    fn install(&self, link: &Arc<Link>, beat: HeartbeatReply) {
        let shared = &self.shared;
        let Link { namespace, offset, .. } = &**link;
        {
            let mut last = self.last.lock();
            let known = last.as_ref().filter(|last| last.namespace == *namespace).map(|last| last.joined);
            let joined = known.unwrap_or_else(|| shared.clock.boot());
            link.set_joined(joined);
            *last = Some(Last { namespace: namespace.clone(), joined, offset: Arc::clone(offset) });
        }
        self.revoke_right();
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
        let disconnected = self.disconnected.lock().take();
        let disconnected_ms = disconnected.map(|since| millis(shared.clock.boot().since(since)));
        let (primary, namespace) = (&link.primary, link.namespace.name(""));
        tracing::info!(%primary, replicas = beat.live, namespace, disconnected_ms, "cluster: joined");
        if beat.members > shared.replicas {
            tracing::warn!(
                members = beat.members,
                replicas = shared.replicas,
                "cluster: more replicas than cluster.replicas: without Redis their parts would exceed the rate limit"
            );
        }
    }

    /// Sends a heartbeat, and waits for its reply.
    async fn heartbeat(&self, link: &Arc<Link>, joins: bool) -> Result<HeartbeatReply, ClusterError> {
        let is_current = self.shared.link.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, link));
        if self.shared.is_leaving.load(Ordering::SeqCst) || !(joins || is_current) {
            return Err(ClusterError::Disconnected);
        }
        // Others use the part of a replica that counts as live only if it does not use it itself.
        if is_current && !self.is_live.load(Ordering::Relaxed) && self.replica.has_cooled() {
            self.is_live.store(true, Ordering::Relaxed);
        }
        let is_live = self.is_live.load(Ordering::Relaxed);
        if is_live {
            self.live_heartbeat.store(self.shared.clock.boot().nanos(), Ordering::Relaxed);
        }
        link.heartbeat(Heartbeat { about: &self.about, protocol: &self.protocol, is_live, joins }).await
    }

    fn revoke_right(&self) {
        if self.shared.right.revoke(self.shared.clock.boot()) {
            self.shared.metrics.lease_lost.inc();
        }
    }

    fn answered(&self, beat: HeartbeatReply) {
        let shared = &self.shared;
        let now = shared.clock.boot();
        self.answered.fetch_max(beat.sent.nanos(), Ordering::Relaxed);
        self.members.store(beat.members, Ordering::Relaxed);
        shared.metrics.replicas.set(beat.live.into());
        if shared.right.extend(beat.sent, now) {
            shared.metrics.lease_lost.inc();
        }
    }

    /// Sends heartbeats, until that fails or this replica is cut off.
    async fn send_heartbeats(&self, link: Arc<Link>) -> ClusterError {
        let lease = self.shared.settings.lease;
        let every = if lease.is_zero() { HEARTBEAT_WITHOUT_LEASE } else { (lease / 4).min(SILENCE / 5) };
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Beside the heartbeats: Sentinels may not answer.
        let mut moved = pin!(self.primary_moved(&link));
        let mut lost = pin!(self.data_lost(&link));
        let mut beats = FuturesUnordered::new();
        // Those that requests wait for are sent one after another.
        let (mut is_awaited, mut is_wanted) = (false, false);
        loop {
            let mut sends = false;
            tokio::select! {
                biased;
                () = self.cut.notified() => {
                    let is_current = self.shared.link.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, &link));
                    if !is_current {
                        return ClusterError::Disconnected;
                    }
                }
                _ = ticks.tick() => beats.push(self.tagged(&link, false)),
                () = self.shared.right.wanted.notified() => sends = true,
                Some((was_awaited, answer)) = beats.next() => {
                    match answer {
                        Ok(beat) => self.answered(beat),
                        // The next one may be answered; without any, the watch cuts off.
                        Err(error @ (ClusterError::Timeout(_) | ClusterError::Late)) => {
                            *self.shared.cause.lock() = error.to_string();
                        }
                        Err(error) => return error,
                    }
                    is_awaited &= !was_awaited;
                    sends = was_awaited && std::mem::take(&mut is_wanted);
                }
                () = &mut moved => return ClusterError::OtherPrimary,
                error = &mut lost => return error,
            }
            if sends {
                is_wanted = is_awaited;
                if !is_awaited {
                    is_awaited = true;
                    beats.push(self.tagged(&link, true));
                }
            }
        }
    }

    /// Completes when the connection that no heartbeat uses does not work.
    async fn data_lost(&self, link: &Link) -> ClusterError {
        let mut is_slow = false;
        loop {
            tokio::time::sleep(CHECK_DATA).await;
            is_slow = match link.check_data().await {
                Ok(()) => false,
                // All of Redis may have been slow just then.
                Err(ClusterError::Timeout(_)) if !is_slow => true,
                Err(error) => return error,
            };
        }
    }

    /// Completes when a Sentinel names another primary than that of the link.
    async fn primary_moved(&self, link: &Link) {
        while self.connector.uses_sentinels() {
            tokio::time::sleep(SENTINEL_INTERVAL).await;
            if self.connector.primary().await.is_ok_and(|primary| primary != link.primary) {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    /// A heartbeat, with whether requests wait for it.
    async fn tagged(&self, link: &Arc<Link>, is_awaited: bool) -> (bool, Result<HeartbeatReply, ClusterError>) {
        (is_awaited, self.heartbeat(link, false).await)
    }

    /// Cuts this replica off whenever no heartbeat was answered for too long.
    pub(super) async fn watch(&self) {
        loop {
            let answered = boot(&self.answered);
            let silent_at = answered + SILENCE;
            tokio::time::sleep(silent_at.since(self.shared.clock.boot())).await;
            if self.shared.clock.boot().since(silent_at) > PUNCTUAL {
                // This process itself was suspended, or had no CPU: Redis may have answered meanwhile.
                tokio::time::sleep(REPLY_WITHIN).await;
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
        let was_cut_off = shared.right.is_cut_off();
        shared.link.store(None);
        self.is_live.store(false, Ordering::Relaxed);
        self.revoke_right();
        self.replica.distrust();
        // A replica that cannot join the others has no part beside theirs.
        let is_incompatible = shared.joining.lock().is_incompatible;
        let counted = shared.replicas.max(self.members.load(Ordering::Relaxed));
        let replicas = if is_incompatible { u32::MAX } else { counted };
        shared.sharing.change(SlotSource::CutOff { last_heartbeat: boot(&self.live_heartbeat), replicas });
        self.replica.slots_changed();
        shared.right.cut_off();
        shared.metrics.up.set(0);
        shared.metrics.replicas.set(0);
        self.cut.notify_one();
        if was_cut_off {
            return;
        }
        *self.disconnected.lock() = Some(boot(&self.answered));
        let cause = self.shared.cause.lock().clone();
        tracing::warn!(
            cause,
            replicas,
            "cluster: disconnected: what is in memory is served only in place of failures, and after a pause rate / replicas calls are made"
        );
    }

    /// Publishes ends that other replicas missed, as soon as it can.
    pub(super) async fn publish_missed(&self) {
        loop {
            self.shared.ends.has_missed.notified().await;
            while self.shared.link.load().is_some() && !publish_missed(&self.shared).await {
                tokio::time::sleep(PUBLISH_AGAIN_AFTER).await;
            }
        }
    }
}
