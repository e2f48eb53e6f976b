//! Freshness and expiry: how long an answer may be served from the cache (RFC 9111, section 4.2), as pure functions of the answer, the settings and the time.

use std::time::Duration;

use crate::answer::{Contents, End, Verdict};
use crate::clock::{Boot, Now, Wall, millis};
use crate::settings::Lifetimes;

/// What limits the freshness of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitedBy {
    /// The route's or the cache's `ttl`.
    Ttl,
    /// The end of a coupon.
    EndAt,
    /// `cache.negative_ttl`.
    Negative,
    /// `cache.unsettled_ttl`.
    Unsettled,
}

/// An answer that is fresh for less is not shared among replicas: it could end while it is served.
pub const LEAST_FRESH: Duration = Duration::from_millis(100);

/// The freshness of a cached answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// When the answer was received.
    pub received: Boot,
    /// Until when it may be served at all.
    end: Deadline,
    /// How long it is fresh. This and the next two are measured from when it was received.
    fresh_for: Span,
    /// How long it may be served while it is refreshed; not less than it is fresh.
    revalidate_for: Span,
    /// How long it may be served in place of a failure; not less than it is fresh.
    if_error_for: Span,
    /// Whether it says that there is nothing.
    pub negative: bool,
    /// What limited it when the answer was received.
    pub limited_by: LimitedBy,
}

/// A span in few bits, since an entry has three: in whole milliseconds up to 24 days, and beyond in whole seconds, rounded down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span(u32);

impl Span {
    /// From here on the number counts seconds.
    const SECONDS: u32 = 1 << 31;

    fn of(span: Duration) -> Self {
        let millis = u32::try_from(span.as_millis()).ok().filter(|millis| *millis < Self::SECONDS);
        let seconds = || u32::try_from(span.as_secs()).unwrap_or(u32::MAX).saturating_add(Self::SECONDS);
        Self(millis.unwrap_or_else(seconds))
    }

    fn duration(self) -> Duration {
        match self.0.checked_sub(Self::SECONDS) {
            None => Duration::from_millis(self.0.into()),
            Some(seconds) => Duration::from_secs(seconds.into()),
        }
    }
}

/// Two deadlines, of which the first to pass counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    wall: Wall,
    boot: Boot,
}

impl Deadline {
    /// One that never passes.
    pub const NEVER: Self = Self { wall: Wall::NEVER, boot: Boot::NEVER };

    /// Whether it has passed.
    pub fn has_passed(self, now: Now) -> bool {
        self.remaining(now).is_none()
    }

    /// The time until it passes; `None` once it has.
    fn remaining(self, now: Now) -> Option<Duration> {
        let remaining = self.boot.since(now.boot).min(self.wall.after(now.wall)?);
        (remaining > Duration::ZERO).then_some(remaining)
    }
}

/// How an answer past its freshness may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staleness {
    /// How long ago its freshness ended.
    pub past: Duration,
    /// While it is refreshed.
    pub revalidate: bool,
    /// In place of a failure.
    pub if_error: bool,
}

/// Whether an answer is stored, and what becomes of an older one to the same question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreDecision {
    /// It is stored in place of the older one.
    Store(Freshness),
    /// It is not stored, but the older one is dropped: it is no longer true.
    Supersede,
    /// It says nothing about the question.
    Ignore,
    /// It says that the platform fails: the older one may be served in its place.
    Failure,
}

impl StoreDecision {
    /// The decision on an answer whose request was sent at `sent` and that was received at `received`. `earliest` is the earliest
    /// that any clock may have been when the request was sent: an end that lay ahead by that one counts.
    pub fn of(verdict: &Verdict, lifetimes: &Lifetimes, earliest: Wall, sent: Now, received: Now) -> Self {
        let nothing = Contents::default();
        let (contents, negative) = match verdict {
            Verdict::Success(contents) => (contents, contents.empty),
            Verdict::Exception => (&nothing, true),
            Verdict::Error | Verdict::Throttled | Verdict::Garbage | Verdict::Ambiguous | Verdict::Http5xx => {
                return Self::Failure;
            }
            Verdict::HttpOther => return Self::Ignore,
        };
        let end = first_end(&contents.ends, lifetimes.expiry_margin, earliest, sent, received);
        let Some(remaining) = end.remaining(received) else { return Self::Supersede };
        let fresh_for = |ttl: Duration, limited_by| {
            let fresh_for = Span::of(ttl.min(remaining));
            let limited_by = if remaining < ttl { LimitedBy::EndAt } else { limited_by };
            let (revalidate_for, if_error_for) = (fresh_for, fresh_for);
            Freshness { received: received.boot, end, fresh_for, revalidate_for, if_error_for, negative, limited_by }
        };
        let is_unsettled = contents.open.iter().any(|end| may_change(*end, received.wall));
        let freshness = if negative {
            fresh_for(lifetimes.negative_ttl, LimitedBy::Negative)
        } else if is_unsettled && lifetimes.unsettled_ttl < lifetimes.ttl {
            fresh_for(lifetimes.unsettled_ttl, LimitedBy::Unsettled)
        } else if is_unsettled {
            fresh_for(lifetimes.ttl, LimitedBy::Ttl)
        } else {
            let settled = fresh_for(lifetimes.ttl, LimitedBy::Ttl);
            Freshness {
                revalidate_for: Span::of(settled.lifetime() + lifetimes.stale_while_revalidate),
                if_error_for: Span::of(settled.lifetime() + lifetimes.stale_if_error),
                ..settled
            }
        };
        if freshness.lifetime().is_zero() { Self::Supersede } else { Self::Store(freshness) }
    }
}

impl Freshness {
    /// How long the answer was fresh when it was received.
    pub fn lifetime(&self) -> Duration {
        self.fresh_for.duration()
    }

    /// How long the answer is still fresh; `None` once it is not.
    pub fn remaining(&self, now: Now) -> Option<Duration> {
        let remaining = self.end.remaining(now)?.min(self.lifetime().saturating_sub(self.age(now)));
        (remaining > Duration::ZERO).then_some(remaining)
    }

    /// Until when the answer may be served at all.
    pub const fn end(&self) -> Deadline {
        self.end
    }

    /// Whether the answer must not be served in any way any more.
    pub fn has_ended(&self, now: Now) -> bool {
        self.end.has_passed(now)
    }

    /// How long the answer may be served in any way, from when it was received.
    fn longest(&self) -> Duration {
        self.revalidate_for.max(self.if_error_for).duration()
    }

    /// How the answer may still be served past its freshness; `None` while it is fresh, and from its end on.
    pub fn stale(&self, now: Now) -> Option<Staleness> {
        let age = self.age(now);
        let past = age.checked_sub(self.lifetime()).filter(|_| !self.has_ended(now))?;
        let (revalidate, if_error) = (age < self.revalidate_for.duration(), age < self.if_error_for.duration());
        (revalidate || if_error).then_some(Staleness { past, revalidate, if_error })
    }

    /// How long the answer may still be served in any way.
    pub fn servable_for(&self, now: Now) -> Duration {
        let in_any_mode = self.longest().saturating_sub(self.age(now));
        self.end.remaining(now).unwrap_or_default().min(in_any_mode)
    }

    /// The freshness of the same answer if it may change at any moment: at most `ttl`, and no stale modes.
    pub fn unsettled(self, ttl: Duration) -> Self {
        let is_shorter = ttl < self.lifetime();
        let fresh_for = if is_shorter { Span::of(ttl) } else { self.fresh_for };
        let limited_by = if is_shorter { LimitedBy::Unsettled } else { self.limited_by };
        Self { fresh_for, revalidate_for: fresh_for, if_error_for: fresh_for, limited_by, ..self }
    }

    /// The freshness of the same answer if it may have changed without notice: at most `ttl`, after which it is only served in place of
    /// failures.
    pub fn provisional(self, ttl: Duration) -> Self {
        let unsettled = self.unsettled(ttl);
        let if_error = self.if_error_for.duration().saturating_sub(self.lifetime());
        Self { if_error_for: Span::of(unsettled.lifetime() + if_error), ..unsettled }
    }

    /// Until when the answer is of any use. It is retained for as long again as it was fresh, to be compared with the one that
    /// replaces it.
    pub(super) fn retain_until(&self) -> Boot {
        self.received + (self.lifetime() * 2).max(self.longest())
    }

    /// For another process, from this moment on: never longer than here.
    pub fn relative(&self, now: Boot) -> RelativeFreshness {
        let left = |until: Boot| whole_millis(until.since(now));
        let left_of = |span: Span| left(self.received + span.duration());
        RelativeFreshness {
            age: whole_millis(now.since(self.received)) + Duration::from_millis(1),
            fresh: left_of(self.fresh_for),
            revalidate: left_of(self.revalidate_for),
            if_error: left_of(self.if_error_for),
            end: (self.end != Deadline::NEVER).then(|| (self.end.wall, left(self.end.boot))),
            negative: self.negative,
            limited_by: self.limited_by,
        }
    }

    /// How long ago the answer was received.
    pub fn age(&self, now: Now) -> Duration {
        now.boot.since(self.received)
    }
}

/// A freshness as another process can use it, whose clock since boot is another: spans from one moment on, in whole milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelativeFreshness {
    /// How long ago the answer was received.
    pub age: Duration,
    /// How long it is still fresh.
    pub fresh: Duration,
    /// How long it may still be served stale while it is refreshed.
    pub revalidate: Duration,
    /// How long it may still be served stale in place of a failure.
    pub if_error: Duration,
    /// Until when it may be served at all, by the wall clock, and for how long, whichever ends first.
    pub end: Option<(Wall, Duration)>,
    /// Whether it says that there is nothing.
    pub negative: bool,
    /// What limited its freshness when it was received.
    pub limited_by: LimitedBy,
}

impl RelativeFreshness {
    /// The same after so long.
    #[must_use]
    pub fn after(self, elapsed: Duration) -> Self {
        Self {
            age: self.age.saturating_add(elapsed),
            fresh: self.fresh.saturating_sub(elapsed),
            revalidate: self.revalidate.saturating_sub(elapsed),
            if_error: self.if_error.saturating_sub(elapsed),
            end: self.end.map(|(wall, span)| (wall, span.saturating_sub(elapsed))),
            ..self
        }
    }

    /// As from this moment on; `None` if the answer was received before this machine was booted, which its clock cannot express.
    pub fn from(self, at: Boot) -> Option<Freshness> {
        let Self { age, fresh, revalidate, if_error, end, negative, limited_by } = self;
        (age <= at.as_duration()).then(|| Freshness {
            received: at - age,
            end: end.map_or(Deadline::NEVER, |(wall, span)| Deadline { wall, boot: at + span }),
            fresh_for: Span::of(age.saturating_add(fresh)),
            revalidate_for: Span::of(age.saturating_add(revalidate)),
            if_error_for: Span::of(age.saturating_add(if_error)),
            negative,
            limited_by,
        })
    }
}

/// A span in whole milliseconds, rounded down.
fn whole_millis(span: Duration) -> Duration {
    Duration::from_millis(millis(span))
}

/// Whether a coupon that is not settled may change at any moment: it has no readable end, or one that has passed.
fn may_change(end: Option<End>, now: Wall) -> bool {
    match end {
        None => true,
        Some(End::Never) => false,
        Some(End::At(end)) => end <= now,
    }
}

/// The two deadlines of the earliest end that lay ahead when the request was sent, by the earliest clock. If the wall clock
/// stepped in between, the earlier reading counts.
fn first_end(ends: &[Wall], margin: Duration, earliest: Wall, sent: Now, received: Now) -> Deadline {
    let earlier = earliest.min(sent.wall).min(received.wall);
    let Some(end) = ends.iter().copied().filter(|end| *end > earlier).min() else { return Deadline::NEVER };
    let reached = |seen: Now| seen.boot + end.after(seen.wall).unwrap_or_default();
    Deadline { wall: end - margin, boot: reached(sent).min(reached(received)) - margin }
}

#[cfg(test)]
mod tests;
