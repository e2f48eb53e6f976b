//! The server that replicas share, and the names of the keys and channels in it.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use sha2::{Digest, Sha256};

use super::connection::{ClusterError, send};
use crate::secret::hex;

/// Digits of a namespace's name.
const NAME_DIGITS: usize = 16;

/// What a server reports of itself.
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
    /// Queries a server.
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
#[derive(Clone, Debug)]
pub(super) struct Namespace {
    prefix: String,
    /// How often its clock jumped.
    pub(super) jumps: String,
    /// The name of the one that was current when this was found.
    pub(super) found: String,
    /// `PREFIX:RUN:`
    pub(super) start: Arc<str>,
}

/// However it was found.
impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        self.start == other.start
    }
}

impl Namespace {
    /// The one of a server now.
    pub(super) async fn of(
        connection: &MultiplexedConnection,
        prefix: &str,
        server: &ServerInfo,
    ) -> Result<Self, ClusterError> {
        // Before anything that its name depends on.
        let mut current = redis::cmd("GET");
        let found: Option<String> = send("GET", connection, current.arg(format!("{prefix}:current"))).await?;
        let jumps: Option<String> = send("GET", connection, redis::cmd("GET").arg(format!("{prefix}:jumps"))).await?;
        let jumps = jumps.unwrap_or_else(|| "0".to_owned());
        let mut run = hex(&Sha256::digest(format!("{} {} {jumps}", server.run_id, server.replication_id)));
        run.truncate(NAME_DIGITS);
        let found = found.unwrap_or_default();
        Ok(Self { prefix: prefix.to_owned(), jumps, found, start: format!("{prefix}:{run}:").into() })
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

    /// The key of what is stored for a subject of a merchant; for none, of the merchant.
    pub(super) fn entry(&self, merchant: &str, subject: &str) -> String {
        self.name(&format!("entry:{merchant}:{subject}"))
    }

    pub(super) fn jumps_key(&self) -> String {
        format!("{}:jumps", self.prefix)
    }

    /// The key with the name of the current namespace: that of a server may change while it runs, when replicas of it come and go.
    pub(super) fn current_key(&self) -> String {
        format!("{}:current", self.prefix)
    }
}
