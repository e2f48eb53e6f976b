//! What the calls to the platform cost: counts by day, tenant and route, and the file that they are stored in.
//!
//! Days and months are those of `upstream.utc_offset`, by which the platform bills. Nothing here ever refuses a call.

mod calendar;
mod ledger;
mod money;
mod store;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

pub use self::calendar::{Day, Month};
pub use self::ledger::{Counts, Ledger};
pub use self::money::{Bill, shown};
use self::store::Store;
pub use self::store::{StoreError, read};
use crate::clock::Wall;

/// How long the last save waits for one that is under way.
const LAST_WAIT: Duration = Duration::from_secs(3);

/// The counts of this process, and where they are stored.
#[derive(Debug)]
pub struct Budget {
    ledger: Mutex<Ledger>,
    /// `None`: they are lost with the process.
    store: Option<Mutex<Store>>,
    /// Whether the counts have changed since they were stored.
    is_changed: AtomicBool,
    /// Whether storing them failed when it was last tried.
    has_failed: AtomicBool,
}

/// How storing the counts went.
#[derive(Debug)]
pub enum Saved {
    /// As before.
    AsBefore,
    /// It failed, and had not before.
    Failed(StoreError),
    /// It succeeded again.
    Recovered,
}

impl Budget {
    /// Without counts yet; counting begins then. [`Budget::save`] adds those that are stored.
    pub fn new(store: Option<PathBuf>, since: Wall) -> Self {
        Self {
            ledger: Mutex::new(Ledger::new(since)),
            store: store.map(|path| Mutex::new(Store::new(path))),
            is_changed: AtomicBool::new(true),
            has_failed: AtomicBool::new(false),
        }
    }

    /// Whether the counts outlive the process.
    pub const fn is_stored(&self) -> bool {
        self.store.is_some()
    }

    /// Whether storing them failed when it was last tried.
    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// Adds to the counts of a day.
    pub fn add(&self, day: Day, tenant: &str, route: &str, counts: Counts) {
        self.ledger.lock().add(day, tenant, route, counts);
        self.is_changed.store(true, Ordering::Relaxed);
    }

    /// The counts of a month by tenant.
    pub fn tenants(&self, month: Month) -> Vec<(String, Counts)> {
        self.ledger.lock().tenants(month)
    }

    /// The counts of a month.
    pub fn total(&self, month: Month) -> Counts {
        self.ledger.lock().total(month)
    }

    /// When counting began, in seconds since the Unix epoch.
    pub fn since(&self) -> i64 {
        self.ledger.lock().since()
    }

    /// Forgets the months that are no longer stored in this one.
    pub fn forget_before(&self, month: Month) {
        self.ledger.lock().forget_before(month);
    }

    /// The thresholds that the billed calls of a month have reached, and of which nobody was warned in that month. They are
    /// returned once.
    pub fn reached(&self, month: Month, thresholds: &[u32]) -> Vec<u32> {
        let reached = self.ledger.lock().reached(month, thresholds);
        if !reached.is_empty() {
            self.is_changed.store(true, Ordering::Relaxed);
        }
        reached
    }

    /// Stores the counts if they have changed, after those that were stored before were added. Reads and writes a file, which may
    /// block.
    pub fn save(&self) -> Saved {
        self.save_within(Duration::ZERO)
    }

    /// The same, and waits so long if the file is in use.
    fn save_within(&self, wait: Duration) -> Saved {
        let Some(store) = &self.store else { return Saved::AsBefore };
        // The last save waits for the one before, even if there is nothing new: then the file is released.
        if !wait.is_zero() {
            drop(store.try_lock_for(wait));
        }
        if !self.is_changed.swap(false, Ordering::Relaxed) {
            return Saved::AsBefore;
        }
        // A file system that blocks must not collect threads.
        let Some(mut store) = store.try_lock_for(wait) else { return self.failed(StoreError::Blocked) };
        let saved = store.load().and_then(|loaded| {
            // Calls are counted while a copy is written.
            let copy = {
                let mut ledger = self.ledger.lock();
                loaded.iter().for_each(|loaded| ledger.merge(loaded));
                ledger.clone()
            };
            store.write(&copy.to_json())
        });
        match saved {
            Ok(()) if self.has_failed.swap(false, Ordering::Relaxed) => Saved::Recovered,
            Ok(()) => Saved::AsBefore,
            Err(error) => self.failed(error),
        }
    }

    /// Stores the counts for the last time: another process may use the file from now on.
    pub fn finish(&self) -> Saved {
        let saved = self.save_within(LAST_WAIT);
        self.store.iter().filter_map(Mutex::try_lock).for_each(|mut store| store.release());
        saved
    }

    fn failed(&self, error: StoreError) -> Saved {
        self.is_changed.store(true, Ordering::Relaxed);
        match self.has_failed.swap(true, Ordering::Relaxed) {
            true => Saved::AsBefore,
            false => Saved::Failed(error),
        }
    }
}
