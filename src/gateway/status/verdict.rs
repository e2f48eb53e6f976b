//! Whether everything is well, and if not, why, and what to do: the same conditions that the alerts in `deploy/monitoring` have, judged by
//! one process for itself.

use std::collections::HashMap;

use serde::Serialize;

use super::history::{Incidents, Step, hit_ratio, reads};
use super::{Failure, Money, PlatformRow, RateRow, span};
use crate::cluster::ClusterStatus;
use crate::upstream::BreakerPosition;

/// Whether everything is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The worst of the findings; `ok` without any.
    pub level: Severity,
    /// In one sentence.
    pub summary: String,
    /// What is not as it should be, the worst first.
    pub findings: Vec<Finding>,
    /// Findings beyond these.
    pub more: usize,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is known that is not as it should be.
    Ok,
    /// Something to know of.
    Notice,
    /// Something to see to on the next working day.
    Warning,
    /// Something to see to at once.
    Critical,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub what: String,
    /// What to do, as the runbook says.
    pub advice: &'static str,
    /// The alert, and the section of the runbook; empty for notices.
    pub runbook: &'static str,
}

/// A condition: its alert, and what to do. `docs/runbook.md` has a section for each, with this sentence.
pub(super) type Condition = (&'static str, &'static str);

macro_rules! conditions {
    ($($name:ident = ($alert:literal, $advice:literal);)+) => {
        $(const $name: Condition = ($alert, $advice);)+

        /// All conditions.
        pub const CONDITIONS: &[Condition] = &[$($name),+];
    };
}

conditions! {
    FAILING = ("ZvgateUpstreamFailing", "Look at the cause: it names the resolver, the connection, the certificate, the timeout or the HTTP status that failed.");
    DNS = ("ZvgateDnsFailing", "Restore the resolver, or correct the name in upstream.base_url or upstream.proxy: until then the last good addresses are used.");
    BREAKER = ("ZvgateBreakerOpen", "Calls are suspended and probed again by themselves; the cause says what to repair at the platform or on the way to it.");
    THROTTLED = ("ZvgateThrottledByOthers", "Find who else uses this identity: the platform counts all calls of an open_id together, and this gateway kept the rate.");
    KEY = ("ZvgateKeySuspect", "Compare open_id, grant_code and the signing key with the platform's; a new key in open_key_file is read without a restart.");
    REQUESTS = ("ZvgateRequestsFailing", "Look at the failed requests below, or in the log: each has its cause, and the alert of that cause says what to do.");
    CONNECTIONS = ("ZvgateConnectionsRejected", "Find who opens so many connections; raise server.max_connections and the limit of open files if they are needed.");
    WAITERS = ("ZvgateWaitersRejected", "Find why the platform answers slowly; raise limits.max_waiters if that many callers do ask for the same customer.");
    QUEUE = ("ZvgateQueueFull", "More is asked than the platform's rate allows: raise the hit ratio, or ask the platform for a higher rate.");
    CLOCK = ("ZvgateClockSkew", "Correct this machine's clock (NTP): the platform rejects signatures that are too far off.");
    HIT_RATIO = ("ZvgateHitRatioCollapsed", "Find what changed: a caller that sends no-cache or new params, many writes, or a cache that is too small.");
    OUTCOME = ("ZvgateWriteOutcomeUnknown", "Ask the platform what became of these writes before anybody repeats them; the log has their biz_id and request_id.");
    STALE_SHOWN = ("ZvgateStaleShown", "Coupons change without this gateway: shorten cache.ttl, or let whoever changes them call /v1/invalidate.");
    CERTIFICATE = ("ZvgateCertificateExpires", "Replace the files of server.tls.cert and key: they are read again by themselves.");
    RELOAD = ("ZvgateReloadFailed", "Correct the configuration with zvgate check, and send SIGHUP again; until then the previous one is in force.");
    CUT_OFF = ("ZvgateReplicaCutOff", "See to what the cause names, most often Redis or the way to it: until then this replica serves what it has, and uses only its share of the rate.");
    REPLICAS = ("ZvgateReplicasMissing", "Start the replicas that are missing, or set cluster.replicas to how many run: each that is missing keeps its part of the rate.");
    LOG = ("ZvgateLogLinesDropped", "Let the log be read faster, or free its disk: lines were lost, but no request waited for them.");
    BUDGET = ("ZvgateBudget", "This month's calls have reached the threshold: zvgate usage says which tenant and route makes them.");
    BUDGET_STORE = ("ZvgateBudgetNotStored", "Free the disk or correct the permissions of budget.store: counts are in memory until it can be written.");
}

/// The platform's clock may differ by so many seconds before an operator should know.
const NOTABLE_SKEW: f64 = 30.0;
/// A certificate that expires within so many seconds is to be replaced; within the second number, at once.
const CERTIFICATE_WARNING: [i64; 2] = [14 * 86_400, 2 * 86_400];
/// Requests in a minute from which on a share of them says something.
const ENOUGH: u64 = 60;
/// A lower hit ratio saved little before.
const NOTABLE_HIT_RATIO: f64 = 0.2;
/// The share of requests that may fail.
const FAILED_SHARE: f64 = 0.05;
/// The steps of a minute.
const MINUTE: usize = 6;
/// Failures from longer ago say nothing of now, in seconds.
const RECENT: u64 = 600;
/// TLS handshakes of callers that may fail in ten minutes: whoever scans the network does not make a finding.
const HANDSHAKES: u64 = 20;
/// Findings that are listed, and of those the ones of one condition.
const MAX_FINDINGS: usize = 20;
const MAX_OF_A_KIND: usize = 4;
/// Failures that are no failures of attempts: calls that were not made.
const NOT_ATTEMPTED: [&str; 2] = ["no_slot", "too_many_in_flight"];
/// It has a condition of its own.
const THROTTLED_REASON: &str = "throttled";

/// What is judged.
pub(super) struct Facts<'a> {
    pub(super) rates: &'a [RateRow],
    pub(super) tenants: &'a [TenantFacts],
    pub(super) platform: &'a [PlatformRow],
    /// Whether the platform's name cannot be resolved.
    pub(super) is_dns_failing: bool,
    pub(super) clock_skew_s: f64,
    pub(super) steps: &'a [Step],
    pub(super) incidents: Incidents,
    pub(super) money: &'a Money,
    pub(super) cluster: Option<&'a ClusterStatus>,
    pub(super) reason_not_ready: Option<&'static str>,
    /// In how many seconds the certificate for callers expires.
    pub(super) certificate_s: Option<i64>,
    pub(super) is_reload_ok: bool,
    /// `off` or `shadow`, if the cache does not serve.
    pub(super) cache_mode: Option<&'static str>,
}

/// What concerns all calls of a tenant.
pub(super) struct TenantFacts {
    pub(super) name: String,
    /// The breaker that counts failures to connect.
    pub(super) breaker: BreakerPosition,
    /// The last of these.
    pub(super) unreachable: Option<Failure>,
    pub(super) is_key_suspect: bool,
}

impl Verdict {
    pub(super) fn of(facts: &Facts<'_>) -> Self {
        let mut found = Findings(Vec::new());
        found.platform(facts);
        found.limits(facts);
        found.replicas(facts);
        found.process(facts);
        let mut findings = found.0;
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        let level = findings.first().map_or(Severity::Ok, |worst| worst.severity);
        let summary = match findings.as_slice() {
            [] => "No failure is known: the platform answers, and its rate limit is kept.".to_owned(),
            [only] => only.what.clone(),
            [worst, rest @ ..] => format!("{} And {} more.", worst.what, rest.len()),
        };
        let all = findings.len();
        let mut of_kinds: HashMap<&str, usize> = HashMap::new();
        // Many of one kind must not hide another.
        findings.retain(|finding| {
            let count = of_kinds.entry(finding.runbook).or_default();
            *count += 1;
            *count <= MAX_OF_A_KIND || finding.runbook.is_empty()
        });
        findings.truncate(MAX_FINDINGS);
        Self { level, summary, more: all - findings.len(), findings }
    }
}

/// `: ` and the cause of a failure.
fn because(failure: Option<&Failure>) -> String {
    failure.map_or(String::new(), |failure| format!(": {}", failure.words()))
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, severity: Severity, (runbook, advice): Condition, what: String) {
        self.0.push(Finding { severity, what, advice, runbook });
    }

    fn breaker(&mut self, breaker: BreakerPosition, of: &str, last: Option<&Failure>) {
        let cause = because(last);
        if breaker.rejects() {
            let what = format!(
                "Calls {of} are suspended, because they failed{cause}. The circuit breaker is {}.",
                breaker.name()
            );
            self.add(Severity::Critical, BREAKER, what);
        } else if breaker != BreakerPosition::Closed {
            let ago = last.map_or(String::new(), |last| {
                format!(" It opened after failures; the last one was {} ago{cause}.", span(last.ago_s))
            });
            let what = format!("The circuit breaker for calls {of} is half-open: the next call probes.{ago}");
            self.add(Severity::Notice, BREAKER, what);
        }
    }

    fn platform(&mut self, facts: &Facts<'_>) {
        for TenantFacts { name, breaker, unreachable, is_key_suspect } in facts.tenants {
            self.breaker(*breaker, &format!("of tenant {name} to all routes"), unreachable.as_ref());
            if *is_key_suspect {
                let is_of_late = facts.platform.iter().filter(|row| row.tenant == *name).any(|row| {
                    let throttled = row.failing.iter().find(|failing| failing.last.reason == THROTTLED_REASON);
                    throttled.is_some_and(|failing| failing.last.ago_s <= RECENT)
                });
                let severity = if is_of_late { Severity::Critical } else { Severity::Notice };
                let what = format!(
                    "The platform may refuse the key of tenant {name}: it throttles calls although the rate was kept, and none succeeded since."
                );
                self.add(severity, KEY, what);
            }
        }
        for PlatformRow { tenant, route, breaker, failing, last_failure, .. } in facts.platform {
            let of_tenant = facts.tenants.iter().find(|facts| facts.name == *tenant);
            // What all routes have in common was said.
            let was_said =
                |common: BreakerPosition| common != BreakerPosition::Closed && (common.rejects() || !breaker.rejects());
            if !of_tenant.is_some_and(|facts| was_said(facts.breaker)) {
                self.breaker(*breaker, &format!("of tenant {tenant} to {route}"), last_failure.as_ref());
            }
            let recent = || failing.iter().filter(|failing| failing.last.ago_s <= RECENT);
            let is_attempt = |reason| !NOT_ATTEMPTED.contains(&reason) && reason != THROTTLED_REASON;
            for failing in recent().filter(|failing| !breaker.rejects() && is_attempt(failing.last.reason)) {
                let (ago, cause) = (span(failing.last.ago_s), failing.last.words());
                let what = match failing.count {
                    1 => format!("A call of tenant {tenant} to {route} failed {ago} ago: {cause}."),
                    count => format!(
                        "Calls of tenant {tenant} to {route} fail: {cause} ({count} of them, the last one {ago} ago)."
                    ),
                };
                self.add(Severity::Warning, FAILING, what);
            }
            if recent().any(|failing| NOT_ATTEMPTED.contains(&failing.last.reason)) {
                let what =
                    format!("Calls of tenant {tenant} to {route} are rejected: no slot or capacity came in time.");
                self.add(Severity::Warning, QUEUE, what);
            }
        }
        if facts.is_dns_failing {
            self.add(
                Severity::Warning,
                DNS,
                "The name of the platform, or of the forward proxy, cannot be resolved.".to_owned(),
            );
        }
        if facts.clock_skew_s.abs() > NOTABLE_SKEW {
            let side = if facts.clock_skew_s > 0.0 { "ahead of" } else { "behind" };
            let what = format!("The platform's clock is {:.0} s {side} this machine's.", facts.clock_skew_s.abs());
            self.add(Severity::Warning, CLOCK, what);
        }
    }

    fn limits(&mut self, facts: &Facts<'_>) {
        for RateRow { tenant, route, throttled, paused_for_s, allowed, .. } in facts.rates {
            if *throttled {
                let pause = match paused_for_s {
                    Some(seconds) => format!(" It is paused for {seconds:.1} s."),
                    None => String::new(),
                };
                let reduced = match allowed {
                    Some(allowed) => format!(" {allowed} calls are allowed in a window for now."),
                    None => String::new(),
                };
                let what = format!(
                    "The platform throttles {route} of tenant {tenant} although the rate was kept.{pause}{reduced}"
                );
                self.add(Severity::Warning, THROTTLED, what);
            }
        }
        let (before, recent) = last_minute(facts.steps);
        if let (Some(before), Some(now)) = (ratio(before), ratio(recent))
            && before >= NOTABLE_HIT_RATIO
            && now < before / 2.0
        {
            let what =
                format!("The hit ratio fell from {:.0} % to {:.0} % in the last minute.", 100.0 * before, 100.0 * now);
            self.add(Severity::Warning, HIT_RATIO, what);
        }
        let failed: u64 = recent.iter().map(|step| step.failed).sum();
        let all: u64 = recent.iter().flat_map(|step| &step.requests).sum();
        #[expect(clippy::cast_precision_loss, reason = "a share for people")]
        let share = failed as f64 / all.max(1) as f64;
        if failed > 1 && share > FAILED_SHARE {
            let what = format!("{failed} of {all} requests failed in the last minute (status 5xx).");
            self.add(Severity::Warning, REQUESTS, what);
        }
        if let Some(threshold) = facts.money.reached {
            let what = format!("{} calls are billed this month; budget.warn_calls is {threshold}.", facts.money.billed);
            self.add(Severity::Warning, BUDGET, what);
        }
    }

    fn replicas(&mut self, facts: &Facts<'_>) {
        let Some(ClusterStatus { up, live, expected, cause }) = facts.cluster else { return };
        if !up {
            let others = match expected.saturating_sub(1) {
                0 => "any other replica".to_owned(),
                1 => "the other replica".to_owned(),
                others => format!("the other {others} replicas"),
            };
            let what = format!("This replica is cut off from {others}, with which it shares Redis: {cause}.");
            self.add(Severity::Critical, CUT_OFF, what);
        } else if *live != i64::from(*expected) {
            let severity = if *live < i64::from(*expected) { Severity::Warning } else { Severity::Notice };
            let what = format!("{live} replicas are live; cluster.replicas is {expected}.");
            self.add(severity, REPLICAS, what);
        }
    }

    fn process(&mut self, facts: &Facts<'_>) {
        if let Some(reason) = facts.reason_not_ready {
            let advice = ("", "Requests that reach it are served all the same.");
            self.add(Severity::Notice, advice, format!("This process is not ready: {reason}."));
        }
        if let Some(seconds) = facts.certificate_s.filter(|seconds| *seconds < CERTIFICATE_WARNING[0]) {
            let severity = if seconds < CERTIFICATE_WARNING[1] { Severity::Critical } else { Severity::Warning };
            let what = match u64::try_from(seconds) {
                Ok(seconds @ 1..) => format!("The certificate for callers expires in {}.", span(seconds)),
                Ok(0) | Err(_) => "The certificate for callers has expired.".to_owned(),
            };
            self.add(severity, CERTIFICATE, what);
        }
        let Incidents { outcome_unknown, stale_shown, log_lines_dropped, connections, waiters, panics, handshakes } =
            facts.incidents;
        let defect = ("", "This is a defect: please report it with the lines about it in the log.");
        let scanner = (
            "",
            "If callers complain, compare their CA and TLS versions; scanners and health checks without TLS do the same.",
        );
        let mut incident = |count: u64, severity, condition, what: &str| {
            if count > 0 {
                self.add(severity, condition, format!("{what} in the last 10 minutes: {count}."));
            }
        };
        incident(outcome_unknown, Severity::Critical, OUTCOME, "Writes that were sent and whose outcome is unknown,");
        incident(panics, Severity::Critical, defect, "Requests that ended by a panic");
        incident(connections, Severity::Warning, CONNECTIONS, "Connections closed because of server.max_connections");
        incident(waiters, Severity::Warning, WAITERS, "Requests rejected because of limits.max_waiters");
        incident(
            stale_shown,
            Severity::Warning,
            STALE_SHOWN,
            "Writes that the platform refused for customers who had been served from the cache,",
        );
        incident(log_lines_dropped, Severity::Warning, LOG, "Log lines dropped");
        let handshakes = if handshakes > HANDSHAKES { handshakes } else { 0 };
        incident(handshakes, Severity::Notice, scanner, "TLS handshakes that failed");
        if !facts.is_reload_ok {
            self.add(Severity::Warning, RELOAD, "The last reload of the configuration failed.".to_owned());
        }
        if facts.money.has_failed {
            let what = "The counts of calls cannot be written to budget.store.".to_owned();
            self.add(Severity::Warning, BUDGET_STORE, what);
        }
        if let Some(mode) = facts.cache_mode {
            let what = format!("The cache serves nothing (cache.mode = \"{mode}\"): every read is a call.");
            let advice = ("", "Set cache.mode to \"on\" and reload to serve from the cache.");
            self.add(Severity::Notice, advice, what);
        }
    }
}

/// Those before the last minute, and those of it.
fn last_minute(steps: &[Step]) -> (&[Step], &[Step]) {
    steps.split_at_checked(steps.len().saturating_sub(MINUTE)).unwrap_or_default()
}

/// The hit ratio of some steps, if they had enough requests.
fn ratio(steps: &[Step]) -> Option<f64> {
    let sum = steps.iter().fold(Vec::new(), |mut sum: Vec<u64>, step| {
        sum.resize(sum.len().max(step.requests.len()), 0);
        sum.iter_mut().zip(&step.requests).for_each(|(sum, requests)| *sum += requests);
        sum
    });
    hit_ratio(&sum).filter(|_| reads(&sum) >= ENOUGH)
}
