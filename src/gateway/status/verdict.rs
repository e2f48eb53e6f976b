//! Whether everything is well, and if not, why, and what to do: the same conditions that the alerts in `deploy/monitoring` have, judged by
//! one process for itself.

use serde::Serialize;

use super::history::{Incidents, Step, hit_ratio, reads};
use super::{Money, PlatformRow, RateRow, ReplicaStatus};

/// Whether everything is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The worst of the findings; `ok` without any.
    pub level: Severity,
    /// In one sentence.
    pub summary: String,
    /// What is not as it should be, the worst first.
    pub findings: Vec<Finding>,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Everything is well.
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
    DNS = ("ZvgateDnsFailing", "Restore the resolver, or correct the name in upstream.base_url: until then the last good addresses are used.");
    BREAKER = ("ZvgateBreakerOpen", "Calls are suspended and probed again by themselves; the cause says what to repair at the platform or on the way to it.");
    THROTTLED = ("ZvgateThrottledByOthers", "Find who else uses this identity: the platform counts all calls of an open_id together, and this gateway kept the rate.");
    KEY = ("ZvgateKeySuspect", "Compare open_id, grant_code and the signing key with the platform's; a new key in open_key_file is read without a restart.");
    QUEUE = ("ZvgateQueueFull", "More is asked than the platform's rate allows: raise the hit ratio, or ask the platform for a higher rate.");
    CLOCK = ("ZvgateClockSkew", "Correct this machine's clock (NTP): the platform rejects signatures that are too far off.");
    HIT_RATIO = ("ZvgateHitRatioCollapsed", "Find what changed: a caller that sends no-cache or new params, many writes, or a cache that is too small.");
    OUTCOME = ("ZvgateWriteOutcomeUnknown", "Ask the platform what became of these writes before anybody repeats them; the log has their biz_id and request_id.");
    STALE_SHOWN = ("ZvgateStaleShown", "Coupons change without this gateway: shorten cache.ttl, or let whoever changes them call /v1/invalidate.");
    CERTIFICATE = ("ZvgateCertificateExpires", "Replace the files of server.tls.cert and key: they are read again by themselves.");
    RELOAD = ("ZvgateReloadFailed", "Correct the configuration with zvgate check, and send SIGHUP again; until then the previous one is in force.");
    CUT_OFF = ("ZvgateReplicaCutOff", "Restore Redis or the way to it: until then this replica serves what it has, and uses only its share of the rate.");
    LOG = ("ZvgateLogLinesDropped", "Let the log be read faster, or free its disk: lines were lost, but no request waited for them.");
    BUDGET = ("ZvgateBudget", "This month's calls have reached the threshold: zvgate usage says which tenant and route makes them.");
    BUDGET_STORE = ("ZvgateBudgetNotStored", "Free the disk or correct the permissions of budget.store: counts are in memory until it can be written.");
}

/// The platform's clock may differ by so many seconds before an operator should know.
const NOTABLE_SKEW: f64 = 30.0;
/// A certificate that expires within so many seconds is to be replaced; within the second number, at once.
const CERTIFICATE_WARNING: [i64; 2] = [14 * 86_400, 2 * 86_400];
/// Requests in a minute from which on their hit ratio says something.
const ENOUGH_READS: u64 = 60;
/// The steps of a minute.
const MINUTE: usize = 6;
/// Failures that are no failures of attempts: calls that were not made, and throttling, which has a condition of its own.
const NOT_ATTEMPTED: [&str; 2] = ["no_slot", "too_many_in_flight"];

/// What is judged.
pub(super) struct Facts<'a> {
    pub(super) rates: &'a [RateRow],
    pub(super) platform: &'a [PlatformRow],
    /// Whether the platform's name cannot be resolved.
    pub(super) is_dns_failing: bool,
    pub(super) clock_skew_s: f64,
    pub(super) steps: &'a [Step],
    pub(super) incidents: Incidents,
    pub(super) money: &'a Money,
    pub(super) replica: Option<&'a ReplicaStatus>,
    /// In how many seconds the certificate for callers expires.
    pub(super) certificate_s: Option<i64>,
    pub(super) is_reload_ok: bool,
    /// `off` or `shadow`, if the cache does not serve.
    pub(super) cache_mode: Option<&'static str>,
}

impl Verdict {
    pub(super) fn of(facts: &Facts<'_>) -> Self {
        let mut findings = Vec::new();
        platform(facts, &mut findings);
        limits(facts, &mut findings);
        process(facts, &mut findings);
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        let level = findings.first().map_or(Severity::Ok, |worst| worst.severity);
        let summary = match findings.as_slice() {
            [] => "Everything is well: the platform answers, and its rate is kept.".to_owned(),
            [only] => only.what.clone(),
            [worst, rest @ ..] => format!("{} And {} more.", worst.what, rest.len()),
        };
        Self { level, summary, findings }
    }
}

fn found(severity: Severity, (runbook, advice): Condition, what: String) -> Finding {
    Finding { severity, what, advice, runbook }
}

fn platform(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    for PlatformRow { tenant, route, breaker, is_key_suspect, failing, last_failure, .. } in facts.platform {
        let cause = last_failure.as_ref().map_or(String::new(), |last| match last.cause.as_str() {
            "" => format!(": {}", last.reason),
            cause => format!(": {cause}"),
        });
        if *breaker != "closed" {
            let what = format!("The circuit breaker for {route} of tenant {tenant} is {breaker}{cause}.");
            findings.push(found(Severity::Critical, BREAKER, what));
        }
        if *is_key_suspect {
            let what = format!(
                "The platform may refuse the key of tenant {tenant}: it throttles calls to {route} although the rate was kept, and none succeeded since."
            );
            findings.push(found(Severity::Critical, KEY, what));
        }
        let attempts: Vec<&str> = failing
            .iter()
            .copied()
            .filter(|reason| !NOT_ATTEMPTED.contains(reason) && *reason != "throttled")
            .collect();
        if !attempts.is_empty() && *breaker == "closed" {
            let what = format!("Calls to {route} of tenant {tenant} fail ({}){cause}.", attempts.join(", "));
            findings.push(found(Severity::Warning, FAILING, what));
        }
        if failing.iter().any(|reason| NOT_ATTEMPTED.contains(reason)) {
            let what = format!("Calls to {route} of tenant {tenant} are rejected: no slot or capacity came in time.");
            findings.push(found(Severity::Warning, QUEUE, what));
        }
    }
    if facts.is_dns_failing {
        let what = "The platform's name cannot be resolved.".to_owned();
        findings.push(found(Severity::Warning, DNS, what));
    }
    if facts.clock_skew_s.abs() > NOTABLE_SKEW {
        let (seconds, side) = (facts.clock_skew_s.abs(), if facts.clock_skew_s > 0.0 { "ahead of" } else { "behind" });
        let what = format!("The platform's clock is {seconds:.0} s {side} this machine's.");
        findings.push(found(Severity::Warning, CLOCK, what));
    }
}

fn limits(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    for RateRow { tenant, route, throttled, paused_for_s, allowed, .. } in facts.rates {
        if *throttled {
            let pause = paused_for_s.map_or(String::new(), |seconds| format!(", paused for {seconds:.0} s"));
            let allowed = allowed.map_or(String::new(), |allowed| format!(", {allowed} calls allowed in a window"));
            let what = format!(
                "The platform throttles {route} of tenant {tenant} although the rate was kept{pause}{allowed}."
            );
            findings.push(found(Severity::Warning, THROTTLED, what));
        }
    }
    if let Some(replica) = facts.replica.filter(|replica| !replica.up) {
        let what = format!("This replica is cut off from the other {}: Redis does not answer.", replica.expected - 1);
        findings.push(found(Severity::Critical, CUT_OFF, what));
    }
    let (recent, before) = facts.steps.split_at_checked(facts.steps.len().saturating_sub(MINUTE)).unwrap_or_default();
    let (before, recent) = (ratio(recent), ratio(before));
    if let (Some(before), Some(now)) = (before, recent)
        && now < before / 2.0
    {
        let what =
            format!("The hit ratio fell from {:.0} % to {:.0} % in the last minute.", 100.0 * before, 100.0 * now);
        findings.push(found(Severity::Warning, HIT_RATIO, what));
    }
    if let Some(threshold) = facts.money.reached {
        let what = format!("{} calls are billed this month; budget.warn_calls is {threshold}.", facts.money.billed);
        findings.push(found(Severity::Warning, BUDGET, what));
    }
}

/// The hit ratio of some steps, if they had enough requests.
fn ratio(steps: &[Step]) -> Option<f64> {
    let sum = steps.iter().fold(Vec::new(), |mut sum: Vec<u64>, step| {
        sum.resize(sum.len().max(step.requests.len()), 0);
        sum.iter_mut().zip(&step.requests).for_each(|(sum, requests)| *sum += requests);
        sum
    });
    hit_ratio(&sum).filter(|_| reads(&sum) >= ENOUGH_READS)
}

fn process(facts: &Facts<'_>, findings: &mut Vec<Finding>) {
    if let Some(seconds) = facts.certificate_s.filter(|seconds| *seconds < CERTIFICATE_WARNING[0]) {
        let severity = if seconds < CERTIFICATE_WARNING[1] { Severity::Critical } else { Severity::Warning };
        let what = match seconds {
            ..=0 => "The certificate for callers has expired.".to_owned(),
            _ => format!("The certificate for callers expires in {} days.", seconds / 86_400),
        };
        findings.push(found(severity, CERTIFICATE, what));
    }
    let Incidents { outcome_unknown, stale_shown, log_lines_dropped } = facts.incidents;
    let mut incident = |count: u64, severity, condition, what: &str| {
        if count > 0 {
            findings.push(found(severity, condition, format!("{count} {what} in the last 10 minutes.")));
        }
    };
    incident(outcome_unknown, Severity::Critical, OUTCOME, "writes were sent whose outcome is unknown,");
    incident(
        stale_shown,
        Severity::Warning,
        STALE_SHOWN,
        "writes were refused for customers who had been served from the cache,",
    );
    incident(log_lines_dropped, Severity::Warning, LOG, "log lines were dropped");
    if !facts.is_reload_ok {
        findings.push(found(Severity::Warning, RELOAD, "The last reload of the configuration failed.".to_owned()));
    }
    if facts.money.has_failed {
        let what = "The counts of calls cannot be written to budget.store.".to_owned();
        findings.push(found(Severity::Warning, BUDGET_STORE, what));
    }
    if let Some(mode) = facts.cache_mode {
        let what = format!("The cache serves nothing (cache.mode = \"{mode}\"): every read is a call.");
        findings.push(found(
            Severity::Notice,
            ("", "Set cache.mode to \"on\" and reload to serve from the cache."),
            what,
        ));
    }
}
