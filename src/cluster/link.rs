//! Commands and scripts over one pair of connections, within one namespace.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue};

use super::answers::ENTRY;
use super::connection::{ClusterError, Connection, bounded, result_of, send};
use super::ends::Published;
use super::lease::Moved;
use super::namespace::Namespace;
use super::offset::Offset;
use super::seal::Sealer;
use super::{Ending, Shared};
use crate::clock::{Boot, Clock, millis};
use crate::limit::{LATENESS, SILENCE};
use crate::line_limit::LineLimit;
use crate::metrics::{ClusterMetrics, ClusterOp, Label};
use crate::settings::{HostPort, LONGEST_LEASE};

const HEARTBEAT: &str = include_str!("scripts/heartbeat.lua");
const END: &str = include_str!("scripts/end.lua");
const LEAVE: &str = include_str!("scripts/leave.lua");
const JUMP: &str = include_str!("scripts/jump.lua");

/// A pair of connections.
pub(super) struct Link {
    /// Where it leads to.
    pub(super) primary: HostPort,
    pub(super) namespace: Namespace,
    /// When this replica first joined the others in this namespace, in nanoseconds since boot.
    joined: AtomicU64,
    /// Known as long as this replica stays in the namespace.
    pub(super) offset: Arc<Mutex<Offset>>,
    pub(super) control: Connection,
    pub(super) data: Connection,
    pub(super) member: Arc<str>,
    pub(super) clock: Clock,
    pub(super) sealer: Sealer,
    metrics: ClusterMetrics,
    /// Lines about refused commands.
    refusals: Arc<LineLimit>,
}

/// A heartbeat: what others know of its sender.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heartbeat<'a> {
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
pub(super) struct HeartbeatReply {
    pub(super) sent: Boot,
    /// Replicas that live.
    pub(super) live: u32,
    /// Those, and others that are silent.
    pub(super) members: u32,
}

/// Redis' time, in microseconds since the Unix epoch.
pub(super) const fn unix_micros(seconds: i64, micros: i64) -> i64 {
    seconds.saturating_mul(1_000_000).saturating_add(micros)
}

/// A command that runs a script.
pub(super) fn script(text: &str, keys: &[String]) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(text).arg(keys.len()).arg(keys);
    command
}

impl Link {
    /// Over two connections to the same server. `known`: what was known of its clock before, in the same namespace.
    pub(super) async fn new(
        primary: HostPort,
        namespace: Namespace,
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
        let joined = AtomicU64::new(sent.nanos());
        let sealer = Sealer::new(&shared.names.0, &namespace.start);
        let link = Self { primary, namespace, joined, offset, control, data, member, clock, sealer, metrics, refusals };
        if let Err(jumped) = link.narrow(sent, redis) {
            link.jump().await?;
            return Err(jumped);
        }
        Ok(link)
    }

    /// When this replica first joined the others in this namespace: before that they did not know of it.
    pub(super) fn joined(&self) -> Boot {
        Boot::from_duration(Duration::from_nanos(self.joined.load(Ordering::Relaxed)))
    }

    /// It has just joined them, or had at this moment.
    pub(super) fn set_joined(&self, at: Boot) {
        self.joined.store(at.nanos(), Ordering::Relaxed);
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
    pub(super) async fn run<T: FromRedisValue>(
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
    pub(super) fn latest(&self) -> i64 {
        let latest = self.clock.boot() + LATENESS;
        self.offset.lock().earliest(latest)
    }

    pub(super) fn keys<const N: usize>(&self, names: [&str; N]) -> Vec<String> {
        names.iter().map(|name| self.namespace.name(name)).collect()
    }

    /// Sends a heartbeat.
    pub(super) async fn heartbeat(&self, heartbeat: Heartbeat<'_>) -> Result<HeartbeatReply, ClusterError> {
        let mut keys = self.keys(["members", "live", "about", "protocol", "born"]);
        keys.extend([self.namespace.current_key(), self.namespace.jumps_key()]);
        let mut command = script(HEARTBEAT, &keys);
        let sent = self.clock.boot();
        command.arg(&*self.member).arg(heartbeat.about).arg(heartbeat.protocol).arg(self.latest());
        command.arg(i32::from(heartbeat.is_live)).arg(i32::from(heartbeat.joins)).arg(&*self.namespace.start);
        command.arg(millis(SILENCE)).arg(&self.namespace.found);
        let (what, seconds, micros, live, members): (String, i64, i64, u32, u32) =
            self.run(ClusterOp::Heartbeat, &self.control, &command).await?;
        self.narrow(sent, unix_micros(seconds, micros))?;
        match what.as_str() {
            "ok" => {}
            "late" => return Err(ClusterError::Late),
            "moved" => return Err(ClusterError::Moved),
            _ => return Err(ClusterError::Incompatible),
        }
        Ok(HeartbeatReply { sent, live, members })
    }

    /// Takes into account Redis' time in the reply to a command that was sent at `sent`.
    pub(super) fn narrow(&self, sent: Boot, redis: i64) -> Result<(), ClusterError> {
        let mut offset = self.offset.lock();
        *offset = offset.narrowed(sent, redis, self.clock.boot()).map_err(|_| ClusterError::Jumped)?;
        Ok(())
    }

    /// A clock jumped: lets a new namespace begin.
    pub(super) async fn jump(&self) -> Result<(), ClusterError> {
        let mut command = script(JUMP, &[self.namespace.jumps_key(), self.namespace.current_key()]);
        send("jump", &self.control.0, command.arg(&self.namespace.jumps)).await
    }

    /// Ends a write for all replicas, by fences of this name.
    pub(super) async fn end(&self, ending: &Ending, fence: String, message: &str) -> Result<Published, ClusterError> {
        let mut keys = self.keys(["members", "about"]);
        keys.push(self.namespace.current_key());
        match &ending.subjects {
            Some(subjects) => {
                keys.extend(subjects.iter().map(|subject| self.namespace.entry(&ending.merchant, subject)));
            }
            None => keys.push(self.namespace.entry(&ending.merchant, "")),
        }
        let mut command = script(END, &keys);
        command.arg(self.namespace.events()).arg(message).arg(millis(ending.settle)).arg(&*self.namespace.start);
        command.arg(millis(LONGEST_LEASE)).arg(&fence).arg(millis(ENTRY));
        let sent = self.clock.boot();
        let (what, seconds, micros, waits, from): (String, i64, i64, Vec<(String, u64)>, String) =
            self.run(ClusterOp::End, &self.control, &command).await?;
        // By a clock that jumped it is not known who may still serve from before.
        self.narrow(sent, unix_micros(seconds, micros))?;
        if what != "ok" {
            return Err(ClusterError::Moved);
        }
        let waits = waits.into_iter().map(|(member, left)| (member, Duration::from_millis(left))).collect();
        Ok(Published { waits, moved: Moved { from, to: fence } })
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

    /// This replica ends in order.
    pub(super) async fn leave(&self) {
        let mut command = script(LEAVE, &self.keys(["members", "live", "about"]));
        let _: Result<(), _> = send("leave", &self.control.0, command.arg(&*self.member)).await;
    }
}
