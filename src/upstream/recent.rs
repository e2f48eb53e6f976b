//! Counts recent events.

use std::time::Duration;

use crate::clock::Boot;

/// Counts the events of the last `N` buckets of equal width, the current one included: all events of at least `N - 1` widths,
/// and none older than `N` widths.
#[derive(Clone, Debug)]
pub(super) struct Recent<const N: usize> {
    width: Duration,
    /// For each of the last buckets, its number and its count.
    buckets: [(u64, u32); N],
}

impl<const N: usize> Recent<N> {
    pub(super) const fn new(width: Duration) -> Self {
        Self { width, buckets: [(0, 0); N] }
    }

    /// Changes the width of a bucket. Events that were counted by another width are forgotten.
    pub(super) fn set_width(&mut self, width: Duration) {
        if self.width != width {
            *self = Self::new(width);
        }
    }

    /// Counts one event.
    pub(super) fn add(&mut self, now: Boot) {
        let number = self.number(now);
        let index = usize::try_from(number % N as u64).unwrap_or_default();
        if let Some(bucket) = self.buckets.get_mut(index) {
            let before = if bucket.0 == number { bucket.1 } else { 0 };
            *bucket = (number, before.saturating_add(1));
        }
    }

    /// The number of recent events.
    pub(super) fn count(&self, now: Boot) -> u32 {
        let number = self.number(now);
        let recent = self.buckets.iter().filter(|(at, _)| *at + N as u64 > number);
        recent.map(|(_, count)| *count).fold(0, u32::saturating_add)
    }

    fn number(&self, now: Boot) -> u64 {
        let width = self.width.as_nanos().max(1);
        // The first N buckets after boot would look like the empty buckets of a new counter.
        u64::try_from(now.as_duration().as_nanos() / width).unwrap_or(u64::MAX / 2) + N as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WIDTH: Duration = Duration::from_millis(1000);

    #[test]
    fn a_new_width_clears_the_counts_and_the_same_width_does_not() {
        let (mut recent, now) = (Recent::<5>::new(WIDTH), Boot::from_duration(WIDTH));
        recent.add(now);
        recent.set_width(WIDTH);
        assert_eq!(recent.count(now), 1);
        recent.set_width(WIDTH * 2);
        assert_eq!(recent.count(now), 0);
    }

    proptest! {
        #[test]
        fn all_events_of_all_buckets_but_one_are_counted_and_nothing_older(
            steps in proptest::collection::vec(0u64..4000, 1..60),
        ) {
            let (mut recent, mut now, mut events) = (Recent::<5>::new(WIDTH), 0, Vec::new());
            for step in steps {
                now += step;
                events.push(now);
                recent.add(Boot::from_duration(Duration::from_millis(now)));
                let counted = recent.count(Boot::from_duration(Duration::from_millis(now))) as usize;
                let within = |millis: u64| events.iter().filter(|event| now - **event < millis).count();
                prop_assert!((within(4000)..=within(5000)).contains(&counted), "{counted} of {events:?}");
            }
        }
    }
}
