//! The status page: rendered here as a whole, right without JavaScript, and refreshed by it every two seconds. It loads nothing from
//! anywhere, and its policy allows no script or style but the two that it includes.

mod charts;

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::gateway::{Finding, LifetimeRow, Noted, PlatformRow, RateRow, Severity, Status, span};
use crate::upstream::BreakerPosition;

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/refresh.js");

/// The `Content-Security-Policy` of the page (CSP Level 3): the script and the style by their hashes, requests to this listener only.
pub(super) static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        hash(SCRIPT),
        hash(STYLE)
    );
    HeaderValue::from_str(&policy).expect("a policy is ASCII")
});

/// What an operator asked for by one of the page's forms.
pub(super) struct Asked {
    /// The tenant and the customer that it is about.
    pub(super) tenant: String,
    pub(super) customer: String,
    /// What came of it, in one sentence.
    pub(super) summary: String,
    /// What is cached for a customer, in full.
    pub(super) details: Option<String>,
}

/// The page; `tenants` are the names to choose from.
pub(super) fn page(status: &Status, tenants: &[String], asked: Option<&Asked>) -> String {
    let Status { verdict, .. } = status;
    let level = level(verdict.level);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                link rel="icon" href="data:,";
                title { (level) ": " (verdict.summary) " zvgate" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "zvgate" }
                    p.faint {
                        span #about data-live {
                            "Version " (status.version) ", running for " (span(status.uptime_s)) ", at " (moment(status.now)) ". "
                        }
                        span #refreshed role="status" { "Not refreshed by itself without JavaScript" }
                        ". The same as " a href="/status.json" { "JSON" } ", " a href="/metrics" { "metrics" } "."
                    }
                }
                main {
                    section #verdict .(level) data-live aria-labelledby="verdict-title" { (verdict_section(status)) }
                    section #money data-live aria-labelledby="money-title" { (money(status)) }
                    section #history data-live aria-labelledby="history-title" { (charts::section(status)) }
                    section #rates data-live aria-labelledby="rates-title" { (rates(status)) }
                    section #platform data-live aria-labelledby="platform-title" { (platform(status)) }
                    section #cache data-live aria-labelledby="cache-title" { (cache(status)) }
                    section #replicas data-live aria-labelledby="replicas-title" { (replicas(status)) }
                    section #requests data-live aria-labelledby="requests-title" { (requests(status)) }
                    section #customer aria-labelledby="customer-title" { (customer(tenants, asked)) }
                    section #configuration data-live aria-labelledby="configuration-title" { (configuration(status)) }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}

const fn level(severity: Severity) -> &'static str {
    match severity {
        Severity::Ok => "ok",
        Severity::Notice => "notice",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    }
}

fn verdict_section(status: &Status) -> Markup {
    let verdict = &status.verdict;
    html! {
        h2 #verdict-title { "Verdict: " (level(verdict.level)) }
        p.summary { (verdict.summary) }
        @if !verdict.findings.is_empty() {
            ul {
                @for finding in &verdict.findings { li { (shown(finding)) } }
                @if verdict.more > 0 { li { "and " (verdict.more) " more" } }
            }
        }
    }
}

fn shown(Finding { severity, what, advice, runbook }: &Finding) -> Markup {
    html! {
        strong { (level(*severity)) ": " } (what) " " (advice)
        @if !runbook.is_empty() { " (docs/runbook.md, " (runbook) ")" }
    }
}

/// Figures with their names.
fn figures(all: &[(&str, String)]) -> Markup {
    const LONG: usize = 16;
    html! { dl.figures { @for (name, figure) in all { div.wide[figure.len() > LONG] { dt { (name) } dd { (figure) } } } } }
}

fn money(status: &Status) -> Markup {
    let money = &status.money;
    let amount = |text: &Option<String>| {
        text.as_ref().map_or("not known to one replica".to_owned(), |text| format!("{text} {}", money.currency))
    };
    let forecast = match (money.forecast_calls, &money.forecast_cost) {
        (None, _) => "after a day".to_owned(),
        (Some(calls), None) => format!("{calls} calls"),
        (Some(calls), cost) => format!("{calls} calls, {}", amount(cost)),
    };
    html! {
        h2 #money-title { "Calls in " (money.month) @if money.is_partial { ", by this replica" } }
        (figures(&[
            ("Calls made", money.made.to_string()),
            ("Calls failed", money.failed.to_string()),
            ("Calls saved", money.saved.to_string()),
            ("Cost", amount(&money.cost)),
            ("Cost without the cache", amount(&money.cost_without_cache)),
            ("Forecast for the month", forecast),
        ]))
        p.faint {
            "Billed calls: " (money.billed) ". Billed outcomes: " (money.billed_outcomes.join(", ")) ". " (money.price) " "
            (money.currency) " a call after " (money.free_calls) " free ones a month. "
            @if money.is_partial {
                "Each replica counts its own calls; their sum is job:zvgate_billed_calls_month:sum in Prometheus. "
            }
            @if money.has_failed { "The counts cannot be written to budget.store." }
            @else if money.is_stored { "Counted by this process and by earlier ones with the same budget.store." }
            @else { "Counted in memory since this process began: without budget.store the counts are lost with it." }
        }
    }
}

/// A table that scrolls by itself if it is too wide.
fn table(caption: &str, heads: &[&str], rows: &[Vec<String>]) -> Markup {
    html! {
        div.table role="region" tabindex="0" aria-label=(caption) {
            table {
                caption { (caption) }
                thead { tr { @for head in heads { th scope="col" { (head) } } } }
                tbody {
                    @for row in rows { tr { @for cell in row { td { (cell) } } } }
                    @if rows.is_empty() { tr { td colspan=(heads.len()) { "none" } } }
                }
            }
        }
    }
}

fn rates(status: &Status) -> Markup {
    let row = |row: &RateRow| {
        let state = match (row.paused_for_s, row.throttled) {
            (Some(seconds), _) => format!("paused for {seconds:.1} s"),
            (None, true) => "throttled".to_owned(),
            (None, false) => "ok".to_owned(),
        };
        let allowed = row.allowed.map_or("no limit".to_owned(), |allowed| allowed.to_string());
        let taken = row.taken.map_or("shared".to_owned(), |taken| taken.to_string());
        vec![
            state,
            row.route.clone(),
            row.tenant.clone(),
            format!("{taken} of {allowed}"),
            row.waiting.to_string(),
            row.rejected.to_string(),
        ]
    };
    let rows: Vec<_> = status.rates.iter().map(row).collect();
    html! {
        h2 #rates-title { "Rate towards the platform" }
        (table("Rate limit by tenant and route", &["State", "Route", "Tenant", "Slots taken", "Waiting", "Rejected"], &rows))
    }
}

fn platform(status: &Status) -> Markup {
    let platform = &status.platform;
    let row = |row: &PlatformRow| {
        let last = row.last_failure.as_ref().map_or("none".to_owned(), |last| {
            let reason = if last.words() == last.reason { String::new() } else { format!("{}: ", last.reason) };
            format!("{reason}{}, {} ago", last.words(), span(last.ago_s))
        });
        let kinds: Vec<&str> = row.failing.iter().map(|failing| failing.last.reason).collect();
        let failing = if kinds.is_empty() { "nothing".to_owned() } else { kinds.join(", ") };
        let breaker = match row.breaker {
            BreakerPosition::HalfOpen { is_probing: false } => "half-open: the next call probes",
            breaker => breaker.name(),
        };
        let key = if row.is_key_suspect { "suspect" } else { "accepted, as far as is known" };
        vec![breaker.to_owned(), failing, row.route.clone(), row.tenant.clone(), last, key.to_owned()]
    };
    let rows: Vec<_> = platform.rows.iter().map(row).collect();
    let addresses =
        if platform.addresses.is_empty() { "not needed yet".to_owned() } else { platform.addresses.join(", ") };
    html! {
        h2 #platform-title { "Platform" }
        (figures(&[
            ("Base URL", platform.base_url.clone()),
            ("Addresses", addresses),
            ("Clock ahead of ours", format!("{:.1} s", tenths(platform.clock_skew_s))),
        ]))
        (table("Platform by tenant and route", &["Breaker", "Failing", "Route", "Tenant", "Last failure", "Key"], &rows))
    }
}

fn cache(status: &Status) -> Markup {
    let cache = &status.cache;
    let lifetime = |row: &LifetimeRow| {
        vec![
            row.bound.to_owned(),
            row.count.to_string(),
            row.mean_s.map_or(String::new(), |mean| format!("{mean:.1} s")),
        ]
    };
    let lifetimes: Vec<_> = cache.lifetimes.iter().map(lifetime).collect();
    let percent = |ratio: f64| format!("{:.1} %", 100.0 * ratio);
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    let fill = cache.bytes as f64 / cache.max_bytes.max(1) as f64;
    html! {
        h2 #cache-title { "Cache" }
        (figures(&[
            ("Mode", cache.mode.to_owned()),
            ("Answers", cache.entries.to_string()),
            ("Memory", format!("{} of {} MiB ({})", mebibytes(cache.bytes), mebibytes(cache.max_bytes), percent(fill))),
            ("Evicted, expired", cache.evicted_expired.to_string()),
            ("Evicted, cache full", cache.evicted_size.to_string()),
            ("Refetches that had changed", cache.refetch_changed_ratio.map_or("none yet".to_owned(), percent)),
        ]))
        (table("Lifetimes of stored answers, by what limited them", &["Limited by", "Answers", "Mean lifetime"], &lifetimes))
    }
}

fn replicas(status: &Status) -> Markup {
    html! {
        h2 #replicas-title { "Replicas" }
        @match &status.replicas {
            None => p { "This replica is alone: cluster.url is not configured." },
            Some(replicas) => (figures(&[
                ("This replica", match replicas.up {
                    true => "acts as one with the others".to_owned(),
                    false => format!("is cut off: {}", replicas.cause),
                }),
                ("Live replicas", format!("{} of {}", replicas.live, replicas.expected)),
            ])),
        }
    }
}

fn requests(status: &Status) -> Markup {
    const HEADS: &[&str] =
        &["At", "Status", "Cause", "Request id", "Took", "Route", "Tenant", "Caller", "Customers", "Cache"];
    let row = |noted: &Noted| {
        let cause = [
            noted.error.map(str::to_owned),
            noted.reason.map(str::to_owned),
            noted.code.as_ref().map(|code| format!("code {code}")),
        ];
        let parts = format!(
            "{} ms (queue {}, platform {}, attempts {})",
            noted.ms, noted.queue_ms, noted.upstream_ms, noted.attempts
        );
        vec![
            moment(noted.at),
            noted.status.to_string(),
            cause.into_iter().flatten().collect::<Vec<_>>().join(", "),
            noted.request_id.clone(),
            parts,
            noted.route.clone(),
            noted.tenant.clone().unwrap_or_default(),
            noted.caller.clone().unwrap_or_else(|| "anonymous".to_owned()),
            noted.customers.join(", "),
            noted.cache.to_owned(),
        ]
    };
    let rows = |noted: &[Noted]| noted.iter().map(row).collect::<Vec<_>>();
    let lists = &status.requests;
    html! {
        h2 #requests-title { "Requests of late" }
        (table("Failed", HEADS, &rows(&lists.failed)))
        (table("Rejected, or answered by the platform with another code than 0", HEADS, &rows(&lists.rejected)))
        (table("Slowest of the last 10 minutes (above 10 ms)", HEADS, &rows(&lists.slowest)))
    }
}

fn customer(tenants: &[String], asked: Option<&Asked>) -> Markup {
    html! {
        h2 #customer-title { "A customer's cached answers" }
        form method="post" action="/#customer" {
            label {
                "Tenant"
                select name="tenant" {
                    @for tenant in tenants { option selected[asked.is_some_and(|asked| asked.tenant == *tenant)] { (tenant) } }
                }
            }
            label {
                "Customer id"
                input name="customer" required autocomplete="off" value=[asked.map(|asked| &asked.customer)];
            }
            button name="do" value="look-up" { "Look up" }
            button name="do" value="purge" { "Purge" }
        }
        @if let Some(asked) = asked {
            p role="status" { (asked.summary) }
            @if let Some(details) = &asked.details { pre tabindex="0" aria-label="Cached answers" { (details) } }
        }
    }
}

fn configuration(status: &Status) -> Markup {
    let configuration = &status.configuration;
    let last = match (configuration.reloaded_at, configuration.reload_success) {
        (None, _) => "not reloaded since the start".to_owned(),
        (Some(at), true) => format!("succeeded at {}", moment(at)),
        (Some(at), false) => format!("failed at {}; the previous configuration is in force", moment(at)),
    };
    html! {
        h2 #configuration-title { "Configuration" }
        (figures(&[("Reloads", configuration.reloads.to_string()), ("Last reload", last)]))
        details { summary { "In force, secrets masked" } pre tabindex="0" aria-label="Configuration in force" { (configuration.effective) } }
    }
}

/// A number of bytes in MiB.
#[expect(clippy::cast_precision_loss, reason = "a size for people")]
fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1_048_576.0)
}

/// In tenths, and never `-0.0`.
fn tenths(seconds: f64) -> f64 {
    (10.0 * seconds).round() / 10.0 + 0.0
}

/// A moment in UTC (RFC 3339).
fn moment(unix_seconds: i64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp(unix_seconds).ok();
    moment.and_then(|moment| moment.format(&Rfc3339).ok()).unwrap_or_default()
}
