//! Log output: standard error, as text or as JSON. Only the gateway's own messages, so that no library can log what it was
//! passed.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tracing::{Level, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::gateway::{AUDIT, SetLogLevel};
use crate::settings::{LogFormat, LogLevel, LogSettings};

/// Lines that are buffered for a slow reader; further ones are dropped and counted, since no request may wait for the log.
const MAX_BUFFERED_LINES: usize = 8192;

/// The log. Buffered lines are written when this is dropped, if that does not block.
pub(super) struct Log {
    _guards: [WorkerGuard; 2],
    counters: [ErrorCounter; 2],
    /// Of each, the lines that could not be written.
    lost: Arc<[AtomicU64; 2]>,
    filter: reload::Handle<Targets, Registry>,
}

impl Log {
    /// Changes the least severe level that is logged.
    pub(super) fn set_level(&self) -> SetLogLevel {
        let filter = self.filter.clone();
        Arc::new(move |level| {
            if filter.reload(filter_of(level)).is_err() {
                tracing::error!("log level cannot be changed");
            }
        })
    }

    /// How many lines were dropped or could not be written: audit lines, then others.
    pub(super) fn dropped_lines(&self) -> impl Fn() -> [u64; 2] + Send + Sync + use<> {
        let (counters, lost) = (self.counters.clone(), Arc::clone(&self.lost));
        move || {
            std::array::from_fn(|kind| {
                let dropped = counters.get(kind).map_or(0, |counter| counter.dropped_lines() as u64);
                dropped + lost.get(kind).map_or(0, |lost| lost.load(Ordering::Relaxed))
            })
        }
    }
}

/// Where the lines of both buffers are written. What cannot be, as while a disk is full, is counted.
struct Output<W> {
    out: W,
    /// Whether a part of a line was written.
    is_torn: bool,
}

impl<W: Write> Output<W> {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.write(b"\n")?;
        }
        self.write(line)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
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

/// Writes the lines of one buffer.
struct Lines<W> {
    output: Arc<Mutex<Output<W>>>,
    /// Of all buffers.
    lost: Arc<[AtomicU64; 2]>,
    /// Its index among them.
    buffer: usize,
}

impl<W: Write> Write for Lines<W> {
    /// Takes one whole line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.output.lock().line(line).is_err() {
            let lost = self.lost.get(self.buffer).expect("there is a count for each buffer");
            lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.lock().out.flush()
    }
}

/// Starts logging. Audit lines (writes, purges, invalidations) have a buffer of their own, which no flood of other lines can fill.
pub(super) fn begin(settings: &LogSettings) -> Log {
    let terminal = io::stderr().is_terminal();
    let text = match settings.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let output = Arc::new(Mutex::new(Output { out: io::stderr(), is_torn: false }));
    let lost = Arc::new([const { AtomicU64::new(0) }; 2]);
    let buffer = |buffer| {
        let lossy = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(MAX_BUFFERED_LINES);
        lossy.finish(Lines { output: Arc::clone(&output), lost: Arc::clone(&lost), buffer })
    };
    let ((audit, audit_guard), (lines, lines_guard)) = (buffer(0), buffer(1));
    let counters = [audit.error_counter(), lines.error_counter()];
    let (own, filter) = reload::Layer::new(filter_of(settings.level));
    let others = filter_fn(|metadata| metadata.target() != AUDIT);
    let audits = filter_fn(|metadata| metadata.target() == AUDIT);
    let registry = tracing_subscriber::registry()
        .with(own)
        .with(formatted(lines, text, terminal).with_filter(others))
        .with(formatted(audit, text, terminal).with_filter(audits));
    // If a process starts twice, as in tests, the first log stays.
    let _ = registry.try_init();
    Log { _guards: [lines_guard, audit_guard], counters, lost, filter }
}

/// The gateway's own lines from this level on, and all audit lines.
fn filter_of(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    Targets::new().with_target("zvgate", level).with_target(AUDIT, Level::INFO)
}

fn formatted<S>(writer: NonBlocking, text: bool, terminal: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = layer().with_writer(writer).with_ansi(terminal).with_target(false);
    if text { lines.boxed() } else { lines.json().flatten_event(true).boxed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, then nothing.
    struct Full(Vec<u8>, usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.1 - self.0.len());
            self.0.extend_from_slice(&bytes[..taken]);
            if taken > 0 || bytes.is_empty() { Ok(taken) } else { Err(io::ErrorKind::StorageFull.into()) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_torn_line_spoils_no_other_one_and_lost_lines_are_counted() {
        let output = Arc::new(Mutex::new(Output { out: Full(Vec::new(), 14), is_torn: false }));
        let lost = Arc::new([const { AtomicU64::new(0) }; 2]);
        let lines = |buffer| Lines { output: Arc::clone(&output), lost: Arc::clone(&lost), buffer };
        let (mut audits, mut others) = (lines(0), lines(1));
        for line in ["first\n", "second, torn\n", "lost\n"] {
            others.write_all(line.as_bytes()).unwrap();
        }
        audits.write_all(b"lost, too\n").unwrap();
        output.lock().out.1 = 1000;
        audits.write_all(b"audit\n").unwrap();
        others.write_all(b"other\n").unwrap();
        assert_eq!(String::from_utf8_lossy(&output.lock().out.0), "first\nsecond, \naudit\nother\n");
        assert_eq!(lost.each_ref().map(|lost| lost.load(Ordering::Relaxed)), [1, 2]);
    }
}
