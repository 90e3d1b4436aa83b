//! Gives each set a tmpfs of its own, by the best means that works here, and says which it was.

use std::path::Path;

use host_policy::MountMode;
use lifecycle::SetName;
use rustix::fs;
use rustix::mount::{FsOpenFlags, MountFlags, fsconfig_set_flag, fsopen, mount};
use units::Systemd;

use crate::directory::open_trusted;
use crate::disk::{Dir, Disk};
use crate::error::SetError;
use crate::inodes::TMPFS_MAGIC;

/// The most bytes of one set's file system: several live versions of the largest set. Only what is used is taken.
const SIZE: &str = "size=16m";
/// The most inodes of one set's file system: several live versions with the most files.
const INODES: &str = "nr_inodes=2048";

/// What a set lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// A tmpfs of its own, mounted by PID 1 as a transient mount unit.
    MountUnit,
    /// A tmpfs of its own, mounted by `mount(2)`.
    Mount,
    /// A plain directory: no inode count, and on a disk the values may outlive their removal.
    Directory,
}

impl Backing {
    /// The word for it in reports.
    pub const fn word(self) -> &'static str {
        match self {
            Self::MountUnit => "mount_unit",
            Self::Mount => "mount",
            Self::Directory => "directory",
        }
    }
}

/// What a set lies on, and why it is nothing better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// What it is.
    pub backing: Backing,
    /// Whether its pages are never written to swap.
    pub noswap: bool,
    /// Why nothing better was taken, in words.
    pub why: Option<String>,
}

/// Makes `sets_dir/NAME` and mounts a tmpfs there, if it is possible and not done already. A file system that is
/// there already stays, whoever mounted it: applications may have files of it open.
pub async fn prepare(
    sets_dir: &Path,
    name: &SetName,
    mode: MountMode,
    systemd: Option<&Systemd>,
) -> Result<Mounted, SetError> {
    let path = sets_dir.join(name.as_str());
    if let Some(noswap) = find(sets_dir, name)? {
        let backing = if systemd.is_some() { Backing::MountUnit } else { Backing::Mount };
        return Ok(Mounted { backing, noswap, why: None });
    }
    let plain = |why: &str| Mounted { backing: Backing::Directory, noswap: false, why: Some(why.to_owned()) };
    if mode == MountMode::Directory {
        return Ok(plain("the policy says mount = \"directory\""));
    }
    if !rustix::process::geteuid().is_root() {
        return Ok(plain("mounting needs root"));
    }
    if is_used(sets_dir, name)? {
        return Ok(plain("the directory holds versions already, and mounting would hide them"));
    }
    let noswap = has_noswap();
    let options = if noswap {
        format!("mode=0755,{SIZE},{INODES},noswap")
    } else {
        format!("mode=0755,{SIZE},{INODES}")
    };
    if let Some(systemd) = systemd {
        let options = format!("nosuid,nodev,noexec,{options}");
        return Ok(match systemd.mount_tmpfs(&path, &options).await {
            Ok(()) => Mounted { backing: Backing::MountUnit, noswap, why: None },
            Err(error) => plain(&error.to_string()),
        });
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = std::ffi::CString::new(options).unwrap_or_default();
    Ok(match mount("tmpfs", &path, "tmpfs", flags, options.as_c_str()) {
        Ok(()) => Mounted { backing: Backing::Mount, noswap, why: None },
        Err(errno) => plain(&format!("mount(2): {errno}")),
    })
}

fn open(sets_dir: &Path, name: &SetName) -> Result<(Dir, Dir), SetError> {
    let disk = Disk::default();
    let parent =
        open_trusted(sets_dir)?.ok_or_else(|| SetError::io("open", sets_dir)(rustix::io::Errno::NOENT))?;
    disk.make_dir(&parent, name.as_str(), 0o755)?;
    let dir = disk.open_dir(&parent, name.as_str())?;
    Ok((parent, dir))
}

/// Whether a tmpfs of its own is there, and then whether it has `noswap`.
fn find(sets_dir: &Path, name: &SetName) -> Result<Option<bool>, SetError> {
    let (parent, dir) = open(sets_dir, name)?;
    let failed = || SetError::io("look at", &dir.path);
    let kind = fs::fstatfs(&dir.fd).map_err(failed())?;
    let own = fs::fstat(&dir.fd).map_err(failed())?.st_dev;
    let above = fs::fstat(&parent.fd).map_err(failed())?.st_dev;
    if i128::from(kind.f_type) != i128::from(TMPFS_MAGIC) || own == above {
        return Ok(None);
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let noswap = mounts.lines().any(|line| {
        let mut fields = line.split(' ');
        let device = fields.nth(2).unwrap_or_default();
        device == format!("{}:{}", fs::major(own), fs::minor(own))
            && line.rsplit(' ').next().unwrap_or_default().split(',').any(|option| option == "noswap")
    });
    Ok(Some(noswap))
}

fn is_used(sets_dir: &Path, name: &SetName) -> Result<bool, SetError> {
    let (_, dir) = open(sets_dir, name)?;
    Ok(!Disk::default().names(&dir)?.is_empty())
}

/// Whether the kernel keeps a tmpfs out of swap when told (Linux 6.4). Asked of a file system that is never mounted.
fn has_noswap() -> bool {
    fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)
        .is_ok_and(|tmpfs| fsconfig_set_flag(&tmpfs, "noswap").is_ok())
}
