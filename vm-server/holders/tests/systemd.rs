//! Units of a real systemd: who is charged with what PID 1 reads for them, and when an invocation lets go.
//!
//! Needs a PID 1 that is systemd, cgroup v2 and root: `cargo test -p tests-host` runs every one of them in a machine of
//! its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what it did not expect"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use holders::{
    ConsumerRule, Evidence, File as Watched, Look, Proc, Release, Rules, Scene, Table, UnitLife, boot_clock,
    boot_id,
};
use lifecycle::{ConsumerName, Evidence as Kind, Millis, Version};
use opens::{Capability, Group, Queue};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use units::{Connector, Systemd};

const OLD: Version = Version::new(1, 1);
const NEW: Version = Version::new(1, 2);
const DIRECTORY: &str = "/run/eso-holders-test";
const DEADLINE: Duration = Duration::from_secs(30);

fn must_be_able() {
    assert!(Systemd::is_here(), "PID 1 is not systemd");
    assert!(Proc::new().has_cgroups(), "there is no cgroup v2");
    let capability = Capability::probe();
    assert!(matches!(capability, Capability::Kernel), "{capability}");
}

/// A unit, and the two versions of a file that it reads through `current`.
struct Host {
    unit: &'static str,
    taken: Arc<Mutex<Look>>,
    group: Arc<Group>,
    proc: Proc,
    rules: Rules,
    evidence: Evidence,
    runtime: tokio::runtime::Runtime,
    systemd: Systemd,
}

impl Host {
    fn new(unit: &'static str, service: &str) -> Self {
        let directory = directory_of(unit);
        let _ = fs::remove_dir_all(&directory);
        let group = Group::open(Queue::Unlimited).unwrap();
        let mut evidence = Evidence::new(boot_id().unwrap(), Kind::Kernel, "", boot_clock());
        for version in [OLD, NEW] {
            let directory = directory.join(version.number.to_string());
            fs::create_dir_all(&directory).unwrap();
            let path = directory.join("env");
            fs::write(&path, format!("PASSWORD=correct-horse-{}\n", version.number)).unwrap();
            group.mark(File::open(&path).unwrap()).unwrap();
            let metadata = fs::metadata(&path).unwrap();
            evidence.watch(
                version,
                Watched {
                    name: "env".into(),
                    place: None,
                    device: metadata.dev(),
                    inode: metadata.ino(),
                    owner: 0,
                    group: 0,
                    mode: 0o400,
                },
            );
        }
        let service = service.replace("FILE", directory.join("current/env").to_str().unwrap());
        let own = i32::try_from(std::process::id()).unwrap();
        let rule = ConsumerRule {
            name: ConsumerName::new(unit).unwrap(),
            unit: Some(unit.into()),
            exe: None,
            uid: None,
            release: Release::default(),
        };
        fs::write(format!("/run/systemd/system/{unit}"), format!("[Service]\n{service}")).unwrap();
        let taken = Arc::new(Mutex::new(Look::default()));
        let group = Arc::new(group);
        take_at_once(Arc::clone(&taken), Arc::downgrade(&group));
        let host = Self {
            unit,
            taken,
            group,
            proc: Proc::new(),
            rules: Rules {
                ours: Proc::new().process(own).map(|process| process.id).into_iter().collect(),
                consumers: vec![rule],
                ..Rules::default()
            },
            evidence,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            systemd: Systemd::new(Connector::system_bus()),
        };
        systemctl(&["daemon-reload"]);
        host.flip(OLD);
        host
    }

    fn flip(&self, version: Version) {
        let directory = directory_of(self.unit);
        let new = directory.join("new");
        std::os::unix::fs::symlink(version.number.to_string(), &new).unwrap();
        fs::rename(new, directory.join("current")).unwrap();
    }

    fn life(&self) -> UnitLife {
        let shown = systemctl(&[
            "show",
            "-p",
            "InvocationID",
            "-p",
            "InactiveEnterTimestampMonotonic",
            "-p",
            "ActiveState",
            self.unit,
        ]);
        let value = |key: &str| {
            let line =
                shown.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default();
            line.to_owned()
        };
        let ended: u64 = value("InactiveEnterTimestampMonotonic").parse().unwrap_or_default();
        let invocation = Some(value("InvocationID")).filter(|invocation| !invocation.is_empty());
        UnitLife {
            invocation,
            earlier_ended: Some(Millis(ended / 1000)),
            changing: value("ActiveState").ends_with("ing"),
        }
    }

    fn look(&mut self) -> Table {
        // What is queued by now is taken by the other thread before it lets go.
        let deadline = Instant::now() + DEADLINE;
        while self.group.has_events() {
            assert!(Instant::now() < deadline, "nobody takes readers");
        }
        let mut look = std::mem::take(&mut *self.taken.lock().unwrap());
        look.drained = true;
        let table = self.proc.table(look.detail());
        if look.has_pid_1() {
            let read = self.runtime.block_on(self.systemd.files_read_for_services()).unwrap();
            let file = directory_of(self.unit).join("current/env");
            let units = read.into_iter().filter(|(_, path)| *path == file).map(|(unit, _)| unit);
            self.rules.pid_1_reads_for = BTreeMap::from([("env".to_owned(), units.collect())]);
        }
        let units = BTreeMap::from([(self.unit.to_owned(), self.life())]);
        let scene = Scene { table: &table, rules: &self.rules, units: &units };
        self.evidence.observe(&look, &scene);
        self.evidence.refresh(&scene);
        table
    }

    /// Looks all the time while something happens, as the daemon does.
    fn look_while(&mut self, systemctl: &[&str]) {
        let mut child = Command::new("systemctl").args(systemctl).spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            self.look();
        }
        assert!(child.wait().unwrap().success());
        self.look();
    }

    fn must_be_held_by_the_unit(&mut self, version: Version) {
        let invocation = self.life().invocation.unwrap();
        for _ in 0..3 {
            let table = self.look();
            let holders = self.evidence.holders(version);
            let ids: Vec<&str> = holders.iter().map(|holder| holder.id.as_str()).collect();
            let gaps = self.evidence.gaps(1, &table);
            assert_eq!(ids, [format!("unit:{}:{invocation}", self.unit)], "{gaps:?}");
            assert_eq!(holders[0].consumer.as_ref().map(ConsumerName::as_str), Some(self.unit));
        }
    }

    fn must_become_free(&mut self, version: Version) {
        let deadline = Instant::now() + DEADLINE;
        while !self.evidence.is_free(version) {
            assert!(Instant::now() < deadline, "still held: {:?}", self.evidence);
            self.look();
        }
    }
}

/// On a thread of its own, as the daemon does: a short reader is gone in a moment.
fn take_at_once(taken: Arc<Mutex<Look>>, group: Weak<Group>) {
    std::thread::spawn(move || {
        rustix::process::setpriority_process(Some(rustix::thread::gettid()), -20).unwrap();
        let mut proc = Proc::new();
        while let Some(group) = group.upgrade() {
            let mut polled = [PollFd::new(&*group, PollFlags::IN)];
            let at_most = Timespec { tv_sec: 1, tv_nsec: 0 };
            if poll(&mut polled, Some(&at_most)).unwrap() > 0 {
                let mut taken = taken.lock().unwrap();
                taken.join(proc.take(&group, None, None));
            }
        }
    });
}

impl Drop for Host {
    fn drop(&mut self) {
        for command in ["stop", "kill"] {
            let _ = Command::new("systemctl").args([command, self.unit]).output();
        }
        let _ = fs::remove_file(format!("/run/systemd/system/{}", self.unit));
        let _ = fs::remove_dir_all(directory_of(self.unit));
    }
}

fn directory_of(unit: &str) -> PathBuf {
    Path::new(DIRECTORY).join(unit)
}

fn systemctl(arguments: &[&str]) -> String {
    let output = Command::new("systemctl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs a systemd host of its own: cargo test -p tests-host"]
fn what_pid_1_reads_for_a_unit_is_held_by_its_invocation() {
    must_be_able();
    let unit = "eso-env.service";
    let mut host = Host::new(unit, "EnvironmentFile=FILE\nExecStart=/bin/sleep infinity\n");
    host.look_while(&["start", unit]);
    host.must_be_held_by_the_unit(OLD);
    host.flip(NEW);
    host.look_while(&["restart", unit]);
    host.must_be_held_by_the_unit(NEW);
    host.must_become_free(OLD);
    host.look_while(&["stop", unit]);
    host.must_become_free(NEW);
}

#[test]
#[ignore = "needs a systemd host of its own: cargo test -p tests-host"]
fn a_child_that_outlives_the_restart_keeps_the_old_version() {
    must_be_able();
    let unit = "eso-killmode.service";
    let service =
        "KillMode=process\nExecStart=/bin/sh -c 'read P <FILE; sleep 7777 & echo $! >FILE.child; wait'\n";
    let mut host = Host::new(unit, service);
    host.look_while(&["start", unit]);
    host.must_be_held_by_the_unit(OLD);
    let child = directory_of(unit).join("1/env.child");
    let deadline = Instant::now() + DEADLINE;
    let child = loop {
        let pid = fs::read_to_string(&child).unwrap_or_default();
        if pid.ends_with('\n') {
            break pid.trim().to_owned();
        }
        assert!(Instant::now() < deadline, "the unit did not come up");
        host.look();
    };
    host.flip(NEW);
    host.look_while(&["restart", unit]);
    host.must_be_held_by_the_unit(NEW);
    assert!(!host.evidence.is_free(OLD), "its child of before still runs in the cgroup");
    Command::new("kill").arg(child).status().unwrap();
    host.must_become_free(OLD);
    host.must_be_held_by_the_unit(NEW);
}

/// `LoadCredential=` is read by a helper that systemd forks, and `ExecStartPre=` by a program of a moment: often gone
/// before anybody can look.
#[test]
#[ignore = "needs a systemd host of its own: cargo test -p tests-host"]
fn a_reader_of_a_moment_holds_seen_or_not() {
    must_be_able();
    for (unit, first) in
        [("eso-pre.service", "ExecStartPre=/bin/cat FILE"), ("eso-load.service", "LoadCredential=p:FILE")]
    {
        let mut host = Host::new(unit, &format!("Type=exec\n{first}\nExecStart=/bin/sleep infinity\n"));
        let mut named = 0;
        for _ in 0..10 {
            host.look_while(&["restart", unit]);
            systemctl(&["reset-failed", unit]);
            assert!(!host.evidence.is_free(OLD), "{unit}: nobody holds it: {:?}", host.evidence);
            named += host.evidence.holders(OLD).len().min(1);
        }
        let _ = writeln!(std::io::stderr(), "{unit}: {named} of 10 were named, the others are a gap");
    }
}
