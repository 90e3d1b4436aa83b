//! What is known at one look, and who is who by it.

use std::collections::BTreeMap;

use lifecycle::Millis;

use crate::belongs::Belongs;
use crate::process::{Process, Table};
use crate::rules::{ConsumerRule, Exempt, Rules};

/// What the caller knows at one look.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// All processes.
    pub table: &'a Table,
    /// Who is who.
    pub rules: &'a Rules,
    /// What systemd says of units, by name. A unit that is missing here is known by its cgroup only.
    pub units: &'a BTreeMap<String, UnitLife>,
}

/// What systemd says of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitLife {
    /// Its invocation, in hex; `None` while it is inactive.
    pub invocation: Option<String>,
    /// When the invocation before this one had ended (`InactiveEnterTimestampMonotonic`), on the boot clock, 0 when
    /// there was none. Not when this one began: systemd notes that after it has forked. Without it processes that
    /// outlive a restart cannot be told from new ones, and the old version is kept.
    pub earlier_ended: Option<Millis>,
    /// It is starting, stopping or reloading: between two of its programs nobody may be there, and what one has read
    /// the next may have.
    pub changing: bool,
}

impl Scene<'_> {
    /// A process that never counts: the kernel's, PID 1, ours, and what policy says is no consumer.
    pub(crate) fn never_holds(&self, process: &Process) -> bool {
        process.kernel || process.id.pid == 1 || self.is_ours(process) || self.is_exempt(process)
    }

    pub(crate) fn is_ours(&self, process: &Process) -> bool {
        self.rules.ours.contains(&process.id)
    }

    pub(crate) fn is_exempt(&self, process: &Process) -> bool {
        self.rules.exempt.iter().any(|exempt| self.matches(exempt, process))
    }

    fn matches(&self, exempt: &Exempt, process: &Process) -> bool {
        let unit = exempt.unit.as_ref().is_none_or(|unit| is_in_unit(process, unit));
        let exe = exempt.exe.as_ref().is_none_or(|exe| self.rules.runs(process, exe));
        let uid = exempt.uid.is_none_or(|uid| process.uids.iter().all(|of_process| *of_process == uid));
        (exempt.unit.is_some() || exempt.exe.is_some()) && unit && exe && uid
    }

    /// Whether a process is this consumer, by unit, or by program and user.
    pub(crate) fn is_of(&self, rule: &ConsumerRule, process: &Process) -> bool {
        self.rules.is_of(rule, process)
    }

    /// The consumer that a process, or the nearest of its ancestors that is one, belongs to.
    pub(crate) fn consumer_of(&self, lineage: &[Process]) -> Option<&ConsumerRule> {
        self.named_by_pid_file(lineage).or_else(|| {
            lineage
                .iter()
                .find_map(|process| self.rules.consumers.iter().find(|rule| self.is_of(rule, process)))
        })
    }

    /// The same, by what pid files say: several consumers may run one program.
    pub(crate) fn named_by_pid_file(&self, lineage: &[Process]) -> Option<&ConsumerRule> {
        lineage.iter().find_map(|process| {
            self.rules.consumers.iter().find(|rule| {
                self.rules.main_pids.get(&rule.name) == Some(&process.id.pid) && self.is_of(rule, process)
            })
        })
    }

    /// A process and its ancestors, as far as they are in the table.
    pub(crate) fn lineage(&self, process: &Process) -> Vec<Process> {
        let mut lineage = vec![process.clone()];
        while let Some(parent) = lineage.last().and_then(|last| self.table.processes.get(&last.parent)) {
            if lineage.iter().any(|known| known.id == parent.id) {
                break;
            }
            lineage.push(parent.clone());
        }
        lineage
    }
}

impl Rules {
    /// Whether a process is one of the consumers, whose word would count.
    pub fn name_somebody(&self, process: &Process) -> bool {
        self.consumers.iter().any(|rule| self.is_of(rule, process))
    }

    fn is_of(&self, rule: &ConsumerRule, process: &Process) -> bool {
        match (&rule.unit, &rule.exe) {
            (Some(unit), _) => is_in_unit(process, unit),
            (None, Some(exe)) => {
                self.runs(process, exe) && rule.uid.is_none_or(|uid| process.uids.contains(&uid))
            }
            (None, None) => false,
        }
    }

    /// Whether a process runs this program. In another mount namespace a path says nothing.
    fn runs(&self, process: &Process, exe: &str) -> bool {
        let ours = self.mount_namespace;
        process.exe == exe && process.mount_namespace != 0 && process.mount_namespace == ours
    }
}

impl ConsumerRule {
    pub(crate) fn is_unit(&self, unit: &str) -> bool {
        self.unit.as_deref() == Some(unit)
    }
}

pub(crate) fn is_in_unit(process: &Process, unit: &str) -> bool {
    matches!(Belongs::of(&process.cgroup), Belongs::Unit { name, .. } if name == unit)
}
