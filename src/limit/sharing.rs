//! How replicas share the slots towards the platform: each has its part of them, or all take them from one place.
//!
//! The platform counts a call that took a slot there no later than `SEND_WITHIN` and `transit` after it was requested, and the call
//! leaves the window `per` later. A replica's heartbeat that arrives counts for `SILENCE`, and may arrive `LATENESS` after it was sent.
//! [`hold`] adds up all that: for so long after its last heartbeat others may use the part of a replica that is cut off.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::mpsc::error::SendError;

use super::Pace;
use crate::clock::Boot;
use crate::settings::PaceSettings;

/// How late a command may be executed and still count.
pub const LATENESS: Duration = Duration::from_millis(250);
/// Without a heartbeat for so long a replica does not count as live, and without an answer to one it is cut off.
pub const SILENCE: Duration = Duration::from_millis(500);
/// How long after a slot was requested its call may be sent.
pub const SEND_WITHIN: Duration = Duration::from_millis(500);
/// A reply of the place of the shared slots is not waited for longer.
pub const REPLY_WITHIN: Duration = Duration::from_millis(300);
/// Between the check that a slot may still be used and the last byte of its call.
const SEND_MARGIN: Duration = Duration::from_millis(50);

/// How long after a replica's last heartbeat calls may be counted that others make in its part of the rate, or of the replicas of an
/// earlier namespace after the beginning of the next one.
pub fn hold(pace: &PaceSettings) -> Duration {
    LATENESS + SILENCE + SEND_WITHIN + pace.transit + pace.per
}

/// Where slots come from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotSource {
    /// Each of so many replicas has its part.
    Split(u32),
    /// One place for all replicas.
    Shared,
    /// This replica is cut off from that place, and has its part after a while.
    CutOff {
        /// When it last sent a heartbeat by which it may have counted as live.
        last_heartbeat: Boot,
        /// Of so many replicas.
        replicas: u32,
    },
}

impl SlotSource {
    /// The part of a limit that this replica has, if slots are not shared; 0: nothing, unless there is no limit.
    pub(super) fn part_of(self, rate: u32) -> u32 {
        match self {
            Self::Split(replicas) | Self::CutOff { replicas, .. } => rate / replicas.max(1),
            Self::Shared => rate,
        }
    }
}

/// A request to the place of the shared slots.
#[derive(Debug)]
pub enum SlotRequest {
    /// A slot.
    Take(PendingSlot),
    /// The last byte of a call has just been sent.
    Sent(SharedSlot, PaceSettings),
    /// A call has just been answered.
    Answered(SharedSlot, PaceSettings),
    /// Nothing of a call was sent.
    Release(SharedSlot),
    /// The platform throttled a call of this pace.
    Throttled(Arc<str>),
    /// The platform asked for a pause of this pace.
    Pause(Arc<str>, Duration),
}

/// A slot that all replicas share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedSlot {
    /// The name of its pace.
    pub pace: Arc<str>,
    /// Its number among those that this replica requested.
    pub number: u64,
    /// When it was requested.
    pub requested: Boot,
}

impl SharedSlot {
    /// Whether a call that is sent now is sent in time.
    pub(super) fn is_timely(&self, now: Boot) -> bool {
        now < self.requested + (SEND_WITHIN - SEND_MARGIN)
    }
}

/// A slot that a pace has requested. Dropped without an answer, it is requested again soon.
#[derive(Debug)]
pub struct PendingSlot {
    pace: Arc<Pace>,
    is_answered: bool,
    /// The pace's settings.
    pub settings: PaceSettings,
    /// Calls that a window allows now.
    pub allowed: usize,
}

impl PendingSlot {
    pub(super) fn new(pace: &Arc<Pace>, settings: PaceSettings, allowed: usize) -> Self {
        Self { pace: Arc::clone(pace), is_answered: false, settings, allowed }
    }

    /// The name of the pace.
    pub fn name(&self) -> &Arc<str> {
        self.pace.name()
    }

    /// There is one. One that is not needed any more is released.
    pub fn granted(mut self, slot: SharedSlot) {
        self.is_answered = true;
        self.pace.granted(slot);
    }

    /// There is none before `until`.
    pub fn denied(mut self, until: Boot) {
        self.is_answered = true;
        self.pace.denied(until);
    }
}

impl Drop for PendingSlot {
    fn drop(&mut self) {
        if !self.is_answered {
            self.pace.not_answered();
        }
    }
}

/// How the name of a pace follows from its `open_id` and path.
type Namer = Box<dyn Fn(&str, &str) -> Arc<str> + Send + Sync>;

/// How slots are shared.
pub struct Sharing {
    source: RwLock<SlotSource>,
    requests: Option<UnboundedSender<SlotRequest>>,
    namer: Namer,
}

impl Sharing {
    /// Each of so many replicas has its part; 1: this one has them all.
    pub fn split(replicas: u32) -> Arc<Self> {
        let namer = Box::new(|_: &str, _: &str| Arc::default());
        Arc::new(Self { source: RwLock::new(SlotSource::Split(replicas)), requests: None, namer })
    }

    /// Whoever receives the requests gives out slots. Until they are shared, this replica is cut off.
    pub fn shared(
        source: SlotSource,
        requests: UnboundedSender<SlotRequest>,
        namer: impl Fn(&str, &str) -> Arc<str> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { source: RwLock::new(source), requests: Some(requests), namer: Box::new(namer) })
    }

    /// Where slots come from now.
    pub fn source(&self) -> SlotSource {
        *self.source.read()
    }

    /// Slots come from elsewhere from now on; the paces must be woken.
    pub fn change(&self, source: SlotSource) {
        *self.source.write() = source;
    }

    pub(super) fn name(&self, open_id: &str, path: &str) -> Arc<str> {
        (self.namer)(open_id, path)
    }

    pub(super) fn request(&self, request: SlotRequest) {
        let Some(requests) = &self.requests else { return };
        // There is no receiver any more when the process ends, and the pace, whose lock is held, cannot be notified.
        if let Err(SendError(SlotRequest::Take(mut pending))) = requests.send(request) {
            pending.is_answered = true;
        }
    }
}

impl std::fmt::Debug for Sharing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sharing").field("source", &self.source()).finish_non_exhaustive()
    }
}
