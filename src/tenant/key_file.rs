//! A signing key that lies in a file, as mounted secrets do: read again while the gateway runs.
//!
//! The file is read whole each time, through whatever links lead to it: there is nothing in its times or its inode that
//! every way of mounting a secret would change.

use std::path::PathBuf;
use std::sync::Arc;

use super::Tenant;
use crate::secret::Secret;
use crate::settings::read_key;

/// The file that a tenant's key comes from.
#[derive(Debug)]
pub struct KeyFile {
    tenant: Arc<Tenant>,
    path: PathBuf,
    /// A key that was found there and is not in use yet.
    candidate: Option<Secret>,
    /// What was last told of a file that cannot be used.
    told: Option<String>,
}

/// What a look into a key file brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyNews {
    /// Nothing new.
    None,
    /// Another key, which is in use from now on.
    Changed,
    /// The file cannot be used, for this reason.
    Unusable(String),
}

impl KeyFile {
    /// The file of a tenant, where its key lies in one.
    pub fn of(tenant: &Arc<Tenant>) -> Option<Self> {
        let path = tenant.open_key_file.clone()?;
        Some(Self { tenant: Arc::clone(tenant), path, candidate: None, told: None })
    }

    /// Whose key it is.
    pub const fn tenant(&self) -> &Arc<Tenant> {
        &self.tenant
    }

    /// Whether a key was found that only another look confirms.
    pub const fn is_pending(&self) -> bool {
        self.candidate.is_some()
    }

    /// Reads the file, which may block. A key counts once it is found twice: the first time it may be half written.
    pub fn look(&mut self) -> KeyNews {
        match read_key(&self.path) {
            Ok(key) => {
                self.told = None;
                if key == *self.tenant.open_key() {
                    self.candidate = None;
                    return KeyNews::None;
                }
                if self.candidate.as_ref() != Some(&key) {
                    self.candidate = Some(key);
                    return KeyNews::None;
                }
                self.candidate = None;
                self.tenant.change_key(key);
                KeyNews::Changed
            }
            Err(why) => {
                self.candidate = None;
                if self.told.as_ref() == Some(&why) {
                    return KeyNews::None;
                }
                self.told = Some(why.clone());
                KeyNews::Unusable(why)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::TenantSettings;
    use crate::tenant::{Identities, Tenants};
    use std::os::unix::fs::symlink;

    fn tenant(path: PathBuf) -> Arc<Tenant> {
        let tenants = Tenants::new(
            &[TenantSettings {
                name: "a".to_owned(),
                open_id: "i".to_owned(),
                grant_code: "g".to_owned(),
                open_key: Secret::new("old".to_owned()),
                open_key_file: Some(path),
                default: true,
                pace: None,
            }],
            &mut Identities::default(),
        );
        Arc::clone(&tenants.all()[0])
    }

    #[test]
    fn a_new_key_counts_when_it_is_found_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "old\n").unwrap();
        let tenant = tenant(path.clone());
        let mut file = KeyFile::of(&tenant).unwrap();
        assert_eq!((file.look(), file.is_pending()), (KeyNews::None, false));
        std::fs::write(&path, "ne").unwrap();
        assert_eq!((file.look(), file.is_pending()), (KeyNews::None, true));
        std::fs::write(&path, "new").unwrap();
        assert_eq!((file.look(), tenant.open_key().expose()), (KeyNews::None, "old"), "half a key is none");
        assert_eq!((file.look(), tenant.open_key().expose()), (KeyNews::Changed, "new"));
        assert_eq!(file.look(), KeyNews::None);
    }

    #[test]
    fn links_are_followed_anew_each_time() {
        let folder = tempfile::tempdir().unwrap();
        for (version, key) in [("v1", "old"), ("v2", "new")] {
            std::fs::create_dir(folder.path().join(version)).unwrap();
            std::fs::write(folder.path().join(version).join("key"), key).unwrap();
        }
        let (current, path) = (folder.path().join("current"), folder.path().join("key"));
        symlink("v1", &current).unwrap();
        symlink("current/key", &path).unwrap();
        let tenant = tenant(path);
        let mut file = KeyFile::of(&tenant).unwrap();
        assert_eq!(file.look(), KeyNews::None);
        let next = folder.path().join("next");
        symlink("v2", &next).unwrap();
        std::fs::rename(&next, &current).unwrap();
        assert_eq!((file.look(), file.look(), tenant.open_key().expose()), (KeyNews::None, KeyNews::Changed, "new"));
    }

    #[test]
    fn a_file_that_cannot_be_used_keeps_the_last_key_and_is_told_of_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let tenant = tenant(path.clone());
        let mut file = KeyFile::of(&tenant).unwrap();
        assert!(matches!(file.look(), KeyNews::Unusable(_)));
        assert_eq!(file.look(), KeyNews::None);
        for bad in ["", " \n", "one\ntwo", "\u{0}", "two words\u{7f}"] {
            std::fs::write(&path, bad).unwrap();
            file.told = None;
            let KeyNews::Unusable(why) = file.look() else { panic!("{bad:?} was taken") };
            assert!(!why.contains("two"), "{why}");
        }
        std::fs::write(&path, [b'x'; 5000]).unwrap();
        file.told = None;
        assert!(matches!(file.look(), KeyNews::Unusable(_)), "too long for a key");
        assert_eq!(tenant.open_key().expose(), "old");
        std::fs::write(&path, "old").unwrap();
        assert_eq!(file.look(), KeyNews::None);
    }
}
