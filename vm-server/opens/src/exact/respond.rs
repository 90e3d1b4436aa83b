//! The bodies of the two processes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::libc;
use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use super::{BEAT, ExactError, Held, PATIENCE, wire};
use crate::event::{Raw, parse};
use crate::group::{Inode, own_link};
use crate::text::ProcessText;

const HELD_AT: MaskFlags = MaskFlags::FAN_OPEN_PERM.union(MaskFlags::FAN_ACCESS_PERM);
const ONE_EVENT_BYTES: usize = 56;

/// How many ancestors are written down. A longer chain is told as lost.
const ANCESTORS_MAX: usize = 23;

/// So that a message stays within [`wire`]'s bound, whatever a process does to its own texts.
const TEXT_BYTES_MAX: usize = 1024;
const STATUS_BYTES_MAX: usize = 2048;
const NAMESPACE_BYTES_MAX: usize = 32;

/// The responder, with its socket as standard input and its beat as standard output.
pub fn respond_on_stdio() -> Result<(), ExactError> {
    let (control, beat) = stdio().map_err(ExactError::Talk)?;
    respond(&control, &beat)
}

/// The watcher, with the beat as standard input and the responder's pidfd as standard output.
pub fn watch_on_stdio() -> Result<(), ExactError> {
    let (beat, responder) = stdio().map_err(ExactError::Talk)?;
    watch(&beat, &responder)
}

/// Answers permission events until the parent or the watcher is gone.
pub fn respond(control: &OwnedFd, beat: &OwnedFd) -> Result<(), ExactError> {
    // A watcher that hears nothing must not hold us in turn.
    rustix::io::ioctl_fionbio(beat, true)?;
    let group = match open_group() {
        Ok(group) => group,
        Err(errno) => {
            wire::tell_confirmed(control, Err(errno)).map_err(ExactError::Talk)?;
            return Err(ExactError::Open(errno));
        }
    };
    wire::tell_confirmed(control, Ok(())).map_err(ExactError::Talk)?;
    let mut lost = false;
    let mut beaten: Option<Instant> = None;
    loop {
        if beaten.is_none_or(|at| at.elapsed() >= BEAT) {
            match rustix::io::write(beat, b".") {
                Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                // The watcher is gone, and nobody may be held unwatched.
                Err(_) => return Ok(()),
            }
            beaten = Some(Instant::now());
        }
        wait_for(&[group.as_fd(), control.as_fd()], BEAT)?;
        answer_one(&group, control, &mut lost);
        if lost && wire::tell_lost(control).is_ok() {
            lost = false;
        }
        match wire::heard(control) {
            Ok(Some((what, Some(file)))) => {
                let answer = change_mark(&group, what, &file);
                wire::tell_confirmed(control, answer).map_err(ExactError::Talk)?;
            }
            Ok(Some((_, None))) => {
                wire::tell_confirmed(control, Err(Errno::EBADF)).map_err(ExactError::Talk)?;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Ok(None) | Err(_) => return Ok(()),
        }
    }
}

/// Kills the responder when its beat stays away. Ends with it.
pub fn watch(beat: &OwnedFd, responder: &OwnedFd) -> Result<(), ExactError> {
    let mut buffer = [0_u8; 4096];
    loop {
        if !wait_for(&[beat.as_fd()], PATIENCE)? {
            return match pidfd_send_signal(responder, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
                Err(errno) => Err(errno.into()),
            };
        }
        match rustix::io::read(beat, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn stdio() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok((io::stdin().as_fd().try_clone_to_owned()?, io::stdout().as_fd().try_clone_to_owned()?))
}

fn open_group() -> Result<Fanotify, Errno> {
    let flags = InitFlags::FAN_CLASS_CONTENT
        | InitFlags::FAN_REPORT_PIDFD
        | InitFlags::FAN_UNLIMITED_QUEUE
        | InitFlags::FAN_UNLIMITED_MARKS
        | InitFlags::FAN_CLOEXEC
        | InitFlags::FAN_NONBLOCK;
    Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_LARGEFILE | EventFFlags::O_CLOEXEC)
}

fn change_mark(group: &Fanotify, what: u8, file: &OwnedFd) -> Result<(), Errno> {
    let how = match what {
        wire::MARK => MarkFlags::FAN_MARK_ADD,
        wire::UNMARK => MarkFlags::FAN_MARK_REMOVE,
        _ => return Err(Errno::EINVAL),
    };
    group.mark(how, HELD_AT, AT_FDCWD, Some(&own_link(file)))
}

/// Whether one of them is ready within this time. An interruption counts as not ready.
fn wait_for(files: &[std::os::fd::BorrowedFd<'_>], at_most: std::time::Duration) -> Result<bool, ExactError> {
    let mut polled: Vec<PollFd<'_>> =
        files.iter().map(|file| PollFd::from_borrowed_fd(*file, PollFlags::IN)).collect();
    let until = Instant::now() + at_most;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout =
            Timespec::try_from(left).map_err(|_| ExactError::Talk(io::ErrorKind::InvalidInput.into()))?;
        match poll(&mut polled, Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Reads, tells and allows one event. Whatever fails, the opener goes on.
fn answer_one(group: &Fanotify, control: &OwnedFd, lost: &mut bool) {
    let mut buffer = [0_u8; ONE_EVENT_BYTES];
    let length = match nix::unistd::read(group, &mut buffer) {
        Ok(length) => length,
        Err(Errno::EAGAIN | Errno::EINTR) => return,
        Err(_) => {
            *lost = true;
            return;
        }
    };
    for raw in parse(&buffer[..length]) {
        *lost |= raw.is_overflow();
        // SAFETY: `raw` comes from the buffer that the kernel has just filled, and is wrapped nowhere else.
        #[expect(unsafe_code, reason = "the descriptors of a permission event become owned")]
        let (file, pidfd) = unsafe { raw.into_descriptors() };
        let Some(file) = file else { continue };
        match describe(raw, &file, pidfd) {
            Ok((held, whole)) => *lost |= !whole || wire::tell_held(control, &held).is_err(),
            Err(_) => *lost = true,
        }
        // Fails only when the group is gone, and then nobody is held.
        let _ = group.write_response(FanotifyResponse::new(file.as_fd(), Response::FAN_ALLOW));
    }
}

fn describe(raw: Raw, file: &OwnedFd, pidfd: Option<OwnedFd>) -> Result<(Held, bool), Errno> {
    let inode = Inode::of(file)?;
    let (texts, whole) = lineage(raw.pid);
    let opened = raw.mask.bits() & libc::FAN_OPEN_PERM != 0;
    let accessed = raw.mask.bits() & libc::FAN_ACCESS_PERM != 0;
    Ok((Held { inode, opened, accessed, texts, pid: raw.pid, pidfd }, whole))
}

/// The process, and where no cgroup of its own names it, its ancestors. The process is held, so it and what was its
/// parent a moment ago are what they seem; and whether all of it was read.
fn lineage(pid: i32) -> (Vec<ProcessText>, bool) {
    let mut texts: Vec<ProcessText> = Vec::new();
    let mut next = pid;
    while next > 0 {
        if texts.len() > ANCESTORS_MAX {
            return (texts, false);
        }
        let Ok(mut text) = ProcessText::read(Path::new("/proc"), next) else {
            return (texts, false);
        };
        text.stat.truncate(TEXT_BYTES_MAX);
        text.cgroup.truncate(TEXT_BYTES_MAX);
        text.exe.truncate(TEXT_BYTES_MAX);
        text.mount_namespace.truncate(NAMESPACE_BYTES_MAX);
        text.status.truncate(STATUS_BYTES_MAX);
        next = if text.is_in_root_cgroup() && next != 1 { text.parent().unwrap_or(0) } else { 0 };
        texts.push(text);
    }
    (texts, true)
}
