//! Keeps the processes of one host, as an init system would: starts them, starts them again when they end, and keeps
//! descriptors for the one that asks (`NOTIFY_SOCKET`, `FDSTORE`, `LISTEN_FDS`).
//!
//! Commands come as JSON lines on standard input, answers and events go out as JSON lines on standard output. When
//! standard input ends, everything it started is killed: nothing outlives the demo.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::io::FdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

/// How many descriptors the launcher keeps for one process.
const KEPT_DESCRIPTORS_MAX: usize = 4;
/// How long a process that ended by itself rests before it is started again.
const RESPAWN_AFTER: Duration = Duration::from_millis(50);

/// One process that the launcher looks after.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Program {
    /// Names it in commands and events.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Set in its environment, beside the launcher's own.
    pub env: BTreeMap<String, String>,
    /// Whether it is started again when it ends by itself.
    pub respawn: bool,
    /// Whether its descriptors are kept between its lives.
    pub keeps_descriptors: bool,
    /// Where its output goes, appended.
    pub log: PathBuf,
}

/// What the launcher is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Start it and look after it from now on.
    Start(Program),
    /// End it (SIGTERM) and do not start it again.
    Stop(String),
    /// Send it a signal, by number.
    Signal(String, i32),
    /// The process ids, by name, as this launcher sees them.
    Pids,
}

/// What the launcher says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// The command was carried out.
    Done,
    /// The command was not carried out, and why.
    Failed(String),
    /// The answer to [`Command::Pids`].
    Pids(BTreeMap<String, u32>),
    /// A process ended. Not an answer.
    Ended {
        /// Which.
        name: String,
        /// How, in words.
        how: String,
        /// Whether it will be started again.
        again: bool,
    },
}

/// Runs until standard input ends.
pub fn run() -> anyhow::Result<()> {
    // Reserved before anything else opens a descriptor, so that they are 3, 4, ... as LISTEN_FDS wants them.
    let reserved = (0..KEPT_DESCRIPTORS_MAX)
        .map(|_| Ok(std::fs::File::open("/dev/null")?.into()))
        .collect::<anyhow::Result<Vec<OwnedFd>>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { Launcher::new(reserved)?.serve().await })
}

/// Becomes the program: a session of its own, and the kept descriptors announced to its own process id.
pub fn become_program(argv: &[String], announced: usize) -> anyhow::Result<std::convert::Infallible> {
    let (program, arguments) = argv.split_first().context("no program given")?;
    rustix::process::setsid().context("failed to start a session")?;
    let mut command = std::process::Command::new(program);
    command.args(arguments);
    if announced > 0 {
        command.env("LISTEN_FDS", announced.to_string());
        command.env("LISTEN_PID", std::process::id().to_string());
    }
    bail!("failed to start {program}: {}", command.exec())
}

struct Running {
    program: Program,
    pid: Option<u32>,
    wanted: bool,
}

struct Launcher {
    running: BTreeMap<String, Running>,
    reserved: Vec<OwnedFd>,
    kept_names: Vec<String>,
    notify: tokio::net::UnixDatagram,
    notify_path: PathBuf,
    _directory: tempfile::TempDir,
}

enum Happened {
    Line(String),
    InputEnded,
    Ended(String, std::io::Result<std::process::ExitStatus>),
    Rested(String),
}

impl Launcher {
    fn new(reserved: Vec<OwnedFd>) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let notify_path = directory.path().join("notify");
        let notify = tokio::net::UnixDatagram::bind(&notify_path)?;
        Ok(Self {
            running: BTreeMap::new(),
            reserved,
            kept_names: Vec::new(),
            notify,
            notify_path,
            _directory: directory,
        })
    }

    async fn serve(mut self) -> anyhow::Result<()> {
        let (sender, mut happened) = mpsc::unbounded_channel();
        let input = sender.clone();
        std::thread::spawn(move || read_lines(&input));
        loop {
            tokio::select! {
                next = happened.recv() => match next {
                    Some(Happened::Line(line)) => say(&self.obey(&line, &sender)),
                    Some(Happened::Ended(name, status)) => self.ended(&name, status, &sender),
                    Some(Happened::Rested(name)) => self.rested(&name, &sender),
                    Some(Happened::InputEnded) | None => break,
                },
                ready = self.notify.readable() => {
                    ready?;
                    self.take_notification();
                }
            }
        }
        self.kill_all(&mut happened).await;
        Ok(())
    }

    fn obey(&mut self, line: &str, sender: &mpsc::UnboundedSender<Happened>) -> Said {
        let result = match serde_json::from_str(line) {
            Ok(Command::Start(program)) => self.start(program, sender),
            Ok(Command::Stop(name)) => self.stop(&name),
            Ok(Command::Signal(name, number)) => self.signal(&name, number),
            Ok(Command::Pids) => {
                let pids = self.running.iter().filter_map(|(name, r)| Some((name.clone(), r.pid?)));
                return Said::Pids(pids.collect());
            }
            Err(error) => Err(error.into()),
        };
        match result {
            Ok(()) => Said::Done,
            Err(error) => Said::Failed(format!("{error:#}")),
        }
    }

    fn start(&mut self, program: Program, sender: &mpsc::UnboundedSender<Happened>) -> anyhow::Result<()> {
        let name = program.name.clone();
        if self.running.get(&name).is_some_and(|running| running.pid.is_some()) {
            bail!("{name} is running already");
        }
        self.running.insert(name.clone(), Running { program, pid: None, wanted: true });
        self.spawn(&name, sender)
    }

    fn spawn(&mut self, name: &str, sender: &mpsc::UnboundedSender<Happened>) -> anyhow::Result<()> {
        let running = self.running.get_mut(name).with_context(|| format!("{name} is not known"))?;
        let announced = if running.program.keeps_descriptors { self.kept_names.len() } else { 0 };
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&running.program.log)
            .with_context(|| format!("failed to open {}", running.program.log.display()))?;
        let mut command = tokio::process::Command::new(std::env::current_exe()?);
        command.arg("become").arg(announced.to_string()).arg("--").args(&running.program.argv);
        command.envs(&running.program.env);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if running.program.keeps_descriptors {
            command.env("NOTIFY_SOCKET", &self.notify_path);
            command.env("LISTEN_FDNAMES", self.kept_names.join(":"));
        }
        let inherited = &self.reserved[..announced];
        set_flags(inherited, FdFlags::empty())?;
        let child = command.spawn();
        set_flags(inherited, FdFlags::CLOEXEC)?;
        let mut child = child.with_context(|| format!("failed to start {name}"))?;
        running.pid = child.id();
        let (name, sender) = (name.to_owned(), sender.clone());
        tokio::spawn(async move {
            let status = child.wait().await;
            let _ = sender.send(Happened::Ended(name, status));
        });
        Ok(())
    }

    fn stop(&mut self, name: &str) -> anyhow::Result<()> {
        let running = self.running.get_mut(name).with_context(|| format!("{name} is not known"))?;
        running.wanted = false;
        self.signal(name, Signal::SIGTERM as i32)
    }

    fn signal(&self, name: &str, number: i32) -> anyhow::Result<()> {
        let pid = self.running.get(name).and_then(|running| running.pid);
        let pid = pid.with_context(|| format!("{name} is not running"))?;
        let signal = Signal::try_from(number).context("not a signal")?;
        nix::sys::signal::kill(Pid::from_raw(pid.try_into()?), signal)?;
        Ok(())
    }

    fn ended(
        &mut self,
        name: &str,
        status: std::io::Result<std::process::ExitStatus>,
        sender: &mpsc::UnboundedSender<Happened>,
    ) {
        let Some(running) = self.running.get_mut(name) else { return };
        running.pid = None;
        let again = running.wanted && running.program.respawn;
        let how = match status {
            Ok(status) => match status.signal() {
                Some(signal) => format!("signal {signal}"),
                None => format!("exit {}", status.code().unwrap_or(-1)),
            },
            Err(error) => error.to_string(),
        };
        say(&Said::Ended { name: name.to_owned(), how, again });
        if again {
            let (name, sender) = (name.to_owned(), sender.clone());
            tokio::spawn(async move {
                tokio::time::sleep(RESPAWN_AFTER).await;
                let _ = sender.send(Happened::Rested(name));
            });
        }
    }

    fn rested(&mut self, name: &str, sender: &mpsc::UnboundedSender<Happened>) {
        let idle = self.running.get(name).is_some_and(|running| running.wanted && running.pid.is_none());
        if idle && let Err(error) = self.spawn(name, sender) {
            say(&Said::Failed(format!("{error:#}")));
        }
    }

    /// Takes one datagram of the service manager's notification protocol. Anything but descriptors is ignored.
    fn take_notification(&mut self) {
        let mut bytes = [0; 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(KEPT_DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = self.notify.try_io(tokio::io::Interest::READABLE, || {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            rustix::net::recvmsg(
                self.notify.as_fd(),
                &mut slices,
                &mut ancillary,
                RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
            )
            .map_err(Into::into)
        });
        let Ok(received) = received else { return };
        let text = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        let name = value("FDNAME=").unwrap_or("stored").to_owned();
        if value("FDSTOREREMOVE=1").is_some() {
            self.kept_names.retain(|kept| *kept != name);
        }
        let store = value("FDSTORE=1").is_some();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                for descriptor in descriptors.filter(|_| store) {
                    self.keep(&name, &descriptor);
                }
            }
        }
    }

    fn keep(&mut self, name: &str, descriptor: &OwnedFd) {
        let place = self.kept_names.iter().position(|kept| kept == name).unwrap_or(self.kept_names.len());
        let Some(reserved) = self.reserved.get_mut(place) else { return };
        if rustix::io::dup2(descriptor, reserved).is_ok() {
            let _ = rustix::io::fcntl_setfd(reserved, FdFlags::CLOEXEC);
            if place == self.kept_names.len() {
                self.kept_names.push(name.to_owned());
            }
        }
    }

    async fn kill_all(&mut self, happened: &mut mpsc::UnboundedReceiver<Happened>) {
        for running in self.running.values_mut() {
            running.wanted = false;
            if let Some(pid) = running.pid.and_then(|pid| i32::try_from(pid).ok()) {
                let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        while self.running.values().any(|running| running.pid.is_some()) {
            if let Some(Happened::Ended(name, _)) = happened.recv().await
                && let Some(running) = self.running.get_mut(&name)
            {
                running.pid = None;
            }
        }
    }
}

fn set_flags(descriptors: &[OwnedFd], flags: FdFlags) -> anyhow::Result<()> {
    for descriptor in descriptors {
        rustix::io::fcntl_setfd(descriptor, flags)?;
    }
    Ok(())
}

fn read_lines(sender: &mpsc::UnboundedSender<Happened>) {
    for line in std::io::stdin().lines().map_while(Result::ok) {
        if sender.send(Happened::Line(line)).is_err() {
            return;
        }
    }
    let _ = sender.send(Happened::InputEnded);
}

#[allow(clippy::print_stdout, reason = "standard output is the launcher's way to speak")]
fn say(said: &Said) {
    if let Ok(line) = serde_json::to_string(said) {
        println!("{line}");
    }
}

/// The launcher of one host, from outside.
pub struct Handle {
    child: std::process::Child,
    input: Option<std::process::ChildStdin>,
    answers: std::sync::mpsc::Receiver<Said>,
    events: std::sync::Arc<std::sync::Mutex<Vec<Said>>>,
}

impl Handle {
    /// Starts a launcher. With `apart` it gets process ids and mounts of its own (needs root).
    pub fn spawn(launcher: &Path, apart: bool) -> anyhow::Result<Self> {
        let mut command = if apart {
            let mut command = std::process::Command::new("unshare");
            command.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--"]).arg(launcher);
            command
        } else {
            std::process::Command::new(launcher)
        };
        // A process group of its own: Ctrl-C reaches the demo, which then ends the rest in order.
        let mut child = command
            .arg("serve")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {}", launcher.display()))?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("no standard output")?;
        let (sender, answers) = std::sync::mpsc::channel();
        let events = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let seen = events.clone();
        std::thread::spawn(move || {
            for line in std::io::BufRead::lines(std::io::BufReader::new(output)).map_while(Result::ok) {
                match serde_json::from_str(&line) {
                    Ok(event @ Said::Ended { .. }) => {
                        if let Ok(mut seen) = seen.lock() {
                            seen.push(event);
                        }
                    }
                    Ok(answer) => {
                        let _ = sender.send(answer);
                    }
                    Err(_) => {}
                }
            }
        });
        Ok(Self { child, input, answers, events })
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, command: &Command) -> anyhow::Result<Said> {
        use std::io::Write as _;
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        let input = self.input.as_mut().context("the launcher takes no more commands")?;
        input.write_all(&line).context("the launcher is gone")?;
        match self.answers.recv_timeout(Duration::from_secs(10)) {
            Ok(Said::Failed(why)) => bail!("{why}"),
            Ok(said) => Ok(said),
            Err(_) => bail!("the launcher did not answer within 10 s"),
        }
    }

    /// Its processes by name, with the ids that they have here, outside of its process ids.
    pub fn pids(&mut self) -> anyhow::Result<BTreeMap<String, u32>> {
        let Said::Pids(inside) = self.ask(&Command::Pids)? else { bail!("the launcher did not answer") };
        let outside = descendants(self.child.id());
        Ok(inside
            .into_iter()
            .filter_map(|(name, inside)| {
                Some((name, *outside.iter().find(|outside| innermost_id(**outside) == Some(inside))?))
            })
            .collect())
    }

    /// What ended since the launcher started, in order.
    pub fn ended(&self) -> Vec<Said> {
        self.events.lock().map(|events| events.clone()).unwrap_or_default()
    }
}

/// All processes below this one.
fn descendants(process: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut pending = vec![process];
    while let Some(process) = pending.pop() {
        let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
        let children = children.unwrap_or_default();
        let children: Vec<u32> = children.split_whitespace().filter_map(|child| child.parse().ok()).collect();
        pending.extend(&children);
        found.extend(children);
    }
    found
}

/// The process id within the process's own namespace.
fn innermost_id(process: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_whitespace().last()?.parse().ok()
}

impl Drop for Handle {
    fn drop(&mut self) {
        // The end of its input makes it kill all and leave.
        drop(self.input.take());
        let _ = self.child.wait();
    }
}
