//! What is told of each delivery: that a target adopted a version, and that it is gone there. Once for each.

use std::collections::BTreeSet;

use lifecycle::credential::Event;
use lifecycle::credential::view::Delivery;
use lifecycle::{CredentialName, SetReport, TargetId, Version};

use crate::audit::entry;
use crate::run::{Batch, Turn};
use crate::world::{Owned, World};

impl World {
    /// Gives the core a report, and tells what is news in it.
    pub(crate) fn reported(
        &mut self,
        turn: &mut Turn,
        batch: &mut Batch,
        name: &CredentialName,
        target: &TargetId,
        report: SetReport,
    ) {
        let before = self.owned.get(name).map(|owned| owned.delivered(target)).unwrap_or_default();
        self.apply_or_log(turn, batch, name, Event::Reported { target: target.clone(), report });
        let called = self.target_name(target);
        let Some(owned) = self.owned.get_mut(name) else { return };
        let now = owned.delivered(target);
        let adopted = now.adopted.filter(|_| now.adopted != before.adopted);
        // A host that contradicts itself could say it without end.
        let adopted = adopted.filter(|version| owned.told_adopted.insert((target.clone(), *version)));
        owned.told_adopted.retain(|(_, version)| owned.kept.state.phase(*version).is_some());
        let adopted = adopted.map(|version| ("adopted", version));
        let gone = now.gone.difference(&before.gone).map(|version| ("gone", *version));
        for (word, version) in adopted.into_iter().chain(gone) {
            let detail = format!("version {version} on {called}");
            batch.audit.push(entry(&actor(target), word, &format!("credential/{name}"), &detail));
        }
    }
}

/// Who says so: a host by itself, a store by what we read there.
fn actor(target: &TargetId) -> String {
    match protocol::HostId::try_from(target) {
        Ok(host) => format!("host:{host}"),
        Err(_) => crate::audit::ENGINE.to_owned(),
    }
}

/// How far a target has come.
#[derive(Default)]
struct Delivered {
    adopted: Option<Version>,
    gone: BTreeSet<Version>,
}

impl Owned {
    fn delivered(&self, target: &TargetId) -> Delivered {
        let state = &self.kept.state;
        let versions = state.versions().map(|view| view.version);
        Delivered {
            adopted: state.report(target).and_then(|report| report.adopted),
            gone: versions
                .filter(|version| state.delivery(target, *version) == Some(Delivery::Sealed))
                .collect(),
        }
    }
}
