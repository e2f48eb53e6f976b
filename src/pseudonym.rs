//! Customers' names in logs: a keyed hash, which is the same for the same customer and reveals nothing about it.

use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use ring::aead::{CHACHA20_POLY1305, UnboundKey};
use ring::hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::secret::hex;

/// Characters of the hash that are shown: enough to distinguish a company's customers.
const SHOWN: usize = 16;

/// A key of fewer bytes can be guessed.
const LEAST_KEY: usize = 16;

/// Makes pseudonyms with one key.
pub struct Pseudonyms(Zeroizing<Vec<u8>>);

impl Pseudonyms {
    /// With the key in a file, so that names stay the same across restarts; else with a random one.
    ///
    /// # Errors
    /// If the file is empty or cannot be read, or the system has no random numbers.
    pub fn new(key_file: Option<&Path>) -> std::io::Result<Self> {
        let mut key = Zeroizing::new(vec![0; 32]);
        match key_file {
            Some(file) => *key = std::fs::read(file)?,
            None => getrandom::fill(&mut key).map_err(std::io::Error::other)?,
        }
        if key.is_empty() { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(Self(key)) }
    }

    /// Whether the key is so short that whoever knows names can guess it.
    pub fn is_weak(&self) -> bool {
        self.0.len() < LEAST_KEY
    }

    /// A customer's name in logs: the first digits of the HMAC-SHA256 of its id, in hexadecimal.
    pub fn of(&self, customer: &str) -> String {
        let mut name: String = hex(&self.hash(customer));
        name.truncate(SHOWN);
        name
    }

    /// A key to seal what only those with the same key may read (HKDF-SHA256, RFC 5869), another for each purpose.
    pub fn sealing_key(&self, purpose: &str) -> UnboundKey {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"zvgate").extract(&self.0);
        let info = [purpose.as_bytes()];
        let derived = secret.expand(&info, &CHACHA20_POLY1305);
        derived.expect("a key is shorter than 255 hashes (RFC 5869, section 2.3)").into()
    }

    /// The HMAC-SHA256 of a text.
    pub fn hash(&self, text: &str) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length (RFC 2104)");
        mac.update(text.as_bytes());
        mac.finalize().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_has_one_pseudonym_for_each_key() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Pseudonyms::new(Some(file.path())).is_err(), "an empty key is rejected");
        std::fs::write(file.path(), "key").unwrap();
        let names = || Pseudonyms::new(Some(file.path())).unwrap();
        assert_eq!(names().of("383933091455959041"), names().of("383933091455959041"));
        assert_ne!(names().of("383933091455959041"), names().of("383933091455959042"));
        assert_ne!(Pseudonyms::new(None).unwrap().of("1"), Pseudonyms::new(None).unwrap().of("1"));
        assert_eq!(names().of("383933091455959041").len(), SHOWN);
    }
}
