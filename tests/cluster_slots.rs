//! A model of how several replicas share the rate limit towards the platform, searched exhaustively at small bounds: two replicas, of
//! which one may lose Redis and come back, Redis, which may restart with nothing, and a platform that counts a call at any moment
//! between its last byte and `TRANSIT` later.
//!
//! The guarantee: the platform counts at most `RATE` calls in any window of `PER`. Each step of the protocol is left out in turn, and
//! the search must then find a violation.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a failed step is a failed test")]
#![allow(clippy::print_stdout, reason = "how much was searched")]

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use foldhash::fast::RandomState;

// In ticks of half a second.
/// The window.
const PER: i8 = 2;
/// How long after its last byte was sent a call may still be counted.
const TRANSIT: i8 = 1;
/// How long after it took its slot a call may be sent.
const SEND_WITHIN: i8 = 2;
/// Without a heartbeat for so long a replica counts as silent, and takes itself for cut off.
const SILENCE: i8 = 1;
/// Calls in a window, of both replicas together, and of one that is alone.
const RATE: usize = 2;
const SHARE: usize = 1;
/// From the last heartbeat until everything that it covered has been counted, and left the window.
const HOLD: i8 = SILENCE + SEND_WITHIN + TRANSIT + PER;
/// Ticks that are searched.
const END: i8 = 12;
const MAX_STATES: usize = 8_000_000;

/// A step of the protocol that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    None,
    /// A slot is taken for as long as its call may still be sent, be counted, and stay in the window.
    SlotsCoverTheSending,
    /// A call that is not sent in time gives its slot back.
    SendInTime,
    /// The share of a silent replica is left to it.
    LeaveTheShareOfTheSilent,
    /// A replica that is cut off waits before it uses its share.
    WaitBeforeTheShare,
    /// One that returns counts as live only once its own calls have cooled.
    CoolBeforeReturning,
    /// In a new namespace nothing is taken until earlier calls have cooled.
    HoldTheNewNamespace,
}

/// Moments in their order; a place that is not used holds `FREE`.
type Moments = [i8; 6];
const FREE: i8 = i8::MAX;
const NONE: Moments = [FREE; 6];

fn with(mut moments: Moments, moment: i8) -> Option<Moments> {
    let place = moments.iter().position(|other| *other == FREE)?;
    moments[place] = moment;
    moments.sort_unstable();
    Some(moments)
}

fn without(mut moments: Moments, place: usize) -> Moments {
    moments[place] = FREE;
    moments.sort_unstable();
    moments
}

fn retain(mut moments: Moments, keep: impl Fn(i8) -> bool) -> Moments {
    moments.iter_mut().filter(|moment| **moment != FREE && !keep(**moment)).for_each(|moment| *moment = FREE);
    moments.sort_unstable();
    moments
}

fn count(moments: &Moments) -> usize {
    moments.iter().filter(|moment| **moment != FREE).count()
}

/// The connection of the replica that may lose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Link {
    Live,
    /// Cut off since then; its own slot is free again at the second moment.
    Cut {
        last_heartbeat: i8,
        free: i8,
    },
    /// It returned, and was cut off once.
    Returned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    now: i8,
    /// Until when slots are taken in Redis.
    slots: Moments,
    /// When the calls of each replica that were not sent yet took their slots.
    waiting: [Moments; 2],
    /// When Redis last heard of the second replica.
    heartbeat: i8,
    link: Link,
    /// When nothing is taken before in this namespace.
    held_until: i8,
    has_restarted: bool,
    /// When the platform counts the calls that may still share a window with another.
    counted: Moments,
}

impl State {
    const START: Self = Self {
        now: 0,
        slots: NONE,
        waiting: [NONE; 2],
        heartbeat: 0,
        link: Link::Live,
        held_until: 0,
        has_restarted: false,
        counted: NONE,
    };

    /// The platform counts a call at this moment; whether it holds against the limit.
    fn count(mut self, at: i8) -> Option<(Self, bool)> {
        let recent = retain(self.counted, |other| other > self.now - PER - TRANSIT);
        self.counted = with(recent, at)?;
        let is_kept = self.counted.iter().filter(|first| **first != FREE).all(|first| {
            let window = self.counted.iter().filter(|other| (*first..*first + PER).contains(*other));
            window.count() <= RATE
        });
        Some((self, is_kept))
    }
}

/// What happens next, and whether the limit is kept.
type Next = (&'static str, State, bool);

fn next(without_step: Step, s: State) -> Vec<Next> {
    let has = |step: Step| without_step != step;
    let mut all: Vec<Next> = Vec::new();
    let slots = retain(s.slots, |until| until > s.now);
    let s = State { slots, ..s };

    // Redis grants slots. A replica that is silent may use its own share meanwhile.
    let is_silent = s.now - s.heartbeat >= SILENCE;
    let limit = if is_silent && has(Step::LeaveTheShareOfTheSilent) { RATE - SHARE } else { RATE };
    let is_held = s.now < s.held_until && has(Step::HoldTheNewNamespace);
    let until = s.now + TRANSIT + PER + if has(Step::SlotsCoverTheSending) { SEND_WITHIN } else { 0 };
    for replica in 0..2 {
        let is_linked = replica == 0 || !matches!(s.link, Link::Cut { .. });
        if count(&slots) < limit && !is_held && is_linked {
            let (taken, waits) = (with(slots, until), with(s.waiting[replica], s.now));
            if let (Some(taken), Some(waits)) = (taken, waits) {
                let mut state = State { slots: taken, ..s };
                state.waiting[replica] = waits;
                all.push(("a slot is taken", state, true));
            }
        }
        // A call is sent, and Redis hears of it or not.
        for place in 0..count(&s.waiting[replica]) {
            let took = s.waiting[replica][place];
            let mut sent = s;
            sent.waiting[replica] = without(s.waiting[replica], place);
            let shortened = sent.slots.iter().position(|until| *until == took + SEND_WITHIN + TRANSIT + PER);
            for at in [s.now, s.now + TRANSIT] {
                let Some((state, is_kept)) = sent.count(at) else { continue };
                all.push(("a call is sent", state, is_kept));
                if let Some(place) = shortened.filter(|_| is_linked) {
                    let slots = with(without(state.slots, place), s.now + TRANSIT + PER).unwrap();
                    all.push(("a call is sent, Redis hears of it", State { slots, ..state }, is_kept));
                }
            }
        }
    }

    // The second replica loses Redis, uses its own share, and returns.
    match s.link {
        Link::Live => {
            let wait = if has(Step::WaitBeforeTheShare) { HOLD } else { SILENCE };
            let link = Link::Cut { last_heartbeat: s.heartbeat, free: s.heartbeat + wait };
            all.push(("a replica is cut off", State { link, ..s }, true));
        }
        Link::Cut { last_heartbeat, free } => {
            if s.now >= free {
                for at in [s.now, s.now + TRANSIT] {
                    let link = Link::Cut { last_heartbeat, free: s.now + TRANSIT + PER };
                    let Some((state, is_kept)) = (State { link, ..s }).count(at) else { continue };
                    all.push(("a call of the share is sent", state, is_kept));
                }
            }
            if s.now >= free || !has(Step::CoolBeforeReturning) {
                all.push(("the replica returns", State { link: Link::Returned, heartbeat: s.now, ..s }, true));
            }
        }
        Link::Returned => {}
    }

    // Redis restarts with nothing, and hears of the replicas that are linked at once.
    if !s.has_restarted {
        let heartbeat = if matches!(s.link, Link::Cut { .. }) { i8::MIN / 2 } else { s.now };
        let state = State { slots: NONE, held_until: s.now + HOLD, has_restarted: true, heartbeat, ..s };
        all.push(("Redis restarts", state, true));
    }

    if s.now < END {
        let now = s.now + 1;
        let in_time = |took: i8| now - took <= SEND_WITHIN || !has(Step::SendInTime);
        let waiting = s.waiting.map(|waiting| retain(waiting, in_time));
        let heartbeat = if matches!(s.link, Link::Cut { .. }) { s.heartbeat } else { now };
        all.push(("a tick", State { now, waiting, heartbeat, ..s }, true));
    }
    all
}

/// The states that were searched, and the shortest way to a violation.
fn search(without: Step) -> (usize, Option<Vec<String>>) {
    let mut found: HashMap<State, usize, RandomState> = HashMap::default();
    found.insert(State::START, 0);
    let mut all = vec![(State::START, None::<(usize, &'static str)>)];
    let mut index = 0;
    while index < all.len() {
        for (what, state, is_kept) in next(without, all[index].0) {
            if !is_kept {
                let mut way = vec![format!("{what} at {}", state.now)];
                let mut place = index;
                while let Some((before, what)) = all[place].1 {
                    way.push(format!("{what} at {}", all[place].0.now));
                    place = before;
                }
                way.reverse();
                return (all.len(), Some(way));
            }
            let place = all.len();
            if let Entry::Vacant(entry) = found.entry(state) {
                all.push((*entry.key(), Some((index, what))));
                entry.insert(place);
                assert!(all.len() < MAX_STATES, "more than {MAX_STATES} states");
            }
        }
        index += 1;
    }
    (all.len(), None)
}

#[test]
fn the_platform_counts_no_more_than_the_rate_in_any_window() {
    let (states, way) = search(Step::None);
    println!("{states} states");
    assert!(way.is_none(), "{way:#?}");
}

#[test]
fn without_any_one_step_some_order_violates_the_limit() {
    for step in [
        Step::SlotsCoverTheSending,
        Step::SendInTime,
        Step::LeaveTheShareOfTheSilent,
        Step::WaitBeforeTheShare,
        Step::CoolBeforeReturning,
        Step::HoldTheNewNamespace,
    ] {
        let (states, way) = search(step);
        println!("without {step:?}: {states} states");
        assert!(way.is_some(), "{step:?} is not needed, or the model does not see that it is");
    }
}
