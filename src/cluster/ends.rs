//! The ends of writes: published to all replicas, and waited for until none of them serves from before.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::connection::ClusterError;
use super::event::Event;
use super::{Ending, Shared};
use crate::limit::SILENCE;
use crate::line_limit::LineLimit;
use crate::settings::LONGEST_LEASE;

/// Customers whose missed ends are remembered; with more, all of their merchant are ended instead.
const MAX_MISSED: usize = 10_000;

/// How soon it is tried again to publish an end.
pub(super) const PUBLISH_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// Customers in one message.
const MAX_PUBLISHED: usize = 1000;

/// The ends of this replica.
#[derive(Default)]
pub(super) struct Ends {
    numbers: AtomicU64,
    pending: Mutex<HashMap<u64, Arc<Pending>>>,
    missed: Mutex<Missed>,
    /// Lines about them.
    missed_lines: LineLimit,
    /// Notified when there are missed ones.
    pub(super) has_missed: Notify,
}

/// An end that is waited for.
#[derive(Default)]
struct Pending {
    acknowledged: Mutex<HashSet<String>>,
    changed: Notify,
}

impl Pending {
    /// Waits until all of these acknowledged it.
    async fn all(&self, members: &[(String, Duration)]) {
        loop {
            let changed = self.changed.notified();
            if members.iter().all(|(member, _)| self.acknowledged.lock().contains(member)) {
                return;
            }
            changed.await;
        }
    }
}

/// Ends that others do not know of, by merchant.
#[derive(Debug, Default)]
struct Missed {
    merchants: BTreeMap<Arc<str>, MissedEnds>,
    /// Of customers, those of all merchants.
    count: usize,
}

/// Those of one merchant.
#[derive(Debug)]
struct MissedEnds {
    /// `None`: all.
    customers: Option<HashSet<String>>,
    /// How long the platform may lag.
    settle: Duration,
}

impl Missed {
    fn add(&mut self, ending: &Ending) {
        let new = || MissedEnds { customers: Some(HashSet::new()), settle: Duration::ZERO };
        let MissedEnds { customers: known, settle } =
            self.merchants.entry(Arc::clone(&ending.merchant)).or_insert_with(new);
        *settle = ending.settle.max(*settle);
        match (known.as_mut(), &ending.customers) {
            (Some(known), Some(new)) if self.count + new.len() <= MAX_MISSED => {
                let before = known.len();
                known.extend(new.iter().cloned());
                self.count += known.len() - before;
            }
            (Some(all), _) => {
                self.count -= all.len();
                *known = None;
            }
            (None, _) => {}
        }
    }

    /// Takes one message's.
    fn take(&mut self) -> Option<Ending> {
        let mut entry = self.merchants.first_entry()?;
        let (merchant, missed) = (Arc::clone(entry.key()), entry.get_mut());
        let settle = missed.settle;
        let Some(customers) = &mut missed.customers else {
            entry.remove();
            return Some(Ending { merchant, customers: None, settle });
        };
        let taken: Vec<String> = customers.iter().take(MAX_PUBLISHED).cloned().collect();
        for customer in &taken {
            customers.remove(customer);
        }
        self.count -= taken.len();
        if customers.is_empty() {
            entry.remove();
        }
        Some(Ending { merchant, customers: Some(taken), settle })
    }
}

impl Ends {
    /// Another replica acknowledged an end.
    pub(super) fn acknowledged(&self, number: u64, member: &str) {
        let pending = self.pending.lock().get(&number).cloned();
        if let Some(pending) = pending {
            pending.acknowledged.lock().insert(member.to_owned());
            pending.changed.notify_waiters();
        }
    }
}

/// Publishes an end. Returns those that may still serve from before it, and for how long.
async fn publish(shared: &Shared, number: u64, ending: &Ending) -> Result<Vec<(String, Duration)>, ClusterError> {
    let link = shared.link.load_full().ok_or(ClusterError::Disconnected)?;
    let customers = ending.customers.as_ref().map(|customers| customers.iter().map(String::as_str).collect());
    let event = Event::Ended { number, merchant: &ending.merchant, customers, settle: ending.settle };
    link.end(ending, &event.encode(&shared.member)).await
}

/// The same, once more if the connection to Redis has just been replaced, or is about to be.
async fn publish_again(shared: &Shared, number: u64, ending: &Ending) -> Result<Vec<(String, Duration)>, ClusterError> {
    let until = shared.clock.boot() + SILENCE;
    loop {
        match publish(shared, number, ending).await {
            Err(_) if shared.link.load().is_some() && shared.clock.boot() < until => {
                tokio::time::sleep(PUBLISH_AGAIN_AFTER).await;
            }
            published => return published,
        }
    }
}

/// Ends a write for all replicas; returns once none of them serves from before it.
pub(super) async fn end(shared: &Shared, ending: Ending) {
    let number = shared.ends.numbers.fetch_add(1, Ordering::Relaxed);
    let pending = Arc::<Pending>::default();
    // It may be acknowledged before the reply is seen here.
    shared.ends.pending.lock().insert(number, Arc::clone(&pending));
    match publish_again(shared, number, &ending).await {
        Ok(mut members) => {
            members.retain(|(member, _)| **member != *shared.member);
            let longest = members.iter().map(|(_, left)| *left).max().unwrap_or_default().min(LONGEST_LEASE);
            // Either is enough.
            let _ = tokio::time::timeout(longest, pending.all(&members)).await;
            // In a young namespace not all members are known that may still serve from before it began.
            let now = shared.clock.boot();
            let since = shared.link.load().as_ref().map_or(now, |link| link.since);
            tokio::time::sleep((since + shared.settings.lease).since(now)).await;
        }
        Err(error) => {
            shared.metrics.fence_missed.inc();
            if let Some(suppressed) = shared.ends.missed_lines.next() {
                tracing::warn!(
                    %error,
                    suppressed,
                    "cluster: invalidation not published: other replicas may serve older answers until it is"
                );
            }
            shared.ends.missed.lock().add(&ending);
            shared.ends.has_missed.notify_one();
            // Replicas that lost Redis, too, stop serving within the lease.
            tokio::time::sleep(shared.settings.lease).await;
        }
    }
    shared.ends.pending.lock().remove(&number);
}

/// Publishes the ends that other replicas missed; returns whether that succeeded for all.
pub(super) async fn publish_missed(shared: &Shared) -> bool {
    loop {
        let Some(ending) = shared.ends.missed.lock().take() else { return true };
        let number = shared.ends.numbers.fetch_add(1, Ordering::Relaxed);
        if publish(shared, number, &ending).await.is_err() {
            shared.ends.missed.lock().add(&ending);
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(merchant: &str, customers: Option<std::ops::Range<usize>>) -> Ending {
        let customers = customers.map(|range| range.map(|number| number.to_string()).collect());
        Ending { merchant: merchant.into(), customers, settle: Duration::from_secs(3) }
    }

    #[test]
    fn missed_ends_are_remembered_by_merchant_and_in_bounds() {
        let mut missed = Missed::default();
        missed.add(&ending("a", Some(0..3)));
        missed.add(&ending("a", Some(2..5)));
        missed.add(&ending("b", None));
        missed.add(&ending("b", Some(0..3)));
        assert_eq!(missed.count, 5);
        missed.add(&ending("c", Some(0..MAX_MISSED)));
        let mut taken = Vec::new();
        while let Some(ending) = missed.take() {
            taken.push((ending.merchant.to_string(), ending.customers.map(|customers| customers.len())));
        }
        assert_eq!(taken, [("a".to_owned(), Some(5)), ("b".to_owned(), None), ("c".to_owned(), None)]);
        assert_eq!(missed.count, 0);
    }
}
