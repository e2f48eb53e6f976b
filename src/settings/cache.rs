//! `cache.*`: whether answers are cached, and for how long.

use std::time::Duration;

use super::effective::Scope;
use super::reader::Table;
use super::seconds;
use super::value::{Choice, Size};

/// `cache.mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMode {
    /// Answers are cached.
    On,
    /// Every read goes upstream.
    Off,
    /// Every read goes upstream, and is compared with what the cache would have served.
    Shadow,
}

impl CacheMode {
    /// Its name.
    pub fn name(self) -> &'static str {
        self.name_of()
    }
}

impl Choice for CacheMode {
    const EXPECTED: &'static str = "\"on\", \"off\" or \"shadow\"";
    const ALL: &'static [(&'static str, Self)] = &[("on", Self::On), ("off", Self::Off), ("shadow", Self::Shadow)];
}

/// The keys of `cache.*` that the freshness of an answer depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of a settled success.
    pub ttl: Duration,
    /// Of a business exception or an empty list.
    pub negative_ttl: Duration,
    /// Of a list whose coupons may change by themselves at any moment.
    pub unsettled_ttl: Duration,
    /// How long after its freshness a settled success is served while it is refreshed.
    pub stale_while_revalidate: Duration,
    /// How long after its freshness a settled success is served in place of a failure.
    pub stale_if_error: Duration,
    /// Subtracted from every end.
    pub expiry_margin: Duration,
}

/// `cache.*`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSettings {
    /// Whether answers are cached.
    pub mode: CacheMode,
    /// How long answers may be served.
    pub lifetimes: Lifetimes,
    /// How long after a write's end the platform may still answer with data from before it.
    pub settle: Duration,
    /// The same after a write whose outcome is unknown.
    pub settle_unknown: Duration,
}

/// Reads the table: the memory, and what can be reloaded.
pub(super) fn read(mut table: Table<'_>) -> (Size, CacheSettings) {
    let settings = CacheSettings {
        mode: table.with_default("mode", CacheMode::On),
        lifetimes: Lifetimes {
            // Coupons also change without the gateway, and nothing reports it: this is how long that may go unnoticed.
            ttl: table.with_default("ttl", seconds(30)),
            negative_ttl: table.with_default("negative_ttl", seconds(3)),
            unsettled_ttl: table.with_default("unsettled_ttl", seconds(3)),
            // Off: it saves callers a wait, for answers that may be older than `ttl`.
            stale_while_revalidate: table.with_default("stale_while_revalidate", Duration::ZERO),
            // A minute-old list beats none while the platform is down.
            stale_if_error: table.with_default("stale_if_error", seconds(60)),
            // Time for an answer to reach its caller before the coupon ends.
            expiry_margin: table.with_default("expiry_margin", seconds(1)),
        },
        // Replicas of the platform's own may lag behind a write.
        settle: table.with_default("settle", seconds(3)),
        // A request that got no answer may still be executed later.
        settle_unknown: table.with_default("settle_unknown", seconds(30)),
    };
    table.set_scope(Scope::Static);
    let max_bytes = table.with_default("max_bytes", Size(256 << 20));
    table.finish();
    (max_bytes, settings)
}
