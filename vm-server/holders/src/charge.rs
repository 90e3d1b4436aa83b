//! To whom a reading is charged.

use std::collections::BTreeSet;

use lifecycle::HolderId;

use crate::belongs::Belongs;
use crate::life::LifeState;
use crate::process::Process;
use crate::scene::Scene;

/// To whom a reading is charged.
pub(crate) enum Charged {
    Lives(Vec<(HolderId, LifeState)>),
    Nobody,
    Unknown(String),
}

/// To whom the reading of a file with these names is charged. `lineage` is the reader, then its ancestors.
pub(crate) fn charge(lineage: &[Process], names: &[&str], scene: &Scene<'_>) -> Charged {
    let Some(reader) = lineage.first() else {
        return Charged::Unknown("a reader could not be read".into());
    };
    if reader.kernel || scene.is_ours(reader) || scene.is_exempt(reader) {
        return Charged::Nobody;
    }
    let belongs = Belongs::of(&reader.cgroup);
    if reader.id.pid == 1 && scene.consumer_of(lineage).is_none() {
        let units: BTreeSet<&String> =
            names.iter().filter_map(|name| scene.rules.pid_1_reads_for.get(*name)).flatten().collect();
        if units.is_empty() {
            return Charged::Unknown("PID 1 read it for a unit that is not known".into());
        }
        return Charged::Lives(units.into_iter().map(|unit| LifeState::of_unit(unit, scene)).collect());
    }
    let life = match belongs {
        Belongs::Init | Belongs::Nothing => {
            // Who stands above PID 1, us or somebody who does not count has nothing from this reading.
            let ends = lineage[1..].iter().position(|ancestor| scene.never_holds(ancestor));
            LifeState::of_tree(&lineage[..ends.map_or(lineage.len(), |at| at + 1)], scene)
        }
        _ => LifeState::of_cgroup(&belongs, scene),
    };
    life.map_or_else(
        || Charged::Unknown("a reader could not be placed".into()),
        |life| Charged::Lives(vec![life]),
    )
}
