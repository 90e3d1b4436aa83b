//! One set's directory: versions come whole, change in one rename, and go.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use host_policy::SetPolicy;
use lifecycle::{SetName, Version};
use zeroize::Zeroizing;

use crate::access::{self, Ids};
use crate::directory::open_trusted;
use crate::disk::{self, Dir, Disk, Entry};
use crate::error::SetError;
use crate::inodes::{self, Inodes};

/// The link to the current version.
const DATA: &str = "..data";
/// The same in the making.
const DATA_NEW: &str = "..data.new";
/// What a version's directory is called before it is whole.
const NEW: &str = "..new-";
/// What it is called once it is on its way out.
const GONE: &str = "..gone-";
/// A single file in the making, inside a version.
const FILE_NEW: &str = "..file.new";
/// Nobody else looks into a version before it is current.
const HIDDEN: u32 = 0o700;
/// Directories are no secret: applications watch them. Each file has a mode of its own.
const SHOWN: u32 = 0o755;
/// The most bytes of one file that are read back.
const FILE_BYTES_MAX: usize = 1 << 20;

/// One file of a set. It has no text form, since its content is secret.
pub struct SetFile {
    /// Its name in the set.
    pub name: String,
    /// What it says. Wiped when dropped.
    pub content: Zeroizing<Vec<u8>>,
}

/// Called with every new file, under its name in the set or the path of its place, before anybody else can open it:
/// for marking its inode. An error fails the operation, and nothing becomes visible.
pub type Mark<'m> = dyn FnMut(&str, BorrowedFd<'_>) -> std::io::Result<()> + 'm;

/// What [`SetDir::recover`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The version that readers find.
    pub current: Option<Version>,
    /// All whole versions.
    pub present: BTreeSet<Version>,
    /// What was half made or half removed, and is gone now.
    pub removed: Vec<String>,
}

/// How a file of a version differs from what was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drift {
    /// It is not there.
    Missing,
    /// Its content is another.
    Edited,
    /// Its owner, group or mode is another; as found.
    Access {
        /// The user id found.
        uid: u32,
        /// The group id found.
        gid: u32,
        /// The permission bits found.
        mode: u32,
    },
    /// It is no regular file.
    NotAFile,
    /// It was not delivered.
    Extra,
}

/// One set's directory, held open.
pub struct SetDir {
    dir: Dir,
    disk: Disk,
}

impl SetDir {
    /// Opens `sets_dir/NAME` and makes it when it is missing. `sets_dir` and everything above it must be ours or
    /// root's, and nobody else's to write.
    pub fn open(sets_dir: &Path, name: &SetName, disk: Disk) -> Result<Self, SetError> {
        let parent = open_trusted(sets_dir)?
            .ok_or_else(|| SetError::io("open", sets_dir)(rustix::io::Errno::NOENT))?;
        disk.make_dir(&parent, name.as_str(), SHOWN)?;
        let dir = disk.open_dir(&parent, name.as_str())?;
        // The mask of whoever started us may have taken bits away.
        disk.allow(dir.fd.as_fd(), SHOWN, &dir.path)?;
        Ok(Self { dir, disk })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir.path
    }

    /// Where a file of the current version is found: what a `link` place leads to.
    pub fn data_path(&self, file: &str) -> PathBuf {
        self.dir.path.join(DATA).join(file)
    }

    /// Removes whatever a crash left half done. To be called once after opening, before anything else.
    pub fn recover(&self) -> Result<Recovered, SetError> {
        let mut removed = Vec::new();
        for name in self.disk.names(&self.dir)? {
            if name.starts_with(NEW) || name.starts_with(GONE) {
                // What cannot be removed is in the way of its own version only: who stages or unlinks that is told.
                if self.disk.remove_dir(&self.dir, &name).is_err() {
                    continue;
                }
            } else if name == DATA_NEW {
                self.disk.unlink(&self.dir, &name)?;
            } else {
                if let Some(version) = version_of(&name) {
                    removed.extend(self.drop_unfinished_files(version)?);
                }
                continue;
            }
            removed.push(name);
        }
        Ok(Recovered { current: self.current()?, present: self.present()?, removed })
    }

    fn drop_unfinished_files(&self, version: Version) -> Result<Option<String>, SetError> {
        let dir = self.version_dir(version)?;
        Ok(self.disk.unlink(&dir, FILE_NEW)?.then(|| format!("{}/{FILE_NEW}", name_of(version))))
    }

    /// The version that readers find now.
    pub fn current(&self) -> Result<Option<Version>, SetError> {
        let Some(target) = self.disk.target(&self.dir, DATA)? else { return Ok(None) };
        let version = target.to_str().and_then(version_of);
        version.map(Some).ok_or_else(|| SetError::Foreign(self.dir.path.join(DATA)))
    }

    /// The versions that lie here whole.
    pub fn present(&self) -> Result<BTreeSet<Version>, SetError> {
        Ok(self.disk.names(&self.dir)?.iter().filter_map(|name| version_of(name)).collect())
    }

    /// Writes a version, whole and invisible. Every file is created with mode 0000, then gets its owner, its mode and
    /// its content. A version that is here already with the same content is left as it is, its files are only
    /// marked again.
    pub fn stage(
        &self,
        version: Version,
        files: &[SetFile],
        policy: &SetPolicy,
        mark: &mut Mark<'_>,
    ) -> Result<(), SetError> {
        check_names(files)?;
        if self.present()?.contains(&version) {
            return self.stage_again(version, files, mark);
        }
        let name = name_of(version);
        let making = format!("{NEW}{name}");
        self.disk.remove_dir(&self.dir, &making)?;
        let staged = self.write_version(&making, files, policy, mark).and_then(|()| {
            if !self.disk.rename_new(&self.dir, &making, &name)? {
                return Err(SetError::Foreign(self.dir.path.join(&name)));
            }
            self.disk.sync(self.dir.fd.as_fd(), &self.dir.path)
        });
        if staged.is_err() {
            // What stays when this fails too is removed by the next try or by `recover`.
            let _ = self.disk.remove_dir(&self.dir, &making);
        }
        staged
    }

    fn stage_again(&self, version: Version, files: &[SetFile], mark: &mut Mark<'_>) -> Result<(), SetError> {
        let known = self.read(version)?;
        let same = known.len() == files.len()
            && files.iter().all(|file| {
                known.iter().any(|known| known.name == file.name && known.content == file.content)
            });
        if !same {
            return Err(SetError::OtherContent(version));
        }
        self.mark_again(version, mark)
    }

    fn write_version(
        &self,
        making: &str,
        files: &[SetFile],
        policy: &SetPolicy,
        mark: &mut Mark<'_>,
    ) -> Result<(), SetError> {
        self.disk.make_dir(&self.dir, making, HIDDEN)?;
        let dir = self.disk.open_dir(&self.dir, making)?;
        for file in files {
            let ids = access::resolve(policy.access_of(&file.name))?;
            write_file(&self.disk, &dir, &file.name, &file.content, ids, &mut |fd| mark(&file.name, fd))?;
        }
        self.disk.sync(dir.fd.as_fd(), &dir.path)
    }

    /// Marks the files of a version that is here already, after a time without marks.
    pub fn mark_again(&self, version: Version, mark: &mut Mark<'_>) -> Result<(), SetError> {
        let dir = self.version_dir(version)?;
        for name in self.disk.names(&dir)? {
            // An opening of ours that is still in the kernel's queue when we are killed would be a reader that nobody
            // knows.
            let file = self.disk.refer_to(&dir, &name)?;
            let path = dir.path.join(&name);
            mark(&name, file.as_fd()).map_err(|source| SetError::Io { doing: "mark", path, source })?;
        }
        Ok(())
    }

    /// Lets everybody look into a version's directory (its files keep their modes), so that a validation command of
    /// another user can read them. [`Self::flip`] does the same.
    pub fn show(&self, version: Version) -> Result<(), SetError> {
        let dir = self.version_dir(version)?;
        self.disk.allow(dir.fd.as_fd(), SHOWN, &dir.path)
    }

    /// Makes a version the current one: one rename of the link.
    pub fn flip(&self, version: Version) -> Result<(), SetError> {
        if self.current()? == Some(version) {
            return Ok(());
        }
        self.show(version)?;
        self.disk.unlink(&self.dir, DATA_NEW)?;
        self.disk.link(&self.dir, DATA_NEW, Path::new(&name_of(version)))?;
        self.disk.rename(&self.dir, DATA_NEW, DATA)?;
        self.disk.sync(self.dir.fd.as_fd(), &self.dir.path)
    }

    /// Takes the current link away: readers find nothing any more. Only when this version is current.
    pub fn withdraw(&self, version: Version) -> Result<(), SetError> {
        if self.current()? == Some(version) {
            self.disk.unlink(&self.dir, DATA)?;
            self.disk.sync(self.dir.fd.as_fd(), &self.dir.path)?;
        }
        Ok(())
    }

    /// Removes a version that is not current, and says whether anything of it was here.
    pub fn unlink(&self, version: Version) -> Result<bool, SetError> {
        if self.current()? == Some(version) {
            return Err(SetError::Current(version));
        }
        let name = name_of(version);
        let leaving = format!("{GONE}{name}");
        let mut was_here = self.disk.remove_dir(&self.dir, &leaving)?;
        was_here |= self.disk.remove_dir(&self.dir, &format!("{NEW}{name}"))?;
        if self.disk.entry(&self.dir, &name)?.is_some() {
            self.disk.rename(&self.dir, &name, &leaving)?;
            was_here |= self.disk.remove_dir(&self.dir, &leaving)?;
        }
        self.disk.sync(self.dir.fd.as_fd(), &self.dir.path)?;
        Ok(was_here)
    }

    /// Reads a version back.
    pub fn read(&self, version: Version) -> Result<Vec<SetFile>, SetError> {
        let dir = self.version_dir(version)?;
        let mut files = Vec::new();
        for name in self.disk.names(&dir)? {
            let opened = self.disk.open_file(&dir, &name)?;
            let content = disk::read(&opened, FILE_BYTES_MAX, &dir.path.join(&name))?;
            files.push(SetFile { name, content });
        }
        Ok(files)
    }

    /// The open directory of a version.
    pub fn version_fd(&self, version: Version) -> Result<OwnedFd, SetError> {
        Ok(self.version_dir(version)?.fd)
    }

    /// How the files of a version differ from what was delivered.
    pub fn drift(
        &self,
        version: Version,
        files: &[SetFile],
        policy: &SetPolicy,
    ) -> Result<Vec<(String, Drift)>, SetError> {
        let dir = self.version_dir(version)?;
        let mut drifts = Vec::new();
        for file in files {
            let ids = access::resolve(policy.access_of(&file.name))?;
            if let Some(drift) = drift_of(&self.disk, &dir, &file.name, &file.content, ids)? {
                drifts.push((file.name.clone(), drift));
            }
        }
        for name in self.disk.names(&dir)? {
            if !files.iter().any(|file| file.name == name) {
                drifts.push((name, Drift::Extra));
            }
        }
        Ok(drifts)
    }

    /// Puts every file of a version right, each by one rename, and says what was found.
    pub fn repair(
        &self,
        version: Version,
        files: &[SetFile],
        policy: &SetPolicy,
        mark: &mut Mark<'_>,
    ) -> Result<Vec<(String, Drift)>, SetError> {
        let found = self.drift(version, files, policy)?;
        if found.is_empty() {
            return Ok(found);
        }
        let dir = self.version_dir(version)?;
        for (name, _) in &found {
            let Some(file) = files.iter().find(|file| file.name == *name) else {
                self.disk.unlink(&dir, name)?;
                continue;
            };
            let ids = access::resolve(policy.access_of(name))?;
            self.disk.unlink(&dir, FILE_NEW)?;
            write_file(&self.disk, &dir, FILE_NEW, &file.content, ids, &mut |fd| mark(name, fd))?;
            self.disk.rename(&dir, FILE_NEW, name)?;
        }
        self.disk.sync(dir.fd.as_fd(), &dir.path)?;
        Ok(found)
    }

    /// The kernel's count of inodes against ours. `None` when the set has no tmpfs of its own, so that the count
    /// would say nothing.
    pub fn inodes(&self) -> Result<Option<Inodes>, SetError> {
        inodes::count(&self.disk, &self.dir)
    }

    fn version_dir(&self, version: Version) -> Result<Dir, SetError> {
        let name = name_of(version);
        match self.disk.entry(&self.dir, &name)? {
            Some((Entry::Directory, _)) => self.disk.open_dir(&self.dir, &name),
            Some(_) => Err(SetError::Foreign(self.dir.path.join(name))),
            None => Err(SetError::Missing(version)),
        }
    }
}

/// Creates a file that nobody may open, then gives it owner, mode, content, in that order, and makes it durable.
pub(crate) fn write_file(
    disk: &Disk,
    dir: &Dir,
    name: &str,
    content: &[u8],
    ids: Ids,
    mark: &mut dyn FnMut(BorrowedFd<'_>) -> std::io::Result<()>,
) -> Result<(), SetError> {
    let path = dir.path.join(name);
    let file = disk.create(dir, name)?;
    disk.own(file.as_fd(), ids, &path)?;
    // Before anybody could open it: mode 0000 still stands.
    mark(file.as_fd()).map_err(|source| SetError::Io { doing: "mark", path: path.clone(), source })?;
    disk.allow(file.as_fd(), ids.mode, &path)?;
    disk.write(&file, content, &path)?;
    disk.sync(file.as_fd(), &path)
}

/// How one file differs from what it should be.
pub(crate) fn drift_of(
    disk: &Disk,
    dir: &Dir,
    name: &str,
    content: &[u8],
    ids: Ids,
) -> Result<Option<Drift>, SetError> {
    let Some((entry, _)) = disk.entry(dir, name)? else { return Ok(Some(Drift::Missing)) };
    if entry != Entry::File {
        return Ok(Some(Drift::NotAFile));
    }
    let path = dir.path.join(name);
    let file = disk.open_file(dir, name)?;
    let stat = rustix::fs::fstat(&file).map_err(SetError::io("look at", &path))?;
    let found = disk::read(&file, content.len().max(FILE_BYTES_MAX), &path)?;
    if found.as_slice() != content {
        return Ok(Some(Drift::Edited));
    }
    let found = Ids { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777 };
    Ok((found != ids).then_some(Drift::Access { uid: found.uid, gid: found.gid, mode: found.mode }))
}

fn check_names(files: &[SetFile]) -> Result<(), SetError> {
    let mut seen = BTreeSet::new();
    for file in files {
        if host_policy::path::check_file_name(&file.name).is_err() || !seen.insert(&file.name) {
            return Err(SetError::FileName(file.name.chars().take(80).collect()));
        }
    }
    Ok(())
}

/// A version's directory. Always both numbers, so that no two versions share a name.
fn name_of(version: Version) -> String {
    format!("v{}.{}", version.epoch, version.number)
}

fn version_of(name: &str) -> Option<Version> {
    let (epoch, number) = name.strip_prefix('v')?.split_once('.')?;
    let version = Version::new(epoch.parse().ok()?, number.parse().ok()?);
    // `v01.7` or `v+1.7` would be a second name of the same version.
    (name_of(version) == name).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_one_name() {
        let version = Version::new(2, 17);
        assert_eq!(version_of(&name_of(version)), Some(version));
        for other in ["v02.17", "v+2.17", "v2.17x", "2.17", "v2", "..data", "v2.-1"] {
            assert_eq!(version_of(other), None, "{other}");
        }
    }
}
