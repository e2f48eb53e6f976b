//! What the process does by itself, again and again.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::gateway::Gateway;
use crate::tenant::{KeyFile, KeyReload};
use crate::tls::{CertReload, Tls};

/// How often expired connections are closed, and a part of the cache is swept.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the counts of calls are stored, and how long that may delay the end of the process.
const BUDGET_INTERVAL: Duration = Duration::from_secs(60);
const BUDGET_WITHIN: Duration = Duration::from_secs(5);
/// How often the platform's name is resolved.
const DNS_INTERVAL: Duration = Duration::from_secs(5);
/// How often files of keys and certificates are read, and how soon again after one of them changed.
const FILES_INTERVAL: Duration = Duration::from_millis(500);
const CONFIRM_FILES_AFTER: Duration = Duration::from_millis(100);

pub(super) async fn maintain(gateway: Arc<Gateway>) {
    let mut ticks = tokio::time::interval(MAINTENANCE_INTERVAL);
    loop {
        ticks.tick().await;
        gateway.run_maintenance();
    }
}

/// Stores the counts of calls, at first in order to add those that were stored before.
pub(super) async fn save_budget(gateway: &Arc<Gateway>, is_last: bool) {
    let gateway = Arc::clone(gateway);
    // It ends early only if it panicked; nobody shall wait for a file system that blocks.
    let saved = tokio::task::spawn_blocking(move || gateway.save_budget(is_last));
    let _ = tokio::time::timeout(BUDGET_WITHIN, saved).await;
}

pub(super) async fn keep_budget(gateway: Arc<Gateway>) {
    let mut ticks = tokio::time::interval(BUDGET_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        save_budget(&gateway, false).await;
    }
}

pub(super) async fn resolve(gateway: Arc<Gateway>) {
    loop {
        tokio::time::sleep(DNS_INTERVAL).await;
        gateway.resolve_upstream().await;
    }
}

/// Reads the files of keys and certificates again, each in a task of its own: a file system that blocks its readers stops
/// only what is read from it.
pub(super) async fn read_files(gateway: Arc<Gateway>) {
    loop {
        let mut readers = JoinSet::new();
        for file in gateway.key_files() {
            let gateway = Arc::clone(&gateway);
            let report = move |file: &KeyFile, reload: KeyReload| gateway.key_reloaded(file.tenant(), &reload);
            readers.spawn(read_again(file, KeyFile::is_pending, KeyFile::reload, report));
        }
        if let Some(tls) = gateway.tls() {
            let gateway = Arc::clone(&gateway);
            let report = move |_: &Arc<Tls>, reload: CertReload| gateway.certificates_reloaded(&reload);
            readers.spawn(read_again(tls, |tls| tls.is_pending(), |tls| tls.reload(), report));
        }
        let reloads = gateway.reloads();
        while gateway.reloads() == reloads {
            tokio::select! {
                // A reader ends only if it panicked.
                Some(_) = readers.join_next() => return,
                () = tokio::time::sleep(FILES_INTERVAL) => {}
            }
        }
    }
}

/// Reads one file, or a few that belong together, again and again.
async fn read_again<F: Send + 'static, R: Send + 'static>(
    mut file: F,
    is_pending: fn(&F) -> bool,
    reload: fn(&mut F) -> R,
    report: impl Fn(&F, R) + Send,
) {
    loop {
        tokio::time::sleep(if is_pending(&file) { CONFIRM_FILES_AFTER } else { FILES_INTERVAL }).await;
        let read = tokio::task::spawn_blocking(move || {
            let reloaded = reload(&mut file);
            (file, reloaded)
        });
        let Ok((read, reloaded)) = read.await else { return };
        file = read;
        report(&file, reloaded);
    }
}
