//! One life of a consumer, and how it is doing.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Names one life of a consumer on this boot. Journaled before a restart, so that a crash restarts nothing twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LifeId {
    /// A unit's invocation: 32 hex digits.
    Invocation(String),
    /// A process by its id and its start time in clock ticks since boot.
    Process {
        /// The process id.
        pid: i32,
        /// Field 22 of `/proc/PID/stat`.
        start: u64,
    },
}

impl fmt::Display for LifeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invocation(id) => f.write_str(id),
            Self::Process { pid, start } => write!(f, "{pid}:{start}"),
        }
    }
}

/// How a consumer looks at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Its present life; none while it does not run.
    pub life: Option<LifeId>,
    /// How it is doing.
    pub health: Health,
    /// The process that counts, 0 when there is none.
    pub main_pid: i32,
    /// How often systemd restarted it by itself.
    pub restarts: u32,
    /// The last life, also when it has ended: a oneshot that ran to its end has one.
    pub last_life: Option<LifeId>,
    /// When the present life of a unit began, in milliseconds of the monotonic clock since boot. Of a process its
    /// start time says it.
    pub began_ms: Option<u64>,
    /// When the life of a unit before that had ended. What is younger is of the present one: its first process is
    /// forked a moment before it counts as begun.
    pub earlier_ended_ms: Option<u64>,
}

/// How a consumer is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It runs.
    Running,
    /// It starts, stops or reloads just now.
    Changing,
    /// A oneshot that ended with exit status 0.
    Finished,
    /// It does not run, and nothing is wrong with that.
    Idle,
    /// It failed; why, in words.
    Failed(String),
}
