//! What leaves the cache, and its memory.

use super::*;

/// Otherwise it would take memory for which nothing is evicted, or that is counted for nothing.
#[test]
fn moka_holds_what_the_stripes_hold() {
    let cache = cache();
    let counts = |cache: &Cache<()>| {
        cache.run_maintenance(now());
        (cache.stripes.answers() as u64, cache.eviction.entry_count(), cache.metrics.entries.get())
    };
    for customer in 0..10 {
        for key in ["a", "b"] {
            complete(begin(&cache, &question(&customer.to_string(), key)).0, "x");
        }
    }
    assert_eq!(counts(&cache), (20, 20, 20));
    complete(begin_with(&cache, &question("0", "a"), &NO_CACHE).0, "instead of both");
    complete(begin_with(&cache, &question("1", "c"), &NO_CACHE).0, "instead of both");
    invalidate(&cache, "2", now().boot);
    assert_eq!(counts(&cache), (16, 16, 16));
    // One that is not cached any more stays so, however large it has become.
    let removed =
        cache.stripe(&Subject::customer(0, "3")).invalidate(&Subject::customer(0, "3"), now().boot, now().boot);
    cache.untrack(&removed);
    cache.reweigh(&removed[0]);
    assert_eq!(counts(&cache), (14, 14, 14));
    cache.invalidate_tenant(0, now().boot);
    assert_eq!(counts(&cache), (14, 14, 14), "it is only ignored");
    complete(begin(&cache, &question("4", "a")).0, "of the new generation");
    assert_eq!(cache.purge_tenant(0, now().boot, now()), 1);
    assert_eq!(counts(&cache), (0, 0, 0));
}

#[test]
fn what_is_of_no_use_any_more_is_swept_away() {
    let cache = cache();
    for customer in 0..100 {
        complete(begin(&cache, &question(&customer.to_string(), "a")).0, "x");
    }
    let later = |seconds| Now { boot: now().boot + Duration::from_secs(seconds), ..now() };
    let swept = |at| (0..SWEEPS).for_each(|_| cache.run_maintenance(at));
    // Fresh for an hour, and retained for another one.
    swept(later(7100));
    assert_eq!((cache.metrics.entries.get(), cache.metrics.expired.get()), (100, 0));
    swept(later(7300));
    assert_eq!((cache.metrics.entries.get(), cache.metrics.expired.get()), (0, 100));
    assert_eq!((cache.stripes.answers(), cache.eviction.entry_count()), (0, 0));
}

/// Otherwise they would hold memory that is not counted.
#[test]
fn evicted_answers_are_removed_from_their_stripe() {
    let cache = cache();
    for customer in 0..5000 {
        assert!(complete(begin(&cache, &question(&customer.to_string(), "a")).0, "x"));
    }
    cache.run_maintenance(now());
    let in_stripes = cache.stripes.answers();
    assert_eq!(in_stripes as u64, cache.eviction.entry_count());
    assert_eq!(in_stripes as u64 + cache.metrics.size.get(), 5000);
    assert_eq!(cache.metrics.entries.get(), i64::try_from(in_stripes).unwrap());
    assert!((100..4000).contains(&in_stripes), "{in_stripes}");
}

#[test]
fn one_customers_answers_are_bounded_and_the_oldest_are_dropped() {
    let cache = cache();
    for number in 0..200 {
        assert!(complete(begin(&cache, &question("1", &number.to_string())).0, "x"));
    }
    let cached = (0..200).filter(|number| lookup(&cache, &question("1", &number.to_string())).is_some()).count();
    assert_eq!(cached, 64);
    assert!(lookup(&cache, &question("1", "199")).is_some() && lookup(&cache, &question("1", "0")).is_none());
    cache.run_maintenance(now());
    assert_eq!(cache.metrics.entries.get(), 64);
}

#[test]
fn a_cache_that_is_too_small_for_any_answer_holds_none() {
    let cache = cache_with(&Options { max_bytes: 1, ..options() });
    complete(begin(&cache, &question("1", "a")).0, "x");
    cache.run_maintenance(now());
    assert_eq!((cache.stripes.answers(), cache.metrics.entries.get(), cache.metrics.size.get()), (0, 0, 1));
}

#[test]
fn an_answer_that_is_not_stored_displaces_no_other() {
    let cache = cache();
    for number in 0..MAX_ANSWERS {
        complete(begin(&cache, &question("1", &number.to_string())).0, "x");
    }
    let (guard, _waiter) = begin(&cache, &question("1", "another"));
    guard.complete(answer("expired"), StoreDecision::Supersede, now().boot, now());
    assert_eq!(cache.stripes.answers(), MAX_ANSWERS);
    let keys: Vec<_> = cache.inspect(&Subject::customer(0, "1"), now()).into_iter().map(|(key, _)| key).collect();
    assert_eq!((keys.len(), keys.first().map(String::as_str)), (MAX_ANSWERS, Some("0")), "the oldest first");
}
