//! Several replicas that act as one, through a Redis that they share.
//!
//! A replica serves from its own memory while it has the right to ([`Standing`]): for a lease after a heartbeat that was answered.
//! A write that ends is published to all replicas, each of which drops what it holds of its customers and acknowledges that; the
//! caller is answered once all have that may still serve from before it, or once their rights have lapsed ([`Cluster::end`]).
//! Slots towards the platform are taken from Redis ([`crate::limit::Sharing`]).
//!
//! Redis executes commands one by one, and sends replies and messages to a connection in that order. Messages are handled as they are
//! received, before later replies: so a reply proves that every message that was caused before it has been handled.
//!
//! Without a heartbeat's reply for half a second a replica is cut off: it no longer serves what it held, except in place of
//! failures, uses its own part of the rate limit after a while, and joins again by itself. Without Redis there is one replica, or
//! each has its part of the rate limit, and nothing here costs anything.

mod answers;
mod check;
mod connection;
mod ends;
mod event;
mod lease;
mod link;
mod member;
mod names;
mod namespace;
mod offset;
mod receiver;
mod record;
mod right;
mod running;
mod seal;
mod slots;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{broadcast, oneshot};

use self::answers::MAX_COMPLETED;
pub use self::answers::{Found, Inquiry, Query, Wanted};
pub use self::check::check;
pub use self::connection::ClusterError;
use self::connection::Connector;
use self::ends::Ends;
use self::lease::Fetch;
pub use self::lease::{FetchResult, Lease, Moved};
use self::link::Link;
pub use self::member::{Member, Replica};
use self::names::Names;
pub use self::record::{Record, StoredAnswer};
use self::right::Right;
pub use self::right::Standing;
use crate::cache::Subject;
use crate::clock::{Boot, Clock};
use crate::configuration::RedisKeys;
use crate::limit::{Sharing, SlotSource};
use crate::line_limit::LineLimit;
use crate::metrics::Metrics;
use crate::pseudonym::Pseudonyms;
use crate::settings::{ClusterSettings, RedisSettings, UnfencedWrites};

/// After so long the gateway is ready even if Redis never answered.
const READY_WITHOUT_REDIS: Duration = Duration::from_secs(10);

/// What the rest of the gateway knows of the other replicas; cheap to clone.
#[derive(Clone)]
pub struct Cluster(Option<Joined>);

#[derive(Clone)]
struct Joined {
    shared: Arc<Shared>,
    /// The thread of the member ends with the last of these.
    commands: UnboundedSender<Command>,
}

/// What requests and the thread of the member share.
struct Shared {
    settings: RedisSettings,
    replicas: u32,
    /// This process, among the replicas.
    member: Arc<str>,
    names: Names,
    /// The platform's address.
    upstream: String,
    clock: Clock,
    started: Boot,
    metrics: crate::metrics::ClusterMetrics,
    sharing: Arc<Sharing>,
    right: Right,
    /// The connections, while this replica acts as one with the others.
    link: ArcSwapOption<Link>,
    ends: Ends,
    /// The fetches that this replica began.
    calls: AtomicU64,
    /// The questions whose fetches ended that somebody waited for.
    completed: broadcast::Sender<Arc<str>>,
    /// Lines about commands that Redis refuses.
    refusals: Arc<LineLimit>,
    joining: Mutex<Joining>,
    /// Why the last connection to Redis ended.
    cause: Mutex<String>,
    /// Whether this replica sends no heartbeats any more.
    is_leaving: AtomicBool,
}

/// How the replicas act as one.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterStatus {
    /// Whether this replica acts as one with the others.
    pub up: bool,
    /// Live replicas, this one included; 0 while it is cut off.
    pub live: i64,
    /// `cluster.replicas`.
    pub expected: u32,
    /// Why it is cut off, as far as is known.
    pub cause: String,
}

/// How joining goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Joining {
    has_joined: bool,
    is_incompatible: bool,
}

/// Requests to the thread of the member.
enum Command {
    /// To end a write for all replicas.
    End(Ending, oneshot::Sender<Option<Moved>>),
    /// To release the lease of a fetch, until this moment at most.
    Release(Fetch, Boot),
    /// To leave the others.
    Leave(oneshot::Sender<()>),
}

/// What is ended for all replicas.
#[derive(Clone, Debug)]
pub struct Ending {
    /// The merchant, by its name in the cluster.
    merchant: Arc<str>,
    /// The subjects, by their names; `None`: all of the merchant's.
    subjects: Option<Vec<String>>,
    /// How long the platform may lag.
    settle: Duration,
    /// Whether this replica has an answer that is newer than this.
    is_superseded: bool,
}

impl Ending {
    /// The names of its subjects.
    fn subjects(&self) -> Option<Vec<&str>> {
        self.subjects.as_ref().map(|subjects| subjects.iter().map(String::as_str).collect())
    }
}

/// What completes once no replica serves from before an end.
#[derive(Debug, Default)]
pub struct Completion(Option<oneshot::Receiver<Option<Moved>>>);

impl Completion {
    /// Whether there is something to wait for.
    pub const fn is_pending(&self) -> bool {
        self.0.is_some()
    }

    /// Waits for it, if there is something to wait for. Returns what it did to the fence of its last subject, if it was published.
    pub async fn wait(self) -> Option<Moved> {
        // The sender is lost only if the process ends.
        self.0?.await.ok().flatten()
    }
}

impl Cluster {
    /// Alone, or as one of the replicas that share a Redis; then with what is to be started ([`Member::start`]). `instance`:
    /// what distinguishes this replica from the others, and stays the same when it is restarted. `upstream`: the platform's address.
    pub fn new(
        settings: &ClusterSettings,
        keys: RedisKeys,
        pseudonyms: &Arc<Pseudonyms>,
        metrics: &Metrics,
        clock: &Clock,
        [instance, upstream]: [&str; 2],
    ) -> (Self, Arc<Sharing>, Option<Member>) {
        let Some(redis) = &settings.redis else { return (Self(None), Sharing::split(settings.replicas), None) };
        let names = Names(Arc::clone(pseudonyms));
        let (slot_sender, slots) = unbounded_channel();
        let (commands, received) = unbounded_channel();
        let started = clock.boot();
        let source = SlotSource::CutOff { last_heartbeat: started, replicas: settings.replicas };
        let namer = names.clone();
        let sharing = Sharing::shared(source, slot_sender, move |open_id, path| namer.pace(open_id, path));
        let shared = Arc::new(Shared {
            settings: redis.clone(),
            replicas: settings.replicas,
            member: member::new_id().into(),
            names,
            upstream: upstream.to_owned(),
            clock: clock.clone(),
            started,
            metrics: metrics.cluster(settings.replicas),
            sharing: Arc::clone(&sharing),
            right: Right::new(redis.lease),
            link: ArcSwapOption::empty(),
            ends: Ends::default(),
            calls: AtomicU64::new(0),
            completed: broadcast::channel(MAX_COMPLETED).0,
            refusals: Arc::default(),
            joining: Mutex::default(),
            cause: Mutex::new("not connected yet".to_owned()),
            is_leaving: AtomicBool::new(false),
        });
        let connector = Connector::new(redis.clone(), keys);
        let member = Member::new(Arc::clone(&shared), connector, received, slots, instance);
        (Self(Some(Joined { shared, commands })), sharing, Some(member))
    }

    /// Whether there are no other replicas. Otherwise customers have other names in memory than their ids.
    pub const fn is_alone(&self) -> bool {
        self.0.is_none()
    }

    /// The name of a customer in memory and towards other replicas.
    pub fn customer<'a>(&self, id: &'a str) -> Cow<'a, str> {
        match &self.0 {
            None => Cow::Borrowed(id),
            Some(joined) => Cow::Owned(joined.shared.names.customer(id)),
        }
    }

    /// The name of a question that is about no customer, in memory and towards other replicas. `grant`: the tenant's `open_id` and
    /// `grant_code`.
    pub fn question<'a>(&self, grant: [&str; 2], key: &'a str) -> Cow<'a, str> {
        let [open_id, grant_code] = grant;
        match &self.0 {
            None => Cow::Borrowed(key),
            Some(joined) => Cow::Owned(joined.shared.names.question(["", "", open_id, grant_code, key])),
        }
    }

    /// The name of a merchant towards other replicas; alone, it has none.
    pub fn merchant(&self, open_id: &str) -> Arc<str> {
        self.0.as_ref().map_or_else(Arc::default, |joined| joined.shared.names.merchant(open_id))
    }

    /// How a request that began at this moment may be served from memory; `None`: [`Cluster::wait_for_standing`] finds out.
    pub fn standing(&self, at: Boot) -> Option<Standing> {
        self.0.as_ref().map_or(Some(Standing::Fenced), |joined| joined.shared.right.standing(at))
    }

    /// The same, by a heartbeat.
    pub async fn wait_for_standing(&self, at: Boot) -> Standing {
        match &self.0 {
            None => Standing::Fenced,
            Some(joined) => joined.shared.right.wait(at).await,
        }
    }

    /// Whether this replica is cut off from the others.
    pub fn is_cut_off(&self) -> bool {
        self.0.as_ref().is_some_and(|joined| joined.shared.right.is_cut_off())
    }

    /// Counts a request that was served from memory with this standing.
    pub fn count_hit(&self, standing: Standing) {
        if standing != Standing::Fenced
            && let Some(joined) = &self.0
        {
            joined.shared.metrics.unfenced_hits.inc();
        }
    }

    /// Whether a write may be sent now: other replicas can be notified of it, or that is not required.
    pub fn admits_writes(&self) -> bool {
        let admits = |joined: &Joined| {
            joined.shared.settings.unfenced_writes == UnfencedWrites::Send || joined.shared.link.load().is_some()
        };
        self.0.as_ref().is_none_or(admits)
    }

    /// Ends a write for all replicas: what they hold of these subjects, or of all of a merchant, is not served any more, and for
    /// `settle` the platform may lag. What this replica holds must have been invalidated already. The merchant is named as in the
    /// cluster.
    pub fn end(&self, merchant: &Arc<str>, subjects: Option<&[Subject]>, settle: Duration) -> Completion {
        self.publish(merchant, subjects, settle, false)
    }

    /// The same for one subject of which this replica has a newer answer, which it is about to serve. Returns what completes once the
    /// others do not serve theirs any more.
    pub fn supersede(&self, merchant: &Arc<str>, subject: &Subject) -> Completion {
        self.publish(merchant, Some(std::slice::from_ref(subject)), Duration::ZERO, true)
    }

    fn publish(
        &self,
        merchant: &Arc<str>,
        subjects: Option<&[Subject]>,
        settle: Duration,
        is_superseded: bool,
    ) -> Completion {
        let joined = self.0.as_ref().filter(|_| subjects.is_none_or(|subjects| !subjects.is_empty()));
        let Some(joined) = joined else { return Completion::default() };
        let subjects = subjects.map(|subjects| subjects.iter().map(|subject| subject.name().to_owned()).collect());
        let (done, wait) = oneshot::channel();
        let ending = Ending { merchant: Arc::clone(merchant), subjects, settle, is_superseded };
        if joined.commands.send(Command::End(ending, done)).is_err() {
            // This replica has left the others.
            joined.shared.metrics.fence_missed.inc();
        }
        Completion(Some(wait))
    }

    /// How this replica and the others act as one; `None` if it is alone.
    pub fn status(&self) -> Option<ClusterStatus> {
        let Shared { metrics, replicas, cause, .. } = &*self.0.as_ref()?.shared;
        let up = metrics.up.get() == 1;
        let cause = if up { String::new() } else { cause.lock().clone() };
        Some(ClusterStatus { up, live: metrics.replicas.get(), expected: *replicas, cause })
    }

    /// Why this replica is not ready, if it is not because of the others.
    pub fn reason_not_ready(&self) -> Option<&'static str> {
        let shared = &self.0.as_ref()?.shared;
        let joining = *shared.joining.lock();
        if joining.is_incompatible {
            return Some(
                "cluster: the other replicas have another version of the protocol, or another key in log.hash_key_file",
            );
        }
        let is_early = shared.clock.boot().since(shared.started) < READY_WITHOUT_REDIS;
        (!joining.has_joined && is_early).then_some("cluster: Redis has not answered yet")
    }

    /// Leaves the others, so that they use this replica's part of the rate limit at once.
    pub async fn leave(&self) {
        let Some(joined) = &self.0 else { return };
        let (done, left) = oneshot::channel();
        if joined.commands.send(Command::Leave(done)).is_ok() {
            let _ = left.await;
        }
    }
}
