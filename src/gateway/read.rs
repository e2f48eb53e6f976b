//! Cached routes: from the cache, from a call under way, or from a new one.

use std::sync::Arc;
use std::time::Duration;

use super::ask::{Allowance, Unanswered};
use super::{Arrival, Begun, Gateway};
use crate::answer::Reader;
use crate::cache::{Bound, Entry, Fate, Hit, Landed, Landing, Lifetimes, Question, Subject, Waiter};
use crate::clock::{Boot, Now};
use crate::metrics::{LifeBound, Lookup};
use crate::reply::{Refusal, Reply, Unavailable, Way};
use crate::route::Route;
use crate::settings::CachedSettings;
use crate::signer::Call;
use crate::upstream::Reuse;

impl Gateway {
    pub(super) fn read(self: &Arc<Self>, arrival: &Arrival<'_>, cached: &CachedSettings) -> Result<Begun, Refusal> {
        let (question, demand) = (question(arrival, cached), arrival.demand);
        let lookups = &self.metrics.route(arrival.route.index).lookups;
        let saved = &self.metrics.call(arrival.tenant.index, arrival.route.index).saved;
        let now = self.clock.now();
        if let Some(hit) = self.cache.look(&question, &demand, now) {
            return Ok(Begun::Answered(self.hit(arrival, &hit, now)));
        }
        if demand.only_if_cached {
            lookups.of(Lookup::Miss).inc();
            return Err(Refusal::NotCached);
        }
        match self.cache.join(&question, &demand, now) {
            Entry::Hit(hit) => Ok(Begun::Answered(self.hit(arrival, &hit, now))),
            Entry::Joined(waiter) => {
                lookups.of(Lookup::Collapsed).inc();
                saved.inc();
                Ok(Begun::Flight(waiter, Some(Way::Collapsed)))
            }
            Entry::Begun(landing, waiter) => {
                lookups.of(Lookup::Miss).inc();
                self.tasks.spawn(Arc::clone(self).fly(Flight::of(arrival, cached), landing));
                Ok(Begun::Flight(waiter, demand.no_cache.then_some(Way::Requested)))
            }
            Entry::Crowded => Err(Refusal::Unavailable(Unavailable::Waiters)),
        }
    }

    fn hit(&self, arrival: &Arrival<'_>, hit: &Hit, now: Now) -> Reply {
        let found = if hit.life.negative { Lookup::NegativeHit } else { Lookup::Hit };
        self.metrics.route(arrival.route.index).lookups.of(found).inc();
        self.metrics.call(arrival.tenant.index, arrival.route.index).saved.inc();
        let way = Way::Hit { age: hit.life.age(now), left: hit.left };
        Reply { answer: Arc::clone(&hit.answer), way }
    }

    /// Waits for a flight, for as long as the caller does.
    pub(super) async fn wait(
        &self,
        waiter: Waiter<Refusal>,
        way: Option<Way>,
        deadline: Boot,
    ) -> Result<Reply, Refusal> {
        let left = deadline.since(self.clock.boot());
        match tokio::time::timeout(left, waiter.outcome()).await {
            Err(_) => Err(Refusal::UpstreamTimeout),
            Ok(Landed::Failed(refusal)) => Err(refusal),
            Ok(Landed::Abandoned) => Err(Refusal::Unavailable(Unavailable::Stopping)),
            Ok(Landed::Answer { answer, kept }) => {
                Ok(Reply { answer, way: way.unwrap_or(Way::Miss(kept.map(|life| life.lasts))) })
            }
        }
    }

    /// The call itself, which outlives every caller who waits for it.
    async fn fly(self: Arc<Self>, flight: Flight, landing: Landing<Refusal>) {
        let allowance = Allowance {
            wait: self.waits.read,
            answer: self.waits.attempt,
            deadline: self.clock.boot() + self.waits.request,
            reuse: Reuse::Idle,
        };
        match self.ask(&flight.route, &flight.call, &flight.reader, allowance).await {
            Ok(asked) => {
                let lifetimes = Lifetimes { ttl: flight.ttl.unwrap_or(self.lifetimes.ttl), ..self.lifetimes };
                let fate = Fate::of(&asked.verdict, &lifetimes, asked.sent, asked.received);
                if let Some(life) = landing.answer(asked.answer, fate, asked.received) {
                    self.metrics.cache_ttl.of(bound(life.bound)).observe(life.lasts.as_secs_f64());
                }
            }
            Err(Unanswered::Limited(limited)) => landing.fail(Refusal::UpstreamLimited(limited)),
            Err(Unanswered::Crowded) => landing.fail(Refusal::Unavailable(Unavailable::Inflight)),
            Err(Unanswered::Failed(failure)) => landing.fail(Refusal::of_read(failure)),
        }
    }
}

/// What a flight needs of the request that began it.
struct Flight {
    route: Arc<Route>,
    call: Call,
    reader: Reader,
    ttl: Option<Duration>,
}

impl Flight {
    fn of(arrival: &Arrival<'_>, cached: &CachedSettings) -> Self {
        Self {
            route: Arc::clone(arrival.route),
            call: arrival.call(),
            reader: arrival.reader(&cached.expires),
            ttl: cached.ttl,
        }
    }
}

fn question(arrival: &Arrival<'_>, cached: &CachedSettings) -> Question {
    let tenant = arrival.tenant.index;
    let key = format!("{} {}", arrival.path, arrival.envelope.canonical(&cached.optional));
    let subject = match arrival.facts.customers.first() {
        Some(customer) => Subject::customer(tenant, customer),
        None => Subject::question(tenant, &key),
    };
    Question { subject, key: key.into() }
}

const fn bound(bound: Bound) -> LifeBound {
    match bound {
        Bound::Ttl => LifeBound::Ttl,
        Bound::EndAt => LifeBound::EndAt,
        Bound::Negative => LifeBound::Negative,
        Bound::Unsettled => LifeBound::Unsettled,
    }
}
