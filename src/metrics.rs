//! Prometheus metrics: typed handles, made once; label values are closed sets or names from the configuration.

mod cluster;
mod handles;
mod labels;
mod names;
mod totals;
mod vecs;

use std::cell::RefCell;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

pub use self::cluster::ClusterMetrics;
use self::handles::UNROUTED;
pub use self::handles::{ANONYMOUS, CallMetrics, CallerMetrics, Handles, InFlight, Per, RouteMetrics, TenantMetrics};
pub use self::labels::{
    AttemptResult, BreakerState, CacheUse, Changed, ClusterOp, ClusterResult, Invalidation, Label, Limit, LookupResult,
    Shadowed, SharedResult, Unparsed,
};
use self::names::{Names, Retain};
pub use self::totals::{Lifetimes, Totals};
use self::vecs::Vecs;
use crate::cache::{CacheMetrics, LimitedBy};

/// From a hit in memory to the longest wait that is configured by default.
pub const DURATIONS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0];
/// From lifetimes that are hardly worth caching to a day.
const LIFETIMES: &[f64] = &[0.5, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 86_400.0];

/// All metrics of a gateway.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Those with labels, which may be names.
    labelled: Vec<Box<dyn Retain>>,
    vecs: Vecs,
    /// Those of the cache.
    pub cache: CacheMetrics,
    /// Memory of the cache, in bytes.
    pub cache_bytes: IntGauge,
    /// Lifetimes of stored answers, in seconds.
    pub cache_ttl: Per<LimitedBy, Histogram>,
    /// Invalidations of customers and tenants.
    pub invalidations: Per<Invalidation, IntCounter>,
    /// Connections closed without a response.
    pub connections_dropped: IntCounter,
    /// Open connections of callers.
    pub connections: IntGauge,
    /// TLS handshakes of callers that failed.
    pub handshake_failures: IntCounter,
    /// Requests whose task panicked.
    pub panics: IntCounter,
    /// Requests that were rejected before they were parsed.
    pub unparsed: Per<Unparsed, IntCounter>,
    /// When the certificate for callers expires, in seconds since the Unix epoch; without a series if there is none.
    certificate_expiry: IntGaugeVec,
    /// Log lines that were dropped.
    pub log_lines_dropped: IntCounter,
    /// How far the platform's clock is ahead of ours, in seconds.
    pub clock_skew: Gauge,
    /// Whether the last reload succeeded.
    pub reload_success: IntGauge,
    /// Whether the last lookup of the platform's name succeeded.
    pub dns_success: IntGauge,
    /// Spans of traces that were dropped.
    pub spans_dropped: IntCounter,
    /// Whether the counts of calls were stored when that was last tried.
    pub budget_store_success: IntGauge,
    /// The least of `budget.warn_calls`; without a series if there is none.
    budget_warn_calls: IntGaugeVec,
    /// What limits there are, and how near they are.
    pub limits: LimitMetrics,
}

/// Limits and how near they are.
#[derive(Debug)]
pub struct LimitMetrics {
    /// `cache.max_bytes`.
    pub cache_max_bytes: IntGauge,
    /// `upstream.max_inflight`.
    pub max_inflight: IntGauge,
    /// `server.max_connections`.
    pub max_connections: IntGauge,
    /// Callers that wait for the fetch for which most wait.
    pub waiters: IntGauge,
    /// `limits.max_waiters`.
    pub max_waiters: IntGauge,
}

impl LimitMetrics {
    fn new(make: &Maker) -> Self {
        Self {
            cache_max_bytes: make
                .gauge("zvgate_cache_max_bytes", "Memory that the cache may take in bytes (cache.max_bytes)"),
            max_inflight: make.gauge(
                "zvgate_upstream_max_inflight",
                "Attempts of one tenant that may be in flight (upstream.max_inflight)",
            ),
            max_connections: make
                .gauge("zvgate_max_connections", "Connections of callers that may be open (server.max_connections)"),
            waiters: make.gauge("zvgate_fetch_waiters", "Callers that wait for the fetch for which most of them wait"),
            max_waiters: make
                .gauge("zvgate_fetch_max_waiters", "Callers that may wait for one fetch (limits.max_waiters)"),
        }
    }
}

/// Creates and registers metrics. Names are constants, so that the only possible error is a duplicate in this file.
struct Maker {
    registry: Registry,
    /// The metrics with labels.
    labelled: RefCell<Vec<Box<dyn Retain>>>,
}

impl Maker {
    fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("metric names and labels in this file are well formed");
        self.registry.register(Box::new(collector.clone())).expect("each metric in this file has its own name");
        collector
    }

    fn labelled<C: Collector + Clone + Retain + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = self.add(made);
        self.labelled.borrow_mut().push(Box::new(collector.clone()));
        collector
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.labelled(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        self.labelled(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.labelled(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }
}

impl Metrics {
    /// All metrics, at zero.
    pub fn new() -> Self {
        let make = Maker { registry: Registry::new(), labelled: RefCell::default() };
        make.registry
            .register(Box::new(ProcessCollector::for_self()))
            .expect("the process collector has its own names");
        let build: GaugeVec = make.add(GaugeVec::new(
            Opts::new("zvgate_build_info", "Version and revision of the gateway; always 1"),
            &["version", "revision"],
        ));
        let revision = option_env!("ZVGATE_REVISION").unwrap_or("unknown");
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1.0);

        let reload_success =
            make.gauge("zvgate_config_reload_success", "Whether the last configuration reload succeeded: 0 or 1");
        reload_success.set(1);
        let vecs = Vecs::new(&make);
        let evictions = make.counters("zvgate_cache_evictions_total", "Evicted answers by cause", &["cause"]);
        let lifetimes = make.histograms(
            "zvgate_cache_ttl_seconds",
            "Lifetimes of stored answers in seconds, by what limited them",
            &["bound"],
            LIFETIMES,
        );
        let invalidations = make.counters(
            "zvgate_cache_invalidations_total",
            "Invalidations of customers or tenants by cause",
            &["cause"],
        );
        let unparsed = make.counters(
            "zvgate_rejected_requests_total",
            "Requests rejected before they were parsed, by reason",
            &["reason"],
        );
        Self {
            cache: CacheMetrics {
                entries: make.gauge("zvgate_cache_entries", "Cached answers"),
                expired: evictions.with_label_values(&["expired"]),
                size: evictions.with_label_values(&["size"]),
            },
            cache_bytes: make.gauge("zvgate_cache_bytes", "Memory of the cache in bytes: keys, bodies, overhead and lookaside tables"),
            cache_ttl: Per::new(|bound| lifetimes.with_label_values(&[bound])),
            invalidations: Per::new(|cause| invalidations.with_label_values(&[cause])),
            connections_dropped: vecs.limited.with_label_values(&[Limit::Connections.name(), ANONYMOUS]),
            connections: make.gauge("zvgate_connections", "Open connections of callers"),
            handshake_failures: make.counter("zvgate_tls_handshake_failures_total", "TLS handshakes of callers that failed"),
            panics: make.counter("zvgate_panics_total", "Requests whose task panicked, which is a defect of the gateway"),
            unparsed: Per::new(|reason| unparsed.with_label_values(&[reason])),
            certificate_expiry: make.gauges(
                "zvgate_tls_certificate_expiry_timestamp_seconds",
                "When the certificate for callers expires, in seconds since the Unix epoch",
                &[],
            ),
            log_lines_dropped: make.counter("zvgate_log_lines_dropped_total", "Log lines that were dropped because they were read too slowly, or could not be written"),
            clock_skew: make.add(Gauge::new(
                "zvgate_clock_skew_seconds",
                "How far the platform's clock is ahead of this machine's in seconds, negative if it is behind; 0 before its first answer",
            )),
            reload_success,
            dns_success: make.gauge("zvgate_upstream_dns_success", "Whether the last lookup of the platform's name succeeded, or none was needed: 0 or 1"),
            spans_dropped: make.counter("zvgate_spans_dropped_total", "Spans of traces that were dropped because the collector was too slow or failed"),
            budget_store_success: make.gauge("zvgate_budget_store_success", "Whether the counts of calls were written to budget.store when that was last tried, or need not be: 0 or 1"),
            budget_warn_calls: make.gauges("zvgate_budget_warn_calls", "The least of budget.warn_calls: billed calls a month at which to warn", &[]),
            limits: LimitMetrics::new(&make),
            vecs,
            labelled: make.labelled.into_inner(),
            registry: make.registry,
        }
    }

    /// Those of a replica that shares a Redis with others. `replicas`: how many there should be. Called once: without
    /// Redis there is none of these.
    pub fn cluster(&self, replicas: u32) -> ClusterMetrics {
        ClusterMetrics::new(replicas, &Maker { registry: self.registry.clone(), labelled: RefCell::default() })
    }

    /// Handles for the names of a configuration: routes and callers in order, tenants with their numbers. Counters of names
    /// that existed before continue, and series of other names are removed.
    pub fn handles(&self, routes: &[&str], callers: &[&str], tenants: &[(usize, &str)]) -> Handles {
        let callers: Vec<&str> = std::iter::once(ANONYMOUS).chain(callers.iter().copied()).collect();
        let all_routes: Vec<&str> = std::iter::once(UNROUTED).chain(routes.iter().copied()).collect();
        let all_tenants: Vec<&str> = tenants.iter().map(|(_, tenant)| *tenant).collect();
        let names = Names { tenants: &all_tenants, routes: &all_routes, callers: &callers };
        self.labelled.iter().for_each(|metrics| metrics.retain(&names));
        Handles::new(&self.vecs, routes, &callers, tenants)
    }

    /// Sets when the certificate for callers expires.
    pub fn set_certificate_expiry(&self, expires: Option<u64>) {
        set_or_remove(&self.certificate_expiry, expires);
    }

    /// Sets the least threshold of the budget.
    pub fn set_budget_warn_calls(&self, threshold: Option<u32>) {
        set_or_remove(&self.budget_warn_calls, threshold.map(u64::from));
    }

    /// All metrics in Prometheus' text format, version 0.0.4.
    pub fn page(&self) -> String {
        let mut page = Vec::new();
        // Families that were registered can be written, and writing to memory cannot fail.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut page);
        String::from_utf8(page).unwrap_or_default()
    }

    /// The type of [`Metrics::page`].
    pub const CONTENT_TYPE: &'static str = prometheus::TEXT_FORMAT;
}

/// Sets a gauge without labels that has no series without a value.
fn set_or_remove(gauge: &IntGaugeVec, value: Option<u64>) {
    let none: [&str; 0] = [];
    match value {
        Some(value) => gauge.with_label_values(&none).set(i64::try_from(value).unwrap_or(i64::MAX)),
        None => gauge.reset(),
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
