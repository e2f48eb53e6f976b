//! The metrics whose labels are names from the configuration.

use prometheus::{GaugeVec, HistogramVec, IntCounterVec, IntGaugeVec, Opts};

use super::{DURATIONS, Maker};

/// The metrics whose labels are names from the configuration.
#[derive(Debug)]
pub(super) struct Vecs {
    pub(super) requests: IntCounterVec,
    pub(super) duration: HistogramVec,
    pub(super) lookups: IntCounterVec,
    pub(super) refetches: IntCounterVec,
    pub(super) shadowed: IntCounterVec,
    pub(super) stale_shown: IntCounterVec,
    pub(super) not_cached: IntCounterVec,
    pub(super) billed_month: IntGaugeVec,
    pub(super) rejected: IntCounterVec,
    pub(super) waiting: IntGaugeVec,
    pub(super) attempts: IntCounterVec,
    pub(super) retries: IntCounterVec,
    pub(super) outcome_unknown: IntCounterVec,
    pub(super) upstream_duration: HistogramVec,
    pub(super) saved: IntCounterVec,
    pub(super) wait: HistogramVec,
    pub(super) rate: GaugeVec,
    pub(super) inflight: IntGaugeVec,
    pub(super) key_suspect: IntGaugeVec,
    pub(super) breaker_open: IntGaugeVec,
    pub(super) breaker_transitions: IntCounterVec,
    pub(super) limited: IntCounterVec,
}

impl Vecs {
    pub(super) fn new(make: &Maker) -> Self {
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
            stale_shown: make.counters(
                "zvgate_stale_shown_total",
                "Writes that the platform refused for a customer who was served from the cache in the 10 minutes before",
                &["route"],
            ),
            not_cached: make.counters(
                "zvgate_not_cached_total",
                "Requests with only-if-cached that nothing cached could answer, so that they got 504",
                &["route"],
            ),
            billed_month: make.gauges(
                "zvgate_billed_calls_month",
                "Calls of the current month that are billed, as counted by this process and by earlier ones with the same budget.store",
                &["tenant"],
            ),
            rejected: make.counters(
                "zvgate_limit_rejected_total",
                "Calls rejected because no slot or capacity in flight came in time",
                PAIR,
            ),
            waiting: make.gauges("zvgate_limit_waiting", "Calls that wait for a slot", PAIR),
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
