mod eviction;
mod held;

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::answer::{Answer, Contents, Verdict};
use crate::clock::Clock;
use crate::settings::Lifetimes;

const LIFETIMES: Lifetimes = Lifetimes {
    ttl: Duration::from_secs(3600),
    negative_ttl: Duration::from_secs(3600),
    unsettled_ttl: Duration::from_secs(3600),
    stale_while_revalidate: Duration::from_secs(60),
    stale_if_error: Duration::from_secs(600),
    expiry_margin: Duration::ZERO,
};

const NO_CACHE: RequestCacheControl =
    RequestCacheControl { no_cache: true, no_store: false, max_age: None, only_if_cached: false };

fn cache() -> Arc<Cache<()>> {
    cache_with(&options())
}

fn cache_with(options: &Options) -> Arc<Cache<()>> {
    let counter = || IntCounter::new("name", "help").unwrap();
    let metrics = CacheMetrics { entries: IntGauge::new("name", "help").unwrap(), expired: counter(), size: counter() };
    Arc::new(Cache::new(options, metrics))
}

fn options() -> Options {
    Options { max_bytes: 1 << 20, max_waiters: 2, tenants: 1, rules: 0, unsettled_ttl: Duration::from_secs(5) }
}

fn now() -> Now {
    Clock::system().now()
}

fn question(customer: &str, key: &str) -> Question {
    Question { subject: Subject::customer(0, customer), key: key.into() }
}

fn join(cache: &Arc<Cache<()>>, question: &Question, cache_control: &RequestCacheControl) -> Join<()> {
    cache.join(question, cache.generation(0, 0), cache_control, now())
}

fn begin_with(
    cache: &Arc<Cache<()>>,
    question: &Question,
    cache_control: &RequestCacheControl,
) -> (FetchGuard<()>, Waiter<()>) {
    match join(cache, question, cache_control) {
        Join::Started(guard, waiter) => (guard, waiter),
        other => panic!("{other:?}"),
    }
}

fn begin(cache: &Arc<Cache<()>>, question: &Question) -> (FetchGuard<()>, Waiter<()>) {
    begin_with(cache, question, &RequestCacheControl::default())
}

fn answer(body: &'static str) -> Answer {
    Answer::new(200, body.as_bytes())
}

/// Completes a fetch with a success; returns whether it was stored.
fn complete(guard: FetchGuard<()>, body: &'static str) -> bool {
    let decision = StoreDecision::of(&Verdict::Success(Contents::default()), &LIFETIMES, now().wall, now(), now());
    guard.complete(answer(body), decision, now().boot, now()).1.freshness.is_some()
}

fn lookup(cache: &Arc<Cache<()>>, question: &Question) -> Option<String> {
    let found = cache.lookup(question, cache.generation(0, 0), &RequestCacheControl::default(), now());
    let Lookup::Fresh(hit) = found else { return None };
    Some(String::from_utf8(hit.answer().body.to_vec()).unwrap())
}

fn invalidate(cache: &Cache<()>, customer: &str, settle_until: Boot) -> usize {
    cache.invalidate(&Subject::customer(0, customer), settle_until, now())
}

fn reference(cache: &Arc<Cache<()>>, question: &Question, now: Now) -> AnswerRef {
    let found = cache.lookup(question, cache.generation(0, 0), &RequestCacheControl::default(), now);
    let Lookup::Fresh(hit) = found else { panic!("{found:?}") };
    cache.reference(&hit).unwrap()
}

#[test]
fn a_reference_leads_to_its_answer_until_that_is_replaced_or_invalidated() {
    let default = RequestCacheControl::default();
    let body = |reference: &AnswerRef| Some(reference.fresh(&default, now())?.answer().body.to_vec());
    let cache = cache();
    let questions = ["a", "b"].map(|key| question("1", key));
    let [first, second] = questions.each_ref().map(|question| {
        complete(begin(&cache, question).0, "old");
        reference(&cache, question, now())
    });
    assert_eq!(body(&first).as_deref(), Some(&b"old"[..]), "another answer about the customer leaves it as it is");
    let no_store = RequestCacheControl { no_store: true, ..default };
    complete(begin_with(&cache, &questions[0], &no_store).0, "new");
    assert_eq!(body(&first).as_deref(), Some(&b"old"[..]));
    complete(begin_with(&cache, &questions[0], &NO_CACHE).0, "new");
    assert_eq!((body(&first), body(&second)), (None, None), "it replaces the customer's answers");
    let third = reference(&cache, &questions[0], now());
    assert_eq!(body(&third).as_deref(), Some(&b"new"[..]));
    invalidate(&cache, "1", now().boot);
    assert_eq!(body(&third), None);
    cache.run_maintenance(now());
    assert!(!third.is_live(), "it keeps no answer in memory");
}

/// moka is notified of it a moment later.
#[test]
fn an_invalidated_answer_is_not_served_while_moka_still_has_it() {
    let cache = cache();
    let question = question("1", "a");
    complete(begin(&cache, &question).0, "x");
    let reference = reference(&cache, &question, now());
    let removed = cache.stripe(&question.subject).invalidate(&question.subject, now().boot, now().boot);
    assert!(removed.len() == 1 && cache.eviction.contains_key(&removed[0].id()));
    assert_eq!(lookup(&cache, &question), None);
    assert!(reference.fresh(&RequestCacheControl::default(), now()).is_none());
}

#[test]
fn an_answer_in_use_by_reference_is_looked_up_now_and_then() {
    let (cache, default, start) = (cache(), RequestCacheControl::default(), now());
    let question = question("1", "a");
    complete(begin(&cache, &question).0, "x");
    let reference_then = reference(&cache, &question, start);
    let later = |seconds| {
        let span = Duration::from_secs(seconds);
        Now { wall: start.wall.plus(i64::try_from(span.as_millis()).unwrap()), boot: start.boot + span }
    };
    assert!(reference_then.fresh(&default, later(9)).is_some());
    assert!(reference_then.fresh(&default, later(10)).is_none(), "so that moka knows that it is in use");
    let generation = cache.generation(question.subject.tenant, 0);
    let peeked = cache.peek(&question, generation, &default, later(10));
    assert!(matches!(peeked.lookup, Lookup::Fresh(_)), "{peeked:?}");
    assert!(reference_then.fresh(&default, later(10)).is_none(), "an operator's question is no use");
    reference(&cache, &question, later(10));
    assert!(reference_then.fresh(&default, later(19)).is_some());
}

/// Between the lookup and the join of a caller, the flight may store its answer.
#[test]
fn joining_after_a_flight_completed_returns_its_answer() {
    let cache = cache();
    let question = question("1", "a");
    let (guard, _waiter) = begin(&cache, &question);
    assert_eq!(lookup(&cache, &question), None);
    assert!(complete(guard, "x"));
    assert!(matches!(join(&cache, &question, &RequestCacheControl::default()), Join::Hit(_)));
}

#[tokio::test]
async fn an_abandoned_flight_notifies_its_waiters_and_allows_another() {
    let cache = cache();
    let (guard, waiter) = begin(&cache, &question("1", "a"));
    drop(guard);
    assert!(matches!(waiter.outcome().await, FetchOutcome::Abandoned));
    let (guard, waiter) = begin(&cache, &question("1", "a"));
    assert!(!waiter.was_sent());
    guard.mark_sent();
    assert!(waiter.was_sent());
    guard.fail(());
    assert!(matches!(waiter.outcome().await, FetchOutcome::Failed(())));
    begin(&cache, &question("1", "a"));
}

#[test]
fn the_number_of_waiters_is_bounded_and_a_dropped_waiter_frees_its_place() {
    let cache = cache();
    let (_guard, _first) = begin(&cache, &question("1", "a"));
    let join = || join(&cache, &question("1", "a"), &RequestCacheControl::default());
    let second = join();
    assert!(matches!(second, Join::Joined(_)));
    assert!(matches!(join(), Join::TooManyWaiters));
    drop(second);
    assert!(matches!(join(), Join::Joined(_)));
}

#[test]
fn a_fetch_begun_before_an_invalidation_is_neither_stored_nor_joined() {
    type Invalidation = fn(&Cache<()>);
    let invalidations: [Invalidation; 2] =
        [|cache| assert!(invalidate(cache, "1", now().boot) <= 1), |cache| cache.invalidate_tenant(0, now().boot)];
    for invalidation in invalidations {
        let cache = cache();
        assert!(complete(begin(&cache, &question("1", "cached")).0, "before"));
        let (old, _old_waiter) = begin(&cache, &question("1", "a"));
        invalidation(&cache);
        assert_eq!(lookup(&cache, &question("1", "cached")), None);
        let (in_flight, _waiter) = begin(&cache, &question("1", "b"));
        invalidation(&cache);
        assert!(!complete(in_flight, "before"), "it is not stored, even without a new fetch");
        let (new, _new_waiter) = begin(&cache, &question("1", "a"));
        assert!(!complete(old, "before"));
        assert_eq!(lookup(&cache, &question("1", "a")), None);
        assert!(complete(new, "after"));
        assert_eq!(lookup(&cache, &question("1", "a")).as_deref(), Some("after"));
    }
}

/// Under other rules old answers are not served, and what was fetched under the old rules is not stored.
#[test]
fn answers_of_other_rules_are_neither_served_nor_stored() {
    let cache = cache();
    let (asked, none) = (question("1", "a"), RequestCacheControl::default());
    assert!(complete(begin(&cache, &asked).0, "old rules"));
    let (in_flight, _waiter) = begin(&cache, &question("1", "b"));
    cache.reconfigure(&Options { rules: 1, ..options() });
    let (old, new) = (cache.generation(0, 0), cache.generation(0, 1));
    assert!(matches!(cache.lookup(&asked, new, &none, now()), Lookup::Miss));
    assert!(matches!(cache.lookup(&asked, old, &none, now()), Lookup::Fresh(_)), "for a request from before");
    let Join::Started(guard, _waiter) = cache.join(&asked, new, &none, now()) else { panic!("a fetch begins") };
    assert!(complete(guard, "new rules") && !complete(in_flight, "old rules"));
    assert!(matches!(cache.lookup(&asked, new, &none, now()), Lookup::Fresh(_)));
    assert!(matches!(cache.lookup(&asked, old, &none, now()), Lookup::Miss));
}

#[test]
fn an_invalidation_does_not_affect_other_customers() {
    let cache = cache();
    assert!(complete(begin(&cache, &question("2", "a")).0, "cached"));
    let (in_flight, _waiter) = begin(&cache, &question("3", "a"));
    invalidate(&cache, "1", now().boot);
    assert_eq!(lookup(&cache, &question("2", "a")).as_deref(), Some("cached"));
    assert!(complete(in_flight, "fetched"));
}

#[test]
fn an_answer_that_supersedes_drops_the_older_one_and_a_failure_does_not() {
    let old = question("1", "a");
    for (decision, stays) in
        [(StoreDecision::Supersede, None), (StoreDecision::Ignore, Some("old")), (StoreDecision::Failure, Some("old"))]
    {
        let cache = cache();
        assert!(complete(begin(&cache, &old).0, "old"));
        let (guard, _waiter) = begin_with(&cache, &old, &NO_CACHE);
        assert_eq!(guard.complete(answer(""), decision, now().boot, now()).1.freshness, None);
        assert_eq!(lookup(&cache, &old).as_deref(), stays);
    }
}

#[test]
fn a_no_cache_fetch_drops_the_customers_other_answers() {
    let cache = cache();
    assert!(complete(begin(&cache, &question("1", "a")).0, "a"));
    assert!(complete(begin(&cache, &question("1", "b")).0, "b"));
    let (other, _waiter) = begin(&cache, &question("1", "c"));
    assert!(complete(begin_with(&cache, &question("1", "a"), &NO_CACHE).0, "new"));
    assert_eq!(lookup(&cache, &question("1", "a")).as_deref(), Some("new"));
    assert_eq!(lookup(&cache, &question("1", "b")), None);
    assert!(!complete(other, "c"), "it began before");
}

/// The platform may have answered it with data from before the write, however late the answer arrives and whatever is
/// invalidated meanwhile.
#[test]
fn a_slow_fetch_begun_within_the_settle_time_has_a_short_lifetime() {
    let cache = cache();
    let sent = now();
    invalidate(&cache, "1", sent.boot + Duration::from_secs(3));
    let (guard, _waiter) = begin(&cache, &question("1", "a"));
    let late = Now { boot: sent.boot + Duration::from_secs(600), ..sent };
    cache.invalidate(&Subject::customer(0, "2"), late.boot, late);
    cache.run_maintenance(now());
    let decision = StoreDecision::of(&Verdict::Success(Contents::default()), &LIFETIMES, sent.wall, sent, late);
    let freshness = guard.complete(answer(""), decision, sent.boot, late).1.freshness.unwrap();
    assert_eq!(freshness.lifetime(), Duration::from_secs(5));
}

/// The platform may still lag behind the write. Such answers are never served stale.
#[test]
fn answers_fetched_within_the_settle_time_have_a_short_lifetime() {
    type Invalidation = fn(&Cache<()>, Boot);
    let invalidations: [Invalidation; 2] =
        [|cache, until| assert_eq!(invalidate(cache, "1", until), 0), |cache, until| cache.invalidate_tenant(0, until)];
    for invalidation in invalidations {
        for (settle, lifetime) in [(3, 5), (0, 3600)] {
            let cache = cache();
            let sent = now();
            invalidation(&cache, sent.boot + Duration::from_secs(settle));
            let (guard, _waiter) = begin(&cache, &question("1", "a"));
            let decision = StoreDecision::of(&Verdict::Success(Contents::default()), &LIFETIMES, sent.wall, sent, sent);
            let freshness = guard.complete(answer(""), decision, sent.boot, sent).1.freshness.unwrap();
            assert_eq!(freshness.lifetime(), Duration::from_secs(lifetime));
            let later = Now { boot: sent.boot + Duration::from_secs(lifetime + 1), ..sent };
            assert_eq!(freshness.stale(later).is_some(), settle == 0);
        }
    }
}

#[test]
fn a_refetch_reports_whether_the_answer_changed() {
    let cache = cache();
    let refetch = |body: &'static str| {
        let (guard, _waiter) = begin_with(&cache, &question("1", "a"), &NO_CACHE);
        let decision = StoreDecision::of(&Verdict::Success(Contents::default()), &LIFETIMES, now().wall, now(), now());
        guard.complete(answer(body), decision, now().boot, now()).1.changed
    };
    assert_eq!([refetch("a"), refetch("a"), refetch("b")], [None, Some(false), Some(true)]);
}

#[test]
fn a_stale_answer_is_served_in_its_modes_and_refreshed_by_one_caller() {
    let cache = cache();
    let asked = question("1", "a");
    assert!(complete(begin(&cache, &asked).0, "x"));
    let later = |seconds: u64| Now { boot: now().boot + Duration::from_secs(3600 + seconds), ..now() };
    let default = RequestCacheControl::default();
    let lookup =
        |cache_control, seconds: u64| cache.lookup(&asked, cache.generation(0, 0), cache_control, later(seconds));
    let stale_for_error = |now| cache.stale_for_error(&asked, cache.generation(0, 0), now);
    for _ in 0..2 {
        assert!(matches!(lookup(&default, 1), Lookup::Stale(_, true)), "a refresh that cannot begin takes no turn");
    }
    let claim = || cache.claim_refresh(&asked, cache.generation(0, 0), later(1));
    assert!(claim() && !claim());
    assert!(matches!(lookup(&default, 1), Lookup::Stale(_, false)));
    let aged = RequestCacheControl { max_age: Some(Duration::from_secs(1 << 20)), ..default };
    assert!(matches!(lookup(&aged, 1), Lookup::Miss));
    assert!(matches!(lookup(&NO_CACHE, 1), Lookup::Miss));
    assert!(matches!(lookup(&default, 61), Lookup::Miss));
    assert!(stale_for_error(later(61)).is_some());
    assert!(stale_for_error(later(601)).is_none());
    assert!(stale_for_error(now()).is_none(), "it is fresh");
    cache.invalidate_tenant(0, now().boot);
    assert!(stale_for_error(later(61)).is_none() && matches!(lookup(&default, 2), Lookup::Miss));
}

/// A request whose body arrives slowly may belong to an earlier configuration.
#[test]
fn a_request_of_another_generation_does_not_displace_a_current_flight() {
    let cache = cache();
    let question = question("1", "a");
    let before = cache.generation(0, 0);
    cache.reconfigure(&Options { rules: 1, ..options() });
    let default = RequestCacheControl::default();
    let current = cache.generation(0, 1);
    let Join::Started(guard, _waiter) = cache.join(&question, current, &default, now()) else { panic!() };
    let Join::Started(late, _late) = cache.join(&question, before, &default, now()) else { panic!() };
    assert!(matches!(cache.join(&question, current, &default, now()), Join::Joined(_)));
    assert!(!complete(late, "old") && complete(guard, "new"));
}
