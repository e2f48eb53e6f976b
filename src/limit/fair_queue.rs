//! The order of a queue, as a pure structure.
//!
//! Writes go first, but while reads wait, every second permit is a read's. Writes and reads are each served round-robin by
//! caller, so that nobody waits for everything that a busy caller asked; the requests of one caller are served in order.

use std::collections::VecDeque;

/// Whose request waits, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueKey {
    /// The caller's index.
    pub caller: usize,
    /// Whether it is for a write.
    pub write: bool,
}

/// The requests that wait, each known by a ticket.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    writes: RoundRobin<T>,
    reads: RoundRobin<T>,
    /// Whether the last permit went to a write while reads waited.
    read_is_next: bool,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { writes: RoundRobin(VecDeque::new()), reads: RoundRobin(VecDeque::new()), read_is_next: false }
    }
}

impl<T: PartialEq> FairQueue<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.writes.0.is_empty() && self.reads.0.is_empty()
    }

    /// Adds a request behind earlier ones of the same caller.
    pub(super) fn join(&mut self, key: QueueKey, ticket: T) {
        if key.write { &mut self.writes } else { &mut self.reads }.join(key.caller, ticket);
    }

    pub(super) fn contains(&self, ticket: &T) -> bool {
        self.writes.contains(ticket) || self.reads.contains(ticket)
    }

    /// The first write and the first read of each caller.
    pub(super) fn firsts(&self) -> impl Iterator<Item = &T> {
        self.writes.firsts().chain(self.reads.firsts())
    }

    /// The request that is served next.
    pub(super) fn next(&self) -> Option<&T> {
        if self.is_for_write() { self.writes.next() } else { self.reads.next() }
    }

    /// Removes a request that is served: the next one, or another that is the first of its caller.
    pub(super) fn serve(&mut self, ticket: &T) {
        if self.writes.serve(ticket) {
            self.read_is_next = !self.reads.0.is_empty();
        } else if self.reads.serve(ticket) {
            self.read_is_next = false;
        }
    }

    /// Removes a request that waits no longer.
    pub(super) fn leave(&mut self, ticket: &T) {
        self.writes.leave(ticket);
        self.reads.leave(ticket);
    }

    /// How many requests are served before this one, if none is added or removed.
    pub(super) fn ahead(&self, ticket: &T) -> usize {
        let owed = usize::from(self.read_is_next);
        if let Some(writes) = self.writes.ahead(ticket) {
            return writes + self.reads.len().min(writes + owed);
        }
        let reads = self.reads.ahead(ticket).unwrap_or_default();
        reads + self.writes.len().min(reads + 1 - owed)
    }

    fn is_for_write(&self) -> bool {
        !self.writes.0.is_empty() && (!self.read_is_next || self.reads.0.is_empty())
    }
}

/// Requests by caller; the first request of the first caller is next. A caller without requests is not in here.
#[derive(Debug)]
struct RoundRobin<T>(VecDeque<(usize, VecDeque<T>)>);

impl<T: PartialEq> RoundRobin<T> {
    fn len(&self) -> usize {
        self.0.iter().map(|(_, tickets)| tickets.len()).sum()
    }

    fn contains(&self, ticket: &T) -> bool {
        self.0.iter().any(|(_, tickets)| tickets.contains(ticket))
    }

    fn firsts(&self) -> impl Iterator<Item = &T> {
        self.0.iter().filter_map(|(_, tickets)| tickets.front())
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

    /// Serves a caller's first request, whose next one waits until the others had their turn; returns whether it was found.
    fn serve(&mut self, ticket: &T) -> bool {
        let lane = self.0.iter().position(|(_, tickets)| tickets.front() == Some(ticket));
        let Some((caller, mut tickets)) = lane.and_then(|lane| self.0.remove(lane)) else { return false };
        tickets.pop_front();
        if !tickets.is_empty() {
            self.0.push_back((caller, tickets));
        }
        true
    }

    fn leave(&mut self, ticket: &T) {
        self.0.retain_mut(|(_, tickets)| {
            tickets.retain(|other| other != ticket);
            !tickets.is_empty()
        });
    }

    /// How many of these are served before a ticket.
    fn ahead(&self, ticket: &T) -> Option<usize> {
        let position = |tickets: &VecDeque<T>| tickets.iter().position(|other| other == ticket);
        let (lane, position) =
            self.0.iter().enumerate().find_map(|(lane, (_, tickets))| Some((lane, position(tickets)?)))?;
        // Each caller before it in the round is served once more than each behind it.
        let served = |(other, (_, tickets)): (usize, &(usize, VecDeque<T>))| match other.cmp(&lane) {
            std::cmp::Ordering::Less => tickets.len().min(position + 1),
            std::cmp::Ordering::Equal => position,
            std::cmp::Ordering::Greater => tickets.len().min(position),
        };
        Some(self.0.iter().enumerate().map(served).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn read(caller: usize) -> QueueKey {
        QueueKey { caller, write: false }
    }

    const fn write(caller: usize) -> QueueKey {
        QueueKey { caller, write: true }
    }

    fn queue(keys: &[QueueKey]) -> FairQueue<usize> {
        let mut queue = FairQueue::default();
        keys.iter().enumerate().for_each(|(ticket, key)| queue.join(*key, ticket));
        queue
    }

    fn order(mut queue: FairQueue<usize>) -> Vec<usize> {
        let mut order = Vec::new();
        while let Some(next) = queue.next().copied() {
            order.push(next);
            queue.serve(&next);
        }
        order
    }

    #[test]
    fn a_flooding_caller_does_not_starve_another() {
        let flood = [[read(7); 50].as_slice(), &[read(8), read(9), read(8)]].concat();
        assert_eq!(order(queue(&flood))[..6], [0, 50, 51, 1, 52, 2]);
    }

    #[test]
    fn writes_take_precedence_and_leave_every_second_permit_to_reads() {
        let mixed = [read(1), read(1), write(1), write(1), write(1), write(1)];
        assert_eq!(order(queue(&mixed)), [2, 0, 3, 1, 4, 5]);
    }

    #[test]
    fn a_write_takes_precedence_again_if_no_read_waited_for_the_last_one() {
        let mut queue = queue(&[write(1)]);
        queue.serve(&0);
        queue.join(read(1), 1);
        queue.join(write(1), 2);
        assert_eq!(order(queue), [2, 1]);
    }

    #[test]
    fn a_caller_that_is_served_out_of_turn_waits_for_the_others_as_usual() {
        let mut queue = queue(&[read(1), read(1), read(2), read(3), read(2), write(4)]);
        assert_eq!(queue.firsts().copied().collect::<Vec<_>>(), [5, 0, 2, 3]);
        queue.serve(&2);
        assert_eq!(order(queue), [5, 0, 3, 4, 1]);
    }

    #[test]
    fn a_request_that_leaves_does_not_affect_the_order_of_others() {
        let mut queue = queue(&[read(1), read(2), write(3), read(1)]);
        queue.leave(&2);
        queue.leave(&0);
        assert_eq!(order(queue), [3, 1]);
    }

    proptest! {
        /// Each request is served at its reported position, and the requests of each caller in order.
        #[test]
        fn reported_positions_match_the_order_of_service(
            came in proptest::collection::vec((0usize..4, any::<bool>()), 1..40),
            served in 0usize..20,
            left in proptest::collection::vec(0usize..40, 0..5),
        ) {
            let keys: Vec<_> = came.iter().map(|(caller, write)| QueueKey { caller: *caller, write: *write }).collect();
            let half = keys.len() / 2;
            let mut queue = queue(&keys[..half]);
            for _ in 0..served {
                if let Some(next) = queue.next().copied() {
                    queue.serve(&next);
                }
            }
            for (ticket, key) in keys.iter().enumerate().skip(half) {
                queue.join(*key, ticket);
            }
            left.iter().for_each(|ticket| queue.leave(ticket));
            let positions: Vec<_> = (0..keys.len()).map(|ticket| queue.ahead(&ticket)).collect();
            let order = order(queue);
            for (turn, ticket) in order.iter().enumerate() {
                prop_assert_eq!(positions[*ticket], turn, "{:?} of {:?}", ticket, order);
            }
            for (turn, ticket) in order.iter().enumerate() {
                let earlier = order[turn..].iter().find(|other| keys[**other] == keys[*ticket] && *other < ticket);
                prop_assert_eq!(earlier, None);
            }
        }
    }
}
