//! The programs that are measured: where they are, and what the kernel counts of them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

/// A program that was built with this one.
pub fn path(name: &str) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe()?;
    let path = here.parent().context("this program lies nowhere")?.join(name);
    if !path.exists() {
        bail!("{} is missing: run this as `cargo xtask bench`, which builds it", path.display());
    }
    Ok(path)
}

/// A running program, killed when this is dropped.
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts it. What it logs is kept in a file.
    pub fn start(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).env_remove("NOTIFY_SOCKET");
        let child = command.spawn().with_context(|| format!("failed to start {command:?}"))?;
        Ok(Self { child })
    }

    /// Takes over what was started otherwise.
    pub const fn of(child: Child) -> Self {
        Self { child }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Proportional and resident memory, in bytes.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.id()))?;
        let bytes = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<f64>().ok());
            kib.map(|kib| kib * 1024.0).with_context(|| format!("no {key} in smaps_rollup"))
        };
        Ok(Memory { proportional: bytes("Pss:")?, resident: bytes("Rss:")? })
    }

    /// How often its threads have gone to sleep so far.
    pub fn sleeps(&self) -> anyhow::Result<u64> {
        let mut all = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.id()))? {
            let status = std::fs::read_to_string(thread?.path().join("status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            all += line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(all)
    }

    /// Ends it now.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a process takes of the machine's memory, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    /// Pages that are shared count as the part that falls on it.
    pub proportional: f64,
    /// Every page counts whole.
    pub resident: f64,
}

impl std::ops::Add for Memory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            proportional: self.proportional + other.proportional,
            resident: self.resident + other.resident,
        }
    }
}
