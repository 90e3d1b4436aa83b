//! Opens a directory of which nobody but us decides what lies in it.

use std::path::{Component, Path};

use rustix::fs::{self, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::disk::Dir;
use crate::error::SetError;

const STICKY: u32 = 0o1000;
const OTHERS_WRITE: u32 = 0o022;

/// Walks down from the root, one name at a time, following no link, and looks at every directory on the way: whoever
/// may write one of them could put another in the next one's stead. `None` when a directory does not exist.
pub(crate) fn open_trusted(path: &Path) -> Result<Option<Dir>, SetError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let failed = |path: &Path| SetError::io("open", path);
    let root = fs::open("/", flags, Mode::empty()).map_err(failed(Path::new("/")))?;
    let mut dir = Dir { fd: root, path: "/".into() };
    check(&dir, path == Path::new("/"))?;
    let mut names = path.components().peekable();
    while let Some(name) = names.next() {
        let Component::Normal(name) = name else { continue };
        let next = dir.path.join(name);
        // The directories on the way need only be searchable for us, not readable.
        let last = names.peek().is_none();
        let flags = if last { flags } else { flags | OFlags::PATH };
        let fd = match fs::openat(&dir.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            // With O_NOFOLLOW and O_DIRECTORY a link is "not a directory": say what it is.
            Err(Errno::NOTDIR) if is_link(&dir, name) => return Err(failed(&next)(Errno::LOOP)),
            Err(errno) => return Err(failed(&next)(errno)),
        };
        dir = Dir { fd, path: next };
        check(&dir, last)?;
    }
    Ok(Some(dir))
}

fn is_link(dir: &Dir, name: &std::ffi::OsStr) -> bool {
    fs::statat(&dir.fd, name, fs::AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| fs::FileType::from_raw_mode(stat.st_mode) == fs::FileType::Symlink)
}

fn check(dir: &Dir, last: bool) -> Result<(), SetError> {
    let stat: Stat = fs::fstat(&dir.fd).map_err(SetError::io("look at", &dir.path))?;
    let path = dir.path.clone();
    let ours = rustix::process::geteuid().as_raw();
    if stat.st_uid != 0 && stat.st_uid != ours {
        let remedy = format!("run `chown root {}` or choose another directory", path.display());
        return Err(SetError::Untrusted { why: format!("belongs to user {}", stat.st_uid), path, remedy });
    }
    // In a sticky directory nobody but the owner replaces an entry, so it may stand on the way (`/tmp`); but others
    // may take a name in it before we do.
    let sticky_on_the_way = stat.st_mode & STICKY != 0 && !last;
    if stat.st_mode & OTHERS_WRITE != 0 && !sticky_on_the_way {
        let remedy = format!("run `chmod go-w {}` or choose another directory", path.display());
        return Err(SetError::Untrusted { why: "may be written by others".into(), path, remedy });
    }
    Ok(())
}
