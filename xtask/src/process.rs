//! Starting other programs, and saying what failed.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

/// The workspace's own folder.
pub(crate) fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Cargo, in the workspace's folder.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root()).env(tests_needs::LEFT_OUT, left_out());
    command
}

/// Where tests write what they left out.
pub(crate) fn left_out() -> PathBuf {
    target().join("left-out")
}

/// Builds every program, and nothing else.
pub(crate) fn build() -> anyhow::Result<()> {
    run(&mut cargo(&["build", "--workspace", "--bins"]))
}

/// A program of the workspace that was built before.
pub(crate) fn built<S: AsRef<OsStr>>(name: &str, arguments: &[S]) -> Command {
    let mut command = Command::new(target().join("debug").join(name));
    command.args(arguments).current_dir(root());
    command
}

/// Runs it with our own input and output. An exit status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("failed to start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}
