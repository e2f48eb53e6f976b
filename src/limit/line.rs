//! The order of turns, as a pure structure.
//!
//! Writes go first, but while reads wait, every second turn is a read's. Among writes and among reads callers take turns
//! in rounds, so that nobody waits for all that a busy caller asked; within one caller, first come, first served.

use std::collections::VecDeque;

/// Who wants a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// The caller's number.
    pub caller: usize,
    /// Whether it is for a write.
    pub write: bool,
}

/// Who waits for a turn, known by tickets.
#[derive(Debug)]
pub(super) struct Line<T> {
    writes: Rounds<T>,
    reads: Rounds<T>,
    /// Whether the last turn went to a write while reads waited.
    reads_are_owed: bool,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { writes: Rounds(VecDeque::new()), reads: Rounds(VecDeque::new()), reads_are_owed: false }
    }
}

impl<T: PartialEq> Line<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.writes.0.is_empty() && self.reads.0.is_empty()
    }

    /// Waits behind those of the same caller who came before.
    pub(super) fn join(&mut self, who: Claimant, ticket: T) {
        if who.write { &mut self.writes } else { &mut self.reads }.join(who.caller, ticket);
    }

    /// Whose turn is next.
    pub(super) fn next(&self) -> Option<&T> {
        if self.is_for_write() { self.writes.next() } else { self.reads.next() }
    }

    /// The next turn is taken.
    pub(super) fn serve(&mut self) {
        if self.is_for_write() {
            self.reads_are_owed = !self.reads.0.is_empty();
            self.writes.serve();
        } else {
            self.reads_are_owed = false;
            self.reads.serve();
        }
    }

    /// Gives a place up.
    pub(super) fn leave(&mut self, ticket: &T) {
        self.writes.leave(ticket);
        self.reads.leave(ticket);
    }

    /// How many turns come before a ticket's own, if nobody comes or leaves.
    pub(super) fn ahead(&self, ticket: &T) -> usize {
        let owed = usize::from(self.reads_are_owed);
        if let Some(writes) = self.writes.ahead(ticket) {
            return writes + self.reads.len().min(writes + owed);
        }
        let reads = self.reads.ahead(ticket).unwrap_or_default();
        reads + self.writes.len().min(reads + 1 - owed)
    }

    fn is_for_write(&self) -> bool {
        !self.writes.0.is_empty() && (!self.reads_are_owed || self.reads.0.is_empty())
    }
}

/// Callers who take turns; the first of the first goes next. Nobody is in here who does not wait.
#[derive(Debug)]
struct Rounds<T>(VecDeque<(usize, VecDeque<T>)>);

impl<T: PartialEq> Rounds<T> {
    fn len(&self) -> usize {
        self.0.iter().map(|(_, tickets)| tickets.len()).sum()
    }

    fn join(&mut self, caller: usize, ticket: T) {
        match self.0.iter_mut().find(|(other, _)| *other == caller) {
            Some((_, tickets)) => tickets.push_back(ticket),
            None => self.0.push_back((caller, VecDeque::from([ticket]))),
        }
    }

    fn next(&self) -> Option<&T> {
        self.0.front()?.1.front()
    }

    fn serve(&mut self) {
        let Some((caller, mut tickets)) = self.0.pop_front() else { return };
        tickets.pop_front();
        if !tickets.is_empty() {
            self.0.push_back((caller, tickets));
        }
    }

    fn leave(&mut self, ticket: &T) {
        self.0.retain_mut(|(_, tickets)| {
            tickets.retain(|other| other != ticket);
            !tickets.is_empty()
        });
    }

    /// How many of these come before a ticket.
    fn ahead(&self, ticket: &T) -> Option<usize> {
        let place = |tickets: &VecDeque<T>| tickets.iter().position(|other| other == ticket);
        let (lane, place) = self.0.iter().enumerate().find_map(|(lane, (_, tickets))| Some((lane, place(tickets)?)))?;
        // Each caller before it in the round gets one more turn than each behind it.
        let turns = |(other, (_, tickets)): (usize, &(usize, VecDeque<T>))| match other.cmp(&lane) {
            std::cmp::Ordering::Less => tickets.len().min(place + 1),
            std::cmp::Ordering::Equal => place,
            std::cmp::Ordering::Greater => tickets.len().min(place),
        };
        Some(self.0.iter().enumerate().map(turns).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn read(caller: usize) -> Claimant {
        Claimant { caller, write: false }
    }

    const fn write(caller: usize) -> Claimant {
        Claimant { caller, write: true }
    }

    fn line(claimants: &[Claimant]) -> Line<usize> {
        let mut line = Line::default();
        claimants.iter().enumerate().for_each(|(ticket, who)| line.join(*who, ticket));
        line
    }

    fn order(mut line: Line<usize>) -> Vec<usize> {
        let mut order = Vec::new();
        while let Some(next) = line.next().copied() {
            order.push(next);
            line.serve();
        }
        order
    }

    #[test]
    fn a_flooding_caller_does_not_starve_another() {
        let flood = [[read(7); 50].as_slice(), &[read(8), read(9), read(8)]].concat();
        assert_eq!(order(line(&flood))[..6], [0, 50, 51, 1, 52, 2]);
    }

    #[test]
    fn writes_go_first_and_leave_every_second_turn_to_reads() {
        let mixed = [read(1), read(1), write(1), write(1), write(1), write(1)];
        assert_eq!(order(line(&mixed)), [2, 0, 3, 1, 4, 5]);
    }

    #[test]
    fn a_write_goes_first_again_once_no_read_waited_for_the_last_one() {
        let mut line = line(&[write(1)]);
        line.serve();
        line.join(read(1), 1);
        line.join(write(1), 2);
        assert_eq!(order(line), [2, 1]);
    }

    #[test]
    fn who_leaves_is_as_if_he_had_never_come() {
        let mut line = line(&[read(1), read(2), write(3), read(1)]);
        line.leave(&2);
        line.leave(&0);
        assert_eq!(order(line), [3, 1]);
    }

    proptest! {
        /// What is told to each who waits is what comes true, and each caller is served in the order of his coming.
        #[test]
        fn the_turns_ahead_are_the_turns_that_come(
            came in proptest::collection::vec((0usize..4, any::<bool>()), 1..40),
            served in 0usize..20,
            left in proptest::collection::vec(0usize..40, 0..5),
        ) {
            let claimants: Vec<_> = came.iter().map(|(caller, write)| Claimant { caller: *caller, write: *write }).collect();
            let half = claimants.len() / 2;
            let mut line = line(&claimants[..half]);
            for _ in 0..served {
                if line.next().is_some() {
                    line.serve();
                }
            }
            for (ticket, who) in claimants.iter().enumerate().skip(half) {
                line.join(*who, ticket);
            }
            left.iter().for_each(|ticket| line.leave(ticket));
            let told: Vec<_> = (0..claimants.len()).map(|ticket| line.ahead(&ticket)).collect();
            let order = order(line);
            for (turn, ticket) in order.iter().enumerate() {
                prop_assert_eq!(told[*ticket], turn, "{:?} of {:?}", ticket, order);
            }
            for (turn, ticket) in order.iter().enumerate() {
                let earlier = order[turn..].iter().find(|other| claimants[**other] == claimants[*ticket] && *other < ticket);
                prop_assert_eq!(earlier, None);
            }
        }
    }
}
