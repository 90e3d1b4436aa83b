//! Regular restarts: a process or connection that lives for ever holds an old credential for ever.

use std::time::{Duration, Instant};

/// How long one life may last: the limit, shortened by up to a tenth so that a fleet does not restart at once.
#[derive(Debug, Clone, Copy)]
pub struct Lifetime {
    ends: Instant,
}

impl Lifetime {
    /// Begins now. `random` is a number from 0 to 1 that you draw.
    pub fn begin(now: Instant, longest: Duration, random: f64) -> Self {
        Self { ends: now + longest.mul_f64(1.0 - random.clamp(0.0, 1.0) / 10.0) }
    }

    /// Whether to finish the work at hand and end; for a pooled connection: whether to close it when it is returned.
    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_end_within_the_last_tenth_and_not_all_at_once() {
        let now = Instant::now();
        let day = Duration::from_hours(24);
        for random in [0.0, 0.5, 1.0] {
            let life = Lifetime::begin(now, day, random);
            assert!(!life.is_over(now + day.mul_f64(0.89)));
            assert!(life.is_over(now + day));
        }
        assert!(Lifetime::begin(now, day, 1.0).is_over(now + day.mul_f64(0.91)));
    }
}
