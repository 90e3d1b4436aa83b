//! What a test needs that a machine may lack. A test that cannot run says so past the harness, which hides what a passing
//! test prints, and leaves a line for the list at the end of `cargo xtask test`. With `CI=true` it fails.
#![allow(clippy::missing_panics_doc, reason = "a test fails by panicking")]

use std::io::Write as _;

/// Names the file to which a line is added for everything that was left out.
pub const LEFT_OUT: &str = "ESO_TESTS_LEFT_OUT";

/// Whether what is left out is a failure.
pub fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// This is left out, for want of something. With `CI=true` a failure.
pub fn left_out(what: &str) {
    assert!(!is_ci(), "CI=true, and this would be left out: {what}");
    // Whoever reads neither of the two is told by nobody.
    let _ = writeln!(std::io::stderr(), "left out: {what}");
    let Some(path) = std::env::var_os(LEFT_OUT) else { return };
    let file = std::fs::File::options().create(true).append(true).open(path);
    let _ = file.and_then(|mut file| file.write_all(format!("{what}\n").as_bytes()));
}

/// Whether it is there; where it is not, what is left out without it.
pub fn is_there(it: bool, what: &str) -> bool {
    if !it {
        left_out(what);
    }
    it
}
