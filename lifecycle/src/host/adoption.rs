//! Flips, consumers that take a version up, the host's own rollback, and what a start finds.

use std::collections::BTreeSet;

use super::state::{Files, Phase, Taken, Taking};
use super::{ARMED_LATE_MS_MAX, By, HostEffect, Life, Machine, Rules, Turn};
use crate::id::{BootId, ConsumerName, Generation, Version};
use crate::report::{Refused, RolledBack};

/// How many versions that were healthy are remembered.
const HEALTHY_KEPT: usize = 8;

impl Machine {
    pub(super) fn tick(&mut self) {
        let Some(armed) = self.state.armed.filter(|armed| self.now >= armed.at) else { return };
        self.state.armed = None;
        if self.now.since(armed.at) > ARMED_LATE_MS_MAX || self.state.dead.contains(armed.version) {
            return;
        }
        let turn = Turn { generation: armed.generation, version: armed.version, back: false };
        self.state.flipping = Some(turn);
        self.effects.push(HostEffect::Flip { version: armed.version });
    }

    pub(super) fn recheck(&mut self) {
        if let Some(turn) = self.state.flipping {
            self.effects.push(HostEffect::Flip { version: turn.version });
        }
        self.retry_unlinks();
        self.retry_seals();
    }

    pub(super) fn policy(&mut self, rules: Option<Rules>) {
        let named = rules.as_ref().map(|rules| rules.consumers.clone()).unwrap_or_default();
        self.state.rules = rules;
        self.state.consumers.retain(|name, _| named.contains_key(name));
        for name in named.into_keys() {
            if self.state.consumers.contains_key(&name) {
                continue;
            }
            if let Some(turn) = self.state.turn {
                self.effects.push(HostEffect::Look { turn, consumer: name.clone() });
            }
            self.state.consumers.insert(name, Taking { phase: Phase::New, healthy_on: None });
        }
    }

    pub(super) fn written(&mut self, version: Version) {
        if let Some(known) = self.state.known.get_mut(&version).filter(|known| known.files == Files::Writing)
        {
            known.files = Files::Staged;
        }
    }

    pub(super) fn write_failed(&mut self, version: Version, code: String, message: String) {
        let Some(known) = self.state.known.get_mut(&version).filter(|known| known.files == Files::Writing)
        else {
            return;
        };
        known.files = Files::Dropped;
        self.forget_taken(version, Taken::Stage);
        self.retry_unlinks();
        self.refused(version, code, message);
    }

    pub(super) fn flip_failed(&mut self, version: Version, message: String) {
        let Some(turn) = self.state.flipping.filter(|turn| turn.version == version) else { return };
        // A return goes on until it is done; anything else is ordered again.
        if !turn.back {
            self.state.flipping = None;
            self.forget_taken(version, Taken::Activate);
        }
        self.refused(version, "flip_failed".to_owned(), message);
    }

    fn refused(&mut self, version: Version, code: String, message: String) {
        let generation = self.state.generation().unwrap_or(Generation::new(0, 0));
        self.state.refused = Some(Refused { generation, version, code, message });
    }

    pub(super) fn flipped(&mut self, version: Version) {
        let expected = self.state.flipping.filter(|turn| turn.version == version);
        let armed = self.state.armed.filter(|armed| armed.version == version);
        let turn = expected.unwrap_or_else(|| {
            // The link is the truth, also where the step that led to it was lost in a crash.
            let generation = armed.map(|armed| armed.generation).or(self.state.generation());
            Turn { generation: generation.unwrap_or(Generation::new(0, 0)), version, back: false }
        });
        self.state.flipping = None;
        self.state.armed = self.state.armed.filter(|armed| armed.version != version);
        if self.state.current() == Some(version) {
            return;
        }
        self.state.turn = Some(turn);
        self.state.permitted = turn.back;
        for (name, taking) in &mut self.state.consumers {
            taking.phase = after_flip(taking, turn);
            if !taking.phase.finished() {
                self.effects.push(HostEffect::Look { turn, consumer: name.clone() });
            }
        }
        self.settle_set();
        self.retry_seals();
    }

    /// Consumers may be made to take up the current version.
    pub(super) fn permit(&mut self) {
        self.state.permitted = true;
        let Some(turn) = self.state.turn else { return };
        for (name, taking) in &self.state.consumers {
            if matches!(taking.phase, Phase::Waiting { .. }) && self.state.by(name) != By::Itself {
                self.effects.push(HostEffect::Look { turn, consumer: name.clone() });
            }
        }
    }

    pub(super) fn looked(
        &mut self,
        turn: Turn,
        consumer: &ConsumerName,
        life: Option<Life>,
        was_healthy: bool,
    ) {
        let by = self.state.by(consumer);
        let permitted = self.state.permitted;
        let Some(taking) = self.taking(turn, consumer) else { return };
        let next = match (&taking.phase, life) {
            (Phase::New, Some(life)) => Phase::Settling { life, was_healthy: false },
            (Phase::Waiting { revive: true, .. }, life) if by != By::Itself && permitted => {
                Phase::Adopting { was: life, was_healthy, revive: true }
            }
            (Phase::Waiting { was: Some(was), revive: false, .. }, Some(life))
                if turn.back && *was == life && taking.healthy_on == Some(turn.version) =>
            {
                Phase::Settled
            }
            // Also one that was stopped while it was being made to take the version up, or within its settle time.
            (Phase::New | Phase::Waiting { .. } | Phase::Adopting { .. } | Phase::Settling { .. }, None) => {
                Phase::Idle
            }
            // It has begun a new life by itself since the flip, so on this version.
            (Phase::Waiting { was: Some(was), was_healthy, revive: false }, Some(life))
                if *was != life && (by == By::Itself || !turn.back) =>
            {
                Phase::Settling { life, was_healthy: was_healthy.unwrap_or(true) }
            }
            (Phase::Waiting { was_healthy: at_first, revive, .. }, Some(life))
                if by != By::Itself && permitted =>
            {
                // How it was when we first looked: what came over it since may be the credential.
                let was_healthy = at_first.unwrap_or(was_healthy);
                Phase::Adopting { was: Some(life), was_healthy, revive: *revive }
            }
            (Phase::Waiting { was_healthy: at_first, revive, .. }, Some(life)) => {
                let was_healthy = Some(at_first.unwrap_or(was_healthy));
                Phase::Waiting { was: Some(life), was_healthy, revive: *revive }
            }
            _ => return,
        };
        taking.phase = next;
        self.go_on(turn, consumer);
        self.settle_set();
    }

    pub(super) fn took_up(&mut self, turn: Turn, consumer: &ConsumerName, life: Life) {
        let Some(taking) = self.taking(turn, consumer) else { return };
        if let Phase::Adopting { was_healthy, .. } = taking.phase {
            taking.phase = Phase::Settling { life, was_healthy };
            self.go_on(turn, consumer);
        }
    }

    /// It adopts again, once it may.
    pub(super) fn mixed(&mut self, turn: Turn, consumer: &ConsumerName) {
        let Some(taking) = self.taking(turn, consumer) else { return };
        if matches!(taking.phase, Phase::Settling { .. } | Phase::Settled) {
            self.wait_anew(turn, consumer, None);
        }
    }

    /// What it has is not, or not only, the current version. Where a window is awaited before it is looked at again, `was`
    /// is its life: it may begin another one by itself until then.
    fn wait_anew(&mut self, turn: Turn, consumer: &ConsumerName, was: Option<Life>) {
        let Some(taking) = self.taking(turn, consumer) else { return };
        taking.phase = Phase::Waiting { was, was_healthy: None, revive: false };
        self.effects.push(HostEffect::Look { turn, consumer: consumer.clone() });
    }

    pub(super) fn appeared(&mut self, consumer: &ConsumerName, life: Life, on_another: bool) {
        let by_itself = self.state.by(consumer) == By::Itself || self.state.awaits_window(consumer);
        let Some(turn) = self.state.turn else { return };
        let Some(taking) = self.taking(turn, consumer) else { return };
        let awaited = match &taking.phase {
            Phase::Idle => true,
            Phase::Waiting { was: Some(was), .. } => by_itself && *was != life,
            _ => false,
        };
        if awaited && !on_another {
            taking.phase = Phase::Settling { life, was_healthy: true };
            self.go_on(turn, consumer);
        } else if awaited {
            let waits_for_window =
                self.state.by(consumer) == By::Window && self.state.permitted && !turn.back;
            self.wait_anew(turn, consumer, waits_for_window.then_some(life));
        }
    }

    /// The effect that a consumer's phase calls for.
    fn go_on(&mut self, turn: Turn, consumer: &ConsumerName) {
        let Some(taking) = self.state.consumers.get(consumer) else { return };
        let consumer = consumer.clone();
        match &taking.phase {
            Phase::Adopting { was, revive, .. } => {
                let (was, revive) = (was.clone(), *revive);
                self.effects.push(HostEffect::Adopt { turn, consumer, was, revive });
            }
            Phase::Settling { life, .. } => {
                self.effects.push(HostEffect::Settle { turn, consumer, life: life.clone() });
            }
            _ => {}
        }
    }

    pub(super) fn healthy(&mut self, turn: Turn, consumer: &ConsumerName) {
        let Some(taking) = self.taking(turn, consumer) else { return };
        if matches!(taking.phase, Phase::Settling { .. }) {
            taking.phase = Phase::Settled;
            taking.healthy_on = Some(turn.version);
            self.settle_set();
            self.retry_seals();
        }
    }

    pub(super) fn unhealthy(&mut self, turn: Turn, consumer: ConsumerName, reason: String) {
        let Some(taking) = self.taking(turn, &consumer) else { return };
        let (Phase::Adopting { was_healthy, .. } | Phase::Settling { was_healthy, .. }) = taking.phase else {
            return;
        };
        if turn.back || !was_healthy {
            taking.phase = Phase::NotTheCredential { reason };
            self.settle_set();
            return;
        }
        taking.phase = Phase::Failed { reason: reason.clone() };
        let healthy_on = taking.healthy_on;
        self.roll_back_by_itself(turn, consumer, healthy_on, reason);
    }

    fn roll_back_by_itself(
        &mut self,
        turn: Turn,
        consumer: ConsumerName,
        healthy_on: Option<Version>,
        reason: String,
    ) {
        let newest = self.state.intent.as_ref().filter(|intent| intent.version == turn.version);
        let generation = newest.map_or(turn.generation, |intent| intent.generation.max(turn.generation));
        let to = self.state.candidate(healthy_on);
        self.state.armed = None;
        self.state.refuses.insert(turn.version, generation);
        self.state.rolled_back = Some(RolledBack { generation, from: turn.version, to, consumer, reason });
        self.return_to(to, generation);
    }

    /// Goes to the version, if there is one, and says so.
    pub(super) fn return_to(&mut self, to: Option<Version>, generation: Generation) {
        if let Some(rolled_back) = &mut self.state.rolled_back {
            rolled_back.to = to;
        }
        if let Some(version) = to {
            self.state.flipping = Some(Turn { generation, version, back: true });
            self.effects.push(HostEffect::Flip { version });
        }
    }

    /// The consumer's record, if the outcome is of the present turn.
    fn taking(&mut self, turn: Turn, consumer: &ConsumerName) -> Option<&mut Taking> {
        if self.state.turn == Some(turn) { self.state.consumers.get_mut(consumer) } else { None }
    }

    /// Remembers the current version as healthy once every consumer is through.
    fn settle_set(&mut self) {
        let Some(version) = self.state.current().filter(|_| self.state.all_finished()) else { return };
        let healthy = self.state.consumers.values().all(|taking| taking.phase == Phase::Settled);
        if healthy && self.state.healthy.last() != Some(&version) {
            self.state.healthy.retain(|other| *other != version);
            self.state.healthy.push(version);
            let surplus = self.state.healthy.len().saturating_sub(HEALTHY_KEPT);
            self.state.healthy.drain(..surplus);
        }
    }

    pub(super) fn started(&mut self, boot: BootId, link: Option<Version>, files: &BTreeSet<Version>) {
        let rebooted = self.state.boot != boot;
        self.state.boot = boot;
        self.find_files(files);
        if rebooted {
            // The agreed instant was on the clock of another boot.
            self.state.armed = None;
        }
        match link {
            Some(version) if self.state.current() != Some(version) => self.flipped(version),
            None if self.state.turn.is_some() => self.withdrawn(),
            _ => {}
        }
        if let Some(turn) = self.state.flipping {
            self.effects.push(HostEffect::Flip { version: turn.version });
        }
        self.resume_consumers(rebooted);
        self.retry_unlinks();
        self.retry_seals();
    }

    /// Files that are not whole are none, and what there is of them goes, the sealed copy too.
    fn find_files(&mut self, files: &BTreeSet<Version>) {
        let mut lost = Vec::new();
        for (version, known) in &mut self.state.known {
            match (known.files, files.contains(version)) {
                (Files::Writing, _) | (Files::Staged, false) => {
                    known.files = Files::Dropped;
                    lost.push(*version);
                }
                (Files::Unlinked, true) => known.files = Files::Dropped,
                (Files::Staged, true) | (Files::Dropped, _) | (Files::Unlinked, false) => {}
            }
        }
        let strays = files.iter().filter(|version| {
            !self.state.known.contains_key(version) && !self.state.gone.contains(**version)
        });
        self.state.strays.extend(strays.copied());
        for version in lost {
            self.forget_taken(version, Taken::Stage);
        }
    }

    fn resume_consumers(&mut self, rebooted: bool) {
        let Some(turn) = self.state.turn else { return };
        let names: Vec<ConsumerName> = self.state.consumers.keys().cloned().collect();
        for name in names {
            let Some(taking) = self.state.consumers.get_mut(&name) else { continue };
            let open = matches!(
                taking.phase,
                Phase::New | Phase::Waiting { .. } | Phase::Adopting { .. } | Phase::Settling { .. }
            );
            if rebooted && open {
                // Whoever runs now began after the boot, so on this version.
                taking.phase = Phase::Idle;
            }
            match taking.phase {
                Phase::New | Phase::Waiting { .. } => {
                    self.effects.push(HostEffect::Look { turn, consumer: name });
                }
                _ => self.go_on(turn, &name),
            }
        }
    }

    /// No version is current any more.
    pub(super) fn withdrawn(&mut self) {
        self.state.turn = None;
        self.state.permitted = false;
        for taking in self.state.consumers.values_mut() {
            taking.phase = Phase::New;
        }
    }
}

impl super::SetState {
    pub(super) fn by(&self, consumer: &ConsumerName) -> By {
        let rules = self.rules.as_ref();
        rules.and_then(|rules| rules.consumers.get(consumer)).copied().unwrap_or(By::Itself)
    }
}

/// Where a consumer stands right after a flip.
fn after_flip(taking: &Taking, turn: Turn) -> Phase {
    if turn.back && taking.healthy_on == Some(turn.version) {
        match &taking.phase {
            // It never left the version that the host returns to.
            Phase::Idle | Phase::Waiting { was: None, revive: false, .. } => return Phase::Settled,
            // Nor did this one, unless it began a new life by itself meanwhile: a look tells.
            waiting @ Phase::Waiting { revive: false, .. } => return waiting.clone(),
            _ => {}
        }
    }
    let revive = turn.back
        && matches!(taking.phase, Phase::Adopting { .. } | Phase::Settling { .. } | Phase::Failed { .. });
    Phase::Waiting { was: None, was_healthy: None, revive }
}
