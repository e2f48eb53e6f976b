//! Who comes in.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, Uri, Version};

use super::Gateway;
use super::policy::Policy;
use crate::caller::Caller;
use crate::reply::{Denied, Refusal};

/// The caller of a request. Where callers are configured it is known by its key; else it must be no web page, which could
/// be made to ask by anybody.
pub(super) fn caller<'a>(policy: &'a Policy, head: &Parts) -> Result<&'a Arc<Caller>, Refusal> {
    check_host_is_one(head)?;
    if !policy.callers.are_anonymous() {
        return bearer(&head.headers).and_then(|key| policy.callers.with_key(key)).ok_or(Refusal::Unauthenticated);
    }
    match foreign(&head.headers, &head.uri, &policy.settings.server.hosts) {
        None => Ok(policy.callers.anonymous()),
        Some(Foreign::Host) => Err(Refusal::WrongHost),
        Some(Foreign::Page) => Err(Refusal::Forbidden(Denied::Page)),
    }
}

/// By what a request is seen to come from a web page, or to be able to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// It is for a host that may be the page's own name for this machine.
    Host,
    /// It tells the page's origin.
    Page,
}

impl Gateway {
    /// Whether a web page may have asked, which could be made to by anybody.
    pub fn foreign(&self, headers: &HeaderMap, uri: &Uri) -> Option<Foreign> {
        foreign(headers, uri, &self.policy.load().settings.server.hosts)
    }
}

/// The same, where `names` are this machine's beside its addresses.
fn foreign(headers: &HeaderMap, uri: &Uri, names: &[String]) -> Option<Foreign> {
    let named = headers.get(HOST).map(|host| std::str::from_utf8(host.as_bytes()).unwrap_or_default());
    let mut hosts = named.into_iter().chain(uri.authority().map(Authority::as_str));
    if !hosts.all(|host| is_own(host, names)) {
        return Some(Foreign::Host);
    }
    headers.contains_key(ORIGIN).then_some(Foreign::Page)
}

/// A request that names two hosts, or in HTTP/1.1 none, may be read in two ways (RFC 9112, section 3.2).
fn check_host_is_one(head: &Parts) -> Result<(), Refusal> {
    let count = head.headers.get_all(HOST).iter().count();
    if count > 1 || (count == 0 && head.version == Version::HTTP_11) {
        return Err(Refusal::BadRequest("the request must have one Host"));
    }
    Ok(())
}

/// The key in `Authorization: Bearer KEY` (RFC 6750, section 2.1).
pub fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (Some(one), None) = (all.next(), all.next()) else { return None };
    let (scheme, key) = one.as_bytes().split_at_checked("Bearer ".len())?;
    let key = key.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"Bearer ") && !key.is_empty()).then_some(key)
}

/// Whether a host is this machine's: an address, `localhost`, or one of the names that are configured.
fn is_own(host: &str, names: &[String]) -> bool {
    // As nearly all callers write it, which needs no parsing.
    let plain = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()) { name } else { host }
    });
    if plain.parse::<Ipv4Addr>().is_ok() {
        return true;
    }
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if authority.as_str().contains('@') {
        return false;
    }
    let name = authority.host();
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    is_address || name.eq_ignore_ascii_case("localhost") || names.iter().any(|own| own.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_own_by_address_or_by_name() {
        let names = ["zvgate.internal".to_owned()];
        for (host, own) in [
            ("127.0.0.1", true),
            ("10.1.2.3:8080", true),
            ("[::1]:8080", true),
            ("LOCALHOST:8080", true),
            ("zvgate.Internal:1", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("localhost@evil.example", false),
            ("evil.example@localhost", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
            ("a b", false),
        ] {
            assert_eq!(is_own(host, &names), own, "{host}");
        }
    }

    #[test]
    fn a_key_is_read_from_one_bearer_header() {
        let key = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, http::HeaderValue::from_static(value));
            }
            bearer(&headers).map(|key| String::from_utf8(key.to_vec()).unwrap())
        };
        assert_eq!(key(&["Bearer abc"]).as_deref(), Some("abc"));
        assert_eq!(key(&["bearer  abc "]).as_deref(), Some("abc"));
        for none in [&["Basic abc"][..], &["Bearer"], &["Bearer "], &["Bearerabc"], &["Bearer a", "Bearer b"], &[]] {
            assert_eq!(key(none), None, "{none:?}");
        }
    }
}
