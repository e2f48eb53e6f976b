//! The memory of the cache and how fast it wakes waiting callers, measured without criterion.
//!
//! `cargo bench --bench cache` prints resident memory after many evictions, with reused and with ever new keys, next to
//! `cache.max_bytes`; and the time from an answer until its followers have it. `-- --test` runs a short form. `tests/memory.rs`
//! checks allocated memory against the limit, since resident memory depends on the machine.

#![expect(clippy::print_stdout, reason = "a bench prints its figures on standard output")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntGauge};
use time::UtcOffset;
use zvgate::answer::{Answer, Reader};
use zvgate::cache::{Cache, CacheMetrics, Join, Options, Question, RequestCacheControl, StoreDecision, Subject};
use zvgate::clock::Clock;
use zvgate::settings::Lifetimes;

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MIB: u64 = 1 << 20;

const LIFETIMES: Lifetimes = Lifetimes {
    ttl: Duration::from_secs(3600),
    negative_ttl: Duration::from_secs(3),
    unsettled_ttl: Duration::from_secs(3),
    stale_while_revalidate: Duration::ZERO,
    stale_if_error: Duration::from_secs(60),
    expiry_margin: Duration::from_secs(1),
};

fn cache(max_bytes: u64) -> Arc<Cache<()>> {
    let counter = || IntCounter::new("bench", "bench").expect("a well formed name");
    let entries = IntGauge::new("bench", "bench").expect("a well formed name");
    let metrics = CacheMetrics { entries, expired: counter(), size: counter() };
    let options =
        Options { max_bytes, max_waiters: 10_000, tenants: 1, rules: 0, unsettled_ttl: LIFETIMES.unsettled_ttl };
    Arc::new(Cache::new(&options, metrics))
}

/// An answer with this many coupons of about 330 bytes each.
fn answer(coupons: usize) -> Answer {
    let coupon = r#"{"beginAt":"2019-08-24 00:00:00","cardId":"390913445498200065","channel":"naixue","couponId":"390913445519171584","couponType":"0","createdAt":"2019-10-15 17:10:28","customerId":"383933091455959041","title":"","updatedAt":"2019-10-15 17:10:2","useStatus":"0","templateId":"951","endAt":"2999-11-03 23:59:59","extra":""}"#;
    let body = format!(r#"{{"status":"true","code":"0","data":[{}]}}"#, vec![coupon; coupons].join(","));
    Answer::json(body)
}

fn question(customer: u64) -> Question {
    let customer = (383_933_091_000_000_000 + customer).to_string();
    let key = format!("/v3/crm/coupon/getCustomerCoupons {{\"params\":{{\"customerId\":\"{customer}\"}}}}");
    Question { subject: Subject::customer(0, &customer), key: key.into() }
}

fn store(cache: &Arc<Cache<()>>, reader: &Reader, clock: &Clock, customer: u64) {
    let (question, now) = (question(customer), clock.now());
    let cache_control = RequestCacheControl { no_cache: true, ..RequestCacheControl::default() };
    if let Join::Started(guard, _waiter) = cache.join(&question, cache.generation(0, 0), &cache_control, now) {
        let answer = answer(1 + usize::try_from(customer % 40).unwrap_or_default());
        let decision = StoreDecision::of(&reader.read(&answer), &LIFETIMES, now.wall, now, now);
        guard.complete(answer, decision, now.boot, now);
    }
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line.and_then(|rest| rest.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or(0);
    kib * 1024
}

/// Stores `writes` answers for `keys` different keys, on two threads, and prints resident memory next to the limit.
fn churn(name: &str, max_bytes: u64, keys: u64, writes: u64) {
    let cache = cache(max_bytes);
    let clock = Clock::system();
    let reader = Reader { expires: vec!["endAt".to_owned()], retry_codes: Vec::new(), utc_offset: UtcOffset::UTC };
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (cache, reader, clock) = (&cache, &reader, &clock);
            scope.spawn(move || {
                for number in 0..writes / 2 {
                    store(cache, reader, clock, (number * 2 + thread) % keys);
                    if number % 10_000 == 0 {
                        cache.run_maintenance(clock.now());
                    }
                }
            });
        }
    });
    cache.run_maintenance(clock.now());
    let (weighed, resident) = (cache.bytes(), resident());
    println!(
        "{name}: limit {} MiB, weighed {} MiB, resident {} MiB after {writes} answers",
        max_bytes / MIB,
        weighed / MIB,
        resident / MIB
    );
    assert!(weighed <= max_bytes, "the cache is over its limit");
}

/// Measures the time from an answer until each of `followers` has it.
fn wake_up(followers: usize, rounds: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let mut waits: Vec<Duration> = Vec::new();
    for round in 0..rounds {
        let cache = cache(MIB);
        let clock = Clock::system();
        let question = question(u64::try_from(round).unwrap_or_default());
        let Join::Started(guard, leader) =
            cache.join(&question, cache.generation(0, 0), &RequestCacheControl::default(), clock.now())
        else {
            continue;
        };
        drop(leader);
        let tasks: Vec<_> = (0..followers)
            .filter_map(|_| {
                match cache.join(&question, cache.generation(0, 0), &RequestCacheControl::default(), clock.now()) {
                    Join::Joined(waiter) => Some(waiter),
                    _ => None,
                }
            })
            .map(|waiter| runtime.spawn(async move { (waiter.outcome().await, now()) }))
            .collect();
        std::thread::sleep(Duration::from_millis(5));
        let landed = now();
        guard.complete(answer(5), StoreDecision::Ignore, clock.boot(), clock.now());
        for task in tasks {
            let (_, woken) = runtime.block_on(task).expect("a follower that does not panic");
            waits.push(woken.saturating_duration_since(landed));
        }
    }
    waits.sort_unstable();
    let at = |share: usize| waits.get((waits.len() * share / 100).min(waits.len() - 1)).copied().unwrap_or_default();
    println!("{followers} followers have the answer after p50 {:?}, p99 {:?}, max {:?}", at(50), at(99), at(100));
}

#[expect(clippy::disallowed_methods, reason = "a bench measures with the clock that is made for it")]
fn now() -> Instant {
    Instant::now()
}

fn main() {
    let short = std::env::args().any(|argument| argument == "--test");
    let (limit, writes) = if short { (32 * MIB, 60_000) } else { (256 * MIB, 2_000_000) };
    churn("reused keys", limit, 20_000, writes);
    churn("ever new keys", limit, u64::MAX, writes);
    let rounds = if short { 5 } else { 200 };
    wake_up(10, rounds);
    wake_up(100, rounds);
}
