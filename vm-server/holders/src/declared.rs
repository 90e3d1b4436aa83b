//! The life that a consumer is in which policy names, where the kernel shows no readings.

use lifecycle::{HolderId, Millis};

use crate::belongs::Belongs;
use crate::life::LifeState;
use crate::process::{Process, ProcessId};
use crate::scene::Scene;

/// The present life of a consumer that policy names, where evidence is `declared`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsumerLife {
    /// This process, proven by pid file, program and user, and what it starts.
    Process(ProcessId),
    /// A unit in one invocation.
    Unit {
        /// Its name.
        name: String,
        /// Its main process, where it has one.
        main: Option<ProcessId>,
        /// The invocation, in hex.
        invocation: String,
        /// When it began, on the boot clock.
        began: Millis,
    },
    /// It does not run.
    NotRunning,
    /// It cannot be told, for this reason.
    Unknown(String),
}

/// When a life began at the earliest.
pub(crate) struct Began {
    /// By the kernel's start times and systemd's word.
    pub(crate) by_start: Millis,
    /// By what our looks have shown as well.
    pub(crate) by_looks: Millis,
}

/// The life that a declared consumer is in, its name, and when it began at the earliest.
pub(crate) fn declared_life(life: &ConsumerLife, scene: &Scene<'_>) -> Option<(HolderId, LifeState, Began)> {
    let table = scene.table;
    match life {
        ConsumerLife::Process(id) => {
            let (name, state) = LifeState::of_process(table.get(*id)?, table);
            let began = Began { by_start: table.began_by_start(*id), by_looks: table.began(*id) };
            Some((name, state, began))
        }
        ConsumerLife::Unit { name, main, invocation, began } => {
            let main = main.and_then(|id| table.get(id));
            let (_, mut state) = match main.map(|process| (process, Belongs::of(&process.cgroup))) {
                Some((process, belongs)) => LifeState::of_cgroup(&belongs, scene)
                    .unwrap_or_else(|| LifeState::of_process(process, table)),
                None => LifeState::of_unit(name, scene),
            };
            if let Some(main) = main {
                state.remember(main.id);
            }
            let id = crate::life::holder_id("unit", &format!("{name}:{invocation}"));
            Some((id, state, Began { by_start: *began, by_looks: *began }))
        }
        ConsumerLife::NotRunning | ConsumerLife::Unknown(_) => None,
    }
}

pub(crate) fn life_of_peer(peer: &Process, scene: &Scene<'_>) -> (HolderId, LifeState) {
    let by_cgroup = LifeState::of_cgroup(&Belongs::of(&peer.cgroup), scene);
    by_cgroup.unwrap_or_else(|| LifeState::of_process(peer, scene.table))
}
