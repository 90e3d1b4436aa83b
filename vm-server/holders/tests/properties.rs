//! Whatever processes do between two looks, whoever may have the value keeps the version, and nobody else does for
//! ever.
//!
//! The model knows who really has the value: who read it, whom that one gave it to by ending (`P=$(cat F)`) or through
//! a pipe in its session, and whoever those forked afterwards. The evidence is told only what the kernel tells.
//! What is left out is what the design names as a limit where no cgroup tells processes apart: a process that leads a
//! session of its own and loses its parent before anybody looked.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what it did not expect"
)]

use std::collections::{BTreeMap, BTreeSet};

use holders::{Evidence, File, Look, Process, ProcessId, Reader, Rules, Scene, Sighting, Table};
use lifecycle::{Evidence as Kind, Millis, Version};
use opens::Inode;
use proptest::prelude::*;

const OLD: Version = Version::new(1, 1);
const INODE: Inode = Inode { device: 1, number: 1 };
const APP: u32 = 1000;

/// What happens. Processes are chosen by a number modulo how many there are.
#[derive(Debug, Clone)]
enum Deed {
    Fork(usize),
    ForkIntoOwnSession(usize),
    Exit(usize),
    Read(usize),
    /// A child reads, gives it to its parent and is gone.
    ReadByChild(usize),
    /// The reader writes it into a pipe to another process of its session.
    ReadInPipeline(usize, usize),
    Look,
    /// Our daemon is killed and comes back with what it journaled.
    Restart,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        4 => any::<usize>().prop_map(Deed::Fork),
        2 => any::<usize>().prop_map(Deed::ForkIntoOwnSession),
        5 => any::<usize>().prop_map(Deed::Exit),
        2 => any::<usize>().prop_map(Deed::Read),
        1 => any::<usize>().prop_map(Deed::ReadByChild),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(reader, other)| Deed::ReadInPipeline(reader, other)),
        3 => Just(Deed::Look),
        1 => Just(Deed::Restart),
    ]
}

struct World {
    table: Table,
    next: i32,
    /// Who has the value.
    tainted: BTreeSet<i32>,
    /// Leaders of sessions that no look has seen.
    unseen_leaders: BTreeSet<i32>,
    queued: Vec<(i32, Option<Reader>)>,
    evidence: Evidence,
    in_unit: bool,
    /// Each reader is held until it was written down, so that there are no gaps.
    exact: bool,
}

impl World {
    fn new(in_unit: bool, exact: bool) -> Self {
        let mut evidence = Evidence::new("boot", Kind::Kernel, "", Millis(0));
        let name = "password".into();
        evidence
            .watch(OLD, File { name, place: None, device: 1, inode: 1, owner: APP, group: APP, mode: 0o400 });
        let table = Table { ticks: 100, complete: true, ..Table::default() };
        let mut world = Self {
            table,
            next: 1,
            tainted: BTreeSet::new(),
            unseen_leaders: BTreeSet::new(),
            queued: Vec::new(),
            evidence,
            in_unit,
            exact,
        };
        world.put(0, None);
        for _ in 0..3 {
            world.put(1, None);
        }
        world.look();
        world
    }

    fn put(&mut self, parent: i32, session: Option<i32>) -> i32 {
        let pid = self.next;
        self.next += 1;
        // Half of the machine is one unit.
        let cgroup = match self.table.processes.get(&parent) {
            Some(parent) if parent.id.pid != 1 => parent.cgroup.clone(),
            Some(_) if self.in_unit && pid % 2 == 0 => "/system.slice/a.service".to_owned(),
            _ => "/".to_owned(),
        };
        let process = Process {
            id: ProcessId { pid, start: self.table.taken.0 / 10 },
            parent,
            session: session.unwrap_or(pid),
            uids: BTreeSet::from([APP]),
            cgroup,
            ..Process::default()
        };
        self.table.processes.insert(pid, process);
        if self.tainted.contains(&parent) {
            self.tainted.insert(pid);
        }
        pid
    }

    fn chosen(&self, number: usize) -> Option<i32> {
        let living: Vec<i32> = self.table.processes.keys().copied().filter(|pid| *pid != 1).collect();
        (!living.is_empty()).then(|| living[number % living.len()])
    }

    fn fork(&mut self, parent: i32) -> i32 {
        let session = self.table.processes[&parent].session;
        self.put(parent, Some(session))
    }

    fn exit(&mut self, pid: i32) {
        let has_unseen_leader = self
            .table
            .processes
            .values()
            .any(|child| child.parent == pid && self.unseen_leaders.contains(&child.id.pid));
        if has_unseen_leader {
            self.look();
        }
        let parent = self.table.processes.remove(&pid).unwrap().parent;
        if self.tainted.remove(&pid) && parent != 1 {
            self.tainted.insert(parent);
        }
        for child in self.table.processes.values_mut().filter(|child| child.parent == pid) {
            child.parent = 1;
        }
    }

    fn read(&mut self, pid: i32) {
        let held = self.exact.then(|| self.reader(pid));
        self.queued.push((pid, held));
        self.tainted.insert(pid);
    }

    fn look(&mut self) {
        let queued = std::mem::take(&mut self.queued);
        let sightings = queued.into_iter().map(|(pid, held)| {
            let reader = held.unwrap_or_else(|| self.reader(pid));
            Sighting { inode: INODE, opened: true, reader }
        });
        let look = Look {
            began: self.table.taken,
            sightings: sightings.collect(),
            drained: true,
            ..Look::default()
        };
        let (rules, units) = (Rules::default(), BTreeMap::new());
        let scene = Scene { table: &self.table, rules: &rules, units: &units };
        self.evidence.observe(&look, &scene);
        self.evidence.refresh(&scene);
        self.unseen_leaders.clear();
    }

    fn reader(&self, pid: i32) -> Reader {
        let mut lineage = Vec::new();
        let mut next = pid;
        while let Some(process) = self.table.processes.get(&next) {
            lineage.push(process.clone());
            next = process.parent;
        }
        if lineage.is_empty() { Reader::Vanished } else { Reader::Seen(lineage) }
    }

    fn restart(&mut self) {
        let journal = serde_json::to_string(&self.evidence).unwrap();
        self.evidence = serde_json::from_str(&journal).unwrap();
        self.evidence.resume("boot", Kind::Kernel, "", self.table.taken);
    }

    fn happen(&mut self, deed: &Deed) {
        self.table.taken = self.table.taken.plus(Millis(30));
        match *deed {
            Deed::Fork(parent) => {
                self.chosen(parent).map(|parent| self.fork(parent));
            }
            Deed::ForkIntoOwnSession(parent) => {
                if let Some(parent) = self.chosen(parent) {
                    let leader = self.put(parent, None);
                    self.unseen_leaders.insert(leader);
                }
            }
            Deed::Exit(pid) => {
                if let Some(pid) = self.chosen(pid) {
                    self.exit(pid);
                }
            }
            Deed::Read(pid) => {
                if let Some(pid) = self.chosen(pid) {
                    self.read(pid);
                }
            }
            Deed::ReadByChild(parent) => {
                if let Some(parent) = self.chosen(parent) {
                    let child = self.fork(parent);
                    self.read(child);
                    self.exit(child);
                }
            }
            Deed::ReadInPipeline(reader, other) => {
                let Some(reader) = self.chosen(reader) else { return };
                self.read(reader);
                let session = self.table.processes[&reader].session;
                let in_session = |process: &&Process| process.session == session;
                let others: Vec<i32> =
                    self.table.processes.values().filter(in_session).map(|process| process.id.pid).collect();
                self.tainted.insert(others[other % others.len()]);
            }
            Deed::Look => self.look(),
            Deed::Restart => self.restart(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn whoever_may_have_it_keeps_it_and_nobody_else_for_ever(
        in_unit: bool,
        exact: bool,
        deeds in proptest::collection::vec(deed(), 1..60),
    ) {
        let mut world = World::new(in_unit, exact);
        for deed in &deeds {
            world.happen(deed);
            if matches!(deed, Deed::Look) {
                prop_assert!(
                    world.tainted.is_empty() || !world.evidence.is_free(OLD),
                    "{:?} have it, and the version counts as free: {:?}", world.tainted, world.evidence,
                );
            }
        }
        // Everybody who was there ends. Who comes afterwards never had it.
        while let Some(pid) = world.chosen(0) {
            world.exit(pid);
        }
        world.happen(&Deed::Look);
        world.put(1, None);
        world.happen(&Deed::Look);
        prop_assert!(world.evidence.is_free(OLD), "{:?}", world.evidence);
        prop_assert!(world.evidence.awaited().is_empty());
    }

    #[test]
    fn an_operators_word_covers_what_was_shown_and_nothing_later(
        exact: bool,
        deeds in proptest::collection::vec(deed(), 1..40),
        later in proptest::collection::vec(deed(), 1..20),
    ) {
        let mut world = World::new(false, exact);
        for deed in &deeds {
            world.happen(deed);
        }
        world.look();
        let table = world.table.clone();
        let holders = world.evidence.holders(OLD).into_iter().map(|holder| holder.id).collect();
        let gaps = world.evidence.gaps(1, &table).into_iter().map(|gap| gap.id).collect();
        world.evidence.clear(OLD, &holders, &gaps);
        prop_assert!(world.evidence.is_free(OLD));
        // The operator said that nobody has it.
        world.tainted.clear();
        for deed in &later {
            world.happen(deed);
            // The same word comes again and again with the order.
            world.evidence.clear(OLD, &holders, &gaps);
            if matches!(deed, Deed::Look) {
                prop_assert!(world.tainted.is_empty() || !world.evidence.is_free(OLD), "{:?}", world.evidence);
            }
        }
    }
}
