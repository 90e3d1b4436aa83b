//! The two clocks of this host, and the id of its boot.

use lifecycle::Millis;
use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since this boot, sleep included (`CLOCK_BOOTTIME`).
pub(crate) fn boot() -> Millis {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let millis = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0);
    Millis(seconds.saturating_mul(1000).saturating_add(millis))
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
