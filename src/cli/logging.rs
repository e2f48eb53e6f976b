//! Log output: standard error, as text or as JSON. Only the gateway's own messages, so that no library can log what it was
//! passed.

use std::io::IsTerminal;

use tracing::Level;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::{LogFormat, LogLevel, LogSettings};

/// Lines that are buffered for a slow reader; further ones are dropped, since no request may wait for the log.
const MAX_BUFFERED_LINES: usize = 8192;

/// Starts logging. Buffered lines are written when the guard is dropped, if that does not block.
pub(super) fn begin(settings: &LogSettings) -> WorkerGuard {
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
    let lossy = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(MAX_BUFFERED_LINES);
    let (writer, guard) = lossy.finish(std::io::stderr());
    let lines = layer().with_writer(writer).with_ansi(terminal).with_target(false);
    let lines = if text { lines.boxed() } else { lines.json().flatten_event(true).boxed() };
    let own = Targets::new().with_target("zvgate", level);
    // If a process starts twice, as in tests, the first log stays.
    let _ = tracing_subscriber::registry().with(lines.with_filter(own)).try_init();
    guard
}
