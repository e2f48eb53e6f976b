//! What is counted of the replicas' exchange through Redis.

use prometheus::{Histogram, IntCounter, IntGauge};

use super::handles::Per;
use super::labels::{ClusterOp, ClusterResult, SharedResult};
use super::{DURATIONS, Maker};

/// The metrics of a replica that shares a Redis with others.
#[derive(Clone, Debug)]
pub struct ClusterMetrics {
    /// Whether it acts as one with the others.
    pub up: IntGauge,
    /// Replicas that live, this one included.
    pub replicas: IntGauge,
    requests: Per<ClusterOp, Per<ClusterResult, IntCounter>>,
    /// Durations of what Redis was asked, in seconds.
    pub duration: Per<ClusterOp, Histogram>,
    /// How often the right to serve from memory lapsed.
    pub lease_lost: IntCounter,
    /// Ends of writes that other replicas did not learn of in time.
    pub fence_missed: IntCounter,
    /// Requests served from memory while cut off.
    pub unfenced_hits: IntCounter,
    /// Answers that replicas share.
    pub shared: Per<SharedResult, IntCounter>,
}

impl ClusterMetrics {
    pub(super) fn new(expected: u32, make: &Maker) -> Self {
        let requests = make.counters(
            "zvgate_cluster_requests_total",
            "Requests to Redis by operation and result",
            &["op", "result"],
        );
        let duration = make.histograms(
            "zvgate_cluster_duration_seconds",
            "Time that Redis took to answer in seconds, by operation",
            &["op"],
            DURATIONS,
        );
        let shared = make.counters(
            "zvgate_cache_shared_total",
            "Answers that replicas share through Redis: fetches that one made unnecessary (hit) or for which there was none (miss), answers stored, and not stored (refused)",
            &["result"],
        );
        make.gauge("zvgate_cluster_expected_replicas", "Replicas that should live (cluster.replicas)")
            .set(expected.into());
        Self {
            up: make
                .gauge("zvgate_cluster_up", "Whether this replica acts as one with the others through Redis: 0 or 1"),
            replicas: make
                .gauge("zvgate_cluster_replicas", "Live replicas, this one included; 0 while it is disconnected"),
            requests: Per::new(|op| Per::new(|result| requests.with_label_values(&[op, result]))),
            duration: Per::new(|op| duration.with_label_values(&[op])),
            lease_lost: make.counter(
                "zvgate_cluster_lease_lost_total",
                "Times that the right to serve from memory lapsed because no heartbeat was answered in time",
            ),
            fence_missed: make.counter(
                "zvgate_cluster_fence_missed_total",
                "Invalidations, by writes and others, that could not be published to other replicas in time",
            ),
            unfenced_hits: make.counter(
                "zvgate_cluster_unfenced_hits_total",
                "Requests served from memory while Redis was unreachable",
            ),
            shared: Per::new(|result| shared.with_label_values(&[result])),
        }
    }

    /// Counts a request to Redis.
    pub fn count(&self, op: ClusterOp, result: ClusterResult) {
        self.requests.of(op).of(result).inc();
    }
}
