//! Pauses between attempts to reach the other end.

use std::time::Duration;

/// Pauses that double from the first to the longest, each drawn between its half and its whole, so that many who
/// lost the same peer at once do not return at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    first_ms: u64,
    longest_ms: u64,
    attempts: u32,
}

impl Backoff {
    /// The first pause and the longest one.
    pub const fn new(first_ms: u64, longest_ms: u64) -> Self {
        Self { first_ms, longest_ms, attempts: 0 }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let doubled =
            self.first_ms.saturating_mul(1_u64.checked_shl(self.attempts.min(32)).unwrap_or(u64::MAX));
        self.attempts = self.attempts.saturating_add(1);
        let whole = doubled.clamp(1, self.longest_ms.max(1));
        Duration::from_millis(whole / 2 + random() % (whole / 2 + 1))
    }

    /// The other end answered: begin again with the first pause.
    pub const fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// Spreads pauses; nothing secret depends on it, so no random bytes at all would do no harm.
fn random() -> u64 {
    let mut bytes = [0; 8];
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_the_longest_and_begin_again() {
        let mut backoff = Backoff::new(100, 1000);
        for (low, high) in [(50, 100), (100, 200), (200, 400), (400, 800), (500, 1000), (500, 1000)] {
            let pause = backoff.pause().as_millis();
            assert!((low..=high).contains(&pause), "{pause} not in {low}..={high}");
        }
        for _ in 0..100 {
            assert!(backoff.pause().as_millis() <= 1000);
        }
        backoff.reset();
        assert!(backoff.pause().as_millis() <= 100);
    }
}
