//! Tests that need fanotify say so when it cannot be had, and fail in CI.

use std::io::Write;

use opens::Capability;

/// Whether the test can run here. Loud when not.
pub(crate) fn sees_opens() -> bool {
    let capability = Capability::probe();
    if !capability.sees_opens() {
        assert!(std::env::var_os("CI").is_none(), "CI must run this with fanotify: {capability}");
        // Not through the test's own output, which nobody sees when it passes.
        let _ = writeln!(std::io::stderr(), "left out: {capability}; run it as root");
    }
    capability.sees_opens()
}
