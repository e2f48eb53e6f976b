//! Log output: standard error, as text or as JSON. Only the gateway's own messages, so that no library can log what it was
//! passed.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{Level, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::clock::{Boot, Clock};
use crate::gateway::AUDIT;
use crate::settings::{LogFormat, LogLevel, LogSettings};

/// Lines that are buffered for a slow reader; further ones are dropped and counted, since no request may wait for the log.
const MAX_BUFFERED_LINES: usize = 8192;

/// The log. Buffered lines are written when this is dropped, if that does not block.
pub(super) struct Log {
    _guards: [WorkerGuard; 2],
    counters: [ErrorCounter; 2],
    /// Lines that could not be written.
    lost: Arc<AtomicU64>,
}

impl Log {
    /// How many lines were dropped.
    pub(super) fn dropped_lines(&self) -> impl Fn() -> u64 + Send + Sync + use<> {
        let (counters, lost) = (self.counters.clone(), Arc::clone(&self.lost));
        move || {
            let dropped: u64 = counters.iter().map(|counter| counter.dropped_lines() as u64).sum();
            dropped + lost.load(Ordering::Relaxed)
        }
    }
}

/// Writes lines, and reports afterwards those that could not be written, as while a disk is full.
struct Lines<W> {
    out: W,
    /// What the lines are.
    kind: &'static str,
    clock: Clock,
    /// Lines that could not be written since the last one that could, and when the first of them was.
    lost: Option<(u64, Boot)>,
    all_lost: Arc<AtomicU64>,
    /// Whether a part of a line was written.
    is_torn: bool,
}

impl<W: Write> Lines<W> {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.out.write_all(b"\n")?;
            self.is_torn = false;
        }
        let mut rest = line;
        while !rest.is_empty() {
            let written = match self.out.write(rest) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                written => written?,
            };
            rest = rest.get(written..).unwrap_or_default();
            self.is_torn = !rest.is_empty();
        }
        Ok(())
    }
}

impl<W: Write> Write for Lines<W> {
    /// Takes one whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let now = self.clock.boot();
        match (self.line(line), self.lost) {
            (Ok(()), None) => {}
            (Ok(()), Some((lost, since))) => {
                self.lost = None;
                let lasted_ms = u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(lost, kind = self.kind, lasted_ms, "log lines lost: they could not be written");
            }
            (Err(_), lost) => {
                let (lost, since) = lost.unwrap_or((0, now));
                self.lost = Some((lost + 1, since));
                self.all_lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
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
    let terminal = io::stderr().is_terminal();
    let text = match settings.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let all_lost = Arc::new(AtomicU64::new(0));
    let buffer = |kind| {
        let lossy = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(MAX_BUFFERED_LINES);
        let (out, all_lost) = (io::stderr(), Arc::clone(&all_lost));
        lossy.finish(Lines { out, kind, clock: Clock::system(), lost: None, all_lost, is_torn: false })
    };
    let ((lines, lines_guard), (audit, audit_guard)) = (buffer("other"), buffer("audit"));
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
    Log { _guards: [lines_guard, audit_guard], counters, lost: all_lost }
}

fn formatted<S>(writer: NonBlocking, text: bool, terminal: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = layer().with_writer(writer).with_ansi(terminal).with_target(false);
    if text { lines.boxed() } else { lines.json().flatten_event(true).boxed() }
}
