//! The package of a host, made of the programs as they are tested.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::built;

/// The release of cargo-deb that is installed where there is none.
const CARGO_DEB: &str = "cargo-deb@3.8.0";

/// The package of a host, and the programs that it was made of.
///
/// Its programs are the debug builds that all other tests run, stripped: units, scripts and metadata are the same, and
/// nothing needs to be built twice.
#[derive(Debug, Clone)]
pub struct Package {
    deb: PathBuf,
    programs: PathBuf,
}

impl Package {
    /// Builds all programs, and the package.
    pub fn build() -> anyhow::Result<Self> {
        built::run(built::cargo().args(["build", "--quiet", "--workspace", "--bins"]))?;
        Self::of_what_is_built()
    }

    /// The package of the programs that are there already.
    pub fn of_what_is_built() -> anyhow::Result<Self> {
        let deb = built::target().join("systemd-host/eso-vm-server.deb");
        fs::create_dir_all(built::target().join("systemd-host"))?;
        let mut make = Command::new(cargo_deb()?);
        // Without `--no-build` it would make a release.
        make.args(["--no-build", "--strip", "--fast", "--profile", "dev", "-p", "eso-vm-applier", "-o"]);
        built::run(make.arg(&deb).current_dir(built::workspace()))?;
        Ok(Self { deb, programs: built::target().join("debug") })
    }

    /// The package's file.
    pub fn deb(&self) -> &Path {
        &self.deb
    }

    /// A program, by its name.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// Every file in the package.
    pub fn unpack(&self, into: &Path) -> anyhow::Result<()> {
        built::run(Command::new("dpkg-deb").arg("-x").arg(&self.deb).arg(into)).map(drop)
    }
}

/// The installed one, else one of our own in the build directory: a debug build, which is there in a third of the time.
fn cargo_deb() -> anyhow::Result<PathBuf> {
    let installed = Command::new("cargo-deb").arg("--version").output();
    if installed.is_ok_and(|output| output.status.success()) {
        return Ok("cargo-deb".into());
    }
    let tools = built::target().join("tools");
    let own = tools.join("bin/cargo-deb");
    if !own.exists() {
        let mut install = built::cargo();
        install.args(["install", "--quiet", "--locked", "--debug", CARGO_DEB, "--root"]).arg(&tools);
        // Not among our own builds: another lock file, other features.
        install.env("CARGO_TARGET_DIR", tools.join("build"));
        built::run(&mut install).context("failed to install cargo-deb")?;
        let _ = fs::remove_dir_all(tools.join("build"));
    }
    Ok(own)
}
