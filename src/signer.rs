//! The platform's signature, made as late as can be.
//!
//! Sorted by name and joined as `grantCode=…&nonce=…&openId=…&timestamp=…`, HMAC-SHA1 with the merchant's key, Base64,
//! percent-encoded. `params` are not part of it. Each signature is good for one attempt.

mod steps;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha1::Sha1;

pub use self::steps::{Signed, Steps, percent_encoded};
use crate::clock::Wall;
use crate::envelope::push_text;
use crate::tenant::Tenant;

/// Everything but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The same, but for what joins the signed members.
const RESERVED_IN_VALUES: &AsciiSet = &RESERVED.remove(b'=').remove(b'&');
/// Nonces are below this: no public client sends larger ones.
const NONCES: u32 = 1 << 31;

/// The one source of nonces: positive, below 2^31, none twice in 2^31 - 1 attempts, from an unpredictable place on.
#[derive(Debug)]
pub struct Nonces(AtomicU32);

impl Nonces {
    /// Starts at an unpredictable place, so that restarts and replicas do not meet.
    ///
    /// # Errors
    /// Where the system has no randomness to give.
    pub fn new() -> Result<Self, getrandom::Error> {
        Ok(Self::starting_at(getrandom::u32()?))
    }

    fn starting_at(place: u32) -> Self {
        Self(AtomicU32::new(place % (NONCES - 1) + 1))
    }

    /// The next nonce.
    pub fn next(&self) -> u32 {
        let after = |nonce: u32| Some(nonce % (NONCES - 1) + 1);
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after);
        taken.unwrap_or_else(|current| current)
    }
}

/// A call as a caller asked for it: everything but the signature.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who signs.
    pub tenant: Arc<Tenant>,
    /// The platform's path.
    pub path: Arc<str>,
    /// `params` and what is passed through, as [`crate::envelope::Envelope::forwarded`] cuts it out.
    pub members: Arc<str>,
}

/// A signed request: only made here, good for one attempt.
pub struct SignedRequest {
    path: Arc<str>,
    body: Bytes,
}

impl SignedRequest {
    /// Signs a call for the attempt that is about to leave.
    pub fn sign(call: &Call, nonces: &Nonces, now: Wall) -> Self {
        let (timestamp, nonce) = (now.unix_seconds().to_string(), nonces.next().to_string());
        let tenant = &call.tenant;
        let token = token(tenant.open_key().expose(), &tenant.open_id, &tenant.grant_code, &timestamp, &nonce);
        let mut body = String::with_capacity(call.members.len() + 256);
        let own = [
            ("openId", &tenant.open_id),
            ("grantCode", &tenant.grant_code),
            ("timestamp", &timestamp),
            ("nonce", &nonce),
            ("token", &token),
        ];
        for (name, value) in own {
            body.push(if body.is_empty() { '{' } else { ',' });
            push_text(&mut body, name);
            body.push(':');
            push_text(&mut body, value);
        }
        body.push(',');
        body.push_str(&call.members);
        body.push('}');
        Self { path: Arc::clone(&call.path), body: body.into() }
    }

    /// The platform's path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The whole body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }
}

impl fmt::Debug for SignedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedRequest").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What is signed: the members that are, sorted by name.
pub fn string_to_sign(grant_code: &str, nonce: &str, open_id: &str, timestamp: &str) -> String {
    format!("grantCode={grant_code}&nonce={nonce}&openId={open_id}&timestamp={timestamp}")
}

fn token(open_key: &str, open_id: &str, grant_code: &str, timestamp: &str, nonce: &str) -> String {
    let joined = string_to_sign(grant_code, nonce, open_id, timestamp);
    let mut mac = Hmac::<Sha1>::new_from_slice(open_key.as_bytes()).expect("HMAC takes a key of any length (RFC 2104)");
    for part in utf8_percent_encode(&joined, RESERVED_IN_VALUES) {
        mac.update(part.as_bytes());
    }
    utf8_percent_encode(&STANDARD.encode(mac.finalize().into_bytes()), RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_published_examples_produce_their_published_tokens() {
        for (key, open_id, grant_code, timestamp, nonce, wanted) in [
            (
                "LyvrkvkxRkG2R6aM55bXpPwjYAbkEXTbVnKwfDYvVHjNwNFAmx",
                "d14c1559e87b747d577c834b275a4310",
                "ba67d4fa46",
                "1465185768",
                "11886",
                "cFw0t9IuvL9jVo9qAzk0qMcw5BM%3D",
            ),
            (
                "fake-open-key-for-test-only-0001",
                "fake-open-id-for-test-only-0001",
                "fake-grant-code-0001",
                "1712563200",
                "24680",
                "ySypL4SRFMmfSrCqOiFE01LK3ks%3D",
            ),
        ] {
            assert_eq!(token(key, open_id, grant_code, timestamp, nonce), wanted);
        }
    }

    #[test]
    fn nonces_are_unique_across_threads() {
        let nonces = Nonces::new().unwrap();
        let seen: HashSet<u32> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| (0..50_000).map(|_| nonces.next()).collect::<Vec<_>>())).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(seen.len(), 400_000);
        assert!(seen.iter().all(|nonce| (1..NONCES).contains(nonce)));
    }

    #[test]
    fn nonces_stay_in_range_when_they_wrap_around() {
        let nonces = Nonces::starting_at(NONCES - 2);
        assert_eq!([nonces.next(), nonces.next(), nonces.next()], [NONCES - 1, 1, 2]);
        assert!((1..NONCES).contains(&Nonces::starting_at(u32::MAX).next()));
        assert!((1..NONCES).contains(&Nonces::starting_at(0).next()));
    }

    #[test]
    fn processes_start_with_different_nonces() {
        let starts: HashSet<u32> = (0..8).map(|_| Nonces::new().unwrap().next()).collect();
        assert!(starts.len() > 1);
    }
}
