//! What callers may ask: governor's GCRA (a leaky bucket in one number), kept on our clock.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Reference as _;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::Limited;
use crate::clock::Clock;
use crate::settings::CallerLimit;

/// The limit of one caller, or of all who are anonymous together.
#[derive(Debug)]
pub struct CallerGate {
    limiter: Option<RateLimiter<NotKeyed, InMemoryState, Clock, NoOpMiddleware<Duration>>>,
    clock: Clock,
    quota: u32,
    per: Duration,
}

impl CallerGate {
    /// The gate as configured; without a limit it is always open.
    pub fn new(limit: Option<&CallerLimit>, clock: &Clock) -> Self {
        let limiter = limit.and_then(|limit| {
            let quota =
                Quota::with_period(limit.per.checked_div(limit.rate)?)?.allow_burst(NonZeroU32::new(limit.burst)?);
            Some(RateLimiter::direct_with_clock(quota, clock.clone()))
        });
        Self {
            limiter,
            clock: clock.clone(),
            quota: limit.map_or(0, |limit| limit.rate),
            per: limit.map_or(Duration::ZERO, |limit| limit.per),
        }
    }

    /// The gate as configured, as if a burst had just come through.
    pub fn spent(limit: Option<&CallerLimit>, clock: &Clock) -> Self {
        let gate = Self::new(limit, clock);
        if let (Some(limiter), Some(burst)) = (&gate.limiter, limit.and_then(|limit| NonZeroU32::new(limit.burst))) {
            // A whole burst is what a new limiter lets through.
            let _ = limiter.check_n(burst);
        }
        gate
    }

    /// Lets one request through.
    ///
    /// # Errors
    /// Where the caller is over its limit.
    pub fn admit(&self) -> Result<(), Limited> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        limiter.check().map_err(|denied| {
            let now = self.clock.boot().as_duration();
            let retry_after = denied.earliest_possible().duration_since(now).into();
            Limited { quota: self.quota, per: self.per, retry_after }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_gets_its_burst_then_its_rate() {
        let (clock, hands) = Clock::shifted();
        let limit = CallerLimit { rate: 2, per: Duration::from_secs(100), burst: 3 };
        let gate = CallerGate::new(Some(&limit), &clock);
        assert!((0..3).all(|_| gate.admit().is_ok()));
        let limited = gate.admit().unwrap_err();
        assert_eq!((limited.quota, limited.per), (2, Duration::from_secs(100)));
        assert!(limited.retry_after <= Duration::from_secs(50), "{limited:?}");
        hands.advance(limited.retry_after + Duration::from_millis(1));
        assert!(gate.admit().is_ok());
        assert!(gate.admit().is_err());
    }

    #[test]
    fn a_spent_gate_opens_at_its_rate() {
        let (clock, hands) = Clock::shifted();
        let limit = CallerLimit { rate: 2, per: Duration::from_secs(100), burst: 3 };
        let gate = CallerGate::spent(Some(&limit), &clock);
        assert!(gate.admit().is_err());
        hands.advance(Duration::from_secs(51));
        assert!(gate.admit().is_ok() && gate.admit().is_err());
        assert!(CallerGate::spent(None, &clock).admit().is_ok());
    }

    #[test]
    fn without_a_limit_everybody_comes_in() {
        let gate = CallerGate::new(None, &Clock::system());
        assert!((0..10_000).all(|_| gate.admit().is_ok()));
    }
}
