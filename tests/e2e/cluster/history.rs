//! Reads and writes through all replicas at random while something fails, and a checker of what was read: guarantee 4, and the rate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{Platform, REVERSE, TestGateway, WRITE};

const CUSTOMERS: usize = 20;
const WRITERS: usize = 5;
const READERS: usize = 20;
/// Calls of one merchant in any second, strictly counted by the sandbox.
pub(super) const RATE: usize = 100;

/// How long each part of a run takes, in seconds; more for the long runs.
#[expect(clippy::disallowed_methods, reason = "whoever runs the tests says how long")]
pub(super) fn part() -> Duration {
    let seconds = std::env::var("ZVGATE_CLUSTER_SECONDS").ok().map(|seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(3))
}

/// The overrides of every run. Retries would hide what callers see.
pub(super) const OVERRIDES: &[(&str, &str)] = &[
    ("limits.upstream.rate", "100"),
    ("cache.ttl", "5s"),
    ("cache.settle", "0s"),
    ("cache.settle_unknown", "0s"),
    ("upstream.retries", "0"),
];

pub(super) async fn platform() -> Platform {
    let platform = Platform::start(RATE, zvgate::clock::Clock::system()).await;
    platform.faults(json!({ "jitter_ms": 10 })).await;
    platform
}

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    reads: AtomicUsize,
    hits: AtomicUsize,
    /// Reads by replicas that were cut off, which may be stale.
    unfenced: AtomicUsize,
    /// Reads that got an error, by its name and when to try again.
    failed: parking_lot::Mutex<BTreeMap<String, usize>>,
    writes: AtomicUsize,
    /// Writes of which other replicas may not know.
    unfenced_writes: AtomicUsize,
    failed_writes: AtomicUsize,
}

/// A run: it goes on until it is finished.
pub(super) struct Run {
    stop: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    seen: Arc<Seen>,
    name: &'static str,
}

/// What came of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) hits: usize,
    pub(super) writes: usize,
    /// Reads by replicas that were cut off.
    pub(super) unfenced: usize,
    /// Reads and writes that got an error.
    pub(super) failed: usize,
}

fn version(text: &str) -> u64 {
    let (_, rest) = text.split_once("version=").unwrap_or_else(|| panic!("{text}"));
    rest.split('"').next().unwrap().parse().unwrap()
}

fn is_cut_off(gateway: &TestGateway) -> bool {
    gateway.inner.cluster().is_cut_off()
}

impl Run {
    /// Starts readers and writers.
    pub(super) async fn start(name: &'static str, platform: &Platform, replicas: &[Arc<TestGateway>]) -> Self {
        let written: Arc<Vec<AtomicU64>> = Arc::new((0..CUSTOMERS).map(|_| AtomicU64::new(0)).collect());
        let (stop, seen) = (CancellationToken::new(), Arc::<Seen>::default());
        let mut tasks = Vec::new();
        for writer in 0..WRITERS {
            let mut cards = Vec::new();
            for customer in (writer..CUSTOMERS).step_by(WRITERS) {
                let issued = platform.change(&format!("c{customer}"), "issue", json!({ "seconds": 3600 })).await;
                cards.push((customer, issued["cardId"].clone(), 1));
                written[customer].store(1, Ordering::SeqCst);
            }
            let (replicas, written, stop, seen) =
                (replicas.to_vec(), Arc::clone(&written), stop.clone(), Arc::clone(&seen));
            tasks.push(tokio::spawn(async move {
                let mut number = 0;
                while !stop.is_cancelled() {
                    let place = number % cards.len();
                    // The last is the version that the platform has.
                    let (customer, card, executed) = &mut cards[place];
                    let biz = format!("{writer}-{number}");
                    let write = json!({ "params": {
                        "bizId": biz, "customerId": format!("c{customer}"), "couponsCardList": [card],
                    } });
                    for (path, body) in [(WRITE, write), (REVERSE, json!({ "params": { "bizId": biz } }))] {
                        if !execute(&replicas, path, &body.to_string(), &written[*customer], executed, &seen, &stop)
                            .await
                        {
                            return;
                        }
                        tokio::time::sleep(Duration::from_millis(fastrand::u64(200..600))).await;
                    }
                    number += 1;
                }
            }));
        }
        for _ in 0..READERS {
            let (replicas, written, stop, seen) =
                (replicas.to_vec(), Arc::clone(&written), stop.clone(), Arc::clone(&seen));
            tasks.push(tokio::spawn(async move {
                while !stop.is_cancelled() {
                    let (replica, customer) =
                        (&replicas[fastrand::usize(..replicas.len())], fastrand::usize(..CUSTOMERS));
                    read(replica, customer, &written[customer], &seen).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }));
        }
        Self { stop, tasks, seen, name }
    }

    #[expect(clippy::print_stdout, reason = "the figures of the run")]
    /// Ends it: no read was stale, and the platform rejected no call.
    pub(super) async fn finish(self, platform: &Platform) -> Counts {
        self.stop.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
        let stats = platform.stats().await;
        println!("{}: {:?}; calls {}", self.name, self.seen, stats["requests"]);
        assert_eq!(stats["refused"], json!({}), "the platform rejected a call");
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        let counts = Counts {
            hits: count(&self.seen.hits),
            writes: count(&self.seen.writes),
            unfenced: count(&self.seen.unfenced) + count(&self.seen.unfenced_writes),
            failed: self.seen.failed.lock().values().sum::<usize>() + count(&self.seen.failed_writes),
        };
        assert!(counts.hits > 100 && counts.writes > 10, "too few for a meaningful result: {counts:?}");
        counts
    }
}

/// Executes a write, and repeats it until that is certain: no other may be made before. Returns whether it was executed.
async fn execute(
    replicas: &[Arc<TestGateway>],
    path: &str,
    body: &str,
    written: &AtomicU64,
    executed: &mut u64,
    seen: &Seen,
    stop: &CancellationToken,
) -> bool {
    const MISSED: &str = "zvgate_cluster_fence_missed_total";
    loop {
        let replica = &replicas[fastrand::usize(..replicas.len())];
        let missed = replica.metric(MISSED).await;
        let reply = replica.post(path, &[], body).await;
        match reply.header("x-zvgate-outcome") {
            "executed" | "refused" if reply.status == 200 => {
                let code = reply.json()["code"].clone();
                assert!(code == 0, "{reply:?}");
                seen.writes.fetch_add(1, Ordering::SeqCst);
                // The metric is counted before the write is answered.
                *executed += 1;
                if replica.metric(MISSED).await == missed {
                    written.fetch_max(*executed, Ordering::SeqCst);
                } else {
                    seen.unfenced_writes.fetch_add(1, Ordering::SeqCst);
                }
                return true;
            }
            "not-sent" => {
                seen.failed_writes.fetch_add(1, Ordering::SeqCst);
                if stop.is_cancelled() {
                    return false;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            _ => panic!("{reply:?}"),
        }
    }
}

async fn read(replica: &TestGateway, customer: usize, written: &AtomicU64, seen: &Seen) {
    let before = written.load(Ordering::SeqCst);
    let was_cut_off = is_cut_off(replica);
    let reply = replica.read(&format!("c{customer}")).await;
    let is_fenced = !was_cut_off && !is_cut_off(replica);
    seen.reads.fetch_add(1, Ordering::SeqCst);
    seen.unfenced.fetch_add(usize::from(!is_fenced), Ordering::SeqCst);
    seen.hits.fetch_add(usize::from(reply.is_hit()), Ordering::SeqCst);
    if reply.status != 200 {
        let error = format!("{} {}", reply.json()["error"], reply.header("retry-after"));
        *seen.failed.lock().entry(error).or_default() += 1;
    } else if is_fenced {
        let seen = version(&reply.text());
        assert!(seen >= before, "c{customer}: {seen} after {before}, from {}: {reply:?}", replica.address);
    }
}
