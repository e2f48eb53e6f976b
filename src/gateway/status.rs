//! What operators see of a running gateway, as plain data: the status page and `/status.json` show the same.

mod data;
mod history;
mod requests;
mod verdict;

use std::cmp::Reverse;

use parking_lot::Mutex;

pub use self::data::{
    CacheStatus, ConfigurationStatus, Failing, Failure, LifetimeRow, Money, Platform, PlatformRow, RateRow, Status,
    span,
};
pub(super) use self::history::History;
pub use self::history::{STEPS as HISTORY_STEPS, Step};
pub(super) use self::requests::Ending;
use self::requests::NotedRequests;
pub use self::requests::{Noted, NotedLists};
pub use self::verdict::{CONDITIONS, Finding, Severity, Verdict};
use self::verdict::{Facts, TenantFacts};
use super::Gateway;
use super::policy::Policy;
use crate::budget::{self, Bill, Counts};
use crate::clock::{Now, Wall};
use crate::metrics::{CacheUse, Label, Totals};
use crate::route::Route;
use crate::settings::CacheMode;
use crate::tenant::Tenant;

/// Tenants and routes that are shown, those with something to see first; `/metrics` has all.
const MAX_ROWS: usize = 200;

/// What is known of a process for its operators only.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) history: History,
    pub(super) noted: NotedRequests,
    /// When the configuration was last reloaded, or that was tried.
    pub(super) reloaded: Mutex<Option<Wall>>,
}

impl Gateway {
    /// What operators see. `reason_not_ready`: why the process is not ready, if it is not.
    pub fn status(&self, reason_not_ready: Option<&'static str>) -> Status {
        self.run_maintenance();
        let (policy, now) = (self.policy.load(), self.time.clock.now());
        let totals = self.metrics.totals();
        let (rates, rows) = self.rows(&policy, now);
        let (money, replicas) = (self.money(&policy), self.cluster.status());
        let tenants: Vec<_> =
            policy.tenants.all().iter().map(|tenant| self.tenant_facts(&policy, tenant, now)).collect();
        #[expect(clippy::cast_precision_loss, reason = "seconds")]
        let clock_skew_s = self.time.skew.ahead(now).unwrap_or_default() as f64 / 1000.0;
        let expires = policy.tls.as_ref().and_then(|tls| tls.expires());
        let history = self.watch.history.steps(&totals, now.boot);
        let mode = policy.settings.cache.mode;
        let verdict = Verdict::of(&Facts {
            rates: &rates,
            tenants: &tenants,
            platform: &rows,
            is_dns_failing: self.upstream.is_dns_failing(),
            clock_skew_s,
            steps: &history,
            incidents: self.watch.history.incidents(&totals),
            money: &money,
            cluster: replicas.as_ref(),
            reason_not_ready,
            certificate_s: expires.and_then(|at| Some(i64::try_from(at).ok()? - now.wall.unix_seconds())),
            is_reload_ok: self.is_reload_successful(),
            cache_mode: (mode != CacheMode::On).then_some(mode.name()),
        });
        let pace = policy.settings.limits.upstream;
        let base_url = self.fixed.client.base_url.as_ref().map(ToString::to_string).unwrap_or_default();
        let addresses = self.upstream.addresses().iter().map(ToString::to_string).collect();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            now: now.wall.unix_seconds(),
            uptime_s: now.boot.since(self.started).as_secs(),
            verdict,
            money,
            history,
            request_kinds: CacheUse::NAMES,
            rate_per_s: (pace.rate > 0).then(|| f64::from(pace.rate) / pace.per.as_secs_f64()),
            rates: shortened(rates, |row| (row.throttled, row.paused_for_s.is_some(), row.waiting, row.taken)),
            platform: Platform {
                base_url,
                addresses,
                clock_skew_s,
                rows: shortened(rows, |row| (row.breaker, row.is_key_suspect, row.failing.len())),
            },
            cache: self.cache_status(&policy, &totals),
            replicas,
            requests: self.watch.noted.shown(&self.pseudonyms, now.boot),
            configuration: ConfigurationStatus {
                effective: self.configuration(),
                reloads: policy.number,
                reloaded_at: self.watch.reloaded.lock().map(Wall::unix_seconds),
                reload_success: self.is_reload_successful(),
            },
        }
    }

    /// The tables by tenant and route.
    fn rows(&self, policy: &Policy, now: Now) -> (Vec<RateRow>, Vec<PlatformRow>) {
        let pairs = || {
            policy.tenants.all().iter().flat_map(|tenant| policy.routes.all().iter().map(move |route| (tenant, route)))
        };
        let rates = pairs().map(|(tenant, route)| self.rate_row(policy, tenant, route, now)).collect();
        (rates, pairs().map(|(tenant, route)| self.platform_row(policy, tenant, route, now)).collect())
    }

    fn rate_row(&self, policy: &Policy, tenant: &Tenant, route: &Route, now: Now) -> RateRow {
        let usage = self.paces.usage(tenant, route, None);
        let paused_for_s = usage.paused_until.map(|until| until.since(now.boot).as_secs_f64());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a u32, or infinite")]
        let allowed = usage.allowed.is_finite().then_some(usage.allowed as u32);
        RateRow {
            tenant: tenant.name.clone(),
            route: route.pattern.to_string(),
            allowed,
            taken: usage.taken,
            waiting: usage.waiting,
            rejected: policy.handles.call(tenant.index, route.index).rejected.get(),
            paused_for_s,
            throttled: usage.is_throttled,
        }
    }

    fn tenant_facts(&self, policy: &Policy, tenant: &Tenant, now: Now) -> TenantFacts {
        let (breaker, last) = self.upstream.connect_breaker(&policy.settings.attempts.breaker, tenant);
        TenantFacts {
            name: tenant.name.clone(),
            breaker,
            unreachable: last.map(|last| Failure::of(last.reason, last.cause, last.at, now)),
            is_key_suspect: self.upstream.is_key_suspect(tenant),
        }
    }

    fn platform_row(&self, policy: &Policy, tenant: &Tenant, route: &Route, now: Now) -> PlatformRow {
        let breaker = self.upstream.breaker(&policy.settings.attempts.breaker, tenant, route, None);
        let (failing, last) = self.upstream.failures(tenant, route);
        PlatformRow {
            tenant: tenant.name.clone(),
            route: route.pattern.to_string(),
            breaker,
            is_key_suspect: self.upstream.is_key_suspect(tenant),
            failing: failing
                .into_iter()
                .map(|episode| Failing {
                    count: episode.count,
                    last: Failure::of(episode.kind, episode.cause, episode.last, now),
                })
                .collect(),
            last_failure: last.map(|last| Failure::of(last.reason, last.cause, last.at, now)),
        }
    }

    fn money(&self, policy: &Policy) -> Money {
        let settings = &policy.settings.budget;
        let month = self.spending.today(policy).month();
        let counts = self.spending.budget.total(month);
        let is_partial = self.fixed.cluster.replicas > 1;
        let amount = |amount: u128| (!is_partial).then(|| budget::shown(amount));
        let bill = Bill::of(settings, counts);
        let forecast_calls = self.spending.forecast(policy, counts);
        let forecast = forecast_calls.map(|billed| Bill::of(settings, Counts { billed, ..Counts::default() }));
        let thresholds = settings.warn_calls.as_ref().map(|thresholds| thresholds.0.as_slice()).unwrap_or_default();
        Money {
            month: month.to_string(),
            is_partial,
            made: counts.made,
            failed: counts.failed,
            billed: counts.billed,
            saved: counts.saved,
            cost: amount(bill.cost),
            cost_without_cache: amount(bill.without_cache),
            forecast_calls,
            forecast_cost: forecast.and_then(|bill| amount(bill.cost)),
            currency: settings.currency.clone(),
            price: settings.price.to_string(),
            free_calls: settings.free_calls,
            billed_outcomes: settings.billed.clone(),
            is_stored: self.spending.budget.is_stored(),
            has_failed: self.spending.budget.has_failed(),
            reached: thresholds.iter().copied().rfind(|threshold| counts.billed >= u64::from(*threshold)),
        }
    }

    fn cache_status(&self, policy: &Policy, totals: &Totals) -> CacheStatus {
        let metrics = &self.metrics;
        #[expect(clippy::cast_precision_loss, reason = "means and ratios for people")]
        let mean = |sum: f64, count: u64| (count > 0).then(|| sum / count as f64);
        let lifetimes = metrics.lifetimes().into_iter().map(|lifetimes| LifetimeRow {
            bound: lifetimes.bound,
            count: lifetimes.count,
            mean_s: mean(lifetimes.seconds, lifetimes.count),
        });
        let changed = totals.refetches.first().copied().unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        let refetch_changed_ratio = mean(changed as f64, totals.refetches.iter().sum());
        CacheStatus {
            mode: policy.settings.cache.mode.name(),
            entries: metrics.cache.entries.get(),
            bytes: u64::try_from(metrics.cache_bytes.get()).unwrap_or_default(),
            max_bytes: policy.cache_max_bytes.0,
            evicted_expired: metrics.cache.expired.get(),
            evicted_size: metrics.cache.size.get(),
            lifetimes: lifetimes.collect(),
            refetch_changed_ratio,
        }
    }
}

/// The first rows, those with most to see first.
fn shortened<T, K: Ord>(mut rows: Vec<T>, key: impl Fn(&T) -> K) -> Vec<T> {
    if rows.len() > MAX_ROWS {
        rows.sort_by_key(|row| Reverse(key(row)));
        rows.truncate(MAX_ROWS);
    }
    rows
}
