//! A limit for log lines whose number others choose, such as peers or callers: one line a second, and a count of the others.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// At most one line a second.
#[derive(Debug)]
pub struct LineLimit {
    limiter: DefaultDirectRateLimiter,
    /// Lines that were not logged since the last one.
    suppressed: AtomicU64,
}

impl Default for LineLimit {
    fn default() -> Self {
        let limiter = RateLimiter::direct(Quota::per_second(NonZeroU32::MIN));
        Self { limiter, suppressed: AtomicU64::new(0) }
    }
}

impl LineLimit {
    /// Whether a line may be logged, and how many could not be before it.
    pub fn next(&self) -> Option<u64> {
        match self.limiter.check() {
            Ok(()) => Some(self.suppressed.swap(0, Ordering::Relaxed)),
            Err(_) => {
                self.suppressed.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_has_the_number_of_the_others() {
        let limit = LineLimit::default();
        assert_eq!((limit.next(), limit.next(), limit.next()), (Some(0), None, None));
        while limit.limiter.check().is_err() {}
        assert_eq!(limit.suppressed.load(Ordering::Relaxed), 2);
    }
}
