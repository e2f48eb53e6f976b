//! What operators see: typed handles, made once; label values are closed sets or names from the configuration.

mod labels;

use std::marker::PhantomData;
use std::sync::OnceLock;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

pub use self::labels::{CacheUse, Changed, Invalidation, Label, Limit, Lookup, Outcome};
use crate::cache::{Bound, Tally};

/// From a hit in memory to the longest wait that is configured by default.
const DURATIONS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0];
/// From lives that are hardly worth keeping to a day.
const LIVES: &[f64] = &[0.5, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 86_400.0];
/// Statuses that HTTP knows, each counted under its own name.
const STATUSES: std::ops::Range<u16> = 100..600;

/// One metric for each value of a label.
#[derive(Debug)]
pub struct Per<L, M>(Vec<M>, PhantomData<L>);

impl<L: Label, M> Per<L, M> {
    fn new(make: impl FnMut(&'static str) -> M) -> Self {
        Self(L::NAMES.iter().copied().map(make).collect(), PhantomData)
    }

    /// The metric of a value.
    pub fn of(&self, label: L) -> &M {
        self.0.get(label.index()).expect("one was made for each value of the label")
    }
}

/// What is counted for a route.
#[derive(Debug)]
pub struct RouteMetrics {
    requests: Vec<OnceLock<IntCounter>>,
    requests_by: IntCounterVec,
    route: String,
    /// How long answers took, in seconds.
    pub duration: Per<CacheUse, Histogram>,
    /// Look-ups in the cache.
    pub lookups: Per<Lookup, IntCounter>,
    /// Refetches, by whether the answer that they replaced was still true.
    pub refetches: Per<Changed, IntCounter>,
}

impl RouteMetrics {
    /// Counts an answered request.
    pub fn request(&self, status: u16, cache: CacheUse, took: Duration) {
        let place = usize::from(status.wrapping_sub(STATUSES.start));
        let make = || self.requests_by.with_label_values(&[self.route.as_str(), ANONYMOUS, &status.to_string()]);
        match self.requests.get(place) {
            Some(counter) => counter.get_or_init(make).inc(),
            None => self.requests_by.with_label_values(&[self.route.as_str(), ANONYMOUS, "other"]).inc(),
        }
        self.duration.of(cache).observe(took.as_secs_f64());
    }
}

/// What is counted for a tenant's calls to a route.
#[derive(Debug)]
pub struct CallMetrics {
    /// Attempts by how they ended.
    pub attempts: Per<Outcome, IntCounter>,
    /// How long attempts took, in seconds, from signing to the end of the answer.
    pub duration: Histogram,
    /// Requests that needed no call of their own.
    pub saved: IntCounter,
    /// How long calls waited for their turn, in seconds.
    pub wait: Histogram,
    /// Calls that a window allows now; infinitely many where there is no pace.
    pub rate: Gauge,
}

/// The caller's name where no caller is configured.
const ANONYMOUS: &str = "anonymous";

/// All metrics of a gateway.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    routes: Vec<RouteMetrics>,
    /// Requests that were refused before they had a route.
    pub unrouted: RouteMetrics,
    /// By tenant, then by route.
    calls: Vec<Vec<CallMetrics>>,
    inflight: Vec<IntGauge>,
    /// What the cache counts.
    pub cache: Tally,
    /// Memory of the cache, in bytes.
    pub cache_bytes: IntGauge,
    /// Lives of kept answers, in seconds.
    pub cache_ttl: Per<Bound, Histogram>,
    /// Invalidations of a customer's, or a tenant's, answers.
    pub invalidations: Per<Invalidation, IntCounter>,
    /// Requests refused by a limit.
    pub limited: Per<Limit, IntCounter>,
    /// Open connections of callers.
    pub connections: IntGauge,
    breaker_open: Vec<IntGauge>,
    /// How far the platform's clock is ahead of ours, in seconds.
    pub clock_skew: Gauge,
}

/// Registers what is made: names are constants, so that the only failure is a name that stands twice in this file.
struct Maker(Registry);

impl Maker {
    fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("metric names and labels in this file are well formed");
        self.0.register(Box::new(collector.clone())).expect("each metric in this file has its own name");
        collector
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }
}

impl Metrics {
    /// All metrics, at zero. `tenants` and `routes` give the names in their order.
    pub fn new(tenants: &[&str], routes: &[&str]) -> Self {
        let make = Maker(Registry::new());
        make.0.register(Box::new(ProcessCollector::for_self())).expect("the process collector has its own names");
        let build: GaugeVec = make.add(GaugeVec::new(
            Opts::new("zvgate_build_info", "The version that runs; always 1"),
            &["version", "revision"],
        ));
        let revision = option_env!("ZVGATE_REVISION").unwrap_or("unknown");
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1.0);

        let (routed, unrouted) = Self::routes(&make, routes);
        let calls = Self::calls(&make, tenants, routes);
        let inflight: IntGaugeVec =
            make.add(IntGaugeVec::new(Opts::new("zvgate_upstream_inflight", "Attempts under way"), &["tenant"]));
        let breakers: IntGaugeVec = make.add(IntGaugeVec::new(
            Opts::new("zvgate_breaker_open", "Whether nothing is sent, as the platform does not answer: 0 or 1"),
            &["tenant"],
        ));
        let evictions = make.counters("zvgate_cache_evictions_total", "Answers that went, by cause", &["cause"]);
        let lives = make.histograms(
            "zvgate_cache_ttl_seconds",
            "Lives of kept answers, by what bounded them",
            &["bound"],
            LIVES,
        );
        let ended =
            make.counters("zvgate_cache_invalidations_total", "Invalidated customers or tenants, by cause", &["cause"]);
        let limited = make.counters("zvgate_limited_total", "Requests refused by a limit", &["limit", "caller"]);
        Self {
            routes: routed,
            unrouted,
            calls,
            inflight: tenants.iter().map(|tenant| inflight.with_label_values(&[*tenant])).collect(),
            cache: Tally {
                entries: make.gauge("zvgate_cache_entries", "Answers in the cache"),
                expired: evictions.with_label_values(&["expired"]),
                size: evictions.with_label_values(&["size"]),
            },
            cache_bytes: make.gauge("zvgate_cache_bytes", "Memory of the cache: keys, bodies and overhead, in bytes"),
            cache_ttl: Per::new(|bound| lives.with_label_values(&[bound])),
            invalidations: Per::new(|cause| ended.with_label_values(&[cause])),
            limited: Per::new(|limit| limited.with_label_values(&[limit, ANONYMOUS])),
            connections: make.gauge("zvgate_connections", "Open connections of callers"),
            breaker_open: tenants.iter().map(|tenant| breakers.with_label_values(&[*tenant])).collect(),
            clock_skew: make.add(Gauge::new(
                "zvgate_clock_skew_seconds",
                "How far the platform's clock is ahead of this machine's; 0 before its first answer",
            )),
            registry: make.0,
        }
    }

    fn routes(make: &Maker, routes: &[&str]) -> (Vec<RouteMetrics>, RouteMetrics) {
        let requests_by = make.counters("zvgate_requests_total", "Answered requests", &["route", "caller", "status"]);
        let duration = make.histograms(
            "zvgate_request_duration_seconds",
            "How long answers took, from the request's head to the answer's",
            &["route", "cache"],
            DURATIONS,
        );
        let lookups = make.counters("zvgate_cache_lookups_total", "Look-ups in the cache", &["route", "result"]);
        let refetches = make.counters(
            "zvgate_cache_refetch_total",
            "Refetches, by whether the answer that they replaced had changed",
            &["route", "changed"],
        );
        let one = |route: &&str| RouteMetrics {
            requests: STATUSES.map(|_| OnceLock::new()).collect(),
            requests_by: requests_by.clone(),
            route: (*route).to_owned(),
            duration: Per::new(|cache| duration.with_label_values(&[*route, cache])),
            lookups: Per::new(|result| lookups.with_label_values(&[*route, result])),
            refetches: Per::new(|changed| refetches.with_label_values(&[*route, changed])),
        };
        (routes.iter().map(one).collect(), one(&"none"))
    }

    fn calls(make: &Maker, tenants: &[&str], routes: &[&str]) -> Vec<Vec<CallMetrics>> {
        const PAIR: &[&str] = &["tenant", "route"];
        let attempts = make.counters(
            "zvgate_upstream_attempts_total",
            "Attempts upstream, by how they ended",
            &["tenant", "route", "outcome"],
        );
        let duration = make.histograms("zvgate_upstream_duration_seconds", "How long attempts took", PAIR, DURATIONS);
        let saved =
            make.counters("zvgate_upstream_calls_saved_total", "Requests answered without a call of their own", PAIR);
        let wait =
            make.histograms("zvgate_limit_wait_seconds", "How long calls waited for their turn", PAIR, DURATIONS);
        let rates: GaugeVec =
            make.add(GaugeVec::new(Opts::new("zvgate_upstream_rate", "Calls that a window allows now"), PAIR));
        let one = |tenant: &str, route: &str| CallMetrics {
            attempts: Per::new(|outcome| attempts.with_label_values(&[tenant, route, outcome])),
            duration: duration.with_label_values(&[tenant, route]),
            saved: saved.with_label_values(&[tenant, route]),
            wait: wait.with_label_values(&[tenant, route]),
            rate: rates.with_label_values(&[tenant, route]),
        };
        let of_tenant = |tenant: &&str| routes.iter().map(|route| one(tenant, route)).collect();
        tenants.iter().map(of_tenant).collect()
    }

    /// The metrics of a route.
    pub fn route(&self, index: usize) -> &RouteMetrics {
        self.routes.get(index).unwrap_or(&self.unrouted)
    }

    /// The metrics of a tenant's calls to a route.
    pub fn call(&self, tenant: usize, route: usize) -> &CallMetrics {
        self.calls.get(tenant).and_then(|routes| routes.get(route)).expect("one was made for each tenant and route")
    }

    /// The attempts of a tenant that are under way.
    pub fn inflight(&self, tenant: usize) -> &IntGauge {
        self.inflight.get(tenant).expect("one was made for each tenant")
    }

    /// Whether a tenant's breaker is open.
    pub fn breaker_open(&self, tenant: usize) -> &IntGauge {
        self.breaker_open.get(tenant).expect("one was made for each tenant")
    }

    /// Everything in Prometheus' text format, version 0.0.4.
    pub fn page(&self) -> String {
        let mut page = Vec::new();
        // Families that were registered can be written, and writing to memory cannot fail.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut page);
        String::from_utf8(page).unwrap_or_default()
    }

    /// The type of [`Metrics::page`].
    pub const CONTENT_TYPE: &'static str = prometheus::TEXT_FORMAT;
}
