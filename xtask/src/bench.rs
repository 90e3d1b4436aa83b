//! `cargo xtask bench`: the programs as packages have them, and what measures them.

use std::ffi::OsString;
use std::process::Command;

use crate::process;

/// Builds and measures. With `--smoke` the programs that the tests use will do, since nothing is measured.
pub(crate) fn run(arguments: &[OsString]) -> anyhow::Result<()> {
    if arguments.iter().any(|argument| argument == "--smoke" || argument == "--help") {
        process::build()?;
        return process::run(&mut process::built("bench", arguments));
    }
    // As the package is built: what the bench itself needs must not add to what the programs of a host contain.
    for packages in
        [&["eso-vm-server", "eso-vm-applier"][..], &["eso-control-plane", "tests-bench", "tests-fleet"]]
    {
        let packages = packages.iter().flat_map(|package| ["--package", package]);
        let words: Vec<&str> = ["build", "--release"].into_iter().chain(packages).collect();
        process::run(&mut process::cargo(&words))?;
    }
    let program = process::target().join("release").join("bench");
    process::run(Command::new(program).args(arguments))
}
