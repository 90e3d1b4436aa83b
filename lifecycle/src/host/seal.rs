//! The end of a version on this host.

use std::collections::BTreeSet;

use super::state::{Files, Sealing};
use super::{HostEffect, Machine};
use crate::id::{GapId, HolderId, Version};

impl Machine {
    /// For ever, in every epoch. The version is no rollback candidate from this step on.
    pub(super) fn seal(
        &mut self,
        version: Version,
        cleared: &BTreeSet<HolderId>,
        cleared_gaps: &BTreeSet<GapId>,
        withdraw: bool,
    ) {
        self.bury(&BTreeSet::from([version]));
        if self.state.gone.contains(version) {
            return;
        }
        let is_known = self.state.known.contains_key(&version) || self.state.strays.contains(&version);
        if !is_known && self.state.current() != Some(version) {
            // It never was here.
            self.state.gone.insert(version);
            return;
        }
        let sealing = self.state.sealing.entry(version).or_insert_with(|| Sealing {
            cleared: BTreeSet::new(),
            cleared_gaps: BTreeSet::new(),
            withdraw: false,
            reason: "under way".to_owned(),
        });
        sealing.cleared.extend(cleared.iter().cloned());
        sealing.cleared_gaps.extend(cleared_gaps.iter().cloned());
        sealing.withdraw |= withdraw;
        self.try_seal(version);
    }

    pub(super) fn retry_seals(&mut self) {
        let versions: Vec<Version> = self.state.sealing.keys().copied().collect();
        for version in versions {
            self.try_seal(version);
        }
    }

    fn try_seal(&mut self, version: Version) {
        let current = self.state.turn.is_some_and(|turn| turn.version == version);
        let coming = self.state.flipping.is_some_and(|turn| turn.version == version);
        let Some(sealing) = self.state.sealing.get_mut(&version) else { return };
        if coming || (current && !sealing.withdraw) {
            "it is the current version".clone_into(&mut sealing.reason);
            return;
        }
        let effect = HostEffect::Seal {
            version,
            cleared: sealing.cleared.clone(),
            cleared_gaps: sealing.cleared_gaps.clone(),
            withdraw: sealing.withdraw,
        };
        if !self.effects.contains(&effect) {
            self.effects.push(effect);
        }
    }

    /// What was dropped is unlinked, also where that failed before.
    pub(super) fn retry_unlinks(&mut self) {
        let versions = self.state.known.keys().filter(|version| self.state.is_to_be_unlinked(**version));
        let effects: Vec<HostEffect> =
            versions.map(|version| HostEffect::Unlink { version: *version }).collect();
        self.effects.extend(effects);
    }

    pub(super) fn unlinked(&mut self, version: Version) {
        if let Some(known) = self.state.known.get_mut(&version) {
            known.files = Files::Unlinked;
        }
    }

    pub(super) fn gone(&mut self, version: Version) {
        let Some(sealing) = self.state.sealing.get(&version) else { return };
        if self.state.current() == Some(version) {
            if !sealing.withdraw {
                return;
            }
            self.withdrawn();
        }
        self.state.sealing.remove(&version);
        self.state.known.remove(&version);
        self.state.strays.remove(&version);
        self.state.refuses.remove(&version);
        self.state.healthy.retain(|other| *other != version);
        self.state.gone.insert(version);
    }

    pub(super) fn not_gone(&mut self, version: Version, reason: String) {
        if let Some(sealing) = self.state.sealing.get_mut(&version) {
            sealing.reason = reason;
        }
    }
}
