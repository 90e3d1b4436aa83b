//! Which orders are taken, and what they change.

use std::collections::BTreeSet;

use super::state::{Armed, Files, Intent, Known, Taken};
use super::{ARM_HORIZON_MS_MAX, Answer, Digest, HostEffect, Machine, RefusalCode, Turn};
use crate::id::{EffectId, Epoch, Generation, Millis, Version};
use crate::order::{Order, OrderKind};
use crate::report::Refused;

/// Why an order is not taken.
pub(super) struct Refusal {
    code: RefusalCode,
    message: String,
}

fn refuse<T>(code: RefusalCode, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { code, message: message.into() })
}

/// How an order stands to the newest intent.
#[derive(PartialEq, Eq)]
enum Standing {
    /// It begins a new intent, or is the next order of the newest.
    Next,
    /// It was taken before.
    Again,
}

impl Machine {
    pub(super) fn asked(&mut self, epoch: Epoch, question: u64) {
        let answer = match self.epoch(epoch) {
            Ok(()) => {
                self.state.answers = self.state.answers.max(question);
                Answer::Accepted
            }
            Err(Refusal { code, message }) => Answer::Refused { code, message },
        };
        self.effects.push(HostEffect::Answer(answer));
    }

    pub(super) fn order(&mut self, order: &Order, digest: Option<Digest>, age: Option<Millis>) {
        let answer = match self.judge(order, digest, age) {
            Ok(()) => Answer::Accepted,
            Err(Refusal { code, message }) => {
                self.remember_refusal(order, code.word(), &message);
                Answer::Refused { code, message }
            }
        };
        self.effects.insert(0, HostEffect::Answer(answer));
    }

    /// Keeps the refusal for the report, unless the order was older than what is in force.
    fn remember_refusal(&mut self, order: &Order, code: &str, message: &str) {
        let stale = self.state.epoch.is_some_and(|epoch| epoch != order.epoch)
            || self.state.generation().is_some_and(|newest| order.generation < newest);
        if !stale {
            self.state.refused = Some(Refused {
                generation: order.generation,
                version: order.kind.version(),
                code: code.to_owned(),
                message: message.to_owned(),
            });
        }
    }

    fn judge(&mut self, order: &Order, digest: Option<Digest>, age: Option<Millis>) -> Result<(), Refusal> {
        self.epoch(order.epoch)?;
        self.bury(&order.dead);
        let generation = order.generation;
        match &order.kind {
            OrderKind::Stage { version, effect } => self.stage(generation, *version, *effect, digest),
            OrderKind::Arm { version, in_ms, answers } => {
                self.arm(generation, *version, *in_ms, *answers, age)
            }
            OrderKind::Activate { version, answers } => self.activate(generation, *version, *answers),
            OrderKind::Adopt { version } => self.adopt(generation, *version),
            OrderKind::Disarm { version } => self.disarm(generation, *version),
            OrderKind::RollBack { to } => self.roll_back(generation, *to),
            OrderKind::Seal { version, cleared, cleared_gaps, withdraw } => {
                self.seal(*version, cleared, cleared_gaps, *withdraw);
                Ok(())
            }
            OrderKind::Discard { version } => self.discard(generation, *version),
        }
    }

    /// Obeys a newer epoch from now on; refuses an older one and a stranger.
    pub(super) fn epoch(&mut self, epoch: Epoch) -> Result<(), Refusal> {
        match self.state.epoch {
            Some(mine) if epoch.counter < mine.counter => {
                refuse(RefusalCode::OldEpoch, format!("epoch {} has ended", epoch.counter))
            }
            Some(mine) if epoch.counter == mine.counter && epoch.id != mine.id => {
                refuse(RefusalCode::StrangerEpoch, "this epoch belongs to another life of the store")
            }
            Some(mine) if epoch == mine => Ok(()),
            _ => {
                // What an older life of the store agreed upon, the new one does not know of.
                self.state.armed = None;
                self.state.answers = 0;
                self.state.epoch = Some(epoch);
                Ok(())
            }
        }
    }

    /// Never flips to these again, armed or not.
    pub(super) fn bury(&mut self, dead: &BTreeSet<Version>) {
        self.state.dead.extend(dead.iter().copied());
        if self.state.armed.is_some_and(|armed| dead.contains(&armed.version)) {
            self.state.armed = None;
        }
        if let Some(turn) = self.state.flipping.filter(|turn| dead.contains(&turn.version)) {
            self.state.flipping = None;
            if let Some(rolled_back) = self.state.rolled_back.as_ref().filter(|_| turn.back) {
                let consumer = self.state.consumers.get(&rolled_back.consumer);
                let to = self.state.candidate(consumer.and_then(|taking| taking.healthy_on));
                self.return_to(to, turn.generation);
            }
        }
    }

    /// Where the order stands to the newest intent, for orders that belong to one.
    fn standing(&self, generation: Generation, version: Version, kind: Taken) -> Result<Standing, Refusal> {
        let Some(intent) = self.state.intent.as_ref().filter(|intent| intent.generation >= generation) else {
            return Ok(Standing::Next);
        };
        if intent.generation > generation {
            return refuse(
                RefusalCode::OlderGeneration,
                format!("generation {} was accepted already", intent.generation),
            );
        }
        if intent.version != version {
            return refuse(
                RefusalCode::Replay,
                format!("generation {generation} means version {}", intent.version),
            );
        }
        if kind != Taken::Disarm && intent.taken.contains(&Taken::Disarm) {
            return refuse(RefusalCode::Disarmed, format!("generation {generation} was disarmed"));
        }
        Ok(if intent.taken.contains(&kind) { Standing::Again } else { Standing::Next })
    }

    /// Makes the order the newest thing that was accepted.
    fn accept(&mut self, generation: Generation, version: Version, kind: Taken) {
        let same = self.state.intent.as_mut().filter(|intent| intent.generation == generation);
        if let Some(intent) = same {
            intent.taken.insert(kind);
        } else {
            self.state.superseded = self.state.generation().or(self.state.superseded);
            self.state.intent = Some(Intent { generation, version, taken: BTreeSet::from([kind]) });
            // A newer intent ends what an older one agreed upon, but never a return that is under way.
            self.state.armed = None;
            self.state.flipping = self.state.flipping.filter(|turn| turn.back);
        }
        if self.state.refused.as_ref().is_some_and(|refused| refused.generation <= generation) {
            self.state.refused = None;
        }
        if self.state.rolled_back.as_ref().is_some_and(|rolled_back| rolled_back.generation < generation) {
            self.state.rolled_back = None;
        }
    }

    fn must_live(&self, version: Version) -> Result<(), Refusal> {
        if self.state.dead.contains(version) {
            return refuse(RefusalCode::Dead, format!("version {version} is dead and never used again"));
        }
        Ok(())
    }

    fn must_be_in_policy(&self) -> Result<(), Refusal> {
        if self.state.rules.is_none() {
            return refuse(RefusalCode::NotInPolicy, "this host's policy has no such set");
        }
        Ok(())
    }

    fn must_be_staged(&self, version: Version) -> Result<(), Refusal> {
        if !self.state.is_staged(version) {
            return refuse(RefusalCode::NotStaged, format!("version {version} does not lie here"));
        }
        Ok(())
    }

    fn must_be_answered(&self, version: Version, answers: Option<Generation>) -> Result<(), Refusal> {
        match self.state.refuses.get(&version) {
            Some(left) if Some(*left) != answers => refuse(
                RefusalCode::RolledBack,
                format!(
                    "this host went back from version {version} in generation {left}; resume to try again"
                ),
            ),
            _ => Ok(()),
        }
    }

    /// From now on only `seal` ends this version, and the host no longer refuses it.
    fn use_it(&mut self, version: Version) {
        self.state.refuses.remove(&version);
        if let Some(known) = self.state.known.get_mut(&version) {
            known.used = true;
        }
    }

    fn stage(
        &mut self,
        generation: Generation,
        version: Version,
        effect: EffectId,
        digest: Option<Digest>,
    ) -> Result<(), Refusal> {
        let standing = self.standing(generation, version, Taken::Stage)?;
        self.must_be_in_policy()?;
        self.must_live(version)?;
        let other = |known: &Known| known.effect != effect || known.digest != digest;
        if self.state.known.get(&version).is_some_and(other) {
            return refuse(
                RefusalCode::OtherDigest,
                format!("version {version} was staged with another content"),
            );
        }
        let staged = self.state.is_staged(version);
        if staged && standing == Standing::Again {
            return Ok(());
        }
        self.accept(generation, version, Taken::Stage);
        if !staged {
            let used = self.state.known.get(&version).is_some_and(|known| known.used);
            let known = Known { effect, digest, files: Files::Writing, used };
            self.state.known.insert(version, known);
            self.effects.push(HostEffect::Write { version });
        }
        Ok(())
    }

    fn arm(
        &mut self,
        generation: Generation,
        version: Version,
        in_ms: Millis,
        answers: Option<Generation>,
        age: Option<Millis>,
    ) -> Result<(), Refusal> {
        let standing = self.standing(generation, version, Taken::Arm)?;
        self.must_be_in_policy()?;
        self.must_live(version)?;
        self.must_be_answered(version, answers)?;
        if standing == Standing::Again {
            return Ok(());
        }
        self.must_be_staged(version)?;
        if in_ms > ARM_HORIZON_MS_MAX {
            return refuse(RefusalCode::Horizon, format!("at most {} ms ahead", ARM_HORIZON_MS_MAX.0));
        }
        let Some(age) = age else {
            return refuse(RefusalCode::ClockOff, "the clocks of both ends are too far apart");
        };
        if age > in_ms {
            return refuse(RefusalCode::Late, "the instant has passed");
        }
        self.accept(generation, version, Taken::Arm);
        self.use_it(version);
        if self.state.current() != Some(version) && self.state.flipping.is_none() {
            self.state.armed = Some(Armed { generation, version, at: self.now.plus(in_ms.since(age)) });
        }
        Ok(())
    }

    fn activate(
        &mut self,
        generation: Generation,
        version: Version,
        answers: Option<Generation>,
    ) -> Result<(), Refusal> {
        let standing = self.standing(generation, version, Taken::Activate)?;
        self.must_be_in_policy()?;
        self.must_live(version)?;
        self.must_be_answered(version, answers)?;
        if standing == Standing::Again {
            return Ok(());
        }
        self.must_be_staged(version)?;
        self.accept(generation, version, Taken::Activate);
        self.use_it(version);
        self.flip(Turn { generation, version, back: false });
        Ok(())
    }

    fn adopt(&mut self, generation: Generation, version: Version) -> Result<(), Refusal> {
        let standing = self.standing(generation, version, Taken::Adopt)?;
        self.must_live(version)?;
        self.must_be_answered(version, None)?;
        if self.state.current() != Some(version) {
            return refuse(RefusalCode::NotCurrent, format!("version {version} is not the current one"));
        }
        if standing == Standing::Next {
            self.accept(generation, version, Taken::Adopt);
            self.permit();
        }
        Ok(())
    }

    fn disarm(&mut self, generation: Generation, version: Version) -> Result<(), Refusal> {
        let standing = self.standing(generation, version, Taken::Disarm)?;
        if standing == Standing::Next {
            self.accept(generation, version, Taken::Disarm);
            self.state.armed = self.state.armed.filter(|armed| armed.version != version);
            self.state.flipping = self.state.flipping.filter(|turn| turn.back || turn.version != version);
        }
        Ok(())
    }

    fn roll_back(&mut self, generation: Generation, to: Version) -> Result<(), Refusal> {
        let standing = self.standing(generation, to, Taken::RollBack)?;
        self.must_live(to)?;
        self.must_be_answered(to, None)?;
        if standing == Standing::Again {
            return Ok(());
        }
        self.must_be_staged(to)?;
        self.accept(generation, to, Taken::RollBack);
        self.use_it(to);
        self.flip(Turn { generation, version: to, back: true });
        Ok(())
    }

    fn discard(&mut self, generation: Generation, version: Version) -> Result<(), Refusal> {
        let Some(known) = self.state.known.get_mut(&version) else { return Ok(()) };
        let wanted = self.state.intent.as_ref().filter(|intent| intent.version == version);
        if wanted.is_some_and(|intent| intent.generation > generation) {
            return refuse(RefusalCode::OlderGeneration, format!("version {version} is wanted again"));
        }
        if known.used || self.state.turn.is_some_and(|turn| turn.version == version) {
            return refuse(RefusalCode::InUse, format!("version {version} was armed or current: seal it"));
        }
        if !matches!(known.files, Files::Dropped | Files::Unlinked) {
            known.files = Files::Dropped;
            self.forget_taken(version, Taken::Stage);
            self.retry_unlinks();
        }
        Ok(())
    }

    /// Lets the order be taken again: what it asked for did not come about.
    pub(super) fn forget_taken(&mut self, version: Version, kind: Taken) {
        if let Some(intent) = self.state.intent.as_mut().filter(|intent| intent.version == version) {
            intent.taken.remove(&kind);
        }
    }

    /// Flips now, unless the version is current already; whatever was agreed upon before is over.
    fn flip(&mut self, turn: Turn) {
        self.state.armed = None;
        self.state.flipping = None;
        if self.state.current() == Some(turn.version) {
            if turn.back {
                self.permit();
            }
            return;
        }
        self.state.flipping = Some(turn);
        self.effects.push(HostEffect::Flip { version: turn.version });
    }
}
