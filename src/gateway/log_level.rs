//! The level of the gateway's own log messages, which an operator may change for a while.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Boot;
use crate::settings::LogLevel;

/// Changes the level of the log.
pub type SetLogLevel = Arc<dyn Fn(LogLevel) + Send + Sync>;

/// The level: the configured one, or another for a while.
pub(super) struct LogLevels {
    configured: LogLevel,
    set: SetLogLevel,
    temporary: Mutex<Option<Temporary>>,
}

/// Another level than the configured one.
#[derive(Clone, Copy, Debug)]
struct Temporary {
    level: LogLevel,
    until: Boot,
}

impl LogLevels {
    pub(super) fn new(configured: LogLevel, set: SetLogLevel) -> Self {
        Self { configured, set, temporary: Mutex::new(None) }
    }

    /// The level in force, the configured one, and for how long they differ.
    pub(super) fn current(&self, now: Boot) -> (LogLevel, LogLevel, Option<Duration>) {
        let temporary = *self.temporary.lock();
        let level = temporary.map_or(self.configured, |temporary| temporary.level);
        (level, self.configured, temporary.map(|temporary| temporary.until.since(now)))
    }

    /// Changes the level for so long.
    pub(super) fn change(&self, level: LogLevel, span: Duration, now: Boot) {
        let mut temporary = self.temporary.lock();
        *temporary = Some(Temporary { level, until: now + span });
        (self.set)(level);
    }

    /// Returns to the configured level once the time of another one has passed; returns whether it did.
    pub(super) fn restore(&self, now: Boot) -> bool {
        let mut temporary = self.temporary.lock();
        let is_over = temporary.is_some_and(|temporary| temporary.until <= now);
        if is_over {
            *temporary = None;
            (self.set)(self.configured);
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_level_is_in_force_for_a_while() {
        let set = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&set);
        let levels = LogLevels::new(LogLevel::Info, Arc::new(move |level| seen.lock().push(level)));
        let at = |seconds| Boot::from_duration(Duration::from_secs(seconds));
        assert_eq!(levels.current(at(0)), (LogLevel::Info, LogLevel::Info, None));
        assert!(!levels.restore(at(0)));
        levels.change(LogLevel::Debug, Duration::from_secs(60), at(0));
        levels.change(LogLevel::Trace, Duration::from_secs(10), at(5));
        assert!(!levels.restore(at(14)));
        assert_eq!(levels.current(at(14)), (LogLevel::Trace, LogLevel::Info, Some(Duration::from_secs(1))));
        assert!(levels.restore(at(15)));
        assert_eq!(levels.current(at(15)), (LogLevel::Info, LogLevel::Info, None));
        assert_eq!(*set.lock(), [LogLevel::Debug, LogLevel::Trace, LogLevel::Info]);
    }
}
