//! One Debian in the build directory, over which every machine is an overlay.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};

use crate::built;

/// A Debian of the release that this machine runs, since it runs what this machine built. Nothing writes to it.
#[derive(Debug, Clone)]
pub struct Base {
    root: PathBuf,
}

impl Base {
    /// Makes it where it is not there yet, which takes a minute and mostly downloads.
    pub fn ready() -> anyhow::Result<Self> {
        let folder = built::target().join("systemd-host");
        fs::create_dir_all(&folder)?;
        // Two of us may want it at once.
        let lock = fs::File::create(folder.join("lock"))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        let release = release();
        let root = folder.join(&release);
        if !root.exists() {
            let unfinished = folder.join(format!("{release}.new"));
            if unfinished.exists() {
                fs::remove_dir_all(&unfinished)?;
            }
            let mut debian = Command::new("mmdebstrap");
            debian.args(["--quiet", "--variant=apt", "--include=systemd-sysv,dbus,procps", &release]);
            built::run(debian.arg(&unfinished)).context("failed to make a Debian for machines")?;
            fs::rename(&unfinished, &root)?;
        }
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }
}

/// The Debian that we run on, else the oldest that is supported.
fn release() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
    let debian = value("ID=").is_some_and(|id| id == "debian");
    value("VERSION_CODENAME=").filter(|_| debian).unwrap_or_else(|| "bookworm".to_owned())
}
