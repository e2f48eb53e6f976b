//! The signature step by step, for people who look for the difference to their own.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::utf8_percent_encode;
use sha1::Sha1;

use super::{RESERVED, RESERVED_IN_VALUES, string_to_sign};

/// What is signed: values as they are in the envelope.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// `openId`.
    pub open_id: &'a str,
    /// `grantCode`.
    pub grant_code: &'a str,
    /// `timestamp`.
    pub timestamp: &'a str,
    /// `nonce`.
    pub nonce: &'a str,
}

/// The results of the steps, in their order.
#[derive(Clone, Debug)]
pub struct Steps {
    /// The members, sorted by name and joined.
    pub joined: String,
    /// The same, percent-encoded except for `=` and `&`.
    pub encoded: String,
    /// The HMAC-SHA1 of that.
    pub digest: Vec<u8>,
    /// The same in Base64.
    pub base64: String,
    /// The same, percent-encoded: the token.
    pub token: String,
}

impl Steps {
    /// The steps with a key.
    pub fn new(open_key: &str, signed: Signed<'_>) -> Self {
        let Signed { open_id, grant_code, timestamp, nonce } = signed;
        Self::of_text(open_key, string_to_sign(grant_code, nonce, open_id, timestamp))
    }

    /// The steps from a joined text on, as somebody else may have joined it.
    pub fn of_text(open_key: &str, joined: String) -> Self {
        let encoded = utf8_percent_encode(&joined, RESERVED_IN_VALUES).to_string();
        let mut mac = Hmac::<Sha1>::new_from_slice(open_key.as_bytes()).expect("HMAC takes a key of any length");
        mac.update(encoded.as_bytes());
        let digest = mac.finalize().into_bytes().to_vec();
        let base64 = STANDARD.encode(&digest);
        let token = utf8_percent_encode(&base64, RESERVED).to_string();
        Self { joined, encoded, digest, base64, token }
    }
}

/// Percent-encodes a text as a token is.
pub fn percent_encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_steps_end_with_the_token_that_is_sent(key in "\\PC{1,60}", [id, code, time, nonce] in prop::array::uniform4("\\PC{0,20}")) {
            let signed = Signed { open_id: &id, grant_code: &code, timestamp: &time, nonce: &nonce };
            prop_assert_eq!(Steps::new(&key, signed).token, super::super::token(&key, &id, &code, &time, &nonce));
        }
    }
}
