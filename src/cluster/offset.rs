//! How far Redis' clock is ahead of our clock since boot, as an interval that is certain: Redis read its clock between a request
//! and its reply. Two intervals that exclude each other prove that a clock jumped.

use crate::clock::Boot;

/// The rates of two clocks differ by less than a hundredth.
const DRIFT: u64 = 100;

/// An interval, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offset {
    least: i64,
    most: i64,
    /// When it was certain.
    at: Boot,
}

/// A clock jumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Jumped;

impl Offset {
    /// From one reply, with the time `redis` (in microseconds since the Unix epoch).
    pub(super) fn new(sent: Boot, redis: i64, received: Boot) -> Self {
        Self { least: redis.saturating_sub(micros(received)), most: redis.saturating_sub(micros(sent)), at: received }
    }

    /// Narrowed by another reply.
    pub(super) fn narrowed(self, sent: Boot, redis: i64, received: Boot) -> Result<Self, Jumped> {
        let new = Self::new(sent, redis, received);
        let drift = self.drift(received);
        let least = new.least.max(self.least.saturating_sub(drift));
        let most = new.most.min(self.most.saturating_add(drift));
        if least > most { Err(Jumped) } else { Ok(Self { least, most, at: received }) }
    }

    /// By how much the clocks may have moved apart since the last reply.
    fn drift(self, now: Boot) -> i64 {
        i64::try_from(now.since(self.at).as_micros() / u128::from(DRIFT)).unwrap_or(i64::MAX)
    }

    /// A moment by Redis' clock, in milliseconds since the Unix epoch: the earliest that it may be.
    pub(super) fn earliest(self, at: Boot) -> i64 {
        micros(at).saturating_add(self.least).saturating_sub(self.drift(at)).div_euclid(1000)
    }
}

fn micros(at: Boot) -> i64 {
    i64::try_from(at.as_duration().as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(micros: u64) -> Boot {
        Boot::from_duration(Duration::from_micros(micros))
    }

    #[test]
    fn a_jump_is_noticed_and_a_slow_reply_is_none() {
        // Redis is 1 s ahead.
        let offset = Offset::new(at(1_000_000), 2_000_100, at(1_000_200));
        assert_eq!(offset.earliest(at(1_000_000)), 1_999);
        let offset = offset.narrowed(at(1_050_000), 2_050_100, at(1_050_200)).unwrap();
        let slow = offset.narrowed(at(1_100_000), 2_300_000, at(1_400_000)).unwrap();
        assert_eq!(slow.narrowed(at(1_450_000), 2_452_900, at(1_450_200)).map(|_| ()), Ok(()), "within the drift");
        for jump in [-10_000, 10_000] {
            assert_eq!(offset.narrowed(at(1_100_000), 2_100_100 + jump, at(1_100_200)), Err(Jumped), "{jump}");
        }
    }

    proptest! {
        /// Whatever the delays: the true offset is never excluded, and what is computed of it is never later than the truth.
        #[test]
        fn clocks_that_do_not_jump_are_never_said_to(
            ahead in -1_000_000i64..1_000_000,
            steps in proptest::collection::vec((0u64..100_000, 0u64..300_000, 0u64..300_000), 1..50),
        ) {
            let (mut now, mut offset) = (2_000_000, None::<Offset>);
            for (pause, there, back) in steps {
                now += pause;
                let (sent, read, received) = (at(now), i64::try_from(now + there).unwrap() + ahead, at(now + there + back));
                now += there + back;
                offset = Some(match offset {
                    None => Offset::new(sent, read, received),
                    Some(known) => known.narrowed(sent, read, received).unwrap(),
                });
                let truth = i64::try_from(now).unwrap() + ahead;
                prop_assert!(offset.unwrap().earliest(at(now)) <= truth.div_euclid(1000));
            }
        }
    }
}
