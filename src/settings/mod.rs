//! Configuration: read once, checked whole, and never half applied.
//!
//! Later layers win: built-in defaults, the file, the environment. Every default is a constant here or beside its type,
//! and `config/zvgate.toml` tells each of them to the reader.

mod base_url;
mod breaker;
mod callers;
mod change;
mod load;
mod log;
mod rate;
mod reader;
mod routes;
mod server;
mod tenants;
mod tls;
mod value;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use time::UtcOffset;

pub use base_url::BaseUrl;
pub use breaker::{BreakerSettings, Ratio};
pub use callers::{CallerSettings, Permitted};
pub use load::Sources;
pub use log::{AccessLog, LogFormat, LogLevel, LogSettings};
pub use rate::{CallerLimit, PaceSettings};
use rate::{UPSTREAM_PACE, at_least_one, longer_than_nothing};
use reader::Table;
pub use reader::{Mistake, Mistakes};
pub use routes::{CachedSettings, KindSettings, RouteSettings, UnknownCustomer, WriteSettings, covers};
pub use server::ServerSettings;
pub use tenants::{TenantSettings, read_key};
use value::Choice;
pub use value::Size;

/// Everything that can be configured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The listeners and what callers may take of them.
    pub server: ServerSettings,
    /// The open platform.
    pub upstream: UpstreamSettings,
    /// The merchants, by name.
    pub tenants: Vec<TenantSettings>,
    /// The callers, by name; none: everybody may come in.
    pub callers: Vec<CallerSettings>,
    /// Paces, limits and waits.
    pub limits: LimitSettings,
    /// The cache.
    pub cache: CacheSettings,
    /// The routes that are served.
    pub routes: Vec<RouteSettings>,
    /// Logging.
    pub log: LogSettings,
    /// Every effective value by its key, as TOML, secrets masked.
    effective: BTreeMap<String, String>,
}

/// `upstream.*`
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamSettings {
    /// Where the platform is; checked to be there by [`Settings::missing_for_serving`].
    pub base_url: Option<BaseUrl>,
    /// How long a connection may take to be made, TLS included.
    pub connect_timeout: Duration,
    /// How long the answer to one attempt of a read may take.
    pub attempt_timeout: Duration,
    /// How long the answer to a write may take.
    pub write_timeout: Duration,
    /// Attempts of one tenant at once.
    pub max_inflight: u32,
    /// How long an idle connection is kept.
    pub pool_idle: Duration,
    /// How often a read that failed is asked again.
    pub retries: u32,
    /// Body codes that mean: too many calls, or busy.
    pub retry_codes: Vec<String>,
    /// When calls are suspended.
    pub breaker: BreakerSettings,
    /// Whether calls are signed by the platform's clock, where that can be trusted.
    pub follow_clock: bool,
    /// Longest response body.
    pub max_response: Size,
    /// The offset that dates in answers are written in.
    pub utc_offset: UtcOffset,
}

/// `limits.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitSettings {
    /// For each tenant and route that has no pace of its own.
    pub upstream: PaceSettings,
    /// How long a read may wait for its turn.
    pub max_wait: Duration,
    /// How long a write may wait for its turn.
    pub max_wait_write: Duration,
    /// What callers may ask.
    pub caller: Option<CallerLimit>,
    /// Callers sharing one call.
    pub max_waiters: u32,
}

/// `cache.mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMode {
    /// Answers are kept.
    On,
    /// Every read goes upstream.
    Off,
}

impl Choice for CacheMode {
    const WANTED: &'static str = "\"on\" or \"off\"";
    const ALL: &'static [(&'static str, Self)] = &[("on", Self::On), ("off", Self::Off)];
}

/// `cache.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// Whether answers are kept.
    pub mode: CacheMode,
    /// Memory for keys, bodies and overhead.
    pub max_bytes: Size,
    /// How long an answer is fresh.
    pub ttl: Duration,
    /// The same for business exceptions and empty lists.
    pub negative_ttl: Duration,
    /// The same for a list whose coupons may change by themselves at any moment.
    pub unsettled_ttl: Duration,
    /// How long after its freshness an answer is still served at once while it is refreshed.
    pub stale_while_revalidate: Duration,
    /// How long after its freshness an answer may stand in for a failing upstream.
    pub stale_if_error: Duration,
    /// Taken off every end.
    pub expiry_margin: Duration,
    /// How long after a write's end upstream may still answer from before.
    pub settle: Duration,
    /// The same after a write whose outcome is unknown.
    pub settle_unknown: Duration,
}

const fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

impl Settings {
    fn read(mut root: Table<'_>) -> Option<Self> {
        let has_callers = root.has_within("callers");
        let server = ServerSettings::read(root.table("server"), has_callers);
        let upstream = UpstreamSettings::read(root.table("upstream"));
        let limits = LimitSettings::read(root.table("limits"));
        let tenants = tenants::read(root.secret_tables("tenants"), limits.upstream);
        let cache = CacheSettings::read(root.table("cache"));
        let routes = routes::read(root.array_of_tables("routes"), limits.upstream);
        let callers = root.secret_tables("callers");
        let callers = callers::read(callers, limits.caller, tenants.as_deref(), routes.as_deref());
        let log = LogSettings::read(root.table("log"));
        root.finish();
        Some(Self {
            server,
            upstream,
            tenants: tenants?,
            callers: callers?,
            limits,
            cache,
            routes: routes?,
            log,
            effective: BTreeMap::new(),
        })
    }

    /// The built-in defaults alone.
    ///
    /// # Errors
    /// None in a build that passed its tests.
    pub fn defaults() -> Result<Self, Mistakes> {
        Sources::default().load()
    }

    /// The keys that serving needs beyond the defaults and that are not given.
    pub fn missing_for_serving(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if self.upstream.base_url.is_none() {
            missing.push("upstream.base_url");
        }
        if self.tenants.is_empty() {
            missing.extend([
                "tenants.NAME.open_id",
                "tenants.NAME.grant_code",
                "tenants.NAME.open_key (or open_key_file)",
            ]);
        }
        missing
    }

    /// Every effective value as a TOML document, secrets masked.
    pub fn effective(&self) -> String {
        let mut page = String::new();
        for (key, value) in &self.effective {
            // Writing to a string cannot fail.
            let _ = writeln!(page, "{key} = {value}");
        }
        for route in &self.routes {
            page.push_str(&route.to_toml());
        }
        page
    }
}

impl UpstreamSettings {
    fn read(mut table: Table<'_>) -> Self {
        let allow_plaintext = table.with_default("allow_plaintext", false);
        let base_url: Option<BaseUrl> = table.optional("base_url");
        if let Some(url) = base_url.as_ref().filter(|url| !url.is_private() && !allow_plaintext) {
            table.mistake(
                "base_url",
                format!(
                    "{url} is http beyond loopback, and params are not signed, so that anybody on the way could change them; wanted https, or upstream.allow_plaintext = true"
                ),
            );
        }
        let settings = Self {
            base_url,
            connect_timeout: table.checked("connect_timeout", seconds(2), longer_than_nothing),
            attempt_timeout: table.checked("attempt_timeout", seconds(5), longer_than_nothing),
            // Other clients of the platform wait 20 s and more: a write that is given up too early has an unknown outcome.
            write_timeout: table.checked("write_timeout", seconds(15), longer_than_nothing),
            max_inflight: table.checked("max_inflight", 16, at_least_one),
            pool_idle: table.with_default("pool_idle", seconds(15)),
            // Each is billed as any other call: two are enough to pass over a short failure.
            retries: table.with_default("retries", 2),
            retry_codes: table.with_default("retry_codes", vec!["110004".to_owned(), "110007".to_owned()]),
            breaker: BreakerSettings::read(table.table("breaker")),
            follow_clock: table.with_default("follow_clock", true),
            max_response: table.with_default("max_response", Size(8 << 20)),
            utc_offset: table.with_default("utc_offset", CHINA_STANDARD_TIME),
        };
        table.finish();
        settings
    }
}

impl UpstreamSettings {
    /// Whether calls are signed by the platform's clock: only where nobody on the way can tell another one.
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

impl CacheSettings {
    fn read(mut table: Table<'_>) -> Self {
        let settings = Self {
            mode: table.with_default("mode", CacheMode::On),
            max_bytes: table.with_default("max_bytes", Size(256 << 20)),
            // Coupons also change behind the gateway's back, and nothing tells it: this is how long that may go unseen.
            ttl: table.with_default("ttl", seconds(30)),
            negative_ttl: table.with_default("negative_ttl", seconds(3)),
            unsettled_ttl: table.with_default("unsettled_ttl", seconds(3)),
            // Off: it trades a call's wait for an answer that may be older than `ttl` says.
            stale_while_revalidate: table.with_default("stale_while_revalidate", Duration::ZERO),
            // A minute-old list beats none while the platform is down.
            stale_if_error: table.with_default("stale_if_error", seconds(60)),
            // Room for an answer to reach its caller before the coupon ends.
            expiry_margin: table.with_default("expiry_margin", seconds(1)),
            // Replicas of the platform's own may lag behind a write.
            settle: table.with_default("settle", seconds(3)),
            // A request that got no answer may still be carried out later.
            settle_unknown: table.with_default("settle_unknown", seconds(30)),
        };
        table.finish();
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_followed_only_where_nobody_on_the_way_can_set_it() {
        let follows = |url: &str, follow_clock| {
            let settings = Settings::defaults().unwrap().upstream;
            UpstreamSettings { base_url: BaseUrl::parse(url), follow_clock, ..settings }.follows_clock()
        };
        assert!(follows("https://a", true) && follows("http://127.0.0.1", true));
        assert!(!follows("http://a", true) && !follows("https://a", false));
    }
}
