//! The lease to fetch an answer for all replicas, and what comes of the fetch.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::answers::Query;
use super::connection::ClusterError;
use super::event::Event;
use super::link::{Link, script};
use super::record::{Record, StoredAnswer};
use super::{Command, Joined, Shared};
use crate::answer::Answer;
use crate::cache::{Freshness, MAX_ANSWERS};
use crate::clock::{Boot, millis};
use crate::metrics::{ClusterOp, SharedResult};

const COMPLETE: &str = include_str!("scripts/complete.lua");
/// Begins a script that is rejected while Redis is full.
const IF_NOT_FULL: &str = "#!lua\n";
/// Begins one that is not.
const IN_ANY_CASE: &str = "#!lua flags=allow-oom\n";
/// How long a record is stored for those who wait.
const PASSING: Duration = Duration::from_secs(5);
/// A record that is no longer, in bytes, may be stored even while Redis is full.
const SHORT: usize = 64;
/// Longest record, in bytes.
const MAX_RECORD: usize = 1 << 20;
/// How soon it is tried again to release a lease.
const RELEASE_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// The fences of a tenant and of a subject.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fences {
    pub(super) tenant: String,
    pub(super) subject: String,
}

impl fmt::Display for Fences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.tenant, self.subject)
    }
}

/// That the fence of a subject was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    pub(super) from: String,
    pub(super) to: String,
}

/// A fetch, as Redis knows it.
#[derive(Clone)]
pub(super) struct Fetch {
    pub(super) link: Arc<Link>,
    pub(super) query: Query,
    /// Its name.
    pub(super) call: String,
    /// Those under which it began.
    fences: Fences,
}

impl Fetch {
    pub(super) fn new(link: Arc<Link>, query: Query, shared: &Shared) -> Self {
        let call = format!("{}:{}", shared.member, shared.calls.fetch_add(1, Ordering::Relaxed));
        Self { link, query, call, fences: Fences::default() }
    }

    /// Releases the lease, with a record or an empty one. Returns whether no write ended since the fetch began.
    async fn complete(&self, link: &Link, action: RecordAction, record: &[u8]) -> Result<bool, ClusterError> {
        let Self { query, call, fences, .. } = self;
        let text = format!("{}{COMPLETE}", if record.len() > SHORT { IF_NOT_FULL } else { IN_ANY_CASE });
        let [tenant, subject] = query.entries(link);
        let keys = [link.namespace.current_key(), tenant, subject, query.lease(link), Query::passing(link, call)];
        let mut command = script(&text, &keys);
        let (action, expires, retained) = match action {
            RecordAction::Store { expires, retained } => ("store", expires, retained),
            RecordAction::Pass => ("pass", 0, PASSING),
            RecordAction::Replace => ("replace", 0, PASSING),
        };
        command.arg(&*link.namespace.start).arg(call).arg(fences.to_string()).arg(query.name()).arg(action);
        command.arg(record).arg(expires).arg(millis(retained).max(1));
        command.arg(link.namespace.events()).arg(Event::Completed(query.name()).encode(&link.member)).arg(MAX_ANSWERS);
        let did: String = link.run(ClusterOp::Complete, &link.data, &command).await?;
        Ok(did == "done")
    }
}

/// What becomes of a record.
#[derive(Clone, Copy, Debug)]
enum RecordAction {
    /// It is stored.
    Store {
        /// Until when it may be served, by Redis' clock, in milliseconds since the Unix epoch.
        expires: i64,
        /// For so long.
        retained: Duration,
    },
    /// It is for those who wait.
    Pass,
    /// The same, and what is stored is dropped.
    Replace,
}

/// What came of a fetch.
#[derive(Clone, Copy, Debug)]
pub enum FetchResult<'a> {
    /// An answer that is stored in memory.
    Stored {
        /// What was asked.
        question: &'a str,
        /// Its freshness.
        freshness: &'a Freshness,
        /// The answer.
        answer: &'a Answer,
    },
    /// An answer for those alone who wait for it.
    Passing {
        /// The answer.
        answer: &'a Answer,
        /// Whether it only says that the platform fails.
        is_failure: bool,
        /// Whether what is stored is no longer true.
        supersedes: bool,
    },
    /// The platform did not answer.
    NoAnswer {
        /// Whether it was waited for until the timeout.
        is_timeout: bool,
    },
}

/// The lease to fetch an answer for all replicas. Dropped without a result, it is released.
pub struct Lease {
    joined: Joined,
    pub(super) fetch: Fetch,
    lag: Duration,
    /// When the fetch must have ended.
    deadline: Boot,
    is_held: bool,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fetch { call, fences, .. } = &self.fetch;
        f.debug_struct("Lease").field("call", call).field("fences", fences).finish_non_exhaustive()
    }
}

impl Lease {
    /// One that is about to be requested. `is_exclusive`: whether others wait while it is held.
    pub(super) const fn requested(joined: Joined, fetch: Fetch, deadline: Boot, is_exclusive: bool) -> Self {
        Self { joined, fetch, lag: Duration::ZERO, deadline, is_held: is_exclusive }
    }

    /// It was granted under these fences.
    pub(super) fn granted(mut self, fences: Fences, lag: Duration) -> Self {
        (self.fetch.fences, self.lag) = (fences, lag);
        self
    }

    /// It was not granted.
    pub(super) fn denied(mut self) {
        self.is_held = false;
    }

    /// How long the platform may lag behind a write.
    pub const fn lag(&self) -> Duration {
        self.lag
    }

    /// The fence of the subject was changed for the sake of this fetch. If nothing else had changed it before, the answer may be stored.
    pub fn moved(&mut self, moved: Moved) {
        if self.fetch.fences.subject == moved.from {
            self.fetch.fences.subject = moved.to;
        }
    }

    /// The fetch ended with this. Returns whether the other replicas can have it.
    pub async fn complete(mut self, result: FetchResult<'_>) -> bool {
        let Fetch { link, query, call, fences, .. } = &self.fetch;
        let (record, name, action) = match result {
            FetchResult::Stored { question, freshness, answer } => {
                let now = self.joined.shared.clock.boot();
                let (at, freshness) = (link.offset.lock().earliest(now), freshness.relative(now));
                let (question, answer, retained) = (question.to_owned(), answer.clone(), freshness.fresh);
                let expires = at.saturating_add(i64::try_from(millis(retained)).unwrap_or(i64::MAX));
                let record = Record::Stored(StoredAnswer { question, at, freshness, answer });
                (record, query.stored_name(fences), RecordAction::Store { expires, retained })
            }
            FetchResult::Passing { answer, is_failure, supersedes } => {
                let record = Record::Passing { answer: answer.clone(), is_failure };
                (record, query.passing_name(call), if supersedes { RecordAction::Replace } else { RecordAction::Pass })
            }
            FetchResult::NoAnswer { is_timeout } => {
                (Record::NoAnswer { is_timeout }, query.passing_name(call), RecordAction::Pass)
            }
        };
        let record = Some(record.encode()).filter(|record| record.len() <= MAX_RECORD);
        let record = record.and_then(|record| link.sealer.seal(&name, record));
        let mut completed = match record {
            Some(record) => self.fetch.complete(link, action, &record).await.ok(),
            None => None,
        };
        let is_available = completed == Some(true);
        if let RecordAction::Store { .. } = action {
            let result = if is_available { SharedResult::Stored } else { SharedResult::Refused };
            self.joined.shared.metrics.shared.of(result).inc();
        }
        if completed.is_none()
            && let Some(unshared) = link.sealer.seal(&query.passing_name(call), Record::Unshared.encode())
        {
            // It is too long, or Redis is full: those who wait need not wait for each other.
            completed = self.fetch.complete(link, RecordAction::Pass, &unshared).await.ok();
        }
        self.is_held &= completed.is_none();
        is_available
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.is_held {
            // If this replica has left the others, it counts no more.
            let _ = self.joined.commands.send(Command::Release(self.fetch.clone(), self.deadline));
        }
    }
}

/// Releases a lease of which nothing came.
pub(super) async fn release(shared: &Shared, fetch: &Fetch, deadline: Boot) {
    while shared.clock.boot() < deadline {
        let link = shared.link.load_full();
        if link.as_ref().is_some_and(|link| link.namespace != fetch.link.namespace) {
            return;
        }
        if let Some(link) = link
            && fetch.complete(&link, RecordAction::Pass, &[]).await.is_ok()
        {
            return;
        }
        tokio::time::sleep(RELEASE_AGAIN_AFTER).await;
    }
}
