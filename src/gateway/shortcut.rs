//! Requests that were read before: the same bytes on the same route ask the same, so that nothing of them is parsed again.
//!
//! A shortcut leads to an answer only as long as nothing was written, kept or ended where its customer belongs
//! ([`Mark`]), and holds neither answers nor memory that the cache let go: it knows an answer weakly.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::{ArcSwapOption, Guard};
use foldhash::fast::RandomState;
use smallvec::SmallVec;

use crate::answer::Answer;
use crate::cache::{Hit, Life, Mark};
use crate::clock::{Boot, Now};
use crate::tenant::Tenant;

/// A power of two. Each place that is in use takes some 300 bytes.
const PLACES: usize = 1 << 16;
/// Bodies of up to so many bytes, as those of the platform's read routes are, lie where all else is that is known of them.
const USUAL: usize = 96;
/// Longest body that is remembered; those of the platform's read routes are some hundred bytes.
const LONGEST: usize = 512;
/// How long a shortcut is taken before its request goes the whole way again, by which the cache learns what is in use.
const LASTS: Duration = Duration::from_secs(5);

/// The shortcuts of a gateway.
pub(super) struct Shortcuts {
    places: Box<[ArcSwapOption<Shortcut>]>,
    /// Quick rather than strong: who finds bodies that share a place only makes them go the whole way.
    place_of: RandomState,
}

/// What a request of these bytes came to.
pub(super) struct Shortcut {
    request: Known,
    pub(super) tenant: Arc<Tenant>,
    pub(super) mark: Mark,
    answer: Weak<Answer>,
    life: Life,
    learned: Boot,
    /// When it was taken last, in seconds since boot.
    used: AtomicU64,
}

impl Shortcut {
    /// The answer that it leads to; whether the mark still holds, the cache must tell.
    pub(super) fn hit(&self, now: Now) -> Option<Hit> {
        if now.boot.since(self.learned) > LASTS {
            return None;
        }
        let left = self.life.left(now)?;
        let answer = self.answer.upgrade()?;
        let second = now.boot.seconds();
        if self.used.load(Ordering::Relaxed) != second {
            self.used.store(second, Ordering::Relaxed);
        }
        Some(Hit { answer, life: self.life, left })
    }
}

/// By what a request is known again.
struct Known {
    /// The number of the policy that it was read under.
    policy: u64,
    route: usize,
    body: SmallVec<[u8; USUAL]>,
}

impl Known {
    fn is(&self, place: &Place<'_>) -> bool {
        (self.policy, self.route, &*self.body) == (place.policy, place.route, place.body)
    }
}

/// Where the shortcut of a request may be: at one of two places, so that few requests find both taken by others.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    either: [usize; 2],
    policy: u64,
    route: usize,
    body: &'a [u8],
}

impl Shortcuts {
    pub(super) fn new() -> Self {
        Self { places: (0..PLACES).map(|_| ArcSwapOption::empty()).collect(), place_of: RandomState::default() }
    }

    /// The place of a request, under a policy.
    pub(super) fn place<'a>(&self, policy: u64, route: usize, body: &'a [u8]) -> Option<Place<'a>> {
        let hash = self.place_of.hash_one(body);
        let either = [hash, hash >> 32].map(|hash| usize::try_from(hash % PLACES as u64).unwrap_or_default());
        (body.len() <= LONGEST).then_some(Place { either, policy, route, body })
    }

    fn slots<'a>(&'a self, place: &Place<'_>) -> impl Iterator<Item = &'a ArcSwapOption<Shortcut>> {
        place.either.into_iter().filter_map(|index| self.places.get(index))
    }

    /// What is remembered of a request.
    pub(super) fn of(&self, place: &Place<'_>) -> Option<Guard<Option<Arc<Shortcut>>>> {
        let is_its = |known: &Guard<Option<Arc<Shortcut>>>| known.as_ref().is_some_and(|known| known.request.is(place));
        self.slots(place).map(ArcSwapOption::load).find(is_its)
    }

    /// Remembers what a request came to, unless both its places are taken by others that are in use.
    pub(super) fn learn(&self, place: &Place<'_>, tenant: &Arc<Tenant>, mark: Mark, hit: &Hit, now: Now) {
        let second = now.boot.seconds();
        let is_its = |known: &Arc<Shortcut>| known.request.is(place);
        let is_used = |known: &Arc<Shortcut>| known.used.load(Ordering::Relaxed) + LASTS.as_secs() >= second;
        let its = self.slots(place).find(|slot| slot.load().as_ref().is_some_and(is_its));
        let free = || self.slots(place).find(|slot| !slot.load().as_ref().is_some_and(is_used));
        if let Some(slot) = its.or_else(free) {
            slot.store(Some(Arc::new(Shortcut {
                request: Known { policy: place.policy, route: place.route, body: place.body.into() },
                tenant: Arc::clone(tenant),
                mark,
                answer: Arc::downgrade(&hit.answer),
                life: hit.life,
                learned: now.boot,
                used: AtomicU64::new(second),
            })));
        }
    }
}
