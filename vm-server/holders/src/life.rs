//! One life of a reader: which processes belong to it, and when it is over.

use std::collections::{BTreeMap, BTreeSet};

use lifecycle::{HolderId, Millis};
use serde::{Deserialize, Serialize};

use crate::belongs::{Belongs, is_within};
use crate::process::{Process, ProcessId, Table, printable};
use crate::scene::Scene;

/// How long PID 1 may take from reading a file for a unit to forking the unit's first process. It does nothing else
/// in between.
const FORKED_WITHIN: Millis = Millis::seconds(10);

/// A life. It is over when none of its processes is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LifeState {
    /// What holds it together.
    pub(crate) kind: Kind,
    /// When it was first seen to read. Children of its ancestors count from then on.
    since: Millis,
    /// When its processes were last looked at.
    looked: Millis,
    /// Its processes, alive at the last look.
    members: BTreeSet<ProcessId>,
    /// Of a tree, the ancestors of its readers: in `P=$(cat F)` the reader is gone and its parent has the value.
    ancestors: BTreeSet<ProcessId>,
    /// Nobody was there at the last look.
    #[serde(default)]
    empty: bool,
    /// PID 1 read for it then, and its first process may not have been forked yet.
    awaited: Option<Millis>,
    /// For people.
    pub(crate) description: String,
}

/// What holds the processes of a life together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum Kind {
    /// A cgroup: a unit in one invocation, a session, a scope, a container.
    Cgroup {
        /// The unit of the system's manager, where it is one.
        unit: Option<String>,
        /// Its path, with everything below.
        root: String,
        /// Its id; 0 where unknown.
        id: u64,
        /// The invocation, where systemd made it.
        invocation: Option<String>,
        /// The invocation has ended: only processes from before that belong to it.
        ended: bool,
    },
    /// A unit for which PID 1 has read before there was a cgroup of it.
    Coming {
        /// The unit.
        unit: String,
    },
    /// Where no cgroup tells readers apart: their sessions, ancestors and descendants.
    Tree {
        /// The sessions of its readers by number, each with its leader while that lived.
        sessions: BTreeMap<i32, Option<ProcessId>>,
    },
}

impl LifeState {
    /// The life of the cgroup that a process belongs to, and its name.
    pub(crate) fn of_cgroup(belongs: &Belongs, scene: &Scene<'_>) -> Option<(HolderId, Self)> {
        let root = belongs.root()?.to_owned();
        let seen = scene.table.cgroups.get(&root).cloned().unwrap_or_default();
        let (unit, label) = match belongs {
            Belongs::Unit { name, .. } => (Some(name.clone()), Some(name.clone())),
            Belongs::UserUnit { name, .. } => (None, Some(name.clone())),
            _ => (None, None),
        };
        let told =
            unit.as_ref().and_then(|unit| scene.units.get(unit)).and_then(|life| life.invocation.clone());
        // What systemd wrote on the cgroup stays there when the next invocation goes on in the same one.
        let invocation = told.or(seen.invocation);
        let which = invocation.clone().unwrap_or_else(|| format!("cgroup-{}", seen.id));
        let (id, description) = match &label {
            Some(label) => (
                holder_id("unit", &format!("{label}:{which}")),
                format!("{} (invocation {})", printable(label), printable(&which)),
            ),
            None => {
                (holder_id("cgroup", &format!("{root}:{}", seen.id)), format!("cgroup {}", printable(&root)))
            }
        };
        let kind = Kind::Cgroup { unit, root, id: seen.id, invocation, ended: false };
        Some((id, Self::new(kind, scene.table.taken, description)))
    }

    /// The life of a unit for which PID 1 read a file.
    pub(crate) fn of_unit(unit: &str, scene: &Scene<'_>) -> (HolderId, Self) {
        let now = scene.table.taken;
        let roots =
            scene.table.cgroups.keys().chain(scene.table.processes.values().map(|process| &process.cgroup));
        let found = roots
            .map(|path| Belongs::of(path))
            .find(|belongs| matches!(belongs, Belongs::Unit { name, .. } if name == unit))
            .and_then(|belongs| Self::of_cgroup(&belongs, scene));
        let (id, mut life) = found.unwrap_or_else(|| {
            let kind = Kind::Coming { unit: unit.to_owned() };
            let description = format!("{} (about to start)", printable(unit));
            (holder_id("unit", &format!("{unit}:coming-{}", now.0)), Self::new(kind, now, description))
        });
        life.awaited = Some(now);
        (id, life)
    }

    /// The life of a reader that no cgroup tells apart. `lineage` is the reader, then its ancestors, nearest first.
    pub(crate) fn of_tree(lineage: &[Process], scene: &Scene<'_>) -> Option<(HolderId, Self)> {
        let (reader, ancestors) = lineage.split_first()?;
        let table = scene.table;
        // A session is named by its leader, as long as that lives; its number is not used again before the last
        // process of the session is gone.
        let leader = leader_of(reader.session, table);
        let id = match leader {
            Some(leader) => holder_id("session", &leader.id.to_string()),
            None => holder_id("proc", &reader.id.to_string()),
        };
        let described = leader.unwrap_or(reader).describe();
        let kind =
            Kind::Tree { sessions: BTreeMap::from([(reader.session, leader.map(|leader| leader.id))]) };
        let mut life = Self::new(kind, table.taken, described);
        life.members.insert(reader.id);
        life.ancestors = ancestors.iter().map(|process| process.id).collect();
        Some((id, life))
    }

    /// The life of a process that policy names: it, what it starts, and its session where it leads one.
    pub(crate) fn of_process(process: &Process, table: &Table) -> (HolderId, Self) {
        let leads = process.session == process.id.pid;
        let sessions = leads.then_some((process.session, Some(process.id))).into_iter().collect();
        let mut life = Self::new(Kind::Tree { sessions }, table.taken, process.describe());
        life.members.insert(process.id);
        (holder_id("proc", &process.id.to_string()), life)
    }

    fn new(kind: Kind, now: Millis, description: String) -> Self {
        let (members, ancestors) = (BTreeSet::new(), BTreeSet::new());
        Self { kind, since: now, looked: now, members, ancestors, empty: false, awaited: None, description }
    }

    /// It may have read at any time since then, so what it has started since counts.
    pub(crate) fn may_have_read_since(&mut self, moment: Millis) {
        self.since = self.since.min(moment);
        self.looked = self.looked.min(moment);
    }

    /// A further reading in the same life.
    pub(crate) fn join(&mut self, other: Self) {
        self.members.extend(other.members);
        self.ancestors.extend(other.ancestors);
        self.awaited = self.awaited.max(other.awaited);
        self.looked = self.looked.min(other.looked);
        if let (Kind::Tree { sessions }, Kind::Tree { sessions: more }) = (&mut self.kind, other.kind) {
            sessions.extend(more);
        }
    }

    /// The unit of the system's manager, where it is one.
    pub(crate) fn unit(&self) -> Option<&str> {
        match &self.kind {
            Kind::Cgroup { unit, .. } => unit.as_deref(),
            Kind::Coming { unit } => Some(unit),
            Kind::Tree { .. } => None,
        }
    }

    /// Whether PID 1 read for it and its first process was not seen yet.
    pub(crate) const fn is_awaited(&self) -> bool {
        self.awaited.is_some() || matches!(self.kind, Kind::Coming { .. })
    }

    /// Whether it is the invocation in which its unit lives now. What PID 1 read for the next one may have been charged
    /// to the one before.
    pub(crate) fn is_present_invocation(&self, scene: &Scene<'_>) -> bool {
        let Kind::Cgroup { unit: Some(unit), invocation: Some(invocation), ended: false, .. } = &self.kind
        else {
            return false;
        };
        scene.units.get(unit).is_some_and(|told| told.invocation.as_ref() == Some(invocation))
    }

    /// A process that read or was found, so that it counts even if it leaves its cgroup.
    pub(crate) fn remember(&mut self, reader: ProcessId) {
        self.members.insert(reader);
    }

    /// All processes that may have what the life has.
    pub(crate) fn processes(&self) -> impl Iterator<Item = ProcessId> + '_ {
        self.members.iter().chain(&self.ancestors).copied()
    }

    /// Whether a process belongs to it.
    pub(crate) fn has(&self, process: &Process) -> bool {
        let within = match &self.kind {
            Kind::Cgroup { root, ended, .. } => !ended && is_within(&process.cgroup, root),
            Kind::Coming { .. } | Kind::Tree { .. } => false,
        };
        within || self.members.contains(&process.id)
    }

    /// The life that this one has become, when it was about to start and its cgroup is there now.
    pub(crate) fn arrived(&self, scene: &Scene<'_>) -> Option<(HolderId, Self)> {
        let Kind::Coming { unit } = &self.kind else { return None };
        let (id, mut life) = Self::of_unit(unit, scene);
        life.awaited = self.awaited;
        life.may_have_read_since(self.since);
        matches!(life.kind, Kind::Cgroup { .. }).then_some((id, life))
    }

    /// Looks at its processes again. `false` when it is over.
    pub(crate) fn refresh(&mut self, scene: &Scene<'_>) -> bool {
        let table = scene.table;
        if !table.complete {
            return true;
        }
        self.members = match &self.kind {
            Kind::Cgroup { .. } => self.of_its_cgroup(scene),
            Kind::Coming { .. } => BTreeSet::new(),
            Kind::Tree { sessions } => self.of_its_tree(sessions, scene),
        };
        self.ancestors.retain(|id| table.is_alive(*id));
        if let Kind::Tree { sessions } = &mut self.kind {
            sessions.retain(|session, _| {
                let mut living = self.members.iter().filter_map(|id| table.get(*id));
                living.any(|process| process.session == *session)
            });
        }
        if let Some(read) = self.awaited {
            let arrived = self.members.iter().any(|id| table.began_before(*id) > read);
            let forking = table.processes.values().any(|process| {
                process.id.pid != 1 && !process.kernel && Belongs::of(&process.cgroup) == Belongs::Init
            });
            if arrived || (table.taken.since(read) > FORKED_WITHIN && !forking) {
                self.awaited = None;
            }
        }
        self.looked = table.taken;
        let (was_empty, is_empty) = (self.empty, self.members.is_empty());
        self.empty = is_empty;
        self.may_be_between_programs(scene, was_empty)
            || self.awaited.is_some()
            || !is_empty
            || !self.ancestors.is_empty()
    }

    /// What systemd says was asked a moment after the processes were listed, so one empty listing proves nothing while
    /// the invocation goes on.
    fn may_be_between_programs(&self, scene: &Scene<'_>, was_empty: bool) -> bool {
        let Kind::Cgroup { unit: Some(unit), invocation, ended: false, .. } = &self.kind else {
            return false;
        };
        scene
            .units
            .get(unit)
            .is_some_and(|told| (told.changing || !was_empty) && told.invocation == *invocation)
    }

    /// The processes of its cgroup; once the invocation has ended, those from before that, with their descendants. Of
    /// what they have started since it read, also what was moved to another cgroup.
    fn of_its_cgroup(&mut self, scene: &Scene<'_>) -> BTreeSet<ProcessId> {
        let (table, since) = (scene.table, self.since);
        let known: Vec<ProcessId> = self.members.iter().copied().collect();
        let Kind::Cgroup { unit, root, id, invocation, ended } = &mut self.kind else {
            return self.members.clone();
        };
        let moved = |process: &Process| table.began_before(process.id) > since && !scene.never_holds(process);
        let seen = table.cgroups.get(root);
        let told = unit.as_ref().and_then(|unit| scene.units.get(unit));
        let same_cgroup = seen.is_none_or(|seen| seen.id == *id || *id == 0 || seen.id == 0);
        let now = match (told, seen.and_then(|seen| seen.invocation.as_ref())) {
            (Some(told), _) => Some(told.invocation.as_ref()),
            (None, Some(written)) => Some(Some(written)),
            (None, None) => None,
        };
        *ended |= !same_cgroup || now.is_some_and(|now| invocation.is_some() && now != invocation.as_ref());
        if !*ended {
            let within = table.processes.values().filter(|process| is_within(&process.cgroup, root));
            let roots = within.map(|process| process.id).chain(known);
            return table
                .with_descendants(roots, |process| is_within(&process.cgroup, root) || moved(process));
        }
        // The next invocation has begun in the same cgroup: whoever was there before, seen by us or not, is ours.
        let ended_at = told
            .filter(|told| told.invocation.as_ref() != invocation.as_ref())
            .and_then(|told| told.earlier_ended);
        let older = table.processes.values().filter(|process| {
            same_cgroup && is_within(&process.cgroup, root) && is_older(process, ended_at, table)
        });
        let roots: Vec<ProcessId> = known.into_iter().chain(older.map(|process| process.id)).collect();
        table.with_descendants(roots, |process| is_within(&process.cgroup, root) || moved(process))
    }

    /// Its sessions, what it has started, and what its ancestors have started since.
    fn of_its_tree(
        &self,
        sessions: &BTreeMap<i32, Option<ProcessId>>,
        scene: &Scene<'_>,
    ) -> BTreeSet<ProcessId> {
        let table = scene.table;
        let of_members = table.sessions_of(&self.members);
        let started = |process: &Process| {
            let by_ancestor = table
                .processes
                .get(&process.parent)
                .is_some_and(|parent| self.ancestors.contains(&parent.id))
                && table.began_before(process.id) > self.since;
            let lost_its_parent = table.began_before(process.id) > self.looked
                && table.may_descend(process, &of_members)
                && Belongs::of(&process.cgroup).root().is_none();
            // A number whose leader lives again names another session.
            let in_session = sessions.get(&process.session).is_some_and(|leader| {
                leader_of(process.session, table).is_none_or(|now| Some(now.id) == *leader)
            });
            in_session || by_ancestor || lost_its_parent
        };
        let counts = |process: &Process| !scene.never_holds(process);
        let more = table.processes.values().filter(|process| counts(process) && started(process));
        let roots: Vec<ProcessId> =
            self.members.iter().copied().chain(more.map(|process| process.id)).collect();
        table.with_descendants(roots, counts)
    }
}

fn leader_of(session: i32, table: &Table) -> Option<&Process> {
    table.processes.get(&session).filter(|leader| leader.session == leader.id.pid)
}

/// Whether a process of a unit's cgroup is from before the moment at which the earlier invocation had ended. Start
/// times are rounded down to a tick. Within that tick, and without a word on when it was, only what systemd itself starts
/// (its own child, leading a session of its own) can be of the new one; without that word not even this is believed.
fn is_older(process: &Process, ended_at: Option<Millis>, table: &Table) -> bool {
    let Some(ended_at) = ended_at else { return true };
    if table.began(process.id) >= ended_at {
        return false;
    }
    // Its child leads a session of its own, or has not got that far yet.
    let of_pid_1 = table.processes.get(&1).is_some_and(|first| first.session == process.session);
    let fresh = process.parent == 1 && (process.session == process.id.pid || of_pid_1);
    table.began_before(process.id) <= ended_at || !fresh
}

/// A name of a holder: other characters than names may have are replaced, and a digest of the text keeps two
/// different ones apart.
pub(crate) fn holder_id(kind: &str, text: &str) -> HolderId {
    const CHARS_MAX: usize = 200;
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_.@:/\\".contains(c);
    if text.len() <= CHARS_MAX
        && text.chars().all(legal)
        && let Ok(id) = HolderId::new(format!("{kind}:{text}"))
    {
        return id;
    }
    let replaced: String = text.chars().take(CHARS_MAX / 4).map(|c| if legal(c) { c } else { '_' }).collect();
    HolderId::new(format!("{kind}:{replaced}:{:016x}", fnv(text.as_bytes())))
        .unwrap_or_else(|invalid| unreachable!("made of legal characters only: {invalid}"))
}

/// FNV-1a, 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
