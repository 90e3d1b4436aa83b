//! What each target is to be told now, worked out anew from the state at each step.

use std::collections::{BTreeMap, BTreeSet};

use super::Credential;
use super::effect::EffectKind;
use super::rollout::{is_staged, takes_part};
use super::state::{Course, Intent, Stage, Target};
use super::step::Turn;
use crate::id::{EffectId, Generation, Millis, TargetId, Version};
use crate::order::{Order, OrderKind};

/// An order that should be on its way.
struct Wanted {
    order: Order,
    value: Option<EffectId>,
    at: Option<Millis>,
}

impl Credential {
    pub(crate) fn advance_orders(&mut self, turn: &mut Turn) {
        self.sync_asks(turn);
        if self.is_starting() {
            return;
        }
        let mut targets = std::mem::take(&mut self.targets);
        let mut permits = self.policy.wave.max(1).saturating_sub(self.permits_in_use(&targets, turn));
        let mut wanted = BTreeMap::new();
        let mut unchecked = BTreeSet::new();
        for (id, target) in &mut targets {
            let plan = self.plan(id, target, turn, &mut permits);
            let plan = plan.filter(|(version, _)| !target.means_another_by(*version));
            let orders = self.orders_for(target, plan, &mut unchecked, turn);
            if !orders.is_empty() {
                wanted.insert(id.clone(), orders);
            }
        }
        self.targets = targets;
        self.sync_sends(wanted, turn);
        for version in unchecked {
            self.ensure_checked(version, turn);
        }
    }

    /// Whether the version may be sent at all.
    pub(crate) fn is_sendable(&self, version: Version) -> bool {
        self.versions.get(&version).is_some_and(|kept| {
            !kept.phase.is_dead() && !kept.refused && !kept.sealed_before && kept.forced.is_none()
        })
    }

    fn plan(
        &self,
        id: &TargetId,
        target: &Target,
        turn: &mut Turn,
        permits: &mut u32,
    ) -> Option<(Version, Course)> {
        if target.retired || target.answered < self.baseline {
            return None;
        }
        if self.deleted || !takes_part(target) {
            return stand_down(target);
        }
        let rollout = self.rollout.as_ref().filter(|r| r.stage.delivers());
        match (rollout, self.rolling()) {
            (Some(rollout), Some(version)) if rollout.halted.is_some() => {
                self.plan_halted(target, version, permits)
            }
            (Some(_), Some(version)) => self.plan_rolling(id, target, version, turn, permits),
            _ => self.plan_steady(target, permits).or_else(|| self.stand_down_from_given_up(target)),
        }
    }

    fn plan_halted(&self, target: &Target, version: Version, permits: &mut u32) -> Option<(Version, Course)> {
        if target.current() == Some(version) {
            let adopted = target.report.as_ref().is_some_and(|r| r.adopted == Some(version));
            return if adopted { None } else { self.plan_back(target, version) };
        }
        let pending = target.intent.as_ref().is_some_and(|i| i.version == version);
        let down = if pending { stand_down(target) } else { None };
        down.or_else(|| self.plan_steady(target, permits))
    }

    fn plan_rolling(
        &self,
        id: &TargetId,
        target: &Target,
        version: Version,
        turn: &mut Turn,
        permits: &mut u32,
    ) -> Option<(Version, Course)> {
        let rollout = self.rollout.as_ref()?;
        if target.current() == Some(version) {
            return Self::plan_forward(target, version, permits);
        }
        if target.left(version) {
            return None;
        }
        let is_canary = rollout.canaries.contains(id);
        match rollout.stage {
            Stage::Canary if is_canary => Self::plan_forward(target, version, permits),
            Stage::Flip { at } if is_canary || turn.reached(at) => {
                Self::plan_forward(target, version, permits)
            }
            Stage::Flip { at } if is_staged(target, version) => Some((version, Course::Arm(at))),
            _ => {
                // One that missed an earlier rollout gets a version that is proved first, unless it cannot have that.
                let can_have = |other: &Version| !target.unfit.contains(other);
                let catch_up = self.plan_steady(target, permits);
                let catch_up = catch_up.filter(|(other, course)| course.is_flip() && can_have(other));
                catch_up.or(Some((version, Course::Stage)))
            }
        }
    }

    /// Towards the active version, where the target has none or an older one.
    fn plan_steady(&self, target: &Target, permits: &mut u32) -> Option<(Version, Course)> {
        if let Some(current) = target.current()
            && let Some(kept) = self.versions.get(&current)
            && !kept.phase.is_dead()
            && Some(current) != self.active
        {
            if kept.aborted.is_some() && !kept.found {
                return self.plan_back(target, current);
            }
            let later = Some(current) > self.active && kept.compromise.is_none();
            if kept.found || later {
                return None;
            }
        }
        let active = self.active.filter(|active| self.is_sendable(*active))?;
        if target.left(active) {
            return None;
        }
        Self::plan_forward(target, active, permits)
    }

    fn plan_forward(target: &Target, version: Version, permits: &mut u32) -> Option<(Version, Course)> {
        if target.current() != Some(version) {
            return Some((version, Course::Activate));
        }
        let report = target.report.as_ref()?;
        if target.is_store() || report.adopted == Some(version) || target.done_with(version) {
            return None;
        }
        let goes_on =
            target.intent.as_ref().is_some_and(|i| i.version == version && i.course == Course::Adopt);
        if !goes_on {
            if report.permitted == Some(version) {
                return None;
            }
            if *permits == 0 {
                return None;
            }
            *permits -= 1;
        }
        Some((version, Course::Adopt))
    }

    /// Away from a version that was given up: to the last one that was healthy there, else to the active one.
    fn plan_back(&self, target: &Target, from: Version) -> Option<(Version, Course)> {
        let usable = |version: &Version| {
            *version != from
                && self.is_sendable(*version)
                && self.versions.get(version).is_some_and(|kept| kept.aborted.is_none() && kept.verified)
        };
        let trusted = |version: &Version| {
            usable(version) && self.versions.get(version).is_some_and(|kept| kept.compromise.is_none())
        };
        let healthy = target.healthy.iter().rev().copied().find(|v| trusted(v) && is_staged(target, *v));
        let to = healthy.or(self.active.filter(usable))?;
        let course = if target.has(to) && !target.is_store() { Course::Back } else { Course::Activate };
        Some((to, course))
    }

    fn stand_down_from_given_up(&self, target: &Target) -> Option<(Version, Course)> {
        let intent = target.intent.as_ref()?;
        let given_up = self.versions.get(&intent.version).is_none_or(|kept| kept.aborted.is_some());
        if given_up { stand_down(target) } else { None }
    }

    fn orders_for(
        &self,
        target: &mut Target,
        plan: Option<(Version, Course)>,
        unchecked: &mut BTreeSet<Version>,
        turn: &Turn,
    ) -> Vec<Wanted> {
        let mut orders = Vec::new();
        if let Some((version, course)) = plan {
            let checked = self.versions.get(&version).is_some_and(|kept| kept.checked);
            if course != Course::Disarm && !checked {
                unchecked.insert(version);
            } else if self.follow(target, version, course, turn) {
                orders.extend(self.next_order(target, turn));
            }
        }
        if plan.is_none() {
            orders.extend(self.old_disarms(target));
            let called_off = |i: &Intent| orders.iter().any(|w| w.order.generation == i.generation);
            if let Some(intent) = target.intent.as_mut().filter(|intent| called_off(intent)) {
                intent.course = Course::Disarm;
            }
        }
        orders.extend(self.seals_for(target));
        for wanted in &orders {
            let version = wanted.order.kind.version();
            target.sent.insert(version);
            if matches!(
                wanted.order.kind,
                OrderKind::Arm { .. } | OrderKind::Activate { .. } | OrderKind::RollBack { .. }
            ) {
                target.flips.insert(version, wanted.order.generation);
            }
        }
        let write = |wanted: Wanted| Wanted { order: target.write(wanted.order), ..wanted };
        orders.into_iter().map(write).collect()
    }

    /// Targets that may be restarting or reloading consumers right now, one that fell silent over it included until
    /// nobody waits for it any more.
    fn permits_in_use(&self, targets: &BTreeMap<TargetId, Target>, turn: &mut Turn) -> u32 {
        let busy = targets.values().filter(|t| {
            let adopts = |i: &Intent| {
                i.course == Course::Adopt
                    && t.current() == Some(i.version)
                    && !t.done_with(i.version)
                    && !t.left(i.version)
            };
            !t.retired
                && t.intent.as_ref().is_some_and(adopts)
                && (t.connected || !turn.reached(t.since.plus(self.policy.barrier_ms)))
        });
        u32::try_from(busy.count()).unwrap_or(u32::MAX)
    }

    /// Calls off what an earlier intent could still bring, where nothing newer was ever accepted.
    fn old_disarms(&self, target: &Target) -> Vec<Wanted> {
        if target.retired || target.answered < self.baseline {
            return Vec::new();
        }
        let goes_on = self.rollout.as_ref().filter(|r| r.halted.is_none()).and_then(|r| r.version);
        let given_up = |version: Version| ![target.current(), self.active, goes_on].contains(&Some(version));
        let open = target.flips.iter().filter(|(version, _)| given_up(**version));
        open.map(|(version, generation)| {
            let kind = OrderKind::Disarm { version: *version };
            Wanted { order: self.order(target, *generation, kind), value: None, at: None }
        })
        .collect()
    }

    /// Makes the plan the target's intent; false when there is nothing to order for it.
    fn follow(&self, target: &mut Target, version: Version, course: Course, turn: &Turn) -> bool {
        let left = target.left_in.get(&version).copied();
        if let Some(intent) = &mut target.intent
            && intent.version == version
            && (intent.course == course || (intent.course.is_forward() && !is_back(course)))
            && left.is_none_or(|left| left != intent.generation || course == Course::Disarm)
        {
            if std::mem::discriminant(&intent.course) != std::mem::discriminant(&course) {
                intent.since = turn.now;
            }
            intent.course = course;
            return true;
        }
        if course == Course::Disarm || (course == Course::Stage && is_staged(target, version)) {
            return false;
        }
        target.issued += 1;
        target.intent = Some(Intent {
            generation: Generation::new(self.epoch.counter, target.issued),
            version,
            course,
            answers: left,
            since: turn.now,
        });
        true
    }

    /// The next order of the intent that the newest report does not show as done.
    fn next_order(&self, target: &Target, turn: &Turn) -> Option<Wanted> {
        let intent = target.intent.as_ref()?;
        let report = target.report.as_ref()?;
        let (version, answers) = (intent.version, intent.answers);
        let minted_by = self.versions.get(&version)?.minted_by;
        let is_current = report.current == Some(version);
        let accepted = report.generation == Some(intent.generation);
        let mut at = None;
        let kind = match intent.course {
            Course::Disarm => {
                let confirmed = !target.flips.contains_key(&version);
                (!confirmed).then_some(OrderKind::Disarm { version })?
            }
            Course::Back => (!is_current || !accepted).then_some(OrderKind::RollBack { to: version })?,
            _ if !is_staged(target, version) => OrderKind::Stage { version, effect: minted_by },
            Course::Arm(instant) if !is_current && report.armed != Some(version) && !target.is_store() => {
                at = Some(instant);
                OrderKind::Arm { version, in_ms: instant.since(turn.now), answers }
            }
            Course::Activate | Course::Adopt if !is_current || (!accepted && !target.is_store()) => {
                OrderKind::Activate { version, answers }
            }
            Course::Stage | Course::Arm(_) | Course::Activate => return None,
            Course::Adopt => (report.permitted != Some(version)).then_some(OrderKind::Adopt { version })?,
        };
        let carries_value = matches!(kind, OrderKind::Stage { .. })
            || (target.is_store() && matches!(kind, OrderKind::Activate { .. }));
        Some(Wanted {
            order: self.order(target, intent.generation, kind),
            value: carries_value.then_some(minted_by),
            at,
        })
    }

    fn order(&self, target: &Target, generation: Generation, kind: OrderKind) -> Order {
        let dead = self.versions.iter().filter(|(_, kept)| kept.phase.is_dead()).map(|(version, _)| *version);
        let dead = dead.filter(|version| !target.gone.contains(*version)).collect();
        Order { epoch: self.epoch, generation, kind, dead }
    }

    /// A `seal` for each dead version that is not gone there.
    fn seals_for(&self, target: &Target) -> Vec<Wanted> {
        if target.retired || target.answered < self.baseline {
            return Vec::new();
        }
        let dead = self.versions.iter().filter(|(_, kept)| kept.phase.is_dead());
        let owed = dead.filter(|(version, kept)| {
            let concerned = kept.everywhere && !kept.phase.is_ended()
                || target.sent.contains(version)
                || target.shows(**version, kept.minted_by);
            concerned && !target.gone.contains(**version)
        });
        owed.filter_map(|(version, _)| self.seal_for(target, *version)).collect()
    }

    fn seal_for(&self, target: &Target, version: Version) -> Option<Wanted> {
        let withdraw = target.barred || self.is_withdrawn(version);
        if target.current() == Some(version) && !withdraw {
            // It would be refused until the target has moved on.
            return None;
        }
        let (cleared, cleared_gaps) = self.cleared(target, version);
        let kind = OrderKind::Seal { version, cleared, cleared_gaps, withdraw };
        let generation = Generation::new(self.epoch.counter, target.issued);
        Some(Wanted { order: self.order(target, generation, kind), value: None, at: None })
    }

    /// Keeps what is on its way already, drops what nobody wants any more, adds the rest.
    fn sync_sends(&mut self, mut wanted: BTreeMap<TargetId, Vec<Wanted>>, turn: &mut Turn) {
        self.outbox.retain(|_, pending| {
            let EffectKind::Send { target, order, value, at } = &pending.effect.kind else { return true };
            let Some(orders) = wanted.get_mut(target) else { return false };
            let same = orders
                .iter()
                .position(|w| w.value == *value && w.at == *at && is_same_but_for_age(&w.order, order));
            same.map(|index| orders.swap_remove(index)).is_some()
        });
        for (target, orders) in wanted {
            for Wanted { order, value, at } in orders {
                self.emit(EffectKind::Send { target: target.clone(), order, value, at }, turn);
            }
        }
    }

    /// Asks each target for the newest answer that anything waits for.
    fn sync_asks(&mut self, turn: &mut Turn) {
        let rounds = self.versions.values().filter_map(|kept| kept.watch.round.as_ref()).map(|r| r.question);
        let question = rounds.fold(self.baseline, u64::max);
        let mut owing: BTreeSet<TargetId> = self
            .targets
            .iter()
            .filter(|(_, t)| !t.retired && t.answered < question)
            .map(|(id, _)| id.clone())
            .collect();
        self.outbox.retain(|_, pending| match &pending.effect.kind {
            EffectKind::Ask { target, question: asked } => *asked == question && owing.remove(target),
            _ => true,
        });
        for target in owing {
            self.emit(EffectKind::Ask { target, question }, turn);
        }
    }

    /// Asks the backend whether a version still works, before it is sent again after a start.
    pub(crate) fn advance_checks(&mut self, turn: &mut Turn) {
        let Some(version) = self.rolling() else { return };
        let verifies = self.rollout.as_ref().is_some_and(|r| r.stage == Stage::Verify || r.stage.delivers());
        if verifies && !self.is_starting() {
            self.ensure_checked(version, turn);
        }
    }

    fn ensure_checked(&mut self, version: Version, turn: &mut Turn) {
        let Some(kept) = self.versions.get(&version) else { return };
        if kept.checked || kept.refused || kept.phase.is_dead() {
            return;
        }
        let minted_by = kept.minted_by;
        if !self.has_open(|kind| matches!(kind, EffectKind::Verify { version: v, .. } if *v == version)) {
            self.emit(EffectKind::Verify { version, minted_by }, turn);
        }
    }
}

const fn is_back(course: Course) -> bool {
    matches!(course, Course::Back)
}

/// The flip that the newest intent could still bring is called off.
fn stand_down(target: &Target) -> Option<(Version, Course)> {
    let intent = target.intent.as_ref()?;
    let pending = target.flips.get(&intent.version) == Some(&intent.generation);
    let forward = intent.course.is_forward() || intent.course == Course::Disarm;
    (pending && forward && target.current() != Some(intent.version))
        .then_some((intent.version, Course::Disarm))
}

/// The span to an armed instant shrinks with every look; the instant itself is compared beside the order.
fn is_same_but_for_age(one: &Order, other: &Order) -> bool {
    let ageless = |order: &Order| {
        let mut order = order.clone();
        if let OrderKind::Arm { in_ms, .. } = &mut order.kind {
            *in_ms = Millis(0);
        }
        order
    };
    ageless(one) == ageless(other)
}
