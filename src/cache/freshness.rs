//! How long an answer may be told again: pure functions of the answer, the settings and the time.

use std::time::Duration;

use crate::answer::{Contents, End, Verdict};
use crate::clock::{Boot, Now, Wall};

/// The settings that an answer's life depends on.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Of a settled success.
    pub ttl: Duration,
    /// Of a business exception or an empty list.
    pub negative_ttl: Duration,
    /// Of a list whose coupons may change by themselves at any moment.
    pub unsettled_ttl: Duration,
    /// How long after its freshness a settled success is served while it is refreshed.
    pub stale_while_revalidate: Duration,
    /// How long after its freshness a settled success may stand in for a failing upstream.
    pub stale_if_error: Duration,
    /// Taken off every end.
    pub expiry_margin: Duration,
}

/// What bounded an answer's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The route's or the cache's `ttl`.
    Ttl,
    /// The end of a coupon.
    EndAt,
    /// `cache.negative_ttl`.
    Negative,
    /// `cache.unsettled_ttl`.
    Unsettled,
}

/// The life of a kept answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// When the answer came.
    pub received: Boot,
    /// Until when it is fresh.
    fresh_until: Boot,
    /// Until when it is served past its freshness while it is refreshed.
    revalidate_until: Boot,
    /// Until when it may stand in for a failing upstream.
    if_error_until: Boot,
    /// Until when it may be told at all.
    end: Deadline,
    /// Whether it says that there is nothing.
    pub negative: bool,
    /// What bounded its life when it came.
    pub bound: Bound,
}

/// Two deadlines, of which the first to come counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Deadline {
    wall: Wall,
    boot: Boot,
}

impl Deadline {
    const NEVER: Self = Self { wall: Wall::NEVER, boot: Boot::NEVER };

    /// How far off it is; `None` once it has come.
    fn left(self, now: Now) -> Option<Duration> {
        let left = self.boot.since(now.boot).min(self.wall.after(now.wall)?);
        (left > Duration::ZERO).then_some(left)
    }
}

/// An answer past its freshness that may still be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// How long ago its freshness ended.
    pub past: Duration,
    /// While it is refreshed.
    pub revalidate: bool,
    /// In place of a failing upstream's.
    pub if_error: bool,
}

/// What becomes of an answer, and of older ones to the same question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is kept in their place.
    Kept(Life),
    /// It is not kept, but they are over: it says something else by now.
    Supersedes,
    /// It says nothing about the question.
    Ignored,
    /// It says that upstream fails: an older one may stand in for it.
    Failure,
}

impl Fate {
    /// The fate of an answer that was asked for at `sent` and came at `received`.
    pub fn of(verdict: &Verdict, lifetimes: &Lifetimes, sent: Now, received: Now) -> Self {
        let nothing = Contents::default();
        let (contents, negative) = match verdict {
            Verdict::Success(contents) => (contents, contents.empty),
            Verdict::Exception => (&nothing, true),
            Verdict::Error | Verdict::Throttled | Verdict::Garbage | Verdict::Http5xx => return Self::Failure,
            Verdict::HttpOther => return Self::Ignored,
        };
        let end = first_end(&contents.ends, lifetimes.expiry_margin, sent, received);
        let Some(left) = end.left(received) else { return Self::Supersedes };
        let fresh = |ttl: Duration, bound| {
            let fresh_until = received.boot + ttl.min(left);
            let bound = if left < ttl { Bound::EndAt } else { bound };
            Life {
                received: received.boot,
                fresh_until,
                revalidate_until: fresh_until,
                if_error_until: fresh_until,
                end,
                negative,
                bound,
            }
        };
        let unsettled = contents.open.iter().any(|end| is_unsettled(*end, received.wall));
        let life = if negative {
            fresh(lifetimes.negative_ttl, Bound::Negative)
        } else if unsettled && lifetimes.unsettled_ttl < lifetimes.ttl {
            fresh(lifetimes.unsettled_ttl, Bound::Unsettled)
        } else if unsettled {
            fresh(lifetimes.ttl, Bound::Ttl)
        } else {
            let settled = fresh(lifetimes.ttl, Bound::Ttl);
            Life {
                revalidate_until: settled.fresh_until + lifetimes.stale_while_revalidate,
                if_error_until: settled.fresh_until + lifetimes.stale_if_error,
                ..settled
            }
        };
        if life.lasts().is_zero() { Self::Supersedes } else { Self::Kept(life) }
    }
}

impl Life {
    /// How long the answer was fresh when it came.
    pub fn lasts(&self) -> Duration {
        self.fresh_until.since(self.received)
    }

    /// How long the answer is still fresh; `None` from the moment on that it is not.
    pub fn left(&self, now: Now) -> Option<Duration> {
        let left = self.end.left(now)?.min(self.fresh_until.since(now.boot));
        (left > Duration::ZERO).then_some(left)
    }

    /// How the answer may still be told past its freshness; `None` while it is fresh, and from its end on.
    pub fn stale(&self, now: Now) -> Option<Stale> {
        if now.boot < self.fresh_until || self.end.left(now).is_none() {
            return None;
        }
        let (revalidate, if_error) = (now.boot < self.revalidate_until, now.boot < self.if_error_until);
        (revalidate || if_error).then(|| Stale { past: now.boot.since(self.fresh_until), revalidate, if_error })
    }

    /// How long it may still be told in any way.
    pub fn told_for(&self, now: Now) -> Duration {
        let modes = self.revalidate_until.max(self.if_error_until).since(now.boot);
        self.end.left(now).unwrap_or_default().min(modes)
    }

    /// The same answer, as one that may change by itself at any moment.
    pub(super) fn unsettled(self, ttl: Duration) -> Self {
        let shorter = ttl < self.lasts();
        let fresh_until = if shorter { self.received + ttl } else { self.fresh_until };
        let bound = if shorter { Bound::Unsettled } else { self.bound };
        Self { fresh_until, revalidate_until: fresh_until, if_error_until: fresh_until, bound, ..self }
    }

    /// When the answer is of no use any more, not even to be compared with the one that replaces it: it is remembered
    /// for as long again as it was fresh.
    pub(super) fn forget_at(&self) -> Boot {
        (self.fresh_until + self.lasts()).max(self.revalidate_until).max(self.if_error_until)
    }

    /// How long ago the answer came.
    pub fn age(&self, now: Now) -> Duration {
        now.boot.since(self.received)
    }
}

fn is_unsettled(end: Option<End>, now: Wall) -> bool {
    match end {
        None => true,
        Some(End::Never) => false,
        Some(End::At(end)) => end <= now,
    }
}

/// The two deadlines of the earliest end that lay ahead when the request was sent. Where the wall clock stepped in
/// between, the earlier reading counts.
fn first_end(ends: &[Wall], margin: Duration, sent: Now, received: Now) -> Deadline {
    let earlier = sent.wall.min(received.wall);
    let Some(end) = ends.iter().copied().filter(|end| *end > earlier).min() else { return Deadline::NEVER };
    let reached = |seen: Now| seen.boot + end.after(seen.wall).unwrap_or_default();
    Deadline { wall: end - margin, boot: reached(sent).min(reached(received)) - margin }
}

#[cfg(test)]
mod tests;
