//! The address of the platform.

use std::fmt;
use std::net::IpAddr;

use config::ValueKind;
use http::Uri;

use super::value::Setting;

/// `http` or `https`, a host, an optional port, and an optional path that is put before every route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    tls: bool,
    host: String,
    port: u16,
    authority: String,
    path: String,
}

impl BaseUrl {
    /// Parses an address; `None` if it has user information, a query or a fragment, or is not http.
    pub fn parse(text: &str) -> Option<Self> {
        if text.contains(['#', '?', '@']) {
            return None;
        }
        let uri: Uri = text.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return None;
        }
        let default_port = if tls { 443 } else { 80 };
        let port = match authority.as_str().strip_prefix(authority.host())? {
            "" => default_port,
            given => given.strip_prefix(':')?.parse().ok().filter(|port| *port > 0)?,
        };
        let path = uri.path().trim_end_matches('/').to_owned();
        Some(Self { tls, host, port, authority: authority.to_string(), path })
    }

    /// Whether it is `https`.
    pub const fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether nobody on the network path can read or change what is sent: TLS, or this machine.
    pub fn is_private(&self) -> bool {
        self.tls || self.host == "localhost" || self.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }

    /// The host's name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The host, in brackets if it is an IPv6 address (RFC 3986, section 3.2.2).
    pub fn bracketed_host(&self) -> String {
        if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() }
    }

    /// The port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Host and port as they go into the `Host` header.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// What is put before every route; empty, or with a leading and without a trailing slash.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority, self.path)
    }
}

impl Setting for BaseUrl {
    const EXPECTED: &'static str =
        "an http or https address such as \"https://openapi.zvcms.com\", without user, query or fragment";

    fn read(value: &ValueKind) -> Option<Self> {
        match value {
            ValueKind::String(text) => Self::parse(text.trim()),
            _ => None,
        }
    }

    fn show(&self) -> String {
        self.to_string().show()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_base_urls_are_parsed_and_others_rejected() {
        let url = BaseUrl::parse("https://openapi.zvcms.com/").unwrap();
        assert_eq!(
            (url.host(), url.port(), url.authority(), url.path()),
            ("openapi.zvcms.com", 443, "openapi.zvcms.com", "")
        );
        let url = BaseUrl::parse("http://[::1]:81/prefix/").unwrap();
        assert_eq!((url.host(), url.port(), url.authority(), url.path()), ("::1", 81, "[::1]:81", "/prefix"));
        for bad in [
            "",
            "openapi.zvcms.com",
            "ftp://a",
            "http://",
            "http://u:p@a",
            "http://a?b",
            "http://a#b",
            "http://a:0",
            "http://a:99999",
            "http://a:",
        ] {
            assert_eq!(BaseUrl::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn plain_http_is_private_only_on_loopback() {
        for (url, private) in [
            ("http://localhost:1", true),
            ("http://127.8.9.1", true),
            ("http://[::1]", true),
            ("https://a", true),
            ("http://a", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(BaseUrl::parse(url).unwrap().is_private(), private, "{url}");
        }
    }
}
