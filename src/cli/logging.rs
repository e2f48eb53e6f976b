//! Where log lines go: standard error, as text or as JSON. Only the gateway's own lines, so that no library's words
//! can carry what it was handed.

use std::io::IsTerminal;

use tracing::Level;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::{LogFormat, LogLevel, LogSettings};

/// Begins to log.
pub(super) fn begin(settings: &LogSettings) {
    let level = match settings.level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    let terminal = std::io::stderr().is_terminal();
    let text = match settings.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let lines = layer().with_writer(std::io::stderr).with_ansi(terminal).with_target(false);
    let lines = if text { lines.boxed() } else { lines.json().flatten_event(true).boxed() };
    let own = Targets::new().with_target("zvgate", level);
    // A second start in one process, as in tests, keeps the first's log.
    let _ = tracing_subscriber::registry().with(lines.with_filter(own)).try_init();
}
