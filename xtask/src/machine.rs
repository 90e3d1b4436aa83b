//! What this machine can do, and what can be installed on it.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::process;

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether a part left out is a failure.
pub(crate) fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// A Debian package and a path that it brings.
pub(crate) struct Package {
    /// Its name for apt-get.
    pub(crate) name: &'static str,
    /// There when it is installed.
    pub(crate) brings: &'static str,
}

/// What the tests use beyond the toolchain.
pub(crate) const PACKAGES: &[Package] = &[
    Package { name: "postgresql-15", brings: "/usr/lib/postgresql/15/bin/postgres" },
    Package { name: "python3-venv", brings: "/usr/share/doc/python3-venv" },
    Package { name: "util-linux", brings: "/usr/bin/setpriv" },
    Package { name: "strace", brings: "/usr/bin/strace" },
    Package { name: "systemd-container", brings: "/usr/bin/systemd-nspawn" },
    Package { name: "mmdebstrap", brings: "/usr/bin/mmdebstrap" },
];

/// Those of them that are missing.
pub(crate) fn missing() -> Vec<&'static str> {
    PACKAGES
        .iter()
        .filter(|package| !Path::new(package.brings).exists())
        .map(|package| package.name)
        .collect()
}

/// Installs what is missing, as root on a Debian machine.
pub(crate) fn install_missing() -> anyhow::Result<()> {
    let missing = missing();
    if missing.is_empty() || !is_root() || !has_apt() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    process::run(Command::new("apt-get").args(["update", "-q"]).stdout(Stdio::null()))?;
    process::run(
        Command::new("apt-get")
            .args(["install", "-q", "-y", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null()),
    )
}

fn has_apt() -> bool {
    Path::new("/usr/bin/apt-get").exists()
}
