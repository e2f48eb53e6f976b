//! Whether a Redis can be used: every command that is, tried once.

use redis::{Cmd, Value};

use super::connection::{ClusterError, Connection, Connector, send};
use super::member::new_id;
use super::namespace::ServerInfo;
use crate::configuration::RedisKeys;
use crate::settings::RedisSettings;

/// What scripts call, with arguments; `KEY` is a key that is removed again.
const IN_SCRIPTS: &[&str] = &[
    "TIME",
    "SET KEY 1 PX 1000",
    "PTTL KEY",
    "DEL KEY:deleted",
    "GET KEY",
    "INCR KEY",
    "PEXPIRE KEY 1000",
    "ZADD KEY:sorted 1 a",
    "PEXPIRE KEY:sorted 1000",
    "ZCARD KEY:sorted",
    "ZCOUNT KEY:sorted 0 1",
    "ZRANGE KEY:sorted 0 0",
    "ZRANGEBYSCORE KEY:sorted 0 1",
    "ZSCORE KEY:sorted a",
    "ZREM KEY:sorted b",
    "ZREMRANGEBYSCORE KEY:sorted 5 5",
    "HSET KEY:hash a b",
    "PEXPIRE KEY:hash 1000",
    "HGET KEY:hash a",
    "HGETALL KEY:hash",
    "HLEN KEY:hash",
    "HRANDFIELD KEY:hash 1",
    "HDEL KEY:hash b",
    "PUBLISH KEY:channel a",
];
/// What is called directly.
const DIRECTLY: &[&str] = &["GET KEY", "TIME", "PUBLISH KEY:channel a", "SUBSCRIBE KEY:channel"];
/// Runs one command, also while Redis is full.
const RUN: &str = "#!lua flags=allow-oom\nreturn redis.call(unpack(ARGV))";
/// Calls nothing.
const PROBE: &str = "#!lua flags=allow-oom\nreturn 1";
/// Scripts have declared flags since this version.
const LEAST_VERSION: u32 = 7;

/// Tries every Sentinel, and every command that replicas use. Returns what is wrong, if anything is.
pub async fn check(settings: &RedisSettings, keys: RedisKeys) -> Vec<String> {
    let connector = Connector::new(settings.clone(), keys);
    let mut problems = Vec::new();
    for sentinel in settings.url.sentinels() {
        problems.extend(connector.primary_by(sentinel).await.err().map(|error| error.to_string()));
    }
    match connect(&connector).await {
        Ok(connection) => problems.extend(try_all(&settings.prefix, &connection).await),
        Err(error) if problems.is_empty() => problems.push(error.to_string()),
        Err(_) => {}
    }
    problems
}

async fn connect(connector: &Connector) -> Result<Connection, ClusterError> {
    connector.open(&connector.primary().await?, None::<fn(redis::PushInfo)>).await
}

async fn try_all(prefix: &str, connection: &Connection) -> Vec<String> {
    let mut problems = Vec::new();
    match ServerInfo::of(&connection.0).await {
        Ok(server) => {
            let major = server.version.split('.').next().and_then(|major| major.parse().ok());
            if major.is_none_or(|major: u32| major < LEAST_VERSION) {
                problems.push(format!("its version is {}; expected {LEAST_VERSION} or later", server.version));
            }
            if server.mode == "cluster" {
                problems
                    .push("it is a node of a Redis Cluster; expected one primary, alone or under Sentinel".to_owned());
            }
            if !server.never_evicts() {
                problems.push(format!("maxmemory-policy is {}; expected noeviction", server.memory_policy));
            }
        }
        Err(error) => problems.push(format!("INFO: {error}")),
    }
    let key = format!("{prefix}:check:{}", new_id());
    let worded = |text: &'static str| text.split(' ').map(|word| word.replace("KEY", &key)).collect::<Vec<_>>();
    let mut probe = redis::cmd("EVAL");
    let runs: Result<Value, _> = send("EVAL", &connection.0, probe.arg(PROBE).arg(0)).await;
    let can_run = runs.is_ok();
    problems.extend(runs.err().map(|error| format!("EVAL: {error}")));
    for text in IN_SCRIPTS.iter().filter(|_| can_run) {
        let (words, name) = (worded(text), text.split(' ').next().unwrap_or_default());
        let named: Vec<_> = words.iter().filter(|word| word.starts_with(&key)).collect();
        let mut script = redis::cmd("EVAL");
        script.arg(RUN).arg(named.len()).arg(named).arg(&words);
        let answer: Result<Value, _> = send(name, &connection.0, &script).await;
        problems.extend(answer.err().map(|error| format!("{name} in a script: {error}")));
    }
    for text in DIRECTLY {
        let (words, name) = (worded(text), text.split(' ').next().unwrap_or_default());
        let answer: Result<Value, _> = send(name, &connection.0, Cmd::new().arg(words)).await;
        problems.extend(answer.err().map(|error| format!("{name}: {error}")));
    }
    problems
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names<'a>(texts: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
        texts.map(|text| text.split([' ', '\'']).next().unwrap_or_default().to_lowercase()).collect()
    }

    #[test]
    fn every_command_of_the_scripts_is_tried_and_allowed() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/cluster/scripts");
        let scripts = std::fs::read_dir(folder).unwrap();
        let text: String = scripts.map(|script| std::fs::read_to_string(script.unwrap().path()).unwrap()).collect();
        let called = names(text.split("redis.call('").skip(1));
        assert_eq!(called, names(IN_SCRIPTS.iter().copied()));
        let acl = include_str!("../../deploy/redis/users.acl");
        let acl = acl.lines().find(|line| line.starts_with("user zvgate ")).unwrap();
        let allowed = names(acl.split(" +").skip(1).map(str::trim));
        let direct = names(DIRECTLY.iter().copied().chain(["EVAL", "INFO", "SELECT"]));
        assert_eq!(allowed, called.union(&direct).cloned().collect());
    }
}
