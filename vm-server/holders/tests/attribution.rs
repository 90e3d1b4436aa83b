//! Who is charged with a reading, and what ends it: tables over plain data.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what it did not expect"
)]

use std::collections::{BTreeMap, BTreeSet};

use holders::{
    ConsumerLife, ConsumerRule, Disbelieved, Evidence, Exempt, File, Found, Look, Process, ProcessId, Reader,
    Release, Rules, Scene, Sighting, Table, Traces, UnitLife,
};
use lifecycle::{ConsumerName, Evidence as Kind, HolderId, Millis, Version};
use opens::Inode;

const OLD: Version = Version::new(1, 1);
const NEW: Version = Version::new(1, 2);
const APP: u32 = 1000;
const DEVICE: u64 = 7;
/// The mount namespace of PID 1.
const HOSTS: u64 = 1;

/// A machine whose processes are set by hand. One tick is 10 ms.
struct World {
    table: Table,
    rules: Rules,
    units: BTreeMap<String, UnitLife>,
    evidence: Evidence,
}

fn world() -> World {
    let mut world = World {
        table: Table { ticks: 100, complete: true, ..Table::default() },
        rules: Rules { mount_namespace: HOSTS, ..Rules::default() },
        units: BTreeMap::new(),
        evidence: Evidence::new("boot", Kind::Kernel, "", Millis(0)),
    };
    world.put(1, 0, |process| "/init.scope".clone_into(&mut process.cgroup));
    world.at(1_000);
    for version in [OLD, NEW] {
        for (number, name) in [(1, "password"), (2, "user")] {
            let inode = u64::from(version.number) * 10 + number;
            let (name, mode) = (name.to_owned(), 0o400);
            let file = File { name, place: None, device: DEVICE, inode, owner: APP, group: APP, mode };
            world.evidence.watch(version, file);
        }
    }
    world.look(Vec::new());
    world
}

fn name(text: &str) -> ConsumerName {
    ConsumerName::new(text).unwrap()
}

fn inode(version: Version, file: u64) -> Inode {
    Inode { device: DEVICE, number: u64::from(version.number) * 10 + file }
}

fn unit_cgroup(unit: &str) -> String {
    format!("/system.slice/{unit}")
}

impl World {
    fn at(&mut self, millis: u64) {
        self.table.taken = Millis(millis);
    }

    /// A new process of the application's user, born now, in a session of its own.
    fn put(&mut self, pid: i32, parent: i32, change: impl FnOnce(&mut Process)) -> ProcessId {
        let id = ProcessId { pid, start: self.table.taken.0 / 10 };
        let mut process = Process {
            id,
            parent,
            session: pid,
            uids: BTreeSet::from([APP]),
            gids: BTreeSet::from([APP]),
            cgroup: "/".into(),
            exe: format!("/usr/bin/p{pid}"),
            name: format!("p{pid}"),
            mount_namespace: HOSTS,
            ..Process::default()
        };
        change(&mut process);
        let root = process.cgroup.clone();
        if root.starts_with("/system.slice/") {
            self.table.cgroups.entry(root).or_default().id = 5;
        }
        self.table.processes.insert(pid, process);
        id
    }

    fn in_unit(&mut self, pid: i32, parent: i32, unit: &str) -> ProcessId {
        self.put(pid, parent, |process| process.cgroup = unit_cgroup(unit))
    }

    /// The manager starts an invocation.
    fn invocation(&mut self, unit: &str, invocation: &str) {
        let earlier_ended = Some(self.table.taken);
        self.units.insert(
            unit.into(),
            UnitLife { invocation: Some(invocation.into()), earlier_ended, changing: false },
        );
        let life = self.table.cgroups.entry(unit_cgroup(unit)).or_default();
        life.id = 5;
        life.invocation = Some(invocation.into());
    }

    fn end(&mut self, pid: i32) {
        let ended = self.table.processes.remove(&pid).unwrap();
        for child in self.table.processes.values_mut().filter(|child| child.parent == ended.id.pid) {
            child.parent = 1;
        }
    }

    fn consumer(&mut self, consumer: &str, unit: Option<&str>, exe: Option<&str>, release: Release) {
        let (unit, exe) = (unit.map(str::to_owned), exe.map(str::to_owned));
        self.rules.consumers.push(ConsumerRule { name: name(consumer), unit, exe, uid: None, release });
    }

    fn look(&mut self, sightings: Vec<Sighting>) {
        let look = Look { began: self.table.taken, sightings, drained: true, ..Look::default() };
        self.take(&look);
    }

    fn take(&mut self, look: &Look) {
        let scene = Scene { table: &self.table, rules: &self.rules, units: &self.units };
        self.evidence.observe(look, &scene);
        self.evidence.refresh(&scene);
    }

    fn refresh(&mut self) {
        let scene = Scene { table: &self.table, rules: &self.rules, units: &self.units };
        self.evidence.refresh(&scene);
    }

    /// A living process reads a file.
    fn reads(&mut self, pid: i32, version: Version, file: u64) {
        let sighting = self.sighting(pid, version, file);
        self.look(vec![sighting]);
    }

    fn sighting(&self, pid: i32, version: Version, file: u64) -> Sighting {
        let mut lineage = Vec::new();
        let mut next = pid;
        while let Some(process) = self.table.processes.get(&next) {
            lineage.push(process.clone());
            next = process.parent;
        }
        Sighting { inode: inode(version, file), opened: true, reader: Reader::Seen(lineage) }
    }

    fn somebody_vanished(&mut self, version: Version) {
        let reader = Reader::Vanished;
        self.look(vec![Sighting { inode: inode(version, 1), opened: true, reader }]);
    }

    fn holds(&self, version: Version) -> bool {
        !self.evidence.is_free(version)
    }

    fn holder_ids(&self, version: Version) -> Vec<String> {
        self.evidence.holders(version).iter().map(|holder| holder.id.to_string()).collect()
    }
}

#[test]
fn a_number_that_is_used_again_is_that_of_the_newer_file() {
    let mut world = world();
    world.put(41, 1, |_| {});
    let again = world.evidence.watched(OLD).find(|file| file.name == "password").cloned().unwrap();
    world.evidence.watch(NEW, again);
    world.at(2_000);
    world.reads(41, OLD, 1);
    assert_eq!((world.holds(OLD), world.holds(NEW)), (false, true));
}

// Units

#[test]
fn a_unit_holds_until_every_process_from_before_its_invocations_end_has_exited() {
    let mut world = world();
    world.consumer("orders", Some("orders.service"), None, Release::default());
    world.invocation("orders.service", "aaaa");
    world.in_unit(100, 1, "orders.service");
    world.at(2_000);
    world.in_unit(101, 100, "orders.service");
    world.reads(100, OLD, 1);
    assert_eq!(world.holder_ids(OLD), ["unit:orders.service:aaaa"]);
    assert_eq!(world.evidence.holders(OLD)[0].consumer, Some(name("orders")));
    // `KillMode=process`: the main process goes, a worker that was never seen reading stays, and forks.
    world.at(3_000);
    world.end(100);
    world.invocation("orders.service", "bbbb");
    world.at(3_020);
    world.in_unit(102, 1, "orders.service");
    world.in_unit(103, 101, "orders.service");
    world.refresh();
    assert!(world.holds(OLD));
    world.end(101);
    world.refresh();
    assert!(world.holds(OLD), "what it forked has it too");
    world.end(103);
    world.refresh();
    assert!(!world.holds(OLD), "the new invocation never had it: {:?}", world.evidence);
}

#[test]
fn a_process_that_no_look_saw_before_the_restart_is_told_by_its_start() {
    let mut world = world();
    world.invocation("orders.service", "aaaa");
    world.in_unit(100, 1, "orders.service");
    world.reads(100, OLD, 1);
    // Between two looks it forks a worker, and is restarted.
    world.at(2_000);
    world.in_unit(101, 1, "orders.service");
    world.at(2_500);
    world.end(100);
    world.invocation("orders.service", "bbbb");
    world.in_unit(102, 1, "orders.service");
    world.refresh();
    assert!(world.holds(OLD));
    world.end(101);
    world.refresh();
    assert!(!world.holds(OLD));
}

#[test]
fn without_a_word_on_when_it_began_the_new_invocation_counts_too() {
    let mut world = world();
    world.invocation("orders.service", "aaaa");
    world.in_unit(100, 1, "orders.service");
    world.reads(100, OLD, 1);
    world.at(2_000);
    world.end(100);
    world.invocation("orders.service", "bbbb");
    world.units.clear();
    world.in_unit(102, 1, "orders.service");
    world.refresh();
    assert!(world.holds(OLD));
    world.end(102);
    world.refresh();
    assert!(!world.holds(OLD));
}

#[test]
fn between_two_programs_of_a_start_nobody_is_there_and_the_invocation_holds() {
    let mut world = world();
    world.invocation("orders.service", "aaaa");
    world.units.get_mut("orders.service").unwrap().changing = true;
    world.in_unit(100, 1, "orders.service");
    world.reads(100, OLD, 1);
    world.end(100);
    world.refresh();
    assert!(world.holds(OLD), "the next program may have what the first wrote down");
    world.in_unit(101, 1, "orders.service");
    world.units.get_mut("orders.service").unwrap().changing = false;
    world.refresh();
    assert!(world.holds(OLD));
    world.end(101);
    world.refresh();
    assert!(world.holds(OLD), "one empty listing proves nothing while the invocation goes on");
    world.refresh();
    assert!(!world.holds(OLD));
}

#[test]
fn a_reader_that_leaves_its_cgroup_still_counts() {
    let mut world = world();
    world.invocation("orders.service", "aaaa");
    world.in_unit(100, 1, "orders.service");
    world.reads(100, OLD, 1);
    world.table.processes.get_mut(&100).unwrap().cgroup = "/elsewhere".into();
    world.refresh();
    assert!(world.holds(OLD));
    world.end(100);
    world.refresh();
    world.refresh();
    assert!(!world.holds(OLD));
}

#[test]
fn what_pid_1_reads_is_charged_to_the_units_that_name_the_file() {
    let mut world = world();
    world.consumer("orders", Some("orders.service"), None, Release::default());
    world.rules.pid_1_reads_for =
        BTreeMap::from([("password".to_owned(), BTreeSet::from(["orders.service".to_owned()]))]);
    world.reads(1, OLD, 1);
    assert!(world.holds(OLD), "before there is a process of the unit");
    assert_eq!(world.evidence.holders(OLD)[0].consumer, Some(name("orders")));
    world.at(1_100);
    world.invocation("orders.service", "aaaa");
    world.in_unit(100, 1, "orders.service");
    world.refresh();
    world.at(30_000);
    world.refresh();
    assert!(world.holds(OLD));
    world.end(100);
    world.table.cgroups.clear();
    world.refresh();
    world.refresh();
    assert!(!world.holds(OLD), "{:?}", world.evidence);
}

#[test]
fn a_unit_that_pid_1_read_for_and_that_never_came_is_not_waited_for_for_ever() {
    let mut world = world();
    world.rules.pid_1_reads_for =
        BTreeMap::from([("password".to_owned(), BTreeSet::from(["orders.service".to_owned()]))]);
    world.reads(1, OLD, 1);
    world.at(5_000);
    // What PID 1 has forked is still in its own cgroup.
    world.put(100, 1, |process| process.cgroup = "/init.scope".into());
    world.refresh();
    assert!(world.holds(OLD));
    world.at(60_000);
    world.refresh();
    assert!(world.holds(OLD));
    world.end(100);
    world.refresh();
    assert!(!world.holds(OLD));
}

#[test]
fn what_pid_1_reads_for_nobody_is_a_gap() {
    let mut world = world();
    world.reads(1, OLD, 1);
    world.in_unit(100, 1, "orders.service");
    world.look(Vec::new());
    assert!(world.evidence.holders(OLD).is_empty());
    let table = world.table.clone();
    assert!(world.evidence.gaps(1, &table).is_empty(), "nobody was there who could have it");
    world.reads(1, OLD, 1);
    let table = world.table.clone();
    assert_eq!(world.evidence.gaps(2, &table).len(), 1);
}

#[test]
fn a_container_cannot_pass_for_a_unit_of_the_host() {
    let mut world = world();
    world.consumer("orders", Some("orders.service"), None, Release { by_opening: true, by_word: true });
    world.put(100, 1, |process| process.cgroup = "/machine.slice/machine-x.scope/orders.service".into());
    world.reads(100, OLD, 1);
    assert_eq!(world.evidence.holders(OLD)[0].consumer, None);
}

// Process trees

#[test]
fn in_a_command_substitution_the_parent_has_the_value() {
    let mut world = world();
    world.put(50, 1, |_| {});
    world.put(100, 50, |process| process.session = 50);
    world.reads(100, OLD, 1);
    world.end(100);
    world.refresh();
    assert!(world.holds(OLD));
    world.end(50);
    world.refresh();
    assert!(!world.holds(OLD));
}

#[test]
fn a_tree_is_the_session_the_ancestors_and_what_they_start_afterwards() {
    let mut world = world();
    world.put(40, 1, |_| {});
    world.put(50, 40, |_| {});
    world.put(60, 40, |_| {});
    world.put(100, 50, |process| process.session = 50);
    world.put(101, 50, |process| process.session = 50);
    world.at(2_000);
    world.look(Vec::new());
    world.reads(100, OLD, 1);
    // The reader's shell goes; a pipeline's other end stays.
    world.end(100);
    world.end(50);
    world.end(40);
    world.refresh();
    assert!(world.holds(OLD), "101 was in the session");
    world.at(3_000);
    world.put(102, 101, |_| {});
    world.refresh();
    world.end(101);
    world.refresh();
    assert!(world.holds(OLD), "102 was started by it");
    world.end(102);
    world.refresh();
    assert!(!world.holds(OLD), "60 is a stranger of before: {:?}", world.evidence);
}

#[test]
fn what_an_ancestor_starts_after_the_reading_counts_and_what_it_started_before_does_not() {
    let mut world = world();
    world.put(40, 1, |_| {});
    world.put(60, 40, |_| {});
    world.put(100, 40, |_| {});
    world.at(2_000);
    world.look(Vec::new());
    world.reads(100, OLD, 1);
    world.end(100);
    world.at(3_000);
    world.put(61, 40, |_| {});
    world.refresh();
    world.end(40);
    world.refresh();
    assert!(world.holds(OLD), "61 may have got it from 40");
    world.end(61);
    world.refresh();
    assert!(!world.holds(OLD));
}

#[test]
fn a_daemon_that_slipped_away_between_two_looks_counts() {
    let mut world = world();
    world.put(100, 1, |_| {});
    world.reads(100, OLD, 1);
    // It forks, the child leads a session, forks again and goes: a classic daemon.
    world.at(2_000);
    world.put(102, 1, |process| process.session = 101);
    world.end(100);
    world.refresh();
    assert!(world.holds(OLD));
    world.end(102);
    world.refresh();
    assert!(!world.holds(OLD));
}

#[test]
fn what_slipped_away_in_a_members_session_counts_though_the_leader_lives() {
    let mut world = world();
    world.put(100, 1, |_| {});
    world.reads(100, OLD, 1);
    world.at(2_000);
    world.put(101, 100, |_| {});
    world.refresh();
    // 101 forked, that one forked and went.
    world.at(3_000);
    world.put(103, 1, |process| process.session = 101);
    world.refresh();
    world.end(100);
    world.end(101);
    world.refresh();
    assert!(world.holds(OLD));
    world.end(103);
    world.refresh();
    assert!(!world.holds(OLD));
}

#[test]
fn whoever_stands_above_one_that_does_not_count_has_nothing() {
    let mut world = world();
    world.rules.exempt.push(Exempt { unit: None, exe: Some("/usr/bin/p40".into()), uid: None });
    world.put(30, 1, |_| {});
    world.put(40, 30, |_| {});
    let ours = world.put(41, 30, |_| {});
    world.rules.ours.insert(ours);
    world.put(100, 40, |_| {});
    world.put(101, 41, |_| {});
    world.reads(100, OLD, 1);
    world.reads(101, OLD, 1);
    world.end(100);
    world.end(101);
    world.refresh();
    assert!(!world.holds(OLD));
}

#[test]
fn a_number_that_was_used_again_is_another_process() {
    let mut world = world();
    world.put(100, 1, |_| {});
    world.reads(100, OLD, 1);
    world.end(100);
    world.at(2_000);
    world.put(100, 1, |_| {});
    world.refresh();
    assert!(!world.holds(OLD));
}

#[test]
fn nothing_ends_by_an_incomplete_table() {
    let mut world = world();
    world.put(100, 1, |_| {});
    world.reads(100, OLD, 1);
    world.somebody_vanished(NEW);
    world.end(100);
    world.table.complete = false;
    world.refresh();
    assert!(world.holds(OLD) && world.holds(NEW));
    world.table.complete = true;
    world.refresh();
    assert!(!world.holds(OLD) && !world.holds(NEW));
}

#[test]
fn a_backup_is_no_holder_but_the_same_program_elsewhere_is() {
    let mut world = world();
    world.rules.mount_namespace = 1;
    world.rules.exempt.push(Exempt { unit: None, exe: Some("/usr/bin/backup".into()), uid: Some(0) });
    let backup = |uid: u32, namespace: u64| {
        move |process: &mut Process| {
            "/usr/bin/backup".clone_into(&mut process.exe);
            process.uids = BTreeSet::from([uid]);
            process.mount_namespace = namespace;
        }
    };
    world.put(100, 1, backup(0, 1));
    world.reads(100, OLD, 1);
    assert!(!world.holds(OLD));
    world.put(101, 1, backup(0, 2));
    world.reads(101, OLD, 1);
    assert!(world.holds(OLD), "a container's own /usr/bin/backup");
    world.end(101);
    world.refresh();
    assert!(!world.holds(OLD));
    world.put(103, 1, backup(0, 0));
    world.reads(103, OLD, 1);
    assert!(world.holds(OLD), "nobody knows whose /usr/bin/backup");
    world.end(103);
    world.refresh();
    assert!(!world.holds(OLD));
    world.put(102, 1, backup(APP, 1));
    world.reads(102, OLD, 1);
    assert!(world.holds(OLD), "another user's");
}

#[test]
fn what_a_reader_has_started_holds_in_another_cgroup_too() {
    let mut world = world();
    let session = |process: &mut Process| process.cgroup = "/user.slice/user-7.slice/session-3.scope".into();
    let scope = |process: &mut Process| process.cgroup = "/user.slice/user-7.slice/run-9.scope".into();
    world.put(100, 1, session);
    // What it had started before it read has nothing of it.
    world.put(101, 100, scope);
    world.at(2_000);
    world.look(Vec::new());
    world.at(3_000);
    world.reads(100, OLD, 1);
    world.at(3_500);
    world.put(102, 100, scope);
    world.refresh();
    world.end(100);
    world.refresh();
    assert!(world.holds(OLD), "the child was seen beside its parent");
    world.at(4_000);
    world.put(103, 102, scope);
    world.refresh();
    world.end(102);
    world.refresh();
    assert!(world.holds(OLD), "and what it started");
    world.end(103);
    world.refresh();
    assert!(!world.holds(OLD));
}

// Reload and reopen

fn reopening(world: &mut World) {
    let release = Release { by_opening: true, by_word: false };
    world.consumer("web", Some("web.service"), None, release);
    world.invocation("web.service", "aaaa");
    world.in_unit(100, 1, "web.service");
    world.in_unit(101, 100, "web.service");
    world.at(2_000);
    world.reads(100, OLD, 1);
    world.reads(100, OLD, 2);
    world.reads(101, OLD, 1);
    world.at(5_000);
    world.evidence.adopted(name("web"), NEW, Millis(5_000));
}

#[test]
fn a_reload_releases_when_all_older_processes_read_all_that_they_had_read() {
    let mut world = world();
    reopening(&mut world);
    world.at(5_100);
    world.reads(100, NEW, 1);
    assert!(world.holds(OLD), "101 has not read the new one");
    world.reads(101, NEW, 1);
    assert!(world.holds(OLD), "100 still has the old user");
    world.reads(100, NEW, 2);
    assert!(!world.holds(OLD));
    assert!(world.holds(NEW));
}

#[test]
fn a_reload_that_does_nothing_releases_nothing() {
    let mut world = world();
    reopening(&mut world);
    world.at(90_000);
    world.in_unit(102, 100, "web.service");
    world.reads(102, NEW, 1);
    world.reads(102, NEW, 2);
    world.refresh();
    assert!(world.holds(OLD), "only a new child reads the new one");
}

#[test]
fn who_reads_the_old_one_again_holds_it_again() {
    let mut world = world();
    reopening(&mut world);
    world.at(5_100);
    for (pid, file) in [(100, 1), (100, 2), (101, 1)] {
        world.reads(pid, NEW, file);
    }
    assert!(!world.holds(OLD));
    world.reads(101, OLD, 1);
    assert!(world.holds(OLD));
}

#[test]
fn a_restart_consumer_is_not_released_by_opening() {
    let mut world = world();
    world.consumer("db", Some("db.service"), None, Release::default());
    world.invocation("db.service", "aaaa");
    world.in_unit(100, 1, "db.service");
    world.reads(100, OLD, 1);
    world.evidence.adopted(name("db"), NEW, Millis(1_000));
    world.reads(100, NEW, 1);
    world.refresh();
    assert!(world.holds(OLD));
}

#[test]
fn an_invocation_that_started_while_the_set_changed_is_mixed() {
    let mut world = world();
    world.consumer("db", Some("db.service"), None, Release::default());
    world.invocation("db.service", "aaaa");
    world.in_unit(100, 1, "db.service");
    world.reads(100, OLD, 1);
    world.reads(100, NEW, 2);
    let scene = Scene { table: &world.table, rules: &world.rules, units: &world.units };
    assert_eq!(world.evidence.mixed(NEW, &scene), BTreeSet::from([name("db")]));
    assert!(world.evidence.was_read_by(&name("db"), NEW, &scene));
    world.reads(100, NEW, 1);
    let scene = Scene { table: &world.table, rules: &world.rules, units: &world.units };
    assert!(world.evidence.mixed(NEW, &scene).is_empty());
}

#[test]
fn two_processes_of_one_invocation_that_read_different_versions_are_mixed() {
    let mut world = world();
    world.consumer("db", Some("db.service"), None, Release::default());
    world.invocation("db.service", "aaaa");
    // `ExecStartPre=` reads the user of the old version and ends, the program the password of the new one.
    world.in_unit(100, 1, "db.service");
    world.reads(100, OLD, 2);
    world.end(100);
    world.in_unit(101, 1, "db.service");
    world.reads(101, NEW, 1);
    let scene = Scene { table: &world.table, rules: &world.rules, units: &world.units };
    assert_eq!(world.evidence.mixed(NEW, &scene), BTreeSet::from([name("db")]));
    world.reads(101, NEW, 2);
    let scene = Scene { table: &world.table, rules: &world.rules, units: &world.units };
    assert!(world.evidence.mixed(NEW, &scene).is_empty(), "it has all of the new one");
}

#[test]
fn what_pid_1_read_for_an_invocation_is_part_of_what_it_read() {
    let mut world = world();
    world.consumer("db", Some("db.service"), None, Release::default());
    world.rules.pid_1_reads_for =
        BTreeMap::from([("user".to_owned(), BTreeSet::from(["db.service".to_owned()]))]);
    world.reads(1, OLD, 2);
    world.at(1_100);
    world.invocation("db.service", "aaaa");
    world.in_unit(100, 1, "db.service");
    world.refresh();
    world.reads(100, NEW, 1);
    let scene = Scene { table: &world.table, rules: &world.rules, units: &world.units };
    assert_eq!(world.evidence.mixed(NEW, &scene), BTreeSet::from([name("db")]));
}

#[test]
fn the_next_invocation_is_not_mixed_by_what_the_one_before_has_read() {
    let mut world = world();
    world.consumer("db", Some("db.service"), None, Release::default());
    world.invocation("db.service", "aaaa");
    world.in_unit(100, 1, "db.service");
    world.reads(100, OLD, 1);
    world.reads(100, OLD, 2);
    world.at(2_000);
    world.invocation("db.service", "bbbb");
    world.at(2_100);
    world.in_unit(101, 1, "db.service");
    world.reads(101, NEW, 1);
    assert!(world.holds(OLD), "the old process lives on");
    let scene = Scene { table: &world.table, rules: &world.rules, units: &world.units };
    assert!(world.evidence.mixed(NEW, &scene).is_empty());
}

#[test]
fn who_has_read_the_old_version_since_is_not_on_the_new_one() {
    let mut world = world();
    world.consumer("db", Some("db.service"), None, Release::default());
    world.invocation("db.service", "aaaa");
    world.in_unit(100, 1, "db.service");
    for (version, is_on) in [(OLD, false), (NEW, true), (OLD, false)] {
        world.reads(100, version, 1);
        let scene = Scene { table: &world.table, rules: &world.rules, units: &world.units };
        assert_eq!(world.evidence.was_read_by(&name("db"), NEW, &scene), is_on);
        assert_eq!(world.evidence.was_read_by(&name("db"), OLD, &scene), !is_on);
        let id = world.table.processes[&100].id;
        assert_eq!(world.evidence.is_on_another(id, NEW, &scene), !is_on);
        let silent = ProcessId { pid: 4711, ..id };
        assert!(!world.evidence.is_on_another(silent, NEW, &scene), "it has read nothing");
    }
}

#[test]
fn who_was_forked_by_a_reader_is_on_what_that_has_read() {
    let mut world = world();
    world.consumer("db", Some("db.service"), None, Release::default());
    world.invocation("db.service", "aaaa");
    world.in_unit(100, 1, "db.service");
    let child = world.in_unit(101, 100, "db.service");
    let is_on_another = |world: &World| {
        let scene = Scene { table: &world.table, rules: &world.rules, units: &world.units };
        world.evidence.is_on_another(child, NEW, &scene)
    };
    assert!(!is_on_another(&world), "nobody has read anything");
    world.reads(100, OLD, 1);
    assert!(is_on_another(&world));
    world.reads(101, NEW, 1);
    assert!(!is_on_another(&world), "it has read again itself");
}

#[test]
fn who_has_ended_is_on_the_current_version_only_if_it_began_after_that_became_current() {
    let mut world = world();
    world.evidence.current(Some(NEW), Millis(5_000));
    let turned = world.evidence.turned().0;
    let scene = Scene { table: &world.table, rules: &world.rules, units: &world.units };
    let tick = 1000 / scene.table.ticks;
    let is_on_another = |start: u64| {
        assert!(scene.table.get(ProcessId { pid: 4711, start }).is_none());
        world.evidence.is_on_another(ProcessId { pid: 4711, start }, NEW, &scene)
    };
    assert!(is_on_another(turned / tick - 1));
    assert!(!is_on_another(turned / tick + 1));
}

// The application's word

#[test]
fn a_word_is_believed_only_from_the_consumer_itself_and_where_policy_trusts_it() {
    let mut world = world();
    world.consumer("web", Some("web.service"), None, Release { by_opening: false, by_word: true });
    world.consumer("db", Some("db.service"), None, Release::default());
    world.invocation("web.service", "aaaa");
    world.in_unit(100, 1, "web.service");
    world.in_unit(200, 1, "db.service");
    world.reads(100, OLD, 1);
    let scene = Scene { table: &world.table, rules: &world.rules, units: &world.units };
    let (web, db) = (world.table.processes[&100].clone(), world.table.processes[&200].clone());
    let dropped = BTreeSet::from([OLD]);
    let speak = |evidence: &mut Evidence, of: &str, peer| {
        evidence.word(&name(of), (peer, APP), NEW, &dropped, &scene)
    };
    let evidence = &mut world.evidence;
    assert!(matches!(speak(evidence, "nobody", &web), Err(Disbelieved::NotAConsumer(_))));
    assert!(matches!(speak(evidence, "db", &db), Err(Disbelieved::NotTrusted(_))));
    assert!(matches!(speak(evidence, "web", &db), Err(Disbelieved::SomebodyElse { .. })));
    assert!(!evidence.is_free(OLD));
    speak(evidence, "web", &web).unwrap();
    assert!(evidence.is_free(OLD));
    assert_eq!(evidence.holders(NEW)[0].evidence, Kind::Reported);
    // It was not true: it reads the old one again.
    world.reads(100, OLD, 2);
    assert!(world.holds(OLD));
}

#[test]
fn two_consumers_that_run_one_program_speak_each_for_itself() {
    let mut world = world();
    let by_word = Release { by_opening: false, by_word: true };
    for (consumer, pid) in [("billing", 100), ("search", 200)] {
        world.consumer(consumer, None, Some("/usr/bin/app"), by_word);
        world.rules.main_pids.insert(name(consumer), pid);
        world.in_unit(pid, 1, &format!("{consumer}.scope"));
        world.table.processes.get_mut(&pid).unwrap().exe = "/usr/bin/app".into();
    }
    let scene = Scene { table: &world.table, rules: &world.rules, units: &world.units };
    let search = &world.table.processes[&200];
    let mut speak = |of: &str| world.evidence.word(&name(of), (search, APP), NEW, &BTreeSet::new(), &scene);
    assert!(matches!(speak("billing"), Err(Disbelieved::SomebodyElse { .. })));
    assert_eq!(speak("search"), Ok(()));
}

#[test]
fn who_connected_as_another_user_does_not_speak_for_the_program_that_it_became() {
    let mut world = world();
    world.consumer("app", None, Some("/usr/bin/app"), Release { by_opening: false, by_word: true });
    world.rules.consumers[0].uid = Some(APP);
    world.put(100, 1, |process| process.exe = "/usr/bin/app".into());
    world.reads(100, OLD, 1);
    let scene = Scene { table: &world.table, rules: &world.rules, units: &world.units };
    let app = &world.table.processes[&100];
    let dropped = BTreeSet::from([OLD]);
    let evidence = &mut world.evidence;
    let mut speak = |connected_as| evidence.word(&name("app"), (app, connected_as), NEW, &dropped, &scene);
    assert!(matches!(speak(APP + 1), Err(Disbelieved::SomebodyElse { .. })));
    // Root gave up its rights after it had connected.
    assert_eq!(speak(0), Ok(()));
    assert_eq!(speak(APP), Ok(()));
}

// Declared evidence

fn declared() -> World {
    let mut world = world();
    world.evidence = Evidence::new("boot", Kind::Declared, "EPERM", Millis(0));
    world.consumer("app", None, Some("/usr/bin/p100"), Release { by_opening: true, by_word: false });
    world.evidence.watch(OLD, a_file());
    world.evidence.watch(NEW, a_file());
    world.evidence.current(Some(OLD), Millis(500));
    world
}

fn a_file() -> File {
    let name = "password".into();
    File { name, place: None, device: DEVICE, inode: 1, owner: APP, group: APP, mode: 0o400 }
}

impl World {
    fn declare(&mut self, life: &ConsumerLife) {
        let scene = Scene { table: &self.table, rules: &self.rules, units: &self.units };
        self.evidence.declare(&name("app"), life, &scene);
        self.evidence.refresh(&scene);
    }
}

#[test]
fn with_declared_evidence_only_the_end_of_a_life_releases() {
    let mut world = declared();
    let first = world.put(100, 1, |_| {});
    world.declare(&ConsumerLife::Process(first));
    assert_eq!(world.evidence.holders(OLD)[0].evidence, Kind::Declared);
    world.at(2_000);
    world.evidence.current(Some(NEW), Millis(2_000));
    world.evidence.adopted(name("app"), NEW, Millis(2_000));
    world.declare(&ConsumerLife::Process(first));
    assert!(world.holds(OLD) && world.holds(NEW), "reload never releases");
    world.at(3_000);
    world.end(100);
    let second = world.put(100, 1, |_| {});
    world.declare(&ConsumerLife::Process(second));
    assert!(!world.holds(OLD) && world.holds(NEW));
}

#[test]
fn a_life_that_no_look_saw_before_the_flip_holds_the_old_version_by_its_start() {
    let mut world = declared();
    world.at(1_900);
    let id = world.put(100, 1, |_| {});
    world.at(2_000);
    world.evidence.current(Some(NEW), Millis(2_000));
    world.declare(&ConsumerLife::Process(id));
    assert!(world.holds(OLD) && world.holds(NEW));
}

#[test]
fn a_start_in_the_tick_of_the_flip_is_after_it_when_a_look_between_them_shows_that() {
    let mut world = declared();
    world.at(2_003);
    world.evidence.current(Some(NEW), Millis(2_003));
    world.at(2_007);
    let id = world.put(100, 1, |_| {});
    world.table.not_before.insert(id, Millis(2_005));
    world.declare(&ConsumerLife::Process(id));
    assert!(!world.holds(OLD) && world.holds(NEW));
    // Our restart forgets looks, not what they have shown.
    let kept = serde_json::to_vec(&world.evidence).unwrap();
    world.evidence = serde_json::from_slice(&kept).unwrap();
    world.table.not_before.clear();
    world.declare(&ConsumerLife::Process(id));
    assert!(!world.holds(OLD) && world.holds(NEW));
}

#[test]
fn a_start_in_the_tick_of_the_flip_holds_the_old_version_without_such_a_look() {
    let mut world = declared();
    world.at(2_003);
    world.evidence.current(Some(NEW), Millis(2_003));
    world.at(2_007);
    let id = world.put(100, 1, |_| {});
    world.declare(&ConsumerLife::Process(id));
    assert!(world.holds(OLD) && world.holds(NEW));
}

/// Its consumer said that it is on the new version and has dropped the old one.
fn dropped_the_old_one() -> (World, ProcessId) {
    let mut world = declared();
    world.rules.consumers[0].release.by_word = true;
    let id = world.put(100, 1, |_| {});
    world.declare(&ConsumerLife::Process(id));
    world.evidence.current(Some(NEW), Millis(1_500));
    let scene = Scene { table: &world.table, rules: &world.rules, units: &world.units };
    let peer = world.table.processes[&100].clone();
    world.evidence.word(&name("app"), (&peer, APP), NEW, &BTreeSet::from([OLD]), &scene).unwrap();
    (world, id)
}

#[test]
fn a_version_that_is_current_again_may_be_read_again_by_whoever_had_dropped_it() {
    let (mut world, id) = dropped_the_old_one();
    world.declare(&ConsumerLife::Process(id));
    assert!(!world.holds(OLD));
    // Rolled back; it reads the old one again, and is silent about it.
    world.evidence.current(Some(OLD), Millis(2_000));
    world.at(2_500);
    world.declare(&ConsumerLife::Process(id));
    assert!(world.holds(OLD));
}

#[test]
fn a_worker_that_outlives_the_declared_process_holds() {
    let mut world = declared();
    let id = world.put(100, 1, |_| {});
    world.put(101, 100, |_| {});
    world.declare(&ConsumerLife::Process(id));
    world.end(100);
    world.declare(&ConsumerLife::NotRunning);
    assert!(world.holds(OLD));
    world.end(101);
    world.refresh();
    assert!(!world.holds(OLD));
}

#[test]
fn a_life_that_cannot_be_told_is_a_gap_until_it_can() {
    let mut world = declared();
    world.declare(&ConsumerLife::Unknown("the pid file\n cannot be read".into()));
    assert!(world.holds(OLD));
    let table = world.table.clone();
    let gaps = world.evidence.gaps(1, &table);
    assert!(!gaps[0].description.contains('\n'));
    world.declare(&ConsumerLife::NotRunning);
    assert!(!world.holds(OLD));
}

#[test]
fn the_word_of_a_declared_consumer_releases_it_for_good() {
    let (mut world, id) = dropped_the_old_one();
    assert!(!world.holds(OLD));
    world.declare(&ConsumerLife::Process(id));
    assert!(!world.holds(OLD), "it is not named again for the same life");
    assert_eq!(world.evidence.holders(NEW)[0].evidence, Kind::Reported);
    let kept = serde_json::to_vec(&world.evidence).unwrap();
    world.evidence = serde_json::from_slice(&kept).unwrap();
    let said = |world: &World, version| {
        let scene = Scene { table: &world.table, rules: &world.rules, units: &world.units };
        world.evidence.is_said_by(&name("app"), version, &scene)
    };
    assert!(said(&world, NEW) && !said(&world, OLD), "a word is kept over our restart");
    world.end(100);
    assert!(!said(&world, NEW), "and ends with who said it");
}

// Gaps

#[test]
fn a_gap_heals_when_every_candidate_and_what_it_started_is_gone() {
    let mut world = world();
    world.put(100, 1, |_| {});
    world.put(200, 1, |process| process.uids = BTreeSet::from([2000]));
    world.put(300, 1, |process| {
        process.uids = BTreeSet::from([0]);
        process.capabilities = 1 << 1;
    });
    world.at(2_000);
    world.look(Vec::new());
    world.at(3_000);
    world.somebody_vanished(OLD);
    let table = world.table.clone();
    let gap = world.evidence.gaps(4, &table).remove(0);
    assert_eq!(gap.id.as_str(), "gap:4-1");
    assert!(gap.description.contains("p100") && gap.description.contains("p300"));
    assert!(!gap.description.contains("p200"), "not allowed to open it: {}", gap.description);
    world.at(4_000);
    world.put(101, 100, |process| process.uids = BTreeSet::from([2000]));
    world.refresh();
    world.end(100);
    world.end(300);
    world.refresh();
    assert!(world.holds(OLD), "101 was started by a candidate");
    world.end(101);
    world.refresh();
    assert!(!world.holds(OLD), "{:?}", world.evidence);
}

#[test]
fn who_could_open_it_at_the_look_before_is_a_candidate_though_it_gave_that_up() {
    let mut world = world();
    world.put(300, 1, |process| process.capabilities = 1 << 1);
    world.at(2_000);
    world.look(Vec::new());
    let process = world.table.processes.get_mut(&300).unwrap();
    process.capabilities = 0;
    process.uids = BTreeSet::from([2000]);
    world.at(3_000);
    world.somebody_vanished(OLD);
    assert!(world.holds(OLD));
    world.end(300);
    world.refresh();
    assert!(!world.holds(OLD));
}

#[test]
fn whoever_got_the_number_of_a_process_of_ours_counts() {
    let mut world = world();
    let ours = world.put(100, 1, |_| {});
    world.rules.ours.insert(ours);
    world.reads(100, OLD, 1);
    assert!(!world.holds(OLD), "we do not count");
    world.end(100);
    world.at(2_000);
    world.put(100, 1, |_| {});
    world.reads(100, OLD, 1);
    assert!(world.holds(OLD));
}

#[test]
fn kernel_threads_pid_1_ours_the_exempt_and_whoever_cannot_reach_the_set_are_no_candidates() {
    let mut world = world();
    let ours = ProcessId { pid: 100, start: world.table.taken.0 / 10 };
    world.rules.ours.insert(ours);
    world.rules.mount_namespace = 1;
    world.rules.exempt.push(Exempt { unit: Some("backup.service".into()), exe: None, uid: None });
    world.put(2, 0, |process| process.kernel = true);
    world.put(100, 1, |_| {});
    world.in_unit(101, 1, "backup.service");
    world.put(102, 1, |process| process.mount_namespace = 9);
    world.table.mounts.insert(9, Some(BTreeSet::from([DEVICE + 1])));
    world.somebody_vanished(OLD);
    assert!(!world.holds(OLD), "{:?}", world.evidence);
    world.table.mounts.insert(9, None);
    world.somebody_vanished(OLD);
    assert!(world.holds(OLD), "what cannot be read may reach it");
}

#[test]
fn an_overflow_is_a_gap_of_every_version() {
    let mut world = world();
    world.put(100, 1, |_| {});
    let lost = vec!["the queue was full".to_owned()];
    let look = Look { began: world.table.taken, lost, drained: true, ..Look::default() };
    world.take(&look);
    let table = world.table.clone();
    assert_eq!(world.evidence.gaps(1, &table)[0].versions, BTreeSet::from([OLD, NEW]));
}

#[test]
fn clear_covers_later_gap() {
    let mut world = world();
    world.put(100, 1, |_| {});
    world.somebody_vanished(OLD);
    let table = world.table.clone();
    let first = world.evidence.gaps(1, &table).remove(0).id;
    world.somebody_vanished(OLD);
    world.evidence.clear(OLD, &BTreeSet::new(), &BTreeSet::from([first.clone()]));
    assert!(world.holds(OLD), "a new unknown holder keeps it");
    let second = world.evidence.gaps(2, &table).remove(0).id;
    assert_ne!(first, second);
    world.evidence.clear(OLD, &BTreeSet::new(), &BTreeSet::from([second]));
    assert!(!world.holds(OLD));
    assert!(world.evidence.excused(OLD).iter().any(|id| id.pid == 100), "what it pins is accounted for");
}

#[test]
fn many_gaps_become_few_and_none_of_them_keeps_a_name_that_was_cleared() {
    let mut world = world();
    world.put(100, 1, |_| {});
    let table = world.table.clone();
    let mut names = BTreeSet::new();
    for sequence in 1..40 {
        world.somebody_vanished(OLD);
        names.extend(world.evidence.gaps(sequence, &table).into_iter().map(|gap| gap.id));
    }
    let open: BTreeSet<_> = world.evidence.gaps(40, &table).into_iter().map(|gap| gap.id).collect();
    assert!(open.len() <= 9, "{open:?}");
    let closed = names.difference(&open).cloned().collect();
    world.evidence.clear(OLD, &BTreeSet::new(), &closed);
    assert!(world.holds(OLD));
    assert_eq!(world.evidence.gaps(41, &table).len(), open.len());
}

#[test]
fn a_cleared_holder_that_reads_again_has_another_name() {
    let mut world = world();
    world.put(100, 1, |_| {});
    world.reads(100, OLD, 1);
    let first: BTreeSet<HolderId> = world.evidence.holders(OLD).into_iter().map(|holder| holder.id).collect();
    assert!(world.evidence.clear(OLD, &first, &BTreeSet::new()));
    assert!(!world.holds(OLD));
    world.reads(100, OLD, 1);
    world.evidence.clear(OLD, &first, &BTreeSet::new());
    assert!(world.holds(OLD));
}

#[test]
fn a_cleared_consumer_that_only_policy_names_stays_cleared_for_this_life() {
    let mut world = declared();
    let first = world.put(100, 1, |_| {});
    world.declare(&ConsumerLife::Process(first));
    world.at(2_000);
    world.evidence.current(Some(NEW), Millis(2_000));
    world.declare(&ConsumerLife::Process(first));
    let named: BTreeSet<HolderId> = world.evidence.holders(OLD).into_iter().map(|holder| holder.id).collect();
    assert!(world.evidence.clear(OLD, &named, &BTreeSet::new()));
    world.at(3_000);
    world.declare(&ConsumerLife::Process(first));
    assert!(!world.holds(OLD), "the same life, named by nothing new");
    assert!(world.holds(NEW), "it was cleared for one version only");
}

#[test]
fn a_reboot_ends_holders_and_gaps() {
    let mut world = world();
    world.put(100, 1, |_| {});
    world.reads(100, OLD, 1);
    world.somebody_vanished(NEW);
    world.evidence.resume("boot", Kind::Kernel, "", Millis(2_000));
    assert!(world.holds(OLD) && world.holds(NEW));
    world.evidence.resume("another boot", Kind::Kernel, "", Millis(10));
    assert!(!world.holds(OLD) && !world.holds(NEW));
}

#[test]
fn a_version_that_is_gone_leaves_nothing_behind() {
    let mut world = world();
    world.put(100, 1, |_| {});
    world.reads(100, OLD, 1);
    world.somebody_vanished(OLD);
    world.evidence.forget(OLD);
    assert!(!world.holds(OLD));
    assert!(world.evidence.awaited().is_empty());
    world.refresh();
    assert_eq!(world.evidence.versions().collect::<Vec<_>>(), [NEW]);
}

// The sweep

#[test]
fn who_the_sweep_finds_holds_until_it_ends_and_no_rereading_releases_it() {
    let mut world = world();
    reopening(&mut world);
    world.evidence.forget(OLD);
    world.evidence.watch(OLD, a_file());
    let process = world.table.processes[&100].clone();
    let found =
        vec![Found { process, what: "has the content of password in its environment".into(), inode: None }];
    let traces = Traces { found, unreadable: Vec::new(), complete: true };
    let scene = Scene { table: &world.table, rules: &world.rules, units: &world.units };
    assert!(world.evidence.found(OLD, &traces, &scene));
    for (pid, file) in [(100, 1), (100, 2), (101, 1)] {
        world.reads(pid, NEW, file);
    }
    assert!(world.holds(OLD));
    world.end(100);
    world.end(101);
    world.refresh();
    world.refresh();
    assert!(!world.holds(OLD));
}

#[test]
fn the_sweep_finds_even_who_does_not_count_as_a_reader() {
    let mut world = world();
    world.rules.exempt.push(Exempt { unit: None, exe: Some("/usr/bin/p100".into()), uid: None });
    world.put(100, 1, |_| {});
    let process = world.table.processes[&100].clone();
    let found = vec![Found { process, what: "has a descriptor".into(), inode: Some(inode(OLD, 1)) }];
    let traces = Traces { found, unreadable: Vec::new(), complete: true };
    let scene = Scene { table: &world.table, rules: &world.rules, units: &world.units };
    world.evidence.found(OLD, &traces, &scene);
    assert!(world.holds(OLD));
    world.refresh();
    assert!(world.holds(OLD));
    world.end(100);
    world.refresh();
    assert!(!world.holds(OLD));
}

// The state

#[test]
fn the_state_survives_the_journal() {
    let mut world = world();
    reopening(&mut world);
    world.put(300, 1, |_| {});
    world.reads(300, OLD, 1);
    world.somebody_vanished(NEW);
    let text = serde_json::to_string(&world.evidence).unwrap();
    let mut back: Evidence = serde_json::from_str(&text).unwrap();
    assert_eq!(back.all_holders(), world.evidence.all_holders());
    let table = world.table.clone();
    assert_eq!(back.gaps(1, &table), world.evidence.gaps(1, &table));
    assert_eq!(back.awaited(), world.evidence.awaited());
}
