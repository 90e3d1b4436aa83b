//! What the host's policy says that matters here.

use std::collections::{BTreeMap, BTreeSet};

use host_policy::{Adopt, Life, Principal, SetPolicy};
use lifecycle::ConsumerName;
use serde::{Deserialize, Serialize};

use crate::process::ProcessId;

/// Who is who, for one set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Those who read the set and must take up each version.
    pub consumers: Vec<ConsumerRule>,
    /// Readers that do not count.
    pub exempt: Vec<Exempt>,
    /// For each file's name or place, the units whose `EnvironmentFile=` or `LoadCredential=` name it: PID 1 reads
    /// it for them.
    pub pid_1_reads_for: BTreeMap<String, BTreeSet<String>>,
    /// The process that each consumer's pid file names now, where that is known: tells consumers apart that run the
    /// same program.
    pub main_pids: BTreeMap<ConsumerName, i32>,
    /// Our own processes, while they live: a number alone may be somebody else's by now.
    pub ours: BTreeSet<ProcessId>,
    /// The mount namespace of PID 1; 0 where unknown. A program's path says something only within it. We may be in
    /// another one ourselves.
    pub mount_namespace: u64,
}

/// A consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerRule {
    /// As policy names it.
    pub name: ConsumerName,
    /// The unit, where it is one.
    pub unit: Option<String>,
    /// The program, where it is none.
    pub exe: Option<String>,
    /// The user, where policy names one and it is no unit.
    pub uid: Option<u32>,
    /// What ends its hold on an old version before its life ends.
    pub release: Release,
}

/// What ends a hold before the end of a life. Recorded with each holder, since one stays under the policy it was
/// recorded with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// That the processes older than the adoption were seen reading the new version.
    pub by_opening: bool,
    /// The application's own word.
    pub by_word: bool,
}

/// A reader that does not count: a backup, a virus scanner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exempt {
    /// Processes of this unit.
    pub unit: Option<String>,
    /// Processes that run this program, in the mount namespace of PID 1.
    pub exe: Option<String>,
    /// Only those of this user.
    pub uid: Option<u32>,
}

impl Rules {
    /// As policy says. Users that this machine does not know match nobody. `ours` are our own processes.
    pub fn of(policy: &SetPolicy, ours: BTreeSet<ProcessId>) -> Self {
        let consumers = policy.consumers.iter().map(|consumer| {
            let (unit, exe, uid) = match &consumer.life {
                Life::Unit(unit) => (Some(unit.as_str().to_owned()), None, None),
                Life::PidFile(life) => {
                    (None, life.exe.to_str().map(str::to_owned), life.user.as_ref().map(uid_of))
                }
            };
            ConsumerRule {
                name: consumer.name.clone(),
                unit,
                exe,
                uid,
                release: Release {
                    by_opening: matches!(consumer.adopt, Adopt::Reload | Adopt::Reopen | Adopt::Signal(_)),
                    by_word: consumer.trust_reported,
                },
            }
        });
        let exempt = policy.not_a_consumer.iter().map(|exempt| Exempt {
            unit: exempt.unit.as_ref().map(|unit| unit.as_str().to_owned()),
            exe: exempt.exe.as_ref().and_then(|exe| exe.to_str()).map(str::to_owned),
            uid: exempt.user.as_ref().map(uid_of),
        });
        Self {
            consumers: consumers.collect(),
            exempt: exempt.collect(),
            pid_1_reads_for: BTreeMap::new(),
            main_pids: BTreeMap::new(),
            ours,
            mount_namespace: crate::scan::mount_namespace_of_pid_1(),
        }
    }

    pub(crate) fn consumer(&self, name: &ConsumerName) -> Option<&ConsumerRule> {
        self.consumers.iter().find(|consumer| consumer.name == *name)
    }
}

/// The number of a user; one that nobody has when the name is unknown here.
fn uid_of(principal: &Principal) -> u32 {
    match principal {
        Principal::Id(id) => *id,
        Principal::Name(name) => {
            nix::unistd::User::from_name(name).ok().flatten().map_or(u32::MAX, |user| user.uid.as_raw())
        }
    }
}
