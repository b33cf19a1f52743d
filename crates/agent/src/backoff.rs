//! Pauses between attempts that fail.

use std::time::Duration;

/// Pauses between attempts that fail: twice as long each time, up to a bound, and never in step with other nodes.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// The first pause and the longest one, before chance takes something away.
    pub(crate) fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { first, longest, failures: 0 }
    }

    /// The next pause; `chance` in 0..1 takes up to half of it away.
    pub(crate) fn pause(&mut self, chance: f64) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        self.first.saturating_mul(factor).min(self.longest).mul_f64(1.0 - chance / 2.0)
    }

    /// Whether nothing has failed since it worked last.
    pub(crate) fn is_fresh(&self) -> bool {
        self.failures == 0
    }

    /// It worked: the next pause is the first one.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        let longest = Duration::from_secs(15);
        let mut backoff = Backoff::new(Duration::from_millis(500), longest);
        let pauses: Vec<u128> = (0..8).map(|_| backoff.pause(0.0).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 15000, 15000, 15000]);
        backoff.failures = 1000;
        assert_eq!(backoff.pause(1.0), longest / 2);
        backoff.reset();
        assert_eq!(backoff.pause(0.0), Duration::from_millis(500));
    }
}
