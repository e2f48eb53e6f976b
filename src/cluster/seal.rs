//! Records in Redis are sealed (ChaCha20-Poly1305, RFC 8439): whoever reads Redis learns nothing from them, and whoever writes to it
//! can only make replicas fetch again.

use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use ring::rand::{SecureRandom, SystemRandom};

use super::record::FORMAT;
use crate::pseudonym::Pseudonyms;

/// Seals and opens, with a key that the replicas of one namespace share.
pub(super) struct Sealer {
    key: LessSafeKey,
    random: SystemRandom,
}

impl Sealer {
    pub(super) fn new(pseudonyms: &Pseudonyms, namespace: &str) -> Self {
        // With random nonces a key is good for 2^32 records; each namespace has another.
        let key = pseudonyms.sealing_key(&format!("shared answers {FORMAT} {namespace}"));
        Self { key: LessSafeKey::new(key), random: SystemRandom::new() }
    }

    /// Seals a record under a name: it can only be opened under the same. `None` if the system has no random numbers.
    pub(super) fn seal(&self, name: &str, mut record: Vec<u8>) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let tag = self.key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(name.as_bytes()),
            &mut record,
        );
        let tag = tag.ok()?;
        record.splice(..0, [FORMAT].into_iter().chain(nonce));
        record.extend(tag.as_ref());
        Some(record)
    }

    /// Opens a record; `None` if it was not sealed with this key and under this name, or has another format.
    pub(super) fn open(&self, name: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, record) = sealed.strip_prefix(&[FORMAT])?.split_first_chunk::<NONCE_LEN>()?;
        let (nonce, mut record) = (Nonce::assume_unique_for_key(*nonce), record.to_vec());
        let length = self.key.open_in_place(nonce, Aad::from(name.as_bytes()), &mut record).ok()?.len();
        record.truncate(length);
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_only_opened_with_its_key_and_under_its_name() {
        let sealer = |key: &str, namespace: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), key).unwrap();
            Sealer::new(&Pseudonyms::new(Some(file.path())).unwrap(), namespace)
        };
        let (one, record) = (sealer("key", "run"), b"a record".to_vec());
        let sealed = one.seal("name", record.clone()).unwrap();
        assert_eq!(sealer("key", "run").open("name", &sealed), Some(record.clone()));
        assert!(!sealed.windows(record.len()).any(|part| part == record));
        assert_ne!(one.seal("name", record.clone()).unwrap(), sealed, "the nonce is another");
        assert_eq!(sealer("other", "run").open("name", &sealed), None);
        assert_eq!(sealer("key", "other").open("name", &sealed), None);
        assert_eq!(one.open("other", &sealed), None);
        for place in 0..sealed.len() {
            let mut broken = sealed.clone();
            broken[place] ^= 1;
            assert_eq!(one.open("name", &broken), None, "{place}");
        }
        for length in 0..sealed.len() {
            assert_eq!(one.open("name", &sealed[..length]), None, "{length}");
        }
    }
}
