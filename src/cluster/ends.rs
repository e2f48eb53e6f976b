//! The ends of writes: published to all replicas, and waited for until none of them serves from before.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::connection::ClusterError;
use super::event::Event;
use super::lease::Moved;
use super::member::Replica;
use super::{Ending, Shared};
use crate::limit::SILENCE;
use crate::line_limit::LineLimit;
use crate::settings::LONGEST_LEASE;

/// Subjects whose missed ends are remembered; with more, all of their merchant are ended instead.
const MAX_MISSED: usize = 10_000;

/// How soon it is tried again to publish an end.
pub(super) const PUBLISH_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// Subjects in one message.
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
    /// Of subjects, those of all merchants.
    count: usize,
    /// Whether some were taken that are not published yet.
    is_publishing: bool,
}

/// Those of one merchant.
#[derive(Debug)]
struct MissedEnds {
    /// `None`: all.
    subjects: Option<HashSet<String>>,
    /// How long the platform may lag.
    settle: Duration,
}

impl Missed {
    fn add(&mut self, ending: &Ending) {
        let new = || MissedEnds { subjects: Some(HashSet::new()), settle: Duration::ZERO };
        let MissedEnds { subjects: known, settle } =
            self.merchants.entry(Arc::clone(&ending.merchant)).or_insert_with(new);
        *settle = ending.settle.max(*settle);
        match (known.as_mut(), &ending.subjects) {
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
        self.is_publishing = true;
        let (merchant, missed) = (Arc::clone(entry.key()), entry.get_mut());
        let settle = missed.settle;
        let Some(subjects) = &mut missed.subjects else {
            entry.remove();
            return Some(Ending { merchant, subjects: None, settle, is_superseded: false });
        };
        let taken: Vec<String> = subjects.iter().take(MAX_PUBLISHED).cloned().collect();
        for subject in &taken {
            subjects.remove(subject);
        }
        self.count -= taken.len();
        if subjects.is_empty() {
            entry.remove();
        }
        Some(Ending { merchant, subjects: Some(taken), settle, is_superseded: false })
    }
}

impl Ends {
    /// Whether all ends were published: otherwise what others share may be from before one.
    pub(super) fn are_published(&self) -> bool {
        let missed = self.missed.lock();
        missed.merchants.is_empty() && !missed.is_publishing
    }

    /// Another replica acknowledged an end.
    pub(super) fn acknowledged(&self, number: u64, member: &str) {
        let pending = self.pending.lock().get(&number).cloned();
        if let Some(pending) = pending {
            pending.acknowledged.lock().insert(member.to_owned());
            pending.changed.notify_waiters();
        }
    }
}

/// An end that was published.
pub(super) struct Published {
    /// Those that may still serve from before it, and for how long.
    pub(super) waits: Vec<(String, Duration)>,
    /// What it did to the fence of its last subject.
    pub(super) moved: Moved,
}

/// Publishes an end.
async fn publish(shared: &Shared, number: u64, ending: &Ending) -> Result<Published, ClusterError> {
    let link = shared.link.load_full().ok_or(ClusterError::Disconnected)?;
    let (subjects, Ending { merchant, settle, is_superseded, .. }) = (ending.subjects(), ending);
    let event = Event::Ended { number, merchant, subjects, settle: *settle, is_superseded: *is_superseded };
    // Another one for each attempt, since an earlier one may have been executed without a reply, and answers stored under its name. No
    // name of a call is like it.
    let fence = format!("{}:end:{}", shared.member, shared.ends.numbers.fetch_add(1, Ordering::Relaxed));
    link.end(ending, fence, &event.encode(&shared.member)).await
}

/// The same, once more if the connection to Redis has just been replaced, or is about to be.
async fn publish_again(shared: &Shared, number: u64, ending: &Ending) -> Result<Published, ClusterError> {
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

/// Ends a write for all replicas; returns once none of them serves from before it, with what that did to the fence of its last subject.
pub(super) async fn end(shared: &Shared, replica: &dyn Replica, ending: Ending) -> Option<Moved> {
    let number = shared.ends.numbers.fetch_add(1, Ordering::Relaxed);
    let pending = Arc::<Pending>::default();
    // It may be acknowledged before the reply is seen here.
    shared.ends.pending.lock().insert(number, Arc::clone(&pending));
    let moved = match publish_again(shared, number, &ending).await {
        Ok(Published { waits: mut members, moved }) => {
            members.retain(|(member, _)| **member != *shared.member);
            let longest = members.iter().map(|(_, left)| *left).max().unwrap_or_default().min(LONGEST_LEASE);
            // Either is enough.
            let _ = tokio::time::timeout(longest, pending.all(&members)).await;
            // In a young namespace not all members are known that may still serve from before it began.
            let now = shared.clock.boot();
            let joined = shared.link.load().as_ref().map_or(now, |link| link.joined());
            tokio::time::sleep((joined + shared.settings.lease).since(now)).await;
            Some(moved)
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
            // From here on no shared answers are asked for, and none is held that was got since it was invalidated here.
            if !ending.is_superseded {
                replica.ended(&ending.merchant, ending.subjects().as_deref(), ending.settle);
            }
            shared.ends.has_missed.notify_one();
            // Replicas that lost Redis, too, stop serving within the lease.
            tokio::time::sleep(shared.settings.lease).await;
            None
        }
    };
    shared.ends.pending.lock().remove(&number);
    moved
}

/// Publishes the ends that other replicas missed; returns whether that succeeded for all.
pub(super) async fn publish_missed(shared: &Shared) -> bool {
    loop {
        let Some(ending) = shared.ends.missed.lock().take() else { return true };
        let number = shared.ends.numbers.fetch_add(1, Ordering::Relaxed);
        let is_published = publish(shared, number, &ending).await.is_ok();
        let mut missed = shared.ends.missed.lock();
        missed.is_publishing = false;
        if !is_published {
            missed.add(&ending);
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(merchant: &str, customers: Option<std::ops::Range<usize>>) -> Ending {
        let subjects = customers.map(|range| range.map(|number| number.to_string()).collect());
        Ending { merchant: merchant.into(), subjects, settle: Duration::from_secs(3), is_superseded: false }
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
            taken.push((ending.merchant.to_string(), ending.subjects.map(|subjects| subjects.len())));
        }
        assert_eq!(taken, [("a".to_owned(), Some(5)), ("b".to_owned(), None), ("c".to_owned(), None)]);
        assert_eq!(missed.count, 0);
    }
}
