//! Which kind of evidence this machine allows, and if not the strongest, why not.

use std::fmt;
use std::fs::File;

use nix::errno::Errno;

use crate::group::{Group, GroupError, Queue, own_link};

/// What this machine allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capability {
    /// Opens and reads are seen, each with the process that did it.
    Kernel,
    /// They are not, for this reason.
    Without(Why),
}

/// Why opens cannot be seen here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// `EPERM`: we lack CAP_SYS_ADMIN, or a system call filter forbids it.
    NotPermitted,
    /// `ENOSYS`: a kernel without fanotify.
    NoFanotify,
    /// `EINVAL`: a kernel before 5.15, which cannot name readers by pidfd.
    NoPidfd,
    /// The group can be had, but it does not name a reader: another process namespace, or a foreign kernel.
    Nameless,
    /// Another error, for example `EMFILE`: too many groups.
    Other(Errno),
}

impl Capability {
    /// Tries it: opens a group, marks a file of its own, reads it, and looks whether the group names us.
    pub fn probe() -> Self {
        match try_out() {
            Ok(true) => Self::Kernel,
            Ok(false) => Self::Without(Why::Nameless),
            Err(errno) => Self::Without(errno.into()),
        }
    }

    /// Whether opens are seen.
    pub const fn sees_opens(&self) -> bool {
        matches!(self, Self::Kernel)
    }
}

impl From<Errno> for Why {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EPERM => Self::NotPermitted,
            Errno::ENOSYS => Self::NoFanotify,
            Errno::EINVAL => Self::NoPidfd,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.write_str("kernel"),
            Self::Without(why) => write!(f, "no kernel evidence: {why}"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPermitted => {
                f.write_str("EPERM: fanotify needs CAP_SYS_ADMIN in the first user namespace, unfiltered")
            }
            Self::NoFanotify => f.write_str("ENOSYS: this kernel has no fanotify"),
            Self::NoPidfd => f.write_str("EINVAL: FAN_REPORT_PIDFD needs Linux 5.15"),
            Self::Nameless => f.write_str("fanotify does not name readers here"),
            Self::Other(errno) => write!(f, "{errno}"),
        }
    }
}

fn try_out() -> Result<bool, Errno> {
    let group = Group::open(Queue::Unlimited).map_err(errno)?;
    let file = rustix::fs::memfd_create("eso-probe", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| Errno::from_raw(error.raw_os_error()))?;
    let inode = group.mark(&file).map_err(errno)?;
    File::open(own_link(&file)).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let batch = group.read();
    Ok(batch.events.iter().any(|event| event.inode == inode && event.pid == own && event.pidfd.is_some()))
}

fn errno(error: GroupError) -> Errno {
    match error {
        GroupError::Open(errno) | GroupError::Mark(errno) | GroupError::Unmark(errno) => errno,
        GroupError::NotOurs(_) | GroupError::Marks(_) => Errno::UnknownErrno,
    }
}
