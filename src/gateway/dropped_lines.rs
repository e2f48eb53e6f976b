//! Log lines that were dropped: counted by the log, reported here.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::IntCounter;

/// How many log lines were dropped or could not be written: audit lines, then others.
pub type DroppedLogLines = Arc<dyn Fn() -> [u64; 2] + Send + Sync>;

/// What the log reported of lines that were dropped: numbers of audit lines, then of others.
#[derive(Debug, Default)]
struct ReportedLines {
    /// As they were seen last.
    seen: [u64; 2],
    /// In lines that were themselves written.
    reported: [u64; 2],
    /// In a line of which that is not known yet.
    reporting: Option<[u64; 2]>,
}

/// Reports dropped lines.
pub(super) struct DroppedLines {
    count: DroppedLogLines,
    reported: Mutex<ReportedLines>,
}

impl DroppedLines {
    pub(super) fn new(count: DroppedLogLines) -> Self {
        Self { count, reported: Mutex::default() }
    }

    /// How many were dropped.
    fn total(&self) -> u64 {
        (self.count)().iter().sum()
    }

    /// Reports log lines that were dropped, once no more are: until then this line would be, too. Counts them.
    pub(super) fn report(&self, counter: &IntCounter) {
        let now = (self.count)();
        let mut lines = self.reported.lock();
        let was_written = lines.reporting.take().filter(|reporting| *reporting == now);
        lines.reported = was_written.unwrap_or(lines.reported);
        if now == lines.seen && now != lines.reported {
            let ([audit, other], [audits, others]) = (now, lines.reported);
            let (audit, other) = (audit - audits, other - others);
            tracing::warn!(audit, other, "log lines dropped: they were read too slowly, or could not be written");
            lines.reporting = Some(now);
        }
        lines.seen = now;
        counter.inc_by(self.total().saturating_sub(counter.get()));
    }
}
