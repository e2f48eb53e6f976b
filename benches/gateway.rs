//! Benchmarks of the parts of a hit (key, lookup, reply), of parsing an answer, and of signing.
//!
//! `cargo bench --bench gateway`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use prometheus::{IntCounter, IntGauge};
use time::UtcOffset;
use zvgate::answer::{Answer, Reader};
use zvgate::cache::{
    Cache, CacheMetrics, Deadline, Join, Lookup, Options, Question, RequestCacheControl, SharedAnswer, StoreDecision,
    Subject,
};
use zvgate::clock::Clock;
use zvgate::envelope::Envelope;
use zvgate::limit::Slots;
use zvgate::reply::{self, CacheStatus, GatewayError, Reply};
use zvgate::secret::Secret;
use zvgate::settings::{KeySource, Lifetimes, PaceSettings, TenantSettings};
use zvgate::signer::{Call, Nonces, SignedRequest};
use zvgate::tenant::{Identities, TenantKeys, Tenants};

const BODY: &[u8] = br#"{"params":{"customerId":"383933091455959041","useStatus":"","cardId":""}}"#;
const CUSTOMERS: u64 = 10_000;

fn optional() -> Vec<String> {
    vec!["useStatus".to_owned(), "cardId".to_owned()]
}

/// Five coupons, as the platform writes them.
fn answer() -> Answer {
    let coupon = r#"{"beginAt":"2019-08-24 00:00:00","cardId":"390913445498200065","channel":"naixue","couponId":"390913445519171584","couponType":"0","createdAt":"2019-10-15 17:10:28","customerId":"383933091455959041","title":"","updatedAt":"2019-10-15 17:10:2","useStatus":"0","templateId":"951","endAt":"2999-11-03 23:59:59","extra":""}"#;
    let list = [coupon; 5].join(",");
    let body = format!(r#"{{"status":"true","code":"0","message":"","data":[{list}]}}"#);
    Answer::new(200, body.into_bytes())
}

fn reader() -> Reader {
    Reader {
        expires: vec!["endAt".to_owned(), "endTime".to_owned(), "validEndDate".to_owned()],
        retry_codes: vec!["110004".to_owned(), "110007".to_owned()],
        utc_offset: UtcOffset::UTC,
    }
}

fn question(customer: u64) -> Question {
    let customer = (383_933_091_455_950_000 + customer).to_string();
    let key = format!("/v3/crm/coupon/getCustomerCoupons {{\"params\":{{\"customerId\":\"{customer}\"}}}}");
    Question { subject: Subject::customer(0, &customer), key: key.into() }
}

fn filled(clock: &Clock) -> Arc<Cache<GatewayError>> {
    let counter = || IntCounter::new("bench", "bench").expect("a well formed name");
    let entries = IntGauge::new("bench", "bench").expect("a well formed name");
    let metrics = CacheMetrics { entries, expired: counter(), size: counter() };
    let cache = Arc::new(Cache::new(
        &Options { max_bytes: 256 << 20, max_waiters: 1, tenants: 1, rules: 0, unsettled_ttl: Duration::ZERO },
        metrics,
    ));
    let lifetimes = Lifetimes {
        ttl: Duration::from_secs(3600),
        negative_ttl: Duration::from_secs(3),
        unsettled_ttl: Duration::from_secs(3),
        stale_while_revalidate: Duration::ZERO,
        stale_if_error: Duration::ZERO,
        expiry_margin: Duration::from_secs(1),
    };
    for customer in 0..CUSTOMERS {
        let now = clock.now();
        let started = cache.join(&question(customer), cache.generation(0, 0), &RequestCacheControl::default(), now);
        let Join::Started(guard, _waiter) = started else { continue };
        let answer = answer();
        let verdict = reader().read(&answer);
        guard.complete(answer, StoreDecision::of(&verdict, &lifetimes, now.wall, now, now), now.boot, now);
    }
    cache
}

fn hit(criterion: &mut Criterion) {
    let clock = Clock::system();
    criterion.bench_function("key: parse and canonicalise", |bencher| {
        let optional = optional();
        bencher.iter(|| Envelope::parse(black_box(BODY)).map(|envelope| envelope.question("/v3/a", &optional)));
    });
    let cache = filled(&clock);
    let questions: Vec<_> = (0..CUSTOMERS).map(question).collect();
    criterion.bench_function("lookup among 10,000 customers, clocks read", |bencher| {
        let mut questions = questions.iter().cycle();
        let default = RequestCacheControl::default();
        let lookup =
            |question: &Question| -> Lookup { cache.lookup(question, cache.generation(0, 0), &default, clock.now()) };
        bencher.iter(|| questions.next().map(lookup));
    });
    let cache_status =
        CacheStatus::Hit { age: Duration::from_secs(3), remaining: Duration::from_secs(27), is_shared: false };
    let answer = SharedAnswer::from(answer());
    criterion.bench_function("reply: head of a hit", |bencher| {
        bencher.iter(|| {
            let result = Ok(Reply::new(answer.clone(), cache_status, None, Deadline::NEVER));
            reply::response(
                black_box(result),
                None,
                &reply::Shape::Platform,
                false,
                http::HeaderValue::from_static("0123456789abcdef0123456789abcdef"),
                http::HeaderMap::new(),
            )
        });
    });
}

fn miss(criterion: &mut Criterion) {
    let key = Secret::new("LyvrkvkxRkG2R6aM55bXpPwjYAbkEXTbVnKwfDYvVHjNwNFAmx".to_owned());
    let tenants = Tenants::new(
        &[TenantSettings {
            name: "bench".to_owned(),
            open_id: "d14c1559e87b747d577c834b275a4310".to_owned(),
            grant_code: "ba67d4fa46".to_owned(),
            key: KeySource::Inline(key.clone()),
            default: true,
            pace: None,
        }],
        &TenantKeys::new([("bench".to_owned(), key)].into()),
        &mut Identities::default(),
    );
    let tenant = tenants.all().first().map(Arc::clone).expect("one tenant");
    let members = r#""params":{"customerId":"383933091455959041","useStatus":"","cardId":""}"#.into();
    let call = Call { tenant, path: "/v3/crm/coupon/getCustomerCoupons".into(), members };
    let nonces = Nonces::new().expect("the system has randomness");
    let clock = Clock::system();
    criterion.bench_function("sign", |bencher| {
        bencher.iter(|| SignedRequest::sign(black_box(&call), &nonces, clock.wall()));
    });
    let (answer, reader) = (answer(), reader());
    criterion.bench_function("answer: read five coupons", |bencher| {
        bencher.iter(|| reader.read(black_box(&answer)));
    });
}

/// A call under a limit, while as many as it allows are in cooldown: the cost grows with the logarithm of the rate.
fn slots(c: &mut Criterion) {
    let mut group = c.benchmark_group("slots");
    for rate in [10, 10_000, 100_000] {
        let pace = PaceSettings { rate, per: Duration::from_secs(1), transit: Duration::ZERO };
        let mut slots = Slots::new(&pace, None);
        let allowed = usize::try_from(rate).unwrap_or(usize::MAX);
        let mut now = Clock::system().boot();
        let between = Duration::from_secs(1) / rate;
        group.bench_function(format!("{rate} a second"), |b| {
            b.iter(|| {
                now = now + between;
                if let Some(claim) = slots.take(allowed, now) {
                    slots.sent(claim, now);
                    slots.answered(claim, now);
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, hit, miss, slots);
criterion_main!(benches);
