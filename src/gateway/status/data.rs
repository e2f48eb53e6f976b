//! What operators see, as data: `/status.json` has it as it is here.

use serde::Serialize;

use super::history::Step;
use super::requests::NotedLists;
use super::verdict::Verdict;
use crate::clock::{Boot, Now};
use crate::cluster::ClusterStatus;
use crate::upstream::BreakerPosition;

/// What operators see of a gateway.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The version of the gateway.
    pub version: &'static str,
    /// Its time, in seconds since the Unix epoch.
    pub now: i64,
    /// How long it has been running, in seconds.
    pub uptime_s: u64,
    /// Whether everything is well.
    pub verdict: Verdict,
    /// What the calls of this month cost.
    pub money: Money,
    /// The last ten minutes, oldest step first.
    pub history: Vec<Step>,
    /// What the numbers of [`Step::requests`] count.
    pub request_kinds: &'static [&'static str],
    /// Calls per second that the common rate limit allows for one tenant and route; `None` without a limit.
    pub rate_per_s: Option<f64>,
    /// The rate limits.
    pub rates: Vec<RateRow>,
    /// The platform.
    pub platform: Platform,
    /// The cache.
    pub cache: CacheStatus,
    /// The other replicas; `None` without `cluster.url`.
    pub replicas: Option<ClusterStatus>,
    /// Requests that an operator may ask about.
    pub requests: NotedLists,
    /// The configuration in force.
    pub configuration: ConfigurationStatus,
}

/// What the calls of a month cost.
#[derive(Clone, Debug, Serialize)]
pub struct Money {
    /// The month.
    pub month: String,
    /// Calls made.
    pub made: u64,
    /// Of those, the ones that failed.
    pub failed: u64,
    /// Of those that were made, the ones that are billed.
    pub billed: u64,
    /// Requests that were answered without a call.
    pub saved: u64,
    /// Whether other replicas make calls, too, which are not counted here: then nothing is known of the bill.
    pub is_partial: bool,
    /// What the billed calls cost.
    pub cost: Option<String>,
    /// What would have been paid without the cache.
    pub cost_without_cache: Option<String>,
    /// Billed calls at the end of the month, if it goes on like this; `None` before a day was counted.
    pub forecast_calls: Option<u64>,
    /// What those cost.
    pub forecast_cost: Option<String>,
    /// The currency.
    pub currency: String,
    /// The price of a call.
    pub price: String,
    /// Calls a month that cost nothing.
    pub free_calls: u32,
    /// The outcomes that are billed.
    pub billed_outcomes: Vec<String>,
    /// Whether the counts outlive the process.
    pub is_stored: bool,
    /// Whether storing them failed.
    pub has_failed: bool,
    /// The highest threshold that was reached.
    pub reached: Option<u32>,
}

/// The rate limit of a tenant and route.
#[derive(Clone, Debug, Serialize)]
pub struct RateRow {
    /// The tenant's name.
    pub tenant: String,
    /// The route's name.
    pub route: String,
    /// Calls that a window allows now; `None` without a limit.
    pub allowed: Option<u32>,
    /// Slots that are taken; `None`: all replicas share them, and only Redis knows.
    pub taken: Option<usize>,
    /// Calls that wait for a slot.
    pub waiting: usize,
    /// Calls that were rejected since the process began.
    pub rejected: u64,
    /// For how many more seconds nothing is sent.
    pub paused_for_s: Option<f64>,
    /// Whether the platform throttles although the rate was kept.
    pub throttled: bool,
}

/// The platform.
#[derive(Clone, Debug, Serialize)]
pub struct Platform {
    /// `upstream.base_url`.
    pub base_url: String,
    /// The addresses that it resolves to; those of the forward proxy if there is one.
    pub addresses: Vec<String>,
    /// How far its clock is ahead, in seconds.
    pub clock_skew_s: f64,
    /// By tenant and route.
    pub rows: Vec<PlatformRow>,
}

/// The platform, as far as one tenant and route see it.
#[derive(Clone, Debug, Serialize)]
pub struct PlatformRow {
    /// The tenant's name.
    pub tenant: String,
    /// The route's name.
    pub route: String,
    /// `closed`, `half-open` or `open`.
    pub breaker: BreakerPosition,
    /// Whether the platform may refuse the tenant's key.
    pub is_key_suspect: bool,
    /// The kinds of failures that have not ended.
    pub failing: Vec<Failing>,
    /// What failed last.
    pub last_failure: Option<Failure>,
}

/// A call that failed.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// The kind of failure.
    pub reason: &'static str,
    /// The error in words.
    pub cause: String,
    /// How many seconds ago it was.
    pub ago_s: u64,
}

/// Failures of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct Failing {
    /// The last one.
    #[serde(flatten)]
    pub last: Failure,
    /// How many there were.
    pub count: u64,
}

impl Failure {
    pub(super) fn of(reason: &'static str, cause: String, at: Boot, now: Now) -> Self {
        Self { reason, cause, ago_s: now.boot.since(at).as_secs() }
    }

    /// It in words.
    pub fn words(&self) -> &str {
        if self.cause.is_empty() { self.reason } else { &self.cause }
    }
}

/// A span of seconds in words.
pub fn span(seconds: u64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// The cache.
#[derive(Clone, Debug, Serialize)]
pub struct CacheStatus {
    /// `cache.mode`.
    pub mode: &'static str,
    /// Cached answers.
    pub entries: i64,
    /// The memory that they take, in bytes.
    pub bytes: u64,
    /// The memory that they may take, in bytes.
    pub max_bytes: u64,
    /// Answers evicted because they had expired.
    pub evicted_expired: u64,
    /// Answers evicted because the cache was full.
    pub evicted_size: u64,
    /// Stored answers, by what limited their lifetimes.
    pub lifetimes: Vec<LifetimeRow>,
    /// The share of refetched answers that had changed; `None` without any.
    pub refetch_changed_ratio: Option<f64>,
}

/// Lifetimes that were limited in one way.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LifetimeRow {
    /// How they were limited.
    pub bound: &'static str,
    /// How many answers were stored.
    pub count: u64,
    /// Their mean lifetime, in seconds.
    pub mean_s: Option<f64>,
}

/// The configuration in force.
#[derive(Clone, Debug, Serialize)]
pub struct ConfigurationStatus {
    /// Every effective value as TOML, secrets masked.
    pub effective: String,
    /// How often it was reloaded.
    pub reloads: u64,
    /// When it was last reloaded, or that was tried, in seconds since the Unix epoch.
    pub reloaded_at: Option<i64>,
    /// Whether the last reload succeeded.
    pub reload_success: bool,
}

impl Status {
    /// As JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("structures with text for names can be written as JSON")
    }
}
