//! What a call to the platform took, for the logs: written by the task that makes the call, read by everybody who waits for it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// The attempts of a call so far, and how long they took.
#[derive(Debug, Default)]
pub struct CallTimings {
    attempts: AtomicU32,
    /// In milliseconds, as the next one.
    queued: AtomicU64,
    upstream: AtomicU64,
}

impl CallTimings {
    /// It was queued for so long.
    pub fn waited(&self, queued: Duration) {
        self.queued.fetch_add(millis(queued), Ordering::Relaxed);
    }

    /// An attempt begins.
    pub fn begins(&self) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
    }

    /// An attempt ended after so long.
    pub fn ended(&self, took: Duration) {
        self.upstream.fetch_add(millis(took), Ordering::Relaxed);
    }

    /// How many attempts began.
    pub fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// How long they waited for a slot and for room in flight, in milliseconds.
    pub fn queue_ms(&self) -> u64 {
        self.queued.load(Ordering::Relaxed)
    }

    /// How long those that ended took, in milliseconds.
    pub fn upstream_ms(&self) -> u64 {
        self.upstream.load(Ordering::Relaxed)
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
