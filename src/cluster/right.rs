//! The right to serve from this replica's own memory: until a lease after a heartbeat that was answered was sent.
//!
//! A request checks it before it looks at what is in memory, and events are applied before the reply that extends it. So a hit
//! either knows of every write that ended before that heartbeat was executed, or the write's end waits for this replica.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::clock::Boot;

/// How a request may be served from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// All writes that ended before it began are known, whichever replica they came through.
    Fenced,
    /// Those through this replica are known: it is cut off from the others.
    Unfenced,
    /// It was not known in time which of the two.
    Unknown,
}

/// While cut off.
const UNFENCED: u64 = u64::MAX;

/// The right.
#[derive(Debug)]
pub(super) struct Right {
    lease: Duration,
    /// Until when it holds, in nanoseconds since boot.
    until: AtomicU64,
    beats: watch::Sender<Beat>,
    /// Notified when a request waits for a heartbeat.
    pub(super) wanted: Notify,
}

/// What is known of heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Beat {
    /// When the last one that was answered was sent.
    sent: Option<Boot>,
    is_cut_off: bool,
}

impl Right {
    pub(super) fn new(lease: Duration) -> Self {
        let (beats, _) = watch::channel(Beat { sent: None, is_cut_off: false });
        Self { lease, until: AtomicU64::new(0), beats, wanted: Notify::new() }
    }

    /// How long it holds after a heartbeat: the rates of two clocks differ by less than a hundredth.
    fn span(&self) -> Duration {
        self.lease - self.lease / 100
    }

    /// How a request that began at this moment may be served; `None`: that takes a heartbeat.
    pub(super) fn standing(&self, at: Boot) -> Option<Standing> {
        match self.until.load(Ordering::SeqCst) {
            UNFENCED => Some(Standing::Unfenced),
            until if at.nanos() < until => Some(Standing::Fenced),
            _ => None,
        }
    }

    /// Whether this replica is cut off.
    pub(super) fn is_cut_off(&self) -> bool {
        self.until.load(Ordering::SeqCst) == UNFENCED
    }

    /// Waits until that is known.
    pub(super) async fn wait(&self, at: Boot) -> Standing {
        let mut beats = self.beats.subscribe();
        self.wanted.notify_one();
        let covers = |beat: &Beat| beat.sent.is_some_and(|sent| at <= sent || at < sent + self.span());
        let known = beats.wait_for(|beat| beat.is_cut_off || covers(beat)).await;
        match known {
            Ok(beat) if !beat.is_cut_off => Standing::Fenced,
            // The sender lives as long as this.
            Ok(_) | Err(_) => Standing::Unfenced,
        }
    }

    /// A heartbeat that was sent at this moment was answered. Returns whether the right had lapsed.
    pub(super) fn extend(&self, sent: Boot, now: Boot) -> bool {
        let until = (sent + self.span()).nanos();
        let before = self.until.fetch_max(until, Ordering::SeqCst);
        self.beats.send_modify(|beat| beat.sent = beat.sent.max(Some(sent)));
        self.has_lapsed(before, now)
    }

    /// It ends, until another heartbeat is answered. Returns whether it had lapsed.
    pub(super) fn revoke(&self, now: Boot) -> bool {
        let until = self.until.swap(0, Ordering::SeqCst);
        self.beats.send_modify(|beat| *beat = Beat { sent: None, is_cut_off: false });
        self.has_lapsed(until, now)
    }

    /// Whether it held until `until`, and no longer.
    fn has_lapsed(&self, until: u64, now: Boot) -> bool {
        !self.lease.is_zero() && until > 0 && until < now.nanos()
    }

    /// This replica is cut off, and serves what it fetches from now on.
    pub(super) fn cut_off(&self) {
        self.until.store(UNFENCED, Ordering::SeqCst);
        self.beats.send_modify(|beat| *beat = Beat { sent: None, is_cut_off: true });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Boot {
        Boot::from_duration(Duration::from_millis(millis))
    }

    #[tokio::test]
    async fn the_right_holds_for_a_lease_after_a_heartbeat_was_sent() {
        let right = Right::new(Duration::from_millis(200));
        assert_eq!(right.standing(at(0)), None);
        assert!(!right.extend(at(1000), at(1001)), "it did not hold before");
        assert_eq!((right.standing(at(1197)), right.standing(at(1198))), (Some(Standing::Fenced), None));
        assert!(!right.extend(at(900), at(1010)), "an older one changes nothing");
        assert_eq!(right.standing(at(1197)), Some(Standing::Fenced));
        assert!(right.extend(at(1300), at(1301)), "it had lapsed");
        assert!(!right.revoke(at(1301)) && !right.revoke(at(9999)), "it holds, and is counted once");
        assert_eq!(right.standing(at(1301)), None);
        right.extend(at(2000), at(2001));
        assert!(right.revoke(at(2300)), "it had lapsed");
        right.cut_off();
        assert_eq!(right.standing(at(999_999)), Some(Standing::Unfenced));
        assert_eq!(right.wait(at(1)).await, Standing::Unfenced);
    }

    #[tokio::test]
    async fn without_a_lease_every_request_waits_for_a_heartbeat_that_was_sent_after_it_began() {
        let right = std::sync::Arc::new(Right::new(Duration::ZERO));
        right.extend(at(1000), at(1001));
        assert_eq!(right.standing(at(1000)), None);
        let waiting = tokio::spawn({
            let right = std::sync::Arc::clone(&right);
            async move { right.wait(at(1001)).await }
        });
        right.wanted.notified().await;
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        right.extend(at(1001), at(1002));
        assert_eq!(waiting.await.unwrap(), Standing::Fenced);
    }
}
