//! Which version a target means by a number.
//!
//! A store that fell back behind our back gives out numbers that it gave out before. Whoever has the earlier version of
//! such a number knows it by the effect that minted it, so what it says is read in our numbers and what it is told is
//! written in its own. It can never hold both: it refuses another content under a number that it knows, for ever.

use std::collections::{BTreeMap, BTreeSet};

use super::Credential;
use super::state::{Kept, Target};
use super::step::Turn;
use crate::id::{EffectId, TargetId, Version};
use crate::order::{Order, OrderKind};
use crate::report::SetReport;

/// No number that a target names may leave too little room for ours.
pub(crate) const NUMBER_MAX: u32 = u32::MAX / 2;

impl Credential {
    /// Learns what the target means by its numbers, and says its report in ours.
    pub(super) fn in_our_numbers(&mut self, id: &TargetId, report: SetReport, turn: &mut Turn) -> SetReport {
        let named: BTreeMap<Version, EffectId> =
            report.known.iter().chain(&report.present).map(|(version, effect)| (*version, *effect)).collect();
        for (theirs, effect) in named {
            let present = report.present.contains_key(&theirs);
            let ours = match self.version_of(effect) {
                Some(known) if known == theirs => known,
                Some(known) if present && self.rename_found(known, theirs) => theirs,
                Some(known) => known,
                None if present || self.versions.contains_key(&theirs) => self.find(id, theirs, effect, turn),
                None => continue,
            };
            if present && let Some(kept) = self.versions.get_mut(&ours) {
                // A target that has it proves that the backend made it, and what was swept is in use.
                kept.minted = true;
                if kept.swept_of.take().is_some() {
                    kept.aborted = None;
                }
            }
            if let Some(target) = self.targets.get_mut(id).filter(|_| ours != theirs) {
                target.learn_number(theirs, ours);
            }
        }
        match self.targets.get(id) {
            Some(target) if !target.numbers.is_empty() => target.read(report),
            _ => report,
        }
    }

    /// A version that no record names: under the number by which the target calls it, where that is free.
    fn find(&mut self, id: &TargetId, theirs: Version, effect: EffectId, turn: &mut Turn) -> Version {
        let free = theirs.number <= NUMBER_MAX && !self.versions.contains_key(&theirs);
        let ours = if free { theirs } else { self.next_version() };
        turn.audit(format!("{id} has a version {theirs} that no record names: kept as {ours}"));
        self.versions.insert(ours, Kept::found(effect, turn.now));
        ours
    }

    /// What the sweep found has a number after all, and is in use.
    fn rename_found(&mut self, known: Version, named: Version) -> bool {
        let found = self.versions.get(&known).is_some_and(|kept| kept.swept_of.is_some());
        if !found || named.number > NUMBER_MAX || self.versions.contains_key(&named) {
            return false;
        }
        if let Some(kept) = self.versions.remove(&known) {
            self.versions.insert(named, kept);
        }
        true
    }

    /// Above every number of ours in this epoch, and above every one that a target names, unless that is absurd.
    pub(super) fn next_version(&self) -> Version {
        let epoch = self.epoch.counter;
        let reports = self.targets.values().filter_map(|t| t.report.as_ref());
        let named = reports.flat_map(|r| {
            let gone = r.gone.ranges().map(|(_, last)| last);
            r.present.keys().chain(r.known.keys()).copied().chain(gone)
        });
        let newest = named
            .filter(|v| v.number <= NUMBER_MAX)
            .chain(self.versions.keys().copied())
            .chain(self.active)
            .filter(|v| v.epoch == epoch)
            .map(|v| v.number)
            .max();
        Version::new(epoch, newest.map_or(1, |number| number.saturating_add(1).max(1)))
    }

    /// The dead versions that a target is to be told of, in its own numbers.
    pub fn dead_on(&self, target: &TargetId) -> BTreeSet<Version> {
        let dead = self.versions.iter().filter(|(_, kept)| kept.phase.is_dead()).map(|(version, _)| *version);
        match self.targets.get(target) {
            Some(target) => {
                let dead = dead.filter(|version| !target.numbers.contains_key(version));
                dead.map(|version| target.write_version(version)).collect()
            }
            None => dead.collect(),
        }
    }
}

impl Target {
    /// Whether the number of this version means another one there, so that the target can never have it.
    pub(super) fn means_another_by(&self, version: Version) -> bool {
        self.numbers.contains_key(&version)
    }

    fn learn_number(&mut self, theirs: Version, ours: Version) {
        if self.numbers.insert(theirs, ours) == Some(ours) {
            return;
        }
        // What was ever ordered for the number was ordered for what it means there.
        if self.sent.contains(&theirs) {
            self.sent.insert(ours);
        }
        if let Some(generation) = self.flips.remove(&theirs) {
            self.flips.insert(ours, generation);
        }
        self.gone.insert(theirs);
    }

    fn read_version(&self, theirs: Version) -> Version {
        self.numbers.get(&theirs).copied().unwrap_or(theirs)
    }

    fn write_version(&self, ours: Version) -> Version {
        self.numbers.iter().find(|(_, known)| **known == ours).map_or(ours, |(theirs, _)| *theirs)
    }

    /// The report in our numbers.
    fn read(&self, mut report: SetReport) -> SetReport {
        let one = |version: Version| self.read_version(version);
        let some = |version: Option<Version>| version.map(one);
        let set =
            |versions: BTreeSet<Version>| -> BTreeSet<Version> { versions.into_iter().map(one).collect() };
        report.present = report.present.into_iter().map(|(version, effect)| (one(version), effect)).collect();
        report.known = report.known.into_iter().map(|(version, effect)| (one(version), effect)).collect();
        report.not_gone = report.not_gone.into_iter().map(|(version, why)| (one(version), why)).collect();
        report.armed = some(report.armed);
        report.current = some(report.current);
        report.permitted = some(report.permitted);
        report.adopted = some(report.adopted);
        report.may_flip = set(report.may_flip);
        report.may_return_to = set(report.may_return_to);
        let renamed: Vec<Version> = self.numbers.keys().copied().filter(|v| report.gone.remove(*v)).collect();
        report.gone.extend(renamed.into_iter().map(one));
        for consumer in report.consumers.values_mut() {
            consumer.healthy_on = some(consumer.healthy_on);
        }
        if let Some(rolled_back) = &mut report.rolled_back {
            rolled_back.from = one(rolled_back.from);
            rolled_back.to = some(rolled_back.to);
        }
        if let Some(refused) = &mut report.refused {
            refused.version = one(refused.version);
        }
        for holder in &mut report.holders {
            holder.version = one(holder.version);
        }
        for gap in &mut report.gaps {
            gap.versions = set(std::mem::take(&mut gap.versions));
        }
        for place in &mut report.places {
            place.versions = set(std::mem::take(&mut place.versions));
        }
        if let Some(flipped) = &mut report.flipped {
            flipped.version = one(flipped.version);
        }
        report
    }

    /// The order in the target's numbers. What it can never have is gone there and so named by no order.
    pub(super) fn write(&self, mut order: Order) -> Order {
        if self.numbers.is_empty() {
            return order;
        }
        let version = match &mut order.kind {
            OrderKind::Stage { version, .. }
            | OrderKind::Arm { version, .. }
            | OrderKind::Activate { version, .. }
            | OrderKind::Adopt { version }
            | OrderKind::Disarm { version }
            | OrderKind::Seal { version, .. }
            | OrderKind::Discard { version } => version,
            OrderKind::RollBack { to } => to,
        };
        *version = self.write_version(*version);
        order.dead = order.dead.into_iter().map(|version| self.write_version(version)).collect();
        order
    }
}
