//! Which customers were served from the cache of late: if the platform then refuses a write of one of them, they may have been shown what
//! was no longer true.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foldhash::quality::RandomState;

use crate::cache::Subject;
use crate::clock::Boot;
use crate::settings::Size;

/// How long a customer may act on what was served.
const RECENTLY: Duration = Duration::from_secs(600);
/// One slot for so much of the cache's memory, about as much as one customer takes.
const BYTES_PER_SLOT: u64 = 2048;
const SLOTS: std::ops::RangeInclusive<u64> = 64..=65_536;

/// When customers were last served. Of two that share a slot only the later one is known, so that a customer may be missed, and
/// hardly ever is one taken for another.
#[derive(Debug)]
pub(super) struct Served {
    /// Half of the subject's hash, and seconds since boot.
    slots: Box<[AtomicU64]>,
    hasher: RandomState,
}

/// The slots for a cache of this size.
fn slots(cache: Size) -> u64 {
    (cache.0 / BYTES_PER_SLOT).clamp(*SLOTS.start(), *SLOTS.end())
}

/// The half of a slot, or of a hash, that says which subject it is.
const WHICH: u64 = 0xffff_ffff_0000_0000;

impl Served {
    pub(super) fn new(cache: Size) -> Self {
        Self { slots: (0..slots(cache)).map(|_| AtomicU64::new(0)).collect(), hasher: RandomState::default() }
    }

    /// The memory that it takes, in bytes.
    pub(super) fn bytes(cache: Size) -> u64 {
        slots(cache) * size_of::<AtomicU64>() as u64
    }

    /// A subject was served from the cache.
    pub(super) fn note(&self, subject: &Subject, now: Boot) {
        let (slot, hash) = self.slot(subject);
        slot.store(hash & WHICH | (now.seconds() & !WHICH), Ordering::Relaxed);
    }

    /// Whether it was in the last ten minutes.
    pub(super) fn recently(&self, subject: &Subject, now: Boot) -> bool {
        let (slot, hash) = self.slot(subject);
        let found = slot.load(Ordering::Relaxed);
        found & WHICH == hash & WHICH && now.seconds().saturating_sub(found & !WHICH) <= RECENTLY.as_secs()
    }

    fn slot(&self, subject: &Subject) -> (&AtomicU64, u64) {
        let hash = self.hasher.hash_one(subject);
        let index = usize::try_from(hash % self.slots.len().max(1) as u64).unwrap_or_default();
        (self.slots.get(index).expect("a remainder by their number is the index of a slot"), hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_counts_as_served_for_ten_minutes() {
        let served = Served::new(Size(1 << 20));
        let at = |seconds| Boot::from_duration(Duration::from_secs(seconds));
        let (one, other) = (Subject::customer(0, "1"), Subject::customer(1, "1"));
        served.note(&one, at(1000));
        assert!(served.recently(&one, at(1600)) && !served.recently(&one, at(1601)));
        assert!(!served.recently(&other, at(1000)));
    }

    #[test]
    fn nobody_counts_as_served_for_another() {
        let served = Served::new(Size(1));
        let now = Boot::from_duration(Duration::from_secs(5));
        (0..1000).for_each(|id| served.note(&Subject::customer(0, &format!("served {id}")), now));
        let mistaken =
            (0..10_000).filter(|id| served.recently(&Subject::customer(0, &format!("not {id}")), now)).count();
        assert_eq!(mistaken, 0);
    }
}
