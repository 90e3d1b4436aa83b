//! Tests that need fanotify say so when it cannot be had, and fail in CI.

use opens::Capability;

/// Whether the test can run here. Loud when not.
pub(crate) fn sees_opens() -> bool {
    let capability = Capability::probe();
    tests_needs::is_there(capability.sees_opens(), &format!("opens that the kernel shows: {capability}"))
}
