//! The file that counts are stored in. It is replaced as a whole, so that it is never torn; one process at a time uses it.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::Ledger;
use super::ledger::NotALedger;

/// Why counts were not stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refuses.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another version of the gateway wrote the file. It is left alone.
    #[error("{}: found version {version} of the format; expected 1, or another path", path.display())]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Another process uses the file.
    #[error("{}: another process stores its counts here; expected a file for each", .0.display())]
    InUse(PathBuf),
    /// The file system has not ended the last attempt.
    #[error("the file system blocks")]
    Blocked,
    /// The file is not one of ours.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// The file as it was before it was last replaced.
const EARLIER: &str = ".old";
/// Damaged files that are not replaced by further ones.
const MAX_DAMAGED: usize = 10;
/// Only the owner reads what a company spends.
const MODE: u32 = 0o600;

/// Reads the counts that are stored in a file.
///
/// # Errors
/// If it cannot be read, or is not one of ours.
pub fn read(path: &Path) -> Result<Ledger, StoreError> {
    let bytes = std::fs::read(path).map_err(|error| at(path, error))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| NotALedger::Damaged(error.to_string()));
    text.and_then(Ledger::from_json).map_err(|error| match error {
        NotALedger::OtherVersion(version) => StoreError::OtherVersion { path: path.to_owned(), version },
        NotALedger::Damaged(problem) => StoreError::Invalid { path: path.to_owned(), problem },
    })
}

fn at(path: &Path, error: io::Error) -> StoreError {
    StoreError::Io { path: path.to_owned(), error }
}

/// A file, as far as this process uses it.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    /// Locked while this process uses the file.
    lock: Option<File>,
    is_loaded: bool,
}

impl Store {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, lock: None, is_loaded: false }
    }

    /// The name of a file beside it.
    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(ending);
        name.into()
    }

    /// The counts in the file, once: the first time that it can be read.
    pub(super) fn load(&mut self) -> Result<Option<Ledger>, StoreError> {
        self.lock()?;
        if self.is_loaded {
            return Ok(None);
        }
        let ledger = match read(&self.path) {
            Ok(ledger) => Some(ledger),
            // It may have been renamed, and the disk was full before it was written again.
            Err(StoreError::Io { error, .. }) if error.kind() == ErrorKind::NotFound => {
                read(&self.beside(EARLIER)).ok()
            }
            Err(StoreError::Invalid { path, problem }) => {
                let renamed = self.unused_name();
                std::fs::rename(&path, &renamed).map_err(|error| at(&path, error))?;
                let earlier = read(&self.beside(EARLIER)).ok();
                tracing::error!(
                    path = %path.display(),
                    problem,
                    renamed = %renamed.display(),
                    earlier = earlier.is_some(),
                    "budget.store: file is damaged and was renamed; counts continue from the earlier one if there is one"
                );
                earlier
            }
            Err(other) => return Err(other),
        };
        self.is_loaded = true;
        Ok(ledger)
    }

    /// A name for a file that is damaged, which none has yet.
    fn unused_name(&self) -> PathBuf {
        let names = (1..MAX_DAMAGED).map(|number| self.beside(&format!(".unreadable.{number}")));
        std::iter::once(self.beside(".unreadable"))
            .chain(names)
            .find(|name| !name.exists())
            .unwrap_or_else(|| self.beside(".unreadable"))
    }

    fn lock(&mut self) -> Result<(), StoreError> {
        if self.lock.is_some() {
            return Ok(());
        }
        let path = self.beside(".lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(MODE).open(&path);
        let file = file.map_err(|error| at(&path, error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => self.lock = Some(file),
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StoreError::InUse(self.path.clone())),
            Err(error) => return Err(at(&path, error.into())),
        }
        Ok(())
    }

    /// Lets another process use the file.
    pub(super) fn release(&mut self) {
        self.lock = None;
    }

    /// Replaces the file.
    pub(super) fn write(&self, text: &str) -> Result<(), StoreError> {
        let new = self.beside(".new");
        let written = write_all(&new, text).and_then(|()| {
            // For the case that the new one proves damaged. Without it counting goes on all the same.
            let link = self.beside(".link");
            let _ = std::fs::remove_file(&link);
            let _ = std::fs::hard_link(&self.path, &link).and_then(|()| std::fs::rename(&link, self.beside(EARLIER)));
            std::fs::rename(&new, &self.path)?;
            let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
            // The new name is on the disk, too.
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        });
        written.map_err(|error| {
            // What there is of it is of no use, and may take the last of the disk.
            let _ = std::fs::remove_file(&new);
            at(&self.path, error)
        })
    }
}

fn write_all(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
