//! A model of how several replicas end a write together, searched exhaustively at small bounds: a replica that writes, a replica that
//! reads, Redis between them with two connections, messages in flight, lost connections, restarts and crashes.
//!
//! The guarantee: a read that starts after a write's answer was released returns data that was fetched after the write; a `no-cache`
//! read returns what the platform had when the read started, or newer. Each step of the protocol is left out in turn, and the search
//! must then find a violation.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a failed step is a failed test")]
#![allow(clippy::print_stdout, reason = "how much was searched")]

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use foldhash::fast::RandomState;

/// How long a replica may serve from memory after it sent a heartbeat that was answered, in ticks.
const LEASE: i8 = 2;
/// States beyond which a search is given up.
const MAX_STATES: usize = 6_000_000;

/// What is written: about one customer, or about nobody known, which ends everything of its tenant. A purge has no write at the
/// platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    Customer,
    Tenant,
    Purge,
}

/// How much of everything may happen.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    ticks: i8,
    /// Fetches of the reading replica.
    reads: u8,
    /// Whether some of them are of callers that send `no-cache`.
    no_cache: bool,
    heartbeats: u8,
    /// Lost connections and restarts of the reading replica.
    reconnects: u8,
    restarts_of_redis: u8,
    /// Jumps of Redis' clock, which the reading replica notices first: a new namespace begins beside the one in which its writer still is.
    jumps: u8,
}

/// A step of the protocol that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    None,
    /// The answer is released only after *end* was answered.
    AfterEnd,
    /// It is released only once every member has acknowledged, or the lease has passed.
    Hold,
    /// In a namespace that its writer first heard of less than a lease ago, the lease is waited for: others may not have noticed
    /// yet that theirs is gone, and it does not list them.
    HoldInYoungNamespace,
    /// If *end* fails, the lease is waited for.
    HoldAfterFailure,
    /// *end* fails in a namespace that is not the current one, and is sent again in that.
    EndChecksNamespace,
    /// A new connection makes everything in memory unservable, and takes flights out of their stripe.
    DropOnReconnect,
    /// *end* takes flights out of their stripe, so that they are not kept.
    EndTakesFlights,
    /// *end* drops what is in memory.
    EndDropsMemory,
    /// Messages on the control connection are handled in their order.
    Ordered,
    /// Memory is served only with the right to do so.
    HitNeedsRight,
    /// A flight is joined only with that right.
    JoinNeedsRight,
    /// A shared answer is stored only under an unmoved number of its customer.
    StoreChecksNumber,
    /// And of its tenant.
    StoreChecksTenant,
    /// A shared answer is returned only under these numbers, too.
    SharedChecksTenant,
    /// A `no-cache` read joins no flight that was already sent.
    NoCacheJoinsUnsent,
    /// A `no-cache` read does not use a shared answer.
    NoCacheIgnoresShared,
    /// What a `no-cache` read brought moves the number of its customer, and is shared under the new one only if the old one was that
    /// under which it began.
    SupersedeChecksNumber,
    /// A replica drops what it holds once more when its own end is executed: it may have got shared answers since it dropped it first.
    OwnEndApplied,
    /// The same if its end fails.
    DropOnFailure,
    /// As long as its end is not published, it asks for no shared answers.
    AskOnlyPublished,
}

/// The numbers of a fence: the customer's and the tenant's. Those of one namespace are never those of another.
type Numbers = (u8, u8);

/// What Redis executes next on a connection, and what it sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Command {
    Heartbeat(i8),
    /// A miss: the shared answer, or a lease with the numbers.
    Miss {
        no_cache: bool,
    },
    Store(u8, Numbers),
    /// Moves the number, and then the same.
    Supersede(u8, Numbers),
}

/// What comes on the control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Event {
    End,
    /// The reply to the end, if the reader is the writer.
    EndReply,
    /// The reply to the heartbeat that was sent then.
    Heartbeat(i8),
}

/// What comes on the data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reply {
    Lease(Numbers),
    Shared(u8),
}

/// A fetch of the reading replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Flight {
    stage: Stage,
    /// Whether it stands in its stripe: it may be joined, and what it brings is kept.
    in_stripe: bool,
    no_cache: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Asked,
    Leased(Numbers),
    /// The platform read this version.
    Read(u8, Numbers),
}

/// How far the write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Writing {
    Nothing,
    Executed,
    Answered,
    EndSent,
    EndExecuted {
        lists_reader: bool,
    },
    EndReplied {
        lists_reader: bool,
        at: i8,
    },
    /// *end* failed, and so did its publication until now.
    EndFailed {
        at: i8,
    },
    /// It was published later.
    PublishedLate {
        failed: i8,
    },
    Crashed,
}

/// A few messages in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Queue<T>([Option<T>; QUEUE]);

/// As many as a queue holds.
const QUEUE: usize = 3;
/// Numbers that nothing is stored under.
const UNSHARED: Numbers = (u8::MAX, u8::MAX);

impl<T: Copy> Queue<T> {
    const fn new() -> Self {
        Self([None; QUEUE])
    }

    fn first(&self) -> Option<T> {
        self.0[0]
    }

    fn has_two(&self) -> bool {
        self.0[QUEUE - 2].is_none()
    }

    fn has_room(&self) -> bool {
        self.0[QUEUE - 1].is_none()
    }

    fn push(&mut self, message: T) {
        *self.0.iter_mut().find(|place| place.is_none()).expect("room was checked") = Some(message);
    }

    fn remove(&mut self, place: usize) {
        self.0[place] = None;
        self.0[place..].rotate_left(1);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    now: i8,
    /// The platform's version: 1 once the write was executed.
    version: u8,
    // Redis.
    numbers: Numbers,
    knows_reader: bool,
    shared: Option<(u8, Numbers)>,
    // The writing replica.
    writing: Writing,
    /// When it first heard of this namespace.
    namespace_since: i8,
    acknowledgement: Acknowledgement,
    is_released: bool,
    /// Whether the writer is in an earlier namespace than the reader.
    is_behind: bool,
    // The reading replica.
    is_connected: bool,
    right_until: i8,
    memory: Option<u8>,
    flight: Option<Flight>,
    /// The least version that the read which waits for the flight must get.
    waits_for: Option<u8>,
    // In flight, on the control and the data connection.
    control: Queue<Command>,
    data: Queue<Command>,
    events: Queue<Event>,
    replies: Queue<Reply>,
    // Used up.
    reads: u8,
    heartbeats: u8,
    reconnects: u8,
    restarts: u8,
    jumps: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Acknowledgement {
    None,
    Sent,
    Arrived,
}

/// Where a search starts.
#[derive(Clone, Copy, Debug)]
enum Start {
    /// The reader has the answer in memory, and the right to serve it.
    Warm,
    /// The answer is shared, and the reader has nothing.
    Shared,
    /// The answer is shared, and the reader is not connected.
    Late,
    /// Nobody has anything.
    Cold,
}

const STARTS: [Start; 4] = [Start::Warm, Start::Shared, Start::Late, Start::Cold];

impl State {
    fn new(start: Start, write: Write) -> Self {
        let (writing, version) = match write {
            Write::Customer | Write::Tenant => (Writing::Nothing, 0),
            Write::Purge => (Writing::Answered, 1),
        };
        let is_warm = matches!(start, Start::Warm);
        Self {
            now: 0,
            version,
            numbers: (0, 0),
            knows_reader: is_warm,
            shared: (!matches!(start, Start::Cold)).then_some((0, (0, 0))),
            writing,
            namespace_since: -LEASE,
            acknowledgement: Acknowledgement::None,
            is_released: false,
            is_behind: false,
            is_connected: !matches!(start, Start::Late),
            right_until: if is_warm { LEASE } else { -1 },
            memory: is_warm.then_some(0),
            flight: None,
            waits_for: None,
            control: Queue::new(),
            data: Queue::new(),
            events: Queue::new(),
            replies: Queue::new(),
            reads: 0,
            heartbeats: 0,
            reconnects: 0,
            restarts: 0,
            jumps: 0,
        }
    }

    /// An empty namespace begins, in which the reader is not yet.
    fn begin_namespace(&mut self) {
        // Fresh numbers: those of one namespace match nothing in another.
        let fresh = 10 * (self.restarts + self.jumps);
        (self.numbers, self.shared, self.knows_reader) = ((fresh, fresh), None, false);
        self.disconnect();
    }

    /// A write ends in the reader.
    fn end_here(&mut self) {
        self.memory = None;
        if let Some(flight) = &mut self.flight {
            flight.in_stripe = false;
        }
    }

    /// The least version that a read which starts now must get.
    fn demand(&self, no_cache: bool) -> u8 {
        if no_cache { self.version } else { u8::from(self.is_released) }
    }

    /// The reader's connections are gone, with everything on them.
    fn disconnect(&mut self) {
        self.is_connected = false;
        (self.control, self.data) = (Queue::new(), Queue::new());
        (self.events, self.replies) = (Queue::new(), Queue::new());
    }

    /// Takes the flight out of its stripe; one that waits for Redis fails.
    fn drop_flight(&mut self) {
        match &mut self.flight {
            Some(Flight { stage: Stage::Asked, .. }) => (self.flight, self.waits_for) = (None, None),
            Some(flight) => flight.in_stripe = false,
            None => {}
        }
    }
}

/// What happens next, and whether it violates the guarantee.
struct Next {
    what: &'static str,
    state: State,
    is_violation: bool,
}

struct Model {
    without: Step,
    write: Write,
    /// Whether the reading replica is the one that writes.
    is_own: bool,
    bounds: Bounds,
    /// Whether a write whose replica crashed counts as ended for its caller.
    crash_releases: bool,
}

impl Model {
    fn has(&self, step: Step) -> bool {
        self.without != step
    }

    fn next(&self, state: &State) -> Vec<Next> {
        let mut all = Vec::new();
        if state.now < self.bounds.ticks {
            all.push(self.to("a tick", state, |s| s.now += 1));
        }
        self.writer(state, &mut all);
        self.connections(state, &mut all);
        self.jumps(state, &mut all);
        self.redis(state, &mut all);
        self.messages(state, &mut all);
        self.platform(state, &mut all);
        self.reads(state, &mut all);
        all
    }

    fn to(&self, what: &'static str, state: &State, change: impl FnOnce(&mut State)) -> Next {
        let mut state = *state;
        change(&mut state);
        Next { what, state, is_violation: false }
    }

    fn writer(&self, s: &State, all: &mut Vec<Next>) {
        match s.writing {
            Writing::Nothing => all.push(self.to("the platform executes the write", s, |s| {
                (s.writing, s.version) = (Writing::Executed, 1);
            })),
            Writing::Executed => all.push(self.to("writer: answered", s, |s| {
                s.writing = Writing::Answered;
                if self.is_own {
                    s.end_here();
                }
            })),
            Writing::Answered if self.is_own && !s.is_connected => {}
            Writing::Answered => all.push(self.to("writer: sends end", s, |s| s.writing = Writing::EndSent)),
            Writing::EndSent if self.is_own && !s.is_connected => all.push(self.to("writer: end is lost", s, |s| {
                s.writing = Writing::Answered;
            })),
            Writing::EndSent if s.is_behind && self.has(Step::EndChecksNamespace) => {
                all.push(self.to("redis: rejects end", s, |s| s.writing = Writing::Answered));
            }
            Writing::EndSent if s.is_behind => all.push(self.to("redis: executes end in the old namespace", s, |s| {
                s.writing = Writing::EndExecuted { lists_reader: true };
            })),
            Writing::EndSent if s.events.has_two() => all.push(self.to("redis: executes end", s, |s| {
                match self.write {
                    Write::Customer | Write::Purge => s.numbers.0 += 1,
                    Write::Tenant => s.numbers.1 += 1,
                }
                s.writing = Writing::EndExecuted { lists_reader: s.knows_reader && !self.is_own };
                if s.is_connected {
                    s.events.push(Event::End);
                }
                if self.is_own {
                    s.events.push(Event::EndReply);
                }
            })),
            // It comes after its event, on the same connection; if that is lost, the end is sent again.
            Writing::EndExecuted { .. } if self.is_own => {
                if !s.is_connected {
                    all.push(self.to("writer: end's reply is lost", s, |s| s.writing = Writing::Answered));
                }
            }
            Writing::EndFailed { at } if self.is_own && s.is_connected && s.events.has_room() => {
                all.push(self.to("redis: executes the end that was missed", s, |s| {
                    s.numbers.0 += 1;
                    s.events.push(Event::End);
                    s.writing = Writing::PublishedLate { failed: at };
                }));
            }
            Writing::EndExecuted { lists_reader } => all.push(self.to("writer: end is answered", s, |s| {
                s.writing = Writing::EndReplied { lists_reader, at: s.now };
            })),
            Writing::EndSent
            | Writing::EndReplied { .. }
            | Writing::EndFailed { .. }
            | Writing::PublishedLate { .. }
            | Writing::Crashed => {}
        }
        // It is not connected, or Redis refuses it.
        if self.is_own && s.writing == Writing::Answered {
            all.push(self.to("writer: end fails", s, |s| {
                s.writing = Writing::EndFailed { at: s.now };
                if self.has(Step::DropOnFailure) {
                    s.end_here();
                }
            }));
        }
        let may_release = match s.writing {
            Writing::Answered | Writing::EndSent | Writing::EndExecuted { .. } => !self.has(Step::AfterEnd),
            Writing::EndReplied { lists_reader, at } => {
                let is_young = s.now < s.namespace_since + LEASE && self.has(Step::HoldInYoungNamespace);
                let all_acknowledged = s.acknowledgement == Acknowledgement::Arrived || !lists_reader;
                !self.has(Step::Hold) || s.now >= at + LEASE || (all_acknowledged && !is_young)
            }
            Writing::EndFailed { at } | Writing::PublishedLate { failed: at } => {
                !self.has(Step::HoldAfterFailure) || s.now >= at + LEASE
            }
            Writing::Crashed => self.crash_releases,
            Writing::Nothing | Writing::Executed => false,
        };
        if may_release && !s.is_released {
            all.push(self.to("writer: RELEASES the answer", s, |s| s.is_released = true));
        }
        if s.acknowledgement == Acknowledgement::Sent {
            all.push(self.to("writer: is acknowledged", s, |s| s.acknowledgement = Acknowledgement::Arrived));
        }
        // What is never released violates nothing.
        if self.crash_releases && !matches!(s.writing, Writing::Nothing | Writing::Crashed) && !s.is_released {
            all.push(self.to("writer: crashes", s, |s| s.writing = Writing::Crashed));
        }
    }

    fn connections(&self, s: &State, all: &mut Vec<Next>) {
        if s.reconnects < self.bounds.reconnects {
            if s.is_connected {
                all.push(self.to("reader: connection lost", s, |s| {
                    s.reconnects += 1;
                    s.disconnect();
                }));
            }
            if !self.is_own {
                all.push(self.to("reader: restarts", s, |s| {
                    s.reconnects += 1;
                    s.disconnect();
                    (s.memory, s.flight, s.waits_for, s.right_until) = (None, None, None, -1);
                }));
            }
        }
        if !s.is_connected {
            all.push(self.to("reader: connected, subscribed", s, |s| {
                s.is_connected = true;
                s.right_until = -1;
                if self.has(Step::DropOnReconnect) {
                    s.memory = None;
                    s.drop_flight();
                } else if let Some(Flight { stage: Stage::Asked, .. }) = s.flight {
                    (s.flight, s.waits_for) = (None, None);
                }
            }));
        }
        if s.is_connected && s.heartbeats < self.bounds.heartbeats && s.control.has_room() {
            all.push(self.to("reader: sends a heartbeat", s, |s| {
                s.heartbeats += 1;
                let now = s.now;
                s.control.push(Command::Heartbeat(now));
            }));
        }
        if s.restarts < self.bounds.restarts_of_redis {
            all.push(self.to("redis: restarts, and the writer reconnects", s, |s| {
                s.restarts += 1;
                s.begin_namespace();
                (s.namespace_since, s.is_behind) = (s.now, false);
                if let (Writing::EndSent | Writing::EndExecuted { .. }, false) = (s.writing, self.is_own) {
                    s.writing = Writing::EndFailed { at: s.now };
                }
            }));
        }
    }

    fn jumps(&self, s: &State, all: &mut Vec<Next>) {
        if s.jumps < self.bounds.jumps {
            all.push(self.to("redis: its clock jumps, and the reader notices", s, |s| {
                s.jumps += 1;
                s.begin_namespace();
                s.is_behind = !self.is_own;
            }));
        }
        if s.is_behind {
            all.push(self.to("writer: notices the jump", s, |s| (s.namespace_since, s.is_behind) = (s.now, false)));
        }
    }

    fn redis(&self, s: &State, all: &mut Vec<Next>) {
        if let Some(Command::Heartbeat(sent)) = s.control.first().filter(|_| s.events.has_room()) {
            all.push(self.to("redis: executes a heartbeat", s, |s| {
                s.control.remove(0);
                s.knows_reader = true;
                s.events.push(Event::Heartbeat(sent));
            }));
        }
        match s.data.first() {
            Some(Command::Miss { no_cache }) if s.replies.has_room() => {
                all.push(self.to("redis: executes a miss", s, |s| {
                    s.data.remove(0);
                    let numbers = s.numbers;
                    let is_current = |stored: &Numbers| {
                        stored.0 == numbers.0 && (stored.1 == numbers.1 || !self.has(Step::SharedChecksTenant))
                    };
                    let shared = s.shared.filter(|(_, stored)| is_current(stored));
                    let uses_shared = !no_cache || !self.has(Step::NoCacheIgnoresShared);
                    s.replies.push(match shared.filter(|_| uses_shared) {
                        Some((version, _)) => Reply::Shared(version),
                        None => Reply::Lease(numbers),
                    });
                }));
            }
            Some(Command::Supersede(version, numbers)) if s.events.has_room() => {
                all.push(self.to("redis: executes a supersede", s, |s| {
                    s.data.remove(0);
                    let is_unmoved = s.numbers == numbers || !self.has(Step::SupersedeChecksNumber);
                    // A number that no other end makes.
                    s.numbers.0 += 5;
                    s.shared = is_unmoved.then_some((version, s.numbers));
                }));
            }
            Some(Command::Store(version, numbers)) => all.push(self.to("redis: executes a store", s, |s| {
                s.data.remove(0);
                let mut stored = numbers;
                if !self.has(Step::StoreChecksNumber) {
                    stored.0 = s.numbers.0;
                }
                if !self.has(Step::StoreChecksTenant) {
                    stored.1 = s.numbers.1;
                }
                if stored == s.numbers {
                    s.shared = Some((version, stored));
                }
            })),
            _ => {}
        }
    }

    fn messages(&self, s: &State, all: &mut Vec<Next>) {
        let is_other = |event: &Option<Event>| event.is_some_and(|event| event != Event::End);
        let disordered = s.events.0.iter().position(is_other).filter(|_| !self.has(Step::Ordered));
        let next = [s.events.first().map(|_| 0), disordered.filter(|place| *place > 0)];
        for place in next.into_iter().flatten() {
            match s.events.0[place].unwrap() {
                Event::EndReply => all.push(self.to("writer: end is answered", s, |s| {
                    s.events.remove(place);
                    s.writing = Writing::EndReplied { lists_reader: false, at: s.now };
                })),
                Event::End if self.is_own && !self.has(Step::OwnEndApplied) => {
                    all.push(self.to("reader: ignores its own end", s, |s| s.events.remove(place)));
                }
                Event::End => all.push(self.to("reader: hears end, acknowledges", s, |s| {
                    s.events.remove(place);
                    if self.has(Step::EndDropsMemory) {
                        s.memory = None;
                    }
                    if let Some(flight) = s.flight.as_mut().filter(|_| self.has(Step::EndTakesFlights)) {
                        flight.in_stripe = false;
                    }
                    if s.acknowledgement == Acknowledgement::None {
                        s.acknowledgement = Acknowledgement::Sent;
                    }
                })),
                Event::Heartbeat(sent) => all.push(self.to("reader: has the right", s, |s| {
                    s.events.remove(place);
                    s.right_until = s.right_until.max(sent + LEASE);
                })),
            }
        }
        match (s.replies.first(), s.flight) {
            (Some(Reply::Lease(numbers)), Some(flight)) => all.push(self.to("reader: has the lease", s, |s| {
                s.replies.remove(0);
                s.flight = Some(Flight { stage: Stage::Leased(numbers), ..flight });
            })),
            (Some(Reply::Shared(version)), Some(flight)) => {
                all.push(self.lands("reader: the shared answer", s, flight, version, |s| {
                    s.replies.remove(0);
                }));
            }
            (Some(_), None) => all.push(self.to("reader: nobody waits", s, |s| {
                s.replies.remove(0);
            })),
            (None, _) => {}
        }
    }

    fn platform(&self, s: &State, all: &mut Vec<Next>) {
        match s.flight {
            Some(flight @ Flight { stage: Stage::Leased(numbers), .. }) => {
                all.push(self.to("the platform answers the reader's fetch", s, |s| {
                    s.flight = Some(Flight { stage: Stage::Read(s.version, numbers), ..flight });
                }));
            }
            Some(flight @ Flight { stage: Stage::Read(version, numbers), .. }) => {
                all.push(self.lands("reader: the fetch lands", s, flight, version, |s| {
                    if s.is_connected && s.data.has_room() {
                        let lands = if flight.no_cache { Command::Supersede } else { Command::Store };
                        s.data.push(lands(version, numbers));
                    }
                }));
                // Never to who wants a new fetch. The right need not be checked again: whoever waits had it when their read started,
                // and since then memory has become newer, if anything.
                if let (Some(stale), Some(demand), false) = (s.memory, s.waits_for, flight.no_cache) {
                    let mut fails = self.to("reader: the fetch fails, a stale answer is served", s, |s| {
                        (s.flight, s.waits_for) = (None, None);
                    });
                    fails.is_violation = stale < demand;
                    all.push(fails);
                }
            }
            Some(Flight { stage: Stage::Asked, .. }) | None => {}
        }
    }

    /// An answer of this version ends the flight.
    fn lands(
        &self,
        what: &'static str,
        s: &State,
        flight: Flight,
        version: u8,
        change: impl FnOnce(&mut State),
    ) -> Next {
        let mut next = self.to(what, s, |s| {
            change(s);
            if flight.in_stripe {
                s.memory = Some(version);
            }
            (s.flight, s.waits_for) = (None, None);
        });
        next.is_violation = s.waits_for.is_some_and(|demand| version < demand);
        next
    }

    fn reads(&self, s: &State, all: &mut Vec<Next>) {
        let has_right = s.now < s.right_until;
        let is_published = !self.is_own || !matches!(s.writing, Writing::EndFailed { .. });
        if let Some(version) = s.memory.filter(|_| has_right || !self.has(Step::HitNeedsRight)) {
            let mut hit = self.to("reader: a hit", s, |_| {});
            hit.is_violation = version < s.demand(false);
            if hit.is_violation {
                all.push(hit);
            }
        }
        for no_cache in [false, true].into_iter().take(1 + usize::from(self.bounds.no_cache)) {
            let demand = s.demand(no_cache);
            match s.flight {
                Some(flight) if flight.in_stripe => {
                    let was_sent = matches!(flight.stage, Stage::Read(..));
                    let joins_as_wished =
                        !no_cache || (flight.no_cache && !was_sent) || !self.has(Step::NoCacheJoinsUnsent);
                    if joins_as_wished && (has_right || !self.has(Step::JoinNeedsRight)) {
                        all.push(self.to("reader: a read joins the flight", s, |s| {
                            s.waits_for = Some(s.waits_for.unwrap_or(0).max(demand));
                        }));
                    }
                }
                // One flight at a time is enough.
                Some(_) => {}
                // It misses, or what is in memory is stale and it refreshes that.
                None if s.is_connected && has_right && s.data.has_room() && s.reads < self.bounds.reads => {
                    all.push(self.to("reader: a read fetches", s, |s| {
                        s.reads += 1;
                        s.waits_for = Some(demand);
                        s.flight = Some(Flight { stage: Stage::Asked, in_stripe: true, no_cache });
                        if !is_published && self.has(Step::AskOnlyPublished) {
                            // It asks nobody, and its answer is not shared.
                            s.flight = Some(Flight { stage: Stage::Leased(UNSHARED), in_stripe: true, no_cache });
                        } else {
                            s.data.push(Command::Miss { no_cache });
                        }
                    }));
                }
                None => {}
            }
        }
    }
}

/// The states that were searched, and the shortest way to a violation.
fn search(model: &Model, start: Start) -> (usize, Option<Vec<&'static str>>) {
    let first = State::new(start, model.write);
    let mut found: HashMap<State, usize, RandomState> = HashMap::default();
    found.insert(first, 0);
    let mut all = vec![(first, None::<(usize, &'static str)>)];
    let mut index = 0;
    while index < all.len() {
        for Next { what, state, is_violation } in model.next(&all[index].0) {
            if is_violation {
                let mut way = vec![what];
                let mut place = index;
                while let Some((before, what)) = all[place].1 {
                    way.push(what);
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

/// Searched one after another, since everything at once is more than can be.
const BOUNDS: [Bounds; 4] = [
    Bounds { ticks: 3, reads: 2, no_cache: false, heartbeats: 2, reconnects: 1, restarts_of_redis: 0, jumps: 0 },
    Bounds { ticks: 3, reads: 2, no_cache: false, heartbeats: 2, reconnects: 0, restarts_of_redis: 1, jumps: 0 },
    Bounds { ticks: 3, reads: 2, no_cache: true, heartbeats: 1, reconnects: 0, restarts_of_redis: 0, jumps: 0 },
    Bounds { ticks: 3, reads: 2, no_cache: false, heartbeats: 2, reconnects: 0, restarts_of_redis: 0, jumps: 1 },
];

/// The shortest way to a violation from any start, within any bounds. `is_own`: through the replica that reads.
fn violation(without: Step, write: Write, is_own: bool) -> Option<Vec<&'static str>> {
    BOUNDS.into_iter().flat_map(|bounds| STARTS.map(|start| (bounds, start))).find_map(|(bounds, start)| {
        let (states, way) = search(&Model { without, write, is_own, bounds, crash_releases: false }, start);
        let result = if way.is_none() { "holds" } else { "violated" };
        println!("without {without:?}, {write:?}, own {is_own}, {start:?}, {bounds:?}: {states} states, {result}");
        way
    })
}

#[test]
fn whoever_reads_after_a_write_was_released_sees_it_on_every_replica() {
    for write in [Write::Customer, Write::Tenant, Write::Purge] {
        let way = violation(Step::None, write, false);
        assert!(way.is_none(), "{write:?}: {way:#?}");
    }
    let way = violation(Step::None, Write::Customer, true);
    assert!(way.is_none(), "through the same replica: {way:#?}");
}

#[test]
fn without_any_one_step_some_order_violates_the_guarantee() {
    for step in [
        Step::AfterEnd,
        Step::Hold,
        Step::HoldInYoungNamespace,
        Step::HoldAfterFailure,
        Step::EndChecksNamespace,
        Step::DropOnReconnect,
        Step::EndTakesFlights,
        Step::EndDropsMemory,
        Step::Ordered,
        Step::HitNeedsRight,
        Step::JoinNeedsRight,
        Step::StoreChecksNumber,
        Step::NoCacheJoinsUnsent,
        Step::NoCacheIgnoresShared,
        Step::SupersedeChecksNumber,
    ] {
        let way = violation(step, Write::Customer, false);
        assert!(way.is_some(), "{step:?} is not needed, or the model does not see that it is");
    }
    for step in [Step::StoreChecksTenant, Step::SharedChecksTenant] {
        let way = violation(step, Write::Tenant, false);
        assert!(way.is_some(), "{step:?} is not needed, or the model does not see that it is");
    }
    for step in [Step::OwnEndApplied, Step::DropOnFailure, Step::AskOnlyPublished] {
        let way = violation(step, Write::Customer, true);
        assert!(way.is_some(), "{step:?} is not needed, or the model does not see that it is");
    }
}

/// What the documentation excludes is really excluded: nobody ends a write whose replica died before it could.
#[test]
fn a_writer_that_dies_before_the_end_leaves_others_with_what_they_hold() {
    let model =
        Model { without: Step::None, write: Write::Customer, is_own: false, bounds: BOUNDS[0], crash_releases: true };
    let (_, way) = search(&model, Start::Warm);
    assert!(way.is_some_and(|way| way.contains(&"writer: crashes")));
}
