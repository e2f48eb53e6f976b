//! Capacity for requests.

use std::sync::{Arc, OnceLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::reply::{GatewayError, OverCapacity};

/// Capacity for a request.
#[derive(Clone, Debug)]
pub enum Capacity {
    /// There is some.
    Available,
    /// There is none: the request is rejected.
    Exhausted,
    /// Part of a limit that all callers share: taken once the caller is known, so that nobody unknown can use it up.
    Shared(Arc<SharedCapacity>),
}

/// One request's part of a limit that all callers share; given back when this is dropped.
#[derive(Debug)]
pub struct SharedCapacity {
    limit: Arc<Semaphore>,
    taken: OnceLock<OwnedSemaphorePermit>,
}

impl SharedCapacity {
    /// Part of a limit, not taken yet.
    pub fn new(limit: &Arc<Semaphore>) -> Arc<Self> {
        Arc::new(Self { limit: Arc::clone(limit), taken: OnceLock::new() })
    }
}

impl Capacity {
    /// Takes it, now that the caller is known.
    pub(super) fn take(&self) -> Result<(), GatewayError> {
        let Self::Shared(shared) = self else { return Ok(()) };
        let permit = Arc::clone(&shared.limit).try_acquire_owned();
        let permit = permit.map_err(|_| GatewayError::OverCapacity(OverCapacity::Connections))?;
        // One request has one caller.
        let _ = shared.taken.set(permit);
        Ok(())
    }
}
