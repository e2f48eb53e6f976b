//! The cache against a simple oracle, over random lists, clocks, steps, requests, faults and writes.
//!
//! The oracle knows nothing of stripes, shelves or lives: for each question it holds the last answer that may be told,
//! and judges it anew by the contract's words each time that it is asked for.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::answer::{Contents, End, Verdict};
use crate::clock::Wall;

const TTL: i64 = 30;
const NEGATIVE: i64 = 4;
const UNSETTLED: i64 = 3;
const REVALIDATE: i64 = 10;
const IF_ERROR: i64 = 25;
const MARGIN: i64 = 1;
const SETTLE: i64 = 5;
const START: i64 = 1_000_000;

const fn seconds(number: i64) -> Duration {
    Duration::from_secs(number.unsigned_abs())
}

const LIFETIMES: Lifetimes = Lifetimes {
    ttl: seconds(TTL),
    negative_ttl: seconds(NEGATIVE),
    unsettled_ttl: seconds(UNSETTLED),
    stale_while_revalidate: seconds(REVALIDATE),
    stale_if_error: seconds(IF_ERROR),
    expiry_margin: seconds(MARGIN),
};

/// What happens next. Customers are 0 and 1, questions 0 to 3; a question is about the customer of its remainder.
#[derive(Clone, Debug)]
enum Event {
    Pass(i64),
    StepWall(i64),
    Begin(usize),
    Land(prop::sample::Index, Came),
    Write(usize),
    WriteToNobodyKnowsWhom,
    Read(usize),
}

#[derive(Clone, Debug)]
enum Came {
    /// Ends of coupons, in seconds from now on the wall clock, and whether each coupon is unused.
    List(Vec<(i64, bool)>),
    Exception,
    Failure,
    Lost,
}

fn any_event() -> impl Strategy<Value = Event> {
    let came = prop_oneof![
        6 => proptest::collection::vec((-20i64..80, any::<bool>()), 0..4).prop_map(Came::List),
        1 => Just(Came::Exception),
        1 => Just(Came::Failure),
        1 => Just(Came::Lost),
    ];
    prop_oneof![
        4 => (0i64..12).prop_map(Event::Pass),
        1 => (-60i64..60).prop_map(Event::StepWall),
        4 => (0usize..4).prop_map(Event::Begin),
        5 => (any::<prop::sample::Index>(), came).prop_map(|(which, came)| Event::Land(which, came)),
        1 => (0usize..2).prop_map(Event::Write),
        1 => Just(Event::WriteToNobodyKnowsWhom),
        8 => (0usize..4).prop_map(Event::Read),
    ]
}

/// An answer that may be told, in the oracle's words: seconds on the clock since boot, or on the wall.
#[derive(Clone, Debug)]
struct Tellable {
    body: String,
    received: i64,
    ttl: i64,
    stale: bool,
    /// The first end that lay ahead: on the wall, and as it was to be reached on the clock since boot.
    end: Option<(i64, i64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Fresh,
    Revalidating,
    InPlaceOfFailure,
    Not,
}

impl Tellable {
    fn told(&self, boot: i64, wall: i64) -> Told {
        if self.end.is_some_and(|(on_wall, on_boot)| wall >= on_wall - MARGIN || boot >= on_boot - MARGIN) {
            return Told::Not;
        }
        let age = boot - self.received;
        match age - self.ttl {
            ..0 => Told::Fresh,
            past if self.stale && past < REVALIDATE => Told::Revalidating,
            past if self.stale && past < IF_ERROR => Told::InPlaceOfFailure,
            _ => Told::Not,
        }
    }
}

struct Flying {
    question: usize,
    landing: Landing<()>,
    sent: (i64, i64),
    /// Writes to its customer that had ended when it began.
    fences: u64,
}

struct World {
    cache: Arc<Cache<()>>,
    boot: i64,
    wall: i64,
    flying: Vec<Flying>,
    tellable: [Option<Tellable>; 4],
    fences: [u64; 2],
    settled: [i64; 2],
    landed: u64,
}

fn question(number: usize) -> Question {
    Question { subject: Subject::customer(0, &(number % 2).to_string()), key: number.to_string().into() }
}

impl World {
    fn new() -> Self {
        let counter = || IntCounter::new("name", "help").unwrap();
        let tally = Tally { entries: IntGauge::new("name", "help").unwrap(), expired: counter(), size: counter() };
        let options = Options { max_bytes: 1 << 24, max_waiters: 9, tenants: 1, unsettled_ttl: seconds(UNSETTLED) };
        Self {
            cache: Arc::new(Cache::new(&options, tally)),
            boot: START,
            wall: START,
            flying: Vec::new(),
            tellable: [const { None }; 4],
            fences: [0; 2],
            settled: [0; 2],
            landed: 0,
        }
    }

    fn now(&self) -> Now {
        Now { wall: Wall::from_unix_seconds(self.wall), boot: Boot::from_duration(seconds(self.boot)) }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Pass(time) => {
                self.boot += time;
                self.wall += time;
            }
            Event::StepWall(step) => self.wall += step,
            Event::Begin(number) => {
                let begun = self.cache.join(&question(number), &Demand::default(), self.cache.era(0), None, self.now());
                if let Entry::Begun(landing, _) = begun {
                    let fences = self.fences[number % 2];
                    self.flying.push(Flying { question: number, landing, sent: (self.boot, self.wall), fences });
                }
            }
            Event::Land(which, came) if !self.flying.is_empty() => {
                let flying = self.flying.swap_remove(which.index(self.flying.len()));
                self.land(flying, came);
            }
            Event::Land(..) => {}
            Event::Write(customer) => {
                let settled = Boot::from_duration(seconds(self.boot + SETTLE));
                self.cache.invalidate(&question(customer).subject, settled, self.now());
                self.fence(customer);
            }
            Event::WriteToNobodyKnowsWhom => {
                self.cache.invalidate_tenant(0, Boot::from_duration(seconds(self.boot + SETTLE)));
                self.fence(0);
                self.fence(1);
            }
            Event::Read(number) => self.read(number),
        }
    }

    fn fence(&mut self, customer: usize) {
        self.fences[customer] += 1;
        self.settled[customer] = self.boot + SETTLE;
        for number in [customer, customer + 2] {
            self.tellable[number] = None;
        }
    }

    fn land(&mut self, flying: Flying, came: Came) {
        let Flying { question, landing, sent, fences } = flying;
        self.landed += 1;
        let body = self.landed.to_string();
        let (sent_boot, sent_wall) = sent;
        let verdict = match &came {
            Came::Lost => return landing.fail(()),
            Came::Failure => Verdict::Http5xx,
            Came::Exception => Verdict::Exception,
            Came::List(coupons) => Verdict::Success(Contents {
                ends: coupons.iter().map(|(end, _)| Wall::from_unix_seconds(self.wall + end)).collect(),
                open: coupons
                    .iter()
                    .filter(|(_, open)| *open)
                    .map(|(end, _)| Some(End::At(Wall::from_unix_seconds(self.wall + end))))
                    .collect(),
                empty: coupons.is_empty(),
            }),
        };
        let sent = Now { wall: Wall::from_unix_seconds(sent_wall), boot: Boot::from_duration(seconds(sent_boot)) };
        let fate = Fate::of(&verdict, &LIFETIMES, sent, self.now());
        let answer = Answer { status: 200, content_type: None, rare: None, body: body.as_bytes().into() };
        landing.answer(Arc::new(answer), fate, sent.boot, self.now());

        // The oracle's own account of the same.
        let coupons = match came {
            Came::Lost | Came::Failure => return,
            Came::Exception => Vec::new(),
            Came::List(coupons) => coupons,
        };
        if self.fences[question % 2] != fences {
            return;
        }
        let ahead = coupons.iter().map(|(end, _)| self.wall + end).filter(|end| *end > sent_wall.min(self.wall)).min();
        let end =
            ahead.map(|end| (end, (sent_boot + (end - sent_wall).max(0)).min(self.boot + (end - self.wall).max(0))));
        let unsettled = coupons.iter().any(|(end, open)| *open && *end <= 0);
        let settling = sent_boot < self.settled[question % 2];
        let ttl = if coupons.is_empty() { NEGATIVE } else { TTL };
        let ttl = if unsettled || settling { ttl.min(UNSETTLED) } else { ttl };
        let stale = !coupons.is_empty() && !unsettled && !settling;
        let tellable = Tellable { body, received: self.boot, ttl, stale, end };
        let lives = tellable.told(self.boot, self.wall) == Told::Fresh;
        self.tellable[question] = lives.then_some(tellable);
    }

    fn read(&self, number: usize) {
        let now = self.now();
        let text = |answer: &Answer| String::from_utf8(answer.body.to_vec()).unwrap();
        let (told, body) = match self.cache.look(&question(number), &Demand::default(), now) {
            Found::Fresh(hit) => (Told::Fresh, Some(text(&hit.answer))),
            Found::Stale(hit, _) => (Told::Revalidating, Some(text(&hit.answer))),
            Found::Nothing => match self.cache.stand_in(&question(number), now) {
                Some(hit) => (Told::InPlaceOfFailure, Some(text(&hit.answer))),
                None => (Told::Not, None),
            },
        };
        let tellable = self.tellable[number].as_ref();
        let wanted = tellable.map_or(Told::Not, |tellable| tellable.told(self.boot, self.wall));
        assert_eq!(told, wanted, "question {number}: {tellable:?} at {} on boot, {} on the wall", self.boot, self.wall);
        assert_eq!(body.as_ref(), tellable.map(|tellable| &tellable.body).filter(|_| wanted != Told::Not));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]
    #[test]
    fn the_cache_tells_exactly_what_the_oracle_does(events in proptest::collection::vec(any_event(), 1..60)) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
        }
    }
}
