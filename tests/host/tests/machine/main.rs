//! Real systemd hosts, each with its own PID 1, installed from the package, and a control plane outside.
//!
//! Boots machines: needs root and the Debian packages of [`tests_host::needs`], and takes minutes. With `CI=true` what
//! is missing is a failure; otherwise the tests say what they leave out.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on should stop"
)]

mod boot;
mod control;
mod crates;
mod host;
mod package;
mod policy;
mod road;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tests_host::{Base, Package};

/// What all tests of this program share.
struct Ready {
    base: Base,
    package: Package,
}

/// Whether machines can be booted here; what they are made of, once.
fn ready() -> Option<&'static Ready> {
    static READY: OnceLock<Ready> = OnceLock::new();
    if let Some(missing) = tests_host::needs::missing() {
        tests_needs::left_out(&format!("real systemd hosts: {missing}"));
        return None;
    }
    Some(READY.get_or_init(|| Ready { base: Base::ready().unwrap(), package: package::build().unwrap() }))
}

/// Looks again and again until there is something.
fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_or(|| what.to_owned(), look)
}

/// The same, with words that are found when it was in vain.
fn until_or<T>(what: impl FnOnce() -> String, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_mins(2);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {}", what());
        std::thread::sleep(Duration::from_millis(50));
    }
}
