//! Authentication of callers, and protection from web pages.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, Uri};

use super::Gateway;
use super::policy::Policy;
use super::request_head::RequestHead;
use crate::caller::Caller;
use crate::reply::{Denied, GatewayError};

/// The caller of a request. If callers are configured it is identified by its key; else it must not be a web page, which
/// anybody could make send requests.
pub(super) fn caller<'a>(
    policy: &'a Policy,
    head: &Parts,
    fields: &RequestHead<'_>,
) -> Result<&'a Arc<Caller>, GatewayError> {
    fields.check_single_host(head.version).map_err(GatewayError::BadRequest)?;
    if !policy.callers.are_anonymous() {
        fields.check_valid_host().map_err(GatewayError::BadRequest)?;
        return fields.bearer().and_then(|key| policy.callers.with_key(key)).ok_or(GatewayError::Unauthenticated);
    }
    match cross_site(fields, &head.uri, &policy.settings.requests.hosts) {
        // A page's requests without a body have no `Origin`.
        None if fields.is_of_another_site() => Err(GatewayError::Forbidden(Denied::Page)),
        None => Ok(policy.callers.anonymous()),
        Some(CrossSite::Host) => Err(GatewayError::WrongHost),
        Some(CrossSite::Origin) => Err(GatewayError::Forbidden(Denied::Page)),
    }
}

/// Why a request may come from a web page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrossSite {
    /// Its `Host` may be a page's own name for this machine (DNS rebinding).
    Host,
    /// It has an `Origin`.
    Origin,
}

impl Gateway {
    /// Whether a request may come from a web page, which anybody could make send requests.
    pub fn cross_site(&self, fields: &RequestHead<'_>, uri: &Uri) -> Option<CrossSite> {
        cross_site(fields, uri, &self.policy.load().settings.requests.hosts)
    }

    /// Whether a host, with or without a port, is allowed in `Host` for anonymous callers.
    pub fn is_own_host(&self, host: &[u8]) -> bool {
        is_own(host, &self.policy.load().settings.requests.hosts)
    }
}

/// The same; `names` are this machine's beside its addresses.
fn cross_site(fields: &RequestHead<'_>, uri: &Uri, names: &[String]) -> Option<CrossSite> {
    let named = fields.host.first().map(HeaderValue::as_bytes);
    let mut hosts = named.into_iter().chain(uri.authority().map(|authority| authority.as_str().as_bytes()));
    if !hosts.all(|host| is_own(host, names)) {
        return Some(CrossSite::Host);
    }
    fields.origin.is_present().then_some(CrossSite::Origin)
}

/// Whether a host is allowed: an address, `localhost`, or one of the configured names.
fn is_own(host: &[u8], names: &[String]) -> bool {
    // The forms that nearly all callers use need no parsing.
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
    fn a_host_is_accepted_by_address_or_by_configured_name() {
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
