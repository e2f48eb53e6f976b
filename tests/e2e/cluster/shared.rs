//! What one replica fetched, the others need not.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::answers::is_shared;
use crate::redis::Redis;
use crate::scripted::{Action, Scripted};
use crate::support::{Caller, Overrides, Platform, READ, Reply, TestGateway, WRITE, post, until};

const UNLIMITED: &[(&str, &str)] = &[("limits.upstream.rate", "0"), ("cache.settle", "0s"), ("upstream.retries", "0")];

fn question(customer: &str) -> String {
    json!({ "params": { "customerId": customer } }).to_string()
}

fn with<'a>(more: Overrides<'a>) -> Vec<(&'a str, &'a str)> {
    UNLIMITED.iter().chain(more).copied().collect()
}

/// Asks as many times through each replica at once; returns how the answers were obtained, without their lifetimes.
async fn flood(replicas: &[TestGateway], callers: usize, customer: &str) -> BTreeMap<String, usize> {
    let mut asking = Vec::new();
    for number in 0..callers {
        let (address, body) = (replicas[number % replicas.len()].address, question(customer));
        asking.push(tokio::spawn(async move { post(address, READ, &[], &body).await }));
    }
    let mut seen = BTreeMap::new();
    for asked in asking {
        let reply = asked.await.unwrap();
        let cache_status = reply.header("cache-status").split("ttl=").next().unwrap().to_owned();
        let how = if is_shared(&reply) { "shared".to_owned() } else { format!("{} {cache_status}", reply.status) };
        *seen.entry(how).or_default() += 1;
    }
    seen
}

async fn shared(gateway: &TestGateway, result: &str) -> f64 {
    gateway.metric(&format!("zvgate_cache_shared_total{{result={result:?}}}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_callers_on_three_replicas_cause_one_fetch() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let replicas = redis.replicas(&platform, UNLIMITED).await;
    platform.faults(json!({ "latency_ms": 500 })).await;
    let before = platform.requests(READ).await;
    let seen = flood(&replicas, 300, "1").await;
    assert_eq!(platform.requests(READ).await, before + 1, "{seen:?}");
    assert_eq!(seen["200 zvgate; fwd=miss; stored; "], 1, "{seen:?}");
    assert_eq!((seen["200 zvgate; fwd=miss; collapsed"], seen["shared"]), (99, 200), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_fetched_is_a_hit_of_the_others() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let [one, two, _three] = redis.replicas(&platform, UNLIMITED).await;
    let before = platform.requests(READ).await;
    let first = one.read("1").await;
    assert!(first.is_stored_miss(), "{first:?}");
    until("it is stored", async || shared(&one, "stored").await > 0.0).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let found = two.read("1").await;
    assert!(is_shared(&found), "{found:?}");
    assert_eq!((found.body.clone(), found.header("content-type")), (first.body.clone(), first.header("content-type")));
    assert_eq!(found.header("age"), "1");
    assert_eq!(found.header("cache-status"), "zvgate; hit; ttl=28; detail=shared");
    let again = two.read("1").await;
    assert!(again.is_hit() && !is_shared(&again), "{again:?}");
    assert_eq!(platform.requests(READ).await, before + 1);
    assert_eq!((shared(&two, "hit").await, shared(&two, "miss").await), (1.0, 0.0));
    const LOOKUPS: &str = "zvgate_cache_lookups_total{result=\"hit\",route=\"/v3/crm/coupon/getCustomerCoupons\"}";
    assert_eq!(two.metric(LOOKUPS).await, 2.0);
    const SAVED: &str = "zvgate_upstream_calls_saved_total{route=\"/v3/crm/coupon/getCustomerCoupons\",tenant=\"one\"}";
    assert_eq!(two.metric(SAVED).await, 2.0);

    // One that starts now is warm at once.
    let late = redis.replica(&platform, UNLIMITED).await;
    assert!(is_shared(&late.read("1").await));
    assert_eq!(platform.requests(READ).await, before + 1);

    // Another tenant's, and another question, is not the same.
    let other = two.post(READ, &[("x-zvgate-tenant", "two")], &question("1")).await;
    assert!(other.is_stored_miss(), "{other:?}");
    let other = json!({ "params": { "customerId": "1", "useStatus": "0" } }).to_string();
    assert!(two.post(READ, &[], &other).await.is_stored_miss());
}

/// They all asked before it failed, and nobody needs to fail again.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_goes_to_those_who_wait_and_to_nobody_else() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let replicas = redis.replicas(&platform, &with(&[("upstream.attempt_timeout", "900ms")])).await;
    let cases = [
        (json!({ "fault": "http500", "latency_ms": 400 }), "500 zvgate; fwd=miss", None),
        (json!({ "fault": "error", "latency_ms": 400 }), "200 zvgate; fwd=miss", None),
        (json!({ "fault": "reset", "latency_ms": 400 }), "502 ", Some("upstream_failed")),
        (json!({ "fault": "hang" }), "504 ", Some("upstream_timeout")),
        (json!({ "fault": "garbage", "latency_ms": 400 }), "502 ", Some("upstream_failed")),
    ];
    for (fault, expected, error) in cases {
        platform.faults(fault.clone()).await;
        let before = platform.requests(READ).await;
        let seen = flood(&replicas, 30, "1").await;
        assert_eq!(platform.requests(READ).await, before + 1, "{fault}: {seen:?}");
        let all: usize = seen.iter().filter(|(how, _)| how.starts_with(expected)).map(|(_, number)| number).sum();
        assert_eq!(all, 30, "{fault}: {seen:?}");
        for replica in &replicas {
            let reply = replica.read("1").await;
            assert_eq!(error.map(|_| reply.json()["error"].clone()), error.map(Value::from), "{fault}: {reply:?}");
        }
        assert_eq!(platform.requests(READ).await, before + 4, "{fault}: each asked anew");
        platform.without_faults().await;
        // The breaker counts what this replica itself saw.
        until("it works again", async || flood(&replicas, 3, "other").await.keys().all(|how| !how.starts_with('5')))
            .await;
    }
}

/// One whose first coupon has ended by the time it arrives is true for those who waited, and is not stored.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_stored_goes_to_those_who_wait() {
    let redis = Redis::start();
    let scripted = Scripted::start(|_, _| {
        std::thread::sleep(Duration::from_millis(300));
        let end = time::OffsetDateTime::now_utc() + Duration::from_millis(900) + Duration::from_secs(8 * 3600);
        let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
        let end = end.format(&format).unwrap();
        Action::success(&format!(r#"[{{"cardId":"1","useStatus":0,"endAt":"{end}"}}]"#))
    })
    .await;
    let replicas = redis.replicas(&scripted, &with(&[("cache.expiry_margin", "5s")])).await;
    let count = || scripted.requests.lock().unwrap().len();
    let before = count();
    let seen = flood(&replicas, 30, "1").await;
    assert_eq!(count(), before + 1, "{seen:?}");
    assert!(seen.keys().all(|how| how.starts_with("200 zvgate; fwd=miss") && !how.contains("stored")), "{seen:?}");
    replicas[1].read("1").await;
    assert_eq!(count(), before + 2, "it was not stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_wants_a_newer_answer_gets_one() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let [one, two, three] = redis.replicas(&platform, UNLIMITED).await;
    let requests = async || platform.requests(READ).await;
    let stored = async |gateway: &TestGateway, number: f64| {
        until("it is stored", async || shared(gateway, "stored").await >= number).await;
    };
    one.read("1").await;
    stored(&one, 2.0).await;
    let before = requests().await;
    tokio::time::sleep(Duration::from_millis(1200)).await;

    // Older than that: fetched, and shared in place of the older one.
    let young = two.post(READ, &[("cache-control", "max-age=1")], &question("1")).await;
    assert!(young.is_stored_miss(), "{young:?}");
    assert_eq!(requests().await, before + 1);
    stored(&two, 1.0).await;
    let shared_one = three.post(READ, &[("cache-control", "max-age=1")], &question("1")).await;
    assert!(is_shared(&shared_one) && shared_one.header("age") == "0", "{shared_one:?}");
    assert_eq!(requests().await, before + 1);

    // A new fetch, which all have from then on.
    platform.change("1", "issue", json!({ "seconds": 3600 })).await;
    let new = three.post(READ, &[("cache-control", "no-cache")], &question("1")).await;
    assert_eq!(new.header("cache-status"), "zvgate; fwd=request");
    assert_eq!(requests().await, before + 2);
    stored(&three, 1.0).await;
    for gateway in [&one, &two] {
        let found = gateway.read("1").await;
        assert!(is_shared(&found) && found.body == new.body, "{found:?}");
    }
    assert_eq!(requests().await, before + 2);

    // One that is not to be stored is not, and changes nothing for others.
    platform.change("1", "issue", json!({ "seconds": 3600 })).await;
    let newest = one.post(READ, &[("cache-control", "no-store")], &question("1")).await;
    assert!(newest.body != new.body && requests().await == before + 3, "{newest:?}");
    let late = redis.replica(&platform, UNLIMITED).await;
    assert_eq!(late.read("1").await.body, new.body);
    assert_eq!(requests().await, before + 3);
}

/// The one that fetches may have sent its call before.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_wants_a_new_fetch_does_not_wait_for_that_of_another_replica() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let [one, two, _three] = redis.replicas(&platform, UNLIMITED).await;
    platform.faults(json!({ "latency_ms": 1500 })).await;
    let before = platform.requests(READ).await;
    let ask = |gateway: &TestGateway, headers: &'static [(&'static str, &'static str)]| {
        let address = gateway.address;
        tokio::spawn(async move { post(address, READ, headers, &question("1")).await })
    };
    let first = ask(&one, &[]);
    until("it was sent", async || platform.requests(READ).await == before + 1).await;
    platform.without_faults().await;
    let waiting = ask(&two, &[]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    platform.change("1", "issue", json!({ "seconds": 3600 })).await;
    let new = ask(&two, &[("cache-control", "no-cache")]).await.unwrap();
    assert!(new.text().contains("version=1"), "{new:?}");
    assert!(!first.is_finished(), "it does not wait for the earlier one");
    assert!(first.await.unwrap().text().contains("version=0"));
    // That one is not stored any more. Whoever waited for it may have either.
    let waited = waiting.await.unwrap();
    assert!(waited.text().contains("version="), "{waited:?}");
    for gateway in [&one, &two] {
        assert!(gateway.read("1").await.text().contains("version=1"));
    }
    assert_eq!(platform.requests(READ).await, before + 2);
}

/// What began before a write is served to those who asked before, and is not stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_began_before_a_write_is_not_shared() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let [one, two, three] = redis.replicas(&platform, UNLIMITED).await;
    let card = platform.change("1", "issue", json!({ "seconds": 3600 })).await["cardId"].clone();
    platform.faults(json!({ "latency_ms": 1000, "route": READ })).await;
    let before = platform.requests(READ).await;
    let address = one.address;
    let slow = tokio::spawn(async move { post(address, READ, &[], &question("1")).await });
    until("it was sent", async || platform.requests(READ).await == before + 1).await;
    platform.without_faults().await;
    let write = json!({ "params": { "bizId": "b", "customerId": "1", "couponsCardList": [card] } });
    let written = two.post(WRITE, &[], &write.to_string()).await;
    assert_eq!(written.header("x-zvgate-outcome"), "executed", "{written:?}");
    let refused = shared(&one, "refused").await + shared(&one, "stored").await;
    let slow = slow.await.unwrap();
    assert!(slow.text().contains("version=1") && !slow.is_stored_miss(), "{slow:?}");
    let read = three.read("1").await;
    assert!(read.is_stored_miss() && read.text().contains("version=2"), "{read:?}");
    assert_eq!(shared(&one, "stored").await + shared(&one, "refused").await, refused);
}

fn asked(gateway: &TestGateway, headers: &'static [(&'static str, &'static str)], body: String) -> Asked {
    let address = gateway.address;
    tokio::spawn(async move { post(address, READ, headers, &body).await })
}

type Asked = tokio::task::JoinHandle<Reply>;

/// Answers live no longer elsewhere than they would have here, whatever the clocks say.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_expires_everywhere_by_every_clock() {
    const ENDS_IN: u64 = 1000;
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let overrides = with(&[("cache.ttl", "3600s"), ("cache.expiry_margin", "0s"), ("upstream.follow_clock", "false")]);
    let one = redis.replica(&platform, &overrides).await;
    let fetch = async |customer: &str| {
        platform.change(customer, "issue", json!({ "seconds": ENDS_IN })).await;
        let stored = shared(&one, "stored").await;
        assert!(one.read(customer).await.is_stored_miss());
        until("it is stored", async || shared(&one, "stored").await > stored).await;
    };
    fetch("1").await;
    fetch("2").await;

    // A clock that is ahead ends it earlier; one that is behind does not end it later.
    let ahead = redis.replica(&platform, &overrides).await;
    ahead.clock.step_wall(900_000);
    let found = ahead.read("1").await;
    assert!(is_shared(&found), "{found:?}");
    let ttl: u64 =
        found.header("cache-status")["zvgate; hit; ttl=".len()..].split(';').next().unwrap().parse().unwrap();
    assert!((90..=100).contains(&ttl), "{ttl}");
    ahead.clock.step_wall(100_000);
    for customer in ["1", "2"] {
        let reply = ahead.read(customer).await;
        assert!(!reply.is_hit(), "{reply:?}");
    }
    let behind = redis.replica(&platform, &overrides).await;
    behind.clock.step_wall(-900_000);
    let found = behind.read("1").await;
    let ttl: u64 =
        found.header("cache-status")["zvgate; hit; ttl=".len()..].split(';').next().unwrap().parse().unwrap();
    assert!(is_shared(&found) && (980..=ENDS_IN).contains(&ttl), "{found:?}");
}

/// What Redis lost, or somebody wrote there, is fetched again.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_not_written_by_a_replica_is_no_answer() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let replicas = redis.replicas(&platform, UNLIMITED).await;
    let [one, two, three] = &replicas;
    for customer in ["1", "2"] {
        one.read(customer).await;
    }
    until("both are stored", async || shared(one, "stored").await >= 3.0).await;
    let entries = redis.command(&["keys", "zvgate:*:entry:*:c*"]);
    let entries: Vec<&str> = entries.lines().collect();
    let fields = |entry: &str| {
        let fields = redis.command(&["hkeys", entry]);
        fields.lines().filter(|field| *field != "fence").map(str::to_owned).collect::<Vec<_>>()
    };
    // Each entry gets the answer of another, under its own question, and an answer that is nobody's.
    let value = |entry: &str, field: &str| {
        let script = "local v = redis.call('HGET', KEYS[1], ARGV[1]) redis.call('SET', 'zvgate:copy', v) return #v";
        redis.command(&["eval", script, "1", entry, field]);
    };
    let paste = |entry: &str, field: &str, change: &str| {
        let script = "local v = redis.call('GET', 'zvgate:copy') if ARGV[2] == 'cut' then v = string.sub(v, 1, -2) end if ARGV[2] == 'junk' then v = string.match(v, '^%d+ %S+ ') .. 'junk' end redis.call('HSET', KEYS[1], ARGV[1], v) return 1";
        redis.command(&["eval", script, "1", entry, field, change]);
    };
    assert_eq!(entries.len(), 3, "{entries:?}");
    for change in ["", "cut", "junk"] {
        let before = platform.requests(READ).await;
        let name = |entry: &&&str| fields(entry).first().cloned();
        let (from, to) = (entries[0], entries[1]);
        let (from_field, to_field) = (name(&&from).unwrap(), name(&&to).unwrap());
        value(from, &from_field);
        paste(to, &to_field, change);
        for reader in [two, three] {
            for customer in ["1", "2", "first"] {
                let reply = reader.read(customer).await;
                assert_eq!(reply.status, 200, "{change}: {reply:?}");
                let list = reply.json()["data"]["list"].clone();
                assert!(
                    list.as_array().unwrap().iter().all(|coupon| coupon["customerId"] == customer),
                    "{change}: {list}"
                );
            }
        }
        assert!(platform.requests(READ).await <= before + 1, "{change}: only what was broken was fetched");
        // From memory no more.
        for customer in ["1", "2", "first"] {
            let body = json!({ "customerIds": [customer] }).to_string();
            one.post("/v1/invalidate", &[], &body).await;
            one.read(customer).await;
        }
        until("all are stored", async || {
            redis.command(&["keys", "zvgate:*:entry:*:c*"]).lines().all(|entry| fields(entry).len() == 1)
        })
        .await;
    }
    // An entry that is lost is begun anew.
    for entry in redis.command(&["keys", "zvgate:*:entry:*"]).lines() {
        redis.command(&["del", entry]);
    }
    two.post("/v1/invalidate", &[], &json!({ "customerIds": ["1"] }).to_string()).await;
    assert!(two.read("1").await.is_stored_miss());
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_with_other_settings_share_no_answers() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let one = redis.replica(&platform, UNLIMITED).await;
    let two = redis.replica(&platform, &with(&[("cache.ttl", "60s")])).await;
    for gateway in [&one, &two] {
        until("it is stored", async || gateway.read("1").await.is_hit()).await;
        assert_eq!(shared(gateway, "hit").await, 0.0);
    }
    // Writes concern both.
    one.post("/v1/invalidate", &[], &json!({ "customerIds": ["1"] }).to_string()).await;
    assert!(two.read("1").await.is_stored_miss());
}

/// They have the same customers, and not the same answers; each replica numbers them in its own order.
#[tokio::test(flavor = "multi_thread")]
async fn grants_of_one_merchant_do_not_get_each_others_answers() {
    let redis = Redis::start();
    let scripted = Scripted::start(|_, request| {
        let grant = if request.contains("\"grantCode\":\"ba67d4fa46\"") { "first" } else { "second" };
        Action::success(&format!("[{{\"cardId\":\"{grant}\"}}]"))
    })
    .await;
    let same = [("tenants.two.open_id", crate::support::MERCHANTS[0].0)];
    let same = with(&same);
    let [one, two, _] = redis.replicas(&scripted, &same).await;
    let swapped: Vec<_> = same
        .iter()
        .copied()
        .chain([("tenants.one.grant_code", "fake-grant-code-0001"), ("tenants.two.grant_code", "ba67d4fa46")])
        .collect();
    let other = redis.replica(&scripted, &swapped).await;
    let ask = async |gateway: &TestGateway, tenant: &'static str| {
        gateway.post(READ, &[("x-zvgate-tenant", tenant)], &question("1")).await.text()
    };
    for _ in 0..2 {
        assert!(ask(&one, "one").await.contains("first") && ask(&one, "two").await.contains("second"));
        assert!(ask(&two, "two").await.contains("second") && ask(&two, "one").await.contains("first"));
        assert!(ask(&other, "one").await.contains("second") && ask(&other, "two").await.contains("first"));
    }
    assert!(shared(&two, "hit").await > 0.0);
}

/// Questions about no customer are shared, and ended, by their own names.
#[tokio::test(flavor = "multi_thread")]
async fn answers_about_no_customer_are_shared_and_superseded() {
    const FILE: &str = "[[routes]]\npath = \"/v3/crm/coupon/status\"\nkind = \"cached\"\ncustomer = []\n";
    let redis = Redis::start();
    let number = std::sync::atomic::AtomicUsize::new(0);
    let scripted = Scripted::start(move |_, request| {
        let number = number.fetch_add(usize::from(request.contains("/status")), std::sync::atomic::Ordering::SeqCst);
        Action::success(&format!("[{{\"cardId\":\"number {number}\"}}]"))
    })
    .await;
    let replicas = [
        redis.replica_of(&scripted, UNLIMITED, FILE).await,
        redis.replica_of(&scripted, UNLIMITED, FILE).await,
        redis.replica_of(&scripted, UNLIMITED, FILE).await,
    ];
    let ask = async |gateway: &TestGateway, headers: &[(&str, &str)]| {
        let reply = gateway.post("/v3/crm/coupon/status", headers, r#"{"params":{"a":1}}"#).await;
        (reply.text().contains("number 0"), is_shared(&reply))
    };
    until("there is a slot", async || ask(&replicas[0], &[]).await.0).await;
    until("it is stored", async || shared(&replicas[0], "stored").await > 0.0).await;
    assert_eq!(ask(&replicas[1], &[]).await, (true, true));
    assert_eq!(ask(&replicas[2], &[("cache-control", "no-cache")]).await, (false, false));
    until("it is stored", async || shared(&replicas[2], "stored").await > 0.0).await;
    assert_eq!(ask(&replicas[0], &[]).await, (false, true));
    assert_eq!(ask(&replicas[1], &[]).await, (false, true));
}

/// The one that fetches may be gone, or have lost its connection.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_a_replica_that_is_gone_fetches_itself() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let [one, two, _three] = redis.replicas(&platform, UNLIMITED).await;
    platform.faults(json!({ "latency_ms": 60_000 })).await;
    let before = platform.requests(READ).await;
    let lost = asked(&one, &[], question("1"));
    until("it was sent", async || platform.requests(READ).await == before + 1).await;
    platform.without_faults().await;
    let waits = asked(&two, &[], question("1"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(platform.requests(READ).await, before + 1);
    one.stop.cancel();
    // Its thread sends no heartbeat any more.
    one.inner.cluster().leave().await;
    let reply = tokio::time::timeout(Duration::from_secs(5), waits).await.unwrap().unwrap();
    assert_eq!((reply.status, platform.requests(READ).await), (200, before + 2), "{reply:?}");
    lost.abort();
}

/// The lease is released as soon as nobody waits for it here.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_released_when_its_callers_have_left() {
    let (platform, redis) = (Platform::rate_limited().await, Redis::start());
    let overrides = [("limits.max_wait", "10s"), ("cache.settle", "0s")];
    let [one, two, _three] = redis.replicas(&platform, &overrides).await;
    // Its callers wait for a slot, since all are taken.
    let busy: Vec<Asked> = (0..30).map(|number| asked(&one, &[], question(&format!("busy {number}")))).collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let leaves = asked(&one, &[("x-request-timeout-ms", "700")], question("1"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let waits = asked(&two, &[], question("1"));
    assert_eq!(leaves.await.unwrap().status, 504);
    let reply = waits.await.unwrap();
    assert!(reply.is_stored_miss(), "{reply:?}");
    for asked in busy {
        asked.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_refuses_answers_and_nothing_else() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let replicas = redis.replicas(&platform, UNLIMITED).await;
    let [one, two, _three] = &replicas;
    assert_eq!(redis.command(&["config", "set", "maxmemory", "1000"]), "OK");
    let (before, stored) = (platform.requests(READ).await, shared(one, "stored").await);
    assert!(one.read("1").await.is_stored_miss());
    until("it was refused", async || shared(one, "refused").await == 1.0).await;
    assert!(two.read("1").await.is_stored_miss());
    assert_eq!((platform.requests(READ).await, shared(one, "stored").await), (before + 2, stored));
    // Nobody waits for the lease of one whose answer was refused.
    platform.faults(json!({ "latency_ms": 200 })).await;
    let seen = flood(&replicas, 30, "2").await;
    assert_eq!(seen.values().sum::<usize>(), 30);
    assert!(seen.keys().all(|how| how.starts_with("200 ")), "{seen:?}");
    assert!(platform.requests(READ).await <= before + 5, "{seen:?}");
    assert_eq!(redis.command(&["config", "set", "maxmemory", "0"]), "OK");
    one.read("3").await;
    until("it is stored", async || shared(one, "stored").await > stored).await;
    assert!(is_shared(&two.read("3").await));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_page_shows_what_is_here_and_what_is_shared() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let [one, two, _three] = redis.replicas(&platform, UNLIMITED).await;
    one.read("1").await;
    until("it is stored", async || shared(&one, "stored").await >= 2.0).await;
    let page = async |gateway: &TestGateway| gateway.page("/cache/customers/1").await.json();
    let (here, elsewhere) = (page(&one).await, page(&two).await);
    assert_eq!(elsewhere["answers"], json!([]));
    assert_eq!(here["answers"].as_array().unwrap().len(), 1, "{here}");
    for shown in [&here["shared"], &elsewhere["shared"]] {
        assert_eq!(shown.as_array().unwrap().len(), 1, "{shown}");
        assert_eq!(shown[0]["question"], here["answers"][0]["question"]);
        let (fresh_for, age) = (shown[0]["fresh_for"].as_f64().unwrap(), shown[0]["age"].as_f64().unwrap());
        assert!(fresh_for > 25.0 && fresh_for <= 30.0 && age < 5.0, "{shown}");
        assert_eq!(shown[0]["bound"], "ttl");
    }
    one.post("/v1/invalidate", &[], r#"{"customerIds":["1"]}"#).await;
    assert_eq!(page(&two).await["shared"], json!([]));
    redis.signal("STOP");
    assert_eq!(page(&two).await["shared"], Value::Null);
    redis.signal("CONT");
    let alone = TestGateway::start(&platform, &[]).await;
    assert_eq!(page(&alone).await.get("shared"), None);
}

/// At most as many as in memory, however many questions are asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_customer_has_a_bounded_number_of_answers() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let one = redis.replica(&platform, UNLIMITED).await;
    for number in 0..80 {
        let body = json!({ "params": { "customerId": "1", "templateId": number.to_string() } }).to_string();
        assert_eq!(one.post(READ, &[], &body).await.status, 200);
    }
    until("all were stored", async || shared(&one, "stored").await >= 80.0).await;
    let entry = redis.command(&["keys", "zvgate:*:entry:*:c*"]);
    assert_eq!(redis.command(&["hlen", &entry]), "65", "64 answers and the fence");
    assert!(redis.command(&["pttl", &entry]).parse::<u64>().unwrap() <= 60_000);
}

/// Its queue is its own: another replica may find a slot sooner.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_finds_no_slot_does_not_keep_others_from_it() {
    let (platform, redis) = (Platform::rate_limited().await, Redis::start());
    let replica = async |max_wait: &str| redis.replica(&platform, &[("limits.max_wait", max_wait)]).await;
    let (one, two) = (replica("1200ms").await, replica("4s").await);
    until("there is a slot", async || two.read("first").await.status == 200).await;
    let slots = redis.command(&["keys", "zvgate:*:slots:*"]);
    // Somebody else has all of them, again and again for a while.
    let take = || {
        let script = "local t = redis.call('TIME') for n = 1, 10 do redis.call('ZADD', KEYS[1], t[1] * 1000 + math.floor(t[2] / 1000) + 500, 'other' .. n) end redis.call('PEXPIRE', KEYS[1], 10000)";
        redis.command(&["eval", script, "1", &slots]);
    };
    take();
    let first = asked(&one, &[], question("1"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let second = asked(&two, &[], question("1"));
    while !first.is_finished() {
        take();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    first.await.unwrap().assert_error(429, "upstream_limited");
    redis.command(&["del", &slots]);
    let second = second.await.unwrap();
    assert!(second.is_stored_miss(), "{second:?}");
}

/// A caller that gives up affects no other caller, whichever replica that one asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_nobody_waited_for_is_nobody_elses() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let retried = with(&[("upstream.retries", "2")]);
    let [one, two, _three] = redis.replicas(&platform, &retried).await;
    platform.faults(json!({ "fault": "http500", "times": 1, "latency_ms": 700 })).await;
    let before = platform.requests(READ).await;
    let leaves = asked(&one, &[("x-request-timeout-ms", "400")], question("1"));
    until("it was sent", async || platform.requests(READ).await == before + 1).await;
    let stays = asked(&two, &[], question("1"));
    assert_eq!(leaves.await.unwrap().status, 504);
    let stays = stays.await.unwrap();
    assert!(stays.is_stored_miss(), "{stays:?}");
    assert_eq!(platform.requests(READ).await, before + 2);
}

/// Those who wait for one that cannot be shared do not wait for each other.
// The platform blocks a thread for each call.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn an_answer_that_is_too_long_to_be_shared_delays_others_once() {
    let redis = Redis::start();
    let number = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (under_way, most) =
        (std::sync::Arc::clone(&number), std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let seen = std::sync::Arc::clone(&most);
    let scripted = Scripted::start(move |_, _| {
        use std::sync::atomic::Ordering::SeqCst;
        seen.fetch_max(under_way.fetch_add(1, SeqCst) + 1, SeqCst);
        std::thread::sleep(Duration::from_secs(1));
        under_way.fetch_sub(1, SeqCst);
        Action::success(&format!("[{{\"cardId\":\"{}\"}}]", "x".repeat(2 << 20)))
    })
    .await;
    let replicas = redis.replicas(&scripted, UNLIMITED).await;
    let count = || scripted.requests.lock().unwrap().len();
    let before = count();
    let seen = flood(&replicas, 30, "1").await;
    assert!(seen.keys().all(|how| how.starts_with("200 ")), "{seen:?}");
    assert_eq!(count(), before + 3, "each replica fetched it once");
    assert_eq!(most.load(std::sync::atomic::Ordering::SeqCst), 2, "two of them at the same time");
}

/// Whoever shares a Redis by mistake shares no answers.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_before_other_platforms_share_no_answers() {
    let redis = Redis::start();
    let platform = async |name: &'static str| {
        Scripted::start(move |_, _| Action::success(&format!("[{{\"cardId\":\"{name}\"}}]"))).await
    };
    let (live, trial) = (platform("live").await, platform("trial").await);
    let (one, two) = (redis.replica(&live, UNLIMITED).await, redis.replica(&trial, UNLIMITED).await);
    until("there is an answer", async || one.read("1").await.status == 200).await;
    until("it is stored", async || shared(&one, "stored").await > 0.0).await;
    assert!(two.read("1").await.text().contains("trial"));
    assert!(one.read("1").await.text().contains("live"));
}

/// Requests in the order of their popularity: the second customer is asked for half as often as the first, and so on.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(customers: usize) -> Self {
        let mut sum = 0.0;
        let add = |rank: usize| {
            sum += 1.0 / (rank as f64);
            sum
        };
        Self((1..=customers).map(add).collect())
    }

    fn draw(&self) -> usize {
        let point = fastrand::f64() * self.0.last().unwrap();
        self.0.partition_point(|sum| *sum < point)
    }
}

/// The same requests to one process and to three replicas: the bill is the same.
#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_make_as_many_calls_as_one_process() {
    const CUSTOMERS: usize = 10_000;
    const EVERY: Duration = Duration::from_millis(4);
    let part = super::history::part();
    let ttl = format!("{}ms", part.as_millis());
    let overrides = [("cache.ttl", ttl.as_str())];
    let overrides = with(&overrides);
    let (single, several, redis) = (Platform::unlimited().await, Platform::unlimited().await, Redis::start());
    for platform in [&single, &several] {
        platform.faults(json!({ "latency_ms": 20 })).await;
    }
    let alone = TestGateway::start(&single, &overrides).await;
    let replicas = redis.replicas(&several, &overrides).await;
    let before = [single.requests(READ).await, several.requests(READ).await];
    let (zipf, mut asking, mut ticks) = (Zipf::new(CUSTOMERS), Vec::new(), tokio::time::interval(EVERY));
    let requests = part.as_millis() * 2 / EVERY.as_millis();
    for _ in 0..requests {
        ticks.tick().await;
        let customer = zipf.draw().to_string();
        let replica = &replicas[fastrand::usize(..replicas.len())];
        asking.push(asked(&alone, &[], question(&customer)));
        asking.push(asked(replica, &[], question(&customer)));
    }
    for asked in asking {
        assert_eq!(asked.await.unwrap().status, 200);
    }
    let calls = [single.requests(READ).await - before[0], several.requests(READ).await - before[1]];
    let ratio = calls[1] as f64 / calls[0] as f64;
    println!("{requests} requests: {} calls of one process, {} of three replicas: {ratio:.4}", calls[0], calls[1]);
    assert!((0.95..1.05).contains(&ratio), "{calls:?}");
}

/// Whatever ends what replicas hold, ends what they share.
#[tokio::test(flavor = "multi_thread")]
async fn what_ends_answers_ends_shared_ones() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let [one, two, three] = redis.replicas(&platform, UNLIMITED).await;
    let delete = async |page: &'static str| {
        assert_eq!(super::answers::delete(&one, page).await.status, 200);
    };
    let is_fetched = async |what: &str| {
        let read = two.read("1").await;
        assert!(read.is_stored_miss(), "{what}: {read:?}");
        until("it is shared", async || is_shared(&three.read("1").await) || three.read("1").await.is_hit()).await;
    };
    is_fetched("first").await;
    one.post("/v1/invalidate", &[], r#"{"customerIds":["1"]}"#).await;
    is_fetched("invalidated").await;
    for page in ["/cache/customers/1", "/cache?tenant=one", "/cache?all=true"] {
        delete(page).await;
        is_fetched(page).await;
    }
    delete("/cache?tenant=two").await;
    assert!(one.read("1").await.is_hit(), "another merchant's");
    let card = platform.change("1", "issue", json!({ "seconds": 3600 })).await["cardId"].clone();
    let body =
        |customer: Value| json!({ "params": { "bizId": "b", "customerId": customer, "couponsCardList": [card] } });
    one.post(WRITE, &[], &body(json!("1")).to_string()).await;
    is_fetched("written").await;
    platform.faults(json!({ "fault": "http500", "route": WRITE })).await;
    one.post(WRITE, &[], &body(Value::Null).to_string()).await;
    platform.without_faults().await;
    is_fetched("written for nobody known").await;
}

/// Between invalidating what it holds and the end in Redis, the replica that writes may get an older shared answer.
#[tokio::test(flavor = "multi_thread")]
async fn the_replica_that_writes_holds_no_shared_answer_from_before() {
    const ROUNDS: usize = 200;
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let [one, two, _three] = redis.replicas(&platform, UNLIMITED).await;
    let mut cards = Vec::new();
    for number in 0..ROUNDS {
        let customer = format!("w{number}");
        cards.push(platform.change(&customer, "issue", json!({ "seconds": 3600 })).await["cardId"].clone());
        two.read(&customer).await;
    }
    until("all are shared", async || shared(&two, "stored").await >= ROUNDS as f64).await;
    let mut readers = Vec::new();
    for _ in 0..4 {
        readers.push(Caller::connect(one.address).await);
    }
    let mut found = 0.0;
    for (number, card) in cards.into_iter().enumerate() {
        let customer = format!("w{number}");
        let write = json!({ "params": { "bizId": customer, "customerId": customer, "couponsCardList": [card] } });
        let address = one.address;
        let write = tokio::spawn(async move { post(address, WRITE, &[], &write.to_string()).await });
        let before = shared(&one, "hit").await;
        let reading = readers.drain(..).map(|mut reader| {
            let (customer, is_written) = (customer.clone(), write.abort_handle());
            tokio::spawn(async move {
                while !is_written.is_finished() {
                    reader.read(&customer).await;
                }
                reader
            })
        });
        let reading: Vec<_> = reading.collect();
        for reader in reading {
            readers.push(reader.await.unwrap());
        }
        assert_eq!(write.await.unwrap().header("x-zvgate-outcome"), "executed");
        let read = one.read(&customer).await;
        assert!(read.text().contains("version=2"), "{number}: {read:?}");
        found += shared(&one, "hit").await - before;
    }
    assert!(found > 0.0, "no shared answer was read while a write was under way");
}

/// Others may not know of it, and have older answers to share.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_cannot_be_published_is_seen_through_its_own_replica() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let [one, two, _three] = redis.replicas(&platform, UNLIMITED).await;
    for (customer, reads_meanwhile) in [("1", true), ("2", false)] {
        let card = platform.change(customer, "issue", json!({ "seconds": 3600 })).await["cardId"].clone();
        two.read(customer).await;
        until("it is shared", async || {
            !two.page(&format!("/cache/customers/{customer}")).await.json()["shared"][0].is_null()
        })
        .await;
        assert_eq!(redis.command(&["acl", "setuser", "default", "-del"]), "OK");
        let write = json!({ "params": { "bizId": customer, "customerId": customer, "couponsCardList": [card] } });
        let address = one.address;
        let write = tokio::spawn(async move { post(address, WRITE, &[], &write.to_string()).await });
        until("it was executed", async || platform.requests(WRITE).await > 0).await;
        if reads_meanwhile {
            // While it is tried to publish the end.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let read = one.read(customer).await;
            assert!(is_shared(&read) && !write.is_finished(), "{read:?}");
        }
        assert_eq!(write.await.unwrap().header("x-zvgate-outcome"), "executed");
        let read = one.read(customer).await;
        assert!(read.text().contains("version=2"), "{reads_meanwhile}: {read:?}");
        assert!(two.read(customer).await.text().contains("version=1"), "it is not published yet");
        redis.command(&["acl", "setuser", "default", "+del"]);
        until("it is published", async || two.read(customer).await.text().contains("version=2")).await;
    }
}

/// Older answers that are stored do not hide what became of the fetch that was waited for.
#[tokio::test(flavor = "multi_thread")]
async fn callers_that_want_a_young_answer_share_a_failure_too() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let replicas = redis.replicas(&platform, UNLIMITED).await;
    replicas[0].read("1").await;
    until("it is stored", async || shared(&replicas[0], "stored").await >= 2.0).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    platform.faults(json!({ "fault": "http500", "latency_ms": 500 })).await;
    let before = platform.requests(READ).await;
    let young: Vec<Asked> =
        (0..30).map(|number| asked(&replicas[number % 3], &[("cache-control", "max-age=1")], question("1"))).collect();
    for asked in young {
        assert_eq!(asked.await.unwrap().status, 500);
    }
    assert_eq!(platform.requests(READ).await, before + 1);
}

/// Its fetch was removed from its stripe by the write, and began after it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn those_who_waited_across_a_write_share_one_fetch_after_it() {
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let replicas = redis.replicas(&platform, UNLIMITED).await;
    platform.faults(json!({ "latency_ms": 600 })).await;
    let before = platform.requests(READ).await;
    let waiting: Vec<Asked> = (0..30).map(|number| asked(&replicas[number % 3], &[], question("1"))).collect();
    until("it was sent", async || platform.requests(READ).await == before + 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    replicas[0].post("/v1/invalidate", &[], r#"{"customerIds":["1"]}"#).await;
    for asked in waiting {
        assert_eq!(asked.await.unwrap().status, 200);
    }
    assert_eq!(platform.requests(READ).await, before + 2, "one before it, one after it");
}

/// One that was executed without a reply may have got answers stored under its name, and another end may have come since.
#[tokio::test(flavor = "multi_thread")]
async fn every_attempt_to_publish_an_end_has_a_fence_of_its_own() {
    use std::io::Read;
    let (platform, redis) = (Platform::unlimited().await, Redis::start());
    let one = redis.replica(&platform, UNLIMITED).await;
    assert_eq!(redis.command(&["acl", "setuser", "default", "-del"]), "OK");
    let mut monitor = redis.monitor();
    let reading = std::thread::spawn(move || {
        let (mut seen, mut bytes) = (Vec::new(), vec![0; 1 << 16]);
        while seen.len() < 4 << 20 && !String::from_utf8_lossy(&seen).contains("enough") {
            let read = monitor.read(&mut bytes).unwrap_or(0);
            seen.extend_from_slice(&bytes[..read]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    });
    one.post("/v1/invalidate", &[], r#"{"customerIds":["1"]}"#).await;
    redis.command(&["echo", "enough"]);
    let seen = reading.join().unwrap();
    let fences: Vec<&str> = seen.split('"').filter(|word| word.contains(":end:") && word.len() < 40).collect();
    let distinct: std::collections::BTreeSet<_> = fences.iter().collect();
    assert!(fences.len() > 3 && distinct.len() == fences.len(), "{fences:?}");
}

/// What nothing came of takes no memory in Redis, however many ask.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_read_leaves_nothing_in_redis() {
    let (platform, redis) = (Platform::rate_limited().await, Redis::start());
    let overrides = [("limits.max_wait", "100ms"), ("cache.settle", "0s"), ("limits.max_waiters", "1024")];
    let one = redis.replica(&platform, &overrides).await;
    until("there is a slot", async || one.read("first").await.status == 200).await;
    let asked: Vec<Asked> = (0..300).map(|number| asked(&one, &[], question(&format!("many {number}")))).collect();
    let mut rejected = 0;
    for asked in asked {
        rejected += usize::from(asked.await.unwrap().status == 429);
    }
    assert!(rejected > 200, "{rejected}");
    let entries = async || redis.command(&["keys", "zvgate:*:entry:*:c*"]).lines().count();
    until("the rest is removed", async || entries().await <= 301 - rejected).await;
    assert!(!redis.command(&["keys", "zvgate:*:lease:*"]).contains("lease"), "no lease is left");
}
