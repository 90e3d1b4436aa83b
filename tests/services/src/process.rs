//! Servers as child processes.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a server may take to become ready.
pub(crate) const READY_WAIT: Duration = Duration::from_mins(1);
/// How long a server may take to stop before it is killed.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// A child that is stopped when it is dropped.
pub(crate) struct Server {
    child: Child,
    stop: Signal,
}

impl Server {
    /// Starts a server that ends in good order on `stop`.
    pub(crate) fn start(command: &mut Command, stop: Signal) -> Result<Self> {
        let program = command.get_program().to_owned();
        // A process group of its own: Ctrl-C in a terminal reaches whoever started it, who then stops it in order.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("failed to start {}", program.display()))?;
        Ok(Self { child, stop })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `is_ready`, as long as the server lives; its log otherwise.
    pub(crate) fn wait_ready(&mut self, log: &Path, mut is_ready: impl FnMut() -> bool) -> Result<()> {
        let until = Instant::now() + READY_WAIT;
        while !is_ready() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > until {
                let said = fs::read_to_string(log).unwrap_or_default();
                let last: Vec<&str> = said.lines().rev().take(20).collect();
                let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
                match ended {
                    Some(status) => {
                        bail!("the server ended with {status} before it was ready; it said:\n{last}")
                    }
                    None => bail!("the server was not ready within {READY_WAIT:?}; it said:\n{last}"),
                }
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if let Ok(id) = i32::try_from(self.child.id()) {
            // It may have ended meanwhile; its id is ours until we wait for it.
            let _ = kill(Pid::from_raw(id), signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(self.stop);
        let until = Instant::now() + STOP_WAIT;
        while Instant::now() < until {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            sleep(Duration::from_millis(10));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A port that nobody listens on now. Somebody may take it before the server does: callers try again.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    let what = format!("{command:?}");
    let output = command.output().with_context(|| format!("failed to start {what}"))?;
    if !output.status.success() {
        bail!(
            "{what} ended with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}
