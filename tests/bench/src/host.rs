//! One real host: its directories, its policy, and our two programs.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use protocol::enrol::{Bundle, PENDING_FILE, PendingEnrolment};

use crate::desk::SET;
use crate::process::{self, Running};

/// The directories of one host.
pub struct Host {
    directory: tempfile::TempDir,
    set: String,
}

impl Drop for Host {
    fn drop(&mut self) {
        // Where the set has a file system of its own.
        let _ = rustix::mount::unmount(self.set_dir(), rustix::mount::UnmountFlags::DETACH);
    }
}

impl Host {
    /// Writes its configuration: further keys of `[daemon]`, and what the policy says of the set.
    pub fn new(daemon: &str, set: &str, policy: &str) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("eso-bench-").tempdir()?;
        let host = Self { directory, set: set.to_owned() };
        let root = host.root();
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(root.join("config/conf.d"))?;
        let text = format!(
            "[daemon]\nstate_dir = \"{0}/state\"\nrun_dir = \"{0}/run\"\nsupervisor = \"none\"\n{daemon}",
            root.display()
        );
        std::fs::write(root.join("config/config.toml"), text)?;
        std::fs::write(root.join("config/conf.d/set.toml"), format!("[set.{set}]\n{policy}"))?;
        Ok(host)
    }

    /// With the set that the figures deliver, and nobody who uses it.
    pub fn plain(daemon: &str) -> anyhow::Result<Self> {
        Self::new(daemon, SET, "")
    }

    /// Its root.
    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    /// Where the set lies.
    pub fn set_dir(&self) -> PathBuf {
        self.root().join("run/sets").join(&self.set)
    }

    /// Makes it a host of an installation. The network half does its part when it runs.
    pub fn enrol(&self, bundle: &Bundle) -> anyhow::Result<PendingEnrolment> {
        let file = self.root().join("bundle.json");
        std::fs::write(&file, bundle.to_json()?)?;
        self.enrol_with(&file)
    }

    /// With a bundle that is written already.
    pub fn enrol_with(&self, bundle: &Path) -> anyhow::Result<PendingEnrolment> {
        let output = self.command("eso-vm-applier")?.args(["enroll", "--bundle"]).arg(bundle).output()?;
        if !output.status.success() {
            bail!("failed to enrol: {}", String::from_utf8_lossy(&output.stderr));
        }
        let pending = std::fs::read(self.root().join("state/server").join(PENDING_FILE))?;
        PendingEnrolment::from_json(&pending).context("failed to read the pending enrolment")
    }

    /// Starts one of our programs on it.
    pub fn start(&self, program: &str) -> anyhow::Result<Running> {
        let log = self.root().join(format!("{program}.log"));
        Running::start(&mut self.command(program)?, &log)
    }

    /// What a program said so far.
    pub fn log(&self, program: &str) -> String {
        std::fs::read_to_string(self.root().join(format!("{program}.log"))).unwrap_or_default()
    }

    fn command(&self, program: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(process::path(program)?);
        command.arg("--config").arg(self.root().join("config"));
        Ok(command)
    }
}

/// A port that nobody listens on at this moment.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
