//! What a running gateway takes over of another configuration.

use std::collections::BTreeSet;

use super::Settings;

/// Keys, or their beginnings, that hold what is made once: listeners, connections, memory, the log.
const TAKES_RESTART: &[&str] = &[
    "server.listen",
    "server.admin",
    "server.workers",
    "server.max_connections",
    "server.max_streams",
    "server.max_head",
    "server.header_timeout",
    "server.idle_timeout",
    "server.drain_",
    "upstream.base_url",
    "upstream.allow_plaintext",
    "upstream.connect_timeout",
    "upstream.max_inflight",
    "upstream.max_response",
    "upstream.pool_idle",
    "upstream.follow_clock",
    "cache.max_bytes",
    "log.format",
    "log.level",
    "log.hash_key_file",
];

fn takes_restart(key: &str) -> bool {
    TAKES_RESTART.iter().any(|fixed| key.starts_with(fixed))
}

impl Settings {
    /// Keys whose values differ in `other`: those that a running gateway takes over, and those that take a restart.
    /// Secrets differ unseen.
    pub fn differences(&self, other: &Self) -> (Vec<String>, Vec<String>) {
        let keys: BTreeSet<&String> = self.effective.keys().chain(other.effective.keys()).collect();
        let differ = |key: &&String| self.effective.get(*key) != other.effective.get(*key);
        let (restart, mut changed): (Vec<String>, Vec<String>) =
            keys.into_iter().filter(differ).cloned().partition(|key: &String| takes_restart(key));
        if self.routes != other.routes {
            changed.push("routes".to_owned());
        }
        (changed, restart)
    }

    /// These settings as they are in force where a running gateway took them over from `other`: what takes a restart is shown
    /// as it was.
    pub fn keeping_fixed(&self, other: &Self) -> Self {
        let mut effective = self.effective.clone();
        effective.retain(|key, _| !takes_restart(key));
        let fixed = other.effective.iter().filter(|(key, _)| takes_restart(key));
        effective.extend(fixed.map(|(key, value)| (key.clone(), value.clone())));
        Self { effective, ..self.clone() }
    }
}
