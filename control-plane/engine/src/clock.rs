//! The clock that grace accrues by: it moves by the smaller of wall-clock and monotonic progress, so neither a
//! wall clock that jumps ahead nor a suspended machine makes time pass. It goes on after a restart where it was.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use lifecycle::Millis;
use protocol::UnixMillis;

/// Shared by everything that asks for the time.
#[derive(Clone)]
pub(crate) struct Clock(Arc<Mutex<State>>);

struct State {
    at: Millis,
    wall: UnixMillis,
    steady: Instant,
    /// The wall-clock time of this clock's beginning, as people were last told.
    told: Option<UnixMillis>,
}

/// Both clocks are read one after the other: within this a point stays where people were told that it is.
const TOLD_MS: u64 = 1_000;

impl Clock {
    /// Goes on from `at`.
    pub(crate) fn from(at: Millis) -> Self {
        Self(Arc::new(Mutex::new(State { at, wall: UnixMillis::now(), steady: Instant::now(), told: None })))
    }

    pub(crate) fn now(&self) -> Millis {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).advance(UnixMillis::now(), Instant::now())
    }

    /// The wall-clock time of a point on this clock, for people: who asks twice is told the same.
    pub(crate) fn told(&self, at: Millis) -> UnixMillis {
        let beginning = self.wall(Millis(0));
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        UnixMillis(state.tell(beginning).0.saturating_add(at.0))
    }

    /// The wall-clock time of a point on this clock.
    pub(crate) fn wall(&self, at: Millis) -> UnixMillis {
        let now = self.now();
        let wall = UnixMillis::now();
        UnixMillis(wall.0.saturating_sub(now.since(at).0).saturating_add(at.since(now).0))
    }
}

impl State {
    fn tell(&mut self, beginning: UnixMillis) -> UnixMillis {
        let near = |told: &UnixMillis| told.0.abs_diff(beginning.0) <= TOLD_MS;
        *self.told.insert(self.told.filter(near).unwrap_or(beginning))
    }

    fn advance(&mut self, wall: UnixMillis, steady: Instant) -> Millis {
        let steady_ms = steady.saturating_duration_since(self.steady).as_millis();
        let steady_ms = u64::try_from(steady_ms).unwrap_or(u64::MAX);
        let passed = wall.ms_since(self.wall).min(steady_ms);
        if passed == 0 && wall >= self.wall {
            // Less than a millisecond: counted with the next.
            return self.at;
        }
        self.at = self.at.plus(Millis(passed));
        self.steady =
            if passed == steady_ms { self.steady + std::time::Duration::from_millis(passed) } else { steady };
        self.wall = wall;
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn time_is_the_smaller_of_both_clocks_and_never_goes_back() {
        let start = Instant::now();
        let mut state = State { at: Millis(5), wall: UnixMillis(1_000), steady: start, told: None };
        let after = |ms| start + Duration::from_millis(ms);
        assert_eq!(state.advance(UnixMillis(1_100), after(100)), Millis(105));
        assert_eq!(state.advance(UnixMillis(90_000), after(150)), Millis(155), "the wall clock jumped ahead");
        assert_eq!(state.advance(UnixMillis(50), after(160)), Millis(155), "it jumped back");
        assert_eq!(state.advance(UnixMillis(60), after(170)), Millis(165));
        assert_eq!(state.advance(UnixMillis(70), after(9_000)), Millis(175), "it stood still");
    }

    #[test]
    fn who_asks_twice_is_told_the_same_unless_a_clock_was_set() {
        let mut state = State { at: Millis(0), wall: UnixMillis(0), steady: Instant::now(), told: None };
        for (beginning, told) in [(50_000, 50_000), (50_001, 50_000), (49_200, 50_000), (90_000, 90_000)] {
            assert_eq!(state.tell(UnixMillis(beginning)), UnixMillis(told));
        }
    }

    #[test]
    fn many_looks_lose_no_time() {
        let start = Instant::now();
        let mut state = State { at: Millis(0), wall: UnixMillis(0), steady: start, told: None };
        for half in 0..2_000_u64 {
            state.advance(UnixMillis(half / 2), start + Duration::from_micros(half * 500));
        }
        assert!(state.at.0 >= 990, "{:?}", state.at);
    }
}
