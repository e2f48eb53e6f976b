//! Prometheus metrics: typed handles, made once; label values are closed sets or names from the configuration.

mod cluster;
mod handles;
mod labels;
mod names;

use std::cell::RefCell;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

pub use self::cluster::ClusterMetrics;
use self::handles::UNROUTED;
pub use self::handles::{ANONYMOUS, CallMetrics, CallerMetrics, Handles, Per, RouteMetrics, TenantMetrics};
pub use self::labels::{
    AttemptResult, BreakerState, CacheUse, Changed, ClusterOp, ClusterResult, Invalidation, Label, Limit, LookupResult,
    Shadowed, SharedResult, Unparsed,
};
use self::names::{Names, Retain};
use crate::cache::{CacheMetrics, LimitedBy};

/// From a hit in memory to the longest wait that is configured by default.
const DURATIONS: &[f64] =
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
}

/// The metrics whose labels are names from the configuration.
#[derive(Debug)]
struct Vecs {
    requests: IntCounterVec,
    duration: HistogramVec,
    lookups: IntCounterVec,
    refetches: IntCounterVec,
    shadowed: IntCounterVec,
    attempts: IntCounterVec,
    retries: IntCounterVec,
    outcome_unknown: IntCounterVec,
    upstream_duration: HistogramVec,
    saved: IntCounterVec,
    wait: HistogramVec,
    rate: GaugeVec,
    inflight: IntGaugeVec,
    key_suspect: IntGaugeVec,
    breaker_open: IntGaugeVec,
    breaker_transitions: IntCounterVec,
    limited: IntCounterVec,
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
            vecs,
            labelled: make.labelled.into_inner(),
            registry: make.registry,
        }
    }

    /// Those of a replica that shares a Redis with others. Called once: without Redis there is none of these.
    pub fn cluster(&self) -> ClusterMetrics {
        ClusterMetrics::new(&Maker { registry: self.registry.clone(), labelled: RefCell::default() })
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
        match expires {
            Some(expires) => {
                let none: [&str; 0] = [];
                let gauge = self.certificate_expiry.with_label_values(&none);
                gauge.set(i64::try_from(expires).unwrap_or(i64::MAX));
            }
            None => self.certificate_expiry.reset(),
        }
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

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Vecs {
    fn new(make: &Maker) -> Self {
        const PAIR: &[&str] = &["tenant", "route"];
        Self {
            requests: make.counters(
                "zvgate_requests_total",
                "Requests by route, caller and status",
                &["route", "caller", "status"],
            ),
            duration: make.histograms(
                "zvgate_request_duration_seconds",
                "Time from a request's head to its response in seconds",
                &["route", "cache"],
                DURATIONS,
            ),
            lookups: make.counters("zvgate_cache_lookups_total", "Cache lookups by result", &["route", "result"]),
            refetches: make.counters(
                "zvgate_cache_refetch_total",
                "Refetches by whether the answer had changed",
                &["route", "changed"],
            ),
            shadowed: make.counters(
                "zvgate_shadow_total",
                "Reads with cache.mode = shadow for which the cache had an answer, by whether the platform gave the same",
                &["route", "result"],
            ),
            attempts: make.counters(
                "zvgate_upstream_attempts_total",
                "Attempts at the platform by outcome",
                &["tenant", "route", "outcome"],
            ),
            retries: make.counters("zvgate_upstream_retries_total", "Attempts beyond the first of a call", PAIR),
            outcome_unknown: make.counters(
                "zvgate_write_outcome_unknown_total",
                "Writes that were sent and whose outcome is unknown",
                PAIR,
            ),
            upstream_duration: make.histograms(
                "zvgate_upstream_duration_seconds",
                "Durations of attempts in seconds",
                PAIR,
                DURATIONS,
            ),
            saved: make.counters(
                "zvgate_upstream_calls_saved_total",
                "Requests answered without a call of their own",
                PAIR,
            ),
            wait: make.histograms(
                "zvgate_limit_wait_seconds",
                "Time that calls waited for a slot in seconds",
                PAIR,
                DURATIONS,
            ),
            rate: make
                .labelled(GaugeVec::new(Opts::new("zvgate_upstream_rate", "Calls that a window allows now"), PAIR)),
            inflight: make.gauges("zvgate_upstream_inflight", "Attempts in flight", &["tenant"]),
            key_suspect: make.gauges(
                "zvgate_key_suspect",
                "Whether the platform throttles although the rate limit is kept, since its last success: 0 or 1",
                &["tenant"],
            ),
            breaker_open: make.gauges(
                "zvgate_breaker_open",
                "Whether the circuit breaker is open or half-open: 0 or 1",
                PAIR,
            ),
            breaker_transitions: make.counters(
                "zvgate_breaker_transitions_total",
                "Transitions of the circuit breaker by the state that it entered",
                &["tenant", "route", "to"],
            ),
            limited: make.counters("zvgate_limited_total", "Requests rejected by a limit", &["limit", "caller"]),
        }
    }
}
