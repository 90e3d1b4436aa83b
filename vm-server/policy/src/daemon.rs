//! The `[daemon]` section: where our own two processes keep their things and whom they talk to.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::consumer::NotAConsumer;

/// The `[daemon]` section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// What must survive a reboot: keys, journal, sealed copies.
    pub state_dir: PathBuf,
    /// What must not: sets and sockets.
    pub run_dir: PathBuf,
    /// Where pushed orders are accepted.
    pub listen: SocketAddr,
    /// `https://` address of the control plane, where reports go. The enrolment's own when not written.
    pub control_plane: Option<String>,
    /// `HOST:PORT` under which the control plane reaches this host. Its host name and the port of `listen` when not
    /// written.
    pub advertise: Option<String>,
    /// Who restarts consumers.
    pub supervisor: SupervisorMode,
    /// How the sets' own file systems are made.
    pub mount: MountMode,
    /// Which evidence is tried.
    pub evidence: EvidenceMode,
    /// How often a report is sent when nothing changed, in milliseconds.
    pub report_ms: u64,
    /// Readers of any set that are no consumers (backup, antivirus). Those of a single set stand there.
    pub not_a_consumer: Vec<NotAConsumer>,
}

impl Daemon {
    /// The applier's own state, readable by it alone.
    pub fn applier_state(&self) -> PathBuf {
        self.state_dir.join("applier")
    }

    /// The network half's own state.
    pub fn server_state(&self) -> PathBuf {
        self.state_dir.join("server")
    }

    /// The directory that has one directory for each set.
    pub fn sets_dir(&self) -> PathBuf {
        self.run_dir.join("sets")
    }

    /// The private socket: the network half listens, the applier connects.
    pub fn applier_socket(&self) -> PathBuf {
        self.run_dir.join("private").join("applier.sock")
    }

    /// The socket on which applications say "on N+1, N dropped".
    pub fn app_socket(&self) -> PathBuf {
        self.run_dir.join("app.sock")
    }
}

/// Who restarts consumers: `supervisor = "..."`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SupervisorMode {
    /// Whichever is there: systemd when PID 1 is it, else none.
    Auto,
    /// systemd, over D-Bus.
    Systemd,
    /// Nobody that we could ask: consumers have pid files, and whoever started them starts them again.
    None,
}

/// How the sets' own file systems are made: `mount = "..."`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountMode {
    /// The best that works: a mount unit of systemd, `mount(2)`, a plain directory. Which one is reported.
    Auto,
    /// A plain directory, also where more would work.
    Directory,
}

/// Which evidence is tried: `evidence = "..."`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvidenceMode {
    /// `kernel` where it works, else `declared`. Which one is reported.
    Auto,
    /// `kernel`, and each opener waits until its identity was written down, so that a short one does not get away.
    Exact,
    /// `declared`, also where more would work.
    Declared,
}
