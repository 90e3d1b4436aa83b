//! Who reads what: the fanotify group, looks at all processes, and which kind of evidence that makes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use holders::{
    ConsumerLife, Evidence, File, Look, Proc, ProcessId, Rules, Scene, Table, Taking, UnitLife, boot_clock,
};
use host_policy::{EvidenceMode, SetPolicy};
use lifecycle::{ConsumerName, Evidence as Kind, Millis, SetName, Version};
use opens::exact::Exact;
use opens::{Capability, Group, Inode, Queue};
use protocol::UnixMillis;
use rustix::event::{PollFd, PollFlags, poll};
use units::{Health, LifeId};

use crate::input::Input;

/// The name of the group's descriptor in the descriptor store of whoever supervises us.
pub(crate) const KEPT_NAME: &str = "opens";

/// The file beside the mark that says which group it is.
const GROUP: &str = "group";

/// The word by which our program becomes the responder of the exact mode.
pub const EXACT_RESPONDER: &str = "exact-responder";
/// The word by which our program becomes its watcher.
pub const EXACT_WATCHER: &str = "exact-watcher";

/// How often the exact mode is started again after it has ended too soon.
const EXACT_STARTS_MAX: u32 = 5;
/// The first pause before that; it doubles.
const EXACT_PAUSE: Duration = Duration::from_secs(1);
/// After this time it has not ended too soon.
const EXACT_LIVED: Duration = Duration::from_mins(10);

/// The exact mode, where policy asks for it.
pub(crate) struct ExactMode {
    /// What became of it.
    pub(crate) told: String,
    /// Starts in a row that led to nothing for long.
    starts: u32,
    started: Instant,
    /// Since when openers are not held, by the wall clock.
    ended: Option<UnixMillis>,
}

/// What this host can see of readers.
pub(crate) struct Witness {
    pub(crate) proc: Proc,
    taker: Option<Arc<Mutex<Taker>>>,
    /// The thread that takes readers, and the pipe with which it ends.
    thread: Option<(OwnedFd, std::thread::JoinHandle<()>)>,
    /// The last applier was killed while it took readers over: what it took is lost.
    pub(crate) interrupted: bool,
    /// What became of the exact mode, where policy asks for it.
    pub(crate) exact: Option<ExactMode>,
    kind: Kind,
    why: String,
    /// Which group of opens sees readers now: one that was kept over our restart, with its marks and events, is the same.
    pub(crate) group: Option<String>,
    /// What was watched in it when it was taken back. What is missing was unwatched for a time.
    marks: Option<Marks>,
    /// Whether somebody keeps the group over our next restart.
    pub(crate) stored: bool,
    pub(crate) boot_id: String,
    /// Our own processes: this one, the two of the exact mode, and the network half while it is connected.
    ours: BTreeSet<ProcessId>,
    network: Option<ProcessId>,
}

/// What the kernel watches for a group.
#[derive(Debug, Default)]
struct Marks {
    inodes: BTreeSet<Inode>,
    mounted: BTreeSet<u64>,
}

impl Marks {
    /// The kernel lists marks by the device of the file system itself. Some show another one for their files, which is
    /// mounted nowhere (subvolumes of btrfs, overlays): of those the number tells.
    fn have(&self, device: u64, number: u64) -> bool {
        let is_it = |mark: &&Inode| mark.device == device || !self.mounted.contains(&device);
        self.inodes.iter().filter(is_it).any(|mark| mark.number == number)
    }
}

/// The third field of each line, as in `0:27`; see proc(5).
fn devices_of_mounts(mountinfo: &str) -> BTreeSet<u64> {
    let device = |line: &str| {
        let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
        Some(nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?))
    };
    mountinfo.lines().filter_map(device).collect()
}

/// Takes readers over from the kernel as soon as they are seen: a short one is gone in a moment.
struct Taker {
    group: Group,
    proc: Proc,
    taking: Taking,
    /// Holds each opener until we know who it is.
    exact: Option<Exact>,
    /// Taken, and not yet charged to anybody.
    pending: Look,
    /// The applier's thread knows that there is something.
    told: bool,
    /// Since when openers are no longer held, until that is taken notice of.
    exact_ended: Option<UnixMillis>,
}

impl Taker {
    fn take(&mut self) {
        let began = boot_clock();
        let has_news = self.group.has_events() || self.exact.as_ref().is_some_and(Exact::has_news);
        if !has_news {
            self.pending.join(Look { began, drained: true, ..Look::default() });
            return;
        }
        let look = self.proc.take(&self.group, self.exact.as_mut(), Some(&mut self.taking));
        if look.exact_ended {
            tracing::error!("the exact mode has ended: openers are not held");
            self.exact = None;
            self.exact_ended = Some(UnixMillis::now());
        }
        self.pending.join(look);
    }
}

impl Taker {
    fn mark(&mut self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.group.mark(file).map_err(io::Error::other)?;
        if let Some(exact) = &mut self.exact
            && let Err(error) = exact.mark(file)
        {
            // The group sees its readers all the same.
            tracing::error!(%error, "readers of a file are not held");
        }
        Ok(())
    }
}

/// All processes at one moment, and what systemd says of units.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) table: Table,
    pub(crate) units: BTreeMap<String, UnitLife>,
    /// The process that each pid file names.
    pub(crate) main_pids: BTreeMap<(SetName, ConsumerName), i32>,
    /// What PID 1 reads, and for which units.
    pub(crate) read_by_pid_1: Vec<(String, PathBuf)>,
}

/// Descriptors that keep the inodes of versions from being reused, where the file system reuses their numbers: only
/// then does a number that the sweep finds name the file that it named once. They open nothing (`O_PATH`).
#[derive(Debug, Default)]
pub(crate) struct Pins {
    by_version: BTreeMap<Version, BTreeMap<Inode, OwnedFd>>,
    /// The set's own file system, whose numbers only grow, and which counts inodes: nothing is pinned there.
    pub(crate) own_device: Option<u64>,
}

impl Pins {
    pub(crate) fn pin(
        &mut self,
        version: Version,
        stat: &rustix::fs::Stat,
        fd: BorrowedFd<'_>,
    ) -> io::Result<()> {
        if Some(stat.st_dev) == self.own_device {
            return Ok(());
        }
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let pin = rustix::fs::open(path, flags, rustix::fs::Mode::empty())?;
        let inode = Inode { device: stat.st_dev, number: stat.st_ino };
        self.by_version.entry(version).or_default().insert(inode, pin);
        Ok(())
    }

    /// Whether the number of this inode still names the file that it named when it was written down.
    pub(crate) fn is_sure(&self, version: Version, inode: Inode) -> bool {
        Some(inode.device) == self.own_device
            || self.by_version.get(&version).is_some_and(|pins| pins.contains_key(&inode))
    }

    pub(crate) fn forget(&mut self, version: Version) {
        self.by_version.remove(&version);
    }
}

impl View {
    /// The processes that the pid files of a set's consumers name.
    pub(crate) fn main_pids(&self, set: &SetName) -> BTreeMap<ConsumerName, i32> {
        let of_set = self.main_pids.iter().filter(|((of, _), _)| of == set);
        of_set.map(|((_, consumer), pid)| (consumer.clone(), *pid)).collect()
    }

    pub(crate) const fn scene<'a>(&'a self, rules: &'a Rules) -> Scene<'a> {
        Scene { table: &self.table, rules, units: &self.units }
    }
}

impl Witness {
    /// The strongest evidence that works here. `kept` is the group that somebody kept over our restart.
    pub(crate) fn new(mode: EvidenceMode, kept: Option<OwnedFd>, boot_id: String, mark: &Path) -> Self {
        let mut witness = Self {
            proc: Proc::new(),
            taker: None,
            thread: None,
            interrupted: false,
            exact: None,
            kind: Kind::Declared,
            why: String::new(),
            group: None,
            marks: None,
            stored: false,
            boot_id,
            ours: BTreeSet::new(),
            network: None,
        };
        witness.is_ours(std::process::id());
        if mode == EvidenceMode::Declared {
            "the policy says evidence = \"declared\"".clone_into(&mut witness.why);
            return witness;
        }
        match Capability::probe() {
            Capability::Kernel => witness.open_group(kept, mark),
            Capability::Without(why) => witness.why = format!("opens cannot be seen here: {why}"),
        }
        if mode == EvidenceMode::Exact {
            witness.start_exact();
        }
        witness
    }

    /// Without it readers are still seen, but for those that are gone before we look: each of them is a gap.
    fn start_exact(&mut self) {
        if self.taker.is_some() {
            self.exact_started(start_exact());
        }
    }

    /// It was started, or that failed. What it is to hold has to be marked again.
    pub(crate) fn exact_started(&mut self, started: Result<Exact, String>) {
        let starts = self.exact.as_ref().map_or(0, |exact| exact.starts);
        let ended = self.exact.as_ref().and_then(|exact| exact.ended);
        let (told, ended) = match started {
            Ok(exact) => {
                for pid in [exact.responder(), exact.watcher()] {
                    self.is_ours(pid);
                }
                if let Some(mut taker) = self.taker() {
                    taker.exact = Some(exact);
                }
                ("each opener is held until it was written down".to_owned(), None)
            }
            Err(why) => {
                tracing::error!(why, "the exact mode does not work");
                (format!("it does not work here: {why}"), ended)
            }
        };
        self.exact = Some(ExactMode { told, starts: starts + 1, started: Instant::now(), ended });
    }

    /// Since when openers are not held, if that is news.
    pub(crate) fn exact_has_ended(&mut self) -> Option<UnixMillis> {
        let ended = self.taker()?.exact_ended.take()?;
        let exact = self.exact.as_mut()?;
        exact.ended = Some(ended);
        "it has ended, and is started again".clone_into(&mut exact.told);
        if exact.started.elapsed() >= EXACT_LIVED {
            exact.starts = 0;
        }
        Some(ended)
    }

    /// Since when openers have not been held.
    pub(crate) fn exact_ended(&self) -> Option<UnixMillis> {
        self.exact.as_ref()?.ended
    }

    /// When the exact mode is to be started again.
    pub(crate) fn exact_due(&self) -> Option<Instant> {
        let exact = self.exact.as_ref().filter(|exact| exact.starts < EXACT_STARTS_MAX)?;
        let is_away = self.taker().is_some_and(|taker| taker.exact.is_none());
        is_away.then(|| exact.started + EXACT_PAUSE * 2_u32.pow(exact.starts.saturating_sub(1)))
    }

    /// Whether openers are held now.
    pub(crate) fn is_exact(&self) -> bool {
        self.taker().is_some_and(|taker| taker.exact.is_some())
    }

    fn open_group(&mut self, kept: Option<OwnedFd>, mark: &Path) {
        let taken_back = kept.and_then(|kept| {
            Group::take_back(kept)
                .inspect_err(|error| tracing::warn!(%error, "what was kept for us is not used"))
                .ok()
        });
        let known =
            taken_back.as_ref().and_then(|_| std::fs::read_to_string(mark.with_file_name(GROUP)).ok());
        self.marks = taken_back.as_ref().map(|group| Marks {
            inodes: group.marks().unwrap_or_default().into_iter().collect(),
            mounted: devices_of_mounts(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()),
        });
        let is_new = taken_back.is_none();
        let group = match taken_back.map_or_else(|| Group::open(Queue::Unlimited), Ok) {
            Ok(group) => group,
            Err(error) => {
                self.why = error.to_string();
                return;
            }
        };
        let (taking, left) = match Taking::open(mark, &self.boot_id) {
            Ok(opened) => opened,
            Err(error) => {
                self.why = format!("{} cannot be written: {error}", mark.display());
                return;
            }
        };
        // Before anybody keeps it for the next of us.
        let name = match known.map_or_else(|| name_group(&mark.with_file_name(GROUP)), Ok) {
            Ok(name) => name,
            Err(why) => {
                self.why = why;
                return;
            }
        };
        self.group = Some(name);
        self.kind = Kind::Kernel;
        self.interrupted = left.interrupted;
        self.stored = store(&group, is_new);
        let proc = Proc::new();
        let mut pending = left.look;
        pending.sightings.extend(proc.recognise(&left.unseen));
        let taker = Taker { group, proc, taking, exact: None, pending, told: false, exact_ended: None };
        self.taker = Some(Arc::new(Mutex::new(taker)));
    }

    fn taker(&self) -> Option<MutexGuard<'_, Taker>> {
        let taker = self.taker.as_ref()?;
        Some(taker.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes readers over on a thread of its own from now on, and tells the applier's.
    pub(crate) fn watch(&mut self, inbox: Sender<Input>) -> io::Result<()> {
        let Some(taker) = self.taker.clone() else { return Ok(()) };
        let group = self.taker().map(|taker| taker.group.as_fd().try_clone_to_owned()).transpose()?;
        let Some(group) = group else { return Ok(()) };
        let (ended, ends) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let thread = std::thread::Builder::new().name("readers".to_owned()).spawn(move || {
            take_readers(&taker, &group, &ended, &inbox);
        })?;
        self.thread = Some((ends, thread));
        Ok(())
    }

    /// Readers stay in the kernel's queue from now on, for our next start.
    pub(crate) fn stop_taking(&mut self) {
        let Some((ends, thread)) = self.thread.take() else { return };
        drop(ends);
        if thread.join().is_err() {
            tracing::error!("the thread that takes readers has panicked");
        }
    }

    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn why(&self) -> &str {
        &self.why
    }

    /// Watches each new file of a version before it is visible, and writes down which it is.
    pub(crate) fn marker<'a>(
        &'a self,
        evidence: &'a mut Evidence,
        pins: &'a mut Pins,
        version: Version,
        policy: &'a SetPolicy,
    ) -> impl FnMut(&str, BorrowedFd<'_>) -> io::Result<()> + 'a {
        move |name, fd| {
            let place = policy.places.iter().find(|place| place.path.to_str() == Some(name));
            let access = place.map_or_else(|| policy.access_of(name), |place| &place.access);
            let (file, at) = (place.map_or(name, |place| &place.file), place.map(|_| name));
            self.watch_file(evidence, pins, version, (file, at), access.mode, fd)
        }
    }

    /// Whether the readers of a file were seen all the time since an earlier life of ours marked it.
    pub(crate) fn was_marked(&self, stat: &rustix::fs::Stat) -> bool {
        self.marks.as_ref().is_some_and(|marks| marks.have(stat.st_dev, stat.st_ino))
    }

    /// Whether the group was kept for us over our restart.
    pub(crate) const fn is_kept(&self) -> bool {
        self.marks.is_some()
    }

    /// Watches one file of a version: by its name in the set, and by its place where it is a copy.
    pub(crate) fn watch_file(
        &self,
        evidence: &mut Evidence,
        pins: &mut Pins,
        version: Version,
        (name, place): (&str, Option<&str>),
        mode: u32,
        fd: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let stat = rustix::fs::fstat(fd)?;
        self.mark(fd)?;
        evidence.watch(
            version,
            File {
                name: name.to_owned(),
                place: place.map(str::to_owned),
                device: stat.st_dev,
                inode: stat.st_ino,
                owner: stat.st_uid,
                group: stat.st_gid,
                // Of a new file the mark comes while nobody may open it yet.
                mode: mode | (stat.st_mode & 0o777),
            },
        );
        pins.pin(version, &stat, fd)
    }

    /// What was seen since the last look, and all processes.
    pub(crate) fn look(&mut self) -> (Look, Table) {
        let look = self.taker().map_or_else(Look::default, |mut taker| {
            taker.take();
            taker.told = false;
            std::mem::take(&mut taker.pending)
        });
        let table = self.proc.table(look.detail());
        (look, table)
    }

    /// Everything that was looked at is in the journal.
    pub(crate) fn journaled(&self) {
        if let Some(mut taker) = self.taker() {
            let Taker { taking, pending, .. } = &mut *taker;
            if let Err(error) = taking.journaled(pending) {
                tracing::warn!(%error, "the next start will take over what is in the journal already");
            }
        }
    }

    /// Has the readers of a file seen that evidence knows already.
    pub(crate) fn mark(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.taker().map_or(Ok(()), |mut taker| taker.mark(file))
    }

    fn is_ours(&mut self, pid: u32) {
        let process = i32::try_from(pid).ok().and_then(|pid| self.proc.process(pid));
        self.ours.extend(process.map(|process| process.id));
    }

    /// The network half is this process, or is not connected.
    pub(crate) fn network_is(&mut self, pid: Option<i32>) {
        self.network = pid.and_then(|pid| self.proc.process(pid)).map(|process| process.id);
    }

    /// Who is who for a set.
    pub(crate) fn rules(&self, policy: Option<&SetPolicy>, host_wide: &[host_policy::NotAConsumer]) -> Rules {
        let ours = self.ours.iter().chain(&self.network).copied().collect();
        let Some(policy) = policy else { return Rules { ours, ..Rules::default() } };
        let mut policy = policy.clone();
        policy.not_a_consumer.extend_from_slice(host_wide);
        Rules::of(&policy, ours)
    }

    /// For each file of a set, by name and by place, the units for which PID 1 reads it. `read` is what systemd says
    /// that it reads, `dir` the set's directory.
    pub(crate) fn read_for(
        read: &[(String, PathBuf)],
        policy: &SetPolicy,
        dir: &Path,
    ) -> BTreeMap<String, BTreeSet<String>> {
        let mut by_name: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (unit, path) in read {
            let glob = path.to_str().is_some_and(|path| path.contains(['*', '?', '[']));
            let resolved = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            for place in &policy.places {
                let named = *path == place.path || (glob && path.parent() == place.path.parent());
                if named
                    || resolved == place.path
                    || resolved.starts_with(dir) && resolved.ends_with(&place.file)
                {
                    by_name.entry(place.file.clone()).or_default().insert(unit.clone());
                }
            }
            // A file without a place, by its way through the set's own directory.
            if let Some(name) =
                resolved.file_name().and_then(|name| name.to_str()).filter(|_| resolved.starts_with(dir))
            {
                by_name.entry(name.to_owned()).or_default().insert(unit.clone());
            }
        }
        by_name
    }
}

/// Starts the two processes of the exact mode. Takes a moment.
pub(crate) fn start_exact() -> Result<Exact, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    Exact::start(&program, &[EXACT_RESPONDER], &[EXACT_WATCHER]).map_err(|error| error.to_string())
}

fn take_readers(taker: &Mutex<Taker>, group: &OwnedFd, ended: &OwnedFd, inbox: &Sender<Input>) {
    // On a busy machine a reader would be gone before it is our turn. Of this thread only; it may be forbidden.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), -20);
    let mut held: Option<(u32, OwnedFd)> = None;
    loop {
        // What the responder of a later start says comes with the notification of the same opening.
        {
            let taker = taker.lock().unwrap_or_else(PoisonError::into_inner);
            let now = taker.exact.as_ref();
            if now.map(Exact::responder) != held.as_ref().map(|(responder, _)| *responder) {
                held =
                    now.and_then(|exact| Some((exact.responder(), exact.as_fd().try_clone_to_owned().ok()?)));
            }
        }
        let mut polled = vec![PollFd::new(group, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
        polled.extend(held.as_ref().map(|(_, held)| PollFd::new(held, PollFlags::IN)));
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "readers are only looked for now and then");
                return;
            }
        }
        if !polled[1].revents().is_empty() {
            return;
        }
        let mut taker = taker.lock().unwrap_or_else(PoisonError::into_inner);
        taker.take();
        let news = !taker.pending.is_empty() || taker.exact_ended.is_some();
        let news = news && !std::mem::replace(&mut taker.told, true);
        drop(taker);
        if news && inbox.send(Input::Stirred).is_err() {
            return;
        }
    }
}

/// A new group gets a name of its own.
fn name_group(path: &Path) -> Result<String, String> {
    let mut name = [0; 16];
    aws_lc_rs::rand::fill(&mut name).map_err(|_| protocol::key::RandomFailed.to_string())?;
    let name = hex::encode(name);
    let written = std::fs::write(path, &name);
    written.map(|()| name).map_err(|error| format!("{} cannot be written: {error}", path.display()))
}

/// Gives the group to whoever supervises us, to be handed back after a restart. Works with every supervisor that
/// speaks `sd_notify(3)`.
fn store(group: &Group, is_new: bool) -> bool {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return false;
    }
    if is_new {
        // One that could not be taken back would be handed to the next of us again, under the same name.
        let _ = sd_notify::notify(&[
            sd_notify::NotifyState::FdStoreRemove,
            sd_notify::NotifyState::FdName(KEPT_NAME),
        ]);
    }
    let state = [sd_notify::NotifyState::FdStore, sd_notify::NotifyState::FdName(KEPT_NAME)];
    match sd_notify::notify_with_fds(&state, &[group.as_fd()]) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "failed to give the group of opens to the descriptor store");
            false
        }
    }
}

/// The earliest moment at which the present life of a unit can have read something. systemd notes the beginning just
/// after it has forked, and this is never before the end of the life before.
fn began(look: &units::Look) -> Option<Millis> {
    let noted = look.began_ms?.saturating_sub(1_000);
    Some(crate::clock::boot_of_monotonic(noted.max(look.earlier_ended_ms.unwrap_or(0))))
}

/// The life of a consumer as evidence takes it.
pub(crate) fn declared_life(
    look: &Result<units::Look, units::UnitError>,
    unit: Option<&str>,
    table: &Table,
) -> ConsumerLife {
    let look = match look {
        Ok(look) => look,
        // A pid file that names somebody else says nothing of whether the consumer runs.
        Err(error) => return ConsumerLife::Unknown(error.to_string()),
    };
    match (&look.life, unit) {
        (None, _) if look.health == Health::Changing => {
            ConsumerLife::Unknown("it is changing state".to_owned())
        }
        (None, _) => ConsumerLife::NotRunning,
        (Some(LifeId::Process { pid, start }), _) => {
            ConsumerLife::Process(ProcessId { pid: *pid, start: *start })
        }
        (Some(LifeId::Invocation(invocation)), unit) => {
            let main = table.processes.get(&look.main_pid).map(|process| process.id);
            ConsumerLife::Unit {
                name: unit.unwrap_or_default().to_owned(),
                main,
                invocation: invocation.clone(),
                began: began(look).or(main.map(|id| table.began(id))).unwrap_or(Millis(0)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_also_where_the_kernel_names_another_device() {
        let (eight, nine) = (nix::sys::stat::makedev(8, 1), nix::sys::stat::makedev(0, 9));
        let mountinfo =
            "29 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n30 29 0:9 / /run rw - tmpfs tmpfs rw\n";
        let marks = Marks {
            inodes: BTreeSet::from([Inode { device: eight, number: 100 }, Inode { device: nine, number: 7 }]),
            mounted: devices_of_mounts(mountinfo),
        };
        assert!(marks.have(eight, 100));
        assert!(!marks.have(eight, 7), "of another file system");
        let subvolume = nix::sys::stat::makedev(0, 70);
        assert!(marks.have(subvolume, 7));
        assert!(!marks.have(subvolume, 8));
    }
}
