//! A test in process and mount namespaces of its own.
//!
//! Every applier looks at all processes of its machine, several times a second while an old version may be in use.
//! With hundreds of appliers on one machine that is most of what a test costs, so where the kernel permits, the
//! machine of a test holds its own processes only, which also takes all of them along when it ends.

use std::process::{Command, ExitStatus, Stdio};

/// Set for the inner run.
const INSIDE: &str = "ESO_FLEET_APART";

/// Runs the calling test once more in namespaces of its own, by its name. True when that was done, and passed: the
/// caller returns then. False inside, and where there are no namespaces to be had.
///
/// # Panics
///
/// When the inner run failed.
pub fn apart(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    let mut flags = vec!["--pid", "--fork", "--kill-child", "--mount-proc"];
    if !nix::unistd::geteuid().is_root() {
        flags.extend(["--user", "--map-current-user"]);
    }
    let possible = Command::new("unshare").args(&flags).arg("true").stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        println!("no namespaces of its own: the test runs beside everything else on this machine");
        return false;
    }
    let program = std::env::current_exe();
    let status = program.and_then(|program| {
        Command::new("unshare")
            .args(&flags)
            .arg(program)
            .args([test, "--exact", "--nocapture"])
            .env(INSIDE, "1")
            .status()
    });
    assert!(
        status.as_ref().is_ok_and(ExitStatus::success),
        "{test} failed in its own namespaces: {status:?}"
    );
    true
}
