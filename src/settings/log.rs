//! `log.*`: what is written of what happens.

use std::path::PathBuf;

use super::reader::Table;
use super::value::Choice;

/// `log.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// How lines look.
    pub format: LogFormat,
    /// The least severe lines that are written.
    pub level: LogLevel,
    /// Which requests are logged.
    pub access: AccessLog,
    /// Whether every write is logged.
    pub writes: bool,
    /// Where the key of the customer hash is kept; random for each process without it.
    pub hash_key_file: Option<PathBuf>,
}

/// `log.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    /// Text.
    Text,
    /// One JSON object a line.
    Json,
}

impl Choice for LogFormat {
    const WANTED: &'static str = "\"auto\", \"text\" or \"json\"";
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

impl Choice for LogLevel {
    const WANTED: &'static str = "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"";
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
    /// Requests that were answered with status 400 or above.
    Errors,
    /// None.
    None,
}

impl Choice for AccessLog {
    const WANTED: &'static str = "\"all\", \"errors\" or \"none\"";
    const ALL: &'static [(&'static str, Self)] = &[("all", Self::All), ("errors", Self::Errors), ("none", Self::None)];
}

impl LogSettings {
    pub(super) fn read(mut table: Table<'_>) -> Self {
        let settings = Self {
            format: table.with_default("format", LogFormat::Auto),
            level: table.with_default("level", LogLevel::Info),
            access: table.with_default("access", AccessLog::Errors),
            writes: table.with_default("writes", true),
            hash_key_file: table.optional("hash_key_file"),
        };
        table.finish();
        settings
    }
}
