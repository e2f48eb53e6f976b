use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::answer::{Contents, Verdict};
use crate::clock::Clock;

const LIFETIMES: Lifetimes = Lifetimes {
    ttl: Duration::from_secs(3600),
    negative_ttl: Duration::from_secs(3600),
    unsettled_ttl: Duration::from_secs(3600),
    stale_while_revalidate: Duration::from_secs(60),
    stale_if_error: Duration::from_secs(600),
    expiry_margin: Duration::ZERO,
};

fn cache() -> Arc<Cache<()>> {
    let counter = || IntCounter::new("name", "help").unwrap();
    let tally = Tally { entries: IntGauge::new("name", "help").unwrap(), expired: counter(), size: counter() };
    Arc::new(Cache::new(
        &Options { max_bytes: 1 << 20, max_waiters: 2, tenants: 1, unsettled_ttl: Duration::from_secs(5) },
        tally,
    ))
}

fn now() -> Now {
    Clock::system().now()
}

fn question(customer: &str, key: &str) -> Question {
    Question { subject: Subject::customer(0, customer), key: key.into() }
}

fn begin(cache: &Arc<Cache<()>>, question: &Question) -> (Landing<()>, Waiter<()>) {
    match cache.join(question, &Demand::default(), cache.era(question.subject.tenant), None, now()) {
        Entry::Begun(landing, waiter) => (landing, waiter),
        other => panic!("{other:?}"),
    }
}

fn land(landing: Landing<()>, body: &'static str) -> bool {
    let answer = Answer { status: 200, content_type: None, rare: None, body: body.as_bytes().into() };
    let fate = Fate::of(&Verdict::Success(Contents::default()), &LIFETIMES, now(), now());
    landing.answer(Arc::new(answer), fate, now().boot, now()).kept.is_some()
}

fn told(cache: &Arc<Cache<()>>, question: &Question) -> Option<String> {
    let Found::Fresh(hit) = cache.look(question, &Demand::default(), now()) else { return None };
    Some(String::from_utf8(hit.answer.body.to_vec()).unwrap())
}

/// Between a caller's look and its joining, the flight it would have joined may land.
#[test]
fn who_comes_late_to_a_flight_gets_its_answer_and_begins_no_other() {
    let cache = cache();
    let question = question("1", "a");
    let (landing, _waiter) = begin(&cache, &question);
    let mark = cache.mark(&question.subject);
    assert_eq!(told(&cache, &question), None);
    assert!(land(landing, "x"));
    for looked in [Some(&mark), None] {
        let entry = cache.join(&question, &Demand::default(), cache.era(0), looked, now());
        assert!(matches!(entry, Entry::Hit(_)), "{looked:?}");
    }
}

#[tokio::test]
async fn a_flight_that_is_abandoned_tells_its_waiters_and_lets_the_next_begin() {
    let cache = cache();
    let (landing, waiter) = begin(&cache, &question("1", "a"));
    drop(landing);
    assert!(matches!(waiter.outcome().await, Landed::Abandoned));
    let (landing, waiter) = begin(&cache, &question("1", "a"));
    landing.fail(());
    assert!(matches!(waiter.outcome().await, Landed::Failed(())));
    begin(&cache, &question("1", "a"));
}

#[test]
fn only_so_many_wait_and_a_place_that_is_left_is_free() {
    let cache = cache();
    let (_landing, _first) = begin(&cache, &question("1", "a"));
    let join = || cache.join(&question("1", "a"), &Demand::default(), cache.era(0), None, now());
    let second = join();
    assert!(matches!(second, Entry::Joined(_)));
    assert!(matches!(join(), Entry::Crowded));
    drop(second);
    assert!(matches!(join(), Entry::Joined(_)));
}

#[test]
fn what_a_fence_went_through_is_neither_kept_nor_joined() {
    type Fence = fn(&Cache<()>);
    let fences: [Fence; 2] = [
        |cache| assert!(cache.invalidate(&Subject::customer(0, "1"), now().boot, now()) <= 1),
        |cache| cache.invalidate_tenant(0, now().boot),
    ];
    for fence in fences {
        let cache = cache();
        assert!(land(begin(&cache, &question("1", "kept")).0, "before"));
        let (old, _old_waiter) = begin(&cache, &question("1", "a"));
        fence(&cache);
        assert_eq!(told(&cache, &question("1", "kept")), None);
        let (flying, _waiter) = begin(&cache, &question("1", "b"));
        fence(&cache);
        assert!(!land(flying, "before"), "nobody asked anew, and it is not kept all the same");
        let (new, _new_waiter) = begin(&cache, &question("1", "a"));
        assert!(!land(old, "before"));
        assert_eq!(told(&cache, &question("1", "a")), None);
        assert!(land(new, "after"));
        assert_eq!(told(&cache, &question("1", "a")).as_deref(), Some("after"));
    }
}

#[test]
fn a_fence_leaves_other_customers_alone() {
    let cache = cache();
    assert!(land(begin(&cache, &question("2", "a")).0, "kept"));
    let (flying, _waiter) = begin(&cache, &question("3", "a"));
    cache.invalidate(&Subject::customer(0, "1"), now().boot, now());
    assert_eq!(told(&cache, &question("2", "a")).as_deref(), Some("kept"));
    assert!(land(flying, "flown"));
}

#[test]
fn an_answer_that_is_not_kept_ends_an_older_one_unless_it_says_nothing() {
    let old = question("1", "a");
    for (fate, stays) in [(Fate::Supersedes, None), (Fate::Ignored, Some("old")), (Fate::Failure, Some("old"))] {
        let cache = cache();
        assert!(land(begin(&cache, &old).0, "old"));
        let demand = Demand { no_cache: true, ..Demand::default() };
        let Entry::Begun(landing, _waiter) = cache.join(&old, &demand, cache.era(0), None, now()) else {
            panic!("it begins")
        };
        let answer = Answer { status: 200, content_type: None, rare: None, body: Box::default() };
        assert_eq!(landing.answer(Arc::new(answer), fate, now().boot, now()).kept, None);
        assert_eq!(told(&cache, &old).as_deref(), stays);
    }
}

#[test]
fn one_customers_questions_are_bounded_and_the_oldest_goes() {
    let cache = cache();
    for number in 0..200 {
        assert!(land(begin(&cache, &question("1", &number.to_string())).0, "x"));
    }
    let kept = (0..200).filter(|number| told(&cache, &question("1", &number.to_string())).is_some()).count();
    assert_eq!(kept, 64);
    assert!(told(&cache, &question("1", "199")).is_some() && told(&cache, &question("1", "0")).is_none());
    cache.tidy();
    assert_eq!(cache.tally.entries.get(), 64);
}

/// A fetch that began in time to be answered from before a write lives shortly, however late it is answered and whatever is
/// invalidated meanwhile.
#[test]
fn a_slow_fetch_from_within_the_settle_time_lives_shortly() {
    let cache = cache();
    let sent = now();
    cache.invalidate(&Subject::customer(0, "1"), sent.boot + Duration::from_secs(3), sent);
    let (landing, _waiter) = begin(&cache, &question("1", "a"));
    let late = Now { boot: sent.boot + Duration::from_secs(600), ..sent };
    cache.invalidate(&Subject::customer(0, "2"), late.boot, late);
    cache.tidy();
    let answer = Answer { status: 200, content_type: None, rare: None, body: Box::default() };
    let fate = Fate::of(&Verdict::Success(Contents::default()), &LIFETIMES, sent, late);
    let life = landing.answer(Arc::new(answer), fate, sent.boot, late).kept.unwrap();
    assert_eq!(life.lasts(), Duration::from_secs(5));
}

/// What is asked for while upstream may lag behind a write lives shortly, whoever else's write comes meanwhile.
#[test]
fn what_is_asked_for_while_upstream_settles_lives_shortly() {
    type Fence = fn(&Cache<()>, Boot);
    let fences: [Fence; 2] = [
        |cache, until| assert_eq!(cache.invalidate(&Subject::customer(0, "1"), until, now()), 0),
        |cache, until| cache.invalidate_tenant(0, until),
    ];
    for fence in fences {
        for (settles, lasts) in [(3, 5), (0, 3600)] {
            let cache = cache();
            let sent = now();
            fence(&cache, sent.boot + Duration::from_secs(settles));
            let (landing, _waiter) = begin(&cache, &question("1", "a"));
            let answer = Answer { status: 200, content_type: None, rare: None, body: Box::default() };
            let fate = Fate::of(&Verdict::Success(Contents::default()), &LIFETIMES, sent, sent);
            let life = landing.answer(Arc::new(answer), fate, sent.boot, sent).kept.unwrap();
            assert_eq!(life.lasts(), Duration::from_secs(lasts));
            let later = Now { boot: sent.boot + Duration::from_secs(lasts + 1), ..sent };
            assert_eq!(life.stale(later).is_some(), settles == 0, "no stale mode while it settles");
        }
    }
}

#[test]
fn a_refetch_tells_whether_the_old_answer_was_still_true() {
    let cache = cache();
    let refetch = |body: &'static str| {
        let demand = Demand { no_cache: true, ..Demand::default() };
        let Entry::Begun(landing, _waiter) = cache.join(&question("1", "a"), &demand, cache.era(0), None, now()) else {
            panic!("it begins")
        };
        let answer = Answer { status: 200, content_type: None, rare: None, body: body.as_bytes().into() };
        let fate = Fate::of(&Verdict::Success(Contents::default()), &LIFETIMES, now(), now());
        landing.answer(Arc::new(answer), fate, now().boot, now()).changed
    };
    assert_eq!([refetch("a"), refetch("a"), refetch("b")], [None, Some(false), Some(true)]);
}

#[test]
fn past_its_freshness_an_answer_is_told_in_its_modes_and_refreshed_by_one() {
    let cache = cache();
    let asked = question("1", "a");
    assert!(land(begin(&cache, &asked).0, "x"));
    let later = |seconds: u64| Now { boot: now().boot + Duration::from_secs(3600 + seconds), ..now() };
    let look = |demand: Demand, seconds: u64| cache.look(&asked, &demand, later(seconds));
    assert!(matches!(look(Demand::default(), 1), Found::Stale(_, true)));
    assert!(matches!(look(Demand::default(), 1), Found::Stale(_, false)));
    let aged = Demand { max_age: Some(Duration::from_secs(1 << 20)), ..Demand::default() };
    assert!(matches!(look(aged, 1), Found::Nothing));
    assert!(matches!(look(Demand { no_cache: true, ..Demand::default() }, 1), Found::Nothing));
    assert!(matches!(look(Demand::default(), 61), Found::Nothing));
    assert!(cache.stand_in(&asked, later(61)).is_some());
    assert!(cache.stand_in(&asked, later(601)).is_none());
    assert!(cache.stand_in(&asked, now()).is_none(), "it is fresh");
    cache.invalidate_tenant(0, now().boot);
    assert!(cache.stand_in(&asked, later(61)).is_none() && matches!(look(Demand::default(), 2), Found::Nothing));
}
