//! Memoization of hits: under one policy the same bytes of the same caller ask the same question, so that a request that repeats one
//! that was a hit is neither parsed nor looked up.
//!
//! It refers to answers and does not keep them in memory. Whether one may be served is a fact of the answer itself, as it is for
//! those that are looked up: there is one protocol of invalidation, that of the cache. The memo belongs to a policy and is dropped with it.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::{ArcSwapOption, Guard};
use foldhash::fast::RandomState;
use smallvec::SmallVec;

use crate::cache::AnswerRef;
use crate::caller::Caller;
use crate::route::Route;

/// The part of the cache's memory that is set aside for this.
const SHARE: u64 = 16;
/// Memory of one request at most, in bytes.
const MAX_BYTES: usize = 672;
/// Of those, what is left for the text.
const MAX_TEXT: usize =
    MAX_BYTES - size_of::<Set>() / WAYS - size_of::<Known>() - AnswerRef::RESIDUE - ALLOCATIONS * ALLOCATION;
/// Allocations of one request, and what each takes beside its contents: reference counts, the allocator's rounding. Itself, a long
/// text, and what is left of its answer.
const ALLOCATIONS: usize = 3;
const ALLOCATION: usize = 24;
/// Texts up to this length are stored inline.
const INLINE_TEXT: usize = 96;
/// Most slots, however large the cache is.
const MAX_SLOTS: u64 = 1 << 17;
/// Slots that a request may take. With one, a third of 10,000 requests would share theirs with others by default.
const WAYS: usize = 4;

type Slot = ArcSwapOption<Known>;

/// Slots that the same requests may take.
struct Set {
    /// Another part of the hash of each slot's request: a slot whose tag differs is not dereferenced, which saves a cache miss.
    tags: [AtomicU32; WAYS],
    slots: [Slot; WAYS],
}

/// The requests that were hits, as a set-associative table: a request hashes to one set, and replaces a previous occupant of it.
pub(super) struct HitMemo {
    sets: Box<[Set]>,
    /// Fast rather than strong: whoever finds requests that share a set only causes them to be parsed.
    hasher: RandomState,
}

/// What makes two requests ask the same under one policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Repeat<'a> {
    /// The caller's index.
    caller: usize,
    /// The route's index.
    route: usize,
    /// Empty if the route has only one.
    path: &'a str,
    /// `X-Zvgate-Tenant`.
    tenant: Option<&'a [u8]>,
    body: &'a [u8],
}

impl<'a> Repeat<'a> {
    /// Of a request of a caller that may use the route.
    pub(super) fn new(caller: &Caller, route: &Route, path: &'a str, tenant: Option<&'a [u8]>, body: &'a [u8]) -> Self {
        let path = if route.wildcard { path } else { "" };
        Self { caller: caller.index, route: route.index, path, tenant, body }
    }
}

/// A request that was a hit.
pub(super) struct Known {
    caller: usize,
    route: usize,
    /// Its path, its tenant's name and its body, one after another.
    text: SmallVec<[u8; INLINE_TEXT]>,
    path_length: usize,
    header_length: Option<usize>,
    /// The tenant's index.
    pub(super) tenant: usize,
    pub(super) answer: AnswerRef,
}

impl Known {
    fn is_repeated_by(&self, repeat: &Repeat<'_>) -> bool {
        let header = repeat.tenant.unwrap_or_default();
        self.path_length == repeat.path.len()
            && self.header_length == repeat.tenant.map(<[u8]>::len)
            && self.route == repeat.route
            && self.caller == repeat.caller
            && self.text.strip_prefix(repeat.path.as_bytes()).and_then(|rest| rest.strip_prefix(header))
                == Some(repeat.body)
    }
}

impl HitMemo {
    /// An empty one, beside a cache of so many bytes.
    pub(super) fn new(cache_bytes: u64) -> Self {
        let sets = (cache_bytes / SHARE / MAX_BYTES as u64).min(MAX_SLOTS).div_ceil(WAYS as u64).max(1);
        let set = |_| Set { tags: [const { AtomicU32::new(0) }; WAYS], slots: std::array::from_fn(|_| Slot::empty()) };
        Self { sets: (0..sets).map(set).collect(), hasher: RandomState::default() }
    }

    /// Memory that it takes at most, in bytes.
    pub(super) fn max_bytes(&self) -> u64 {
        (self.sets.len() * WAYS * MAX_BYTES) as u64
    }

    /// The set that a request hashes to, and its tag.
    fn set(&self, repeat: &Repeat<'_>) -> Option<(&Set, u32)> {
        let hash = self.hasher.hash_one(repeat);
        let [tag, low] = [hash >> 32, hash & u64::from(u32::MAX)];
        let set = self.sets.get(usize::try_from(low % self.sets.len().max(1) as u64).ok()?)?;
        Some((set, u32::try_from(tag).unwrap_or_default()))
    }

    /// The earlier request that this one repeats.
    pub(super) fn find(&self, repeat: &Repeat<'_>) -> Option<Guard<Option<Arc<Known>>>> {
        let (set, tag) = self.set(repeat)?;
        let slots = set.tags.iter().zip(&set.slots).filter(|(other, _)| other.load(Ordering::Relaxed) == tag);
        slots
            .map(|(_, slot)| slot.load())
            .find(|known| known.as_ref().is_some_and(|known| known.is_repeated_by(repeat)))
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        self.sets.iter().flat_map(|set| &set.slots).for_each(|slot| slot.store(None));
    }

    /// Remembers a request that was a hit, unless it is unusually long.
    pub(super) fn remember(&self, repeat: &Repeat<'_>, tenant: usize, answer: AnswerRef) {
        let parts = [repeat.path.as_bytes(), repeat.tenant.unwrap_or_default(), repeat.body];
        if parts.iter().map(|part| part.len()).sum::<usize>() > MAX_TEXT {
            return;
        }
        let Some((set, tag)) = self.set(repeat) else { return };
        let holds = |slot: &Slot| slot.load().as_ref().is_some_and(|known| known.is_repeated_by(repeat));
        let is_free = |slot: &Slot| slot.load().as_ref().is_none_or(|known| !known.answer.is_live());
        let found = set.slots.iter().position(holds).or_else(|| set.slots.iter().position(is_free));
        let way = found.unwrap_or_else(|| fastrand::usize(..WAYS));
        let (Some(slot), Some(tag_of_slot)) = (set.slots.get(way), set.tags.get(way)) else { return };
        let mut text = SmallVec::with_capacity(parts.iter().map(|part| part.len()).sum());
        parts.into_iter().for_each(|part| text.extend_from_slice(part));
        slot.store(Some(Arc::new(Known {
            caller: repeat.caller,
            route: repeat.route,
            text,
            path_length: repeat.path.len(),
            header_length: repeat.tenant.map(<[u8]>::len),
            tenant,
            answer,
        })));
        tag_of_slot.store(tag, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::cache::Subject;

    type Sent = (usize, usize, &'static str, Option<&'static [u8]>, &'static [u8]);

    fn sent() -> impl Strategy<Value = Sent> {
        let path = prop::sample::select(vec!["/a", "/a/b", "/ab"]);
        let tenant = prop::sample::select(vec![None, Some(&b""[..]), Some(b"shop"), Some(b"other")]);
        (0..2usize, 0..2usize, path, tenant, prop::sample::select(vec![&b"{}"[..], b"{ }", b"[]"]))
    }

    const fn repeat((caller, route, path, tenant, body): Sent) -> Repeat<'static> {
        Repeat { caller, route, path, tenant, body }
    }

    /// A reference to the answer about a customer, which is in memory or not.
    fn answer(customer: usize, is_live: bool) -> AnswerRef {
        AnswerRef::of_nothing(Subject::customer(0, &customer.to_string()), is_live)
    }

    fn customer(memo: &HitMemo, repeat: &Repeat<'_>) -> Option<usize> {
        let known = memo.find(repeat)?;
        Some(known.as_ref()?.tenant)
    }

    proptest! {
        #[test]
        fn a_request_finds_only_the_answer_to_its_own_repetition(
            steps in prop::collection::vec((sent(), any::<bool>(), any::<bool>()), 1..60),
            bytes in prop::sample::select(vec![0, 1 << 14, 1 << 20]),
        ) {
            let memo = HitMemo::new(bytes);
            let mut remembered: HashMap<Sent, usize> = HashMap::new();
            for (number, (sent, remembers, is_live)) in steps.into_iter().enumerate() {
                if remembers {
                    memo.remember(&repeat(sent), number, answer(number, is_live));
                    remembered.insert(sent, number);
                    prop_assert_eq!(customer(&memo, &repeat(sent)), Some(number), "what was just remembered is found");
                }
                // Others may have replaced it.
                if let Some(customer) = customer(&memo, &repeat(sent)) {
                    prop_assert_eq!(Some(&customer), remembered.get(&sent));
                }
            }
        }
    }

    #[test]
    fn an_unusually_long_request_is_not_remembered() {
        let memo = HitMemo::new(1 << 20);
        for (length, is_found) in [(8, true), (MAX_TEXT, true), (MAX_TEXT + 1, false)] {
            let body = vec![b' '; length];
            let repeat = Repeat { caller: 0, route: 0, path: "", tenant: None, body: &body };
            memo.remember(&repeat, 0, answer(1, true));
            assert_eq!(memo.find(&repeat).is_some(), is_found, "{length}");
        }
    }

    /// A set keeps as many live requests as it has ways, replaces one of them for another, and prefers one whose answer was dropped.
    #[test]
    fn a_full_set_replaces_what_is_of_no_use_first() {
        let memo = HitMemo::new(0);
        let bodies: Vec<Vec<u8>> = (0..=WAYS).map(|number| number.to_string().into_bytes()).collect();
        let repeat = |number: usize| Repeat { caller: 0, route: 0, path: "", tenant: None, body: &bodies[number] };
        for _ in 0..50 {
            memo.clear();
            // That of the first one was dropped.
            (0..WAYS).rev().for_each(|number| memo.remember(&repeat(number), 0, answer(number, number > 0)));
            assert!((0..WAYS).all(|number| memo.find(&repeat(number)).is_some()));
            memo.remember(&repeat(WAYS), 0, answer(WAYS, true));
            assert!(memo.find(&repeat(0)).is_none(), "its answer was dropped");
            assert!((1..=WAYS).all(|number| memo.find(&repeat(number)).is_some()));
            memo.remember(&repeat(0), 0, answer(0, true));
            assert!(memo.find(&repeat(0)).is_some());
            assert_eq!((0..=WAYS).filter(|number| memo.find(&repeat(*number)).is_some()).count(), WAYS);
        }
        memo.clear();
        assert!((0..=WAYS).all(|number| memo.find(&repeat(number)).is_none()));
    }

    #[test]
    fn usual_requests_are_short_enough() {
        const { assert!(MAX_TEXT >= 200) }
    }
}
