//! The state of one set on this host: what was seen, who may have which version, and what ends that.

use std::collections::{BTreeMap, BTreeSet};

use lifecycle::report;
use lifecycle::{ConsumerName, Evidence as Kind, GapId, HolderId, Millis, Version};
use opens::Inode;
use serde::{Deserialize, Serialize};

use crate::charge::{Charged, charge};
use crate::declared::{ConsumerLife, declared_life, life_of_peer};
use crate::gap::{self, GapState};
use crate::life::LifeState;
use crate::process::{Process, ProcessId, Table, printable};
use crate::rules::{ConsumerRule, Release};
use crate::scan::{Look, Reader, Sighting};
use crate::scene::Scene;
use crate::sweep::Traces;

/// Above this many, gaps are merged, so that a reader that vanishes every minute does not fill the journal.
const GAPS_MAX: usize = 8;

/// A file of a version, at one of its places.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Its name in the set.
    pub name: String,
    /// The fixed place, of a `copy`; `None` in the set's own directory.
    pub place: Option<String>,
    /// The device of its inode.
    pub device: u64,
    /// The number of its inode.
    pub inode: u64,
    /// Its owner.
    pub owner: u32,
    /// Its group.
    pub group: u32,
    /// Its permission bits.
    pub mode: u32,
}

/// Why an application's word was not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Disbelieved {
    /// Policy does not name it.
    #[error("{0} is no consumer of this set by the host's policy")]
    NotAConsumer(ConsumerName),
    /// Policy does not trust its word.
    #[error("the host's policy does not trust the word of {0}: set `evidence = \"reported\"` for it")]
    NotTrusted(ConsumerName),
    /// The process that speaks is another one.
    #[error("{process} is not {consumer}, for which it speaks")]
    SomebodyElse {
        /// For which it speaks.
        consumer: ConsumerName,
        /// Who speaks.
        process: String,
    },
}

/// Who may have which version of one set: a value that the caller journals.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    boot: String,
    kind: Kind,
    why: String,
    versions: BTreeMap<Version, Watched>,
    lives: BTreeMap<HolderId, LifeState>,
    held: BTreeMap<Version, BTreeMap<HolderId, Held>>,
    gaps: Vec<GapState>,
    /// Which process read which files of which version.
    reads: BTreeMap<ProcessId, BTreeMap<Version, Readings>>,
    /// What each consumer has last adopted, and when.
    adoptions: BTreeMap<ConsumerName, (Version, Millis)>,
    /// What each consumer has last said that it is on, and which process said so.
    #[serde(default)]
    said: BTreeMap<ConsumerName, (ProcessId, Version)>,
    /// Lives that do not have a version although it was current in their time: by an application's own word, by an
    /// operator's, or because a look shows that they began after it. Until it is current again.
    released: BTreeMap<Version, BTreeSet<HolderId>>,
    /// Processes whose hold an operator cleared.
    excused: BTreeMap<Version, BTreeSet<ProcessId>>,
    /// How often a life was cleared: it gets another name if it reads again.
    clears: BTreeMap<HolderId, u32>,
    /// How many gaps each of the last reports named.
    named: BTreeMap<u64, u32>,
    /// Everything until then was seen.
    complete_through: Millis,
    /// Orders readings in time.
    counter: u64,
    /// Who could have read at the last look. Not kept: without it a gap has no fewer candidates that count.
    #[serde(skip)]
    able: BTreeSet<ProcessId>,
}

/// A version on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Watched {
    files: BTreeSet<File>,
    /// From when until when it was current.
    current: Vec<(Millis, Option<Millis>)>,
}

/// A hold of one life on one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Held {
    id: HolderId,
    consumer: Option<ConsumerName>,
    evidence: Kind,
    release: Release,
    how: String,
    /// The files of the version that the life was seen to read, PID 1's readings for it included.
    #[serde(default)]
    files: BTreeSet<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Readings {
    files: BTreeSet<String>,
    last: u64,
}

/// Who holds what by which processes, and which gaps have which candidates.
type Shape = (Vec<(Version, HolderId, BTreeSet<ProcessId>)>, Vec<(Option<GapId>, BTreeSet<ProcessId>)>);

impl Evidence {
    /// Of a set of which nothing is visible before `now`. `why` says why evidence is not stronger, if it is not
    /// `Kernel`.
    pub fn new(boot: impl Into<String>, kind: Kind, why: impl Into<String>, now: Millis) -> Self {
        Self { boot: boot.into(), kind, why: why.into(), complete_through: now, ..Self::default() }
    }

    /// After our restart, with the state from the journal. A reboot ends all holders and gaps, and forgets the inodes:
    /// nothing of the set is visible before `now` then, but for `copy` places, of which the caller tells by
    /// [`Evidence::blind`].
    pub fn resume(&mut self, boot: &str, kind: Kind, why: &str, now: Millis) {
        if self.boot != boot {
            let (named, clears) = (std::mem::take(&mut self.named), std::mem::take(&mut self.clears));
            *self = Self { clears, named, ..Self::new(boot, kind, why, now) };
        }
        self.kind = kind;
        why.clone_into(&mut self.why);
    }

    /// The boot in which all of it was seen.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// The strongest kind of evidence that this host has for the set.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Why it is not stronger.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// A file of a version, marked before it became visible. A number that is used again is no longer that of another.
    pub fn watch(&mut self, version: Version, file: File) {
        let inode = Inode { device: file.device, number: file.inode };
        let others: Vec<Version> = self.versions().filter(|other| *other != version).collect();
        for other in others {
            self.unwatch_file(other, inode);
        }
        self.versions.entry(version).or_default().files.insert(file);
    }

    /// The files of a version that are watched.
    pub fn watched(&self, version: Version) -> impl Iterator<Item = &File> {
        self.versions.get(&version).into_iter().flat_map(|watched| &watched.files)
    }

    /// Every version that is watched.
    pub fn versions(&self) -> impl Iterator<Item = Version> + '_ {
        self.versions.keys().copied()
    }

    /// A file is no longer at its place and nobody can find its inode again by name.
    pub fn unwatch_file(&mut self, version: Version, inode: Inode) {
        if let Some(watched) = self.versions.get_mut(&version) {
            watched.files.retain(|file| (file.device, file.inode) != (inode.device, inode.number));
        }
    }

    /// The version is gone: nothing of it is kept.
    pub fn forget(&mut self, version: Version) {
        self.versions.remove(&version);
        self.held.remove(&version);
        self.released.remove(&version);
        self.excused.remove(&version);
        for gap in &mut self.gaps {
            gap.versions.remove(&version);
        }
        self.gaps.retain(|gap| !gap.versions.is_empty());
        for readings in self.reads.values_mut() {
            readings.remove(&version);
        }
        self.drop_idle();
    }

    /// This version is current from `now` on; none when it was withdrawn.
    pub fn current(&mut self, version: Option<Version>, now: Millis) {
        for (other, watched) in &mut self.versions {
            if let Some((_, until @ None)) = watched.current.last_mut()
                && version != Some(*other)
            {
                *until = Some(now);
            }
        }
        let Some(version) = version else { return };
        let spans = &mut self.versions.entry(version).or_default().current;
        if spans.last().is_none_or(|(_, until)| until.is_some()) {
            spans.push((now, None));
            // Whoever had let go of it may read it again.
            self.released.remove(&version);
        }
    }

    /// A place has shown this version until now, although another one is current: of one of which nothing is known, since
    /// the boot.
    pub fn was_shown(&mut self, version: Version, now: Millis) {
        let spans = &mut self.versions.entry(version).or_default().current;
        match spans.last_mut() {
            Some((_, Some(until))) => *until = now.max(*until),
            Some((_, None)) => {}
            None => spans.push((Millis(0), Some(now))),
        }
    }

    /// Everything until then was seen, where evidence is `Kernel`.
    pub fn complete_through(&self) -> Millis {
        self.complete_through
    }

    /// When it was last another version that became current, or none. Only a look after that millisecond tells who began
    /// after it.
    pub fn turned(&self) -> Millis {
        let spans = self.versions.values().flat_map(|watched| &watched.current);
        spans.map(|(from, until)| until.unwrap_or(*from)).max().unwrap_or_default()
    }

    /// A consumer has taken up a version; processes of it that are older than `at` did so by reading it again.
    pub fn adopted(&mut self, consumer: ConsumerName, version: Version, at: Millis) {
        self.adoptions.insert(consumer, (version, at));
    }

    /// What the kernel showed. Returns whether anything changed that must be journaled before the events are
    /// forgotten.
    pub fn observe(&mut self, look: &Look, scene: &Scene<'_>) -> bool {
        let mut changed = false;
        let mut unknown: BTreeMap<String, BTreeSet<Version>> = BTreeMap::new();
        for sighting in &look.sightings {
            let Some((version, file)) = self.file_of(sighting.inode) else { continue };
            changed = true;
            if let Err(why) = self.sight(version, &file, sighting, scene) {
                unknown.entry(why).or_default().insert(version);
            }
        }
        for why in &look.lost {
            let all = self.versions.keys().copied().collect();
            unknown.entry(why.clone()).or_default().extend::<BTreeSet<Version>>(all);
        }
        for (why, versions) in unknown {
            changed |= self.blind(versions, why, scene);
        }
        if look.drained {
            self.complete_through = self.complete_through.max(look.began);
        }
        changed
    }

    /// Somebody unseen may have read these versions since everything was last seen: a gap.
    pub fn blind(&mut self, versions: BTreeSet<Version>, why: impl Into<String>, scene: &Scene<'_>) -> bool {
        self.blind_since(self.complete_through, versions, why, scene)
    }

    /// The same, since then.
    pub fn blind_since(
        &mut self,
        since: Millis,
        mut versions: BTreeSet<Version>,
        why: impl Into<String>,
        scene: &Scene<'_>,
    ) -> bool {
        versions.retain(|version| self.versions.contains_key(version));
        if versions.is_empty() {
            return false;
        }
        let files: Vec<&File> = versions.iter().flat_map(|version| self.watched(*version)).collect();
        let gap = GapState::new(versions, &files, since, why.into(), &self.able, scene);
        self.open_gap(gap);
        true
    }

    /// Looks at all lives and gaps again. Returns whether anything ended or changed that must be journaled.
    pub fn refresh(&mut self, scene: &Scene<'_>) -> bool {
        let before = self.shape();
        self.name_arrived(scene);
        self.lives.retain(|_, life| life.refresh(scene));
        let lives = &self.lives;
        for holds in self.held.values_mut() {
            holds.retain(|id, _| lives.contains_key(id));
        }
        self.gaps.retain_mut(|gap| gap.refresh(scene));
        self.release_by_opening(scene);
        self.drop_idle();
        if scene.table.complete {
            self.reads.retain(|id, readings| !readings.is_empty() && scene.table.is_alive(*id));
        }
        if self.kind == Kind::Kernel {
            let files: Vec<&File> = self.versions.values().flat_map(|watched| &watched.files).collect();
            self.able = gap::able(&files, scene);
        }
        self.shape() != before
    }

    /// Where evidence is `declared`: the present life of a consumer that policy names. It holds every version that
    /// was current in its time.
    pub fn declare(&mut self, consumer: &ConsumerName, life: &ConsumerLife, scene: &Scene<'_>) -> bool {
        if self.kind == Kind::Kernel {
            return false;
        }
        let Some(rule) = scene.rules.consumer(consumer) else { return false };
        let gaps = self.gaps.len();
        if let ConsumerLife::Unknown(why) = life {
            let versions: BTreeSet<Version> = self.versions.keys().copied().collect();
            let known = self.gaps.iter().any(|gap| gap.of_consumer.as_ref() == Some(consumer));
            if known || versions.is_empty() {
                return false;
            }
            let why = format!("cannot tell whether {consumer} runs: {}", printable(why));
            self.gaps.push(GapState::of_consumer(consumer.clone(), versions, why, scene.table.taken));
            return true;
        }
        self.gaps.retain(|gap| gap.of_consumer.as_ref() != Some(consumer));
        let mut changed = self.gaps.len() != gaps;
        let Some((id, state, began)) = declared_life(life, scene) else { return changed };
        let was_current = |watched: &Watched, began: Millis| {
            let in_its_time = |(from, until): &(Millis, Option<Millis>)| {
                *from <= scene.table.taken && until.is_none_or(|until| began <= until)
            };
            watched.current.iter().any(in_its_time)
        };
        let mut held = Vec::new();
        for (version, watched) in &self.versions {
            let known = self.held.get(version).is_some_and(|holds| holds.contains_key(&id));
            if known || self.released.get(version).is_some_and(|lives| lives.contains(&id)) {
                continue;
            }
            if was_current(watched, began.by_looks) {
                held.push(*version);
            } else if was_current(watched, began.by_start) {
                // What a look has shown is not shown again after our restart.
                self.released.entry(*version).or_default().insert(id.clone());
                changed = true;
            }
        }
        changed |= !held.is_empty();
        for version in held {
            self.hold(version, &id, state.clone(), Some(rule), Kind::Declared, "named by policy");
        }
        changed
    }

    /// An application says which version it is on and which it has dropped. `peer` is who speaks, by the kernel's
    /// word on the other end of the socket, and the user that it had when it connected: it may have become another
    /// program since, with the rights of another.
    pub fn word(
        &mut self,
        consumer: &ConsumerName,
        (peer, connected_as): (&Process, u32),
        on: Version,
        dropped: &BTreeSet<Version>,
        scene: &Scene<'_>,
    ) -> Result<(), Disbelieved> {
        let rule =
            scene.rules.consumer(consumer).ok_or_else(|| Disbelieved::NotAConsumer(consumer.clone()))?;
        if !rule.release.by_word {
            return Err(Disbelieved::NotTrusted(consumer.clone()));
        }
        let named = scene.named_by_pid_file(&scene.lineage(peer));
        let was_another = rule.uid.is_some_and(|uid| ![uid, 0].contains(&connected_as));
        if was_another || !scene.is_of(rule, peer) || named.is_some_and(|named| named.name != *consumer) {
            return Err(Disbelieved::SomebodyElse { consumer: consumer.clone(), process: peer.describe() });
        }
        let lives: Vec<HolderId> =
            self.lives.iter().filter(|(_, life)| life.has(peer)).map(|(id, _)| id.clone()).collect();
        for version in dropped.iter().filter(|version| **version != on) {
            let Some(holds) = self.held.get_mut(version) else { continue };
            for id in &lives {
                if holds.get(id).is_some_and(|held| held.release.by_word) {
                    holds.remove(id);
                    self.released.entry(*version).or_default().insert(id.clone());
                }
            }
        }
        self.said.insert(consumer.clone(), (peer.id, on));
        if self.versions.contains_key(&on) {
            let known: Vec<(HolderId, LifeState)> =
                lives.iter().filter_map(|id| Some((id.clone(), self.lives.get(id)?.clone()))).collect();
            let holding = if known.is_empty() { vec![life_of_peer(peer, scene)] } else { known };
            for (id, life) in holding {
                if let Some(released) = self.released.get_mut(&on) {
                    released.remove(&id);
                }
                self.hold(on, &id, life, Some(rule), Kind::Reported, "says so");
            }
        }
        self.drop_idle();
        Ok(())
    }

    /// What the sweep found of a version: those who have it become its holders, but for the ones that an operator
    /// cleared.
    pub fn found(&mut self, version: Version, traces: &Traces, scene: &Scene<'_>) -> bool {
        let excused = self.excused.get(&version).cloned().unwrap_or_default();
        let mut changed = false;
        for found in traces.found.iter().filter(|found| !excused.contains(&found.process.id)) {
            let lineage = scene.lineage(&found.process);
            let lives = match charge(&lineage, &[], scene) {
                Charged::Lives(lives) => lives,
                // What is in the hands of a process that does not count as a reader counts all the same.
                Charged::Nobody | Charged::Unknown(_) => {
                    vec![LifeState::of_process(&found.process, scene.table)]
                }
            };
            for (id, mut life) in lives {
                life.remember(found.process.id);
                let rule = scene.consumer_of(&lineage);
                // It has the value where reading again does not reach: only its end counts.
                self.hold(version, &id, life, rule, Kind::Kernel, &found.what);
                if let Some(held) = self.held.get_mut(&version).and_then(|holds| holds.get_mut(&id)) {
                    held.release = Release::default();
                }
                changed = true;
            }
        }
        changed
    }

    /// An operator's word: these holders of a version are gone, and these gaps do not count for it. Covers nothing
    /// that is seen later.
    pub fn clear(&mut self, version: Version, holders: &BTreeSet<HolderId>, gaps: &BTreeSet<GapId>) -> bool {
        let before = self.shape();
        let mut excused = BTreeSet::new();
        if let Some(holds) = self.held.get_mut(&version) {
            let lives = &self.lives;
            let clears = &mut self.clears;
            // What only policy says of a life is said of the whole of it, and would be said again at the next look.
            let released = self.released.entry(version).or_default();
            holds.retain(|life, held| {
                let cleared = holders.contains(&held.id);
                if cleared {
                    if held.evidence == Kind::Declared {
                        released.insert(life.clone());
                    }
                    *clears.entry(life.clone()).or_default() += 1;
                    excused.extend(lives.get(life).into_iter().flat_map(LifeState::processes));
                }
                !cleared
            });
        }
        for gap in self.gaps.iter_mut().filter(|gap| gap.id.as_ref().is_some_and(|id| gaps.contains(id))) {
            if gap.versions.remove(&version) {
                excused.extend(gap.candidates.iter().copied());
            }
        }
        self.gaps.retain(|gap| !gap.versions.is_empty());
        if !excused.is_empty() {
            self.excused.entry(version).or_default().extend(excused);
        }
        self.drop_idle();
        self.shape() != before
    }

    /// Processes whose hold on a version an operator cleared: the inodes that they pin are accounted for.
    pub fn excused(&self, version: Version) -> BTreeSet<ProcessId> {
        self.excused.get(&version).cloned().unwrap_or_default()
    }

    /// Who may have a version.
    pub fn holders(&self, version: Version) -> Vec<report::Holder> {
        let holds = self.held.get(&version).into_iter().flatten();
        holds.map(|(life, held)| self.shown(version, life, held)).collect()
    }

    /// Who may have which version.
    pub fn all_holders(&self) -> Vec<report::Holder> {
        self.held.keys().flat_map(|version| self.holders(*version)).collect()
    }

    /// The gaps that have not healed, for the report with this number. It names those that no report has shown yet,
    /// so the state must be journaled before the report is sent.
    pub fn gaps(&mut self, sequence: u64, table: &Table) -> Vec<report::Gap> {
        for gap in self.gaps.iter_mut().filter(|gap| gap.id.is_none()) {
            gap.id = gap::name(sequence, &mut self.named);
        }
        let shown = self.gaps.iter().filter_map(|gap| {
            let (id, versions) = (gap.id.clone()?, gap.versions.clone());
            Some(report::Gap { id, versions, description: gap.describe(table) })
        });
        shown.collect()
    }

    /// Whether nothing stands between a version and its end, as far as was seen.
    pub fn is_free(&self, version: Version) -> bool {
        let held = self.held.get(&version).is_some_and(|holds| !holds.is_empty());
        !held && !self.gaps.iter().any(|gap| gap.versions.contains(&version))
    }

    /// Whether somebody for whom PID 1 has read is about to start: the next look may tell who that is.
    pub fn awaits_a_start(&self) -> bool {
        self.lives.values().any(LifeState::is_awaited)
    }

    /// The processes whose exit may end a hold or heal a gap: worth a pidfd each.
    pub fn awaited(&self) -> BTreeSet<ProcessId> {
        let of_lives = self.lives.values().flat_map(LifeState::processes);
        of_lives.chain(self.gaps.iter().flat_map(|gap| gap.candidates.iter().copied())).collect()
    }

    /// Consumers that read some files of `current` and others of an older version only: they started while it
    /// changed, and must adopt again. Of a unit all that its invocation has read counts together, also what PID 1 read
    /// for it; where no invocation tells lives apart, what one process has read.
    pub fn mixed(&self, current: Version, scene: &Scene<'_>) -> BTreeSet<ConsumerName> {
        let of_process = self.reads.iter().filter(|(_, readings)| {
            let now = readings.get(&current).map(|now| &now.files);
            let others = readings.iter().filter(|(version, _)| **version != current);
            is_mixed(now, others.map(|(_, read)| &read.files))
        });
        let of_process = of_process
            .filter_map(|(id, _)| scene.table.get(*id))
            .filter_map(|process| scene.consumer_of(&scene.lineage(process)))
            .map(|rule| rule.name.clone());
        let of_invocation = self.lives.iter().filter(|(_, life)| life.is_present_invocation(scene));
        let of_invocation = of_invocation.filter_map(|(id, _)| {
            let now = self.held.get(&current)?.get(id)?;
            let others = self.held.iter().filter(|(version, _)| **version != current);
            let others = others.filter_map(|(_, holds)| holds.get(id)).map(|held| &held.files);
            now.consumer.clone().filter(|_| is_mixed(Some(&now.files), others))
        });
        of_process.chain(of_invocation).collect()
    }

    /// Whether a living process of a consumer was seen to read a version, and no other one since.
    pub fn was_read_by(&self, consumer: &ConsumerName, version: Version, scene: &Scene<'_>) -> bool {
        let is_last = |readings: &BTreeMap<Version, Readings>| {
            let last = |read: &Readings| read.last;
            readings.get(&version).map(last) == readings.values().map(last).max()
        };
        let readers = self.reads.iter().filter(|(_, readings)| !readings.is_empty() && is_last(readings));
        readers
            .filter_map(|(id, _)| scene.table.get(*id))
            .filter_map(|process| scene.consumer_of(&scene.lineage(process)))
            .any(|rule| rule.name == *consumer)
    }

    /// Whether a process is on another version than this one: by what it has read last, or else by what the lives that it
    /// is part of hold (whoever forked it may have read for it), or else by what policy says.
    pub fn is_on_another(&self, id: ProcessId, current: Version, scene: &Scene<'_>) -> bool {
        let readings =
            self.reads.get(&id).and_then(|readings| readings.iter().max_by_key(|(_, read)| read.last));
        if let Some((version, _)) = readings {
            return *version != current;
        }
        // What has ended meanwhile was certainly on the current one only if it began after that became current.
        let Some(process) = scene.table.get(id) else { return scene.table.began(id) < self.turned() };
        if self.kind == Kind::Kernel {
            let is_its = |life: &HolderId| self.lives.get(life).is_some_and(|life| life.has(process));
            let holds =
                |version: &Version| self.held.get(version).is_some_and(|holds| holds.keys().any(is_its));
            return !holds(&current) && self.held.keys().any(holds);
        }
        // Of its life every version counts that was current in its time.
        let (life, _) = LifeState::of_process(process, scene.table);
        self.held.iter().any(|(version, holds)| *version != current && holds.contains_key(&life))
    }

    /// Whether this was the last word of a consumer that lives.
    pub fn is_said_by(&self, consumer: &ConsumerName, version: Version, scene: &Scene<'_>) -> bool {
        self.said.get(consumer).is_some_and(|(who, on)| *on == version && scene.table.is_alive(*who))
    }

    fn sight(
        &mut self,
        version: Version,
        file: &File,
        sighting: &Sighting,
        scene: &Scene<'_>,
    ) -> Result<(), String> {
        let lineage = match &sighting.reader {
            Reader::Seen(lineage) => lineage,
            Reader::Vanished => return Err("a reader was gone before we looked".into()),
        };
        let names: Vec<&str> = file.place.iter().chain([&file.name]).map(String::as_str).collect();
        let lives = match charge(lineage, &names, scene) {
            Charged::Lives(lives) => lives,
            Charged::Nobody => return Ok(()),
            Charged::Unknown(why) => return Err(why),
        };
        self.counter += 1;
        let how =
            if sighting.opened { format!("opened {}", file.name) } else { format!("read {}", file.name) };
        for (id, mut life) in lives {
            life.may_have_read_since(self.complete_through);
            if let Some(reader) = lineage.first().filter(|reader| reader.id.pid != 1) {
                life.remember(reader.id);
                let readings = self.reads.entry(reader.id).or_default().entry(version).or_default();
                readings.files.insert(file.name.clone());
                readings.last = self.counter;
            }
            if let Some(released) = self.released.get_mut(&version) {
                released.remove(&id);
            }
            let unit =
                life.unit().and_then(|unit| scene.rules.consumers.iter().find(|rule| rule.is_unit(unit)));
            let rule = unit.or_else(|| scene.consumer_of(lineage));
            self.hold(version, &id, life, rule, Kind::Kernel, &how);
            if let Some(held) = self.held.get_mut(&version).and_then(|holds| holds.get_mut(&id)) {
                held.files.insert(file.name.clone());
            }
        }
        Ok(())
    }

    fn hold(
        &mut self,
        version: Version,
        id: &HolderId,
        life: LifeState,
        rule: Option<&ConsumerRule>,
        evidence: Kind,
        how: &str,
    ) {
        match self.lives.get_mut(id) {
            Some(known) => known.join(life),
            None => {
                self.lives.insert(id.clone(), life);
            }
        }
        let shown = match self.clears.get(id) {
            Some(times) => crate::life::holder_id("again", &format!("{times}:{id}")),
            None => id.clone(),
        };
        let held = self.held.entry(version).or_default().entry(id.clone()).or_insert_with(|| Held {
            id: shown,
            consumer: rule.map(|rule| rule.name.clone()),
            evidence,
            release: rule.map(|rule| rule.release).unwrap_or_default(),
            how: how.to_owned(),
            files: BTreeSet::new(),
        });
        held.evidence = held.evidence.max(evidence);
    }

    /// Who was about to start gets the name of its invocation.
    fn name_arrived(&mut self, scene: &Scene<'_>) {
        let arrived: Vec<(HolderId, (HolderId, LifeState))> = self
            .lives
            .iter()
            .filter_map(|(id, life)| life.arrived(scene).map(|arrived| (id.clone(), arrived)))
            .collect();
        for (coming, (id, life)) in arrived {
            self.lives.remove(&coming);
            match self.lives.get_mut(&id) {
                Some(known) => known.join(life),
                None => {
                    self.lives.insert(id.clone(), life);
                }
            }
            for holds in self.held.values_mut() {
                if let Some(held) = holds.remove(&coming) {
                    let files = held.files.clone();
                    let known = holds.entry(id.clone()).or_insert(Held { id: id.clone(), ..held });
                    known.files.extend(files);
                }
            }
        }
    }

    /// Where policy says `reload`, `reopen` or `signal`: a hold ends when every process older than the adoption was
    /// seen reading the new version after it last read the old one, and all the files that it had read of that.
    fn release_by_opening(&mut self, scene: &Scene<'_>) {
        let Self { held, lives, reads, adoptions, .. } = self;
        for (old, holds) in held {
            holds.retain(|id, hold| {
                let adoption = hold.consumer.as_ref().and_then(|consumer| adoptions.get(consumer));
                let (Some((new, at)), Some(life), true) = (adoption, lives.get(id), hold.release.by_opening)
                else {
                    return true;
                };
                if new == old {
                    return true;
                }
                let let_go = |process: ProcessId| {
                    let readings = reads.get(&process);
                    let of_old = readings.and_then(|readings| readings.get(old));
                    let of_new = readings.and_then(|readings| readings.get(new));
                    match (of_old, of_new) {
                        (None, None) => scene.table.began(process) > *at,
                        (Some(_), None) => false,
                        (None, Some(_)) => true,
                        (Some(was), Some(now)) => now.last > was.last && was.files.is_subset(&now.files),
                    }
                };
                !life.processes().all(let_go)
            });
        }
    }

    fn open_gap(&mut self, gap: GapState) {
        match self.gaps.iter_mut().find(|open| open.id.is_none() && open.of_consumer.is_none()) {
            Some(open) => open.merge(gap),
            None => self.gaps.push(gap),
        }
        while self.gaps.iter().filter(|gap| gap.of_consumer.is_none()).count() > GAPS_MAX {
            let Some(oldest) = self.gaps.iter().position(|gap| gap.of_consumer.is_none()) else { return };
            let oldest = self.gaps.remove(oldest);
            if let Some(next) = self.gaps.iter_mut().find(|gap| gap.of_consumer.is_none()) {
                next.merge(oldest);
            }
        }
    }

    fn file_of(&self, inode: Inode) -> Option<(Version, File)> {
        self.versions.iter().find_map(|(version, watched)| {
            let file =
                watched.files.iter().find(|file| (file.device, file.inode) == (inode.device, inode.number));
            file.map(|file| (*version, file.clone()))
        })
    }

    /// Lives that hold nothing are not followed.
    fn drop_idle(&mut self) {
        self.held.retain(|_, holds| !holds.is_empty());
        let holding: BTreeSet<&HolderId> = self.held.values().flat_map(BTreeMap::keys).collect();
        self.lives.retain(|id, _| holding.contains(id));
    }

    fn shown(&self, version: Version, life: &HolderId, held: &Held) -> report::Holder {
        let who = self.lives.get(life).map_or("", |life| life.description.as_str());
        report::Holder {
            id: held.id.clone(),
            version,
            consumer: held.consumer.clone(),
            evidence: held.evidence,
            description: format!("{who}: {}", printable(&held.how)),
        }
    }

    /// What a reader of the state could tell apart, and so what must be journaled.
    fn shape(&self) -> Shape {
        let held = self.held.iter().flat_map(|(version, holds)| {
            holds.keys().map(|id| {
                let processes = self.lives.get(id).into_iter().flat_map(LifeState::processes);
                (*version, id.clone(), processes.collect())
            })
        });
        let gaps = self.gaps.iter().map(|gap| (gap.id.clone(), gap.candidates.clone()));
        (held.collect(), gaps.collect())
    }
}

/// Whether something was read of an older version that was not read of the one that is current. What is known by its place
/// only has no name there.
fn is_mixed<'f>(
    now: Option<&BTreeSet<String>>,
    mut others: impl Iterator<Item = &'f BTreeSet<String>>,
) -> bool {
    let named = |other: &BTreeSet<String>, now: &BTreeSet<String>| {
        other.iter().filter(|name| !name.starts_with('/')).any(|name| !now.contains(name))
    };
    now.filter(|now| !now.is_empty()).is_some_and(|now| others.any(|other| named(other, now)))
}
