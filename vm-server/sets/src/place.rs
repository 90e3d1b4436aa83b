//! A file's fixed place outside its set: a link into it, or a copy.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use host_policy::{Place, PlaceKind};
use zeroize::Zeroizing;

use crate::access;
use crate::directory::open_trusted;
use crate::disk::{self, Dir, Disk, Entry};
use crate::error::SetError;
use crate::set_dir::{Drift, Mark, SetDir, SetFile, drift_of, write_file};

/// The most bytes that are read back from a place.
const PLACE_BYTES_MAX: usize = 1 << 20;
/// How many earlier files of one place are kept aside.
const KEPT_MAX: u32 = 100;

/// How a place differs from what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlaceState {
    /// As it should be.
    Good,
    /// Nothing is there, or its directory is missing.
    Missing,
    /// A link to somewhere else.
    OtherLink(PathBuf),
    /// Not what the policy says: a file where a link should be, or a link, directory or device where a file should.
    OtherKind,
    /// A file with another content, owner, group or mode.
    Drifted(Drift),
}

/// What to do with something that we did not put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Rename it to a name beside the place: at import and at the first write, when it may be the only copy.
    KeepAside,
    /// Replace it: the place was ours before, so this is drift.
    Replace,
}

/// What [`Places::write`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenPlace {
    /// What was there before.
    pub found: PlaceState,
    /// Where a file that was not ours lies now.
    pub kept: Option<PathBuf>,
}

/// A place that was not as it should be and was put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// The place.
    pub path: PathBuf,
    /// How it was found.
    pub found: PlaceState,
}

/// The places of one set.
pub struct Places<'s> {
    set: &'s SetDir,
    disk: Disk,
}

impl<'s> Places<'s> {
    /// The places of this set.
    pub fn of(set: &'s SetDir, disk: Disk) -> Self {
        Self { set, disk }
    }

    /// How a place looks, when it should show these files. An error means that it cannot be known.
    pub fn look(&self, place: &Place, files: &[SetFile]) -> Result<PlaceState, SetError> {
        match split(&place.path)? {
            None => Ok(PlaceState::Missing),
            Some((dir, name)) => self.look_in(&dir, &name, place, files),
        }
    }

    fn look_in(
        &self,
        dir: &Dir,
        name: &str,
        place: &Place,
        files: &[SetFile],
    ) -> Result<PlaceState, SetError> {
        let Some((entry, _)) = self.disk.entry(dir, name)? else { return Ok(PlaceState::Missing) };
        match (place.kind, entry) {
            (PlaceKind::Link, Entry::Link) => match self.disk.target(dir, name)? {
                Some(target) if target == self.set.data_path(&place.file) => Ok(PlaceState::Good),
                Some(target) => Ok(PlaceState::OtherLink(target)),
                None => Ok(PlaceState::Missing),
            },
            (PlaceKind::Copy, Entry::File) => {
                let content = &content_of(place, files)?.content;
                let ids = access::resolve(&place.access)?;
                Ok(match drift_of(&self.disk, dir, name, content, ids)? {
                    None => PlaceState::Good,
                    Some(Drift::Missing) => PlaceState::Missing,
                    Some(drift) => PlaceState::Drifted(drift),
                })
            }
            _ => Ok(PlaceState::OtherKind),
        }
    }

    /// Makes a place show these files; `mark` gets the inode of a copy before it is visible. The place changes in
    /// one rename or not at all. A place that is good is not touched.
    pub fn write(
        &self,
        place: &Place,
        files: &[SetFile],
        existing: Existing,
        mark: &mut Mark<'_>,
    ) -> Result<WrittenPlace, SetError> {
        let Some((dir, name)) = split(&place.path)? else {
            return Err(SetError::io("open", place.directory())(rustix::io::Errno::NOENT));
        };
        let found = self.look_in(&dir, &name, place, files)?;
        if found == PlaceState::Good {
            return Ok(WrittenPlace { found, kept: None });
        }
        let making = format!(".{name}.eso-new");
        self.disk.unlink(&dir, &making)?;
        let written = self.prepare(&dir, &making, place, files, mark).and_then(|()| {
            let kept = match existing {
                Existing::KeepAside => self.keep_aside(&dir, &name, &found)?,
                Existing::Replace => None,
            };
            self.disk.rename(&dir, &making, &name)?;
            self.disk.sync(dir.fd.as_fd(), &dir.path)?;
            Ok(kept)
        });
        match written {
            Ok(kept) => Ok(WrittenPlace { found, kept }),
            Err(error) => {
                // What stays when this fails too is removed by the next write.
                let _ = self.disk.unlink(&dir, &making);
                Err(error)
            }
        }
    }

    fn prepare(
        &self,
        dir: &Dir,
        making: &str,
        place: &Place,
        files: &[SetFile],
        mark: &mut Mark<'_>,
    ) -> Result<(), SetError> {
        match place.kind {
            PlaceKind::Link => self.disk.link(dir, making, &self.set.data_path(&place.file)),
            PlaceKind::Copy => {
                let content = &content_of(place, files)?.content;
                let ids = access::resolve(&place.access)?;
                let path = place.path.to_string_lossy();
                write_file(&self.disk, dir, making, content, ids, &mut |fd| mark(&path, fd))
            }
        }
    }

    /// A second name for what is there: the place itself never becomes empty. A link is nobody's only copy, and a
    /// copy of ours with another version is no foreign file either, but nothing tells it apart: it is kept too.
    fn keep_aside(&self, dir: &Dir, name: &str, found: &PlaceState) -> Result<Option<PathBuf>, SetError> {
        let is_file = match found {
            PlaceState::OtherKind | PlaceState::OtherLink(_) => true,
            PlaceState::Drifted(drift) => *drift != Drift::Missing,
            PlaceState::Good | PlaceState::Missing => false,
        };
        if !is_file {
            return Ok(None);
        }
        for number in 1..=KEPT_MAX {
            let aside = format!("{name}.before-eso-{number}");
            if self.disk.second_name(dir, name, &aside)? {
                return Ok(Some(dir.path.join(aside)));
            }
        }
        Err(SetError::Foreign(dir.path.join(format!("{name}.before-eso-{KEPT_MAX}"))))
    }

    /// Looks at every place and puts right what is not as it should be. One that fails keeps no other from it.
    pub fn repair(
        &self,
        places: &[Place],
        files: &[SetFile],
        mark: &mut Mark<'_>,
    ) -> Vec<Result<Repaired, (PathBuf, SetError)>> {
        let one = |place: &Place, mark: &mut Mark<'_>| match self.write(place, files, Existing::Replace, mark)
        {
            Ok(WrittenPlace { found: PlaceState::Good, .. }) => None,
            Ok(written) => Some(Ok(Repaired { path: place.path.clone(), found: written.found })),
            Err(error) => Some(Err((place.path.clone(), error))),
        };
        places.iter().filter_map(|place| one(place, mark)).collect()
    }

    /// What lies at a path now, for showing that it does not hold a version: `None` when nothing is there, or only a
    /// link (which shows the current version or nothing). Works for places that the policy no longer names. An
    /// error means that it cannot be known.
    pub fn read_back(&self, path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, SetError> {
        let Some((dir, name)) = split(path)? else { return Ok(None) };
        match self.disk.entry(&dir, &name)? {
            None | Some((Entry::Link, _)) => Ok(None),
            Some((Entry::File, _)) => {
                let file = self.disk.open_file(&dir, &name)?;
                disk::read(&file, PLACE_BYTES_MAX, path).map(Some)
            }
            Some(_) => Err(SetError::Foreign(path.to_owned())),
        }
    }

    /// Takes a place away: a link that leads into this set, or a file that says exactly what `content` does.
    /// Anything else is not ours and stays; `false` then.
    pub fn remove(&self, path: &Path, content: Option<&[u8]>) -> Result<bool, SetError> {
        let Some((dir, name)) = split(path)? else { return Ok(false) };
        let ours = match self.disk.entry(&dir, &name)? {
            Some((Entry::Link, _)) => {
                self.disk.target(&dir, &name)?.is_some_and(|target| target.starts_with(self.set.path()))
            }
            Some((Entry::File, _)) => {
                let found = disk::read(&self.disk.open_file(&dir, &name)?, PLACE_BYTES_MAX, path)?;
                content.is_some_and(|content| content == found.as_slice())
            }
            _ => false,
        };
        if ours {
            self.disk.unlink(&dir, &name)?;
            self.disk.sync(dir.fd.as_fd(), &dir.path)?;
        }
        Ok(ours)
    }
}

fn split(path: &Path) -> Result<Option<(Dir, String)>, SetError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(SetError::FileName(path.to_string_lossy().into_owned()));
    };
    Ok(open_trusted(parent)?.map(|dir| (dir, name.to_owned())))
}

fn content_of<'f>(place: &Place, files: &'f [SetFile]) -> Result<&'f SetFile, SetError> {
    files.iter().find(|file| file.name == place.file).ok_or_else(|| SetError::NoSuchFile(place.file.clone()))
}
