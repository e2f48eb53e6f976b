//! The slowest and the failed requests of late.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use serde::Serialize;

use crate::clock::{Boot, Wall, millis};
use crate::pseudonym::Pseudonyms;

/// No request that was answered within this is slow.
const SLOW: Duration = Duration::from_millis(10);
/// Rejected requests of one second that are looked at.
const REJECTIONS: NonZeroU32 = NonZeroU32::new(100).expect("it is not zero");
/// Requests of each kind that are shown.
const SHOWN: usize = 20;
/// How long a slow request is shown.
const RECENTLY: Duration = Duration::from_secs(600);
/// Customers of one request that are shown.
const SHOWN_CUSTOMERS: usize = 3;

/// A request that an operator may ask about.
#[derive(Clone, Debug, Serialize)]
pub struct Noted {
    /// When it ended, in seconds since the Unix epoch.
    pub at: i64,
    /// Its id, as the caller got it and the log has it.
    pub request_id: String,
    /// Its trace.
    pub trace_id: Option<String>,
    /// The route's name.
    pub route: String,
    /// The caller's name.
    pub caller: Option<String>,
    /// The tenant's name.
    pub tenant: Option<String>,
    /// Its customers, hashed as in the log.
    pub customers: Vec<String>,
    /// The HTTP status.
    pub status: u16,
    /// The name of the gateway's error.
    pub error: Option<&'static str>,
    /// What failed towards the platform.
    pub reason: Option<&'static str>,
    /// The platform's code.
    pub code: Option<String>,
    /// How the cache served it.
    pub cache: &'static str,
    /// Attempts at the platform.
    pub attempts: u32,
    /// How long it waited for a slot, in milliseconds.
    pub queue_ms: u64,
    /// How long the platform took, in milliseconds.
    pub upstream_ms: u64,
    /// How long it took, in milliseconds.
    pub ms: u64,
    /// Its customers; they are hashed only when it is shown.
    #[serde(skip)]
    pub(in crate::gateway) customer_ids: Arc<[String]>,
}

/// Requests that are remembered for operators.
#[derive(Debug)]
pub(in crate::gateway) struct NotedRequests {
    /// Rejected requests that are looked at: whoever sends many of them must not keep others waiting.
    rejections: DefaultDirectRateLimiter,
    lists: Mutex<Lists>,
    /// While the list of the slowest is full of requests of late: how long the fastest of them took, in milliseconds, and until when
    /// that holds, in seconds since boot. Whatever was faster need not be looked at.
    slowest_above: AtomicU64,
    slowest_until: AtomicU64,
}

impl Default for NotedRequests {
    fn default() -> Self {
        Self {
            rejections: RateLimiter::direct(Quota::per_second(REJECTIONS)),
            lists: Mutex::default(),
            slowest_above: AtomicU64::default(),
            slowest_until: AtomicU64::default(),
        }
    }
}

#[derive(Debug, Default)]
struct Lists {
    /// The slowest first, each with when it ended.
    slowest: Vec<(Boot, Noted)>,
    /// The last one first: those that the gateway or the platform is to blame for.
    failed: VecDeque<Noted>,
    /// The last one first: those that were rejected, or answered with another code than 0.
    rejected: VecDeque<Noted>,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Ending {
    /// It was answered.
    Answered,
    /// It was rejected, or answered with another code than 0.
    Rejected,
    /// It failed.
    Failed,
}

impl Ending {
    /// By the status of the response, the name of the gateway's error, and whether the platform's answer has another code than 0.
    pub(in crate::gateway) fn of(status: u16, error: Option<&str>, has_code: bool) -> Self {
        match status {
            429 | 500.. if error.is_some_and(|error| BY_ITS_CALLER.contains(&error)) => Self::Rejected,
            429 | 500.. => Self::Failed,
            400.. => Self::Rejected,
            _ if has_code => Self::Rejected,
            _ => Self::Answered,
        }
    }
}

/// Errors with a status of a failure that a caller causes by itself.
const BY_ITS_CALLER: [&str; 2] = ["caller_limited", "not_cached"];

/// The requests that are shown.
#[derive(Clone, Debug, Serialize)]
pub struct NotedLists {
    /// The slowest of the last ten minutes, the slowest first.
    pub slowest: Vec<Noted>,
    /// The last that failed, the last one first.
    pub failed: Vec<Noted>,
    /// The last that were rejected, or that the platform answered with another code than 0.
    pub rejected: Vec<Noted>,
}

impl NotedRequests {
    /// Remembers a request if it was slow or failed. Most are neither: for them nothing is done.
    pub(in crate::gateway) fn note(&self, took: Duration, ending: Ending, now: Boot, noted: impl FnOnce() -> Noted) {
        if ending == Ending::Rejected && self.rejections.check().is_err() {
            return;
        }
        let is_slow = took >= SLOW
            && (millis(took) > self.slowest_above.load(Ordering::Relaxed)
                || now.seconds() >= self.slowest_until.load(Ordering::Relaxed));
        if !is_slow && ending == Ending::Answered {
            return;
        }
        let noted = noted();
        let mut lists = self.lists.lock();
        let list = match ending {
            Ending::Answered => None,
            Ending::Rejected => Some(&mut lists.rejected),
            Ending::Failed => Some(&mut lists.failed),
        };
        if let Some(list) = list {
            make_room(list);
            list.push_front(noted.clone());
        }
        if is_slow {
            lists.slowest.retain(|(at, _)| now.since(*at) < RECENTLY);
            let place = lists.slowest.partition_point(|(_, other)| other.ms >= noted.ms);
            if place < SHOWN {
                lists.slowest.insert(place, (now, noted));
                lists.slowest.truncate(SHOWN);
            }
            if let (SHOWN, Some((_, fastest))) = (lists.slowest.len(), lists.slowest.last()) {
                let first = lists.slowest.iter().map(|(at, _)| at.seconds()).min().unwrap_or_default();
                self.slowest_above.store(fastest.ms, Ordering::Relaxed);
                self.slowest_until.store(first + RECENTLY.as_secs(), Ordering::Relaxed);
            }
        }
    }

    /// What is shown.
    pub(super) fn shown(&self, pseudonyms: &Pseudonyms, now: Boot) -> NotedLists {
        let lists = self.lists.lock();
        let show = |noted: &Noted| {
            let customers = noted.customer_ids.iter().take(SHOWN_CUSTOMERS).map(|id| pseudonyms.of(id)).collect();
            Noted { customers, customer_ids: Arc::default(), ..noted.clone() }
        };
        let recent = lists.slowest.iter().filter(|(at, _)| now.since(*at) < RECENTLY);
        NotedLists {
            slowest: recent.map(|(_, noted)| show(noted)).collect(),
            failed: lists.failed.iter().map(show).collect(),
            rejected: lists.rejected.iter().map(show).collect(),
        }
    }
}

/// Makes room for one more: if the list is full, the oldest one of the caller that has most in it goes, of its errors that of which there
/// are most. So whoever fails often does not hide whoever fails seldom.
fn make_room(list: &mut VecDeque<Noted>) {
    if list.len() < SHOWN {
        return;
    }
    let same_caller = |one: &Noted| list.iter().filter(|other| other.caller == one.caller).count();
    let same_error = |one: &Noted| {
        let is_same = |other: &&Noted| {
            (&other.caller, &other.tenant, &other.route, other.status, other.error, other.reason)
                == (&one.caller, &one.tenant, &one.route, one.status, one.error, one.reason)
        };
        list.iter().filter(is_same).count()
    };
    // Of equals the last one is the oldest.
    let most = (0..list.len()).max_by_key(|index| list.get(*index).map(|one| (same_caller(one), same_error(one))));
    most.and_then(|index| list.remove(index));
}

impl Noted {
    /// One of which nothing is known but when it ended, how long it took, and its status.
    pub(in crate::gateway) fn ended(at: Wall, took: Duration, status: u16) -> Self {
        Self {
            at: at.unix_seconds(),
            request_id: String::new(),
            trace_id: None,
            route: String::new(),
            caller: None,
            tenant: None,
            customers: Vec::new(),
            status,
            error: None,
            reason: None,
            code: None,
            cache: "",
            attempts: 0,
            queue_ms: 0,
            upstream_ms: 0,
            ms: millis(took),
            customer_ids: Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(requests: &NotedRequests, seconds: u64, took: u64, status: u16) {
        let (took, now) = (Duration::from_millis(took), Boot::from_duration(Duration::from_secs(seconds)));
        let noted = || Noted::ended(Wall::from_unix_seconds(0), took, status);
        requests.note(took, Ending::of(status, None, false), now, noted);
    }

    #[test]
    fn the_slowest_of_ten_minutes_and_the_last_failures_are_remembered() {
        let (requests, pseudonyms) = (NotedRequests::default(), Pseudonyms::new(None).unwrap());
        for number in 0..100 {
            note(&requests, 1000 + number, 9 + number, 200);
            note(&requests, 1000 + number, 1, if number % 2 == 0 { 503 } else { 404 });
        }
        let shown = requests.shown(&pseudonyms, Boot::from_duration(Duration::from_secs(1100)));
        let slowest: Vec<u64> = shown.slowest.iter().map(|noted| noted.ms).collect();
        assert_eq!(slowest, (89..=108).rev().collect::<Vec<_>>());
        assert_eq!([shown.failed.len(), shown.rejected.len()], [SHOWN; 2]);
        let later = requests.shown(&pseudonyms, Boot::from_duration(Duration::from_secs(1690)));
        assert_eq!(later.slowest.len(), 9, "those of the last ten minutes");
        note(&requests, 1690, 100, 200);
        let later = requests.shown(&pseudonyms, Boot::from_duration(Duration::from_secs(1690)));
        assert_eq!(later.slowest.len(), 10, "what has expired hides nothing");
        note(&requests, 5000, 11, 200);
        assert_eq!(requests.shown(&pseudonyms, Boot::from_duration(Duration::from_secs(5000))).slowest.len(), 1);
    }

    #[test]
    fn a_caller_that_fails_often_hides_nobody() {
        let (requests, pseudonyms) = (NotedRequests::default(), Pseudonyms::new(None).unwrap());
        let fail = |caller: &str, status| {
            let (took, now) = (Duration::ZERO, Boot::from_duration(Duration::from_secs(1)));
            let noted =
                || Noted { caller: Some(caller.to_owned()), ..Noted::ended(Wall::from_unix_seconds(0), took, status) };
            requests.note(took, Ending::Failed, now, noted);
        };
        fail("quiet", 502);
        (0..100).for_each(|_| fail("noisy", 503));
        fail("quiet", 504);
        (0..100).for_each(|number| fail("noisy", 500 + number % 3));
        let failed = requests.shown(&pseudonyms, Boot::from_duration(Duration::from_secs(1))).failed;
        let quiet: Vec<u16> =
            failed.iter().filter(|noted| noted.caller.as_deref() == Some("quiet")).map(|noted| noted.status).collect();
        assert_eq!((failed.len(), quiet), (SHOWN, vec![504, 502]));
        let kinds: std::collections::BTreeSet<u16> = failed.iter().map(|noted| noted.status).collect();
        assert_eq!(kinds.len(), 5, "{kinds:?}: nor does one of its errors hide another");
    }

    #[test]
    fn what_a_caller_causes_by_itself_is_no_failure() {
        assert_eq!(Ending::of(429, Some("caller_limited"), false), Ending::Rejected);
        assert_eq!(Ending::of(504, Some("not_cached"), false), Ending::Rejected);
        assert_eq!(Ending::of(429, Some("upstream_limited"), false), Ending::Failed);
        assert_eq!(Ending::of(429, None, true), Ending::Failed);
        assert_eq!(Ending::of(200, None, true), Ending::Rejected);
    }
}
