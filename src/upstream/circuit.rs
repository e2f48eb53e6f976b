//! What is kept of a tenant's dealings with upstream: attempts under way, whether it is worth asking, and retries.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::breaker::{Admission, Breaker, HUNG, Health};
use super::retry::RetryBudget;
use crate::clock::Clock;

/// The circuit of one tenant.
#[derive(Debug)]
pub struct Circuit {
    max_inflight: usize,
    inflight: Arc<Semaphore>,
    /// Attempts under way that take longer than [`HUNG`].
    hung: AtomicUsize,
    /// Told when nothing may be sent any more.
    shut: Notify,
    breaker: Mutex<Breaker>,
    retries: RetryBudget,
    clock: Clock,
}

/// Why nothing may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shut {
    /// The breaker is open, for so long.
    Open(Duration),
    /// As many attempts as are allowed are under way, and stay so.
    Crowded,
}

impl Circuit {
    pub(super) fn new(max_inflight: u32, clock: &Clock) -> Self {
        let max_inflight = usize::try_from(max_inflight).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS);
        Self {
            max_inflight,
            inflight: Arc::new(Semaphore::new(max_inflight)),
            hung: AtomicUsize::new(0),
            shut: Notify::new(),
            breaker: Mutex::new(Breaker::new()),
            retries: RetryBudget::new(),
            clock: clock.clone(),
        }
    }

    /// Whether an attempt could be made now.
    ///
    /// # Errors
    /// Where the breaker is open, or every attempt under way hangs.
    pub fn check(&self) -> Result<(), Shut> {
        if let Some(wait) = self.breaker.lock().refusal(self.clock.boot()) {
            return Err(Shut::Open(wait));
        }
        if self.all_hang() { Err(Shut::Crowded) } else { Ok(()) }
    }

    /// Waits until no attempt may be made: nobody should wait for leave then.
    pub async fn shut(&self) -> Shut {
        loop {
            let mut told = std::pin::pin!(self.shut.notified());
            told.as_mut().enable();
            if let Err(shut) = self.check() {
                return shut;
            }
            told.await;
        }
    }

    fn all_hang(&self) -> bool {
        self.hung.load(Ordering::SeqCst) >= self.max_inflight
    }

    /// Begins an attempt, as soon as fewer than `upstream.max_inflight` are under way, and in `within`.
    ///
    /// # Errors
    /// Where that takes too long, all of them hang, or the breaker opened meanwhile.
    pub async fn begin(self: &Arc<Self>, within: Duration) -> Result<Attempt, Shut> {
        let permit = tokio::select! {
            biased;
            permit = tokio::time::timeout(within, Arc::clone(&self.inflight).acquire_owned()) => permit,
            shut = self.shut() => return Err(shut),
        };
        let permit = permit.ok().and_then(Result::ok).ok_or(Shut::Crowded)?;
        let admission = self.breaker.lock().admit(self.clock.boot()).map_err(Shut::Open)?;
        Ok(Attempt { circuit: Arc::clone(self), admission, told: false, hung: false, _permit: permit })
    }

    /// Whether the breaker is not closed.
    pub fn is_open(&self) -> bool {
        self.breaker.lock().is_open()
    }

    /// A first attempt of a read is made.
    pub fn first(&self) {
        self.retries.first(self.clock.boot());
    }

    /// Takes leave for a retry, if the tenant has some left.
    pub fn retry(&self) -> bool {
        self.retries.retry(self.clock.boot())
    }
}

/// An attempt under way. Dropped before it is told how it ended, it tells nothing of upstream.
#[derive(Debug)]
pub struct Attempt {
    circuit: Arc<Circuit>,
    admission: Admission,
    told: bool,
    hung: bool,
    _permit: OwnedSemaphorePermit,
}

impl Attempt {
    /// Runs the attempt to its end; `health` tells how that speaks of upstream, if it does. One that hangs is told of as
    /// unanswered at once, so that the next ones need not wait for it.
    pub async fn watch<T>(
        mut self,
        mut attempt: Pin<&mut impl Future<Output = T>>,
        health: impl FnOnce(&T) -> Option<Health>,
    ) -> T {
        let outcome = tokio::time::timeout(HUNG, attempt.as_mut()).await;
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(_) => {
                self.tell(Health::Unanswered);
                self.hung = true;
                self.circuit.hung.fetch_add(1, Ordering::SeqCst);
                if self.circuit.all_hang() {
                    self.circuit.shut.notify_waiters();
                }
                attempt.await
            }
        };
        if let Some(health) = health(&outcome) {
            self.tell(health);
        }
        outcome
    }

    fn tell(&mut self, health: Health) {
        if !std::mem::replace(&mut self.told, true) {
            let now = self.circuit.clock.boot();
            let mut breaker = self.circuit.breaker.lock();
            breaker.ended(self.admission, health, fastrand::f64(), now);
            if breaker.is_open() {
                self.circuit.shut.notify_waiters();
            }
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.told {
            let now = self.circuit.clock.boot();
            self.circuit.breaker.lock().given_up(self.admission, now);
        }
        if self.hung {
            self.circuit.hung.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn a_probe_that_tells_nothing_leaves_it_to_the_next() {
        let (clock, hands) = Clock::shifted();
        let circuit = Arc::new(Circuit::new(4, &clock));
        for _ in 0..5 {
            let attempt = circuit.begin(Duration::ZERO).await.unwrap();
            attempt.watch(pin!(std::future::ready(())), |()| Some(Health::Unanswered)).await;
        }
        assert!(matches!(circuit.check(), Err(Shut::Open(_))));
        hands.advance(Duration::from_secs(1));
        drop(circuit.begin(Duration::ZERO).await.unwrap());
        let silent = circuit.begin(Duration::ZERO).await.unwrap();
        silent.watch(pin!(std::future::ready(())), |()| None).await;
        let probe = circuit.begin(Duration::ZERO).await.unwrap();
        assert!(circuit.begin(Duration::ZERO).await.is_err(), "one at a time");
        probe.watch(pin!(std::future::ready(())), |()| Some(Health::Answered)).await;
        assert!(!circuit.is_open() && circuit.begin(Duration::ZERO).await.is_ok());
    }
}
