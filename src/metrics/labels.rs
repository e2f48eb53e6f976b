//! Closed sets of label values.

use crate::cache::LimitedBy;

/// A closed set of label values.
pub trait Label: Copy + 'static {
    /// Every value, in the order of their indices.
    const NAMES: &'static [&'static str];

    /// The value's index in [`Label::NAMES`].
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
        /// By its own fetch.
        Miss = "miss",
        /// By another caller's fetch.
        Collapsed = "collapsed",
        /// From the cache, stale.
        Stale = "stale",
        /// On a route that is not cached.
        Bypass = "bypass",
        /// Not at all: it was rejected.
        None = "none",
    }
}

label! {
    /// What a lookup found.
    LookupResult {
        /// A fresh answer.
        Hit = "hit",
        /// Nothing.
        Miss = "miss",
        /// A fetch in progress.
        Collapsed = "collapsed",
        /// A stale answer, which was served.
        Stale = "stale",
        /// A fresh answer that says there is nothing.
        NegativeHit = "negative_hit",
        /// A stale answer, whose refresh began.
        Refresh = "refresh",
    }
}

impl Label for LimitedBy {
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

impl AttemptResult {
    /// How attempts end of which nothing reached the platform.
    pub const UNSENT: [&str; 4] = ["dns", "connect", "tls", "proxy"];
}

label! {
    /// Why answers were invalidated.
    Invalidation {
        /// A write to the customer.
        Write = "write",
        /// A write without a known customer.
        UnknownCustomer = "unknown_customer",
        /// A caller that learned of a change.
        Invalidate = "invalidate",
        /// An operator.
        Purge = "purge",
    }
}

label! {
    /// Whether a read was answered as the cache would have, in its shadow mode.
    Shadowed {
        /// With the same answer.
        Same = "same",
        /// With another one.
        Different = "different",
    }
}

label! {
    /// Whether a refetched answer differs from the one that it replaced.
    Changed {
        /// It does.
        Yes = "yes",
        /// It does not.
        No = "no",
    }
}

label! {
    /// How an attempt ended.
    AttemptResult {
        /// A success.
        Ok = "ok",
        /// A business exception.
        Exception = "exception",
        /// A system error in the body.
        Error = "error",
        /// Throttled, or busy.
        Throttled = "throttled",
        /// HTTP 5xx.
        Http5xx = "http_5xx",
        /// Any other status than 200.
        HttpOther = "http_other",
        /// The connection broke.
        Reset = "reset",
        /// No answer in time.
        Timeout = "timeout",
        /// The name could not be resolved.
        Dns = "dns",
        /// No connection.
        Connect = "connect",
        /// No TLS.
        Tls = "tls",
        /// No connection through the forward proxy.
        Proxy = "proxy",
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
    /// Why a request was rejected before there was one.
    Unparsed {
        /// Its head or its framing is invalid.
        Framing = "framing",
        /// Its head is too long.
        HeadSize = "head_size",
        /// Its head was not received in time.
        HeadTimeout = "head_timeout",
        /// It is not HTTP.
        NotHttp = "not_http",
    }
}

label! {
    /// What Redis was asked.
    ClusterOp {
        /// To note that this replica lives.
        Heartbeat = "heartbeat",
        /// To end a write for all replicas.
        End = "end",
        /// To acknowledge an end of another replica.
        Acknowledge = "acknowledge",
        /// For an answer that is stored, or the lease to fetch it.
        Miss = "miss",
        /// To store what came of a fetch, or to release its lease.
        Complete = "complete",
        /// For a slot.
        Take = "take",
        /// To change until when a call counts.
        Slot = "slot",
        /// To send another message to all replicas.
        Publish = "publish",
        /// For a connection.
        Connect = "connect",
    }
}

label! {
    /// What became of answers that replicas share.
    SharedResult {
        /// One was served.
        Hit = "hit",
        /// There was none.
        Miss = "miss",
        /// One was stored.
        Stored = "stored",
        /// One was not stored: a write had ended, Redis is full or did not answer, or it is too long.
        Refused = "refused",
    }
}

label! {
    /// What came of it.
    ClusterResult {
        /// An answer, also that a command was executed too late, or for a namespace that has ended.
        Ok = "ok",
        /// No answer in time.
        Timeout = "timeout",
        /// An error.
        Error = "error",
    }
}

label! {
    /// Which limit rejected a request.
    Limit {
        /// The rate limit of a caller.
        Caller = "caller",
        /// The rate limit of the platform.
        Upstream = "upstream",
        /// Connections and concurrent requests.
        Connections = "connections",
        /// Callers that share one fetch.
        Waiters = "waiters",
    }
}
