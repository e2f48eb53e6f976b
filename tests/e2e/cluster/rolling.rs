//! A rolling restart, as the chart does it: each replica is replaced by one that is ready, under load, with the chart's drain times.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use parking_lot::Mutex;
use serde_json::json;

use super::processes::Process;
use crate::redis::Redis;
use crate::support::{Caller, Platform, READ, WRITE, until};

const CALLERS: usize = 50;
/// Of each caller: ten requests a second, 500 of all.
const PAUSE: Duration = Duration::from_millis(100);
const CUSTOMERS: usize = 60;
/// How long a cluster sends new connections to a pod that ends.
const PROPAGATION: Duration = Duration::from_secs(3);

/// The pods that new connections go to.
#[derive(Clone, Default)]
struct Service(Arc<(Mutex<Vec<SocketAddr>>, AtomicUsize)>);

impl Service {
    fn add(&self, address: SocketAddr) {
        self.0.0.lock().push(address);
    }

    fn remove(&self, address: SocketAddr) {
        self.0.0.lock().retain(|other| *other != address);
    }

    async fn connect(&self) -> Caller {
        let address = {
            let addresses = self.0.0.lock();
            addresses[self.0.1.fetch_add(1, Ordering::Relaxed) % addresses.len()]
        };
        Caller::connect(address).await
    }
}

/// Sends requests on kept connections until the end; returns how many.
async fn call(service: Service, path: &'static str, pause: Duration, first: usize, end: Arc<AtomicBool>) -> usize {
    let mut caller = service.connect().await;
    let mut number = 0;
    // A request that was late is made up for.
    let mut ticks = tokio::time::interval(pause);
    while !end.load(Ordering::Relaxed) {
        if caller.is_closed() {
            caller = service.connect().await;
        }
        let body = json!({ "params": { "customerId": format!("c{}", (first + number) % CUSTOMERS) } }).to_string();
        let request = Request::post(path).header("host", "localhost").header("content-type", "application/json");
        let reply = caller.send(request.body(Full::new(body.into())).unwrap()).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        if path == READ {
            assert_eq!(reply.json()["code"], 0, "{reply:?}");
        } else {
            // The card is unknown: the platform answers so.
            assert_eq!(reply.header("x-zvgate-outcome"), "refused", "{reply:?}");
        }
        number += 1;
        if reply.header("connection") == "close" {
            caller = service.connect().await;
        }
        ticks.tick().await;
    }
    number
}

/// A value of the chart, in seconds.
fn chart_seconds(name: &str) -> PathBuf {
    let values =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/helm/zvgate/values.yaml")).unwrap();
    let value = values.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap();
    format!("{value}s").into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_fails_no_request_and_keeps_the_rate() {
    let clock = zvgate::clock::Clock::system();
    let (platform, redis) = (Platform::start(10, clock.clone()).await, Redis::start());
    let drain = [
        ("ZVGATE__SERVER__DRAIN_DELAY", chart_seconds("drainDelaySeconds")),
        ("ZVGATE__SERVER__DRAIN_TIMEOUT", chart_seconds("drainTimeoutSeconds")),
    ];
    let start = || Process::start_with(&platform, &redis, "", &drain);
    let (service, mut replicas) = (Service::default(), Vec::new());
    for _ in 0..3 {
        let replica = start().await;
        service.add(replica.address);
        replicas.push(replica);
    }
    // At most ten a second can be fetched: then all are in Redis.
    for customer in 0..CUSTOMERS {
        let customer = format!("c{customer}");
        until("there is a slot", async || service.connect().await.read(&customer).await.status == 200).await;
    }

    let end = Arc::new(AtomicBool::new(false));
    let spawn = |path, pause, first| tokio::spawn(call(service.clone(), path, pause, first, Arc::clone(&end)));
    let begun = clock.boot();
    let mut callers: Vec<_> = (0..CALLERS).map(|first| spawn(READ, PAUSE, first)).collect();
    callers.push(spawn(WRITE, Duration::from_secs(1), 0));
    for replica in &mut replicas {
        // One more than before, then one less: maxSurge 1, maxUnavailable 0.
        let next = start().await;
        service.add(next.address);
        let mut old = std::mem::replace(replica, next);
        old.running.signal("TERM");
        tokio::time::sleep(PROPAGATION).await;
        service.remove(old.address);
        assert_eq!(tokio::task::block_in_place(|| old.running.code()), 0);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    end.store(true, Ordering::Relaxed);
    let mut requests = 0;
    for caller in callers {
        requests += caller.await.unwrap();
    }
    // 500 a second, and what the machine was late with.
    let seconds = usize::try_from(clock.boot().since(begun).as_secs()).unwrap();
    assert!(requests > 450 * seconds, "{requests} requests in {seconds} s");
    assert_eq!(platform.stats().await["refused"], json!({}), "the platform rejected a call");
}
