//! Who comes in.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, Uri, Version};

use super::Gateway;
use super::fields::{Fields, Given};
use super::policy::Policy;
use crate::caller::Caller;
use crate::reply::{Denied, Refusal};

/// The caller of a request. Where callers are configured it is known by its key; else it must be no web page, which could
/// be made to ask by anybody.
pub(super) fn caller<'a>(policy: &'a Policy, head: &Parts, fields: &Fields<'_>) -> Result<&'a Arc<Caller>, Refusal> {
    check_host_is_one(head.version, fields)?;
    if !policy.callers.are_anonymous() {
        return fields.bearer().and_then(|key| policy.callers.with_key(key)).ok_or(Refusal::Unauthenticated);
    }
    match foreign(fields, &head.uri, &policy.settings.server.hosts) {
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
    pub fn foreign(&self, fields: &Fields<'_>, uri: &Uri) -> Option<Foreign> {
        foreign(fields, uri, &self.policy.load().settings.server.hosts)
    }
}

/// The same, where `names` are this machine's beside its addresses.
fn foreign(fields: &Fields<'_>, uri: &Uri, names: &[String]) -> Option<Foreign> {
    let named = fields.host.first().map(HeaderValue::as_bytes);
    let mut hosts = named.into_iter().chain(uri.authority().map(|authority| authority.as_str().as_bytes()));
    if !hosts.all(|host| is_own(host, names)) {
        return Some(Foreign::Host);
    }
    fields.origin.is_there().then_some(Foreign::Page)
}

/// A request that names two hosts, or in HTTP/1.1 none, may be read in two ways (RFC 9112, section 3.2).
fn check_host_is_one(version: Version, fields: &Fields<'_>) -> Result<(), Refusal> {
    match fields.host {
        Given::Once(_) => Ok(()),
        Given::Never if version != Version::HTTP_11 => Ok(()),
        Given::Never | Given::Often(_) => Err(Refusal::BadRequest("the request must have one Host")),
    }
}

/// Whether a host is this machine's: an address, `localhost`, or one of the names that are configured.
fn is_own(host: &[u8], names: &[String]) -> bool {
    // As nearly all callers write it, which needs no parsing.
    let digits = host.iter().rev().take(5).take_while(|b| b.is_ascii_digit()).count();
    let before_port = host.get(..host.len() - digits).and_then(|before| before.strip_suffix(b":"));
    let plain = before_port.unwrap_or(host);
    let is_ipv4 = || std::str::from_utf8(plain).is_ok_and(|plain| plain.parse::<Ipv4Addr>().is_ok());
    if plain == b"127.0.0.1" || plain == b"localhost" || is_ipv4() {
        return true;
    }
    let Ok(authority) = Authority::try_from(host) else { return false };
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
            assert_eq!(is_own(host.as_bytes(), &names), own, "{host}");
        }
    }
}
