//! `cargo xtask demo`: builds, then becomes the demo.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;

use anyhow::Context;

use crate::process;

/// Returns only when the demo cannot be started. Ctrl-C reaches the demo alone, which then ends everything in order.
pub(crate) fn run(arguments: &[OsString]) -> anyhow::Result<()> {
    process::build()?;
    Err(process::built("demo", arguments).exec()).context("failed to start the demo")
}
