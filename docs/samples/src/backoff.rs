//! Trying again without a stampede.

use std::time::Duration;

/// Pauses between tries: doubled each time, never above the limit, and drawn from the upper half so that a thousand
/// clients that failed together do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// Begins with `first`, ends at `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, first, longest }
    }

    /// The next pause. `random` is a number from 0 to 1 that you draw.
    pub fn pause(&mut self, random: f64) -> Duration {
        let whole = self.next;
        self.next = whole.saturating_mul(2).min(self.longest);
        whole.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// It worked: begin anew.
    pub const fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_limit_and_begin_anew_after_success() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let pauses: Vec<u128> = (0..6).map(|_| backoff.pause(1.0).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.pause(0.0).as_millis(), 50);
    }
}
