//! Commands and scripts over one pair of connections, within one namespace.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue};
use sha2::{Digest, Sha256};

use super::Shared;
use super::connection::{ClusterError, Connection, bounded, result_of, send};
use super::offset::Offset;
use crate::clock::{Boot, Clock, millis};
use crate::limit::{LATENESS, PendingSlot, SEND_WITHIN, SharedSlot, hold};
use crate::line_limit::LineLimit;
use crate::metrics::{ClusterMetrics, ClusterOp, Label};
use crate::settings::{HostPort, PaceSettings};

const HEARTBEAT: &str = include_str!("scripts/heartbeat.lua");
const END: &str = include_str!("scripts/end.lua");
const FENCE: &str = include_str!("scripts/fence.lua");
const TAKE: &str = include_str!("scripts/take.lua");
const SLOT: &str = include_str!("scripts/slot.lua");
const LEAVE: &str = include_str!("scripts/leave.lua");
const JUMP: &str = include_str!("scripts/jump.lua");

/// Digits of a namespace's name.
const NAME_DIGITS: usize = 16;

/// What one server said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerInfo {
    run_id: String,
    replication_id: String,
    /// What it evicts when it is full.
    pub(super) memory_policy: String,
    pub(super) version: String,
    /// `standalone` or `cluster`.
    pub(super) mode: String,
}

impl ServerInfo {
    /// Asks a server for it.
    pub(super) async fn of(connection: &MultiplexedConnection) -> Result<Self, ClusterError> {
        let text: String = send("INFO", connection, &redis::cmd("INFO")).await?;
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.unwrap_or_default().trim().to_owned()
        };
        let role = field("role");
        if role != "master" {
            return Err(ClusterError::NotPrimary(role));
        }
        let (run_id, replication_id) = (field("run_id"), field("master_replid"));
        let (memory_policy, version) = (field("maxmemory_policy"), field("redis_version"));
        Ok(Self { run_id, replication_id, memory_policy, version, mode: field("redis_mode") })
    }

    /// Whether it never evicts what is needed.
    pub(super) fn never_evicts(&self) -> bool {
        self.memory_policy == "noeviction"
    }
}

/// The keys and channels that all replicas of one run of Redis share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Namespace {
    prefix: String,
    /// How often its clock jumped.
    jumps: String,
    /// `PREFIX:RUN:`
    start: Arc<str>,
}

impl Namespace {
    /// The one of a server now.
    pub(super) async fn of(
        connection: &MultiplexedConnection,
        prefix: &str,
        server: &ServerInfo,
    ) -> Result<Self, ClusterError> {
        let jumps: Option<String> = send("GET", connection, redis::cmd("GET").arg(format!("{prefix}:jumps"))).await?;
        let jumps = jumps.unwrap_or_else(|| "0".to_owned());
        let hash = Sha256::digest(format!("{} {} {jumps}", server.run_id, server.replication_id));
        let mut run: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        run.truncate(NAME_DIGITS);
        Ok(Self { prefix: prefix.to_owned(), jumps, start: format!("{prefix}:{run}:").into() })
    }

    /// A key or a channel in it.
    pub(super) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.start)
    }

    /// The channel of messages to all replicas.
    pub(super) fn events(&self) -> String {
        self.name("events")
    }

    /// The channel on which a replica receives acknowledgements of its ends.
    pub(super) fn acknowledgements(&self, member: &str) -> String {
        self.name(&format!("acks:{member}"))
    }

    fn fence(&self, merchant: &str, customer: Option<&str>) -> String {
        self.name(&format!("fence:{merchant}:{}", customer.unwrap_or_default()))
    }

    fn jumps_key(&self) -> String {
        format!("{}:jumps", self.prefix)
    }

    /// The key with the name of the current namespace: that of a server may change while it runs, when replicas of it come and go.
    fn current_key(&self) -> String {
        format!("{}:current", self.prefix)
    }
}

/// What is ended.
#[derive(Clone, Debug)]
pub(super) struct Scope<'a> {
    pub(super) merchant: &'a str,
    /// `None`: all customers.
    pub(super) customers: Option<&'a [String]>,
}

/// A pair of connections.
pub(super) struct Link {
    /// Where it leads to.
    pub(super) primary: HostPort,
    pub(super) namespace: Namespace,
    /// When this replica first heard of the namespace.
    pub(super) since: Boot,
    /// Known as long as this replica stays in the namespace.
    pub(super) offset: Arc<Mutex<Offset>>,
    control: Connection,
    data: Connection,
    member: Arc<str>,
    clock: Clock,
    metrics: ClusterMetrics,
    /// Lines about refused commands.
    refusals: Arc<LineLimit>,
}

/// What a heartbeat says of its sender.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pulse<'a> {
    /// Its lease and name.
    pub(super) about: &'a str,
    pub(super) protocol: &'a str,
    /// Whether others may count on it to use no slots of its own.
    pub(super) is_live: bool,
    /// Whether it is its first in this namespace.
    pub(super) joins: bool,
}

/// A heartbeat that was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beat {
    pub(super) sent: Boot,
    /// Replicas that live.
    pub(super) live: u32,
    /// Those, and others that are silent.
    pub(super) members: u32,
}

/// Redis' time, in microseconds since the Unix epoch.
const fn unix_micros(seconds: i64, micros: i64) -> i64 {
    seconds.saturating_mul(1_000_000).saturating_add(micros)
}

/// A command that runs a script.
fn script(text: &str, keys: &[String]) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(text).arg(keys.len()).arg(keys);
    command
}

impl Link {
    /// Over two connections to the same server. `known`: what was known of its clock before, in the same namespace.
    pub(super) async fn new(
        primary: HostPort,
        namespace: Namespace,
        since: Boot,
        (control, data): (Connection, Connection),
        known: Option<Arc<Mutex<Offset>>>,
        shared: &Shared,
    ) -> Result<Self, ClusterError> {
        let (member, clock, metrics) = (Arc::clone(&shared.member), shared.clock.clone(), shared.metrics.clone());
        let sent = clock.boot();
        let (seconds, micros): (i64, i64) = send("TIME", &control.0, &redis::cmd("TIME")).await?;
        let redis = unix_micros(seconds, micros);
        let offset = known.unwrap_or_else(|| Arc::new(Mutex::new(Offset::new(sent, redis, clock.boot()))));
        let refusals = Arc::clone(&shared.refusals);
        let link = Self { primary, namespace, since, offset, control, data, member, clock, metrics, refusals };
        if let Err(jumped) = link.narrow(sent, redis) {
            link.jump().await?;
            return Err(jumped);
        }
        Ok(link)
    }

    /// Receives messages from now on.
    pub(super) async fn subscribe(&self) -> Result<(), ClusterError> {
        let channels = vec![self.namespace.events(), self.namespace.acknowledgements(&self.member)];
        let mut connection = self.control.0.clone();
        bounded(|| "SUBSCRIBE".to_owned(), connection.subscribe(channels)).await
    }

    /// Whether the connection for what is not on the other one works.
    pub(super) async fn check_data(&self) -> Result<(), ClusterError> {
        let _: (i64, i64) = send("TIME", &self.data.0, &redis::cmd("TIME")).await?;
        Ok(())
    }

    /// Runs a command, and counts and times it.
    async fn run<T: FromRedisValue>(
        &self,
        op: ClusterOp,
        connection: &Connection,
        command: &Cmd,
    ) -> Result<T, ClusterError> {
        let began = self.clock.boot();
        let answer = send(op.name(), &connection.0, command).await;
        self.metrics.count(op, result_of(&answer));
        self.metrics.duration.of(op).observe(self.clock.boot().since(began).as_secs_f64());
        if let Err(ClusterError::Redis(error)) = &answer
            && error.code().is_some()
            && let Some(suppressed) = self.refusals.next()
        {
            tracing::warn!(op = op.name(), %error, suppressed, "cluster: Redis refuses a command");
        }
        answer
    }

    /// By when, in Redis' time, a command must be executed that is sent now.
    fn latest(&self) -> i64 {
        let latest = self.clock.boot() + LATENESS;
        self.offset.lock().earliest(latest)
    }

    fn keys<const N: usize>(&self, names: [&str; N]) -> Vec<String> {
        names.iter().map(|name| self.namespace.name(name)).collect()
    }

    /// Says that this replica lives.
    pub(super) async fn heartbeat(&self, pulse: Pulse<'_>) -> Result<Beat, ClusterError> {
        let mut keys = self.keys(["members", "live", "about", "protocol", "born"]);
        keys.push(self.namespace.current_key());
        let mut command = script(HEARTBEAT, &keys);
        let sent = self.clock.boot();
        command.arg(&*self.member).arg(pulse.about).arg(pulse.protocol).arg(self.latest());
        command.arg(i32::from(pulse.is_live)).arg(i32::from(pulse.joins)).arg(&*self.namespace.start);
        let (what, seconds, micros, live, members): (String, i64, i64, u32, u32) =
            self.run(ClusterOp::Heartbeat, &self.control, &command).await?;
        self.narrow(sent, unix_micros(seconds, micros))?;
        match what.as_str() {
            "ok" => {}
            "late" => return Err(ClusterError::Late),
            "moved" => return Err(ClusterError::Moved),
            _ => return Err(ClusterError::Incompatible),
        }
        Ok(Beat { sent, live, members })
    }

    /// Redis said its time in a reply to what was sent at `sent`.
    fn narrow(&self, sent: Boot, redis: i64) -> Result<(), ClusterError> {
        let mut offset = self.offset.lock();
        *offset = offset.narrowed(sent, redis, self.clock.boot()).map_err(|_| ClusterError::Jumped)?;
        Ok(())
    }

    /// A clock jumped: lets a new namespace begin.
    pub(super) async fn jump(&self) -> Result<(), ClusterError> {
        let mut command = script(JUMP, &[self.namespace.jumps_key(), self.namespace.current_key()]);
        send("jump", &self.control.0, command.arg(&self.namespace.jumps)).await
    }

    /// Ends a write for all replicas. Returns those that may still serve from before it, and for how long.
    pub(super) async fn end(
        &self,
        scope: &Scope<'_>,
        settle: Duration,
        message: &str,
    ) -> Result<Vec<(String, Duration)>, ClusterError> {
        let mut keys = self.keys(["members", "about"]);
        keys.push(self.namespace.current_key());
        match scope.customers {
            Some(customers) => {
                let fence = |customer: &String| self.namespace.fence(scope.merchant, Some(customer));
                keys.extend(customers.iter().map(fence));
            }
            None => keys.push(self.namespace.fence(scope.merchant, None)),
        }
        let mut command = script(END, &keys);
        command.arg(self.namespace.events()).arg(message).arg(millis(settle)).arg(&*self.namespace.start);
        let sent = self.clock.boot();
        let (what, seconds, micros, waits): (String, i64, i64, Vec<(String, u64)>) =
            self.run(ClusterOp::End, &self.control, &command).await?;
        // By a clock that jumped it is not known who may still serve from before.
        self.narrow(sent, unix_micros(seconds, micros))?;
        if what != "ok" {
            return Err(ClusterError::Moved);
        }
        Ok(waits.into_iter().map(|(member, left)| (member, Duration::from_millis(left))).collect())
    }

    /// How long the platform may lag behind a write to a customer, or to all of a merchant.
    pub(super) async fn fence(&self, merchant: &str, customer: Option<&str>) -> Result<Duration, ClusterError> {
        let mut keys = vec![self.namespace.fence(merchant, None)];
        keys.extend(customer.map(|customer| self.namespace.fence(merchant, Some(customer))));
        let left: u64 = self.run(ClusterOp::Fence, &self.data, &script(FENCE, &keys)).await?;
        Ok(Duration::from_millis(left))
    }

    /// Sends a message to all replicas.
    pub(super) async fn publish(&self, message: &str) -> Result<(), ClusterError> {
        let mut command = redis::cmd("PUBLISH");
        self.run(ClusterOp::Publish, &self.control, command.arg(self.namespace.events()).arg(message)).await
    }

    /// Acknowledges the end of another replica.
    pub(super) async fn acknowledge(&self, sender: &str, message: &str) -> Result<(), ClusterError> {
        let mut command = redis::cmd("PUBLISH");
        command.arg(self.namespace.acknowledgements(sender)).arg(message);
        self.run(ClusterOp::Acknowledge, &self.control, &command).await
    }

    fn call(&self, number: u64) -> String {
        format!("{}:{number}", self.member)
    }

    fn slots(&self, pace: &str) -> String {
        self.namespace.name(&format!("slots:{pace}"))
    }

    /// Takes a slot. `parts`: among so many replicas the limit is divided.
    pub(super) async fn take(&self, pending: PendingSlot, number: u64, parts: u32) {
        let settings = pending.settings;
        let mut keys = vec![self.slots(pending.name())];
        keys.extend(self.keys(["live", "members", "born"]));
        keys.push(self.namespace.current_key());
        let requested = self.clock.boot();
        let counts_for = SEND_WITHIN + settings.transit + settings.per;
        let mut command = script(TAKE, &keys);
        command.arg(self.call(number)).arg(settings.rate).arg(millis(counts_for)).arg(millis(hold(&settings)));
        command.arg(parts).arg(self.latest()).arg(pending.allowed).arg(&*self.namespace.start);
        let taken: Result<(i64, u64, i64, i64), _> = self.run(ClusterOp::Take, &self.control, &command).await;
        let Ok((what, wait, seconds, micros)) = taken else { return };
        // By a clock that jumped it is not known which calls still count.
        match (what, self.narrow(requested, unix_micros(seconds, micros))) {
            (1, Ok(())) => {
                let pace = Arc::clone(pending.name());
                pending.granted(SharedSlot { pace, number, requested });
            }
            // More than that only follows from a clock that jumped.
            (0, Ok(())) => pending.denied(self.clock.boot() + Duration::from_millis(wait).min(hold(&settings))),
            _ => {}
        }
    }

    /// A call was sent.
    pub(super) async fn sent(&self, slot: &SharedSlot, pace: &PaceSettings) {
        self.change(slot, "sent", pace.transit + pace.per).await;
    }

    /// A call was answered.
    pub(super) async fn answered(&self, slot: &SharedSlot, pace: &PaceSettings) {
        self.change(slot, "answered", pace.per).await;
    }

    /// Nothing of a call was sent.
    pub(super) async fn release(&self, slot: &SharedSlot) {
        self.change(slot, "released", Duration::ZERO).await;
    }

    /// That it fails only costs time: the slot stays taken for longer.
    async fn change(&self, slot: &SharedSlot, what: &str, counts_for: Duration) {
        let mut command = script(SLOT, &[self.slots(&slot.pace)]);
        command.arg(self.call(slot.number)).arg(what).arg(millis(counts_for));
        let _: Result<(), _> = self.run(ClusterOp::Slot, &self.control, &command).await;
    }

    /// This replica ends in order.
    pub(super) async fn leave(&self) {
        let mut command = script(LEAVE, &self.keys(["members", "live", "about"]));
        let _: Result<(), _> = send("leave", &self.control.0, command.arg(&*self.member)).await;
    }
}
