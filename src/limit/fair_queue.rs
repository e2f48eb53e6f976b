//! The order of a queue, as a pure structure.
//!
//! Writes go first, but while others wait, every second permit is theirs; among those, interactive reads go first, but while batch
//! calls wait, every second permit is a batch call's. So batch calls have at most half of all permits while others wait. The requests
//! of a class are served round-robin by caller and tenant, so that nobody waits for everything that a busy caller asked; the requests
//! of one lane are served in order.

use std::collections::{BTreeMap, VecDeque};

/// Whose request waits, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueKey {
    /// The caller's index.
    pub caller: usize,
    /// The tenant's index: the in-flight limit that holds one tenant's requests up is no other's.
    pub tenant: usize,
    /// How urgent it is.
    pub class: Class,
}

/// How urgent a request is, the most urgent class first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A write of an interactive caller.
    Write,
    /// A read that somebody waits for.
    Interactive,
    /// One of many that can wait.
    Batch,
}

const CLASSES: usize = 3;

/// A request's position in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    key: QueueKey,
    /// Counts the requests that joined.
    number: u64,
}

impl Position {
    const fn class(&self) -> usize {
        self.key.class as usize
    }
}

/// The requests that wait, each with what wakes it.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    /// By class.
    classes: [RoundRobin<T>; CLASSES],
    /// For each class: whether the last permit went to it while a less urgent class waited, so that one of those is next.
    yields: [bool; CLASSES],
    joined: u64,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { classes: std::array::from_fn(|_| RoundRobin::default()), yields: [false; CLASSES], joined: 0 }
    }
}

impl<T> FairQueue<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting_after(0) + self.classes.first().map_or(0, |class| class.len)
    }

    /// How many wait in classes less urgent than this one.
    fn waiting_after(&self, class: usize) -> usize {
        self.classes.iter().skip(class + 1).map(|class| class.len).sum()
    }

    /// Adds a request behind earlier ones of the same caller and tenant.
    pub(super) fn join(&mut self, key: QueueKey, request: T) -> Position {
        self.joined += 1;
        let position = Position { key, number: self.joined };
        self.class_mut(position).join(position, request);
        position
    }

    /// The first request of each lane, one of which is served next.
    pub(super) fn firsts(&self) -> impl Iterator<Item = &T> {
        self.classes.iter().flat_map(RoundRobin::firsts)
    }

    /// Whether a request is one of these.
    pub(super) fn is_first(&self, position: Position) -> bool {
        let lane = self.class(position).lane(position.key);
        lane.and_then(Lane::first_key_value).is_some_and(|(number, _)| *number == position.number)
    }

    /// The request that is served next.
    pub(super) fn next(&self) -> Option<(Position, &T)> {
        let is_next = |(class, requests): &(usize, &RoundRobin<T>)| {
            requests.len > 0 && !(self.yields(*class) && self.waiting_after(*class) > 0)
        };
        let (_, requests) = self.classes.iter().enumerate().find(is_next)?;
        let (key, lane) = requests.lanes.front()?;
        let (number, request) = lane.first_key_value()?;
        Some((Position { key: *key, number: *number }, request))
    }

    /// Removes a request that is served: the next one, or another first one.
    pub(super) fn serve(&mut self, position: Position) {
        let (served, others_wait) = (position.class(), self.waiting_after(position.class()) > 0);
        for (class, yields) in self.yields.iter_mut().enumerate().take(served + 1) {
            *yields = class == served && others_wait;
        }
        self.class_mut(position).serve(position);
    }

    /// Removes a request that waits no longer, if it is still there.
    pub(super) fn leave(&mut self, position: Position) {
        self.class_mut(position).leave(position);
    }

    /// How many requests are served before this one, if none is added or removed.
    pub(super) fn ahead(&self, position: Position) -> usize {
        let class = position.class();
        let own = self.class(position).ahead(position);
        // Each request of its class is followed by a less urgent one, and each of those by a more urgent one.
        let own = own + self.waiting_after(class).min(own + usize::from(self.yields(class)));
        let more_urgent = self.classes.iter().zip(self.yields).take(class).rev();
        more_urgent.fold(own, |ahead, (class, yields)| ahead + class.len.min(ahead + 1 - usize::from(yields)))
    }

    fn yields(&self, class: usize) -> bool {
        self.yields.get(class).copied().unwrap_or_default()
    }

    fn class(&self, position: Position) -> &RoundRobin<T> {
        self.classes.get(position.class()).expect("there is one for each class")
    }

    fn class_mut(&mut self, position: Position) -> &mut RoundRobin<T> {
        self.classes.get_mut(position.class()).expect("there is one for each class")
    }
}

/// The requests of one caller and tenant, by their numbers.
type Lane<T> = BTreeMap<u64, T>;

/// Requests in lanes; the first request of the first lane is next. No lane is empty.
#[derive(Debug)]
struct RoundRobin<T> {
    lanes: VecDeque<(QueueKey, Lane<T>)>,
    /// Of all lanes.
    len: usize,
}

impl<T> Default for RoundRobin<T> {
    fn default() -> Self {
        Self { lanes: VecDeque::new(), len: 0 }
    }
}

impl<T> RoundRobin<T> {
    fn lane_index(&self, key: QueueKey) -> Option<usize> {
        self.lanes.iter().position(|(other, _)| *other == key)
    }

    fn lane(&self, key: QueueKey) -> Option<&Lane<T>> {
        self.lanes.get(self.lane_index(key)?).map(|(_, lane)| lane)
    }

    fn join(&mut self, Position { key, number }: Position, request: T) {
        self.len += 1;
        match self.lanes.iter_mut().find(|(other, _)| *other == key) {
            Some((_, lane)) => drop(lane.insert(number, request)),
            None => self.lanes.push_back((key, Lane::from([(number, request)]))),
        }
    }

    fn firsts(&self) -> impl Iterator<Item = &T> {
        self.lanes.iter().filter_map(|(_, lane)| lane.values().next())
    }

    /// Removes a request, whose lane comes last then.
    fn serve(&mut self, Position { key, number }: Position) {
        let Some((key, mut lane)) = self.lane_index(key).and_then(|position| self.lanes.remove(position)) else {
            return;
        };
        self.len -= usize::from(lane.remove(&number).is_some());
        if !lane.is_empty() {
            self.lanes.push_back((key, lane));
        }
    }

    fn leave(&mut self, Position { key, number }: Position) {
        let Some(position) = self.lane_index(key) else { return };
        let Some((_, lane)) = self.lanes.get_mut(position) else { return };
        self.len -= usize::from(lane.remove(&number).is_some());
        if lane.is_empty() {
            self.lanes.remove(position);
        }
    }

    /// How many of these are served before a request.
    fn ahead(&self, Position { key, number }: Position) -> usize {
        let Some(own) = self.lane_index(key) else { return 0 };
        let position = self.lanes.get(own).map_or(0, |(_, lane)| lane.range(..number).count());
        // Each lane before it in the round is served once more than each behind it.
        let served = |(other, (_, lane)): (usize, &(QueueKey, Lane<T>))| match other.cmp(&own) {
            std::cmp::Ordering::Less => lane.len().min(position + 1),
            std::cmp::Ordering::Equal => position,
            std::cmp::Ordering::Greater => lane.len().min(position),
        };
        self.lanes.iter().enumerate().map(served).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn read(caller: usize) -> QueueKey {
        QueueKey { caller, tenant: 0, class: Class::Interactive }
    }

    const fn write(caller: usize) -> QueueKey {
        QueueKey { caller, tenant: 0, class: Class::Write }
    }

    const fn batch(caller: usize) -> QueueKey {
        QueueKey { caller, tenant: 0, class: Class::Batch }
    }

    /// A queue of these requests, each known by its index, and their positions.
    fn queue(keys: &[QueueKey]) -> (FairQueue<usize>, Vec<Position>) {
        let mut queue = FairQueue::default();
        let positions = keys.iter().enumerate().map(|(index, key)| queue.join(*key, index)).collect();
        (queue, positions)
    }

    fn serve_next(queue: &mut FairQueue<usize>) -> Option<usize> {
        let (position, next) = queue.next()?;
        let next = *next;
        assert!(queue.is_first(position));
        queue.serve(position);
        Some(next)
    }

    fn order((mut queue, _): (FairQueue<usize>, Vec<Position>)) -> Vec<usize> {
        let order = std::iter::from_fn(|| serve_next(&mut queue)).collect();
        assert!(queue.is_empty());
        order
    }

    #[test]
    fn a_callers_requests_for_two_tenants_are_served_in_turn() {
        let other = QueueKey { tenant: 1, ..read(1) };
        assert_eq!(order(queue(&[read(1), read(1), other, read(1), other])), [0, 2, 1, 4, 3]);
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
        let (mut queue, positions) = queue(&[write(1)]);
        queue.serve(positions[0]);
        queue.join(read(1), 1);
        queue.join(write(1), 2);
        assert_eq!(order((queue, positions)), [2, 1]);
    }

    #[test]
    fn a_caller_that_is_served_out_of_turn_waits_for_the_others_as_usual() {
        let (mut queue, positions) = queue(&[read(1), read(1), read(2), read(3), read(2), write(4)]);
        assert_eq!(queue.firsts().copied().collect::<Vec<_>>(), [5, 0, 2, 3]);
        assert!(queue.is_first(positions[2]) && !queue.is_first(positions[4]));
        queue.serve(positions[2]);
        assert_eq!(order((queue, positions)), [5, 0, 3, 4, 1]);
    }

    #[test]
    fn a_request_that_leaves_does_not_affect_the_order_of_others() {
        let (mut queue, positions) = queue(&[read(1), read(2), write(3), read(1)]);
        for position in [2, 0, 2] {
            queue.leave(positions[position]);
        }
        assert_eq!(order((queue, positions)), [3, 1]);
    }

    #[test]
    fn batch_calls_leave_at_least_every_second_permit_to_others() {
        let reads = [[batch(9); 4].as_slice(), &[read(1); 3]].concat();
        assert_eq!(order(queue(&reads)), [4, 0, 5, 1, 6, 2, 3]);
        let all = [[batch(9); 3].as_slice(), &[read(1); 3], &[write(1); 6]].concat();
        assert_eq!(order(queue(&all)), [6, 3, 7, 0, 8, 4, 9, 1, 10, 5, 11, 2]);
    }

    proptest! {
        /// Each request is served at its reported position, and the requests of each caller in order.
        #[test]
        fn reported_positions_match_the_order_of_service(
            came in proptest::collection::vec((0usize..4, prop::sample::select(vec![Class::Write, Class::Interactive, Class::Batch])), 1..40),
            served in 0usize..20,
            left in proptest::collection::vec(0usize..40, 0..5),
        ) {
            let keys: Vec<_> = came.iter().map(|(caller, class)| QueueKey { caller: *caller, tenant: 0, class: *class }).collect();
            let half = keys.len() / 2;
            let (mut queue, mut positions) = queue(&keys[..half]);
            for _ in 0..served {
                serve_next(&mut queue);
            }
            for (ticket, key) in keys.iter().enumerate().skip(half) {
                positions.push(queue.join(*key, ticket));
            }
            left.iter().filter_map(|left| positions.get(*left)).for_each(|position| queue.leave(*position));
            let ahead: Vec<_> = positions.iter().map(|position| queue.ahead(*position)).collect();
            let order = order((queue, positions));
            for (turn, ticket) in order.iter().enumerate() {
                prop_assert_eq!(ahead[*ticket], turn, "{:?} of {:?}", ticket, order);
            }
            for (turn, ticket) in order.iter().enumerate() {
                let earlier = order[turn..].iter().find(|other| keys[**other] == keys[*ticket] && *other < ticket);
                prop_assert_eq!(earlier, None);
            }
        }
    }
}
