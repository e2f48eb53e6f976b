//! The platform's checks of a request: identity, clock, signature, one-time use, and pace. Written from the platform's
//! rules alone, sharing nothing with the signer that it checks.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use crate::clock::{Boot, Now};
use crate::json::Node;
use crate::secret::Secret;

/// How far a request's clock may be off, either way.
const CLOCK_WINDOW: i64 = 300;
/// The window that calls are counted in.
const RATE_WINDOW: Duration = Duration::from_secs(1);
/// SHA-1's block, which RFC 2104 pads keys to.
const BLOCK: usize = 64;

/// A merchant that the sandbox knows.
#[derive(Clone, Debug)]
pub struct Merchant {
    /// Its identity.
    pub open_id: String,
    /// The grant that belongs to it.
    pub grant_code: String,
    /// Its signing keys: more than one while it changes them.
    pub open_keys: Vec<Secret>,
}

/// Why a request is refused, as the platform would: with HTTP 200.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Malformed,
    UnknownIdentity,
    Clock,
    Signature,
    Repeated,
    TooMany,
}

impl Refused {
    pub(super) const fn code(self) -> u32 {
        match self {
            Self::Malformed => 100_002,
            Self::UnknownIdentity => 110_001,
            Self::Clock => 110_002,
            // The platform has the same code for a rejected signature and for too many calls.
            Self::Signature | Self::Repeated | Self::TooMany => 110_004,
        }
    }

    pub(super) const fn message(self) -> &'static str {
        match self {
            Self::Malformed => "参数格式错误 (malformed parameters)",
            Self::UnknownIdentity => "授权不存在 (unknown identity)",
            Self::Clock => "时间戳过期 (timestamp out of range)",
            Self::Signature => "签名错误 (signature refused)",
            Self::Repeated => "签名已使用 (signature used before)",
            Self::TooMany => "调用频率超限 (too many calls)",
        }
    }
}

/// Remembers what was seen.
#[derive(Debug)]
pub(super) struct Gatekeeper {
    merchants: Vec<Merchant>,
    /// Calls allowed in any second, for each merchant and route; 0: any number.
    rate: usize,
    used: HashSet<String>,
    used_in_order: VecDeque<(Boot, String)>,
    counted: HashMap<(String, String), VecDeque<Boot>>,
}

impl Gatekeeper {
    pub(super) fn new(merchants: Vec<Merchant>, rate: usize) -> Self {
        Self { merchants, rate, used: HashSet::new(), used_in_order: VecDeque::new(), counted: HashMap::new() }
    }

    /// Lets a request through, or says why not. The call is counted in the moment that it is let through.
    pub(super) fn check(&mut self, body: &Node<'_>, path: &str, now: Now) -> Result<(), Refused> {
        let text = |name: &str| body.member(name).and_then(Node::text).ok_or(Refused::Malformed);
        let (open_id, grant_code) = (text("openId")?, text("grantCode")?);
        let (timestamp, nonce, token) = (text("timestamp")?, text("nonce")?, text("token")?);
        if body.member("params").and_then(Node::members).is_none() {
            return Err(Refused::Malformed);
        }
        let known = |one: &&Merchant| one.open_id == open_id && one.grant_code == grant_code;
        let merchant = self.merchants.iter().find(known).ok_or(Refused::UnknownIdentity)?;
        let seconds: i64 = timestamp.parse().map_err(|_| Refused::Malformed)?;
        if seconds.abs_diff(now.wall.unix_seconds()) > CLOCK_WINDOW.unsigned_abs() {
            return Err(Refused::Clock);
        }
        if !nonce.parse().is_ok_and(|nonce: u32| (1..1 << 31).contains(&nonce)) {
            return Err(Refused::Malformed);
        }
        let signed = format!("grantCode={grant_code}&nonce={nonce}&openId={open_id}&timestamp={timestamp}");
        let token_of = |key: &Secret| STANDARD.encode(hmac_sha1(key.expose(), &signed));
        let given = unescaped(token);
        if !merchant.open_keys.iter().any(|key| given.as_ref() == Some(&token_of(key))) {
            return Err(Refused::Signature);
        }
        self.forget(now.boot);
        if !self.used.insert(token.to_owned()) {
            return Err(Refused::Repeated);
        }
        self.used_in_order.push_back((now.boot, token.to_owned()));
        self.count(open_id, path, now.boot)
    }

    /// Gives a merchant other keys; answers whether there is such a merchant.
    pub(super) fn change_keys(&mut self, open_id: &str, keys: &[Secret]) -> bool {
        let merchant = self.merchants.iter_mut().find(|merchant| merchant.open_id == open_id);
        merchant.map(|merchant| merchant.open_keys = keys.to_vec()).is_some()
    }

    fn count(&mut self, open_id: &str, path: &str, now: Boot) -> Result<(), Refused> {
        let calls = self.counted.entry((open_id.to_owned(), path.to_owned())).or_default();
        while calls.front().is_some_and(|first| now.since(*first) >= RATE_WINDOW) {
            calls.pop_front();
        }
        if self.rate > 0 && calls.len() >= self.rate {
            return Err(Refused::TooMany);
        }
        calls.push_back(now);
        Ok(())
    }

    /// A token older than both edges of the clock window is refused for its timestamp anyway.
    fn forget(&mut self, now: Boot) {
        let keep = Duration::from_secs(2 * CLOCK_WINDOW.unsigned_abs() + 1);
        while self.used_in_order.front().is_some_and(|(seen, _)| now.since(*seen) > keep) {
            if let Some((_, token)) = self.used_in_order.pop_front() {
                self.used.remove(&token);
            }
        }
    }
}

/// RFC 2104, from its definition.
fn hmac_sha1(key: &str, text: &str) -> Vec<u8> {
    let mut block = [0u8; BLOCK];
    let hashed = Sha1::digest(key.as_bytes());
    let key = if key.len() > BLOCK { hashed.as_slice() } else { key.as_bytes() };
    block.iter_mut().zip(key).for_each(|(place, byte)| *place = *byte);
    let inner = Sha1::new().chain_update(block.map(|b| b ^ 0x36)).chain_update(text.as_bytes()).finalize();
    Sha1::new().chain_update(block.map(|b| b ^ 0x5c)).chain_update(inner).finalize().to_vec()
}

/// Undoes percent-encoding; `None` where an escape is broken.
fn unescaped(token: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = token;
    while let Some((plain, escape)) = rest.split_once('%') {
        out.push_str(plain);
        let byte = u8::from_str_radix(escape.get(..2)?, 16).ok()?;
        out.push(char::from(byte));
        rest = escape.get(2..)?;
    }
    Some(out + rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, Wall};

    const EXAMPLE: &str = r#"{"openId":"d14c1559e87b747d577c834b275a4310","grantCode":"ba67d4fa46",
        "timestamp":"1465185768","nonce":"11886","token":"cFw0t9IuvL9jVo9qAzk0qMcw5BM%3D","params":{}}"#;

    fn gatekeeper() -> Gatekeeper {
        let merchant = Merchant {
            open_id: "d14c1559e87b747d577c834b275a4310".to_owned(),
            grant_code: "ba67d4fa46".to_owned(),
            open_keys: vec![Secret::new("LyvrkvkxRkG2R6aM55bXpPwjYAbkEXTbVnKwfDYvVHjNwNFAmx".to_owned())],
        };
        Gatekeeper::new(vec![merchant], 10)
    }

    fn at(seconds: i64) -> Now {
        Now { wall: Wall::from_unix_seconds(seconds), boot: Clock::system().boot() }
    }

    fn check(gatekeeper: &mut Gatekeeper, body: &str, now: Now) -> Result<(), Refused> {
        gatekeeper.check(&Node::parse(body, 32).unwrap(), "/", now)
    }

    #[test]
    fn the_published_example_is_accepted_once() {
        let mut gatekeeper = gatekeeper();
        assert_eq!(check(&mut gatekeeper, EXAMPLE, at(1_465_185_768)), Ok(()));
        assert_eq!(check(&mut gatekeeper, EXAMPLE, at(1_465_185_768)), Err(Refused::Repeated));
    }

    #[test]
    fn requests_that_the_platform_would_reject_are_rejected() {
        for (from, to, why) in [
            ("11886", "11887", Refused::Signature),
            ("cFw0", "cFw1", Refused::Signature),
            ("5BM%3D", "5BM%3", Refused::Signature),
            ("ba67d4fa46", "ba67d4fa47", Refused::UnknownIdentity),
            (r#""params":{}"#, r#""params":"{}""#, Refused::Malformed),
            (r#""nonce":"11886","#, "", Refused::Malformed),
        ] {
            let body = EXAMPLE.replace(from, to);
            assert_eq!(check(&mut gatekeeper(), &body, at(1_465_185_768)), Err(why), "{to}");
        }
        assert_eq!(check(&mut gatekeeper(), EXAMPLE, at(1_465_185_768 + 301)), Err(Refused::Clock));
        assert_eq!(check(&mut gatekeeper(), EXAMPLE, at(1_465_185_768 - 301)), Err(Refused::Clock));
        assert_eq!(check(&mut gatekeeper(), EXAMPLE, at(1_465_185_768 + 300)), Ok(()));
    }

    #[test]
    fn the_eleventh_call_in_any_second_is_rejected() {
        let mut gatekeeper = gatekeeper();
        let start = Boot::from_duration(Duration::from_secs(1000));
        for tenth in 0..10 {
            assert_eq!(gatekeeper.count("a", "/", start + Duration::from_millis(tenth * 100)), Ok(()));
        }
        assert_eq!(gatekeeper.count("a", "/", start + Duration::from_millis(999)), Err(Refused::TooMany));
        assert_eq!(gatekeeper.count("a", "/other", start + Duration::from_millis(999)), Ok(()));
        assert_eq!(gatekeeper.count("a", "/", start + Duration::from_millis(1000)), Ok(()));
        assert_eq!(gatekeeper.count("a", "/", start + Duration::from_millis(1001)), Err(Refused::TooMany));
    }
}
