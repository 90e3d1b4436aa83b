//! Reads `/proc` and the fanotify queue. All I/O of this crate but the sweep's is here; nothing is decided.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lifecycle::Millis;
use opens::exact::{Exact, Held};
use opens::{Event, Group, Inode, Lost, ProcessText};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::belongs::Belongs;
use crate::process::{CgroupLife, Process, ProcessId, Table};
use crate::taking::{Taken, Taking};

/// Listings of `/proc` after which a table that does not settle counts as incomplete.
const LISTINGS_MAX: usize = 8;

/// Batches after which a look ends although the queue is not empty, so that a busy reader cannot hold us.
const BATCHES_MAX: usize = 16;

/// How long a notification may trail behind the permission event of the same opening.
const TRAILS_BY: Duration = Duration::from_secs(10);

/// What it means when events that were taken cannot be written down.
const NOT_WRITTEN: &str =
    "if we are killed before the journal has it, the next start will not know who has read";

/// How many ancestors are followed. A chain that is longer is no chain that we understand.
const ANCESTORS_MAX: usize = 64;

/// How much of each process is read for a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Enough to see which lives go on.
    Lives,
    /// Also which file systems each process can reach: for the candidates of a gap.
    Reach,
}

/// What was seen since the last look.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// When it began, on the boot clock: everything before that is in it, if it drained the queue.
    pub began: Millis,
    /// In the order in which it happened, those of the exact mode first.
    pub sightings: Vec<Sighting>,
    /// Why events were missed, in words.
    pub lost: Vec<String>,
    /// Nothing was left in the queue.
    pub drained: bool,
    /// The responder of the exact mode has ended. Of a later start this says nothing.
    #[serde(skip)]
    pub exact_ended: bool,
}

impl Look {
    /// How much of each process has to be read beside it: more when somebody escaped us.
    pub fn detail(&self) -> Detail {
        let vanished = |seen: &Sighting| matches!(seen.reader, Reader::Vanished);
        let gap = !self.lost.is_empty() || self.sightings.iter().any(vanished);
        if gap { Detail::Reach } else { Detail::Lives }
    }

    /// Nothing was taken.
    pub fn is_empty(&self) -> bool {
        self.sightings.is_empty() && self.lost.is_empty()
    }

    /// Adds what was taken after this.
    pub fn join(&mut self, later: Self) {
        self.began = self.began.max(later.began);
        self.sightings.extend(later.sightings);
        self.lost.extend(later.lost);
        self.drained = later.drained;
        self.exact_ended |= later.exact_ended;
    }

    /// Whether PID 1 read something: it does so for a unit.
    pub fn has_pid_1(&self) -> bool {
        let by_pid_1 = |seen: &Sighting| matches!(&seen.reader, Reader::Seen(lineage) if lineage.first().is_some_and(|reader| reader.id.pid == 1));
        self.sightings.iter().any(by_pid_1)
    }
}

/// One process opened or read one inode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// The file.
    pub inode: Inode,
    /// It was opened.
    pub opened: bool,
    /// Who did it.
    pub reader: Reader,
}

/// Who opened or read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reader {
    /// This process, and where no cgroup of its own names it, its ancestors, nearest first.
    Seen(Vec<Process>),
    /// A process that was gone before we looked, or that we cannot see.
    Vanished,
}

/// Reads processes below one procfs.
#[derive(Debug)]
pub struct Proc {
    root: PathBuf,
    /// Where cgroup v2 is mounted.
    cgroups: Option<PathBuf>,
    ticks: u64,
    /// Openings that the exact mode has shown lately: their notifications are no news, even if the opener is gone.
    shown: HashMap<(i32, Inode), Instant>,
    /// Who was there at the last complete table, and when that was.
    last: Option<(Millis, BTreeSet<ProcessId>)>,
    /// What earlier tables say of when the living have begun, see [`Table::not_before`].
    not_before: BTreeMap<ProcessId, Millis>,
    /// This process, whose own readings are no news.
    own: i32,
}

impl Default for Proc {
    fn default() -> Self {
        Self::new()
    }
}

impl Proc {
    /// Of this machine, or of the container that we are in.
    pub fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self {
            root: PathBuf::from("/proc"),
            cgroups: cgroup_mount(&mounts),
            ticks: rustix::param::clock_ticks_per_second(),
            shown: HashMap::new(),
            last: None,
            not_before: BTreeMap::new(),
            own: rustix::process::getpid().as_raw_nonzero().get(),
        }
    }

    /// Whether cgroups tell units apart here.
    pub fn has_cgroups(&self) -> bool {
        self.cgroups.is_some()
    }

    pub(crate) fn directory(&self, process: &Process) -> PathBuf {
        self.root.join(process.id.pid.to_string())
    }

    /// All processes, now.
    pub fn table(&mut self, detail: Detail) -> Table {
        let mut table = Table { taken: boot_clock(), ticks: self.ticks, ..Table::default() };
        let mut seen = BTreeSet::new();
        let mut whole = true;
        for listing in 0..LISTINGS_MAX {
            let Ok(pids) = self.pids() else { return table };
            let fresh: Vec<i32> = pids.into_iter().filter(|pid| seen.insert(*pid)).collect();
            // A second listing without anybody new shows that nobody was born behind our back in the first.
            if listing > 0 && fresh.is_empty() {
                table.complete = whole;
                break;
            }
            for pid in fresh {
                match self.read(pid) {
                    Ok(Some(process)) if !process.zombie => {
                        table.processes.insert(pid, process);
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => whole = false,
                    Err(error) => whole &= is_vanished(&error),
                }
            }
        }
        let roots: BTreeSet<String> = table
            .processes
            .values()
            .filter_map(|process| Belongs::of(&process.cgroup).root().map(str::to_owned))
            .collect();
        table.cgroups = roots.into_iter().map(|root| (root.clone(), self.cgroup_life(&root))).collect();
        if detail == Detail::Reach {
            table.mounts = self.mounts(&table);
        }
        self.tell_arrivals(&mut table);
        table
    }

    /// Whoever was not there at the last table began after it.
    fn tell_arrivals(&mut self, table: &mut Table) {
        let living: BTreeSet<ProcessId> = table.processes.values().map(|process| process.id).collect();
        self.not_before.retain(|id, _| living.contains(id));
        if let Some((taken, were_there)) = &self.last {
            // Only within the tick of the look: one that began long before was not to be seen there (`hidepid`, see
            // proc(5)), which says nothing of when it began.
            let in_its_tick =
                |id: &&ProcessId| table.began_by_start(**id) < *taken && *taken < table.began_before(**id);
            let arrived = living.difference(were_there).filter(in_its_tick);
            for id in arrived {
                self.not_before.entry(*id).or_insert(*taken);
            }
        }
        table.not_before.clone_from(&self.not_before);
        if table.complete {
            self.last = Some((table.taken, living));
        }
    }

    /// One process, proven not to have changed hands while it was read. `None` when it is gone.
    pub fn process(&self, pid: i32) -> Option<Process> {
        let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        let process = self.read(pid).ok()??;
        (number_of(&pidfd) == Some(pid)).then_some(process)
    }

    /// The very process that a pidfd was opened for, as it is now. `None` once it has ended, whoever has its number.
    pub fn behind(&self, pidfd: &impl AsFd) -> Option<Process> {
        let pid = number_of(pidfd)?;
        let process = self.read(pid).ok()??;
        (number_of(pidfd) == Some(pid) && !process.zombie).then_some(process)
    }

    /// For how long a process has been there at least. Start times are rounded down.
    pub fn age(&self, process: &Process) -> Millis {
        let began = process.id.start.saturating_add(1).saturating_mul(1000) / self.ticks.max(1);
        boot_clock().since(Millis(began))
    }

    /// Takes what the kernel has queued and reads who it was, before they are gone. `taking` is told of each step: what
    /// it cannot write down is left to the kernel. Readings of this very process are left out.
    pub fn take(&mut self, group: &Group, exact: Option<&mut Exact>, taking: Option<&mut Taking>) -> Look {
        let mut look = Look { began: boot_clock(), ..Look::default() };
        let mut known: HashMap<i32, Reader> = HashMap::new();
        let mut notified: Vec<(i32, Sighting)> = Vec::new();
        let mut taking = taking;
        for _ in 0..BATCHES_MAX {
            if let Some(Err(error)) = taking.as_ref().map(|taking| taking.begin()) {
                tracing::error!(%error, "readers are not taken over");
                break;
            }
            let mut batch = group.read();
            batch.events.retain(|event| !self.is_own(event));
            if let Some(Err(error)) = taking.as_mut().map(|taking| taking.taken(&batch)) {
                tracing::warn!(%error, "{NOT_WRITTEN}");
            }
            // Who they were first, since they go away; their ancestors later.
            let readers: Vec<Option<Process>> =
                batch.events.iter().map(|event| self.witness(event)).collect();
            for (event, reader) in batch.events.iter().zip(readers) {
                let reader = self.with_ancestors(event.pid, reader, &mut known);
                let sighting = Sighting { inode: event.inode, opened: event.opened, reader };
                notified.push((event.pid, sighting));
            }
            look.lost.extend(batch.lost.iter().map(in_words));
            if batch.drained {
                look.drained = true;
                break;
            }
        }
        // The responder speaks before it lets an opener go on, so its word is there before the notification is.
        if let Some(exact) = exact {
            self.take_exact(exact, &mut look);
        }
        let shown = &self.shown;
        let news = notified.into_iter().filter(|(pid, sighting)| {
            sighting.reader != Reader::Vanished || !shown.contains_key(&(*pid, sighting.inode))
        });
        look.sightings.extend(news.map(|(_, sighting)| sighting));
        if let Some(Err(error)) = taking.map(|taking| taking.looked(&look)) {
            tracing::warn!(%error, "{NOT_WRITTEN}");
        }
        look
    }

    /// What an earlier daemon took and did not look at: of whoever lives, who that is.
    pub fn recognise(&self, taken: &[Taken]) -> Vec<Sighting> {
        let mut known = HashMap::new();
        let sighting = |taken: &Taken| {
            // One that began in the tick in which it was taken may have got the number of one that is gone.
            let tick = 1000 / self.ticks.max(1);
            let was_there = |process: &Process| (process.id.start + 1).saturating_mul(tick) <= taken.at.0;
            let reader = self.process(taken.pid).filter(was_there);
            let reader = self.with_ancestors(taken.pid, reader, &mut known);
            Sighting { inode: taken.inode, opened: taken.opened, reader }
        };
        taken.iter().map(sighting).collect()
    }

    /// Takes what the kernel has queued, and then all processes.
    pub fn look(&mut self, group: &Group, exact: Option<&mut Exact>) -> (Look, Table) {
        let look = self.take(group, exact, None);
        let table = self.table(look.detail());
        (look, table)
    }

    fn take_exact(&mut self, exact: &mut Exact, look: &mut Look) {
        let seen = exact.read();
        self.shown.retain(|_, at| at.elapsed() < TRAILS_BY);
        for held in &seen.held {
            let reader = of_held(held);
            if reader != Reader::Vanished {
                self.shown.insert((held.pid, held.inode), Instant::now());
            }
            look.sightings.push(Sighting { inode: held.inode, opened: held.opened, reader });
        }
        if seen.lost {
            // The notification of the same opening still comes; without it this is all we know.
            tracing::warn!("an opener was let through without being written down");
        }
        look.exact_ended = seen.ended;
    }

    /// Whether this very process caused an event. One that is gone may have had our number before us.
    fn is_own(&self, event: &Event) -> bool {
        event.pid == self.own && event.pidfd.is_some()
    }

    /// Who caused an event, if that process still has its number after it was read.
    fn witness(&self, event: &Event) -> Option<Process> {
        let pidfd = event.pidfd.as_ref().filter(|_| event.pid > 0)?;
        let process = self.read(event.pid).ok()??;
        (number_of(pidfd) == Some(event.pid)).then_some(process)
    }

    /// `known` are the readers of this look: a second event of one that has exited meanwhile is still its own.
    fn with_ancestors(&self, pid: i32, reader: Option<Process>, known: &mut HashMap<i32, Reader>) -> Reader {
        let Some(process) = reader else {
            return known.get(&pid).cloned().unwrap_or(Reader::Vanished);
        };
        if let Some(Reader::Seen(lineage)) = known.get(&pid)
            && lineage.first().is_some_and(|known| known.id == process.id && known.cgroup == process.cgroup)
        {
            return Reader::Seen(lineage.clone());
        }
        let alone = Belongs::of(&process.cgroup).root().is_some();
        let mut lineage = vec![process];
        while !alone && lineage.len() <= ANCESTORS_MAX {
            let Some(last) = lineage.last().filter(|last| last.parent > 0 && last.id.pid != 1) else { break };
            match self.read(last.parent) {
                // A parent that is younger than its child has another's number.
                Ok(Some(parent)) if parent.id.start <= last.id.start => lineage.push(parent),
                _ => break,
            }
        }
        let seen = Reader::Seen(lineage);
        known.insert(pid, seen.clone());
        seen
    }

    fn read(&self, pid: i32) -> io::Result<Option<Process>> {
        let text = ProcessText::read(&self.root, pid)?;
        Ok(Process::parse(&text))
    }

    fn pids(&self) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            if let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                pids.push(pid);
            }
        }
        Ok(pids)
    }

    fn cgroup_life(&self, root: &str) -> CgroupLife {
        let Some(path) = self.cgroups.as_ref().map(|mount| mount.join(root.trim_start_matches('/'))) else {
            return CgroupLife::default();
        };
        let id = fs::symlink_metadata(&path).map(|metadata| metadata.ino()).unwrap_or_default();
        CgroupLife { id, invocation: invocation(&path) }
    }

    fn mounts(&self, table: &Table) -> BTreeMap<u64, Option<BTreeSet<u64>>> {
        let own = own_mount_namespace();
        let mut mounts: BTreeMap<u64, Option<BTreeSet<u64>>> = BTreeMap::new();
        for process in table.processes.values().filter(|process| !process.kernel) {
            let namespace = process.mount_namespace;
            if namespace == own || namespace == 0 {
                continue;
            }
            // A process with a root of its own sees only the mounts below that, so all of them are asked.
            let seen = mounts.entry(namespace).or_insert_with(|| Some(BTreeSet::new()));
            match fs::read_to_string(self.directory(process).join("mountinfo")) {
                Ok(text) => {
                    if let Some(devices) = seen {
                        devices.extend(text.lines().filter_map(device_of_mount));
                    }
                }
                Err(error) if is_vanished(&error) => {}
                Err(_) => *seen = None,
            }
        }
        mounts
    }
}

/// Now, on the clock that counts from boot and also while the machine sleeps.
pub fn boot_clock() -> Millis {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let millis = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or_default();
    Millis(seconds.saturating_mul(1000).saturating_add(millis))
}

/// Names this boot of the machine.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

pub(crate) fn own_mount_namespace() -> u64 {
    namespace(Path::new("/proc/self"))
}

/// Our own where that of PID 1 is not ours to know.
pub(crate) fn mount_namespace_of_pid_1() -> u64 {
    match namespace(Path::new("/proc/1")) {
        0 => own_mount_namespace(),
        of_pid_1 => of_pid_1,
    }
}

/// ENOENT before it is opened, ESRCH after.
pub(crate) fn is_vanished(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

/// The device of a line of mountinfo: the third field, `major:minor`.
pub(crate) fn device_of_mount(line: &str) -> Option<u64> {
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    Some(nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The number that a pidfd's process has for us; `None` once it is reaped.
fn number_of(pidfd: &impl AsFd) -> Option<i32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd())).ok()?;
    let pid: i32 = info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
    (pid > 0).then_some(pid)
}

fn namespace(process: &Path) -> u64 {
    let target = fs::read_link(process.join("ns/mnt")).unwrap_or_default();
    crate::process::namespace(target.as_os_str().as_encoded_bytes())
}

/// What systemd writes on a unit's cgroup: `trusted.invocation_id`, and since 251 also `user.invocation_id`, which we
/// do not ask: whoever the cgroup is delegated to can write it.
fn invocation(cgroup: &Path) -> Option<String> {
    let mut buffer = [0_u8; 64];
    let length = rustix::fs::getxattr(cgroup, "trusted.invocation_id", &mut buffer[..]).ok()?;
    let text = std::str::from_utf8(buffer.get(..length)?).ok()?;
    text.chars().all(|c| c.is_ascii_hexdigit()).then(|| text.to_owned()).filter(|text| !text.is_empty())
}

fn cgroup_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        file_system.starts_with("cgroup2 ").then(|| PathBuf::from(point))
    })
}

fn of_held(held: &Held) -> Reader {
    let lineage: Option<Vec<Process>> = held.texts.iter().map(Process::parse).collect();
    match lineage {
        Some(lineage) if !lineage.is_empty() => Reader::Seen(lineage),
        _ => Reader::Vanished,
    }
}

fn in_words(lost: &Lost) -> String {
    match lost {
        Lost::Overflow => "the kernel's queue of openings was full".into(),
        Lost::Unreadable(errno) => format!("an opening could not be taken over: {errno}"),
        Lost::Unknown => "an opening was told in an unknown form".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_tells_cgroups_and_devices() {
        let text = "24 1 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                    30 24 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup_mount(text), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(device_of_mount(text.lines().nth(1).unwrap()), Some(nix::sys::stat::makedev(0, 26)));
        assert_eq!(device_of_mount("nonsense"), None);
    }

    #[test]
    fn we_are_in_our_own_table_and_a_reaped_child_is_not() {
        let mut proc = Proc::new();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        assert_eq!(proc.process(pid), None);
        let table = proc.table(Detail::Reach);
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(table.complete);
        assert!(!table.processes.contains_key(&pid));
        assert_eq!(proc.process(own).unwrap().id, table.processes[&own].id);
        assert!(table.began(table.processes[&own].id) <= boot_clock());
    }

    #[test]
    fn who_had_our_number_before_us_is_not_us() {
        let proc = Proc::new();
        let event = |pid, pidfd| Event {
            inode: Inode { device: 1, number: 1 },
            opened: true,
            accessed: false,
            pid,
            pidfd,
        };
        let alive = || Some(fs::File::open("/dev/null").unwrap().into());
        assert!(proc.is_own(&event(proc.own, alive())));
        assert!(!proc.is_own(&event(proc.own, None)), "the kernel opens no pidfd for one that is gone");
        assert!(!proc.is_own(&event(proc.own + 1, alive())));
    }

    #[test]
    fn who_could_not_be_seen_at_a_look_may_have_begun_long_before() {
        let mut proc = Proc::new();
        let hidden = proc.process(proc.own).unwrap();
        let mut first = proc.table(Detail::Lives);
        first.processes.remove(&hidden.id.pid);
        let living = first.processes.values().map(|process| process.id).collect();
        // As it would be if it had been hidden, a second after it began at the least.
        let taken = Millis(first.began_by_start(hidden.id).0 + 1_000);
        proc.last = Some((taken, living));
        let table = proc.table(Detail::Lives);
        assert_eq!(table.began(hidden.id), table.began_by_start(hidden.id));
    }

    #[test]
    fn who_was_not_there_at_a_look_began_after_it() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let mut proc = Proc::new();
        let first = proc.table(Detail::Lives);
        assert!(first.complete);
        let id = first.processes[&i32::try_from(child.id()).unwrap()].id;
        assert_eq!(first.began(id), first.began_by_start(id), "no look before it");
        // As it would be if a look had come in the tick of its start, and before it.
        let taken = Millis(first.began_by_start(id).0 + 3);
        let others = first.processes.values().map(|process| process.id).filter(|other| *other != id);
        proc.last = Some((taken, others.collect()));
        for what in ["the next look", "it stays known"] {
            let table = proc.table(Detail::Lives);
            assert_eq!(table.began(id), taken, "{what}");
            assert!(table.began_before(id) >= taken, "{what}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!proc.table(Detail::Lives).not_before.contains_key(&id));
    }
}
