//! `cluster.*`: several replicas that act as one.

use std::path::PathBuf;
use std::time::Duration;

use super::effective::Scope;
use super::load::Holds;
use super::rate::at_least_one;
use super::reader::Table;
use super::redis_url::RedisUrl;
use super::value::Choice;

/// Longer than this, writes would wait for a replica that died longer than their callers do.
pub const LONGEST_LEASE: Duration = Duration::from_secs(5);
/// Shorter, and heartbeats would be most of what Redis does.
const SHORTEST_LEASE: Duration = Duration::from_millis(20);

/// What a write does while Redis is unreachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnfencedWrites {
    /// It is sent, and other replicas do not learn of it.
    Send,
    /// It is rejected.
    Refuse,
}

impl Choice for UnfencedWrites {
    const EXPECTED: &'static str = "\"send\" or \"refuse\"";
    const ALL: &'static [(&'static str, Self)] = &[("send", Self::Send), ("refuse", Self::Refuse)];
}

/// The keys of `cluster.*`, all of which need a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// How many replicas run.
    pub replicas: u32,
    /// What they share; `None`: nothing, and each has its part of the rate limit.
    pub redis: Option<RedisSettings>,
}

impl ClusterSettings {
    /// What is wrong with these rates, if one is too low for every replica to have a part of it.
    pub fn problem_with_rates(&self, rates: impl Iterator<Item = u32>) -> Option<String> {
        let least = rates.filter(|rate| *rate > 0).min()?;
        let (replicas, is_too_low) = (self.replicas, least < self.replicas);
        is_too_low.then(|| format!(
            "rate {least} cannot be split among {replicas}; expected at most as many replicas as the lowest rate limit towards the platform"
        ))
    }
}

/// How replicas reach the Redis that they share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisSettings {
    /// Its address.
    pub url: RedisUrl,
    /// How keys and channels begin.
    pub prefix: String,
    /// The file with the password.
    pub password_file: Option<PathBuf>,
    /// A PEM file of CAs that are trusted in addition to the system's.
    pub ca: Option<PathBuf>,
    /// How long a replica serves from its own memory after it sent a heartbeat that was answered.
    pub lease: Duration,
    /// What writes do while it is unreachable.
    pub unfenced_writes: UnfencedWrites,
}

/// Reads the table. `has_hash_key`: whether `log.hash_key_file` is given.
pub(super) fn read(mut table: Table<'_>, has_hash_key: bool) -> ClusterSettings {
    table.set_scope(Scope::Static);
    let replicas: Option<u32> = table.optional_checked("replicas", at_least_one);
    let url: Option<RedisUrl> = table.optional("url");
    let prefix = table.checked("prefix", "zvgate".to_owned(), is_prefix);
    let password_file = table.file("password_file", Holds::RedisPassword);
    let ca = table.file("ca", Holds::RedisCas);
    let lease = table.checked("lease", Duration::from_millis(200), is_lease);
    let unfenced_writes = table.with_default("unfenced_writes", UnfencedWrites::Send);
    if table.was_given("url") {
        if !table.was_given("replicas") {
            table.error("replicas", "is missing; with cluster.url, expected how many replicas run");
        }
        if !has_hash_key {
            table.error(
                "url",
                "is given without log.hash_key_file; expected a file with the same key on all replicas, since they know customers by hashes with it",
            );
        }
    }
    if url.as_ref().is_some_and(|url| url.user.is_some()) && !table.was_given("password_file") {
        table.error("url", "names a user, without cluster.password_file; expected a file with the user's password");
    }
    for key in ["password_file", "ca"].into_iter().filter(|key| table.was_given(key) && !table.was_given("url")) {
        table.error(key, "is given without cluster.url");
    }
    if ca.is_some() && url.as_ref().is_some_and(|url| !url.is_tls()) {
        table.error("ca", "is given although cluster.url is not rediss");
    }
    table.finish();
    let redis = url.map(|url| RedisSettings { url, prefix, password_file, ca, lease, unfenced_writes });
    ClusterSettings { replicas: replicas.unwrap_or(1), redis }
}

#[expect(clippy::ptr_arg, reason = "the reader passes the setting's own type")]
fn is_prefix(prefix: &String) -> Result<(), &'static str> {
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    if prefix.len() <= 64 && prefix.bytes().all(is_allowed) {
        Ok(())
    } else {
        Err("at most 64 letters, digits, hyphens, underscores, dots and colons")
    }
}

fn is_lease(lease: &Duration) -> Result<(), &'static str> {
    if lease.is_zero() || (SHORTEST_LEASE..=LONGEST_LEASE).contains(lease) {
        Ok(())
    } else {
        Err("\"0s\" (ask on every read), or \"20ms\" to \"5s\"")
    }
}
