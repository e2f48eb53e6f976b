//! What became of a call. Status codes, stale answers, retries, breakers, invalidation, metrics and logs all derive from this one fact.

use std::io;
use std::sync::Arc;

use super::circuit::{Health, Rejected};
use super::error::AttemptError;
use crate::answer::{Answer, Verdict};
use crate::clock::{Now, Wall};
use crate::limit::Limited;

/// What became of a call.
#[derive(Debug)]
pub enum Outcome {
    /// The platform answered.
    Answered(Answered),
    /// Nothing was sent, so that it was certainly not executed.
    NotSent(NotSent),
    /// It was sent, and no usable answer came: nobody knows whether it was executed.
    Unknown(Arc<AttemptError>),
}

/// A call that was answered.
#[derive(Debug)]
pub struct Answered {
    /// The answer.
    pub answer: Answer,
    /// Its classification.
    pub verdict: Verdict,
    /// Just before the request's bytes were sent.
    pub sent: Now,
    /// The earliest that any clock may have been then.
    pub earliest: Wall,
    /// When the answer was complete.
    pub received: Now,
}

/// Why nothing was sent.
#[derive(Clone, Debug)]
pub enum NotSent {
    /// No slot of the platform's rate came in time.
    Limited {
        /// When to try again.
        limited: Limited,
        /// Whether the platform throttles although the rate limit is kept, so that the signing key may be refused.
        is_key_suspect: bool,
    },
    /// The circuit breaker is open, or too many attempts are in flight.
    Rejected(Rejected),
    /// The caller's time was over.
    DeadlineExceeded,
    /// Nobody waits for the answer any more.
    Cancelled,
    /// There was no connection, or it broke before a byte was sent.
    Failed(Arc<AttemptError>),
    /// Other replicas could not be notified of this write.
    Unfenced,
    /// Its task ended early.
    Abandoned,
}

impl NotSent {
    /// Its name in the log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Limited { .. } => "no_slot",
            Self::Rejected(Rejected::BreakerOpen(_)) => "breaker_open",
            Self::Rejected(Rejected::TooManyInFlight) => "too_many_in_flight",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::Failed(error) => error.failure().name(),
            Self::Unfenced => "unfenced",
            Self::Abandoned => "abandoned",
        }
    }
}

/// What a write did to the platform's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It was executed.
    Executed,
    /// The platform refused it, or was too busy. What it says of the customer may still be news; nobody else is concerned.
    Refused,
    /// Certainly none: it was throttled.
    Throttled,
    /// Certainly none: it was not sent.
    NotSent,
    /// Nobody knows.
    Unknown,
}

/// Whether the system refuses a socket because of this process or machine (EMFILE, ENFILE).
fn is_of_this_process(error: &io::Error) -> bool {
    let limits = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(rustix::io::Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| limits.contains(&code))
}

impl Outcome {
    /// What an attempt that failed came to.
    pub fn failed(error: AttemptError, sent: bool) -> Self {
        let error = Arc::new(error);
        if sent { Self::Unknown(error) } else { Self::NotSent(NotSent::Failed(error)) }
    }

    /// Whether anything was sent.
    pub const fn was_sent(&self) -> bool {
        match self {
            Self::Answered(_) | Self::Unknown(_) => true,
            Self::NotSent(_) => false,
        }
    }

    /// Whether an attempt was made, with or without success.
    pub const fn was_tried(&self) -> bool {
        matches!(self, Self::Answered(_) | Self::Unknown(_) | Self::NotSent(NotSent::Failed(_)))
    }

    /// The error, if there was one.
    pub fn error(&self) -> Option<&AttemptError> {
        match self {
            Self::Unknown(error) | Self::NotSent(NotSent::Failed(error)) => Some(error),
            Self::Answered(_) | Self::NotSent(_) => None,
        }
    }

    /// Whether another attempt at a read may succeed.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Answered(answered) => matches!(answered.verdict, Verdict::Http5xx | Verdict::Throttled),
            Self::NotSent(NotSent::Failed(error)) | Self::Unknown(error) => match **error {
                AttemptError::Dns(_)
                | AttemptError::Connect(_)
                | AttemptError::Proxy(_)
                | AttemptError::Tls(_)
                | AttemptError::ConnectTimeout(_)
                | AttemptError::Timeout
                | AttemptError::Reset(_)
                | AttemptError::Incomplete(_) => true,
                AttemptError::Oversized
                | AttemptError::Redirect(_)
                | AttemptError::NotHttp(_)
                | AttemptError::TransferCoding(_)
                | AttemptError::NotJson(_)
                | AttemptError::Compressed(_) => false,
            },
            Self::NotSent(_) => false,
        }
    }

    /// What it says about the platform's health, if anything.
    pub fn health(&self) -> Option<Health> {
        Some(match self {
            Self::Answered(answered) if answered.verdict == Verdict::Http5xx => Health::Failed,
            Self::Answered(_) => Health::Answered,
            Self::NotSent(NotSent::Failed(error)) | Self::Unknown(error) => match **error {
                // This process is at its limit of descriptors.
                AttemptError::Connect(ref error) if is_of_this_process(error) => return None,
                AttemptError::Oversized
                | AttemptError::Redirect(_)
                | AttemptError::NotJson(_)
                | AttemptError::Compressed(_) => Health::Answered,
                AttemptError::Dns(_)
                | AttemptError::Connect(_)
                | AttemptError::Proxy(_)
                | AttemptError::Tls(_)
                | AttemptError::ConnectTimeout(_) => Health::Unreachable,
                AttemptError::Timeout
                | AttemptError::Reset(_)
                | AttemptError::Incomplete(_)
                | AttemptError::NotHttp(_)
                | AttemptError::TransferCoding(_) => Health::Failed,
            },
            Self::NotSent(_) => return None,
        })
    }

    /// What it did to the platform's data, if it was a write.
    pub fn effect(&self) -> Effect {
        let answered = match self {
            Self::NotSent(_) => return Effect::NotSent,
            Self::Unknown(_) => return Effect::Unknown,
            Self::Answered(answered) => answered,
        };
        match answered.verdict {
            Verdict::Success(_) => Effect::Executed,
            Verdict::Exception | Verdict::Error => Effect::Refused,
            Verdict::Throttled => Effect::Throttled,
            Verdict::HttpOther if (400..500).contains(&answered.answer.status) => Effect::Refused,
            Verdict::Http5xx | Verdict::HttpOther | Verdict::Garbage | Verdict::Ambiguous => Effect::Unknown,
        }
    }
}
