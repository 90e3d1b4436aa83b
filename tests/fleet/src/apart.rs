//! A test in process and mount namespaces of its own.
//!
//! Every applier looks at all processes of its machine, several times a second while an old version may be in use.
//! With hundreds of appliers on one machine that is most of what a test costs, so the machine of a test holds its own
//! processes only, which also takes all of them along when it ends.

use std::process::{Command, ExitStatus, Stdio};

/// Set for the inner run.
const INSIDE: &str = "ESO_FLEET_APART";

/// Without root, root of a new user namespace makes the rest. See there.
const OWN_ROOT: &str = include_str!("own-root.sh");

/// Runs the calling test once more in namespaces of its own, by its name. True when that was done, and passed, and
/// where there are no namespaces to be had, so that the test is left out: the caller returns then. False inside.
///
/// # Panics
///
/// When the inner run failed.
pub fn apart(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    let possible = in_namespaces().arg("true").stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        let needs = "needs root, or a kernel that lets everybody have user namespaces";
        tests_needs::left_out(&format!("{test}: {needs}"));
        return true;
    }
    let status = std::env::current_exe().and_then(|program| {
        in_namespaces().arg(program).args([test, "--exact", "--nocapture"]).env(INSIDE, "1").status()
    });
    assert!(
        status.as_ref().is_ok_and(ExitStatus::success),
        "{test} failed in its own namespaces: {status:?}"
    );
    true
}

/// Runs what is added to it.
fn in_namespaces() -> Command {
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--kill-child"]);
    if user.is_root() {
        unshare.arg("--mount-proc");
    } else {
        unshare.args(["--mount", "--user", "--map-root-user", "sh", "-c", OWN_ROOT, "own-root"]);
        unshare.args([user.to_string(), group.to_string()]);
        // `pivot_root` stands where only root looks.
        let path = std::env::var("PATH").unwrap_or_default();
        unshare.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    }
    unshare
}
