//! The exact mode: each opener waits until its identity was written down, so that none escapes attribution.
//!
//! Permission events hold an opener until somebody answers. A stopped responder would therefore hold every reader,
//! PID 1 among them, so the work is cut like this:
//!
//! - the **responder**, a process that does nothing else: it reads an event, copies what `/proc` says of the opener
//!   to its parent, and allows. It never forbids;
//! - the **watcher**, its sibling: it hears the responder's beat, and kills it when the beat stays away. It is not
//!   PID 1, which may itself be waiting, and it opens nothing, so it never waits;
//! - the kernel then lets everyone through, provided that nobody else holds the group. So the responder makes its
//!   group itself, after it became a program of its own; nobody inherits it and nothing keeps it.
//!
//! When the responder is gone the caller is told ([`Seen::ended`]): from then on evidence is as without this mode.

mod respond;
mod wire;

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::group::Inode;
use crate::text::ProcessText;

pub use respond::{respond, respond_on_stdio, watch, watch_on_stdio};

/// How often the responder says that it lives.
pub const BEAT: Duration = Duration::from_millis(200);

/// How long the watcher waits for a beat. The longest that an opener can be held.
pub const PATIENCE: Duration = Duration::from_millis(700);

/// How long a mark may take to be confirmed.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(3);

/// Why the exact mode cannot be had, or failed.
#[derive(Debug, thiserror::Error)]
pub enum ExactError {
    /// A process of it cannot be started.
    #[error("failed to start the {process} of the exact mode: {error}")]
    Start {
        /// `responder` or `watcher`.
        process: &'static str,
        /// What went wrong.
        error: io::Error,
    },
    /// The socket or pipe between the processes failed.
    #[error("failed to talk to the responder of the exact mode: {0}")]
    Talk(io::Error),
    /// The responder has ended.
    #[error("the responder of the exact mode has ended; openers are no longer held")]
    Ended,
    /// The kernel refuses a permission group.
    #[error("failed to open a fanotify permission group: {0}")]
    Open(Errno),
    /// A file cannot be marked.
    #[error("failed to mark a file for the exact mode: {0}")]
    Mark(Errno),
}

impl From<rustix::io::Errno> for ExactError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Talk(errno.into())
    }
}

/// One process that was held at an open or read until its identity was written down.
pub struct Held {
    /// The file.
    pub inode: Inode,
    /// It was opened.
    pub opened: bool,
    /// It was read.
    pub accessed: bool,
    /// The process, and, outside a cgroup, its ancestors, nearest first. Read while the process was held, so they
    /// are true of it; empty when it could not be read.
    pub texts: Vec<ProcessText>,
    /// The process, as the kernel numbers it for us.
    pub pid: i32,
    /// The same beyond reuse of the number.
    pub pidfd: Option<OwnedFd>,
}

/// What the responder told since the last look.
#[derive(Default)]
pub struct Seen {
    /// In the order in which they happened.
    pub held: Vec<Held>,
    /// Some openers were let through without being written down.
    pub lost: bool,
    /// The responder has ended: nobody is held any more.
    pub ended: bool,
}

/// The responder and its watcher, as their parent sees them. Both end when this is dropped.
pub struct Exact {
    control: OwnedFd,
    responder: Child,
    watcher: Child,
    waiting: VecDeque<Held>,
    lost: bool,
    ended: bool,
}

impl Exact {
    /// Starts both processes. `program` with `respond` as arguments must call [`respond_on_stdio`], and with
    /// `watch` as arguments [`watch_on_stdio`].
    pub fn start<S: AsRef<OsStr>>(program: &Path, respond: &[S], watch: &[S]) -> Result<Self, ExactError> {
        let (control, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::sockopt::set_socket_timeout(
            &control,
            rustix::net::sockopt::Timeout::Recv,
            Some(CONFIRMED_WITHIN),
        )?;
        let (beat_in, beat_out) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let responder = Command::new(program)
            .args(respond)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(beat_out))
            .spawn()
            .map_err(|error| ExactError::Start { process: "responder", error })?;
        let mut responder = Reaped(Some(responder));
        let pid = responder.0.as_ref().map(Pid::from_child).ok_or(ExactError::Ended)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let watcher = Command::new(program)
            .args(watch)
            .stdin(Stdio::from(beat_in))
            .stdout(Stdio::from(pidfd))
            .spawn()
            .map_err(|error| ExactError::Start { process: "watcher", error })?;
        let mut watcher = Reaped(Some(watcher));
        // The first word is that the group is open, or why it is not.
        let mut waiting = VecDeque::new();
        let mut lost = false;
        confirm(&control, &mut waiting, &mut lost)?.map_err(ExactError::Open)?;
        match (responder.0.take(), watcher.0.take()) {
            (Some(responder), Some(watcher)) => {
                Ok(Self { control, responder, watcher, waiting, lost, ended: false })
            }
            _ => Err(ExactError::Ended),
        }
    }

    /// Holds the readers of a file from now on. Returns when it is marked.
    pub fn mark(&mut self, file: impl AsFd) -> Result<(), ExactError> {
        self.ask(wire::MARK, file.as_fd())
    }

    /// Holds its readers no longer.
    pub fn unmark(&mut self, file: impl AsFd) -> Result<(), ExactError> {
        self.ask(wire::UNMARK, file.as_fd())
    }

    /// What was seen since the last call. Never waits.
    pub fn read(&mut self) -> Seen {
        while !self.ended {
            match wire::receive(&self.control, RecvFlags::DONTWAIT) {
                Ok(Some(wire::Told::Held(held))) => self.waiting.push_back(held),
                Ok(Some(wire::Told::Lost)) => self.lost = true,
                Ok(Some(wire::Told::Confirmed(_))) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(None) | Err(_) => self.ended = true,
            }
        }
        Seen {
            held: self.waiting.drain(..).collect(),
            lost: std::mem::take(&mut self.lost),
            ended: self.ended,
        }
    }

    /// Whether [`Exact::read`] has something to say.
    pub fn has_news(&self) -> bool {
        let mut polled = [rustix::event::PollFd::new(&self.control, rustix::event::PollFlags::IN)];
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        // In doubt it has.
        rustix::event::poll(&mut polled, Some(&at_once)).map_or(true, |ready| ready > 0)
    }

    /// The responder's process.
    pub fn responder(&self) -> u32 {
        self.responder.id()
    }

    /// The watcher's process.
    pub fn watcher(&self) -> u32 {
        self.watcher.id()
    }

    fn ask(&mut self, what: u8, file: BorrowedFd<'_>) -> Result<(), ExactError> {
        wire::ask(&self.control, what, file).map_err(ExactError::Talk)?;
        let answer = confirm(&self.control, &mut self.waiting, &mut self.lost);
        if answer.is_err() {
            self.ended = true;
        }
        answer?.map_err(ExactError::Mark)
    }
}

/// For `poll`: readable when [`Exact::read`] has something to say.
impl AsFd for Exact {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}

impl Drop for Exact {
    fn drop(&mut self) {
        end(&mut self.responder);
        end(&mut self.watcher);
    }
}

impl fmt::Debug for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exact(responder {}, watcher {})", self.responder.id(), self.watcher.id())
    }
}

/// Waits for the answer to one question, keeping what is told meanwhile.
fn confirm(
    control: &OwnedFd,
    waiting: &mut VecDeque<Held>,
    lost: &mut bool,
) -> Result<Result<(), Errno>, ExactError> {
    loop {
        match wire::receive(control, RecvFlags::empty()) {
            Ok(Some(wire::Told::Confirmed(answer))) => return Ok(answer),
            Ok(Some(wire::Told::Held(held))) => waiting.push_back(held),
            Ok(Some(wire::Told::Lost)) => *lost = true,
            Ok(None) => return Err(ExactError::Ended),
            Err(error) => return Err(ExactError::Talk(error)),
        }
    }
}

/// A child that is ended again if its sibling cannot be started.
struct Reaped(Option<Child>);

impl Drop for Reaped {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

fn end(child: &mut Child) {
    // Both fail only when it has ended already.
    let _ = child.kill();
    let _ = child.wait();
}
