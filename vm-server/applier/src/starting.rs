//! A start of one set: what lies here is found or made again, watched again, and told to its machine.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use host_policy::{Access, SetPolicy};
use lifecycle::host::HostEvent;
use lifecycle::{BootId, Evidence, Millis, SetName, Version};
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
        self.start_again = Some((Instant::now() + pause, pause));
        let mut found = (None, BTreeSet::new());
        if !self.machine().known().is_empty() || self.policy.is_some() {
            match self.find(tools) {
                Ok(all) => found = all,
                // Not knowing is not the same as finding nothing: it is tried again.
                Err(why) => {
                    tools.notice("set", self.name.as_str(), why);
                    return Ok(());
                }
            }
        }
        tools.unnotice("set", self.name.as_str());
        let (link, files) = found;
        if !self.is_looked_at {
            self.resume_evidence(tools, link, &files);
            self.is_looked_at = true;
        }
        for version in self.machine().known().difference(&files) {
            // What was left of it went just now.
            self.unlinked.insert(*version, clock::boot());
        }
        self.is_unstarted = false;
        self.places_due = true;
        let boot = BootId(tools.witness.boot_id.clone());
        self.give(tools, HostEvent::Started { boot, link, files })?;
        self.start_again = None;
        let rules = self.rules(tools);
        self.give(tools, HostEvent::Policy(rules))?;
        Ok(())
    }

    fn find(&mut self, tools: &mut Tools) -> Result<(Option<Version>, BTreeSet<Version>), String> {
        let failed = |error: SetError| error.to_string();
        self.open_dir(tools).map_err(failed)?;
        let policy = self.policy_or_last();
        let Some(dir) = &self.dir else { return Ok((None, BTreeSet::new())) };
        let mut found = dir.recover().map_err(failed)?;
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
        Ok((found.current, found.present))
    }

    /// Watches again what lies here. What may have been read while nobody watched it is a gap, once in a life of ours.
    fn resume_evidence(&mut self, tools: &mut Tools, link: Option<Version>, files: &BTreeSet<Version>) {
        let (boot_id, kind) = (tools.witness.boot_id.clone(), tools.witness.kind());
        let rebooted = self.record.evidence.boot() != boot_id;
        let group = tools.witness.group.clone();
        let why = match &self.record.watched_by {
            _ if rebooted => None,
            Some(by) if group.as_ref() == Some(by) => tools
                .witness
                .interrupted
                .then_some("the applier was killed while it took over what the kernel had seen"),
            Some(_) => Some("the applier was restarted and nobody kept its group of opens"),
            None => Some("nobody watched its readers before this start of the applier"),
        };
        if rebooted {
            self.record.removed.clear();
        }
        self.record.evidence.resume(&boot_id, kind, tools.witness.why(), clock::boot());
        let mut unwatched = self.mark_files(tools, files);
        self.record.evidence.current(link, clock::boot());
        let shown = self.watch_copies(tools, link);
        if rebooted {
            let now = clock::boot();
            for version in shown.iter().filter(|version| Some(**version) != link) {
                self.record.evidence.was_shown(*version, now);
            }
        }
        unwatched.extend(shown);
        // A copy may have been read since the boot.
        let since = if rebooted { Millis(0) } else { self.record.evidence.complete_through() };
        let mut gaps = vec![(unwatched, "it lay there while nobody watched it")];
        // Of those too that were unlinked and not looked for since.
        gaps.extend(why.map(|why| (self.record.evidence.versions().collect(), why)));
        gaps.retain(|(versions, _)| kind == Evidence::Kernel && !versions.is_empty());
        // In the same record as the gaps.
        self.unkept |= self.record.watched_by != group;
        self.record.watched_by = group;
        if gaps.is_empty() {
            return;
        }
        let rules = tools.witness.rules(self.policy.as_ref(), &tools.daemon.not_a_consumer);
        tools.view.table = tools.witness.proc.table(holders::Detail::Reach);
        let scene = tools.view.scene(&rules);
        for (versions, why) in gaps {
            // Until the journal has it the kernel's word is not forgotten.
            self.unkept |= self.record.evidence.blind_since(since, versions, why, &scene);
        }
    }

    /// Has the readers of all that lies here held, once that is possible again.
    pub(crate) fn watch_again(&mut self, tools: &Tools) {
        self.mark_files(tools, &self.machine().present());
        for path in self.record.places.keys() {
            if let Ok(Some((file, stat))) = copy_at(path)
                && self.watched_as(&stat).is_some()
                && let Err(error) = tools.witness.mark(file.as_fd())
            {
                tracing::warn!(place = %path.display(), %error, "a copy cannot be watched again");
            }
        }
    }

    /// Marks the files of these versions. Gives those of which that failed.
    fn mark_files(&mut self, tools: &Tools, versions: &BTreeSet<Version>) -> BTreeSet<Version> {
        let policy = self.policy_or_last();
        let mut unwatched = BTreeSet::new();
        let Some(dir) = &self.dir else { return unwatched };
        for version in versions {
            let mut mark = tools.witness.marker(&mut self.record.evidence, &mut self.pins, *version, &policy);
            if let Err(error) = dir.mark_again(*version, &mut mark) {
                tracing::warn!(set = %self.name, %error, "failed to watch a version again");
                unwatched.insert(*version);
            }
        }
        unwatched
    }

    /// Watches the copies that lie here, also at places that policy no longer names. A copy outlives a boot, and an applier
    /// whose group nobody kept: gives the versions that one may have shown while it was not watched.
    fn watch_copies(&mut self, tools: &Tools, link: Option<Version>) -> BTreeSet<Version> {
        let mut shown = BTreeSet::new();
        for (path, versions) in self.record.places.clone() {
            let (file, stat) = match copy_at(&path) {
                Ok(Some(copy)) => copy,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(place = %path.display(), %error, "a copy cannot be looked at");
                    shown.extend(versions);
                    continue;
                }
            };
            if let Some(version) = self.watched_as(&stat) {
                let watched = tools.witness.mark(file.as_fd());
                if let Err(error) = watched.and_then(|()| self.pins.pin(version, &stat, file.as_fd())) {
                    tracing::warn!(place = %path.display(), %error, "a copy cannot be watched again");
                    shown.extend(versions);
                }
                continue;
            }
            let (may_be, name) = self.may_be_shown(tools, &path, &versions, link);
            if let (Some(version), Some(place)) = (may_be.first(), path.to_str()) {
                let name = name.as_deref().unwrap_or(place);
                let (evidence, pins) = (&mut self.record.evidence, &mut self.pins);
                let watched =
                    tools.witness.watch_file(evidence, pins, *version, (name, Some(place)), 0, file.as_fd());
                if let Err(error) = watched {
                    tracing::warn!(place, %error, "a copy cannot be watched");
                }
            }
            shown.extend(may_be);
        }
        shown
    }

    /// Which of these versions a copy may show, and which of their files: all of them where its content does not tell.
    fn may_be_shown(
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
        let shown: BTreeSet<Version> = versions.iter().copied().filter(|version| may_hold(version)).collect();
        match link.filter(|link| shown.contains(link)) {
            // What the current version says too tells nobody apart.
            Some(link) => (BTreeSet::from([link]), name),
            None if shown.is_empty() => (versions.clone(), None),
            None => (shown, name),
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
