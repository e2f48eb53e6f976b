//! Memory that the cache allocates, compared with its limit: counted, since resident memory depends on the machine.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounter, IntGauge};
use zvgate::answer::{Answer, Contents, Verdict};
use zvgate::cache::{Cache, CacheMetrics, Join, Options, Question, RequestCacheControl, StoreDecision, Subject};
use zvgate::clock::Clock;
use zvgate::settings::Lifetimes;

const MIB: u64 = 1 << 20;

fn cache(max_bytes: u64) -> Arc<Cache<()>> {
    let counter = || IntCounter::new("name", "help").unwrap();
    let metrics = CacheMetrics { entries: IntGauge::new("name", "help").unwrap(), expired: counter(), size: counter() };
    let options = Options { max_bytes, max_waiters: 10, tenants: 1, rules: 0, unsettled_ttl: Duration::from_secs(3) };
    Arc::new(Cache::new(&options, metrics))
}

/// The length of a customer's answer.
type Length = fn(u64) -> usize;

/// Stores an answer of so many bytes for a customer.
fn store(cache: &Arc<Cache<()>>, clock: &Clock, customer: u64, length: usize) {
    let lifetimes = Lifetimes {
        ttl: Duration::from_secs(3600),
        negative_ttl: Duration::from_secs(3),
        unsettled_ttl: Duration::from_secs(3),
        stale_while_revalidate: Duration::ZERO,
        stale_if_error: Duration::from_secs(60),
        expiry_margin: Duration::ZERO,
    };
    let key = format!("/v3/crm/coupon/getCustomerCoupons {{\"params\":{{\"customerId\":\"{customer}\"}}}}");
    let question = Question { subject: Subject::customer(0, &customer.to_string()), key: key.into() };
    let (now, cache_control) = (clock.now(), RequestCacheControl { no_cache: true, ..RequestCacheControl::default() });
    let started = cache.join(&question, cache.generation(0, 0), &cache_control, now);
    let Join::Started(guard, _waiter) = started else { panic!("a fetch begins") };
    let answer = Answer::new(200, vec![b' '; length]);
    let decision = StoreDecision::of(&Verdict::Success(Contents::default()), &lifetimes, now.wall, now, now);
    assert!(guard.complete(answer, decision, now.boot, now).1.freshness.is_some());
}

/// After many replacements and evictions, with reused keys and with ever new ones.
#[test]
fn a_full_cache_allocates_no_more_than_its_limit() {
    let limit = 32 * MIB;
    // Of one to forty coupons.
    let coupons = |customer: u64| 330 * (1 + usize::try_from(customer % 40).unwrap());
    let lengths: [Length; 3] = [coupons, coupons, |_| 50];
    let cases = [("reused keys", 20_000), ("ever new keys", u64::MAX), ("no coupons", u64::MAX)];
    for ((name, keys), length) in cases.into_iter().zip(lengths) {
        let clock = Clock::system();
        let mut weighed = 0;
        let mut kept = None;
        let counted = allocation_counter::measure(|| {
            let cache = cache(limit);
            for number in 0..100_000 {
                store(&cache, &clock, number % keys, length(number % keys));
                if number % 1000 == 0 {
                    cache.run_maintenance(clock.now());
                }
            }
            cache.run_maintenance(clock.now());
            weighed = cache.bytes();
            kept = Some(cache);
        });
        let allocated = u64::try_from(counted.bytes_current).unwrap();
        println!("{name}: limit {} KiB, weighed {} KiB, allocated {} KiB", limit >> 10, weighed >> 10, allocated >> 10);
        assert!(weighed <= limit && weighed > limit / 2, "{weighed}");
        assert!(allocated <= limit + limit / 20, "{name}: {allocated} of {limit}");
        drop(kept);
    }
}

/// The table of settle times has a fixed size.
#[test]
fn a_million_invalidations_do_not_grow_memory() {
    let (cache, clock) = (cache(32 * MIB), Clock::system());
    let counted = allocation_counter::measure(|| {
        for customer in 0..1_000_000u64 {
            let now = clock.now();
            cache.invalidate(&Subject::customer(0, &customer.to_string()), now.boot + Duration::from_secs(30), now);
        }
    });
    println!("{} bytes more after a million invalidations", counted.bytes_current);
    assert!(counted.bytes_current < 1 << 20, "{}", counted.bytes_current);
}
