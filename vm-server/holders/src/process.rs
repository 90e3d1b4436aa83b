//! Processes as `/proc` shows them, parsed as hostile text, and a table of all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use lifecycle::Millis;
use opens::ProcessText;
use serde::{Deserialize, Serialize};

/// `PF_KTHREAD` in the flags of `/proc/PID/stat`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// The most characters of foreign text that stand in a description.
const PRINTABLE_CHARS_MAX: usize = 120;

/// A process beyond reuse of its number, within one boot. Written as `PID:START`.
///
/// A number that is used again within one clock tick stays the same process to us: a hold lasts too long then, never
/// too short.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ProcessId {
    /// Its number in our process namespace.
    pub pid: i32,
    /// When it began, in clock ticks since boot.
    pub start: u64,
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.pid, self.start)
    }
}

impl From<ProcessId> for String {
    fn from(id: ProcessId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for ProcessId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parsed =
            text.split_once(':').and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse().ok()?)));
        let (pid, start) = parsed.ok_or_else(|| format!("{text:?} is not PID:START"))?;
        Ok(Self { pid, start })
    }
}

impl fmt::Debug for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What we know of one process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Which one.
    pub id: ProcessId,
    /// The number of its parent; 0 when that is outside our process namespace.
    pub parent: i32,
    /// Its session; 0 when its leader is outside our process namespace.
    pub session: i32,
    /// Real, effective, saved and file system user.
    pub uids: BTreeSet<u32>,
    /// Real, effective, saved, file system and supplementary groups.
    pub gids: BTreeSet<u32>,
    /// Permitted and effective capabilities, one bit each. All of them where they cannot be read.
    pub capabilities: u64,
    /// Its cgroup on v2, `/` for the root one or none.
    pub cgroup: String,
    /// The program it runs; empty where we may not know.
    pub exe: String,
    /// The name that it gave itself. For people only: it can be anything.
    pub name: String,
    /// A thread of the kernel: opens nothing.
    pub kernel: bool,
    /// Has exited, and nobody has asked for its status yet: has nothing any more.
    pub zombie: bool,
    /// Its mount namespace; 0 where we may not know.
    pub mount_namespace: u64,
}

impl Process {
    /// Parses the texts of one process. `None` when they are not what the kernel writes, which is as good as a
    /// process that is gone.
    pub fn parse(text: &ProcessText) -> Option<Self> {
        let stat = Stat::parse(&text.stat)?;
        let status = String::from_utf8_lossy(&text.status);
        let numbers = |key: &str| -> Option<BTreeSet<u32>> {
            field(&status, key)?.split_ascii_whitespace().map(|word| word.parse().ok()).collect()
        };
        let capabilities = |key: &str| field(&status, key).and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let mut gids = numbers("Gid").unwrap_or_default();
        gids.extend(numbers("Groups").unwrap_or_default());
        Some(Self {
            id: ProcessId { pid: text.pid, start: stat.start },
            parent: stat.parent,
            session: stat.session,
            uids: numbers("Uid").unwrap_or_default(),
            gids,
            // Unread means able: a doubt keeps it among the candidates.
            capabilities: match (capabilities("CapPrm"), capabilities("CapEff")) {
                (Some(permitted), Some(effective)) => permitted | effective,
                _ => u64::MAX,
            },
            cgroup: cgroup(&text.cgroup),
            exe: String::from_utf8_lossy(&text.exe).into_owned(),
            name: stat.name,
            kernel: stat.flags & KERNEL_THREAD != 0,
            zombie: matches!(stat.state, b'Z' | b'X' | b'x'),
            mount_namespace: namespace(&text.mount_namespace),
        })
    }

    /// For people: number, name and program, without control characters.
    pub fn describe(&self) -> String {
        let program = if self.exe.is_empty() { String::new() } else { format!(", {}", printable(&self.exe)) };
        format!("process {} ({}{program})", self.id.pid, printable(&self.name))
    }
}

/// The fields of `/proc/PID/stat` that we use. The name stands in parentheses and may hold any byte, parentheses and
/// newlines too, so the fields are counted from the *last* closing one. See proc_pid_stat(5).
struct Stat {
    name: String,
    state: u8,
    parent: i32,
    session: i32,
    flags: u64,
    start: u64,
}

impl Stat {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let open = bytes.iter().position(|byte| *byte == b'(')?;
        let close = bytes.iter().rposition(|byte| *byte == b')').filter(|close| *close > open)?;
        let rest = std::str::from_utf8(&bytes[close + 1..]).ok()?;
        // Field 3 (state) is the first of these.
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        Some(Self {
            name: String::from_utf8_lossy(&bytes[open + 1..close]).into_owned(),
            state: *fields.first()?.as_bytes().first()?,
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            flags: fields.get(6)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }
}

/// The value of a line `Key:\tvalue`. The kernel escapes newlines in `Name:`, so no process can forge a line.
fn field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

/// The line `0::/path` of cgroup v2. The kernel adds ` (deleted)` for a zombie whose cgroup is gone.
fn cgroup(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    path.strip_suffix(" (deleted)").unwrap_or(path).to_owned()
}

/// The number of a namespace, from `mnt:[4026531841]`; 0 where it is not known.
pub(crate) fn namespace(target: &[u8]) -> u64 {
    let text = std::str::from_utf8(target).ok();
    text.and_then(|text| text.strip_prefix("mnt:[")?.strip_suffix(']')?.parse().ok()).unwrap_or(0)
}

/// Text of a foreign process as it may be shown and logged: printable characters only, and not too many.
pub fn printable(text: &str) -> String {
    let mut out = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == PRINTABLE_CHARS_MAX {
            out.push('…');
            break;
        }
        // Format characters reorder or hide what follows in a terminal, as control characters do.
        let hides = matches!(character, '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
            | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffd}' | '\u{e0000}'..='\u{e007f}');
        out.push(if character.is_control() || hides { '?' } else { character });
    }
    out
}

/// All processes that we can see, at one look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// When it was taken, on the boot clock.
    pub taken: Millis,
    /// Clock ticks a second, of [`ProcessId::start`].
    pub ticks: u64,
    /// Each living process by its number. Zombies are left out: they have nothing any more.
    pub processes: BTreeMap<i32, Process>,
    /// The listing settled: nobody was born in it unseen. Nothing ends by an incomplete table.
    pub complete: bool,
    /// What is known of the cgroups of units and containers, by their path.
    pub cgroups: BTreeMap<String, CgroupLife>,
    /// For each foreign mount namespace, the devices that are mounted in it. `None`: not looked at, or not readable.
    pub mounts: BTreeMap<u64, Option<BTreeSet<u64>>>,
    /// Of processes whose start time says less: the last complete look at which they were not there. A start time is
    /// rounded down to a tick, in which there may have been a flip and a look after it.
    pub not_before: BTreeMap<ProcessId, Millis>,
}

/// One life of a cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupLife {
    /// Its id, never reused within a boot; 0 where unknown.
    pub id: u64,
    /// The invocation that systemd wrote on it.
    pub invocation: Option<String>,
}

impl Table {
    /// Whether this very process is alive.
    pub fn is_alive(&self, id: ProcessId) -> bool {
        self.processes.get(&id.pid).is_some_and(|process| process.id == id)
    }

    /// This very process, if it is alive.
    pub fn get(&self, id: ProcessId) -> Option<&Process> {
        self.processes.get(&id.pid).filter(|process| process.id == id)
    }

    /// The latest moment, on the boot clock, at which a process with this start can have begun, plus one tick.
    /// Start times are rounded down.
    pub fn began_before(&self, id: ProcessId) -> Millis {
        self.began_by_start(id).plus(Millis(1000 / self.ticks.max(1)))
    }

    /// The earliest moment at which it can have begun.
    pub fn began(&self, id: ProcessId) -> Millis {
        let by_start = self.began_by_start(id);
        self.not_before.get(&id).map_or(by_start, |look| by_start.max(*look))
    }

    /// The same by its start time alone.
    pub(crate) fn began_by_start(&self, id: ProcessId) -> Millis {
        Millis(id.start.saturating_mul(1000) / self.ticks.max(1))
    }

    /// Whether a process can reach a file system. In doubt it can.
    pub fn reaches(&self, process: &Process, device: u64) -> bool {
        match self.mounts.get(&process.mount_namespace) {
            Some(Some(devices)) => devices.contains(&device),
            _ => true,
        }
    }

    /// Whether a process may descend from one of these although its parent is another: what was in between has
    /// exited, and it was given a new parent, in another session. Its own session may still show where it comes from:
    /// by one of these in it, or by nobody, when its leader has gone too. A process that leads a session itself shows
    /// nothing; its new parent may as well have started it.
    pub(crate) fn may_descend(&self, process: &Process, sessions: &BTreeSet<i32>) -> bool {
        let given_away = process.session != process.id.pid
            && self.processes.get(&process.parent).is_none_or(|parent| parent.session != process.session);
        given_away && (sessions.contains(&process.session) || !self.processes.contains_key(&process.session))
    }

    /// The sessions that these are in.
    pub(crate) fn sessions_of<'a>(&self, ids: impl IntoIterator<Item = &'a ProcessId>) -> BTreeSet<i32> {
        ids.into_iter().filter_map(|id| self.get(*id)).map(|process| process.session).collect()
    }

    /// All of `roots` that live, with those of their descendants that `counts` accepts.
    pub(crate) fn with_descendants(
        &self,
        roots: impl IntoIterator<Item = ProcessId>,
        counts: impl Fn(&Process) -> bool,
    ) -> BTreeSet<ProcessId> {
        let mut children: BTreeMap<i32, Vec<&Process>> = BTreeMap::new();
        for process in self.processes.values().filter(|process| counts(process)) {
            children.entry(process.parent).or_default().push(process);
        }
        let mut found: BTreeSet<ProcessId> = roots.into_iter().filter(|id| self.is_alive(*id)).collect();
        let mut open: Vec<ProcessId> = found.iter().copied().collect();
        while let Some(parent) = open.pop() {
            for child in children.get(&parent.pid).into_iter().flatten() {
                if found.insert(child.id) {
                    open.push(child.id);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(stat: &[u8], status: &str, cgroup: &str) -> ProcessText {
        ProcessText {
            pid: 41,
            stat: stat.to_vec(),
            status: status.as_bytes().to_vec(),
            cgroup: cgroup.as_bytes().to_vec(),
            exe: b"/usr/bin/\x1b[31mcat".to_vec(),
            mount_namespace: b"mnt:[4026531841]".to_vec(),
        }
    }

    const AFTER_NAME: &str = "S 17 41 40 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 8891 0 0";

    #[test]
    fn a_name_with_newlines_parentheses_and_fields_forges_nothing() {
        let stat = format!("41 (x) S 1 1 1\n0 (\x1b[2J) {AFTER_NAME}");
        let process = Process::parse(&text(stat.as_bytes(), "", "")).unwrap();
        assert_eq!((process.parent, process.session, process.id.start), (17, 40, 8891));
        assert_eq!(process.mount_namespace, 4_026_531_841);
        assert!(!process.describe().chars().any(char::is_control));
    }

    #[test]
    fn users_groups_and_capabilities_are_read_and_doubt_means_able() {
        let stat = format!("41 (cat) {AFTER_NAME}");
        let status =
            "Name:\tcat\nUid:\t1\t2\t3\t4\nGid:\t5\t5\t5\t5\nGroups:\t7 8 \nCapPrm:\t01\nCapEff:\t02\n";
        let process =
            Process::parse(&text(stat.as_bytes(), status, "9:x:/a\n0::/system.slice/a.service\n")).unwrap();
        assert_eq!(process.uids, BTreeSet::from([1, 2, 3, 4]));
        assert_eq!(process.gids, BTreeSet::from([5, 7, 8]));
        assert_eq!(process.capabilities, 3);
        assert_eq!(process.cgroup, "/system.slice/a.service");
        let unread = Process::parse(&text(stat.as_bytes(), "", "0::/a (deleted)\n")).unwrap();
        assert_eq!(unread.capabilities, u64::MAX);
        assert_eq!(unread.cgroup, "/a");
    }

    #[test]
    fn what_hides_or_reorders_text_is_not_shown() {
        assert_eq!(printable("a\nb\u{1b}[31m\u{202e}c\u{200b}"), "a?b?[31m?c?");
        assert!(printable(&"x".repeat(1000)).chars().count() <= PRINTABLE_CHARS_MAX + 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(
            stat in proptest::collection::vec(any::<u8>(), 0..120),
            status in proptest::collection::vec(any::<u8>(), 0..120),
        ) {
            let text = ProcessText { pid: 1, stat, status, ..ProcessText::default() };
            if let Some(process) = Process::parse(&text) {
                prop_assert!(!process.describe().chars().any(char::is_control));
            }
        }
    }
}
