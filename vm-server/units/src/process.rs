//! A process as the kernel knows it. What it says of itself is hostile.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags};

/// A live process, held so that its id cannot be taken by another while we look.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pidfd: OwnedFd,
    pub(crate) pid: i32,
    pub(crate) start: u64,
    pub(crate) uid: u32,
    pub(crate) exe: Option<PathBuf>,
}

impl Process {
    /// Looks at a process. `None` when it is gone. Everything read belongs to the process that the pidfd holds,
    /// since that was alive before and after.
    pub(crate) fn look(pid: i32) -> std::io::Result<Option<Self>> {
        let Some(raw) = Pid::from_raw(pid) else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let read = || Some((start_time(&dir)?, real_uid(&dir)?));
        let facts = read();
        let exe = fs::read_link(dir.join("exe")).ok();
        if has_ended(&pidfd)? {
            return Ok(None);
        }
        let Some((start, uid)) = facts else {
            return Err(std::io::Error::other(format!("/proc/{pid} cannot be read")));
        };
        Ok(Some(Self { pidfd, pid, start, uid, exe }))
    }
}

/// Whether the process of a pidfd has ended (also when nobody has waited for it yet).
pub(crate) fn has_ended(pidfd: &OwnedFd) -> std::io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(poll(&mut fds, Some(&now))? > 0)
}

/// Field 22 of `stat`. The name before it is the process's own choice and may contain anything, also `)`: count from
/// the last one.
fn start_time(dir: &Path) -> Option<u64> {
    parse_start_time(&fs::read(dir.join("stat")).ok()?)
}

fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    // `rest` begins with field 3.
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The real user id. The owner of `/proc/PID` would not do: it is root for programs that may not be dumped.
fn real_uid(dir: &Path) -> Option<u32> {
    parse_real_uid(&fs::read(dir.join("status")).ok()?)
}

fn parse_real_uid(status: &[u8]) -> Option<u32> {
    // The name stands in the first line, with newlines escaped by the kernel.
    let line = status.split(|byte| *byte == b'\n').skip(1).find_map(|line| line.strip_prefix(b"Uid:"))?;
    std::str::from_utf8(line).ok()?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_moves_no_field() {
        let rest = "S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 889123 1 2";
        for name in ["cat", "a) R 1 (b", ")))", "x\ny", "S 1 2 3"] {
            let stat = format!("4711 ({name}) {rest}");
            assert_eq!(parse_start_time(stat.as_bytes()), Some(889_123), "{name:?}");
        }
        assert_eq!(parse_start_time(b"4711 (cat"), None);
        assert_eq!(parse_start_time(b"4711 (\xff\xfe) S 1"), None);
    }

    #[test]
    fn a_name_that_looks_like_a_uid_is_not_one() {
        assert_eq!(parse_real_uid(b"Name:\tUid:\t0\nUmask:\t0022\nUid:\t1000\t0\t0\t0\n"), Some(1000));
        assert_eq!(parse_real_uid(b"Uid:\t0\n"), None);
    }

    #[test]
    fn sees_itself_and_not_who_is_gone() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let process = Process::look(pid).unwrap().unwrap();
        assert_eq!(process.exe.as_deref(), Some(std::env::current_exe().unwrap().as_path()));
        assert_eq!(process.uid, rustix::process::getuid().as_raw());
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let gone = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        assert!(Process::look(gone).unwrap().is_none());
    }
}
