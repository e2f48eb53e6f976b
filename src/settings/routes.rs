//! `[[routes]]`: which of the platform's interfaces are served, and how.

use std::fmt::Write;
use std::time::Duration;

use super::Lifetimes;
use super::rate::PaceSettings;
use super::reader::Table;
use super::value::{Choice, Setting};

/// One route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSettings {
    /// The path, or with a trailing `/**` a prefix of paths.
    pub path: String,
    /// How its requests are handled.
    pub kind: KindSettings,
    /// Its own rate limit, if it has one.
    pub pace: Option<PaceSettings>,
}

/// How a route's requests are handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KindSettings {
    /// As reads whose answers are cached.
    Cached(CachedSettings),
    /// As writes, which invalidate what is cached for their customers.
    Write(WriteSettings),
    /// As neither.
    Pass,
    /// Not at all, even if a wildcard would serve them.
    Off,
}

impl KindSettings {
    /// The lifetimes of a route's answers: its own, where it has some.
    pub fn lifetimes(&self, common: Lifetimes) -> Lifetimes {
        let Self::Cached(own) = self else { return common };
        Lifetimes {
            ttl: own.ttl.unwrap_or(common.ttl),
            stale_while_revalidate: own.stale_while_revalidate.unwrap_or(common.stale_while_revalidate),
            stale_if_error: own.stale_if_error.unwrap_or(common.stale_if_error),
            ..common
        }
    }
}

/// Keys of `kind = "cached"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedSettings {
    /// JSON pointers to the customer in the request, of which the first match counts; none: the route is not about a customer.
    pub customer: Vec<String>,
    /// Names of the members that say when a coupon ends.
    pub expires: Vec<String>,
    /// Members of `params` in which `""` and `null` mean absent.
    pub optional: Vec<String>,
    /// The members that `params` may have; `None`: any.
    pub params: Option<Vec<String>>,
    /// Its own `cache.ttl`, if it has one.
    pub ttl: Option<Duration>,
    /// Its own `cache.stale_while_revalidate`, if it has one.
    pub stale_while_revalidate: Option<Duration>,
    /// Its own `cache.stale_if_error`, if it has one.
    pub stale_if_error: Option<Duration>,
}

/// Keys of `kind = "write"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteSettings {
    /// JSON pointers to customers in the request.
    pub customer: Vec<String>,
    /// JSON pointers to customers in the answer.
    pub customer_answer: Vec<String>,
    /// What to do if no customer is found.
    pub unknown_customer: UnknownCustomer,
}

/// `unknown_customer`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownCustomer {
    /// Invalidate all of the tenant's answers.
    Tenant,
    /// Invalidate nothing: answers expire by themselves.
    Ttl,
    /// Reject the write before it is sent.
    Refuse,
}

impl Choice for UnknownCustomer {
    const EXPECTED: &'static str = "\"tenant\", \"ttl\" or \"refuse\"";
    const ALL: &'static [(&'static str, Self)] =
        &[("tenant", Self::Tenant), ("ttl", Self::Ttl), ("refuse", Self::Refuse)];
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Cached,
    Write,
    Pass,
    Off,
}

impl Choice for Kind {
    const EXPECTED: &'static str = "\"cached\", \"write\", \"pass\" or \"off\"";
    const ALL: &'static [(&'static str, Self)] =
        &[("cached", Self::Cached), ("write", Self::Write), ("pass", Self::Pass), ("off", Self::Off)];
}

fn texts(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

fn cached() -> CachedSettings {
    CachedSettings {
        customer: texts(&["/params/customerId"]),
        expires: texts(&["endAt", "endTime", "validEndDate"]),
        optional: texts(&["useStatus", "cardId"]),
        params: None,
        ttl: None,
        stale_while_revalidate: None,
        stale_if_error: None,
    }
}

fn write(customer_answer: &[&str]) -> WriteSettings {
    WriteSettings {
        customer: texts(&["/params/customerId"]),
        customer_answer: texts(customer_answer),
        unknown_customer: UnknownCustomer::Tenant,
    }
}

/// The routes that are served unless the configuration says otherwise.
pub(crate) fn defaults() -> Vec<RouteSettings> {
    let redemption = KindSettings::Write(write(&["/data/userInfo/customer_id"]));
    [
        ("/v3/crm/coupon/getCustomerCoupons", KindSettings::Cached(cached())),
        ("/v3/crm/coupon/writeOffCoupon", redemption.clone()),
        ("/v3/crm/coupon/couponReverse", redemption),
    ]
    .map(|(path, kind)| RouteSettings { path: path.to_owned(), kind, pace: None })
    .into()
}

/// Merges the configured routes into the defaults; `None` if one of them is invalid.
pub(super) fn read(tables: Vec<Table<'_>>, pace: PaceSettings) -> Option<Vec<RouteSettings>> {
    let mut routes = defaults();
    let mut configured: Vec<String> = Vec::new();
    let mut usable = true;
    for mut table in tables {
        for (key, expected) in [("path", "the path that it serves"), ("kind", <Kind as Choice>::EXPECTED)] {
            if !table.has(key) {
                table.error(key, format!("is missing; expected {expected}"));
            }
        }
        let path: Option<String> = table.optional("path");
        let kind: Option<Kind> = table.optional("kind");
        let (Some(path), Some(kind)) = (path, kind) else {
            usable = false;
            continue;
        };
        if let Err(expected) = check_path(&path) {
            table.error("path", format!("found {path:?}; expected {expected}"));
        }
        if configured.contains(&path) {
            table.error("path", format!("{path} is duplicated; expected each path once"));
        }
        routes.retain(|route| route.path != path);
        let own_pace = table.has("pace").then(|| PaceSettings::read(table.table("pace"), pace));
        let kind = match kind {
            Kind::Cached => KindSettings::Cached(read_cached(&mut table)),
            Kind::Write => KindSettings::Write(read_write(&mut table)),
            Kind::Pass => KindSettings::Pass,
            Kind::Off => KindSettings::Off,
        };
        table.finish();
        configured.push(path.clone());
        routes.push(RouteSettings { path, kind, pace: own_pace });
    }
    usable.then_some(routes)
}

fn read_cached(table: &mut Table<'_>) -> CachedSettings {
    let base = cached();
    CachedSettings {
        customer: table.checked("customer", base.customer, are_pointers),
        expires: table.with_default("expires", base.expires),
        optional: table.with_default("optional", base.optional),
        params: table.optional("params"),
        ttl: table.optional("ttl"),
        stale_while_revalidate: table.optional("stale_while_revalidate"),
        stale_if_error: table.optional("stale_if_error"),
    }
}

fn read_write(table: &mut Table<'_>) -> WriteSettings {
    let base = write(&[]);
    WriteSettings {
        customer: table.checked("customer", base.customer, are_pointers),
        customer_answer: table.checked("customer_answer", base.customer_answer, are_pointers),
        unknown_customer: table.with_default("unknown_customer", base.unknown_customer),
    }
}

#[expect(clippy::ptr_arg, reason = "the reader passes the setting's own type")]
fn are_pointers(pointers: &Vec<String>) -> Result<(), &'static str> {
    if pointers.iter().all(|pointer| pointer.starts_with('/')) {
        Ok(())
    } else {
        Err("a list of JSON pointers such as [\"/params/customerId\"]")
    }
}

/// Paths that the gateway serves itself.
const OWN_PATHS: [&str; 3] = ["/v1", "/v1/**", "/openapi.json"];

/// Whether a path, or all that a pattern covers, is the gateway's own.
pub fn is_own(path: &str) -> bool {
    OWN_PATHS.iter().any(|own| covers(own, path))
}

fn check_path(path: &str) -> Result<(), &'static str> {
    let exact = path.strip_suffix("/**").unwrap_or(path);
    let plain = exact.starts_with('/')
        && !exact.split('/').skip(1).any(|part| part.is_empty() || part == "." || part == "..")
        && exact.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-_.~".contains(&b));
    if is_own(path) {
        return Err("a path that is not one of the gateway's own (/v1/… and /openapi.json)");
    }
    if plain { Ok(()) } else { Err("a path such as \"/v3/crm/coupon/status\", optionally ending in /**") }
}

/// Whether a pattern, a path or a prefix ending in `/**`, includes everything that another one does.
pub fn covers(pattern: &str, other: &str) -> bool {
    pattern == other
        || pattern.strip_suffix("**").is_some_and(|prefix| prefix.ends_with('/') && other.starts_with(prefix))
}

impl RouteSettings {
    /// The route as a `[[routes]]` table.
    pub(crate) fn to_toml(&self) -> String {
        let mut page = format!("\n[[routes]]\npath = {}\n", self.path.show());
        let mut line = |key: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(page, "{key} = {value}");
        };
        match &self.kind {
            KindSettings::Cached(cached) => {
                line("kind", Kind::Cached.show());
                line("customer", cached.customer.show());
                line("expires", cached.expires.show());
                line("optional", cached.optional.show());
                if let Some(params) = &cached.params {
                    line("params", params.show());
                }
                let own = [
                    ("ttl", cached.ttl),
                    ("stale_while_revalidate", cached.stale_while_revalidate),
                    ("stale_if_error", cached.stale_if_error),
                ];
                for (key, value) in own {
                    if let Some(value) = value {
                        line(key, value.show());
                    }
                }
            }
            KindSettings::Write(write) => {
                line("kind", Kind::Write.show());
                line("customer", write.customer.show());
                line("customer_answer", write.customer_answer.show());
                line("unknown_customer", write.unknown_customer.show());
            }
            KindSettings::Pass => line("kind", Kind::Pass.show()),
            KindSettings::Off => line("kind", Kind::Off.show()),
        }
        if let Some(pace) = &self.pace {
            line(
                "pace",
                format!("{{ rate = {}, per = {}, transit = {} }}", pace.rate, pace.per.show(), pace.transit.show()),
            );
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_the_paths_under_it() {
        for (pattern, other, covered) in [
            ("/v3/a", "/v3/a", true),
            ("/v3/a", "/v3/a/b", false),
            ("/v3/**", "/v3/a/b", true),
            ("/v3/**", "/v3/a/**", true),
            ("/v3/**", "/v3", false),
            ("/v3/a/**", "/v3/**", false),
            ("/v3/a**", "/v3/ab", false),
        ] {
            assert_eq!(covers(pattern, other), covered, "{pattern} {other}");
        }
    }
}
