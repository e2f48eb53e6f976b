//! What the task that makes a call to the platform shares with everybody who waits for it, while it is under way: what the call takes,
//! for the logs, and who waits, for the queue.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock::{Boot, millis};

/// Who waits for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallWaiter {
    /// The caller's index.
    pub caller: usize,
    /// Whether it waits as one of many that are not urgent.
    pub is_batch: bool,
}

/// The state of a call.
#[derive(Debug, Default)]
pub struct CallState {
    attempts: AtomicU32,
    /// Who waits for it beside the one that began it.
    waiters: Mutex<Vec<CallWaiter>>,
    /// Notified when one is added.
    joined: Notify,
    /// Waiting for a slot and for capacity in flight.
    pub queue: Stopwatch,
    /// With the platform.
    pub upstream: Stopwatch,
}

impl CallState {
    /// An attempt begins.
    pub fn attempt(&self) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
    }

    /// A caller waits for it, too.
    pub fn join(&self, waiter: CallWaiter) {
        let mut waiters = self.waiters.lock();
        if !waiters.contains(&waiter) {
            waiters.push(waiter);
            self.joined.notify_one();
        }
    }

    /// Those that joined, after the first so many of them.
    pub fn waiters(&self, after: usize) -> Vec<CallWaiter> {
        self.waiters.lock().get(after..).map(<[CallWaiter]>::to_vec).unwrap_or_default()
    }

    /// Waits until another caller joins.
    pub async fn another_joined(&self) {
        self.joined.notified().await;
    }

    /// Adds what another call took that its requester waited for at the same time.
    pub fn add(&self, other: &Self) {
        self.attempts.fetch_add(other.attempts(), Ordering::Relaxed);
        for (own, other) in [(&self.queue, &other.queue), (&self.upstream, &other.upstream)] {
            own.total.fetch_max(other.total.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// How many attempts began.
    pub fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }
}

/// A stopwatch that one task starts and stops.
#[derive(Debug, Default)]
pub struct Stopwatch {
    /// Between starts and stops, in milliseconds.
    total: AtomicU64,
    /// When it was started, in nanoseconds since boot; 0: it does not run.
    started: AtomicU64,
}

impl Stopwatch {
    /// Starts it.
    pub fn start(&self, now: Boot) {
        self.started.store(now.nanos(), Ordering::Relaxed);
    }

    /// Stops it; returns for how long it ran.
    pub fn stop(&self, now: Boot) -> Duration {
        let ran = now.since(Boot::from_duration(Duration::from_nanos(self.started.swap(0, Ordering::Relaxed))));
        self.total.fetch_add(millis(ran), Ordering::Relaxed);
        ran
    }

    /// For how long it ran until now, in milliseconds.
    pub fn total_ms(&self, now: Boot) -> u64 {
        let started = self.started.load(Ordering::Relaxed);
        let running =
            if started > 0 { now.since(Boot::from_duration(Duration::from_nanos(started))) } else { Duration::ZERO };
        self.total.load(Ordering::Relaxed) + millis(running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopwatch_counts_what_runs_and_what_ran() {
        let (stopwatch, at) = (Stopwatch::default(), |millis| Boot::from_duration(Duration::from_millis(millis)));
        assert_eq!(stopwatch.total_ms(at(5)), 0);
        stopwatch.start(at(10));
        assert_eq!(stopwatch.total_ms(at(30)), 20);
        assert_eq!(stopwatch.stop(at(40)), Duration::from_millis(30));
        assert_eq!(stopwatch.total_ms(at(99)), 30);
        stopwatch.start(at(100));
        assert_eq!(stopwatch.total_ms(at(101)), 31);
    }
}
