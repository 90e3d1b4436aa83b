//! Programs that cargo builds, and where they are.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The workspace's own folder.
pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Cargo, in the workspace's folder.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// Runs a command to its end; what it printed. What it says on the way goes to whoever looks.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("failed to start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?} ended with {}:\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(said)
}

/// Builds the test `name` of a package, and says where it is.
pub fn test_program(package: &str, name: &str) -> anyhow::Result<PathBuf> {
    // All packages at once, as everything else is built: then features are the same, and nothing is built twice.
    executable(cargo().args(["test", "--workspace", "--no-run", "--test", name]), package, name, true)
}

/// Programs that can be told to die or to fail at a step. No package has these features.
pub const FAILPOINTS: &str =
    "eso-vm-applier/failpoints,engine/failpoints,eso-control-plane/failpoints,tests-fleet/failpoints";

/// Builds the applier with [`FAILPOINTS`] and says where it is. It lies where the one without lay.
pub fn applier_with_failpoints() -> anyhow::Result<PathBuf> {
    // Its test `host` has its programs built, as those who run that test build them.
    let mut build = cargo();
    build.args(["test", "--workspace", "--test", "host", "--features", FAILPOINTS, "--no-run"]);
    executable(&mut build, "eso-vm-applier", "eso-vm-applier", false)
}

/// Builds, and finds a program or a test of a package among what was built.
fn executable(cargo: &mut Command, package: &str, name: &str, is_test: bool) -> anyhow::Result<PathBuf> {
    let said = run(cargo.args(["--quiet", "--message-format=json"]))?;
    let messages = said.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut found = messages.filter(|message| {
        // `path+file:///folder/of/package#name@version`, the name only where it is not the folder's.
        let id = message["package_id"].as_str().unwrap_or_default();
        let folder = id.split('#').next().and_then(|path| Path::new(path).file_name());
        let of_package = id.contains(&format!("#{package}@")) || folder == Some(OsStr::new(package));
        of_package && message["target"]["name"] == name && message["profile"]["test"] == is_test
    });
    let path = found.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    path.with_context(|| format!("cargo built no {name} of {package}"))
}
