//! Not hammering a server that refuses us: many servers lock an account after a few wrong passwords.

use std::time::{Duration, Instant};

/// Opens after so many failures in a row; then lets one try through each `rest`, or at once when the credential
/// changed.
#[derive(Debug, Clone)]
pub struct CircuitBreaker {
    failures: u32,
    failures_max: u32,
    rest: Duration,
    opened: Option<Instant>,
}

impl CircuitBreaker {
    /// Opens after `failures_max` failures in a row.
    pub const fn new(failures_max: u32, rest: Duration) -> Self {
        Self { failures: 0, failures_max, rest, opened: None }
    }

    /// Whether to try now.
    pub fn may_try(&mut self, now: Instant) -> bool {
        match self.opened {
            None => true,
            Some(opened) if now.duration_since(opened) >= self.rest => {
                self.opened = Some(now);
                true
            }
            Some(_) => false,
        }
    }

    /// It worked.
    pub const fn succeeded(&mut self) {
        self.failures = 0;
        self.opened = None;
    }

    /// It did not.
    pub const fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.failures_max {
            self.opened = Some(now);
        }
    }

    /// A new credential is there: what the old one did says nothing about it.
    pub const fn credential_changed(&mut self) {
        self.succeeded();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_credential_is_not_tried_again_and_again_but_a_new_one_is_tried_at_once() {
        let mut breaker = CircuitBreaker::new(3, Duration::from_secs(30));
        let now = Instant::now();
        for _ in 0..3 {
            assert!(breaker.may_try(now));
            breaker.failed(now);
        }
        assert!(!breaker.may_try(now + Duration::from_secs(29)));
        assert!(breaker.may_try(now + Duration::from_secs(30)));
        assert!(!breaker.may_try(now + Duration::from_secs(31)));
        breaker.credential_changed();
        assert!(breaker.may_try(now));
    }
}
