//! What may be served in place of failures although invalidations may have been missed.

use super::*;

/// So many seconds from now, by the wall clock and by the clock since boot.
fn later(wall: i64, boot: u64) -> Now {
    let now = now();
    Now { wall: now.wall.plus(1000 * wall), boot: now.boot + Duration::from_secs(boot) }
}

#[test]
fn what_is_distrusted_is_held_and_not_served() {
    // Generations count in 32 bits.
    let most = u64::from(u32::MAX);
    [0, most - 2, most - 1, most].into_iter().for_each(check_what_is_distrusted);
}

fn check_what_is_distrusted(invalidations: u64) {
    let cache = cache();
    let tenant = cache.tenants.get(0).unwrap();
    tenant.invalidations.store(invalidations, Ordering::SeqCst);
    tenant.held_since.store(invalidations, Ordering::SeqCst);
    let questions = ["1", "2", "3", "4"].map(|customer| question(customer, "a"));
    let [one, two, three, four] = &questions;
    for question in [one, two, three] {
        complete(begin(&cache, question).0, "old");
    }
    let reference = reference(&cache, one, now());
    let (early, _waiter) = begin(&cache, four);
    cache.distrust();
    assert_eq!(lookup(&cache, one), None);
    assert!(reference.fresh(&RequestCacheControl::default(), now()).is_none());
    assert!(!complete(early, "from before"), "it began before");
    let held = |question: &Question, now: Now| {
        let hit = cache.held(question, now)?;
        Some((String::from_utf8(hit.cached.answer.body.to_vec()).unwrap(), hit.stale.past))
    };
    assert_eq!(held(one, now()), Some(("old".to_owned(), Duration::ZERO)));
    assert_eq!(held(four, now()), None);
    // As long as it could be served in place of any failure, and no longer.
    assert!(held(one, later(4100, 4100)).is_some_and(|(_, past)| past >= Duration::from_secs(499)));
    assert_eq!(held(one, later(4201, 4201)), None);
    // What is fetched from now on is served, and replaces what is held.
    assert!(complete(begin(&cache, two).0, "new"));
    assert_eq!(lookup(&cache, two).as_deref(), Some("new"));
    assert_eq!(held(two, now()).unwrap().0, "new");
    cache.distrust();
    assert_eq!(held(two, now()).unwrap().0, "new", "also if that is distrusted");
    // Whatever is known to be invalid is not held.
    invalidate(&cache, "1", now().boot);
    assert_eq!(held(one, now()), None);
    assert!(held(three, now()).is_some());
    cache.invalidate_tenant(0, now().boot);
    assert_eq!((held(two, now()), held(three, now())), (None, None));
}

/// No stale answer, and no provisional one, is held beyond the end of a coupon in it.
#[test]
fn nothing_is_held_beyond_its_end() {
    let (cache, question) = (cache(), question("1", "a"));
    let contents = Contents { ends: vec![now().wall.plus(100_000)], ..Contents::default() };
    let decision = StoreDecision::of(&Verdict::Success(contents), &LIFETIMES, now().wall, now(), now());
    let StoreDecision::Store(freshness) = decision else { panic!("{decision:?}") };
    let provisional = freshness.provisional(Duration::from_secs(3));
    let guard = begin(&cache, &question).0;
    guard.complete(answer("old"), StoreDecision::Store(provisional), now().boot, now());
    cache.distrust();
    let held =
        |seconds: i64, boot: u64| cache.held(&question, later(seconds, boot)).map(|hit| hit.stale.past.as_secs());
    assert_eq!((held(2, 2), held(50, 50)), (Some(0), Some(47)), "fresh for 3 s, then only in place of failures");
    assert_eq!((held(101, 50), held(50, 101)), (None, None), "whichever clock says so");
}
