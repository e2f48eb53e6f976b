//! When failures of a kind begin and end, so that one line is logged when a kind begins and one when it ends, not one per attempt.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Boot;

/// Failures of a kind have ended once an attempt succeeded and none failed in the same way for so long: a platform that fails now
/// and then does not fill the log.
const QUIET: Duration = Duration::from_secs(10);

/// Failures of one kind, from the first to the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Episode {
    /// The kind.
    pub kind: &'static str,
    /// What failed the last time, in words; empty if the kind says all.
    pub cause: String,
    /// The number of failed attempts.
    pub count: u64,
    /// When the first one failed.
    pub began: Boot,
    /// When the last one failed.
    pub last: Boot,
    /// Whether an attempt succeeded since.
    pub succeeded_since: bool,
}

impl Episode {
    /// Adds those of another path.
    pub(super) fn add(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        self.began = self.began.min(other.began);
        self.succeeded_since &= other.succeeded_since;
        if other.last > self.last {
            (self.last, self.cause) = (other.last, other.cause);
        }
    }
}

/// The failures that have not ended yet: one entry for each kind, and kinds are few.
#[derive(Debug, Default)]
pub(super) struct Failures {
    episodes: Mutex<Vec<Episode>>,
    /// Whether there are any: most often there are none, and a success changes nothing.
    are_any: AtomicBool,
}

impl Failures {
    /// Records a failure; returns whether it is the first of its kind.
    pub(super) fn failed(&self, kind: &'static str, cause: String, now: Boot) -> bool {
        let mut episodes = self.episodes.lock();
        self.are_any.store(true, Ordering::Relaxed);
        match episodes.iter_mut().find(|episode| episode.kind == kind) {
            Some(episode) => {
                (episode.count, episode.last, episode.succeeded_since) = (episode.count + 1, now, false);
                episode.cause = cause;
                false
            }
            None => {
                episodes.push(Episode { kind, cause, count: 1, began: now, last: now, succeeded_since: false });
                true
            }
        }
    }

    /// Records a success.
    pub(super) fn succeeded(&self) {
        if self.are_any.load(Ordering::Relaxed) {
            self.episodes.lock().iter_mut().for_each(|episode| episode.succeeded_since = true);
        }
    }

    /// Removes and returns those that have ended.
    pub(super) fn take_ended(&self, now: Boot) -> Vec<Episode> {
        let has_ended = |episode: &mut Episode| episode.succeeded_since && now.since(episode.last) >= QUIET;
        let mut episodes = self.episodes.lock();
        let ended = episodes.extract_if(.., has_ended).collect();
        self.are_any.store(!episodes.is_empty(), Ordering::Relaxed);
        ended
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Episode> {
        self.episodes.lock().clone()
    }

    /// Whether all have ended.
    pub(super) fn have_ended(&self) -> bool {
        self.episodes.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Boot {
        Boot::from_duration(Duration::from_secs(1000 + seconds))
    }

    #[test]
    fn each_kind_is_reported_once_and_ends_if_quiet_after_a_success() {
        let failures = Failures::default();
        assert!(failures.failed("timeout", String::new(), at(0)));
        assert!(!failures.failed("timeout", String::new(), at(1)));
        assert!(failures.failed("reset", String::new(), at(2)));
        assert_eq!(failures.take_ended(at(60)), [], "nothing succeeded");
        failures.succeeded();
        assert!(!failures.failed("timeout", String::new(), at(60)));
        let ended = failures.take_ended(at(61));
        assert_eq!(ended.iter().map(|one| (one.kind, one.count)).collect::<Vec<_>>(), [("reset", 1)]);
        failures.succeeded();
        assert_eq!(failures.take_ended(at(69)), [], "too soon");
        let ended = failures.take_ended(at(70));
        assert_eq!(ended.iter().map(|one| (one.kind, one.count)).collect::<Vec<_>>(), [("timeout", 3)]);
        assert!(failures.have_ended() && failures.failed("timeout", String::new(), at(71)));
    }
}
