//! A model of the write fence, run in every order that its steps can come in: the real [`Stripe`] and [`Flight`] rules
//! between a reader, a refresh and a writer, with a plain map for the shelves.
//!
//! The law: a read that starts after a write's answer sees that write. Each step of the fence is taken out in turn, and
//! the model must then find the order in which the law breaks.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use loom::sync::atomic::AtomicU64;
use loom::sync::{Condvar, Mutex};
use loom::thread;

use super::flight::Flight;
use super::shelf::{Question, Subject};
use super::stripe::Stripe;
use crate::clock::Boot;

/// A step of the fence that can be taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// None is.
    None,
    /// A write takes flights out of the stripe.
    TakeFlightsOut,
    /// A write drops what is kept.
    DropKept,
    /// A flight keeps its answer only while it is in the stripe.
    KeepOnlyInTime,
    /// A write fences before its caller hears of it.
    FenceBeforeAnswer,
    /// A tenant-wide write moves the era, which a look checks.
    LookChecksEra,
    /// Nobody joins a flight of another era.
    JoinChecksEra,
}

/// Whom a write names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Customer,
    Nobody,
}

struct Model {
    without: Step,
    names: Names,
    /// What upstream would answer now: how many writes it has carried out.
    upstream: AtomicU64,
    /// How many writes their callers have heard of.
    heard: AtomicU64,
    /// Looked at without a lock, as moka's map and the era are: each look is one step.
    kept: Mutex<Kept>,
    stripe: Mutex<Flights>,
    landed: Condvar,
}

#[derive(Default)]
struct Kept {
    era: u64,
    /// An answer, and the era that it was asked for in.
    shelf: Option<(u64, u64)>,
}

#[derive(Default)]
struct Flights {
    stripe: Stripe<()>,
    /// What each flight came to, by its address; kept alive with it.
    outcomes: HashMap<usize, (Arc<Flight<()>>, Option<u64>)>,
}

fn question() -> Question {
    Question { subject: Subject::customer(0, "1"), key: "k".into() }
}

const BOOT: Boot = Boot::from_duration(Duration::from_secs(1));

impl Model {
    /// One step that nobody can come between.
    fn kept<T>(&self, step: impl FnOnce(&mut Kept) -> T) -> T {
        step(&mut self.kept.lock().unwrap())
    }

    fn look(&self) -> Option<u64> {
        let unchecked = self.without == Step::LookChecksEra;
        self.kept(|kept| kept.shelf.filter(|(_, era)| unchecked || *era == kept.era).map(|(value, _)| value))
    }

    /// As the gateway does: look, then join or begin, then ask, then land.
    fn read(&self) -> u64 {
        if let Some(value) = self.look() {
            return value;
        }
        let era = self.kept(|kept| kept.era);
        let joinable = |flight: &&Arc<Flight<()>>| self.without == Step::JoinChecksEra || flight.era == era;
        let mut flights = self.stripe.lock().unwrap();
        if let Some(flight) = flights.stripe.flights.get(&question()).filter(joinable) {
            let address = Arc::as_ptr(flight) as usize;
            while flights.outcomes[&address].1.is_none() {
                flights = self.landed.wait(flights).unwrap();
            }
            return flights.outcomes[&address].1.unwrap();
        }
        let flight = Flight::new(era, BOOT);
        let address = Arc::as_ptr(&flight) as usize;
        flights.stripe.flights.insert(question(), Arc::clone(&flight));
        flights.outcomes.insert(address, (Arc::clone(&flight), None));
        drop(flights);

        let value = self.upstream.load(Ordering::SeqCst);

        let mut flights = self.stripe.lock().unwrap();
        let in_time = flights.stripe.take_out(&question(), &flight) || self.without == Step::KeepOnlyInTime;
        if in_time {
            self.kept(|kept| kept.shelf = Some((value, era)));
        }
        flights.outcomes.insert(address, (flight, Some(value)));
        self.landed.notify_all();
        value
    }

    fn write(&self) {
        let written = self.upstream.fetch_add(1, Ordering::SeqCst) + 1;
        if self.without == Step::FenceBeforeAnswer {
            self.heard.store(written, Ordering::SeqCst);
        }
        match self.names {
            Names::Customer => {
                let mut flights = self.stripe.lock().unwrap();
                if self.without != Step::TakeFlightsOut {
                    flights.stripe.fence(&question().subject, BOOT, BOOT);
                }
                if self.without != Step::DropKept {
                    self.kept(|kept| kept.shelf = None);
                }
            }
            Names::Nobody => self.kept(|kept| kept.era += 1),
        }
        self.heard.store(written, Ordering::SeqCst);
    }

    fn checked_read(&self) {
        let heard = self.heard.load(Ordering::SeqCst);
        let value = self.read();
        assert!(value >= heard, "a read that started after write {heard} was answered with {value}");
    }
}

/// A refresh begins, a write comes, and a reader reads once beside them; when all are done, another reads.
fn run(without: Step, names: Names) {
    let model = Arc::new(Model {
        without,
        names,
        upstream: AtomicU64::new(0),
        heard: AtomicU64::new(0),
        kept: Mutex::new(Kept::default()),
        stripe: Mutex::new(Flights::default()),
        landed: Condvar::new(),
    });
    let threads = [
        thread::spawn({
            let model = Arc::clone(&model);
            move || {
                model.read();
            }
        }),
        thread::spawn({
            let model = Arc::clone(&model);
            move || model.write()
        }),
        thread::spawn({
            let model = Arc::clone(&model);
            move || model.checked_read()
        }),
    ];
    for thread in threads {
        thread.join().unwrap();
    }
    model.checked_read();
}

/// A thread is interrupted in the middle so many times at most in one order: every order within that bound is tried.
const PREEMPTIONS: usize = 3;

/// Whether the law holds in every order.
fn holds(without: Step, names: Names) -> bool {
    let orders = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&orders);
    let check = move || {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(PREEMPTIONS);
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            run(without, names);
        });
    };
    let held = std::panic::catch_unwind(check).is_ok();
    println!("without {without:?}, naming {names:?}: {} orders, held: {held}", orders.load(Ordering::Relaxed));
    held
}

#[test]
fn no_order_of_steps_tells_a_read_what_was_true_before_a_write_it_came_after() {
    assert!(holds(Step::None, Names::Customer));
    assert!(holds(Step::None, Names::Nobody));
}

#[test]
fn without_any_one_step_some_order_does() {
    for step in [Step::TakeFlightsOut, Step::DropKept, Step::KeepOnlyInTime, Step::FenceBeforeAnswer] {
        assert!(!holds(step, Names::Customer), "{step:?} is not needed, or the model does not see that it is");
    }
    for step in [Step::FenceBeforeAnswer, Step::LookChecksEra, Step::JoinChecksEra] {
        assert!(!holds(step, Names::Nobody), "{step:?} is not needed, or the model does not see that it is");
    }
}
