//! Every system call that changes a set or a place, one method each.
//!
//! They go through one [`Gate`], so that a test can stop at each of them in turn without a list of them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;

use crate::access::Ids;
use crate::error::SetError;

/// Asked before every operation. Nobody is asked unless one is given.
pub trait Gate: Send + Sync {
    /// An error stands for the operation's own failure.
    fn before(&self, operation: &'static str) -> Result<(), std::io::Error>;
}

/// The operating system's files.
#[derive(Clone, Default)]
pub struct Disk(Option<Arc<dyn Gate>>);

impl Disk {
    /// One whose operations ask this gate first.
    pub fn gated(gate: Arc<dyn Gate>) -> Self {
        Self(Some(gate))
    }

    fn gate(&self, operation: &'static str) -> Result<(), Errno> {
        match &self.0 {
            None => Ok(()),
            Some(gate) => gate
                .before(operation)
                .map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)),
        }
    }
}

/// Nothing leads out of the directory that an operation starts from.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// A directory that is held open, and its path for messages.
pub(crate) struct Dir {
    pub(crate) fd: OwnedFd,
    pub(crate) path: std::path::PathBuf,
}

/// What lies at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    File,
    Directory,
    Link,
    Other,
}

impl Entry {
    fn of(stat: &Stat) -> Self {
        match fs::FileType::from_raw_mode(stat.st_mode) {
            fs::FileType::RegularFile => Self::File,
            fs::FileType::Directory => Self::Directory,
            fs::FileType::Symlink => Self::Link,
            _ => Self::Other,
        }
    }
}

impl Dir {
    fn at(&self, name: &str) -> std::path::PathBuf {
        self.path.join(name)
    }
}

impl Disk {
    /// Opens a directory that lies directly in `dir`.
    pub(crate) fn open_dir(&self, dir: &Dir, name: &str) -> Result<Dir, SetError> {
        let path = dir.at(name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = || fs::openat2(dir.fd.as_fd(), name, flags, Mode::empty(), BENEATH);
        let fd = self.gate("open_dir").and_then(|()| retry(open)).map_err(SetError::io("open", &path))?;
        Ok(Dir { fd, path })
    }

    /// Makes a directory; `false` when it was there.
    pub(crate) fn make_dir(&self, dir: &Dir, name: &str, mode: u32) -> Result<bool, SetError> {
        match self.gate("make_dir").and_then(|()| fs::mkdirat(dir.fd.as_fd(), name, bits(mode))) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(SetError::io("make", &dir.at(name))(errno)),
        }
    }

    /// Creates a file that nobody may open: it must not exist, and has mode 0000.
    pub(crate) fn create(&self, dir: &Dir, name: &str) -> Result<OwnedFd, SetError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || fs::openat2(dir.fd.as_fd(), name, flags, Mode::empty(), BENEATH);
        self.gate("create").and_then(|()| retry(open)).map_err(SetError::io("create", &dir.at(name)))
    }

    /// Opens a file to read it. A pipe or device there does not block.
    pub(crate) fn open_file(&self, dir: &Dir, name: &str) -> Result<OwnedFd, SetError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let open = || fs::openat2(dir.fd.as_fd(), name, flags, Mode::empty(), BENEATH);
        self.gate("open_file").and_then(|()| retry(open)).map_err(SetError::io("open", &dir.at(name)))
    }

    /// Refers to a file without opening it: whoever watches openings sees nothing of it.
    pub(crate) fn refer_to(&self, dir: &Dir, name: &str) -> Result<OwnedFd, SetError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || fs::openat2(dir.fd.as_fd(), name, flags, Mode::empty(), BENEATH);
        self.gate("refer_to").and_then(|()| retry(open)).map_err(SetError::io("look at", &dir.at(name)))
    }

    /// Gives a file its owner, where that is another than ours.
    pub(crate) fn own(&self, file: BorrowedFd<'_>, ids: Ids, path: &Path) -> Result<(), SetError> {
        let stat = fs::fstat(file).map_err(SetError::io("look at", path))?;
        if stat.st_uid == ids.uid && stat.st_gid == ids.gid {
            return Ok(());
        }
        let owner = (Some(Uid::from_raw(ids.uid)), Some(Gid::from_raw(ids.gid)));
        self.gate("own")
            .and_then(|()| fs::fchown(file, owner.0, owner.1))
            .map_err(SetError::io("change the owner of", path))
    }

    /// Gives a file or directory its mode.
    pub(crate) fn allow(&self, file: BorrowedFd<'_>, mode: u32, path: &Path) -> Result<(), SetError> {
        self.gate("allow")
            .and_then(|()| fs::fchmod(file, bits(mode)))
            .map_err(SetError::io("change the mode of", path))
    }

    /// Writes the whole content.
    pub(crate) fn write(&self, file: &OwnedFd, content: &[u8], path: &Path) -> Result<(), SetError> {
        self.gate("write").map_err(SetError::io("write", path))?;
        let mut rest = content;
        while !rest.is_empty() {
            let written = retry(|| rustix::io::write(file, rest)).map_err(SetError::io("write", path))?;
            if written == 0 {
                return Err(SetError::io("write", path)(Errno::NOSPC));
            }
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Makes a file or directory durable.
    pub(crate) fn sync(&self, file: BorrowedFd<'_>, path: &Path) -> Result<(), SetError> {
        self.gate("sync").and_then(|()| fs::fsync(file)).map_err(SetError::io("sync", path))
    }

    /// Makes a symbolic link.
    pub(crate) fn link(&self, dir: &Dir, name: &str, target: &Path) -> Result<(), SetError> {
        self.gate("link")
            .and_then(|()| fs::symlinkat(target, dir.fd.as_fd(), name))
            .map_err(SetError::io("make the link", &dir.at(name)))
    }

    /// Renames within one directory, over what is there.
    pub(crate) fn rename(&self, dir: &Dir, from: &str, to: &str) -> Result<(), SetError> {
        self.gate("rename")
            .and_then(|()| fs::renameat(dir.fd.as_fd(), from, dir.fd.as_fd(), to))
            .map_err(SetError::io("rename to", &dir.at(to)))
    }

    /// Renames within one directory; `false` when something is there.
    pub(crate) fn rename_new(&self, dir: &Dir, from: &str, to: &str) -> Result<bool, SetError> {
        let fd = dir.fd.as_fd();
        let renamed = self
            .gate("rename_new")
            .and_then(|()| fs::renameat_with(fd, from, fd, to, RenameFlags::NOREPLACE));
        match renamed {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(SetError::io("rename to", &dir.at(to))(errno)),
        }
    }

    /// Gives what lies at a name a second one in the same directory; `false` when that is taken.
    pub(crate) fn second_name(&self, dir: &Dir, name: &str, second: &str) -> Result<bool, SetError> {
        let fd = dir.fd.as_fd();
        match self.gate("second_name").and_then(|()| fs::linkat(fd, name, fd, second, AtFlags::empty())) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(SetError::io("keep aside as", &dir.at(second))(errno)),
        }
    }

    /// Unlinks a file or link; `false` when nothing was there.
    pub(crate) fn unlink(&self, dir: &Dir, name: &str) -> Result<bool, SetError> {
        self.remove(dir, name, AtFlags::empty(), "unlink")
    }

    fn remove(
        &self,
        dir: &Dir,
        name: &str,
        flags: AtFlags,
        operation: &'static str,
    ) -> Result<bool, SetError> {
        match self.gate(operation).and_then(|()| fs::unlinkat(dir.fd.as_fd(), name, flags)) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(SetError::io("remove", &dir.at(name))(errno)),
        }
    }

    /// Removes a directory with all that is in it, and says whether it was there.
    pub(crate) fn remove_dir(&self, dir: &Dir, name: &str) -> Result<bool, SetError> {
        match self.entry(dir, name)? {
            None => return Ok(false),
            Some((Entry::Directory, _)) => {}
            Some(_) => return self.unlink(dir, name),
        }
        let inner = self.open_dir(dir, name)?;
        // What is mounted there is somebody else's.
        let device = |dir: &Dir| {
            fs::fstat(&dir.fd).map(|stat| stat.st_dev).map_err(SetError::io("look at", &dir.path))
        };
        if device(&inner)? != device(dir)? {
            return Err(SetError::io("remove", &inner.path)(Errno::BUSY));
        }
        for file in self.names(&inner)? {
            // What somebody else has put there goes with it.
            self.remove_dir(&inner, &file)?;
        }
        self.remove(dir, name, AtFlags::REMOVEDIR, "remove_dir")
    }

    /// What lies at a name, not following a link.
    pub(crate) fn entry(&self, dir: &Dir, name: &str) -> Result<Option<(Entry, Stat)>, SetError> {
        let look = || fs::statat(dir.fd.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW);
        match self.gate("entry").and_then(|()| look()) {
            Ok(stat) => Ok(Some((Entry::of(&stat), stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(SetError::io("look at", &dir.at(name))(errno)),
        }
    }

    /// Where a link leads; `None` when nothing is there.
    pub(crate) fn target(&self, dir: &Dir, name: &str) -> Result<Option<std::path::PathBuf>, SetError> {
        match self.gate("target").and_then(|()| fs::readlinkat(dir.fd.as_fd(), name, Vec::new())) {
            Ok(target) => {
                use std::os::unix::ffi::OsStringExt;
                Ok(Some(std::ffi::OsString::from_vec(target.into_bytes()).into()))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(SetError::io("read the link", &dir.at(name))(errno)),
        }
    }

    /// The names in a directory. One that is not UTF-8 is foreign.
    pub(crate) fn names(&self, dir: &Dir) -> Result<Vec<String>, SetError> {
        let failed = || SetError::io("list", &dir.path);
        let mut names = Vec::new();
        self.gate("names").map_err(failed())?;
        for entry in fs::Dir::read_from(dir.fd.as_fd()).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            match entry.file_name().to_str() {
                Ok("." | "..") => {}
                Ok(name) => names.push(name.to_owned()),
                Err(_) => {
                    let name = entry.file_name().to_string_lossy();
                    return Err(SetError::Foreign(dir.at(&name)));
                }
            }
        }
        names.sort();
        Ok(names)
    }
}

/// Reads a file whole, but never more than its length when we looked and one byte, and never more than `limit`.
pub(crate) fn read(
    file: &OwnedFd,
    limit: usize,
    path: &Path,
) -> Result<zeroize::Zeroizing<Vec<u8>>, SetError> {
    let stat = fs::fstat(file).map_err(SetError::io("look at", path))?;
    if fs::FileType::from_raw_mode(stat.st_mode) != fs::FileType::RegularFile {
        return Err(SetError::Foreign(path.to_owned()));
    }
    // Filled in place: a vector that grew would leave copies of the value behind. The byte more shows that the file
    // grew meanwhile, so that it compares as another.
    let length = usize::try_from(stat.st_size).unwrap_or(limit).min(limit) + 1;
    let mut content = zeroize::Zeroizing::new(vec![0; length]);
    let mut length = 0;
    while let Some(rest) = content.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match retry(|| rustix::io::read(file, &mut *rest)).map_err(SetError::io("read", path))? {
            0 => break,
            read => length += read,
        }
    }
    content.truncate(length);
    Ok(content)
}

/// Permission bits as the system takes them.
pub(crate) fn bits(mode: u32) -> Mode {
    Mode::from_raw_mode(mode)
}

/// `openat2` says `EAGAIN` when a path changed under it; a signal may end any call early.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    const TRIES_MAX: u32 = 128;
    for _ in 0..TRIES_MAX {
        match call() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOSYS) => return Err(Errno::NOTSUP),
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}
