//! The end of a version on this host.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use holders::{Detail, Found, Needle, Scene, Sweep};
use lifecycle::host::HostEvent;
use lifecycle::{Evidence, GapId, HolderId, Version};
use opens::Inode;
use protocol::seal::StagedSet;
use sets::Places;

use crate::record::Removed;
use crate::set::Set;
use crate::tools::Tools;

impl Set {
    /// Carries a seal as far as it goes now, right after a look. An error is what stays in the way; it is looked at
    /// again when something changes.
    pub(crate) fn seal(
        &mut self,
        tools: &mut Tools,
        version: Version,
        cleared: &BTreeSet<HolderId>,
        cleared_gaps: &BTreeSet<GapId>,
        withdraw: bool,
    ) -> Result<Vec<HostEvent>, String> {
        if self.dir.is_none() {
            return Err("what lies here was not looked at".to_owned());
        }
        self.record.evidence.clear(version, cleared, cleared_gaps);
        self.must_be_free(version)?;
        if let Some(current) = self.machine().current().filter(|current| *current != version)
            && !tools.copies.has(&self.name, current)
        {
            return Err(format!("the sealed copy of the current version {current} is missing"));
        }
        let lies_here = self.machine().present().contains(&version);
        if lies_here && !self.sought.contains_key(&version) {
            // Before the copy is unlinked: the sweep has to know what to look for until the end.
            if let Ok(copy) = tools.copies.read(&self.name, version) {
                self.sought.insert(version, copy);
            }
        }
        if withdraw && self.machine().current() == Some(version) {
            self.withdraw(tools, version)?;
        }
        self.places_are_free(tools, version, cleared_gaps)?;
        let pinned = self.sweep(tools, version)?;
        // Also where nothing should lie here any more: a life before us may have ended with a part of it unlinked.
        if !self.unlink(tools, version) {
            return Err("its files cannot be unlinked".to_owned());
        }
        if lies_here || !self.was_looked_at_since(tools, version)? {
            tools.recheck = true;
            return Ok(lies_here.then_some(HostEvent::Unlinked { version }).into_iter().collect());
        }
        self.inodes_are_free(version, pinned)?;
        Ok(vec![HostEvent::Gone { version }])
    }

    /// Whether whoever opened its files before they were unlinked has been seen by now.
    fn was_looked_at_since(&self, tools: &Tools, version: Version) -> Result<bool, String> {
        let Some(unlinked) = self.unlinked.get(&version) else { return Ok(true) };
        let looked = tools.view.table.taken > *unlinked;
        if looked
            && self.record.evidence.kind() == Evidence::Kernel
            && self.record.evidence.complete_through() <= *unlinked
        {
            return Err("more was opened than could be looked at yet".to_owned());
        }
        Ok(looked)
    }

    fn must_be_free(&self, version: Version) -> Result<(), String> {
        if self.record.evidence.is_free(version) {
            return Ok(());
        }
        let holders = self.record.evidence.holders(version);
        let names: Vec<String> = holders.into_iter().map(|holder| holder.description).collect();
        if names.is_empty() {
            return Err("somebody unseen may have read it: see the gaps".to_owned());
        }
        Err(format!("held by {}", names.join("; ")))
    }

    /// Takes the current link and what leads to it away. Nobody holds the version any more.
    fn withdraw(&mut self, tools: &mut Tools, version: Version) -> Result<(), String> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let copy = self.sought.get(&version);
        let places = Places::of(dir, tools.disk.clone());
        for place in self.policy.iter().flat_map(|policy| &policy.places) {
            let content = copy.and_then(|copy| content_of(copy, &place.file));
            if let Err(error) = places.remove(&place.path, content) {
                return Err(error.to_string());
            }
        }
        crate::failpoint::step("set.withdraw");
        dir.withdraw(version).map_err(|error| error.to_string())
    }

    /// Reads back every place that ever received the version.
    fn places_are_free(
        &mut self,
        tools: &mut Tools,
        version: Version,
        cleared: &BTreeSet<GapId>,
    ) -> Result<(), String> {
        let paths: Vec<PathBuf> = self
            .record
            .places
            .iter()
            .filter(|(_, versions)| versions.contains(&version))
            .map(|(path, _)| path.clone())
            .collect();
        for path in paths {
            let fault = self.record.place_faults.get(&path).and_then(|fault| fault.id.as_ref());
            if !fault.is_some_and(|id| cleared.contains(id)) {
                self.place_is_free(tools, version, &path)?;
            }
            if let Some(versions) = self.record.places.get_mut(&path) {
                versions.remove(&version);
            }
        }
        Ok(())
    }

    fn place_is_free(&mut self, tools: &Tools, version: Version, path: &Path) -> Result<(), String> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let content = match Places::of(dir, tools.disk.clone()).read_back(path) {
            Ok(None) => return Ok(()),
            Ok(Some(content)) => content,
            Err(error) => {
                self.fault(path, &error);
                return Err(format!("{} cannot be read back: {error}", path.display()));
            }
        };
        let current =
            self.machine().current().and_then(|current| tools.copies.read(&self.name, current).ok());
        let holds = |set: &StagedSet| set.files().values().any(|value| value.expose() == content.as_slice());
        if current.as_ref().is_some_and(holds) {
            return Ok(());
        }
        match self.sought.get(&version) {
            Some(old) if !holds(old) => Ok(()),
            _ => Err(format!("{} still shows it", path.display())),
        }
    }

    /// Looks for what opens cannot show. Gives the removed files that are known to be in use: of this version by whom
    /// an operator cleared, of versions that are gone by anybody.
    fn sweep(&mut self, tools: &mut Tools, version: Version) -> Result<Removed, String> {
        let rules = tools.witness.rules(self.policy.as_ref(), &tools.daemon.not_a_consumer);
        let copy = self.sought.get(&version);
        let values = copy.into_iter().flat_map(StagedSet::files);
        let values = values.filter_map(|(name, value)| {
            // What the current version says too tells nobody apart.
            (!self.is_current_too(tools, name, value.expose()))
                .then(|| Needle::value(name.as_str(), value.expose()))?
        });
        let user = copy.and_then(StagedSet::user_name).and_then(Needle::user);
        let watched = self.record.evidence.watched(version);
        let inodes: BTreeSet<Inode> = watched
            .map(|file| Inode { device: file.device, number: file.inode })
            .filter(|inode| self.pins.is_sure(version, *inode))
            .collect();
        let gone = self.inodes_of_gone();
        let sweep = Sweep {
            inodes: inodes.iter().copied().chain(gone.keys().copied()).collect(),
            directory: self.directory_of(version),
            needles: values.chain(user).collect(),
        };
        // Listed anew: others may have been swept for since the look, and whoever began meanwhile may have it from a parent
        // that has ended.
        let table = tools.witness.proc.table(Detail::Lives);
        let mut traces = sweep.run(&tools.witness.proc, &table, &rules);
        let of_gone = |found: &Found| found.inode.and_then(|inode| Some((*gone.get(&inode)?, inode.number)));
        let mut removed = Removed::new();
        for (gone, number) in traces.found.iter().filter_map(of_gone) {
            removed.entry(gone).or_default().insert(number);
        }
        traces.found.retain(|found| found.inode.is_none_or(|inode| inodes.contains(&inode)));
        let scene = Scene { table: &table, rules: &rules, units: &tools.view.units };
        let excused = self.record.evidence.excused(version);
        self.record.evidence.found(version, &traces, &scene);
        self.must_be_free(version)?;
        if !traces.complete {
            return Err("processes come and go too fast to look at all of them".to_owned());
        }
        // Without privilege most processes cannot be looked at, and evidence is only `declared` then. PID 1 never
        // holds anything for itself.
        let mut unreadable = traces.unreadable.iter().filter(|who| !who.starts_with("process 1 ("));
        if let (Evidence::Kernel, Some(who)) = (self.record.evidence.kind(), unreadable.next()) {
            return Err(format!("cannot look at {who}"));
        }
        let pinned = traces.found.iter().filter(|found| excused.contains(&found.process.id));
        for inode in pinned.filter_map(|found| found.inode) {
            // Of a copy on another file system nothing is counted in this one.
            if Some(inode.device) == self.pins.own_device {
                removed.entry(version).or_default().insert(inode.number);
            }
        }
        Ok(removed)
    }

    /// Removed files of versions that are gone, and of which.
    fn inodes_of_gone(&self) -> BTreeMap<Inode, Version> {
        let Some(device) = self.pins.own_device else { return BTreeMap::new() };
        let all = self.record.removed.iter();
        all.flat_map(|(gone, numbers)| {
            numbers.iter().map(move |number| (Inode { device, number: *number }, *gone))
        })
        .collect()
    }

    fn is_current_too(&self, tools: &Tools, name: &protocol::FileName, content: &[u8]) -> bool {
        let current =
            self.machine().current().and_then(|current| tools.copies.read(&self.name, current).ok());
        current
            .is_some_and(|current| current.files().get(name).is_some_and(|value| value.expose() == content))
    }

    /// The version's directory within a file system of the set's own.
    fn directory_of(&self, version: Version) -> Option<(u64, String)> {
        Some((self.pins.own_device?, format!("/{}", crate::set::version_dir(version))))
    }

    /// The kernel's own count. An inode is allowed for only where a living process was found to keep it: an allowance
    /// that has ended, or is for a file elsewhere, excuses nobody else.
    fn inodes_are_free(&mut self, version: Version, in_use: Removed) -> Result<(), String> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let Some(inodes) = dir.inodes().map_err(|error| error.to_string())? else { return Ok(()) };
        let unaccounted = inodes.unaccounted();
        let allowed = allowance(&in_use);
        if unaccounted > allowed {
            let unknown = unaccounted - allowed;
            return Err(format!("the kernel counts {unknown} removed files that are still in use"));
        }
        if unaccounted == 0 {
            self.record.removed.clear();
        } else if let Some(numbers) = in_use.get(&version) {
            self.record.removed.insert(version, numbers.clone());
        }
        Ok(())
    }
}

/// How many inodes these files keep: each its own, and all of a version the one of its removed directory.
fn allowance(in_use: &Removed) -> u64 {
    in_use.values().filter(|files| !files.is_empty()).map(|files| files.len() as u64 + 1).sum()
}

fn content_of<'s>(set: &'s StagedSet, file: &str) -> Option<&'s [u8]> {
    let (_, value) = set.files().iter().find(|(name, _)| name.as_str() == file)?;
    Some(value.expose())
}
