//! Stretches in which somebody unseen may have read, and who that may have been.

use std::collections::{BTreeMap, BTreeSet};

use lifecycle::{ConsumerName, GapId, Millis, Version};
use serde::{Deserialize, Serialize};

use crate::evidence::File;
use crate::process::{Process, ProcessId, Table};
use crate::scene::Scene;

/// CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_SETGID, CAP_SETUID: each opens any file, or lets
/// its process become somebody who may. See capabilities(7).
const OPENS_ANY_FILE: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 7;

/// How many candidates are named to people.
const NAMED_MAX: usize = 5;

/// One stretch without complete evidence. Counts as an unknown holder until it heals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GapState {
    /// Given by the report that first shows it; nothing is added to a gap that has a name, so that an operator's word
    /// on it covers nothing later.
    pub(crate) id: Option<GapId>,
    /// What may have been read.
    pub(crate) versions: BTreeSet<Version>,
    /// The last moment until which everything was seen.
    since: Millis,
    /// When we looked again.
    looked: Millis,
    /// What happened, in words.
    why: BTreeSet<String>,
    /// Who is alive and may have read.
    pub(crate) candidates: BTreeSet<ProcessId>,
    /// Of a consumer whose life could not be told: it heals when it can be.
    pub(crate) of_consumer: Option<ConsumerName>,
}

impl GapState {
    /// A gap from `since` until this look. `able` were alive and allowed at the look before.
    pub(crate) fn new(
        versions: BTreeSet<Version>,
        files: &[&File],
        since: Millis,
        why: String,
        able: &BTreeSet<ProcessId>,
        scene: &Scene<'_>,
    ) -> Self {
        let candidates = candidates(files, since, able, scene);
        let why = BTreeSet::from([why]);
        Self { id: None, versions, since, looked: scene.table.taken, why, candidates, of_consumer: None }
    }

    /// A consumer's life cannot be told.
    pub(crate) fn of_consumer(
        consumer: ConsumerName,
        versions: BTreeSet<Version>,
        why: String,
        now: Millis,
    ) -> Self {
        let (candidates, why) = (BTreeSet::new(), BTreeSet::from([why]));
        Self { id: None, versions, since: now, looked: now, why, candidates, of_consumer: Some(consumer) }
    }

    /// Takes another gap into this one. The result has no name: nobody's word covers it.
    pub(crate) fn merge(&mut self, other: Self) {
        self.id = None;
        self.versions.extend(other.versions);
        self.since = self.since.min(other.since);
        self.looked = self.looked.max(other.looked);
        self.why.extend(other.why);
        self.candidates.extend(other.candidates);
    }

    /// Looks at the candidates and what they have started again. `false` when it has healed.
    pub(crate) fn refresh(&mut self, scene: &Scene<'_>) -> bool {
        let table = scene.table;
        if !table.complete || self.of_consumer.is_some() {
            return true;
        }
        let counts = |process: &Process| !scene.never_holds(process);
        let looked = self.looked;
        let sessions = table.sessions_of(&self.candidates);
        let orphans = table.processes.values().filter(|process| {
            table.began_before(process.id) > looked
                && table.may_descend(process, &sessions)
                && counts(process)
        });
        let roots: Vec<ProcessId> =
            self.candidates.iter().copied().chain(orphans.map(|process| process.id)).collect();
        self.candidates = table
            .with_descendants(roots, |process| counts(process) && table.began_before(process.id) > looked);
        self.looked = table.taken;
        !self.candidates.is_empty()
    }

    /// For people, without control characters.
    pub(crate) fn describe(&self, table: &Table) -> String {
        let why: Vec<&str> = self.why.iter().map(String::as_str).collect();
        let mut text = why.join("; ");
        if self.of_consumer.is_some() {
            return text;
        }
        let named: Vec<String> = self
            .candidates
            .iter()
            .take(NAMED_MAX)
            .map(|id| table.get(*id).map_or_else(|| format!("process {}", id.pid), Process::describe))
            .collect();
        text.push_str("; it may have been ");
        text.push_str(&named.join(", "));
        let more = self.candidates.len().saturating_sub(NAMED_MAX);
        if more > 0 {
            text.push_str(" and more: ");
            text.push_str(&more.to_string());
        }
        text
    }
}

/// Who may have read in a gap and is alive: those allowed to open one of the files, at the look or at the one before;
/// what these have started since; and whoever began in the gap and came from we do not know where.
fn candidates(
    files: &[&File],
    since: Millis,
    able: &BTreeSet<ProcessId>,
    scene: &Scene<'_>,
) -> BTreeSet<ProcessId> {
    let table = scene.table;
    let counts = |process: &Process| !scene.never_holds(process);
    let young = |process: &Process| table.began_before(process.id) > since;
    let roots = table.processes.values().filter(|process| {
        let from_nowhere =
            young(process) && (process.parent <= 1 || table.may_descend(process, &BTreeSet::new()));
        counts(process)
            && reaches_any(files, process, table)
            && (able.contains(&process.id) || from_nowhere || may_open_any(files, process))
    });
    let roots: Vec<ProcessId> = roots.map(|process| process.id).collect();
    table.with_descendants(roots, |process| counts(process) && young(process))
}

/// Who is alive and allowed to open one of the files now.
pub(crate) fn able(files: &[&File], scene: &Scene<'_>) -> BTreeSet<ProcessId> {
    let living = scene.table.processes.values();
    living
        .filter(|process| !scene.never_holds(process) && may_open_any(files, process))
        .map(|process| process.id)
        .collect()
}

fn reaches_any(files: &[&File], process: &Process, table: &Table) -> bool {
    files.is_empty() || files.iter().any(|file| table.reaches(process, file.device))
}

fn may_open_any(files: &[&File], process: &Process) -> bool {
    // Without a file to judge by everybody may have.
    files.is_empty() || files.iter().any(|file| may_open(file, process))
}

fn may_open(file: &File, process: &Process) -> bool {
    process.capabilities & OPENS_ANY_FILE != 0
        || process.uids.is_empty()
        || process.uids.contains(&file.owner)
        || (file.mode & 0o040 != 0 && process.gids.contains(&file.group))
        || file.mode & 0o004 != 0
}

/// Counts names of gaps given by one report.
pub(crate) fn name(sequence: u64, taken: &mut BTreeMap<u64, u32>) -> Option<GapId> {
    let count = taken.entry(sequence).or_default();
    *count += 1;
    let id = GapId::new(format!("gap:{sequence}-{count}")).ok();
    taken.retain(|other, _| *other + 1 >= sequence);
    id
}
