//! How often something happened lately.

use crate::clock::Boot;

/// Counts the events of the last `N` seconds: of at least `N - 1` of them, as whole seconds are counted together.
#[derive(Clone, Debug)]
pub(super) struct Recent<const N: usize> {
    /// For each of the last seconds, which one it is and its count.
    seconds: [(u64, u32); N],
}

impl<const N: usize> Recent<N> {
    pub(super) const fn new() -> Self {
        Self { seconds: [(0, 0); N] }
    }

    /// Counts one more.
    pub(super) fn add(&mut self, now: Boot) {
        let second = now.seconds();
        let index = usize::try_from(second % N as u64).unwrap_or_default();
        if let Some(place) = self.seconds.get_mut(index) {
            let before = if place.0 == second { place.1 } else { 0 };
            *place = (second, before.saturating_add(1));
        }
    }

    /// How many there were.
    pub(super) fn count(&self, now: Boot) -> u32 {
        let second = now.seconds();
        let recent = self.seconds.iter().filter(|(at, _)| *at + N as u64 > second);
        recent.map(|(_, count)| *count).fold(0, u32::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn all_of_the_last_seconds_but_one_are_counted_and_nothing_older(
            steps in proptest::collection::vec(0u64..4000, 1..60),
        ) {
            let (mut recent, mut now, mut events) = (Recent::<5>::new(), 100_000, Vec::new());
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
