//! A start of one set: what lies here is found or made again, watched again, and told to its machine.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use host_policy::{Access, Place, SetPolicy};
use lifecycle::host::HostEvent;
use lifecycle::{BootId, Evidence, Millis, SetName, Version};
use opens::Inode;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use sets::{Places, SetDir, SetError, mount};

use crate::clock;
use crate::copies::CopyError;
use crate::journal::JournalError;
use crate::record::SetRecord;
use crate::set::{Set, set_files};
use crate::tools::Tools;

/// How long PID 1 may take over a mount.
const MOUNT_MAX: Duration = Duration::from_secs(30);
/// How long a disk that fails is tried before what it does not give is taken to be lost.
const READ_MAX: Duration = Duration::from_secs(30);
/// The pause before a start is tried again; it doubles.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(5);

impl Set {
    /// Opens the set's directory, on a file system of its own where that works.
    pub(crate) fn open_dir(&mut self, tools: &mut Tools) -> Result<(), SetError> {
        if self.dir.is_some() {
            return Ok(());
        }
        let sets_dir = tools.daemon.sets_dir();
        let supervisor = tools.tasks.supervisor().clone();
        let mode = tools.daemon.mount;
        let (at, name) = (sets_dir.clone(), self.name.clone());
        let mounted = async move { mount::prepare(&at, &name, mode, supervisor.systemd()).await };
        let mounted = tools.wait(MOUNT_MAX, mounted).ok_or_else(|| SetError::Io {
            doing: "mount",
            path: sets_dir.join(self.name.as_str()),
            source: std::io::ErrorKind::TimedOut.into(),
        })??;
        tools.mounts.insert(self.name.clone(), mounted);
        let dir = SetDir::open(&sets_dir, &self.name, tools.disk.clone())?;
        if dir.inodes()?.is_some() {
            self.pins.own_device = rustix::fs::stat(dir.path()).ok().map(|stat| stat.st_dev);
        }
        self.dir = Some(dir);
        Ok(())
    }

    /// After a start: finds or makes again what should lie here, and tells the machine. Nothing is done before that worked.
    pub(crate) fn start(&mut self, tools: &mut Tools) -> Result<(), JournalError> {
        self.is_unstarted = true;
        let pause = self.start_again.map_or(PAUSE, |(_, pause)| (pause * 2).min(PAUSE_MAX));
        let started = self.try_start(tools);
        self.start_again = self.is_unstarted.then(|| (Instant::now() + pause, pause));
        started
    }

    fn try_start(&mut self, tools: &mut Tools) -> Result<(), JournalError> {
        let is_here = self.machine().has_anything() || self.policy.is_some();
        if self.before.is_none() {
            self.before = Some(self.begin_evidence(tools));
        }
        let found = if is_here { self.find(tools) } else { Ok(Here::default()) };
        let looked = found.and_then(|here| {
            if !self.is_looked_at {
                self.resume_evidence(tools, &here)?;
                self.is_looked_at = true;
            }
            Ok(here)
        });
        let Here { link, files } = match looked {
            Ok(here) => here,
            // Not knowing is not the same as finding nothing: it is tried again.
            Err(why) => {
                tools.notice("set", self.name.as_str(), why);
                return Ok(());
            }
        };
        tools.unnotice("set", self.name.as_str());
        for version in self.machine().known().difference(&files) {
            // What was left of it went just now.
            self.unlinked.insert(*version, clock::boot());
        }
        self.is_unstarted = false;
        self.places_due = true;
        let boot = BootId(tools.witness.boot_id.clone());
        self.give(tools, HostEvent::Started { boot, link, files })?;
        let rules = self.rules(tools);
        self.give(tools, HostEvent::Policy(rules))?;
        Ok(())
    }

    fn find(&mut self, tools: &mut Tools) -> Result<Here, String> {
        let failed = |error: SetError| error.to_string();
        self.open_dir(tools).map_err(failed)?;
        let policy = self.policy_or_last();
        let Some(dir) = &self.dir else { return Ok(Here::default()) };
        let mut found = dir.recover().map_err(failed)?;
        if let Some(before) = &mut self.before {
            before.found.get_or_insert_with(|| found.present.clone());
        }
        for version in self.record.machine.present() {
            if !found.present.contains(&version) {
                match tools.copies.read(&self.name, version) {
                    Ok(copy) => {
                        let evidence = &mut self.record.evidence;
                        let mut mark = tools.witness.marker(evidence, &mut self.pins, version, &policy);
                        dir.stage(version, &set_files(&copy), &policy, &mut mark).map_err(failed)?;
                        found.present.insert(version);
                    }
                    Err(CopyError::Keep(error))
                        if self.unreadable.get_or_insert_with(Instant::now).elapsed() < READ_MAX =>
                    {
                        return Err(error.to_string());
                    }
                    // A seal had come so far.
                    Err(CopyError::Missing(..)) if self.machine().dead().contains(version) => {}
                    Err(error) => tools.notice("copy", self.about(version), error.to_string()),
                }
            }
        }
        if let (None, Some(pointer)) = (found.current, self.record.machine.current())
            && found.present.contains(&pointer)
        {
            dir.flip(pointer).map_err(failed)?;
            self.record.evidence.current(Some(pointer), clock::boot());
            found.current = Some(pointer);
        }
        Ok(Here { link: found.current, files: found.present })
    }

    /// The evidence is of this boot from now on, whatever the rest of the start comes to.
    fn begin_evidence(&mut self, tools: &Tools) -> Before {
        let (boot_id, kind) = (tools.witness.boot_id.as_str(), tools.witness.kind());
        let rebooted = self.record.evidence.boot() != boot_id;
        if rebooted {
            self.record.removed.clear();
            // Nobody has watched it in this boot.
            self.record.watched_by = None;
        }
        self.record.evidence.resume(boot_id, kind, tools.witness.why(), clock::boot());
        Before { rebooted, found: None }
    }

    /// Watches again what lies here. What may have been read while nobody watched it is a gap, once in a life of ours.
    fn resume_evidence(&mut self, tools: &mut Tools, here: &Here) -> Result<(), String> {
        let Before { rebooted, found } = self.before.clone().unwrap_or_default();
        let found = found.unwrap_or_default();
        let kind = self.record.evidence.kind();
        let group = tools.witness.group.clone();
        let why = match &self.record.watched_by {
            // What a boot takes is there again: an earlier start of this boot could not be written down.
            _ if rebooted => (!found.is_empty()).then_some("it lay there before this start of the applier"),
            Some(by) if group.as_ref() == Some(by) => tools
                .witness
                .interrupted
                .then_some("the applier was killed while it took over what the kernel had seen"),
            Some(_) => Some("the applier was restarted and nobody kept its group of opens"),
            None => Some("nobody watched its readers before this start of the applier"),
        };
        let mut unwatched = self.mark_files(tools, &here.files, &found)?;
        self.record.evidence.current(here.link, clock::boot());
        let (shown, is_whole) = self.watch_copies(tools, here.link);
        // Of what nobody has watched in this boot it is not known since when it was there.
        let is_known = self.record.watched_by.is_some();
        let known = self.machine().known();
        let strays = found.difference(&known).copied();
        let old = shown.iter().copied().filter(|_| !is_known).chain(strays);
        for version in old.filter(|version| Some(*version) != here.link).collect::<Vec<_>>() {
            self.record.evidence.was_shown(version, clock::boot());
        }
        unwatched.extend(shown);
        let since = if is_known { self.record.evidence.complete_through() } else { Millis(0) };
        let mut gaps = vec![(unwatched, "it lay there while nobody watched it")];
        // Of those too that were unlinked and not looked for since.
        gaps.extend(why.map(|why| (self.record.evidence.versions().collect(), why)));
        gaps.retain(|(versions, _)| kind == Evidence::Kernel && !versions.is_empty());
        // In the same record as the gaps.
        let watched_by = group.filter(|_| is_whole);
        self.unkept |= self.record.watched_by != watched_by;
        self.record.watched_by = watched_by;
        for (versions, why) in gaps {
            self.blind(tools, since, versions, why);
        }
        Ok(())
    }

    /// Somebody unseen may have read these versions since then. Until the journal has it the kernel's word is not forgotten.
    fn blind(&mut self, tools: &mut Tools, since: Millis, versions: BTreeSet<Version>, why: &str) {
        let rules = tools.witness.rules(self.policy.as_ref(), &tools.daemon.not_a_consumer);
        tools.view.table = tools.witness.proc.table(holders::Detail::Reach);
        let scene = tools.view.scene(&rules);
        self.unkept |= self.record.evidence.blind_since(since, versions, why, &scene);
    }

    /// Has the readers of all that lies here held, once that is possible again.
    pub(crate) fn watch_again(&mut self, tools: &Tools) {
        let present = self.machine().present();
        if let Err(error) = self.mark_files(tools, &present, &BTreeSet::new()) {
            tracing::warn!(set = %self.name, error, "failed to watch a version again");
        }
        for path in self.record.places.keys() {
            if let Ok(Some((file, stat))) = copy_at(path)
                && self.watched_as(&stat).is_some()
                && let Err(error) = tools.witness.mark(file.as_fd())
            {
                tracing::warn!(place = %path.display(), %error, "a copy cannot be watched again");
            }
        }
    }

    /// Marks the files of these versions. Gives those that lay here `before` and have not been watched all the time since.
    fn mark_files(
        &mut self,
        tools: &Tools,
        versions: &BTreeSet<Version>,
        before: &BTreeSet<Version>,
    ) -> Result<BTreeSet<Version>, String> {
        let policy = self.policy_or_last();
        let mut unwatched = BTreeSet::new();
        let Some(dir) = &self.dir else { return Ok(unwatched) };
        for version in versions {
            let mut was_marked = true;
            let mut mark = tools.witness.marker(&mut self.record.evidence, &mut self.pins, *version, &policy);
            let mut mark_one = |name: &str, file: BorrowedFd<'_>| {
                was_marked &= tools.witness.was_marked(&rustix::fs::fstat(file)?);
                mark(name, file)
            };
            dir.mark_again(*version, &mut mark_one).map_err(|error| error.to_string())?;
            if before.contains(version) && !was_marked && tools.witness.is_kept() {
                unwatched.insert(*version);
            }
        }
        Ok(unwatched)
    }

    /// Watches the copies that lie here, also at places that policy no longer names. A copy outlives a boot, and an applier
    /// whose group nobody kept: gives the versions that one may have shown while it was not watched, and whether all are
    /// watched now.
    fn watch_copies(&mut self, tools: &Tools, link: Option<Version>) -> (BTreeSet<Version>, bool) {
        let (mut shown, mut is_whole) = (BTreeSet::new(), true);
        for (path, versions) in self.record.places.clone() {
            let (file, stat) = match copy_at(&path) {
                Ok(Some(copy)) => copy,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(place = %path.display(), %error, "a copy cannot be looked at");
                    is_whole = false;
                    shown.extend(versions);
                    continue;
                }
            };
            // A number alone says little: the file that had it may be gone since nobody pinned it.
            if let Some(version) = self.watched_as(&stat).filter(|_| tools.witness.was_marked(&stat)) {
                let watched = tools.witness.mark(file.as_fd());
                let watched = watched.and_then(|()| self.pins.pin(version, &stat, file.as_fd()));
                if let Err(error) = &watched {
                    tracing::warn!(place = %path.display(), %error, "a copy cannot be watched again");
                    let inode = Inode { device: stat.st_dev, number: stat.st_ino };
                    self.record.evidence.unwatch_file(version, inode);
                }
                is_whole &= watched.is_ok();
                shown.extend(watched.is_err().then_some(version));
                continue;
            }
            let (held, name) = self.held_by_copy(tools, &path, &versions, link);
            // Where its content does not tell it may be any.
            let may_be = if held.is_empty() { versions } else { held };
            is_whole &= self.watch_copy(tools, &path, &file, &may_be, name.as_deref());
            shown.extend(may_be);
        }
        (shown, is_whole)
    }

    /// Whether that worked.
    fn watch_copy(
        &mut self,
        tools: &Tools,
        path: &Path,
        file: &OwnedFd,
        versions: &BTreeSet<Version>,
        name: Option<&str>,
    ) -> bool {
        let (Some(version), Some(place)) = (versions.first(), path.to_str()) else { return true };
        let (evidence, pins) = (&mut self.record.evidence, &mut self.pins);
        let file_name = name.unwrap_or(place);
        let watched =
            tools.witness.watch_file(evidence, pins, *version, (file_name, Some(place)), 0, file.as_fd());
        if let Err(error) = &watched {
            tracing::warn!(place, %error, "a copy cannot be watched");
        }
        watched.is_ok()
    }

    /// A copy that came to its place behind our back, with a file system perhaps: whoever read it was not seen.
    pub(crate) fn watch_foreign_copy(&mut self, tools: &mut Tools, path: &Path) {
        let Some(versions) = self.record.places.get(path).cloned() else { return };
        let Ok(Some((file, stat))) = copy_at(path) else { return };
        let inode = Inode { device: stat.st_dev, number: stat.st_ino };
        if self.watched_as(&stat).is_some_and(|version| self.pins.is_sure(version, inode)) {
            return;
        }
        let (held, name) = self.held_by_copy(tools, path, &versions, self.machine().current());
        if held.is_empty() {
            return;
        }
        self.watch_copy(tools, path, &file, &held, name.as_deref());
        if self.record.evidence.kind() == Evidence::Kernel {
            self.blind(tools, self.places_looked, held, "a copy came to its place behind our back");
        }
    }

    /// A copy that stays as it is, since the current version says there what the one before did, is one of the current
    /// version from now on: whoever reads it has that.
    pub(crate) fn keep_copy(&mut self, tools: &Tools, place: &Place, current: Version) {
        let Ok(Some((file, stat))) = copy_at(&place.path) else { return };
        if self.watched_as(&stat).is_some_and(|version| version != current) {
            self.watch_copy(tools, &place.path, &file, &BTreeSet::from([current]), Some(&place.file));
            self.unkept = true;
        }
    }

    /// Which of these versions a copy shows, or may show, and which of their files.
    fn held_by_copy(
        &self,
        tools: &Tools,
        path: &Path,
        versions: &BTreeSet<Version>,
        link: Option<Version>,
    ) -> (BTreeSet<Version>, Option<String>) {
        let content = self
            .dir
            .as_ref()
            .and_then(|dir| Places::of(dir, tools.disk.clone()).read_back(path).ok().flatten());
        let Some(content) = content else { return (versions.clone(), None) };
        let mut name = None;
        let mut may_hold = |version: &Version| match tools.copies.read(&self.name, *version) {
            Ok(copy) => {
                let file = copy.files().iter().find(|(_, value)| value.expose() == content.as_slice());
                name = name.take().or(file.map(|(name, _)| name.as_str().to_owned()));
                file.is_some()
            }
            Err(_) => true,
        };
        let held: BTreeSet<Version> = versions.iter().copied().filter(|version| may_hold(version)).collect();
        match link.filter(|link| held.contains(link)) {
            // What the current version says too tells nobody apart.
            Some(link) => (BTreeSet::from([link]), name),
            None => (held, name),
        }
    }

    /// The version of which a file is watched already.
    fn watched_as(&self, stat: &Stat) -> Option<Version> {
        let evidence = &self.record.evidence;
        evidence.versions().find(|version| {
            let mut files = evidence.watched(*version);
            files.any(|file| (file.device, file.inode) == (stat.st_dev, stat.st_ino))
        })
    }

    /// A set that policy dropped is still served, as it was.
    fn policy_or_last(&self) -> SetPolicy {
        self.policy.clone().unwrap_or_else(|| last_policy(&self.name, &self.record))
    }
}

/// What was before a start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Before {
    /// The machine was booted since the evidence was last written down.
    rebooted: bool,
    /// The versions that lay here before the start made others again.
    found: Option<BTreeSet<Version>>,
}

/// What lies here of a set.
#[derive(Default)]
struct Here {
    /// Where the current link points.
    link: Option<Version>,
    /// Whole versions.
    files: BTreeSet<Version>,
}

/// The file at a place, which opens nothing (`O_PATH`). None when nothing lies there, or a link.
fn copy_at(path: &Path) -> Result<Option<(OwnedFd, Stat)>, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error),
    };
    let stat = rustix::fs::fstat(&file)?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    Ok(is_file.then_some((file, stat)))
}

/// What is left of the policy of a set that is no longer in it: owners and modes.
fn last_policy(name: &SetName, record: &SetRecord) -> SetPolicy {
    SetPolicy {
        name: name.clone(),
        controllers: Vec::new(),
        access: Access { owner: None, group: None, mode: host_policy::defaults::MODE },
        access_by_file: record.access.iter().map(|(file, kept)| (file.clone(), kept.into())).collect(),
        places: Vec::new(),
        consumers: Vec::new(),
        not_a_consumer: Vec::new(),
        validate: None,
        refresh_ms: host_policy::defaults::REFRESH_MS,
    }
}
