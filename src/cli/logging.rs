//! Log output: standard error, as text or as JSON. Only the gateway's own messages, so that no library can log what it was
//! passed.

use std::io::IsTerminal;

use tracing::{Level, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::gateway::AUDIT;
use crate::settings::{LogFormat, LogLevel, LogSettings};

/// Lines that are buffered for a slow reader; further ones are dropped and counted, since no request may wait for the log.
const MAX_BUFFERED_LINES: usize = 8192;

/// The log. Buffered lines are written when this is dropped, if that does not block.
pub(super) struct Log {
    _guards: [WorkerGuard; 2],
    counters: [ErrorCounter; 2],
}

impl Log {
    /// How many lines were dropped.
    pub(super) fn dropped_lines(&self) -> impl Fn() -> u64 + Send + Sync + use<> {
        let counters = self.counters.clone();
        move || counters.iter().map(|counter| counter.dropped_lines() as u64).sum()
    }
}

/// Starts logging. Audit lines (writes, purges, invalidations) have a buffer of their own, which no flood of other lines can fill.
pub(super) fn begin(settings: &LogSettings) -> Log {
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
    let buffer = || {
        let lossy = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(MAX_BUFFERED_LINES);
        lossy.finish(std::io::stderr())
    };
    let ((lines, lines_guard), (audit, audit_guard)) = (buffer(), buffer());
    let counters = [lines.error_counter(), audit.error_counter()];
    let own = Targets::new().with_target("zvgate", level).with_target(AUDIT, Level::INFO);
    let others = filter_fn(|metadata| metadata.target() != AUDIT);
    let audits = filter_fn(|metadata| metadata.target() == AUDIT);
    let registry = tracing_subscriber::registry()
        .with(formatted(lines, text, terminal).with_filter(others))
        .with(formatted(audit, text, terminal).with_filter(audits))
        .with(own);
    // If a process starts twice, as in tests, the first log stays.
    let _ = registry.try_init();
    Log { _guards: [lines_guard, audit_guard], counters }
}

fn formatted<S>(writer: NonBlocking, text: bool, terminal: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = layer().with_writer(writer).with_ansi(terminal).with_target(false);
    if text { lines.boxed() } else { lines.json().flatten_event(true).boxed() }
}
