//! The queue for upstream's pace: first come, first served, each for a bounded time.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Claim, Limited, Slots};
use crate::clock::{Boot, Clock};
use crate::route::Route;
use crate::settings::PaceSettings;
use crate::tenant::Tenant;

/// Paths under one wildcard that have a pace of their own, as long as they need one; further ones share one, which is
/// never too fast.
const MAX_PATHS: usize = 256;

/// The pace of one tenant and route.
#[derive(Debug)]
pub struct Pace {
    queue: Mutex<Queue>,
    clock: Clock,
    settings: PaceSettings,
}

#[derive(Debug)]
struct Queue {
    slots: Slots,
    waiting: VecDeque<Arc<Notify>>,
}

impl Queue {
    fn wake_first(&self) {
        if let Some(first) = self.waiting.front() {
            first.notify_one();
        }
    }
}

impl Pace {
    fn new(settings: PaceSettings, clock: &Clock) -> Arc<Self> {
        let queue = Queue { slots: Slots::new(&settings, clock.boot()), waiting: VecDeque::new() };
        Arc::new(Self { queue: Mutex::new(queue), clock: clock.clone(), settings })
    }

    /// Waits for a turn, `max_wait` at most. Leaving the queue frees the place.
    ///
    /// # Errors
    /// At once where no turn can come in time, else when the time is over.
    pub async fn turn(self: &Arc<Self>, max_wait: Duration) -> Result<Turn, Limited> {
        if self.settings.rate == 0 {
            return Ok(Turn(None));
        }
        let arrived = self.clock.boot();
        let ticket = Arc::new(Notify::new());
        {
            let mut queue = self.queue.lock();
            let earliest = queue.slots.earliest(queue.waiting.len(), arrived);
            if earliest.since(arrived) > max_wait {
                return Err(self.limited(earliest.since(arrived)));
            }
            queue.waiting.push_back(Arc::clone(&ticket));
        }
        let place = Place { pace: self, ticket };
        loop {
            let now = self.clock.boot();
            let next = match place.step(now) {
                Step::Turn(claim) => return Ok(Turn(Some((Arc::clone(self), claim)))),
                Step::Wait(next) => next,
            };
            let left = (arrived + max_wait).since(now);
            if left.is_zero() {
                return Err(self.limited(place.earliest(now).since(now)));
            }
            let pause = next.map_or(left, |next| next.since(now).min(left));
            // Either the time has come, or something changed: look again.
            let _ = tokio::time::timeout(pause, place.ticket.notified()).await;
        }
    }

    /// A turn that nobody waits for, at once or not at all.
    pub fn spare_turn(self: &Arc<Self>) -> Option<Turn> {
        if self.settings.rate == 0 {
            return Some(Turn(None));
        }
        let mut queue = self.queue.lock();
        let claim = if queue.waiting.is_empty() { queue.slots.take(self.clock.boot()) } else { None };
        claim.map(|claim| Turn(Some((Arc::clone(self), claim))))
    }

    fn limited(&self, retry_after: Duration) -> Limited {
        Limited { quota: self.settings.rate, per: self.settings.per, retry_after }
    }
}

enum Step {
    Turn(Claim),
    /// Until then nothing changes by itself; `None`: only the others can change it.
    Wait(Option<Boot>),
}

/// A place in the queue, left when dropped.
struct Place<'a> {
    pace: &'a Pace,
    ticket: Arc<Notify>,
}

impl Place<'_> {
    fn step(&self, now: Boot) -> Step {
        let mut queue = self.pace.queue.lock();
        if !queue.waiting.front().is_some_and(|first| Arc::ptr_eq(first, &self.ticket)) {
            return Step::Wait(None);
        }
        queue.slots.take(now).map_or_else(|| Step::Wait(queue.slots.next_free()), Step::Turn)
    }

    /// The earliest moment at which this place can come to its turn.
    fn earliest(&self, now: Boot) -> Boot {
        let queue = self.pace.queue.lock();
        let ahead = queue.waiting.iter().position(|ticket| Arc::ptr_eq(ticket, &self.ticket));
        queue.slots.earliest(ahead.unwrap_or_default(), now)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queue = self.pace.queue.lock();
        queue.waiting.retain(|ticket| !Arc::ptr_eq(ticket, &self.ticket));
        queue.wake_first();
    }
}

/// Leave to make one call. Its slot cools from what becomes of the call; dropped before the call left, it is free again.
#[derive(Debug)]
pub struct Turn(Option<(Arc<Pace>, Claim)>);

impl Turn {
    /// The call's last byte left just now.
    pub fn sent(&self) {
        self.tell(Slots::sent);
    }

    /// The call was answered just now.
    pub fn answered(&self) {
        self.tell(Slots::answered);
    }

    fn tell(&self, change: impl FnOnce(&mut Slots, Claim, Boot)) {
        if let Some((pace, claim)) = &self.0 {
            let mut queue = pace.queue.lock();
            change(&mut queue.slots, *claim, pace.clock.boot());
            queue.wake_first();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.tell(|slots, claim, _| slots.given_up(claim));
    }
}

/// The paces of all tenants and routes.
#[derive(Debug)]
pub struct Paces {
    /// By tenant, then by route.
    all: Vec<Vec<RoutePace>>,
    clock: Clock,
}

#[derive(Debug)]
struct RoutePace {
    settings: PaceSettings,
    /// The pace of an exact route, or of the paths beyond the limit under a wildcard.
    common: Arc<Pace>,
    paths: Mutex<HashMap<String, Arc<Pace>>>,
}

impl Paces {
    /// A route's pace wins over its tenant's, and that over the one for all.
    pub fn new(tenants: &[Arc<Tenant>], routes: &[Option<PaceSettings>], base: PaceSettings, clock: &Clock) -> Self {
        let one = |settings| RoutePace { settings, common: Pace::new(settings, clock), paths: Mutex::default() };
        let of_tenant =
            |tenant: &Arc<Tenant>| routes.iter().map(|route| one(route.or(tenant.pace).unwrap_or(base))).collect();
        Self { all: tenants.iter().map(of_tenant).collect(), clock: clock.clone() }
    }

    /// The pace of a tenant's calls to a path.
    pub fn of(&self, tenant: &Tenant, route: &Route, path: &str) -> Arc<Pace> {
        let pace = self.of_route(tenant.index, route.index);
        if !route.wildcard {
            return Arc::clone(&pace.common);
        }
        let mut paths = pace.paths.lock();
        if let Some(known) = paths.get(path) {
            return Arc::clone(known);
        }
        if paths.len() >= MAX_PATHS {
            let now = self.clock.boot();
            paths.retain(|_, pace| Arc::strong_count(pace) > 1 || !pace.queue.lock().slots.are_all_free(now));
        }
        if paths.len() >= MAX_PATHS {
            return Arc::clone(&pace.common);
        }
        let new = Pace::new(pace.settings, &self.clock);
        paths.insert(path.to_owned(), Arc::clone(&new));
        new
    }

    /// Calls that a tenant and route, given by their indices, are allowed in one window; 0: no pace.
    pub fn rate(&self, tenant: usize, route: usize) -> u32 {
        self.of_route(tenant, route).settings.rate
    }

    fn of_route(&self, tenant: usize, route: usize) -> &RoutePace {
        self.all.get(tenant).and_then(|routes| routes.get(route)).expect("one was made for each tenant and route")
    }
}
