//! One host: its directories, and its two halves as tasks of this process or as processes of their own.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use eso_vm_applier::{Noticing, enroll};
use host_policy::HostPolicy;
use protocol::HostId;
use protocol::enrol::Bundle;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Where a host stands.
#[derive(Debug, Clone)]
pub struct Site {
    /// Counts from 0.
    pub number: usize,
    /// What people call it.
    pub name: String,
    /// Its own directory.
    pub directory: PathBuf,
}

impl Site {
    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.directory.join("etc")
    }

    /// A directory in which places may lie.
    pub fn places(&self) -> PathBuf {
        self.directory.join("places")
    }

    /// A set as readers find it.
    pub fn set(&self, name: &str) -> PathBuf {
        self.directory.join("run/sets").join(name)
    }

    /// The socket on which applications say what they use.
    pub fn app_socket(&self) -> PathBuf {
        self.directory.join("run").join(protocol::reported::SOCKET)
    }

    /// The log of its programs, where they are processes.
    pub fn log(&self) -> PathBuf {
        self.directory.join("log")
    }
}

/// How the halves of a host run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// As tasks of this process. A kill comes between two inputs, never within one.
    Tasks,
    /// As processes of this program, which a SIGKILL ends anywhere.
    Processes(PathBuf),
}

/// One of the two halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// It faces the network.
    Network,
    /// It verifies, writes and has consumers take up.
    Applier,
}

impl Half {
    /// What the program is told.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Applier => "applier",
        }
    }
}

/// One host. Dropping it ends its halves.
pub struct Host {
    site: Site,
    kind: Kind,
    id: HostId,
    address: SocketAddr,
    runtime: Handle,
    network: Option<Running>,
    applier: Option<Running>,
}

enum Running {
    Task { stop: oneshot::Sender<()>, task: JoinHandle<()> },
    Process(Child),
}

impl Host {
    /// Makes its directories and keys and leaves the pending enrolment to its network half. `address` is where pushes
    /// reach it, `config` its whole policy.
    pub fn enrol(
        site: Site,
        kind: Kind,
        address: SocketAddr,
        config: &str,
        bundle: &Bundle,
        runtime: &Handle,
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(site.config())?;
        std::fs::create_dir_all(site.places())?;
        std::fs::write(site.config().join("config.toml"), config)?;
        let carried = site.directory.join("bundle.json");
        std::fs::write(&carried, &*bundle.to_json()?)?;
        let daemon = HostPolicy::load(&site.config())?.daemon;
        let enrolled = enroll::enroll(&daemon, &carried)?;
        std::fs::remove_file(&carried)?;
        let runtime = runtime.clone();
        Ok(Self { site, kind, id: enrolled.host, address, runtime, network: None, applier: None })
    }

    /// Where it stands.
    pub const fn site(&self) -> &Site {
        &self.site
    }

    /// Who it is.
    pub const fn id(&self) -> HostId {
        self.id
    }

    /// Where pushes reach it.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How it runs.
    pub const fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Whether this half runs.
    pub const fn runs(&self, half: Half) -> bool {
        match half {
            Half::Network => self.network.is_some(),
            Half::Applier => self.applier.is_some(),
        }
    }

    /// Which halves should run and have ended by themselves.
    pub fn ended(&mut self) -> Vec<Half> {
        let mut ended = Vec::new();
        for half in [Half::Network, Half::Applier] {
            let over = match self.slot(half) {
                Some(Running::Task { task, .. }) => task.is_finished(),
                Some(Running::Process(child)) => !matches!(child.try_wait(), Ok(None)),
                None => false,
            };
            if over {
                ended.push(half);
            }
        }
        ended
    }

    /// Starts a half that does not run. It becomes ready in its own time.
    pub fn start(&mut self, half: Half) -> anyhow::Result<()> {
        if self.runs(half) {
            return Ok(());
        }
        let running = match (&self.kind, half) {
            (Kind::Processes(program), half) => self.process(program, half)?,
            (Kind::Tasks, Half::Network) => self.network_task()?,
            (Kind::Tasks, Half::Applier) => self.applier_task(),
        };
        *self.slot(half) = Some(running);
        Ok(())
    }

    /// Kills a half: a process by SIGKILL, a task between two inputs. Waits until it is gone.
    pub fn kill(&mut self, half: Half) {
        let Some(running) = self.slot(half).take() else { return };
        match running {
            Running::Process(mut child) => {
                // It may have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
            }
            Running::Task { stop, task } => {
                if half == Half::Network {
                    task.abort();
                }
                drop(stop);
                // An aborted task is no surprise.
                let _ = self.runtime.block_on(task);
            }
        }
    }

    const fn slot(&mut self, half: Half) -> &mut Option<Running> {
        match half {
            Half::Network => &mut self.network,
            Half::Applier => &mut self.applier,
        }
    }

    fn process(&self, program: &Path, half: Half) -> anyhow::Result<Running> {
        let log = File::options().create(true).append(true).open(self.site.log())?;
        let child = Command::new(program)
            .arg(half.word())
            .arg(self.site.config())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("failed to start {}", program.display()))?;
        Ok(Running::Process(child))
    }

    fn network_task(&self) -> anyhow::Result<Running> {
        let daemon = HostPolicy::load(&self.site.config())?.daemon;
        let (stop, stopped) = oneshot::channel::<()>();
        let name = self.site.name.clone();
        let task = self.runtime.spawn(async move {
            let stopped = async { drop(stopped.await) };
            let ended = eso_vm_server::run::run(&daemon, Vec::new(), |_| {}, stopped).await;
            if let Err(error) = ended {
                eprintln!("the network half of {name} ended: {error}");
            }
        });
        Ok(Running::Task { stop, task })
    }

    fn applier_task(&self) -> Running {
        let (stop, stopped) = oneshot::channel::<()>();
        let (name, config) = (self.site.name.clone(), self.site.config());
        let task = self.runtime.spawn(async move {
            let stopped = async { drop(stopped.await) };
            let ended = eso_vm_applier::run_noticing(&config, Noticing::AtIntervals, || {}, stopped).await;
            if let Err(error) = ended {
                eprintln!("the applier of {name} ended: {error}");
            }
        });
        Running::Task { stop, task }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill(Half::Network);
        self.kill(Half::Applier);
    }
}
