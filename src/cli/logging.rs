//! Where log lines go: standard error, as text or as JSON. Only the gateway's own lines, so that no library's words
//! can carry what it was handed.

use std::io::IsTerminal;

use tracing::Level;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::settings::{LogFormat, LogLevel, LogSettings};

/// Lines that wait for whoever reads them; further ones are dropped, since nobody who asks may wait for a log.
const LINES_AHEAD: usize = 8192;

/// Begins to log. What waits when the guard goes is still written, if that takes no time.
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
    let lossy = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_AHEAD);
    let (ahead, guard) = lossy.finish(std::io::stderr());
    let lines = layer().with_writer(ahead).with_ansi(terminal).with_target(false);
    let lines = if text { lines.boxed() } else { lines.json().flatten_event(true).boxed() };
    let own = Targets::new().with_target("zvgate", level);
    // A second start in one process, as in tests, keeps the first's log.
    let _ = tracing_subscriber::registry().with(lines.with_filter(own)).try_init();
    guard
}
