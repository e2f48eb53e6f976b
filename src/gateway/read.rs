//! Cached routes: from the cache, from a call under way, or from a new one.

use std::sync::Arc;

use super::ask::{Allowance, Asking, Unanswered};
use super::policy::Policy;
use super::shortcut::Place;
use super::write::Again;
use super::{Arrival, Awaited, Begun, Entrance, Facts, Gateway};
use crate::cache::{
    Demand, Entry, Fate, Found, Hit, Landed, Landing, Lifetimes, Mark, Question, Settled, StaleHit, Subject, Waiter,
};
use crate::clock::{Boot, Now};
use crate::limit::{Claimant, Turn};
use crate::metrics::{Changed, Handles, Lookup};
use crate::reply::{Refusal, Reply, StaleWhy, Unavailable, Way};
use crate::route::Route;
use crate::settings::{AccessLog, CacheMode, CachedSettings, KindSettings};
use crate::signer::Call;
use crate::upstream::{FailureKind, Reuse};

impl Gateway {
    pub(super) fn read(self: &Arc<Self>, arrival: &Arrival<'_>, cached: &CachedSettings) -> Result<Begun, Refusal> {
        let (question, demand) = (question(arrival, cached), arrival.demand);
        let handles = &arrival.policy.handles;
        let lookups = &handles.route(arrival.route.index).lookups;
        let saved = &handles.call(arrival.tenant.index, arrival.route.index).saved;
        let now = arrival.now;
        let hit_told =
            |hit: Hit| Begun::Answered(told_again(handles, arrival.tenant.index, arrival.route.index, hit, now));
        let mark = self.cache.mark(&question.subject);
        match self.cache.look(&question, &demand, now) {
            Found::Fresh(hit) => {
                if let Some(place) = &arrival.place {
                    self.shortcuts.learn(place, arrival.tenant, mark, &hit, now);
                }
                return Ok(hit_told(hit));
            }
            Found::Stale(hit, turn_to_refresh) => {
                if !(turn_to_refresh && self.refresh(arrival, &question)) {
                    saved.inc();
                }
                return Ok(Begun::Answered(stale(handles, arrival.route.index, &hit, StaleWhy::Revalidating, now)));
            }
            Found::Nothing => {}
        }
        if demand.only_if_cached {
            lookups.of(Lookup::Miss).inc();
            return Err(Refusal::NotCached);
        }
        self.room_for_a_task(arrival.policy)?;
        let Some(entry) = self.join(arrival, &question, &demand, Some(&mark)) else {
            return self.pass(arrival, Again::Allowed);
        };
        let (waiter, way) = match entry {
            Entry::Hit(hit) => return Ok(hit_told(hit)),
            Entry::Joined(waiter) => {
                lookups.of(Lookup::Collapsed).inc();
                (waiter, Some(Way::Collapsed))
            }
            Entry::Begun(landing, waiter) => {
                lookups.of(Lookup::Miss).inc();
                self.tasks.spawn(Arc::clone(self).fly(Flight::of(arrival), landing, None));
                (waiter, demand.no_cache.then_some(Way::Requested))
            }
            Entry::Crowded => return Err(Refusal::Unavailable(Unavailable::Waiters)),
        };
        let stand_in = demand.takes_stale().then_some(question);
        let (tenant, route) = (arrival.tenant.index, arrival.route.index);
        let boarded = Boarded { waiter, way, stand_in, tenant, route, deadline: arrival.deadline };
        Ok(Begun::Waits(Awaited::Flight(boarded)))
    }

    /// Joins or begins the flight of a question; `None` where other rules are in force by now, under which nothing of this
    /// request may be kept.
    fn join(
        &self,
        arrival: &Arrival<'_>,
        question: &Question,
        demand: &Demand,
        looked: Option<&Mark>,
    ) -> Option<Entry<Refusal>> {
        // In this order: where the rules change from here on, the era does too, and the answer is not kept.
        let era = self.cache.era(arrival.tenant.index);
        let in_force = Arc::ptr_eq(&self.policy.load(), arrival.policy);
        in_force.then(|| self.cache.join(question, demand, era, looked, arrival.now))
    }

    /// Where the shortcut of a request may be: of one that asks for nothing special, on a cached route of one path. Where
    /// answers are logged too, their customers are, whom a shortcut does not know.
    pub(super) fn place<'a>(&self, entrance: &Entrance<'_>, body: &'a [u8]) -> Option<Place<'a>> {
        let Entrance { policy, route, fields, .. } = entrance;
        let plain = matches!(route.kind, KindSettings::Cached(_))
            && !route.wildcard
            && policy.settings.cache.mode == CacheMode::On
            && policy.settings.log.access != AccessLog::All
            && fields.are_plain();
        if plain { self.shortcuts.place(policy.number, route.index, body) } else { None }
    }

    /// The answer to a request that was read before, if it is still the one to tell.
    pub(super) fn by_shortcut(
        &self,
        entrance: &Entrance<'_>,
        place: &Place<'_>,
        now: Now,
        facts: &mut Facts,
    ) -> Option<Reply> {
        let shortcut = self.shortcuts.of(place)?;
        let shortcut = shortcut.as_deref()?;
        let hit = shortcut.hit(now)?;
        if !self.cache.holds(&shortcut.mark) || !entrance.caller.may_use_tenant(&shortcut.tenant) {
            return None;
        }
        facts.tenant = Some(shortcut.tenant.index);
        Some(told_again(&entrance.policy.handles, shortcut.tenant.index, entrance.route.index, hit, now))
    }

    /// Asks anew for an answer past its freshness, if the pace has a turn that nobody waits for; answers whether it does.
    fn refresh(self: &Arc<Self>, arrival: &Arrival<'_>, question: &Question) -> bool {
        let Some(turn) = arrival.pace(&self.paces).spare_turn() else { return false };
        if let Some(Entry::Begun(landing, _nobody_waits)) = self.join(arrival, question, &Demand::default(), None) {
            arrival.policy.handles.route(arrival.route.index).lookups.of(Lookup::Refresh).inc();
            self.tasks.spawn(Arc::clone(self).fly(Flight::of(arrival), landing, Some(turn)));
            return true;
        }
        false
    }

    /// Waits for a flight, for as long as the caller does.
    pub(super) async fn wait(&self, policy: &Policy, boarded: Boarded) -> Result<Reply, Refusal> {
        let Boarded { waiter, way, stand_in, tenant, route, deadline } = boarded;
        let left = deadline.since(self.clock.boot());
        let landed = tokio::time::timeout(left, waiter.outcome()).await;
        let (outcome, failure) = match landed {
            Err(_) => (Err(Refusal::UpstreamTimeout), Some(StaleWhy::Unanswered)),
            Ok(Landed::Failed(refusal)) => {
                let why = if is_unsent(&refusal) { StaleWhy::Unsent } else { StaleWhy::Unanswered };
                (Err(refusal), Some(why))
            }
            Ok(Landed::Abandoned) => (Err(Refusal::Unavailable(Unavailable::Stopping)), Some(StaleWhy::Unsent)),
            Ok(Landed::Answer { answer, kept, failure }) => {
                let why = failure.then_some(StaleWhy::Answered(answer.status));
                (Ok(Reply { answer, way: way.unwrap_or(Way::Miss(kept.map(|life| life.lasts()))) }), why)
            }
        };
        let saved = &policy.handles.call(tenant, route).saved;
        if way == Some(Way::Collapsed) && outcome.is_ok() {
            saved.inc();
        }
        let now = self.now();
        let old = failure.zip(stand_in).and_then(|(why, question)| Some((why, self.cache.stand_in(&question, now)?)));
        if old.as_ref().is_some_and(|(why, _)| *why == StaleWhy::Unsent) {
            saved.inc();
        }
        old.map_or(outcome, |(why, hit)| Ok(stale(&policy.handles, route, &hit, why, now)))
    }

    /// The call itself, which outlives every caller who waits for it.
    async fn fly(self: Arc<Self>, flight: Flight, landing: Landing<Refusal>, turn: Option<Turn>) {
        let Flight { policy, route, call, .. } = &flight;
        let allowance = Allowance {
            who: Claimant { caller: flight.caller, write: false },
            wait: policy.settings.limits.max_wait,
            answer: policy.settings.upstream.attempt_timeout,
            deadline: self.clock.boot() + policy.settings.server.request_timeout,
            reuse: Reuse::Idle,
            retries: policy.settings.upstream.retries,
        };
        let asking = Asking { policy, route, call, allowance };
        match self.ask(&asking, turn, || landing.deserted()).await {
            Ok(asked) => {
                let lifetimes = flight.lifetimes();
                let fate = Fate::of(&asked.verdict, &lifetimes, asked.sent, asked.received);
                let settled = landing.answer(asked.answer, fate, asked.sent.boot, asked.received);
                self.count_settled(&policy.handles, route.index, settled);
            }
            Err(Unanswered::Limited(limited)) => landing.fail(Refusal::UpstreamLimited(limited)),
            Err(Unanswered::Rejected(rejected)) => landing.fail(Refusal::rejected(rejected)),
            Err(Unanswered::Late) => landing.fail(Refusal::UpstreamTimeout),
            Err(Unanswered::Unwanted) => {}
            Err(Unanswered::Failed(failure)) => landing.fail(Refusal::of_read(failure)),
        }
    }

    fn count_settled(&self, handles: &Handles, route: usize, settled: Settled) {
        if let Some(life) = settled.kept {
            self.metrics.cache_ttl.of(life.bound).observe(life.lasts().as_secs_f64());
        }
        if let Some(changed) = settled.changed {
            let changed = if changed { Changed::Yes } else { Changed::No };
            handles.route(route).refetches.of(changed).inc();
        }
    }
}

/// An answer from the cache.
fn told_again(handles: &Handles, tenant: usize, route: usize, hit: Hit, now: Now) -> Reply {
    let found = if hit.life.negative { Lookup::NegativeHit } else { Lookup::Hit };
    handles.route(route).lookups.of(found).inc();
    handles.call(tenant, route).saved.inc();
    let way = Way::Hit { age: hit.life.age(now), left: hit.left };
    Reply { answer: hit.answer, way }
}

/// An answer from the cache that is past its freshness.
fn stale(handles: &Handles, route: usize, hit: &StaleHit, why: StaleWhy, now: Now) -> Reply {
    handles.route(route).lookups.of(Lookup::Stale).inc();
    let way = Way::Stale { age: hit.life.age(now), past: hit.stale.past, why };
    Reply { answer: Arc::clone(&hit.answer), way }
}

/// Whether a call failed before anything of it left.
const fn is_unsent(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::UpstreamFailed(kind) => {
            matches!(kind, FailureKind::Resolve | FailureKind::Connect | FailureKind::Tls | FailureKind::ConnectTimeout)
        }
        Refusal::UpstreamTimeout => false,
        _ => true,
    }
}

/// A caller's part in a flight.
pub(super) struct Boarded {
    waiter: Waiter<Refusal>,
    /// How the answer is said to have come; `None`: as a miss of the caller's own.
    way: Option<Way>,
    /// What may be told past its freshness if the flight fails.
    stand_in: Option<Question>,
    tenant: usize,
    route: usize,
    /// Until when the caller waits.
    deadline: Boot,
}

/// What a flight needs of the request that began it.
struct Flight {
    policy: Arc<Policy>,
    caller: usize,
    route: Arc<Route>,
    call: Call,
}

impl Flight {
    fn of(arrival: &Arrival<'_>) -> Self {
        Self {
            policy: Arc::clone(arrival.policy),
            caller: arrival.caller.index,
            route: Arc::clone(arrival.route),
            call: arrival.call(),
        }
    }

    /// The route's own lifetimes, where it has some.
    fn lifetimes(&self) -> Lifetimes {
        let base = self.policy.lifetimes;
        let KindSettings::Cached(own) = &self.route.kind else { return base };
        Lifetimes {
            ttl: own.ttl.unwrap_or(base.ttl),
            stale_while_revalidate: own.stale_while_revalidate.unwrap_or(base.stale_while_revalidate),
            stale_if_error: own.stale_if_error.unwrap_or(base.stale_if_error),
            ..base
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
