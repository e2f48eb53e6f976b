//! The configuration: parsed and validated as a whole. Nothing here reads keys or certificates.
//!
//! Later layers override earlier ones: built-in defaults, the file, the environment. Every default is a constant beside its
//! type, and `config/zvgate.toml` lists them all.

mod base_url;
mod breaker;
mod budget;
mod cache;
mod callers;
mod cluster;
mod effective;
mod load;
mod log;
mod rate;
mod reader;
mod redis_url;
mod routes;
mod server;
mod tenants;
mod traces;
mod value;

use std::path::PathBuf;
use std::time::Duration;

use time::UtcOffset;

pub use base_url::BaseUrl;
pub use breaker::{BreakerSettings, Ratio};
pub use budget::{BudgetSettings, Price, SENT_OUTCOMES};
pub use cache::{CacheMode, CacheSettings, Lifetimes};
pub use callers::{CallerSettings, NoCache, Permitted, Priority};
pub use cluster::{ClusterSettings, LONGEST_LEASE, RedisSettings, UnfencedWrites};
use effective::Scope;
pub use effective::{Differences, Effective};
pub use load::{FileReference, Holds, Parsed, Sources};
pub use log::{AccessLog, AccessLogSettings, LogFormat, LogLevel, LogSettings};
pub use rate::{CallerLimit, PaceSettings};
use rate::{UPSTREAM_PACE, at_least_one, greater_than_zero};
use reader::Table;
pub use reader::{ConfigError, ConfigErrors};
pub use redis_url::{HostPort, RedisServer, RedisUrl};
pub use routes::{CachedSettings, KindSettings, RouteSettings, UnknownCustomer, WriteSettings, covers, is_own};
pub use server::{ListenerSettings, RequestSettings};
pub use tenants::{KeySource, TenantSettings};
pub use traces::TraceSettings;
pub use value::Size;

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is read at start only.
    pub fixed: StaticSettings,
    /// What a reload replaces.
    pub dynamic: DynamicSettings,
    /// Every effective value.
    pub effective: Effective,
}

/// Settings that need a restart.
#[derive(Clone, Debug)]
pub struct StaticSettings {
    /// The listeners.
    pub listeners: ListenerSettings,
    /// The client of the platform.
    pub client: ClientSettings,
    /// `cache.max_bytes`: memory for keys, bodies, overhead and lookaside tables.
    pub cache_max_bytes: Size,
    /// Logging.
    pub log: LogSettings,
    /// Several replicas that act as one.
    pub cluster: ClusterSettings,
    /// Traces.
    pub traces: TraceSettings,
    /// `budget.store`: the file of the counts of calls.
    pub budget_store: Option<PathBuf>,
}

/// Settings that a reload replaces as a whole.
#[derive(Clone, Debug)]
pub struct DynamicSettings {
    /// What callers may send.
    pub requests: RequestSettings,
    /// Attempts at the platform.
    pub attempts: AttemptSettings,
    /// The merchants, by name.
    pub tenants: Vec<TenantSettings>,
    /// The callers, by name; none: anonymous callers are served.
    pub callers: Vec<CallerSettings>,
    /// Rate limits and waits.
    pub limits: LimitSettings,
    /// The cache.
    pub cache: CacheSettings,
    /// The routes that are served.
    pub routes: Vec<RouteSettings>,
    /// Which requests are logged.
    pub access_log: AccessLogSettings,
    /// What calls cost.
    pub budget: BudgetSettings,
}

/// The keys of `upstream.*` that need a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSettings {
    /// Where the platform is; [`Settings::missing_for_serving`] checks that it is given.
    pub base_url: Option<BaseUrl>,
    /// A PEM file of CAs that are trusted in addition to the system's.
    pub ca: Option<PathBuf>,
    /// A forward proxy, reached by CONNECT.
    pub proxy: Option<BaseUrl>,
    /// The file of the proxy's credentials, `user:password`.
    pub proxy_auth_file: Option<PathBuf>,
    /// How long it may take to open a connection, TLS included.
    pub connect_timeout: Duration,
    /// Concurrent attempts of one tenant.
    pub max_inflight: u32,
    /// How long an idle connection is kept.
    pub pool_idle: Duration,
    /// Whether calls are signed by the platform's clock, if that can be trusted.
    pub follow_clock: bool,
    /// Longest response body.
    pub max_response: Size,
}

/// The keys of `upstream.*` that can be reloaded.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptSettings {
    /// How long the answer to one attempt of a read may take.
    pub attempt_timeout: Duration,
    /// How long the answer to a write may take.
    pub write_timeout: Duration,
    /// How often a read that failed is retried.
    pub retries: u32,
    /// Body codes that mean: throttled, or busy.
    pub retry_codes: Vec<String>,
    /// The circuit breaker.
    pub breaker: BreakerSettings,
    /// The offset from UTC in which dates in answers are written.
    pub utc_offset: UtcOffset,
}

/// `limits.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitSettings {
    /// Towards the platform, for each tenant and route that has no limit of its own.
    pub upstream: PaceSettings,
    /// How long a read may wait for a slot and for capacity in flight.
    pub max_wait: Duration,
    /// The same for a write.
    pub max_wait_write: Duration,
    /// Of each caller.
    pub caller: Option<CallerLimit>,
    /// Callers that share one fetch.
    pub max_waiters: u32,
}

const fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

/// The rate limits towards the platform: the common one, and those of tenants and routes.
fn rates(
    common: PaceSettings,
    tenants: Option<&[TenantSettings]>,
    routes: Option<&[RouteSettings]>,
) -> impl Iterator<Item = u32> {
    let tenants = tenants.unwrap_or_default().iter().filter_map(|tenant| tenant.pace);
    let routes = routes.unwrap_or_default().iter().filter_map(|route| route.pace);
    std::iter::once(common).chain(tenants).chain(routes).map(|pace| pace.rate)
}

impl DynamicSettings {
    /// The rate limits towards the platform.
    pub fn rates(&self) -> impl Iterator<Item = u32> {
        rates(self.limits.upstream, Some(&self.tenants), Some(&self.routes))
    }
}

impl Settings {
    fn read(mut root: Table<'_>) -> Option<Self> {
        let has_callers = root.has_within("callers");
        let (listeners, requests) = server::read(root.table("server"), has_callers);
        let (client, attempts) = read_upstream(root.table("upstream"));
        let limits = LimitSettings::read(root.table("limits"));
        let tenants = tenants::read(root.secret_tables("tenants"), limits.upstream);
        let (cache_max_bytes, cache) = cache::read(root.table("cache"));
        let routes = routes::read(root.array_of_tables("routes"), limits.upstream);
        let callers = root.secret_tables("callers");
        let callers = callers::read(callers, limits.caller, tenants.as_deref(), routes.as_deref());
        let (log, access_log) = log::read(root.table("log"));
        let cluster = cluster::read(root.table("cluster"), log.hash_key_file.is_some());
        let traces = traces::read(root.table("traces"));
        let (budget, budget_store) = budget::read(root.table("budget"));
        let rates = rates(limits.upstream, tenants.as_deref(), routes.as_deref());
        if let Some(problem) = cluster.problem_with_rates(rates) {
            root.error("cluster.replicas", problem);
        }
        root.finish();
        Some(Self {
            fixed: StaticSettings { listeners, client, cache_max_bytes, log, cluster, traces, budget_store },
            dynamic: DynamicSettings {
                requests,
                attempts,
                tenants: tenants?,
                callers: callers?,
                limits,
                cache,
                routes: routes?,
                access_log,
                budget,
            },
            effective: Effective::default(),
        })
    }

    /// The built-in defaults alone.
    ///
    /// # Errors
    /// None in a build that passed its tests.
    pub fn defaults() -> Result<Self, ConfigErrors> {
        Sources::default().settings()
    }

    /// The keys that serving needs beyond the defaults and that are not given.
    pub fn missing_for_serving(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if self.fixed.client.base_url.is_none() {
            missing.push("upstream.base_url");
        }
        if self.dynamic.tenants.is_empty() {
            missing.extend([
                "tenants.NAME.open_id",
                "tenants.NAME.grant_code",
                "tenants.NAME.open_key (or open_key_file)",
            ]);
        }
        missing
    }

    /// Every effective value as a TOML document, secrets masked.
    pub fn to_toml(&self) -> String {
        self.effective.to_toml(&self.dynamic.routes)
    }
}

fn read_upstream(mut table: Table<'_>) -> (ClientSettings, AttemptSettings) {
    let attempts = AttemptSettings {
        attempt_timeout: table.checked("attempt_timeout", seconds(5), greater_than_zero),
        // Other clients of the platform wait 20 s and more: a write that is given up too early has an unknown outcome.
        write_timeout: table.checked("write_timeout", seconds(15), greater_than_zero),
        // Each is billed as any other call: two are enough for a short failure.
        retries: table.with_default("retries", 2),
        retry_codes: table.with_default("retry_codes", vec!["110004".to_owned(), "110007".to_owned()]),
        breaker: BreakerSettings::read(table.table("breaker")),
        utc_offset: table.with_default("utc_offset", CHINA_STANDARD_TIME),
    };
    table.set_scope(Scope::Static);
    let allow_plaintext = table.with_default("allow_plaintext", false);
    let base_url: Option<BaseUrl> = table.optional("base_url");
    if let Some(url) = base_url.as_ref().filter(|url| !url.is_private() && !allow_plaintext) {
        table.error(
            "base_url",
            format!(
                "{url} is plain http beyond loopback, and params are not signed, so that anybody on the network path could change them; expected https, or upstream.allow_plaintext = true"
            ),
        );
    }
    let is_proxy = |url: &BaseUrl| match !url.is_tls() && url.path().is_empty() {
        true => Ok(()),
        false => Err(
            "http://host:port of a forward proxy, without a path; its credentials belong in upstream.proxy_auth_file",
        ),
    };
    let proxy = table.optional_checked("proxy", is_proxy);
    let ca = table.file("ca", Holds::TrustedCas);
    let proxy_auth_file = table.file("proxy_auth_file", Holds::ProxyCredentials);
    if proxy_auth_file.is_some() && !table.was_given("proxy") {
        table.error("proxy_auth_file", "is given without upstream.proxy");
    }
    if ca.is_some() && base_url.as_ref().is_some_and(|url| !url.is_tls()) {
        table.error("ca", "is given although upstream.base_url is not https");
    }
    let client = ClientSettings {
        base_url,
        ca,
        proxy,
        proxy_auth_file,
        connect_timeout: table.checked("connect_timeout", seconds(2), greater_than_zero),
        max_inflight: table.checked("max_inflight", 16, at_least_one),
        pool_idle: table.with_default("pool_idle", seconds(15)),
        follow_clock: table.with_default("follow_clock", true),
        max_response: table.with_default("max_response", Size(8 << 20)),
    };
    table.finish();
    (client, attempts)
}

impl ClientSettings {
    /// Whether calls are signed by the platform's clock: only if nobody on the network path can change it.
    pub fn follows_clock(&self) -> bool {
        self.follow_clock && self.base_url.as_ref().is_some_and(BaseUrl::is_private)
    }
}

/// The platform writes dates in China Standard Time, which has no daylight saving.
const CHINA_STANDARD_TIME: UtcOffset = match UtcOffset::from_hms(8, 0, 0) {
    Ok(offset) => offset,
    Err(_) => UtcOffset::UTC,
};

impl LimitSettings {
    fn read(mut table: Table<'_>) -> Self {
        let settings = Self {
            upstream: PaceSettings::read(table.table("upstream"), UPSTREAM_PACE),
            max_wait: table.with_default("max_wait", seconds(3)),
            max_wait_write: table.with_default("max_wait_write", seconds(5)),
            caller: CallerLimit::read(table.table("caller")),
            max_waiters: table.checked("max_waiters", 1024, at_least_one),
        };
        table.finish();
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_platforms_clock_is_followed_only_over_a_private_connection() {
        let follows = |url: &str, follow_clock| {
            let settings = Settings::defaults().unwrap().fixed.client;
            ClientSettings { base_url: BaseUrl::parse(url), follow_clock, ..settings }.follows_clock()
        };
        assert!(follows("https://a", true) && follows("http://127.0.0.1", true));
        assert!(!follows("http://a", true) && !follows("https://a", false));
    }
}
