//! The address of Redis.

use std::fmt;

use config::ValueKind;
use http::uri::Authority;

use super::value::Setting;

/// The port of Redis, and that of a Sentinel.
const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Where the primary is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisServer {
    /// At an address, with TLS or without.
    Direct {
        /// The address.
        address: HostPort,
        /// Whether it speaks TLS.
        tls: bool,
    },
    /// Where Sentinels say.
    Sentinel {
        /// Their addresses.
        sentinels: Vec<HostPort>,
        /// The name under which they monitor the primary.
        name: String,
    },
}

/// `redis://`, `rediss://` or `redis+sentinel://`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisUrl {
    text: String,
    /// Where the primary is.
    pub server: RedisServer,
    /// The user of its access control list; `None`: the default user.
    pub user: Option<String>,
    /// The number of the database.
    pub database: i64,
}

impl RedisUrl {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        if rest.contains(['?', '#']) {
            return None;
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = match authority.split_once('@') {
            Some((user, hosts)) if !user.is_empty() && !user.contains(':') => (Some(user.to_owned()), hosts),
            Some(_) => return None,
            None => (None, authority),
        };
        let database = || if path.is_empty() { Some(0) } else { path.parse().ok().filter(|number| *number >= 0) };
        let (server, database) = match scheme {
            "redis" | "rediss" => {
                let address = host_port(hosts, REDIS_PORT)?;
                (RedisServer::Direct { address, tls: scheme == "rediss" }, database()?)
            }
            "redis+sentinel" => {
                let is_name = |name: &&str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
                let name = Some(path).filter(is_name)?.to_owned();
                let sentinels: Option<_> = hosts.split(',').map(|host| host_port(host, SENTINEL_PORT)).collect();
                (RedisServer::Sentinel { sentinels: sentinels?, name }, 0)
            }
            _ => return None,
        };
        Some(Self { text: text.to_owned(), server, user, database })
    }

    /// Whether it certainly is on this machine: nobody knows where the primary is that Sentinels name.
    pub fn is_loopback(&self) -> bool {
        let is_local = |host: &str| {
            host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
        };
        match &self.server {
            RedisServer::Direct { address, .. } => is_local(&address.host),
            RedisServer::Sentinel { .. } => false,
        }
    }

    /// The addresses of its Sentinels, if it has some.
    pub fn sentinels(&self) -> &[HostPort] {
        match &self.server {
            RedisServer::Direct { .. } => &[],
            RedisServer::Sentinel { sentinels, .. } => sentinels,
        }
    }

    /// Whether TLS is used.
    pub const fn is_tls(&self) -> bool {
        matches!(self.server, RedisServer::Direct { tls: true, .. })
    }
}

fn host_port(text: &str, default: u16) -> Option<HostPort> {
    let authority: Authority = text.parse().ok()?;
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let port = match authority.as_str().strip_prefix(authority.host())? {
        "" => default,
        given => given.strip_prefix(':')?.parse().ok().filter(|port| *port > 0)?,
    };
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
    (!host.is_empty() && host.bytes().all(is_allowed)).then_some(HostPort { host, port })
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Setting for RedisUrl {
    const EXPECTED: &'static str = "redis://HOST:PORT, rediss://HOST:PORT, both with /NUMBER for a database, or redis+sentinel://HOST:PORT,HOST:PORT/NAME; before the first host a user as in redis://zvgate@HOST, whose password belongs in cluster.password_file";

    fn read(value: &ValueKind) -> Option<Self> {
        match value {
            ValueKind::String(text) => Self::parse(text.trim()),
            _ => None,
        }
    }

    fn show(&self) -> String {
        self.text.show()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str, port: u16) -> HostPort {
        HostPort { host: host.to_owned(), port }
    }

    #[test]
    fn valid_addresses_are_parsed() {
        let url = RedisUrl::parse("redis://localhost").unwrap();
        assert_eq!(url.server, RedisServer::Direct { address: address("localhost", 6379), tls: false });
        assert_eq!((url.user.as_deref(), url.database, url.is_tls()), (None, 0, false));
        let url = RedisUrl::parse("rediss://zvgate@[::1]:7000/3").unwrap();
        assert_eq!(url.server, RedisServer::Direct { address: address("::1", 7000), tls: true });
        assert_eq!((url.user.as_deref(), url.database, url.is_tls()), (Some("zvgate"), 3, true));
        let url = RedisUrl::parse("redis+sentinel://a,b:1,[::1]/primary").unwrap();
        let sentinels = vec![address("a", 26379), address("b", 1), address("::1", 26379)];
        assert_eq!(url.server, RedisServer::Sentinel { sentinels, name: "primary".to_owned() });
        assert_eq!(address("::1", 2).to_string(), "[::1]:2");
    }

    #[test]
    fn invalid_addresses_are_rejected() {
        for bad in [
            "",
            "localhost:6379",
            "http://a",
            "redis://",
            "redis://a:0",
            "redis://a:99999",
            "redis://user:password@a",
            "redis://@a",
            "redis://a/x",
            "redis://a/-1",
            "redis://a,b",
            "redis://a?x=1",
            "redis+sentinel://a",
            "redis+sentinel://a/",
            "redis+sentinel://a,/n",
        ] {
            assert_eq!(RedisUrl::parse(bad), None, "{bad}");
        }
    }
}
