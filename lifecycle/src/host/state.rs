//! What is journalled of one set, and the report made from it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{By, Digest, Life, Rules, Turn};
use crate::id::{BootId, ConsumerName, EffectId, Epoch, GapId, Generation, HolderId, Millis, Version};
use crate::report::{Consumer, ConsumerState, Refused, RolledBack, SetReport};
use crate::versions::Versions;

/// Everything that is journalled of one set on one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetState {
    /// The newest boot that the set has come back from.
    #[serde(default)]
    pub(super) boot: BootId,
    /// The newest epoch that is obeyed.
    pub(super) epoch: Option<Epoch>,
    /// The newest question seen, of that epoch.
    pub(super) answers: u64,
    /// None when the host's policy has no such set.
    pub(super) rules: Option<Rules>,
    /// Versions that were found here and that nobody staged, as a lost journal leaves them: not known to be gone.
    #[serde(default)]
    pub(super) strays: BTreeSet<Version>,
    /// The newest intent accepted.
    pub(super) intent: Option<Intent>,
    /// The newest intent that a newer one superseded.
    pub(super) superseded: Option<Generation>,
    /// Every version that was ever staged and is not gone.
    pub(super) known: BTreeMap<Version, Known>,
    /// The current version and how it became that: the durable pointer.
    pub(super) turn: Option<Turn>,
    /// A flip that is accepted and not yet seen to be done.
    pub(super) flipping: Option<Turn>,
    /// A flip that is agreed upon.
    pub(super) armed: Option<Armed>,
    /// Whether consumers may be made to take up the current version.
    pub(super) permitted: bool,
    /// Each consumer that policy names.
    pub(super) consumers: BTreeMap<ConsumerName, Taking>,
    /// The last versions that all consumers were healthy on, newest last.
    pub(super) healthy: Vec<Version>,
    /// The host's own rollback, until an order of a newer generation is accepted.
    pub(super) rolled_back: Option<RolledBack>,
    /// Versions that the host left by itself, with the generation that it left: refused until an order names it.
    pub(super) refuses: BTreeMap<Version, Generation>,
    /// Versions to which the host never returns.
    pub(super) dead: Versions,
    /// Seals that are not finished.
    pub(super) sealing: BTreeMap<Version, Sealing>,
    /// Versions that are gone for ever.
    pub(super) gone: Versions,
    /// The newest order that was refused, if nothing newer was accepted since.
    pub(super) refused: Option<Refused>,
}

/// One intent, and which of its orders were taken.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Intent {
    pub(super) generation: Generation,
    pub(super) version: Version,
    pub(super) taken: BTreeSet<Taken>,
}

/// The orders of an intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Taken {
    Stage,
    Arm,
    Activate,
    Adopt,
    Disarm,
    RollBack,
}

/// A version that was staged here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    pub(super) effect: EffectId,
    pub(super) digest: Option<Digest>,
    pub(super) files: Files,
    /// Whether it was ever armed or ordered to become current, so that only `seal` can end it.
    pub(super) used: bool,
}

/// Where the files of a version are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Files {
    /// Being written.
    Writing,
    /// Whole and durable, and so is the sealed copy.
    Staged,
    /// To be unlinked.
    Dropped,
    /// Unlinked, and so is the sealed copy.
    Unlinked,
}

/// A flip that is agreed upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Armed {
    pub(super) generation: Generation,
    pub(super) version: Version,
    /// On the boot-time clock.
    pub(super) at: Millis,
}

/// A seal that is not finished.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sealing {
    pub(super) cleared: BTreeSet<HolderId>,
    pub(super) cleared_gaps: BTreeSet<GapId>,
    pub(super) withdraw: bool,
    pub(super) reason: String,
}

/// One consumer and the current version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Taking {
    pub(super) phase: Phase,
    /// The newest version that it took up and stayed healthy on.
    pub(super) healthy_on: Option<Version>,
}

/// How far a consumer has come with the current version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Phase {
    /// Named by policy after the flip, or before the first one: never made to do anything for it.
    New,
    /// Has not taken it up: waits for the permit, or for its own new life.
    Waiting {
        /// The life that it had when we last looked.
        was: Option<Life>,
        /// Whether it was healthy when we first looked, in the life that began before the flip.
        #[serde(default)]
        was_healthy: Option<bool>,
        /// It took up, or tried to, the version that the host has left.
        revive: bool,
    },
    /// Did not run when we looked.
    Idle,
    /// Is being made to take it up. Journalled before the call, so that a crash repeats nothing.
    Adopting { was: Option<Life>, was_healthy: bool, revive: bool },
    /// Took it up; within its settle time.
    Settling { life: Life, was_healthy: bool },
    /// Healthy on it through the settle time.
    Settled,
    /// Did not come up on it, and there is nothing to return to.
    Failed { reason: String },
    /// Unhealthy for another reason.
    NotTheCredential { reason: String },
}

impl Phase {
    /// Whether nothing is awaited of it any more.
    pub(super) const fn finished(&self) -> bool {
        matches!(self, Self::Settled | Self::NotTheCredential { .. })
    }

    const fn word(&self, by: By, permitted: bool) -> ConsumerState {
        match self {
            Self::Waiting { .. } if permitted && !matches!(by, By::Permit) => ConsumerState::Postponed,
            Self::Adopting { .. } if matches!(by, By::Window) => ConsumerState::Postponed,
            Self::New | Self::Waiting { .. } | Self::Adopting { .. } => ConsumerState::Waiting,
            Self::Idle => ConsumerState::Idle,
            Self::Settling { .. } => ConsumerState::Settling,
            Self::Settled => ConsumerState::Settled,
            Self::Failed { .. } => ConsumerState::Failed,
            Self::NotTheCredential { .. } => ConsumerState::NotTheCredential,
        }
    }
}

impl SetState {
    /// Whether nothing was ever said of it.
    pub fn is_untouched(&self) -> bool {
        *self == Self { boot: self.boot.clone(), ..Self::default() }
    }

    /// The version that readers are to find, also after a boot.
    pub fn current(&self) -> Option<Version> {
        self.turn.map(|turn| turn.version)
    }

    /// The flip that made it current.
    pub const fn turn(&self) -> Option<Turn> {
        self.turn
    }

    /// The newest epoch that is obeyed.
    pub const fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// The newest intent accepted.
    pub fn generation(&self) -> Option<Generation> {
        self.intent.as_ref().map(|intent| intent.generation)
    }

    /// Versions whose files lie, or should lie, whole on the host.
    pub fn present(&self) -> BTreeSet<Version> {
        let staged = self.known.iter().filter(|(_, known)| known.files == Files::Staged);
        staged.map(|(version, _)| *version).collect()
    }

    /// Versions that may have been read here and are not gone.
    pub fn known(&self) -> BTreeSet<Version> {
        self.known.keys().copied().collect()
    }

    /// Versions other than the current one that readers may have found: once armed or ordered to become current, and
    /// not gone.
    pub fn left_behind(&self) -> BTreeSet<Version> {
        let used = self.known.iter().filter(|(_, known)| known.used).map(|(version, _)| *version);
        used.filter(|version| Some(*version) != self.current()).collect()
    }

    /// The digest under which a version was staged.
    pub fn digest(&self, version: Version) -> Option<&Digest> {
        self.known.get(&version)?.digest.as_ref()
    }

    /// Versions to which the host never returns.
    pub const fn dead(&self) -> &Versions {
        &self.dead
    }

    /// When `Tick` is due, on the boot-time clock.
    pub fn next_due(&self) -> Option<Millis> {
        self.armed.map(|armed| armed.at)
    }

    /// Consumers whose next life of their own is awaited, each with the life that they had (none: they did not
    /// run). The caller gives [`super::HostEvent::Appeared`] when it sees another one.
    pub fn awaited(&self) -> BTreeMap<ConsumerName, Option<Life>> {
        let by_itself = |name: &ConsumerName| self.by(name) == By::Itself;
        let awaited = self.consumers.iter().filter_map(|(name, taking)| match &taking.phase {
            Phase::Idle => Some((name.clone(), None)),
            Phase::Waiting { was: Some(was), .. } if by_itself(name) || self.awaits_window(name) => {
                Some((name.clone(), Some(was.clone())))
            }
            _ => None,
        });
        awaited.collect()
    }

    /// Whether a consumer has the permit and is not to be looked at again, and so not disturbed, before its window is
    /// open: it is still on the version that was left, whatever is agreed upon meanwhile.
    pub fn awaits_window(&self, consumer: &ConsumerName) -> bool {
        let forward = self.turn.is_some_and(|turn| !turn.back);
        let waits = |taking: &Taking| matches!(taking.phase, Phase::Waiting { revive: false, .. });
        self.by(consumer) == By::Window
            && forward
            && self.permitted
            && self.consumers.get(consumer).is_some_and(waits)
    }

    /// Whether there is a seal that is not finished.
    pub fn has_open_seals(&self) -> bool {
        !self.sealing.is_empty()
    }

    /// Whether anything of the set may lie on the host, whoever put it there.
    pub fn has_anything(&self) -> bool {
        !self.known.is_empty() || !self.strays.is_empty() || self.turn.is_some()
    }

    /// Whether something has to be unlinked, and that was not possible yet.
    pub fn has_open_unlinks(&self) -> bool {
        self.known.keys().any(|version| self.is_to_be_unlinked(*version))
    }

    /// Whether its files have to go by themselves: a seal unlinks too, and what readers find stays until then.
    pub(super) fn is_to_be_unlinked(&self, version: Version) -> bool {
        let shown = [self.turn, self.flipping].into_iter().flatten().any(|turn| turn.version == version);
        let dropped = self.known.get(&version).is_some_and(|known| known.files == Files::Dropped);
        dropped && !shown && !self.sealing.contains_key(&version)
    }

    /// Whether a flip has been accepted and not carried out.
    pub const fn has_open_flip(&self) -> bool {
        self.flipping.is_some()
    }

    /// The snapshot, but for what the caller adds: sequence, evidence, holders, gaps and places.
    pub fn report(&self) -> SetReport {
        let present = self.known.iter().filter(|(_, known)| known.files == Files::Staged);
        let consumers = self.consumers.iter().map(|(name, taking)| {
            let state = taking.phase.word(self.by(name), self.permitted);
            (name.clone(), Consumer { state, healthy_on: taking.healthy_on })
        });
        SetReport {
            epoch: self.epoch,
            answers: self.answers,
            generation: self.generation(),
            present: present.map(|(version, known)| (*version, known.effect)).collect(),
            known: self.known.iter().map(|(version, known)| (*version, known.effect)).collect(),
            in_policy: self.rules.is_some(),
            armed: self.armed.map(|armed| armed.version),
            may_flip: self.may_flip(),
            disarmed: self.disarmed(),
            permitted: self.current().filter(|_| self.permitted),
            current: self.current(),
            adopted: self.current().filter(|_| self.all_finished()),
            consumers: consumers.collect(),
            rolled_back: self.rolled_back.clone(),
            may_return_to: self.may_return_to(),
            gone: self.gone.clone(),
            not_gone: self.sealing.iter().map(|(version, seal)| (*version, seal.reason.clone())).collect(),
            refused: self.refused.clone(),
            ..SetReport::default()
        }
    }

    fn may_flip(&self) -> BTreeSet<Version> {
        let armed = self.armed.map(|armed| armed.version);
        armed.into_iter().chain(self.flipping.map(|turn| turn.version)).collect()
    }

    /// The newest intent that can flip nothing any more.
    fn disarmed(&self) -> Option<Generation> {
        let newest = self.intent.as_ref().filter(|intent| {
            let left = self.refuses.get(&intent.version).is_some_and(|left| *left >= intent.generation);
            left || intent.taken.contains(&Taken::Disarm)
        });
        newest.map(|intent| intent.generation).or(self.superseded)
    }

    /// The versions to which the host might still return by itself.
    fn may_return_to(&self) -> BTreeSet<Version> {
        let pending = self.flipping.filter(|turn| turn.back).map(|turn| turn.version);
        let open = self.consumers.values().filter(|taking| {
            matches!(taking.phase, Phase::Waiting { .. } | Phase::Adopting { .. } | Phase::Settling { .. })
        });
        let forward = self.turn.is_some_and(|turn| !turn.back);
        let candidates = open.filter(|_| forward).filter_map(|taking| self.candidate(taking.healthy_on));
        pending.into_iter().chain(candidates).collect()
    }

    /// The last version that was healthy here and is neither dead, refused, lost nor the current one.
    pub(super) fn candidate(&self, healthy_on: Option<Version>) -> Option<Version> {
        let healthy = healthy_on.into_iter().chain(self.healthy.iter().rev().copied());
        healthy.into_iter().find(|version| {
            Some(*version) != self.current()
                && !self.dead.contains(*version)
                && !self.refuses.contains_key(version)
                && self.is_staged(*version)
        })
    }

    pub(super) fn is_staged(&self, version: Version) -> bool {
        self.known.get(&version).is_some_and(|known| known.files == Files::Staged)
    }

    pub(super) fn all_finished(&self) -> bool {
        self.consumers.values().all(|taking| taking.phase.finished())
    }
}
