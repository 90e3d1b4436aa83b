//! The two clocks of this host, the id of its boot, and how far its clock is off the control plane's.

use std::collections::VecDeque;
use std::time::Duration;

use lifecycle::Millis;
use protocol::UnixMillis;
use protocol::limit::ARM_CLOCK_OFF_MS_MAX;
use rustix::time::{ClockId, clock_gettime};

/// How long a message says something of the sender's clock: long enough to have seen one that came fast, short enough
/// for clocks not to drift apart meanwhile.
const SAID_MS: Millis = Millis(600_000);
/// How many messages are remembered.
const SAMPLES_MAX: usize = 32;
/// How old an `arm` may be. What travels for longer is told when it is due instead.
const ARM_AGE_MS_MAX: i64 = 10_000;

/// What signed messages of late say of the sender's clock.
///
/// A message says when it was sent, and it cannot have come before that: so our clock is ahead of the sender's at most
/// by what it seems to be for the fastest message of late. That separates a clock that is off from a network that is
/// slow: the first shows in all messages, the second only in those that were slow. The times of sending are kept
/// against the boot clock, so that setting ours right counts at once.
#[derive(Debug, Default)]
pub(crate) struct SenderClock {
    /// When each came, and how much later the boot clock said that it was than the time of its sending. Each seems
    /// faster than all that came after it.
    samples: VecDeque<(Millis, i64)>,
}

impl SenderClock {
    /// A verified message came.
    pub(crate) fn heard(&mut self, sent_at: UnixMillis, boot: Millis) {
        let later = UnixMillis(boot.0).ms_ahead_of(sent_at);
        self.samples.retain(|(came, of_it)| boot.since(*came) <= SAID_MS && *of_it < later);
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_back();
        }
        self.samples.push_back((boot, later));
    }

    /// How many milliseconds ago an agreement was sent that has come just now, for an instant counted from then. None
    /// when the clocks cannot agree on one.
    pub(crate) fn age(&self, sent_at: UnixMillis, now: UnixMillis, boot: Millis) -> Option<Millis> {
        let age = now.ms_ahead_of(sent_at);
        let of_late = self.samples.iter().filter(|(came, _)| boot.since(*came) <= SAID_MS);
        let ahead = now.ms_ahead_of(UnixMillis(boot.0));
        let fastest = of_late.map(|(_, later)| later.saturating_add(ahead)).min().unwrap_or(age).min(age);
        let agree = fastest.unsigned_abs() <= ARM_CLOCK_OFF_MS_MAX;
        (agree && age <= ARM_AGE_MS_MAX).then_some(Millis(u64::try_from(age).unwrap_or(0)))
    }
}

/// Milliseconds since this boot, sleep included (`CLOCK_BOOTTIME`).
pub(crate) fn boot() -> Millis {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let millis = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0);
    Millis(seconds.saturating_mul(1000).saturating_add(millis))
}

/// Waits until this millisecond is over, where it is the present one.
pub(crate) fn pass(moment: Millis) {
    while boot() == moment {
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// A moment of the monotonic clock, which stands still while the machine sleeps, on the boot clock: never earlier
/// than it was.
pub(crate) fn boot_of_monotonic(monotonic_ms: u64) -> Millis {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let now_ms =
        seconds.saturating_mul(1000).saturating_add(u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0));
    let slept = boot().since(Millis(now_ms.saturating_add(1)));
    Millis(monotonic_ms).plus(slept)
}

/// The kernel's id of this boot. Tests that simulate a boot name another.
pub(crate) fn boot_id() -> String {
    #[cfg(feature = "failpoints")]
    if let Ok(id) = std::env::var("ESO_BOOT_ID") {
        return id;
    }
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
    const BOOT: Millis = Millis(5_000_000);

    #[test]
    fn a_millisecond_is_waited_out_and_no_longer() {
        for _ in 0..20 {
            let now = boot();
            pass(now);
            assert!(boot() > now);
        }
        // What another boot left in the journal is waited for by nobody.
        pass(boot().plus(Millis::seconds(1_000_000)));
    }

    /// A message that was sent so long ago by the sender's clock, and comes so long before `NOW`.
    fn heard(clock: &mut SenderClock, seems_ms: i64, before_ms: u64) {
        let came = UnixMillis(NOW.0 - before_ms);
        clock.heard(at(came, seems_ms), Millis(BOOT.0 - before_ms));
    }

    fn at(came: UnixMillis, seems_ms: i64) -> UnixMillis {
        UnixMillis(came.0.checked_add_signed(-seems_ms).unwrap())
    }

    fn age(clock: &SenderClock, seems_ms: i64) -> Option<u64> {
        clock.age(at(NOW, seems_ms), NOW, BOOT).map(|age| age.0)
    }

    #[test]
    fn a_clock_that_is_off_either_way_agrees_on_no_instant() {
        let clock = SenderClock::default();
        assert_eq!(age(&clock, 0), Some(0));
        assert_eq!(age(&clock, 1_000), Some(1_000));
        assert_eq!(age(&clock, -1_000), Some(0));
        assert_eq!(age(&clock, 1_001), None, "nothing says that it was only slow");
        assert_eq!(age(&clock, -1_001), None);
        assert_eq!(age(&clock, 9_000), None);
    }

    #[test]
    fn a_slow_message_is_no_clock_that_is_off() {
        let mut clock = SenderClock::default();
        heard(&mut clock, 4_000, 3_000);
        assert_eq!(age(&clock, 4_000), None, "all messages seem as slow");
        heard(&mut clock, 30, 2_000);
        heard(&mut clock, 6_000, 1_000);
        assert_eq!(age(&clock, 4_000), Some(4_000), "one came fast, so the clocks agree");
        assert_eq!(age(&clock, 10_001), None);
    }

    #[test]
    fn a_slow_message_does_not_hide_a_clock_that_is_behind() {
        let mut clock = SenderClock::default();
        heard(&mut clock, -2_000, 1_000);
        assert_eq!(age(&clock, 500), None);
    }

    #[test]
    fn what_was_said_long_ago_or_before_the_clock_was_set_right_says_nothing() {
        let mut clock = SenderClock::default();
        heard(&mut clock, 30, 600_001);
        assert_eq!(age(&clock, 4_000), None);
        // Our clock was four seconds ahead and is right now.
        let mut clock = SenderClock::default();
        clock.heard(UnixMillis(NOW.0 - 1_000), Millis(BOOT.0 - 1_000));
        assert_eq!(age(&clock, 20), Some(20));
        assert_eq!(clock.age(NOW, UnixMillis(NOW.0 + 4_000), BOOT), None, "while it was ahead");
    }

    #[test]
    fn only_so_many_messages_are_remembered_and_the_fastest_is_among_them() {
        let mut clock = SenderClock::default();
        heard(&mut clock, 10, 5_000);
        for n in 0..200 {
            heard(&mut clock, 100 + n, 4_000 - n.unsigned_abs());
        }
        assert!(clock.samples.len() <= SAMPLES_MAX);
        assert_eq!(age(&clock, 3_000), Some(3_000));
    }
}
