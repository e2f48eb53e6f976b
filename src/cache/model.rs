//! A model of the write fence, run in every order of its steps: the real [`Stripe`] and [`Flight`], used by a refresh, a
//! reader and a writer, with a map in place of moka.
//!
//! The guarantee (read-your-writes): a read that starts after a write was answered sees that write. Each step of the fence is left out in turn,
//! and the model must then find an order that violates the guarantee.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use loom::sync::{Condvar, Mutex};
use loom::thread;

use super::RequestCacheControl;
use super::entry::{Generation, Question, Subject};
use super::flight::Flight;
use super::stripe::{Cached, Stripe};
use crate::clock::Boot;

/// A step of the fence that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// No step is left out.
    None,
    /// A write removes flights from the stripe.
    RemoveFlights,
    /// A write removes what is cached from the stripe.
    RemoveEntry,
    /// What is removed from the stripe is marked as invalid.
    MarkInvalid,
    /// A read by a reference checks that mark.
    ReferenceChecksMark,
    /// A flight stores its answer only while it is in the stripe.
    StoreOnlyInFlight,
    /// A write invalidates before its caller is answered.
    InvalidateBeforeAnswer,
    /// A lookup checks the generation, which a tenant-wide write changes.
    LookupChecksGeneration,
    /// A read by a reference checks the generation.
    ReferenceChecksGeneration,
    /// A read does not join a flight of another generation.
    JoinChecksGeneration,
    /// Once an answer was added to moka, its mark is checked.
    TrackChecksMark,
}

/// Whether a write's customer is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteTo {
    Customer,
    Unknown,
}

/// What is cached: the number of writes that it has seen, and the generation in which it was fetched.
struct Entry {
    subject: Subject,
    value: u64,
    generation: u32,
    invalid: AtomicBool,
    is_marked: bool,
}

impl Cached for Entry {
    fn subject(&self) -> &Subject {
        &self.subject
    }

    fn invalidate(&self) {
        if self.is_marked {
            self.invalid.store(true, Ordering::SeqCst);
        }
    }
}

struct Model {
    without: Step,
    write_to: WriteTo,
    /// What the platform would answer now: the number of writes that it has executed.
    platform: AtomicU64,
    /// The number of writes whose callers were answered.
    answered: AtomicU64,
    /// Changed by tenant-wide writes.
    generation: AtomicU32,
    /// In place of moka, by their addresses: each access is one step.
    moka: Mutex<HashMap<usize, Arc<Entry>>>,
    /// In place of a memo of hits: a reference to what was served.
    reference: Mutex<Option<Arc<Entry>>>,
    stripe: Mutex<Shared>,
    completed: Condvar,
}

#[derive(Default)]
struct Shared {
    stripe: Stripe<(), Entry>,
    /// The outcome of each flight, by its address, which the flight keeps unique.
    outcomes: HashMap<usize, (Arc<Flight<()>>, Option<u64>)>,
}

fn question() -> Question {
    Question { subject: Subject::customer(0, "1"), key: "k".into() }
}

const BOOT: Boot = Boot::from_duration(Duration::from_secs(1));

impl Model {
    /// What may be served to a request of a generation.
    fn find(&self, shared: &Shared, generation: u32) -> Option<Arc<Entry>> {
        let is_current =
            |entry: &&Arc<Entry>| self.without == Step::LookupChecksGeneration || entry.generation == generation;
        shared.stripe.answers(&question().subject).find(is_current).cloned()
    }

    fn lookup(&self, generation: u32) -> Option<u64> {
        let entry = self.find(&self.stripe.lock().unwrap(), generation)?;
        *self.reference.lock().unwrap() = Some(Arc::clone(&entry));
        Some(entry.value)
    }

    /// Reads what the reference leads to, as a request does that repeats an earlier one.
    fn recall(&self) -> Option<u64> {
        let entry = self.reference.lock().unwrap().clone()?;
        let is_current = self.without == Step::ReferenceChecksGeneration
            || entry.generation == self.generation.load(Ordering::SeqCst);
        let is_valid = self.without == Step::ReferenceChecksMark || !entry.invalid.load(Ordering::SeqCst);
        (is_current && is_valid).then_some(entry.value)
    }

    /// As the gateway does: by the reference, else look up, then join or begin, then fetch, then store.
    fn read(&self) -> u64 {
        if let Some(value) = self.recall() {
            return value;
        }
        let generation = self.generation.load(Ordering::SeqCst);
        if let Some(value) = self.lookup(generation) {
            return value;
        }
        let mut shared = self.stripe.lock().unwrap();
        if let Some(entry) = self.find(&shared, generation) {
            return entry.value;
        }
        let of_generation = Generation { tenant: generation, rules: 0 };
        let may_join = |flight: &&Arc<Flight<()>>| {
            self.without == Step::JoinChecksGeneration || flight.generation == of_generation
        };
        if let Some(flight) = shared.stripe.flight(&question()).filter(may_join) {
            let address = Arc::as_ptr(flight) as usize;
            while shared.outcomes[&address].1.is_none() {
                shared = self.completed.wait(shared).unwrap();
            }
            return shared.outcomes[&address].1.unwrap();
        }
        let flight = Flight::new(of_generation, BOOT, &RequestCacheControl::default(), BOOT);
        let address = Arc::as_ptr(&flight) as usize;
        shared.stripe.add_flight(question(), Arc::clone(&flight));
        shared.outcomes.insert(address, (Arc::clone(&flight), None));
        drop(shared);

        let value = self.platform.load(Ordering::SeqCst);

        let mut shared = self.stripe.lock().unwrap();
        let in_flight = shared.stripe.remove_flight(&question(), &flight) || self.without == Step::StoreOnlyInFlight;
        let is_current = self.generation.load(Ordering::SeqCst) == generation;
        let mut stored = None;
        if in_flight && is_current {
            let (subject, is_marked) = (question().subject, self.without != Step::MarkInvalid);
            let removed = shared.stripe.remove(&subject, |_| true);
            let entry = Arc::new(Entry { subject, value, generation, invalid: AtomicBool::new(false), is_marked });
            shared.stripe.add(Arc::clone(&entry));
            stored = Some((entry, removed));
        }
        shared.outcomes.insert(address, (flight, Some(value)));
        self.completed.notify_all();
        drop(shared);
        if let Some((entry, removed)) = stored {
            self.untrack(&removed);
            self.track(&entry);
        }
        value
    }

    /// Adds an answer, which is in the stripe, to moka.
    fn track(&self, entry: &Arc<Entry>) {
        self.moka.lock().unwrap().insert(Arc::as_ptr(entry) as usize, Arc::clone(entry));
        if self.without != Step::TrackChecksMark && entry.invalid.load(Ordering::SeqCst) {
            self.untrack(std::slice::from_ref(entry));
        }
    }

    /// Removes answers, which were removed from the stripe, from moka.
    fn untrack(&self, entries: &[Arc<Entry>]) {
        for entry in entries {
            self.moka.lock().unwrap().remove(&(Arc::as_ptr(entry) as usize));
        }
    }

    fn write(&self) {
        let written = self.platform.fetch_add(1, Ordering::SeqCst) + 1;
        if self.without == Step::InvalidateBeforeAnswer {
            self.answered.store(written, Ordering::SeqCst);
        }
        match self.write_to {
            WriteTo::Customer => {
                let (mut shared, subject) = (self.stripe.lock().unwrap(), question().subject);
                let removed = match self.without {
                    Step::RemoveFlights => shared.stripe.remove(&subject, |_| true),
                    Step::RemoveEntry => {
                        shared.stripe.remove_flights(&subject);
                        Vec::new()
                    }
                    _ => shared.stripe.invalidate(&subject, BOOT, BOOT),
                };
                drop(shared);
                self.answered.store(written, Ordering::SeqCst);
                self.untrack(&removed);
            }
            WriteTo::Unknown => {
                self.generation.fetch_add(1, Ordering::SeqCst);
                self.answered.store(written, Ordering::SeqCst);
            }
        }
    }

    fn checked_read(&self) {
        let answered = self.answered.load(Ordering::SeqCst);
        let value = self.read();
        assert!(value >= answered, "a read that started after write {answered} was answered with {value}");
    }
}

/// A refresh, a write and a read run concurrently; once they are done, another read follows.
fn run(without: Step, write_to: WriteTo) {
    let model = Arc::new(Model {
        without,
        write_to,
        platform: AtomicU64::new(0),
        answered: AtomicU64::new(0),
        generation: AtomicU32::new(0),
        moka: Mutex::default(),
        reference: Mutex::new(None),
        stripe: Mutex::new(Shared::default()),
        completed: Condvar::new(),
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
    let (moka, shared, subject) = (model.moka.lock().unwrap(), model.stripe.lock().unwrap(), question().subject);
    let current = shared.stripe.answers(&subject).map(|entry| Arc::as_ptr(entry) as usize);
    assert!(moka.keys().copied().eq(current), "moka holds what the stripe holds");
    drop((moka, shared));
    model.checked_read();
}

/// The maximum number of preemptions in one order; every order within this bound is tried.
const PREEMPTIONS: usize = 3;

/// Whether the guarantee holds in every order.
fn holds(without: Step, write_to: WriteTo) -> bool {
    let orders = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&orders);
    let check = move || {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(PREEMPTIONS);
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            run(without, write_to);
        });
    };
    let held = std::panic::catch_unwind(check).is_ok();
    println!("without {without:?}, write to {write_to:?}: {} orders, held: {held}", orders.load(Ordering::Relaxed));
    held
}

#[test]
fn in_every_order_a_read_after_a_write_sees_that_write() {
    assert!(holds(Step::None, WriteTo::Customer));
    assert!(holds(Step::None, WriteTo::Unknown));
}

#[test]
fn without_any_one_step_some_order_violates_the_guarantee() {
    for step in [
        Step::RemoveFlights,
        Step::RemoveEntry,
        Step::MarkInvalid,
        Step::ReferenceChecksMark,
        Step::StoreOnlyInFlight,
        Step::InvalidateBeforeAnswer,
        Step::TrackChecksMark,
    ] {
        assert!(!holds(step, WriteTo::Customer), "{step:?} is not needed, or the model does not see that it is");
    }
    for step in [
        Step::InvalidateBeforeAnswer,
        Step::LookupChecksGeneration,
        Step::ReferenceChecksGeneration,
        Step::JoinChecksGeneration,
    ] {
        assert!(!holds(step, WriteTo::Unknown), "{step:?} is not needed, or the model does not see that it is");
    }
}
