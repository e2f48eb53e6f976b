//! The rate limit of a caller: governor's GCRA (a leaky bucket as one number), on our clock.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Reference as _;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::Limited;
use crate::clock::Clock;
use crate::settings::CallerLimit;

/// The limit of one caller, or of all anonymous callers together.
#[derive(Debug)]
pub struct CallerLimiter {
    limiter: Option<RateLimiter<NotKeyed, InMemoryState, Clock, NoOpMiddleware<Duration>>>,
    clock: Clock,
    quota: u32,
    per: Duration,
}

impl CallerLimiter {
    /// The limiter as configured; without a limit it admits everything.
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

    /// The limiter as configured, as if a burst had just been admitted.
    pub fn exhausted(limit: Option<&CallerLimit>, clock: &Clock) -> Self {
        let new = Self::new(limit, clock);
        if let (Some(limiter), Some(burst)) = (&new.limiter, limit.and_then(|limit| NonZeroU32::new(limit.burst))) {
            // A whole burst is what a new limiter admits.
            let _ = limiter.check_n(burst);
        }
        new
    }

    /// Admits one request.
    ///
    /// # Errors
    /// If the caller is over its limit.
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
        let limiter = CallerLimiter::new(Some(&limit), &clock);
        assert!((0..3).all(|_| limiter.admit().is_ok()));
        let limited = limiter.admit().unwrap_err();
        assert_eq!((limited.quota, limited.per), (2, Duration::from_secs(100)));
        assert!(limited.retry_after <= Duration::from_secs(50), "{limited:?}");
        hands.advance(limited.retry_after + Duration::from_millis(1));
        assert!(limiter.admit().is_ok());
        assert!(limiter.admit().is_err());
    }

    #[test]
    fn an_exhausted_limiter_admits_at_its_rate() {
        let (clock, hands) = Clock::shifted();
        let limit = CallerLimit { rate: 2, per: Duration::from_secs(100), burst: 3 };
        let limiter = CallerLimiter::exhausted(Some(&limit), &clock);
        assert!(limiter.admit().is_err());
        hands.advance(Duration::from_secs(51));
        assert!(limiter.admit().is_ok() && limiter.admit().is_err());
        assert!(CallerLimiter::exhausted(None, &clock).admit().is_ok());
    }

    #[test]
    fn without_a_limit_everything_is_admitted() {
        let limiter = CallerLimiter::new(None, &Clock::system());
        assert!((0..10_000).all(|_| limiter.admit().is_ok()));
    }
}
