//! Answers that replicas share, and one fetch for all of them.
//!
//! A replica that has no answer in memory asks Redis, by one script: it gets the answer, or a lease to fetch it, or learns that another
//! replica does, and waits for its message. A lease counts as long as its holder sends heartbeats.
//!
//! What is stored for a customer is one entry, a hash, together with the customer's fence: a name that is another after each write. A
//! tenant has a fence, too. A fetch knows the names of both from before it began, and its answer is only stored while they are the
//! same. An entry that Redis loses begins again with a new name, so that no answer of an earlier one is stored in it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

use super::connection::{ClusterError, send};
use super::lease::{Fences, Fetch, Lease};
use super::link::{Link, script, unix_micros};
use super::record::{Record, StoredAnswer};
use super::{Cluster, Joined};
use crate::answer::Answer;
use crate::cache::{Freshness, Subject};
use crate::clock::{Boot, millis};
use crate::limit::SILENCE;
use crate::metrics::{ClusterOp, SharedResult};

const MISS: &str = include_str!("scripts/miss.lua");
const INSPECT: &str = include_str!("scripts/inspect.lua");
/// How long an entry is stored at least: for longer than a fetch takes that began under its fence.
pub(super) const ENTRY: Duration = Duration::from_secs(60);
/// How often those who wait ask again: the holder of the lease may have died.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Messages that those who wait may have yet to read; who misses some asks again.
pub(super) const MAX_COMPLETED: usize = 1024;

/// A question as Redis knows it.
#[derive(Clone, Debug)]
pub struct Query {
    merchant: Arc<str>,
    subject: String,
    name: String,
}

impl Query {
    /// The name of the question.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The keys of the entries of its tenant and its subject.
    pub(super) fn entries(&self, link: &Link) -> [String; 2] {
        [link.namespace.entry(&self.merchant, ""), link.namespace.entry(&self.merchant, &self.subject)]
    }

    /// The key of the lease to fetch its answer.
    pub(super) fn lease(&self, link: &Link) -> String {
        link.namespace.name(&format!("lease:{}", self.name))
    }

    /// The key of what came of a call, for those who wait for it.
    pub(super) fn passing(link: &Link, call: &str) -> String {
        link.namespace.name(&format!("result:{call}"))
    }

    /// The name under which an answer is sealed that is stored.
    pub(super) fn stored_name(&self, fences: &Fences) -> String {
        stored_name(&self.name, fences)
    }

    /// The name under which the result of a call is sealed.
    pub(super) fn passing_name(&self, call: &str) -> String {
        format!("{} result {call}", self.name)
    }
}

fn stored_name(question: &str, fences: &Fences) -> String {
    format!("{question} {fences}")
}

/// What answers a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    /// Whatever is stored, or being fetched.
    Any,
    /// What is being fetched.
    Newer,
    /// Only a fetch of its own.
    Own,
}

impl Wanted {
    const fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Newer => "newer",
            Self::Own => "own",
        }
    }
}

/// What the replicas have for a question.
#[derive(Debug)]
pub enum Found {
    /// An answer.
    Stored(Answer, Freshness),
    /// The answer that was waited for, which is not stored.
    Passing {
        /// The answer.
        answer: Answer,
        /// Whether it only says that the platform fails.
        is_failure: bool,
    },
    /// The platform did not answer the call that was waited for.
    NoAnswer {
        /// Whether it was waited for until the timeout.
        is_timeout: bool,
    },
    /// What the call that was waited for brought cannot be shared.
    Unshared,
    /// Nothing: it is to be fetched.
    Nothing(Lease),
    /// Another replica fetches it: see [`Inquiry::wait`].
    Busy,
    /// Redis did not answer, or what it has may be from before a write that this replica could not publish.
    Unknown,
}

impl Found {
    /// Its name in traces.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stored(..) | Self::Passing { .. } => "hit",
            Self::NoAnswer { .. } => "failed",
            Self::Unshared => "unshared",
            Self::Nothing(_) => "miss",
            Self::Busy => "busy",
            Self::Unknown => "unknown",
        }
    }
}

/// A fetch that asks the other replicas first.
pub struct Inquiry {
    joined: Joined,
    query: Query,
    /// When the fetch must have ended.
    deadline: Boot,
    completed: broadcast::Receiver<Arc<str>>,
    /// The call of another replica that it waits for.
    waits_for: Option<String>,
}

impl Cluster {
    /// A question to the same platform as the other replicas know it; alone, there is nobody to ask. `rules`: by which its answer is
    /// read, and how long it is served. `grant`: the tenant's `open_id` and `grant_code`.
    pub fn query(
        &self,
        merchant: &Arc<str>,
        subject: &Subject,
        rules: &str,
        grant: [&str; 2],
        key: &str,
    ) -> Option<Query> {
        let [open_id, grant_code] = grant;
        let shared = &self.0.as_ref()?.shared;
        let name = shared.names.question([&shared.upstream, rules, open_id, grant_code, key]);
        Some(Query { merchant: Arc::clone(merchant), subject: subject.name().to_owned(), name })
    }

    /// Begins to ask; what is fetched then must have ended at `deadline`.
    pub fn inquire(&self, query: Query, deadline: Boot) -> Option<Inquiry> {
        let joined = self.0.clone()?;
        // Before it asks, so that it misses no message.
        let completed = joined.shared.completed.subscribe();
        Some(Inquiry { joined, query, deadline, completed, waits_for: None })
    }

    /// What all replicas have stored for a subject: questions and freshness. `None` if Redis does not answer.
    pub async fn inspect(&self, merchant: &str, subject: &Subject) -> Option<Vec<(String, Freshness)>> {
        let link = self.0.as_ref()?.shared.link.load_full()?;
        link.inspect(merchant, subject.name()).await.ok()
    }
}

/// The reply to a miss.
struct MissReply {
    what: String,
    /// When Redis executed it, by its clock, in microseconds since the Unix epoch.
    time: i64,
    fences: Fences,
    /// How long the platform may lag.
    lag: Duration,
    /// The record, or the call.
    found: Vec<u8>,
}

impl Inquiry {
    /// Asks.
    pub async fn ask(&mut self, wanted: Wanted) -> Found {
        let Self { joined, query, deadline, waits_for, .. } = self;
        let shared = &joined.shared;
        let link = shared.link.load_full().filter(|_| shared.ends.are_published());
        let Some(link) = link else { return Found::Unknown };
        let fetch = Fetch::new(link, query.clone(), shared);
        // It may be granted although there is no reply.
        let lease = Lease::requested(joined.clone(), fetch, *deadline, wanted != Wanted::Own);
        let sent = shared.clock.boot();
        let Ok(reply) = lease.fetch.miss(wanted, waits_for.as_deref(), *deadline).await else { return Found::Unknown };
        let MissReply { what, time, fences, lag, found } = reply;
        if what == "fetch" {
            if wanted != Wanted::Own {
                shared.metrics.shared.of(SharedResult::Miss).inc();
            }
            return Found::Nothing(lease.granted(fences, lag));
        }
        let link = Arc::clone(&lease.fetch.link);
        lease.denied();
        let record = |name: &str| Record::decode(&link.sealer.open(name, &found)?);
        let found = match what.as_str() {
            "stored" => record(&query.stored_name(&fences)).and_then(|record| match record {
                Record::Stored(StoredAnswer { at, freshness, answer, .. }) => {
                    let freshness = freshness.after(elapsed(at, time)).from(sent)?;
                    Some(Found::Stored(answer, freshness))
                }
                Record::Passing { .. } | Record::NoAnswer { .. } | Record::Unshared => None,
            }),
            "passing" => {
                record(&query.passing_name(&waits_for.take().unwrap_or_default())).and_then(|record| match record {
                    Record::Passing { answer, is_failure } => Some(Found::Passing { answer, is_failure }),
                    Record::NoAnswer { is_timeout } => Some(Found::NoAnswer { is_timeout }),
                    Record::Unshared => Some(Found::Unshared),
                    Record::Stored(_) => None,
                })
            }
            "busy" => {
                *waits_for = String::from_utf8(found).ok();
                Some(Found::Busy)
            }
            // It was executed too late, or in a namespace that has ended.
            _ => Some(Found::Unknown),
        };
        match found {
            Some(found) => found,
            // What cannot be opened is no answer.
            None if wanted == Wanted::Any => Box::pin(self.ask(Wanted::Newer)).await,
            None => Found::Unknown,
        }
    }

    /// What was found was served.
    pub fn count_hit(&self) {
        self.joined.shared.metrics.shared.of(SharedResult::Hit).inc();
    }

    /// Waits until the fetch of another replica has ended, or it is time to ask whether it still goes on.
    pub async fn wait(&mut self) {
        let Self { completed, query, .. } = self;
        // If messages were missed, its may have been among them.
        let completed = async { while completed.recv().await.is_ok_and(|name| *name != query.name) {} };
        let _ = tokio::time::timeout(ASK_AGAIN, completed).await;
    }
}

/// How much time may have passed between a moment and another, by Redis' clock: the first in milliseconds, rounded down, the second in
/// microseconds.
fn elapsed(at: i64, time: i64) -> Duration {
    Duration::from_millis(u64::try_from(time.saturating_sub(at.saturating_mul(1000))).unwrap_or(0).div_ceil(1000))
}

impl Fetch {
    /// Asks for what answers its question, or for the lease to fetch it.
    async fn miss(&self, wanted: Wanted, waited_for: Option<&str>, deadline: Boot) -> Result<MissReply, ClusterError> {
        let Self { link, query, call, .. } = self;
        let [tenant, subject] = query.entries(link);
        let mut keys =
            vec![link.namespace.current_key(), tenant, subject, query.lease(link), link.namespace.name("members")];
        keys.extend(waited_for.map(|call| Query::passing(link, call)));
        let mut command = script(MISS, &keys);
        let sent = link.clock.boot();
        command.arg(&*link.namespace.start).arg(link.latest()).arg(call).arg(&*link.member);
        command.arg(query.name()).arg(wanted.name()).arg(millis(ENTRY));
        command.arg(millis(deadline.since(sent)).max(1)).arg(millis(SILENCE));
        let (what, seconds, micros, tenant, subject, lag, found): (String, i64, i64, String, String, u64, Vec<u8>) =
            link.run(ClusterOp::Miss, &link.data, &command).await?;
        let time = unix_micros(seconds, micros);
        link.narrow(sent, time)?;
        Ok(MissReply { what, time, fences: Fences { tenant, subject }, lag: Duration::from_millis(lag), found })
    }
}

impl Link {
    async fn inspect(&self, merchant: &str, subject: &str) -> Result<Vec<(String, Freshness)>, ClusterError> {
        let keys = [self.namespace.entry(merchant, ""), self.namespace.entry(merchant, subject)];
        let sent = self.clock.boot();
        let (seconds, micros, tenant, entry): (i64, i64, String, Vec<(String, Vec<u8>)>) =
            // Not counted: an operator's question says nothing of what callers cause.
            send("inspect", &self.data.0, &script(INSPECT, &keys)).await?;
        let fence = entry.iter().find(|(field, _)| field == "fence").map(|(_, fence)| String::from_utf8_lossy(fence));
        let subject = fence.and_then(|fence| fence.split(' ').next().map(str::to_owned)).unwrap_or_default();
        let fences = Fences { tenant, subject };
        let stored = entry.iter().filter_map(|(question, value)| {
            // Before it: until when it may be served, and the fence of the tenant.
            let record = value.splitn(3, |byte| *byte == b' ').nth(2)?;
            let record = self.sealer.open(&stored_name(question, &fences), record)?;
            let Record::Stored(StoredAnswer { question, at, freshness, .. }) = Record::decode(&record)? else {
                return None;
            };
            Some((question, freshness.after(elapsed(at, unix_micros(seconds, micros))).from(sent)?))
        });
        Ok(stored.collect())
    }
}
