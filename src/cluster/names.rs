//! The names under which replicas and Redis know customers, merchants and paces: keyed hashes, so that whoever reads Redis learns
//! none of them.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::event::VERSION;
use crate::pseudonym::Pseudonyms;

/// Bytes of a hash: nobody finds two texts with the same one.
const LENGTH: usize = 16;

/// Makes names with the key of the customer hash (`log.hash_key_file`), which all replicas share.
#[derive(Clone)]
pub(super) struct Names(pub(super) Arc<Pseudonyms>);

impl Names {
    /// Of a customer. Its first half is what the log shows of the customer, in another notation.
    pub(super) fn customer(&self, id: &str) -> String {
        self.name(id)
    }

    /// Of a merchant.
    pub(super) fn merchant(&self, open_id: &str) -> Arc<str> {
        self.name(&format!("merchant {open_id}")).into()
    }

    /// Of a pace.
    pub(super) fn pace(&self, open_id: &str, path: &str) -> Arc<str> {
        self.name(&format!("pace {open_id} {path}")).into()
    }

    /// Of a question, by texts that contain no control characters, except for the last.
    pub(super) fn question(&self, parts: [&str; 5]) -> String {
        self.name(&format!("question\0{}", parts.join("\0")))
    }

    /// The version of the protocol, and a hash by which replicas with another key are recognized.
    pub(super) fn protocol(&self) -> String {
        format!("{VERSION} {}", self.name("key"))
    }

    fn name(&self, text: &str) -> String {
        let hash = self.0.hash(text);
        URL_SAFE_NO_PAD.encode(hash.get(..LENGTH).unwrap_or(&hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_by_what_they_name_and_by_key() {
        let names = |key: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), key).unwrap();
            Names(Arc::new(Pseudonyms::new(Some(file.path())).unwrap()))
        };
        let (one, two) = (names("one"), names("two"));
        assert_eq!(one.customer("1"), names("one").customer("1"));
        assert_ne!(one.customer("1"), two.customer("1"));
        assert_ne!(one.protocol(), two.protocol());
        assert_ne!(one.pace("a", "/b"), one.pace("a", "/c"));
        assert_ne!(one.merchant("a"), one.merchant("b"));
        assert_eq!(one.customer("1").len(), 22, "short enough to be stored inline");
    }
}
