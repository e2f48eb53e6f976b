//! A signing key in a file, such as a mounted secret: read again while the gateway runs.
//!
//! The complete file is read each time, through all symbolic links: neither its times nor its inode change with
//! every way of mounting a secret.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::Tenant;
use crate::secret::Secret;

/// Longer than any signing key, so that another file that is named by mistake is not read completely.
const MAX_KEY: u64 = 4096;

/// Reads the signing key in a file.
///
/// # Errors
/// What is wrong with the file, to be put after its key in the configuration.
pub fn read_key(path: &Path) -> Result<Secret, String> {
    let unreadable = |error: std::io::Error| format!("names {}, which cannot be read: {error}", path.display());
    let mut text = Zeroizing::new(String::new());
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_KEY + 1).read_to_string(&mut text));
    if read.map_err(unreadable)? as u64 > MAX_KEY {
        return Err(format!("names {}, a file of more than {MAX_KEY} bytes", path.display()));
    }
    let key = Secret::new(text.trim().to_owned());
    key.check().map_err(|problem| format!("names {}, which {problem}", path.display()))?;
    Ok(key)
}

/// The file that a tenant's key comes from.
#[derive(Debug)]
pub struct KeyFile {
    tenant: Arc<Tenant>,
    path: PathBuf,
    /// A key that was found there and is not in use yet.
    candidate: Option<Secret>,
    /// The last error that was reported.
    reported: Option<String>,
}

/// What reading a key file again brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyReload {
    /// The same key, or one that is not confirmed yet.
    Unchanged,
    /// Another key, which is used from now on.
    Changed,
    /// An error.
    Failed(String),
}

impl KeyFile {
    /// The file of a tenant, if its key is in one.
    pub fn of(tenant: &Arc<Tenant>) -> Option<Self> {
        let path = tenant.open_key_file.clone()?;
        Some(Self { tenant: Arc::clone(tenant), path, candidate: None, reported: None })
    }

    /// The tenant.
    pub const fn tenant(&self) -> &Arc<Tenant> {
        &self.tenant
    }

    /// Whether a new key was found that has to be confirmed.
    pub const fn is_pending(&self) -> bool {
        self.candidate.is_some()
    }

    /// Reads the file, which may block. A key is used once it was read twice: the first time it may be half written.
    pub fn reload(&mut self) -> KeyReload {
        match read_key(&self.path) {
            Ok(key) => {
                self.reported = None;
                if key == *self.tenant.open_key() {
                    self.candidate = None;
                    return KeyReload::Unchanged;
                }
                if self.candidate.as_ref() != Some(&key) {
                    self.candidate = Some(key);
                    return KeyReload::Unchanged;
                }
                self.candidate = None;
                self.tenant.change_key(key);
                KeyReload::Changed
            }
            Err(problem) => {
                self.candidate = None;
                if self.reported.as_ref() == Some(&problem) {
                    return KeyReload::Unchanged;
                }
                self.reported = Some(problem.clone());
                KeyReload::Failed(problem)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{KeySource, TenantSettings};
    use crate::tenant::{Identities, TenantKeys, Tenants};
    use std::os::unix::fs::symlink;

    fn tenant(path: PathBuf) -> Arc<Tenant> {
        let tenants = Tenants::new(
            &[TenantSettings {
                name: "a".to_owned(),
                open_id: "i".to_owned(),
                grant_code: "g".to_owned(),
                key: KeySource::File(path),
                default: true,
                pace: None,
            }],
            &TenantKeys::new([("a".to_owned(), Secret::new("old".to_owned()))].into()),
            &mut Identities::default(),
        );
        Arc::clone(&tenants.all()[0])
    }

    #[test]
    fn a_new_key_is_used_once_it_was_read_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "old\n").unwrap();
        let tenant = tenant(path.clone());
        let mut file = KeyFile::of(&tenant).unwrap();
        assert_eq!((file.reload(), file.is_pending()), (KeyReload::Unchanged, false));
        std::fs::write(&path, "ne").unwrap();
        assert_eq!((file.reload(), file.is_pending()), (KeyReload::Unchanged, true));
        std::fs::write(&path, "new").unwrap();
        assert_eq!(
            (file.reload(), tenant.open_key().expose()),
            (KeyReload::Unchanged, "old"),
            "a partial key is not used"
        );
        assert_eq!((file.reload(), tenant.open_key().expose()), (KeyReload::Changed, "new"));
        assert_eq!(file.reload(), KeyReload::Unchanged);
    }

    #[test]
    fn symbolic_links_are_followed_each_time() {
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
        assert_eq!(file.reload(), KeyReload::Unchanged);
        let next = folder.path().join("next");
        symlink("v2", &next).unwrap();
        std::fs::rename(&next, &current).unwrap();
        assert_eq!(
            (file.reload(), file.reload(), tenant.open_key().expose()),
            (KeyReload::Unchanged, KeyReload::Changed, "new")
        );
    }

    #[test]
    fn an_unusable_file_keeps_the_last_key_and_is_reported_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let tenant = tenant(path.clone());
        let mut file = KeyFile::of(&tenant).unwrap();
        assert!(matches!(file.reload(), KeyReload::Failed(_)));
        assert_eq!(file.reload(), KeyReload::Unchanged);
        for bad in ["", " \n", "one\ntwo", "\u{0}", "two words\u{7f}"] {
            std::fs::write(&path, bad).unwrap();
            file.reported = None;
            let KeyReload::Failed(problem) = file.reload() else { panic!("{bad:?} was accepted") };
            assert!(!problem.contains("two"), "{problem}");
        }
        std::fs::write(&path, [b'x'; 5000]).unwrap();
        file.reported = None;
        assert!(matches!(file.reload(), KeyReload::Failed(_)), "too long for a key");
        assert_eq!(tenant.open_key().expose(), "old");
        std::fs::write(&path, "old").unwrap();
        assert_eq!(file.reload(), KeyReload::Unchanged);
    }
}
