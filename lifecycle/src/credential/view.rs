//! The state as people and programs read it.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Credential;
use super::gate::Blocker;
use super::rollout::{is_staged, takes_part};
use super::state::{Course, Stage, Stuck, Target};
use crate::id::{EffectId, Generation, Millis, TargetId, Version};
use crate::report::{ConsumerState, Evidence, Gap, Holder, PlaceFault, SetReport};

pub use super::state::Phase;

/// One version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VersionView {
    /// Which.
    pub version: Version,
    /// How far it has come.
    pub phase: Phase,
    /// Since when.
    pub since: Millis,
    /// Names its value and the backend's record of it.
    pub minted_by: EffectId,
    /// A login with it worked.
    pub verified: bool,
    /// Why it was given up.
    pub aborted: Option<String>,
    /// Who says that it must stay alive.
    pub holds: BTreeSet<String>,
    /// Somebody said that it is in foreign hands; when its holders stop counting, if ever.
    pub compromised: bool,
    /// See `compromised`.
    pub deadline: Option<Millis>,
    /// The backend's sessions when it was last asked, where it can tell.
    pub sessions: Option<u32>,
    /// Why it does not go on.
    pub stuck: Option<Stuck>,
    /// Since when no target shows a holder of it, where that is looked at and until it has ended.
    pub free_since: Option<Millis>,
}

/// How far a version has come on one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Nothing of it is there.
    Pending,
    /// The target does not answer.
    Unreachable,
    /// The target does not take it.
    Refused,
    /// It lies there, invisible.
    Staged,
    /// It will become current at an agreed instant.
    Armed,
    /// It is current.
    Activated,
    /// Every consumer took it up.
    Adopted,
    /// The target left it by itself.
    RolledBack,
    /// It is gone there for ever.
    Sealed,
}

/// One target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TargetView {
    /// Which.
    pub target: TargetId,
    /// It answers.
    pub connected: bool,
    /// Since when it does, or does not.
    pub since: Millis,
    /// Labels and selectors select it.
    pub selected: bool,
    /// An operator retired the store. Of a host nothing is left then.
    pub retired: bool,
    /// Goes first.
    pub canary: bool,
    /// What it says is not to be relied on.
    pub incomplete: bool,
    /// What readers find there.
    pub current: Option<Version>,
    /// What its consumers have taken up.
    pub adopted: Option<Version>,
    /// The newest intent that it was given.
    pub generation: Generation,
    /// The strongest evidence that it has.
    pub evidence: Evidence,
    /// Versions for which it does not count.
    pub excused: BTreeSet<Version>,
    /// How far the version that is on its way, or else the active one, has come there.
    pub delivery: Option<Delivery>,
    /// For people: why it is where it is, when it is not where it should be.
    pub note: Option<String>,
}

/// The rollout under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutView {
    /// Which version; none before it is minted.
    pub version: Option<Version>,
    /// How far it has come.
    pub stage: Stage,
    /// Since when.
    pub since: Millis,
    /// Who tries it first.
    pub canaries: BTreeSet<TargetId>,
    /// Why it is halted.
    pub halted: Option<String>,
    /// Targets that take part.
    pub targets: usize,
    /// Those of them that have it.
    pub staged: usize,
    /// Those of them where it is current.
    pub activated: usize,
    /// Those of them that took it up.
    pub adopted: usize,
    /// Those that do not answer; they catch up by themselves.
    pub missing: BTreeSet<TargetId>,
}

/// Somebody or something that may have a version, on one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HolderView {
    /// Where.
    pub target: TargetId,
    /// Who, or what.
    pub what: Held,
    /// An operator cleared it.
    pub cleared: bool,
}

/// What keeps a version on a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// A consumer in one life of it.
    Holder(Holder),
    /// A stretch without complete evidence.
    Gap(Gap),
    /// A place that could not be read back or written.
    Place(PlaceFault),
}

impl Credential {
    /// Every version that is remembered, oldest first.
    pub fn versions(&self) -> impl Iterator<Item = VersionView> {
        self.versions.iter().map(|(version, kept)| VersionView {
            version: *version,
            phase: kept.phase,
            since: kept.since,
            minted_by: kept.minted_by,
            verified: kept.verified,
            aborted: kept.aborted.clone(),
            holds: kept.holds.iter().chain(&kept.epoch_hold).cloned().collect(),
            compromised: kept.compromise.is_some(),
            deadline: kept.compromise.as_ref().and_then(|c| c.deadline),
            sessions: kept.watch.sample.and_then(|sample| sample.sessions),
            stuck: kept.stuck.clone(),
            free_since: kept.watch.free,
        })
    }

    /// One version.
    pub fn version(&self, version: Version) -> Option<VersionView> {
        self.versions().find(|view| view.version == version)
    }

    /// The phase of one version.
    pub fn phase(&self, version: Version) -> Option<Phase> {
        self.versions.get(&version).map(|kept| kept.phase)
    }

    /// The effect that minted a version; its value lies under it.
    pub fn minted_by(&self, version: Version) -> Option<EffectId> {
        self.versions.get(&version).map(|kept| kept.minted_by)
    }

    /// Every target, also those that are no longer selected but still have something.
    pub fn targets(&self) -> impl Iterator<Item = TargetView> {
        let wanted = self.rolling().or(self.active);
        self.targets.iter().map(move |(id, target)| self.target_view(id, target, wanted))
    }

    fn target_view(&self, id: &TargetId, target: &Target, wanted: Option<Version>) -> TargetView {
        let report = target.report.as_ref();
        TargetView {
            target: id.clone(),
            connected: target.connected,
            since: target.since,
            selected: target.selected,
            retired: target.retired,
            canary: target.canary,
            incomplete: target.incomplete,
            current: target.current(),
            adopted: report.and_then(|r| r.adopted),
            generation: Generation::new(self.epoch.counter, target.issued),
            evidence: report.map(|r| r.evidence).unwrap_or_default(),
            excused: target.excused.clone(),
            delivery: wanted.map(|version| delivery(target, version)),
            note: wanted.and_then(|version| other_number(target, version)).or_else(|| note(target)),
        }
    }

    /// How far a version has come on a target.
    pub fn delivery(&self, target: &TargetId, version: Version) -> Option<Delivery> {
        self.targets.get(target).map(|target| delivery(target, version))
    }

    /// The newest report of a target.
    pub fn report(&self, target: &TargetId) -> Option<&SetReport> {
        self.targets.get(target).and_then(|target| target.report.as_ref())
    }

    /// The newest report of every target that has sent one.
    pub fn reports(&self) -> impl Iterator<Item = (&TargetId, &SetReport)> {
        self.targets.iter().filter_map(|(id, target)| Some((id, target.report.as_ref()?)))
    }

    /// The rollout under way.
    pub fn rollout(&self) -> Option<RolloutView> {
        let rollout = self.rollout.as_ref()?;
        let part: Vec<_> = self.targets.iter().filter(|(_, t)| takes_part(t)).collect();
        let count = |is: &dyn Fn(&Target, Version) -> bool| {
            rollout.version.map_or(0, |v| part.iter().filter(|(_, t)| is(t, v)).count())
        };
        Some(RolloutView {
            version: rollout.version,
            stage: rollout.stage,
            since: rollout.since,
            canaries: rollout.canaries.clone(),
            halted: rollout.halted.clone(),
            targets: part.len(),
            staged: count(&is_staged),
            activated: count(&|t, v| t.current() == Some(v)),
            adopted: count(&Target::done_with),
            missing: part.iter().filter(|(_, t)| !t.connected).map(|(id, _)| (*id).clone()).collect(),
        })
    }

    /// Who and what may have the version, on every target.
    pub fn holders(&self, version: Version) -> Vec<HolderView> {
        let mut held = Vec::new();
        for (id, target) in &self.targets {
            let Some(report) = &target.report else { continue };
            let gap_cleared = |gap: &crate::id::GapId| target.cleared_gaps.contains(&(version, gap.clone()));
            let mut add = |what, cleared| held.push(HolderView { target: id.clone(), what, cleared });
            for holder in report.holders.iter().filter(|h| h.version == version) {
                let cleared = target.cleared.contains(&(version, holder.id.clone()));
                add(Held::Holder(holder.clone()), cleared);
            }
            for gap in report.gaps.iter().filter(|g| g.versions.contains(&version)) {
                add(Held::Gap(gap.clone()), gap_cleared(&gap.id));
            }
            for place in report.places.iter().filter(|p| p.versions.contains(&version)) {
                add(Held::Place(place.clone()), gap_cleared(&place.id));
            }
        }
        held
    }

    /// Superseded versions and what keeps each of them.
    pub fn pending(&self, now: Millis) -> Vec<(Version, Vec<Blocker>)> {
        let waiting = |phase| matches!(phase, Phase::Superseded | Phase::Sealing | Phase::Retiring);
        self.versions
            .iter()
            .filter(|(_, kept)| waiting(kept.phase))
            .map(|(version, _)| (*version, self.why_not(*version, now)))
            .collect()
    }

    /// Whether a wish for a new version waits.
    pub const fn has_wish(&self) -> bool {
        self.wish.is_some()
    }

    /// Why the credential as a whole does not go on.
    pub const fn stuck(&self) -> Option<&Stuck> {
        self.stuck.as_ref()
    }

    /// The resource vanished.
    pub const fn is_orphaned(&self) -> bool {
        self.orphaned
    }

    /// The credential was deleted and is being withdrawn.
    pub const fn is_deleted(&self) -> bool {
        self.deleted
    }
}

fn delivery(target: &Target, version: Version) -> Delivery {
    let Some(report) = &target.report else {
        return if target.connected { Delivery::Pending } else { Delivery::Unreachable };
    };
    let refused = report.refused.as_ref().is_some_and(|r| r.version == version) || target.barred;
    let left = target.rolled_back().is_some_and(|r| r.from == version);
    match () {
        () if target.gone.contains(version) => Delivery::Sealed,
        () if left => Delivery::RolledBack,
        () if report.current == Some(version) && report.adopted == Some(version) => Delivery::Adopted,
        () if report.current == Some(version) => Delivery::Activated,
        () if report.armed == Some(version) => Delivery::Armed,
        () if refused => Delivery::Refused,
        () if !target.connected => Delivery::Unreachable,
        () if target.has(version) => Delivery::Staged,
        () => Delivery::Pending,
    }
}

fn other_number(target: &Target, version: Version) -> Option<String> {
    let means = target.numbers.get(&version)?;
    Some(format!(
        "it has another version under the number {version}, here {means}: the next rotation reaches it"
    ))
}

fn note(target: &Target) -> Option<String> {
    let report = target.report.as_ref()?;
    if let Some(rolled_back) = &report.rolled_back {
        return Some(format!(
            "rolled back from {}: {}: {}",
            rolled_back.from, rolled_back.consumer, rolled_back.reason
        ));
    }
    if let Some(refused) = &report.refused {
        return Some(format!("refused {}: {}: {}", refused.version, refused.code, refused.message));
    }
    if target.barred {
        return Some("its own policy does not name the set".to_owned());
    }
    let adopting = target.intent.as_ref().is_some_and(|i| i.course == Course::Adopt);
    let late = report.consumers.iter().find(|(_, c)| c.state != ConsumerState::Settled);
    let late =
        late.filter(|_| adopting).map(|(name, consumer)| format!("{name} is {}", consumer.state.words()));
    late.or_else(|| unanswered(target))
}

/// What the target was told and has not said yet that it did.
fn unanswered(target: &Target) -> Option<String> {
    let intent = target.intent.as_ref()?;
    let version = intent.version;
    let (order, reached) = match (intent.course, delivery(target, version)) {
        (Course::Stage, at) => ("stage", at != Delivery::Pending),
        (Course::Arm(_), at) => ("arm", !matches!(at, Delivery::Pending | Delivery::Staged)),
        (Course::Activate | Course::Back, _) => ("flip to", target.current() == Some(version)),
        (Course::Adopt | Course::Disarm, _) => return None,
    };
    let waits = target.connected && !reached;
    waits.then(|| format!("was told to {order} {version}, and has not said yet that it did"))
}
