//! Both halves of many hosts as tasks of a few other processes, so that none needs more descriptors than it may have.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

/// Hosts of one process. Each takes some 25 descriptors, and more for each version that lives.
const HOSTS_MAX: usize = 250;

/// The processes. Dropping it ends them.
pub struct Crowd {
    processes: Vec<Child>,
}

impl Crowd {
    /// Starts enrolled hosts that do not run, by their [configurations](crate::Site::config). `program` is
    /// `fleet-host`, `log` takes what goes wrong.
    pub fn start(program: &Path, configs: &[PathBuf], log: &Path) -> anyhow::Result<Self> {
        let mut crowd = Self { processes: Vec::new() };
        for configs in configs.chunks(HOSTS_MAX) {
            let log = File::options().create(true).append(true).open(log)?;
            let child = Command::new(program)
                .arg("crowd")
                .env("RUST_LOG", "error")
                .stdin(Stdio::piped())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .with_context(|| format!("failed to start {}", program.display()))?;
            crowd.processes.push(child);
            let mut stdin = crowd.processes.last_mut().and_then(|child| child.stdin.take());
            for config in configs {
                let line = config.to_str().context("a directory has no UTF-8 name")?;
                writeln!(stdin.as_mut().context("it reads nothing")?, "{line}")?;
            }
        }
        Ok(crowd)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.processes {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
