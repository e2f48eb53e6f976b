//! The cache compared with a simple oracle, over random lists, clock steps, requests, faults and writes.
//!
//! The oracle has no stripes, references or freshness: for each question it holds the last answer that may be served, and checks
//! it against the guarantees at each read.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::answer::{Answer, Contents, End, Verdict};
use crate::clock::Wall;
use crate::settings::Lifetimes;

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

/// An event. Customers are 0 and 1, questions 0 to 3; the customer of a question is its remainder modulo 2.
#[derive(Clone, Debug)]
enum Event {
    Pass(i64),
    StepWall(i64),
    Begin(usize),
    Complete(prop::sample::Index, Received),
    Write(usize),
    WriteToUnknown,
    Read(usize),
}

#[derive(Clone, Debug)]
enum Received {
    /// Ends of coupons, in seconds from now on the wall clock, and whether each coupon is unused.
    List(Vec<(i64, bool)>),
    Exception,
    Failure,
    Lost,
}

fn any_event() -> impl Strategy<Value = Event> {
    let received = prop_oneof![
        6 => proptest::collection::vec((-20i64..80, any::<bool>()), 0..4).prop_map(Received::List),
        1 => Just(Received::Exception),
        1 => Just(Received::Failure),
        1 => Just(Received::Lost),
    ];
    prop_oneof![
        4 => (0i64..12).prop_map(Event::Pass),
        1 => (-60i64..60).prop_map(Event::StepWall),
        4 => (0usize..4).prop_map(Event::Begin),
        5 => (any::<prop::sample::Index>(), received).prop_map(|(which, received)| Event::Complete(which, received)),
        1 => (0usize..2).prop_map(Event::Write),
        1 => Just(Event::WriteToUnknown),
        8 => (0usize..4).prop_map(Event::Read),
    ]
}

/// An answer that may be served, as the oracle models it, with times in seconds.
#[derive(Clone, Debug)]
struct Servable {
    body: String,
    received: i64,
    ttl: i64,
    stale: bool,
    /// The first end in the future: on the wall clock, and the corresponding time since boot.
    end: Option<(i64, i64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    Fresh,
    WhileRevalidating,
    IfError,
    Not,
}

impl Servable {
    fn served(&self, boot: i64, wall: i64) -> Served {
        if self.end.is_some_and(|(on_wall, on_boot)| wall >= on_wall - MARGIN || boot >= on_boot - MARGIN) {
            return Served::Not;
        }
        let age = boot - self.received;
        match age - self.ttl {
            ..0 => Served::Fresh,
            past if self.stale && past < REVALIDATE => Served::WhileRevalidating,
            past if self.stale && past < IF_ERROR => Served::IfError,
            _ => Served::Not,
        }
    }
}

struct InFlight {
    question: usize,
    guard: FetchGuard<()>,
    sent: (i64, i64),
    /// Completed writes to its customer when it began.
    fences: u64,
}

struct World {
    cache: Arc<Cache<()>>,
    boot: i64,
    wall: i64,
    in_flight: Vec<InFlight>,
    servable: [Option<Servable>; 4],
    /// References to the answers that were served fresh, the newest last.
    references: [Vec<AnswerRef>; 4],
    fences: [u64; 2],
    settled: [i64; 2],
    completed: u64,
}

fn question(number: usize) -> Question {
    Question { subject: Subject::customer(0, &(number % 2).to_string()), key: number.to_string().into() }
}

impl World {
    fn new() -> Self {
        let counter = || IntCounter::new("name", "help").unwrap();
        let metrics =
            CacheMetrics { entries: IntGauge::new("name", "help").unwrap(), expired: counter(), size: counter() };
        let options =
            Options { max_bytes: 1 << 24, max_waiters: 9, tenants: 1, rules: 0, unsettled_ttl: seconds(UNSETTLED) };
        // Customers that the settle table takes for one another only expire sooner, which is more than the oracle knows.
        let customers = ["0", "1"].map(|customer| Subject::customer(0, customer));
        let cache = loop {
            let cache = Cache::new(&options, metrics.clone());
            if !cache.stripes.share_settle_slot(&customers[0], &customers[1]) {
                break Arc::new(cache);
            }
        };
        Self {
            cache,
            boot: START,
            wall: START,
            in_flight: Vec::new(),
            servable: [const { None }; 4],
            references: [const { Vec::new() }; 4],
            fences: [0; 2],
            settled: [0; 2],
            completed: 0,
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
                // Whatever it frees is not served any more.
                self.cache.run_maintenance(self.now());
            }
            Event::StepWall(step) => self.wall += step,
            Event::Begin(number) => {
                let default = RequestCacheControl::default();
                let begun = self.cache.join(&question(number), self.cache.generation(0, 0), &default, self.now());
                if let Join::Started(guard, _) = begun {
                    let fences = self.fences[number % 2];
                    self.in_flight.push(InFlight { question: number, guard, sent: (self.boot, self.wall), fences });
                }
            }
            Event::Complete(which, received) if !self.in_flight.is_empty() => {
                let in_flight = self.in_flight.swap_remove(which.index(self.in_flight.len()));
                self.complete(in_flight, received);
            }
            Event::Complete(..) => {}
            Event::Write(customer) => {
                let settle_until = Boot::from_duration(seconds(self.boot + SETTLE));
                self.cache.invalidate(&question(customer).subject, settle_until, self.now());
                self.fence(customer);
            }
            Event::WriteToUnknown => {
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
            self.servable[number] = None;
        }
    }

    fn complete(&mut self, in_flight: InFlight, received: Received) {
        let InFlight { question, guard, sent, fences } = in_flight;
        self.completed += 1;
        let body = self.completed.to_string();
        let (sent_boot, sent_wall) = sent;
        let verdict = match &received {
            Received::Lost => return guard.fail(()),
            Received::Failure => Verdict::Http5xx,
            Received::Exception => Verdict::Exception,
            Received::List(coupons) => Verdict::Success(Contents {
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
        let decision = StoreDecision::of(&verdict, &LIFETIMES, sent.wall, sent, self.now());
        let answer = Answer::new(200, body.as_bytes());
        guard.complete(answer, decision, sent.boot, self.now());

        // The same in the oracle.
        let coupons = match received {
            Received::Lost | Received::Failure => return,
            Received::Exception => Vec::new(),
            Received::List(coupons) => coupons,
        };
        if self.fences[question % 2] != fences {
            return;
        }
        let ahead = coupons.iter().map(|(end, _)| self.wall + end).filter(|end| *end > sent_wall.min(self.wall)).min();
        let end =
            ahead.map(|end| (end, (sent_boot + (end - sent_wall).max(0)).min(self.boot + (end - self.wall).max(0))));
        let unsettled = coupons.iter().any(|(end, open)| *open && *end <= 0);
        let settles = sent_boot < self.settled[question % 2];
        let ttl = if coupons.is_empty() { NEGATIVE } else { TTL };
        let ttl = if unsettled || settles { ttl.min(UNSETTLED) } else { ttl };
        let stale = !coupons.is_empty() && !unsettled && !settles;
        let servable = Servable { body, received: self.boot, ttl, stale, end };
        let lives = servable.served(self.boot, self.wall) == Served::Fresh;
        self.servable[question] = lives.then_some(servable);
    }

    fn read(&mut self, number: usize) {
        let (now, generation) = (self.now(), self.cache.generation(0, 0));
        let text = |answer: &Answer| String::from_utf8(answer.body.to_vec()).unwrap();
        let servable = self.servable[number].as_ref();
        let wanted = servable.map_or(Served::Not, |servable| servable.served(self.boot, self.wall));
        // What a reference leads to is what would be looked up, or nothing.
        for reference in &self.references[number] {
            if let Some(hit) = reference.fresh(&RequestCacheControl::default(), now) {
                assert_eq!(wanted, Served::Fresh, "question {number} by reference: {servable:?}");
                assert_eq!(Some(text(&hit.answer())), servable.map(|servable| servable.body.clone()));
            }
        }
        let (served, body) =
            match self.cache.lookup(&question(number), generation, &RequestCacheControl::default(), now) {
                Lookup::Fresh(hit) => {
                    let reference = self.cache.reference(&hit).unwrap();
                    let recalled = reference.fresh(&RequestCacheControl::default(), now).unwrap();
                    assert!(Arc::ptr_eq(&recalled.cached, &hit.cached), "a reference leads to its answer");
                    self.references[number].push(reference);
                    (Served::Fresh, Some(text(&hit.answer())))
                }
                Lookup::Stale(hit, _) => (Served::WhileRevalidating, Some(text(&hit.answer()))),
                Lookup::Miss => match self.cache.stale_for_error(&question(number), generation, now) {
                    Some(hit) => (Served::IfError, Some(text(&hit.answer()))),
                    None => (Served::Not, None),
                },
            };
        assert_eq!(
            served, wanted,
            "question {number}: {servable:?} at {} on boot, {} on the wall",
            self.boot, self.wall
        );
        assert_eq!(body.as_ref(), servable.map(|servable| &servable.body).filter(|_| wanted != Served::Not));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]
    #[test]
    fn the_cache_serves_exactly_what_the_oracle_does(events in proptest::collection::vec(any_event(), 1..60)) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
        }
    }
}
