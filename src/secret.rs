//! Values that are never printed.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Whether a text can be a key or an identity as it is: what was copied with something invisible would only be refused by the
/// platform.
///
/// # Errors
/// What is wrong with it, without showing it.
pub fn check_plain(text: &str) -> Result<(), &'static str> {
    let is_invisible = |c: char| matches!(c, '\u{a0}' | '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202f}' | '\u{2060}'..='\u{2064}' | '\u{feff}');
    let is_quoted = |quote: char| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote);
    if text.is_empty() {
        Err("is empty")
    } else if text.contains(char::is_control) {
        Err("contains line breaks or other control characters")
    } else if text.contains(is_invisible) {
        Err("contains invisible characters, such as a byte order mark or a zero-width space")
    } else if is_quoted('"') || is_quoted('\'') {
        Err("has quotes around it")
    } else {
        Ok(())
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A signing key. It has no `Display`, its `Debug` shows nothing of it, and its memory is wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a value.
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The value itself: for the signer, and for nothing that is printed.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it can be a signing key.
    ///
    /// # Errors
    /// What is wrong with it, without showing it.
    pub fn check(&self) -> Result<(), &'static str> {
        check_plain(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// The SHA-256 of a caller's key, which itself is not known here. Its `Debug` shows nothing of it.
#[derive(Clone, Eq)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// The hash of a key.
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// Parses 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 64 {
            return None;
        }
        let mut hash = [0; 32];
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
        Some(Self(hash))
    }

    /// Whether it is one of these. All are compared, each in constant time, so that the time taken reveals nothing.
    pub fn is_one_of(&self, others: &[Self]) -> bool {
        others.iter().fold(false, |found, other| found | (self == other))
    }
}

/// In constant time.
impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl std::hash::Hash for KeyHash {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_parsed_from_hex_and_nothing_else() {
        // FIPS 180-4, "abc".
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(KeyHash::parse(abc) == Some(KeyHash::of(b"abc")));
        assert!(KeyHash::parse(&abc.to_uppercase()) == Some(KeyHash::of(b"abc")));
        assert!(KeyHash::of(b"abc") != KeyHash::of(b"abd"));
        for bad in
            ["", "ba78", &abc.replace('b', "x"), &abc.replacen("ba", "+a", 1), &format!("{abc}00"), &"é".repeat(32)]
        {
            assert!(KeyHash::parse(bad).is_none(), "{bad}");
        }
        assert_eq!(format!("{:?}", KeyHash::of(b"abc")), "KeyHash(***)");
    }

    #[test]
    fn debug_output_contains_no_secret() {
        let secret = Secret::new("canary".to_owned());
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)).matches("canary").count(), 0);
        assert_eq!(secret.expose(), "canary");
    }
}
