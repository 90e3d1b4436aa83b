//! A path of a secret store as a target: there is no host that could be asked, so what a host would report is worked
//! out here from what was written, read back and destroyed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backends::{Failure, Mark, StoreTarget, Stored};
use lifecycle::report::Refused;
use lifecycle::{
    CredentialName, EffectId, Epoch, Evidence, Generation, Order, OrderKind, SetReport, Version,
};
use serde::{Deserialize, Serialize};
use store::Store;

use crate::value::Content;

/// How far a store target has come. Kept with the credential's state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StoreProgress {
    epoch: Option<Epoch>,
    sequence: u64,
    answers: u64,
    generation: Option<Generation>,
    /// The effect that minted each version that was written, and the store's number of it.
    written: BTreeMap<Version, (EffectId, u64)>,
    current: Option<Version>,
    disarmed: Option<Generation>,
    gone: BTreeSet<Version>,
    not_gone: BTreeMap<Version, String>,
    refused: Option<Refused>,
}

/// What is wanted of a store now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    Order { order: Order, value: Option<EffectId> },
    Ask { epoch: Epoch, question: u64 },
}

/// What carrying out needs.
pub(crate) struct Desk {
    pub(crate) installation: String,
    pub(crate) store: Store,
    pub(crate) name: CredentialName,
    pub(crate) target: Arc<dyn StoreTarget>,
}

impl StoreProgress {
    /// The snapshot that a host would send.
    pub(crate) fn report(&self) -> SetReport {
        SetReport {
            epoch: self.epoch,
            sequence: self.sequence,
            answers: self.answers,
            generation: self.generation,
            present: self.written.iter().map(|(version, (effect, _))| (*version, *effect)).collect(),
            disarmed: self.disarmed,
            current: self.current,
            permitted: self.current,
            adopted: self.current,
            gone: self.gone.iter().copied().collect(),
            not_gone: self.not_gone.clone(),
            refused: self.refused.clone(),
            evidence: Evidence::Declared,
            ..SetReport::default()
        }
    }

    /// Does one thing and reads back what stands there. An error is worth another try; a refusal is progress.
    pub(crate) async fn carry_out(mut self, desk: &Desk, task: &Task) -> Result<Self, String> {
        self.sequence += 1;
        match task {
            Task::Ask { epoch, question } => {
                self.epoch = Some(*epoch);
                let stored = desk.target.read_back().await.map_err(|failure| failure.to_string())?;
                self.look(stored.as_ref());
                self.answers = self.answers.max(*question);
            }
            Task::Order { order, value } => {
                self.epoch = Some(order.epoch);
                match self.obey(desk, order, *value).await {
                    Ok(()) => {}
                    Err(Failure::Retry(words)) => return Err(words),
                    Err(Failure::Refused(words)) => self.refuse(order, words),
                }
            }
        }
        Ok(self)
    }

    async fn obey(&mut self, desk: &Desk, order: &Order, value: Option<EffectId>) -> Result<(), Failure> {
        match &order.kind {
            OrderKind::Activate { version, .. } | OrderKind::RollBack { to: version } => {
                let effect = value.or_else(|| self.written.get(version).map(|(effect, _)| *effect));
                let effect = effect.ok_or_else(|| Failure::refused("the order names no value"))?;
                self.write(desk, order, *version, effect).await?;
                self.generation = Some(order.generation);
                self.refused = None;
            }
            OrderKind::Seal { version, withdraw, .. } => self.seal(desk, *version, *withdraw).await?,
            OrderKind::Disarm { .. } => {
                self.generation = Some(order.generation);
                self.disarmed = Some(order.generation);
            }
            OrderKind::Stage { .. } | OrderKind::Arm { .. } | OrderKind::Adopt { .. } => {
                self.generation = Some(order.generation);
            }
            OrderKind::Discard { .. } => {}
        }
        Ok(())
    }

    async fn write(
        &mut self,
        desk: &Desk,
        order: &Order,
        version: Version,
        effect: EffectId,
    ) -> Result<(), Failure> {
        let content = Content::load(&desk.store, &desk.name, effect).await;
        let content = content.map_err(|error| Failure::refused(error.to_string()))?;
        let stored = desk.target.read_back().await?;
        let (ours, after) = match &stored {
            None => (true, 0),
            Some(stored) => {
                let ours = stored.mark.as_ref().is_some_and(|mark| mark.installation == desk.installation)
                    || self.written.values().any(|(_, revision)| *revision == stored.revision)
                    || stored.value.same_as(&content.value);
                (ours, stored.revision)
            }
        };
        if !ours {
            return Err(Failure::refused(
                "somebody else's value stands there and is not overwritten: import it, or remove it",
            ));
        }
        let mark = Mark { installation: desk.installation.clone(), epoch: order.epoch, effect };
        let revision = desk.target.write(&mark, &content.value, after).await?;
        let stored = desk.target.read_back().await?;
        if !stored.as_ref().is_some_and(|stored| stored.value.same_as(&content.value)) {
            return Err(Failure::retry("what was read back is not what was written"));
        }
        self.written.insert(version, (effect, revision));
        self.current = Some(version);
        Ok(())
    }

    async fn seal(&mut self, desk: &Desk, version: Version, withdraw: bool) -> Result<(), Failure> {
        let stored = desk.target.read_back().await?;
        self.look(stored.as_ref());
        let kept = self.written.get(&version).map(|(_, revision)| *revision);
        match kept {
            Some(revision) if self.current == Some(version) => {
                if !withdraw {
                    self.not_gone.insert(version, "it is the store's current version".to_owned());
                    return Ok(());
                }
                desk.target.withdraw(revision).await?;
                self.current = None;
            }
            Some(revision) => desk.target.destroy(revision).await?,
            None => {}
        }
        self.written.remove(&version);
        self.not_gone.remove(&version);
        self.gone.insert(version);
        Ok(())
    }

    /// What stands there is told by its mark, or by its number where the mark was lost.
    fn look(&mut self, stored: Option<&Stored>) {
        let found = stored.and_then(|stored| {
            let marked = stored.mark.as_ref().map(|mark| mark.effect);
            let is = |(effect, revision): &(EffectId, u64)| match marked {
                Some(marked) => marked == *effect,
                None => stored.revision == *revision,
            };
            self.written.iter().find(|(_, written)| is(written)).map(|(version, _)| *version)
        });
        self.current = found;
    }

    fn refuse(&mut self, order: &Order, message: String) {
        self.refused = Some(Refused {
            generation: order.generation,
            version: order.kind.version(),
            code: "store_refused".to_owned(),
            message,
        });
    }
}
