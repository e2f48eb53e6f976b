//! `log.*`: what is logged.

use std::path::PathBuf;

use super::effective::Scope;
use super::reader::Table;
use super::value::Choice;

/// The keys of `log.*` that need a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// The format of lines.
    pub format: LogFormat,
    /// The least severe level that is logged.
    pub level: LogLevel,
    /// The file with the key of the customer hash; without it a random one for each process.
    pub hash_key_file: Option<PathBuf>,
}

/// The keys of `log.*` that can be reloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogSettings {
    /// Which requests are logged.
    pub access: AccessLog,
    /// Whether every write is logged.
    pub writes: bool,
}

/// `log.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    /// Text.
    Text,
    /// One JSON object per line.
    Json,
}

impl Choice for LogFormat {
    const EXPECTED: &'static str = "\"auto\", \"text\" or \"json\"";
    const ALL: &'static [(&'static str, Self)] = &[("auto", Self::Auto), ("text", Self::Text), ("json", Self::Json)];
}

/// `log.level`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// What an operator must act on.
    Error,
    /// What an operator should know soon.
    Warn,
    /// What the gateway does.
    Info,
    /// Why it does it.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The level of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, level)| *level)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.name_of()
    }
}

impl Choice for LogLevel {
    const EXPECTED: &'static str = "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"";
    const ALL: &'static [(&'static str, Self)] = &[
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];
}

/// `log.access`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Every request.
    All,
    /// Requests that were answered with a status of 400 or above.
    Errors,
    /// None.
    None,
}

impl Choice for AccessLog {
    const EXPECTED: &'static str = "\"all\", \"errors\" or \"none\"";
    const ALL: &'static [(&'static str, Self)] = &[("all", Self::All), ("errors", Self::Errors), ("none", Self::None)];
}

/// Reads the table.
pub(super) fn read(mut table: Table<'_>) -> (LogSettings, AccessLogSettings) {
    let access_log = AccessLogSettings {
        access: table.with_default("access", AccessLog::Errors),
        writes: table.with_default("writes", true),
    };
    table.set_scope(Scope::Static);
    let log = LogSettings {
        format: table.with_default("format", LogFormat::Auto),
        level: table.with_default("level", LogLevel::Info),
        hash_key_file: table.path("hash_key_file"),
    };
    table.finish();
    (log, access_log)
}
