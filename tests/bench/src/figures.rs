//! What is measured.

pub mod apply;
pub mod pair;
pub mod push;
pub mod revoke;
pub mod rollout;
pub mod size;
pub mod skew;
pub mod step;

use crate::figure::Figure;

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Only enough to see that everything works.
    pub smoke: bool,
}

impl Scale {
    /// So many, or only a few.
    pub const fn of(self, many: usize, few: usize) -> usize {
        if self.smoke { few } else { many }
    }
}

/// A measurement that gives one figure or several that belong together.
pub struct Measurement {
    /// What `--only` calls it.
    pub name: &'static str,
    /// Does it.
    pub run: fn(Scale) -> anyhow::Result<Vec<Figure>>,
}

/// All of them, in the order in which they are shown.
pub const ALL: &[Measurement] = &[
    Measurement { name: "apply", run: apply::measure },
    Measurement { name: "push-open", run: push::measure_open },
    Measurement { name: "push-new", run: push::measure_new },
    Measurement { name: "rollout-200", run: rollout::measure_200 },
    Measurement { name: "rollout-1000", run: rollout::measure_1000 },
    Measurement { name: "skew", run: skew::measure },
    Measurement { name: "step", run: step::measure },
    Measurement { name: "revoke", run: revoke::measure },
    Measurement { name: "memory", run: size::measure_memory },
    Measurement { name: "binaries", run: size::measure_binaries },
    Measurement { name: "idle", run: size::measure_idle },
];
