//! Closed sets of label values.

use crate::cache::Bound;

/// A closed set of label values.
pub trait Label: Copy + 'static {
    /// Every value, in the order of their indices.
    const NAMES: &'static [&'static str];

    /// The value's place in [`Label::NAMES`].
    fn index(self) -> usize;

    /// The value's name.
    fn name(self) -> &'static str {
        Self::NAMES.get(self.index()).copied().unwrap_or_default()
    }
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl Label for $name {
            const NAMES: &'static [&'static str] = &[$($text),+];

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// How the cache served a request.
    CacheUse {
        /// From the cache.
        Hit = "hit",
        /// By its own call.
        Miss = "miss",
        /// By another caller's call.
        Collapsed = "collapsed",
        /// From the cache, past its freshness.
        Stale = "stale",
        /// By a route that is not cached.
        Bypass = "bypass",
        /// Not at all: it was refused.
        None = "none",
    }
}

label! {
    /// What a look-up found.
    Lookup {
        /// A fresh answer.
        Hit = "hit",
        /// Nothing.
        Miss = "miss",
        /// A call under way.
        Collapsed = "collapsed",
        /// An answer past its freshness, which was served.
        Stale = "stale",
        /// A fresh answer that says there is nothing.
        NegativeHit = "negative_hit",
        /// An answer past its freshness, for which a refresh was begun.
        Refresh = "refresh",
    }
}

impl Label for Bound {
    const NAMES: &'static [&'static str] = &["ttl", "end_at", "negative", "unsettled"];

    fn index(self) -> usize {
        match self {
            Self::Ttl => 0,
            Self::EndAt => 1,
            Self::Negative => 2,
            Self::Unsettled => 3,
        }
    }
}

label! {
    /// Why kept answers were invalidated.
    Invalidation {
        /// A write to the customer.
        Write = "write",
        /// A write to nobody knows whom.
        UnknownCustomer = "unknown_customer",
        /// A caller who learned of a change.
        Invalidate = "invalidate",
        /// An operator.
        Purge = "purge",
    }
}

label! {
    /// Whether the answer that a refetch replaced was still true.
    Changed {
        /// It was not.
        Yes = "yes",
        /// It was.
        No = "no",
    }
}

label! {
    /// How an attempt ended.
    Outcome {
        /// A success.
        Ok = "ok",
        /// A business exception.
        Exception = "exception",
        /// A system error in the body.
        Error = "error",
        /// Too many calls, or busy.
        Throttled = "throttled",
        /// HTTP 5xx.
        Http5xx = "http_5xx",
        /// Any other status than 200.
        HttpOther = "http_other",
        /// The connection broke.
        Reset = "reset",
        /// No answer in time.
        Timeout = "timeout",
        /// No connection.
        Connect = "connect",
        /// An answer that cannot be used.
        Garbage = "garbage",
    }
}

label! {
    /// A state of a circuit breaker.
    BreakerState {
        /// Nothing is sent.
        Open = "open",
        /// One attempt at a time probes.
        HalfOpen = "half_open",
        /// Everything is sent.
        Closed = "closed",
    }
}

label! {
    /// Which limit refused a request.
    Limit {
        /// What callers may ask.
        Caller = "caller",
        /// Upstream's pace.
        Upstream = "upstream",
        /// Connections at once.
        Connections = "connections",
        /// Callers sharing one call.
        Waiters = "waiters",
    }
}
