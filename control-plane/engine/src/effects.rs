//! Carrying effects out at backends. Each may be carried out twice: what was done already is found done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backends::{Destroyed, Failure, Generator, Mark, Retiring, SecretValue, Source};
use lifecycle::credential::{Authority, Effect, EffectKind, Event, Outcome};
use lifecycle::{CredentialName, EffectId, Epoch};
use protocol::FileName;
use resources::Template;
use store::Store;
use tokio::sync::mpsc;

use crate::audit::{ENGINE, entry};
use crate::catalogue::{Brings, Equipment};
use crate::handle::Message;
use crate::inside::Inside;
use crate::metrics::Metrics;
use crate::value::{Content, ContentError};

/// How many versions that no value of ours belongs to one sweep takes up. Each is a version from then on, with rows of
/// its own and looked at again and again, and a backend can list as many as it likes. The next sweep takes up more, once
/// these are gone there.
const FOUND_MAX: usize = 100;

/// What carrying out needs, whatever the effect.
pub(crate) struct Means {
    pub(crate) installation: String,
    pub(crate) store: Store,
    pub(crate) metrics: Metrics,
    pub(crate) loop_: mpsc::Sender<Message>,
}

/// One effect with what it concerns.
pub(crate) struct Job {
    pub(crate) name: CredentialName,
    pub(crate) effect: Effect,
    pub(crate) epoch: Epoch,
    pub(crate) equipment: Equipment,
    /// The backends where the version that the effect names may be, the newest last; of a mint and a sweep only those
    /// beside the present one.
    pub(crate) places: Vec<Brings>,
    pub(crate) files: std::collections::BTreeMap<FileName, Template>,
    /// The store's number of the value, where a source brought it.
    pub(crate) revision: Option<u64>,
    /// For a sweep: what this and what other credentials account for, also what has ended, and whether what nobody
    /// accounts for is this one's.
    pub(crate) own: BTreeSet<EffectId>,
    pub(crate) foreign: BTreeSet<EffectId>,
    pub(crate) adopts_unknown: bool,
}

/// Carries it out and tells the loop. A process that dies on the way carries it out again.
pub(crate) async fn carry_out(means: Arc<Means>, job: Job) {
    let (name, effect, word) = (job.name.clone(), job.effect.id, word(&job.effect.kind));
    let steps = means.store.steps();
    if steps.twice() {
        // What came of the first time is lost, as when the process dies before it is committed.
        drop(job.run(&means).await);
    }
    let event = if steps.fails(word) { None } else { job.run(&means).await.map(Box::new) };
    means.metrics.effect(word, event.as_deref().map_or("again", outcome_word));
    if !means.store.steps().reached(word) {
        return;
    }
    let told = Message::inside(Inside::Outcome { name, effect, event });
    // When the loop is gone there is nobody to tell.
    drop(means.loop_.send(told).await);
}

pub(crate) const fn word(kind: &EffectKind) -> &'static str {
    match kind {
        EffectKind::Preflight => "preflight",
        EffectKind::Mint { .. } => "mint",
        EffectKind::Verify { .. } => "verify",
        EffectKind::Sample { .. } => "sample",
        EffectKind::EndSessions { .. } => "end_sessions",
        EffectKind::Revoke { .. } => "revoke",
        EffectKind::Send { .. } => "send",
        EffectKind::Ask { .. } => "ask",
        EffectKind::Sweep => "sweep",
        EffectKind::Audit { .. } => "audit",
    }
}

const fn outcome_word(event: &Event) -> &'static str {
    match event {
        Event::Preflighted { outcome, .. }
        | Event::Minted { outcome, .. }
        | Event::Verified { outcome, .. }
        | Event::SessionsEnded { outcome, .. }
        | Event::Revoked { outcome, .. } => match outcome {
            Outcome::Done => "done",
            Outcome::Failed(_) => "failed",
            Outcome::Refused(_) => "refused",
        },
        Event::Swept { found: None, .. } => "failed",
        _ => "done",
    }
}

/// Why something at a backend, or before it, did not go well.
enum Trouble {
    Backend(Failure),
    Content(ContentError),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Backend(failure)
    }
}

impl From<ContentError> for Trouble {
    fn from(error: ContentError) -> Self {
        Self::Content(error)
    }
}

fn outcome(result: Result<(), Trouble>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(Trouble::Backend(failure)) => failure.into(),
        // The store may answer again; nothing else about a content mends itself.
        Err(Trouble::Content(error @ ContentError::Store(_))) => Outcome::Failed(error.to_string()),
        Err(Trouble::Content(error)) => Outcome::Refused(error.to_string()),
    }
}

impl Job {
    async fn run(&self, means: &Means) -> Option<Event> {
        let effect = self.effect.id;
        match &self.effect.kind {
            EffectKind::Preflight => {
                Some(Event::Preflighted { effect, outcome: outcome(self.preflight(means).await) })
            }
            EffectKind::Mint { .. } => {
                Some(Event::Minted { effect, outcome: outcome(self.mint(means).await) })
            }
            EffectKind::Verify { minted_by, .. } => {
                Some(Event::Verified { effect, outcome: outcome(self.verify(means, *minted_by).await) })
            }
            EffectKind::Sample { minted_by, .. } => match self.sample(means, *minted_by).await {
                Ok(sessions) => Some(Event::Sampled { effect, sessions }),
                // Silence is not "no sessions": it is asked again.
                Err(_) => None,
            },
            EffectKind::EndSessions { minted_by, .. } => Some(Event::SessionsEnded {
                effect,
                outcome: outcome(self.end_sessions(means, *minted_by).await),
            }),
            EffectKind::Revoke { minted_by, .. } => {
                Some(Event::Revoked { effect, outcome: outcome(self.revoke(means, *minted_by).await) })
            }
            EffectKind::Sweep => Some(Event::Swept { effect, found: self.sweep(means).await }),
            EffectKind::Send { .. } | EffectKind::Ask { .. } | EffectKind::Audit { .. } => None,
        }
    }

    fn mark(&self, means: &Means) -> Mark {
        Mark { installation: means.installation.clone(), epoch: self.epoch, effect: self.effect.id }
    }

    async fn preflight(&self, means: &Means) -> Result<(), Trouble> {
        match &self.equipment.brings {
            Brings::Generator(generator) => {
                generator.preflight(&self.mark(means)).await?;
                self.try_revoking(means, generator.as_ref()).await
            }
            Brings::Source(_) => Ok(()),
        }
    }

    /// What is alive now is to be revoked once it is replaced, also what an import brought.
    async fn try_revoking(&self, means: &Means, generator: &dyn Generator) -> Result<(), Trouble> {
        if generator.authority() != Authority::Revokes {
            return Ok(());
        }
        for minted_by in means.store.values_of(&self.name).await.map_err(ContentError::from)? {
            if let Some(content) = Content::find(&means.store, &self.name, minted_by).await? {
                generator.try_revoking(minted_by, &content.value).await?;
            }
        }
        Ok(())
    }

    /// What we choose is stored before the backend is asked; what the backend chooses carries our mark first.
    async fn mint(&self, means: &Means) -> Result<(), Trouble> {
        let Some(generator) = self.equipment.generator() else {
            let words = "a source brings its values by itself: nothing can be minted";
            return Err(Failure::refused(words).into());
        };
        let effect = self.effect.id;
        let kept = Content::find(&means.store, &self.name, effect).await?;
        let chosen = match &kept {
            Some(content) => content.value.clone(),
            None => self.choose(means, generator.as_ref()).await?,
        };
        if let Some(value) = generator.mint(&self.mark(means), &chosen).await?
            && kept.is_none()
        {
            let content = Content::new(value, &self.files)?;
            content.keep(&means.store, &self.name, effect).await?;
            content.render()?;
        }
        match self.effect.kind {
            // It died by this mint, but only where that was.
            EffectKind::Mint { replaces: Some(replaced), .. } => self.revoke(means, replaced).await,
            _ => Ok(()),
        }
    }

    async fn choose(&self, means: &Means, generator: &dyn Generator) -> Result<SecretValue, Trouble> {
        let value = generator.new_value(self.effect.id)?;
        if value.is_empty() {
            return Ok(value);
        }
        let content = Content::new(value, &self.files)?;
        // A template that does not fit is found before anything exists at the backend.
        content.render()?;
        content.keep(&means.store, &self.name, self.effect.id).await?;
        Ok(Content::load(&means.store, &self.name, self.effect.id).await?.value)
    }

    async fn verify(&self, means: &Means, minted_by: EffectId) -> Result<(), Trouble> {
        let content = Content::load(&means.store, &self.name, minted_by).await?;
        match self.places.last() {
            Some(Brings::Generator(generator)) => Ok(generator.verify(minted_by, &content.value).await?),
            // Whoever rotates it vouches for it; that it renders is all that we can see.
            Some(Brings::Source(_)) | None => Ok(content.render().map(drop)?),
        }
    }

    async fn sample(&self, means: &Means, minted_by: EffectId) -> Result<Option<u32>, Trouble> {
        let content = Content::find(&means.store, &self.name, minted_by).await?;
        let mut all: Option<u32> = None;
        for generator in self.generators() {
            let found = generator.sessions(minted_by, content.as_ref().map(|content| &content.value)).await?;
            all = found.map_or(all, |found| Some(found.saturating_add(all.unwrap_or(0))));
        }
        Ok(all)
    }

    async fn end_sessions(&self, means: &Means, minted_by: EffectId) -> Result<(), Trouble> {
        let content = Content::find(&means.store, &self.name, minted_by).await?;
        for generator in self.generators() {
            generator.end_sessions(minted_by, content.as_ref().map(|content| &content.value)).await?;
        }
        Ok(())
    }

    async fn revoke(&self, means: &Means, minted_by: EffectId) -> Result<(), Trouble> {
        for place in &self.places {
            match place {
                Brings::Generator(generator) if generator.authority() == Authority::Revokes => {
                    let content = Content::find(&means.store, &self.name, minted_by).await?;
                    generator.revoke(minted_by, content.as_ref().map(|content| &content.value)).await?;
                }
                Brings::Source(source) if source.retiring() == Retiring::DestroyVersion => {
                    if let Some(revision) = self.revision {
                        self.destroy(means, source.as_ref(), revision).await?;
                    }
                }
                // The value is forgotten once the outcome is committed.
                _ => {}
            }
        }
        Ok(())
    }

    /// What is current at the source stays: its owner rotates and deletes. The version ends all the same, and the audit
    /// log says what is left.
    async fn destroy(&self, means: &Means, source: &dyn Source, revision: u64) -> Result<(), Trouble> {
        if let Destroyed::Left(words) = source.destroy(revision).await? {
            let words = format!("{words} and stays: it is its owner's to replace or delete");
            let row = entry(ENGINE, "left", &format!("credential/{}", self.name), &words);
            means.store.audit(row).await.map_err(ContentError::from)?;
        }
        Ok(())
    }

    /// What carries our mark here, and of this credential's own also where it was made before.
    async fn sweep(&self, means: &Means) -> Option<BTreeMap<EffectId, Epoch>> {
        let mut own = self.own.clone();
        own.extend(means.store.values_of(&self.name).await.ok()?);
        let mut found = BTreeMap::new();
        let mut strange = BTreeMap::new();
        let here = self.equipment.generator().into_iter().map(|generator| (generator, self.adopts_unknown));
        for (generator, adopts_unknown) in here.chain(self.generators().map(|generator| (generator, false))) {
            let marked = generator.orphans(&means.installation).await.ok()?;
            let effects = marked.into_iter().map(|marked| (marked.mark.effect, marked.mark.epoch));
            for (effect, epoch) in effects.filter(|(effect, _)| !self.foreign.contains(effect)) {
                if own.contains(&effect) {
                    found.insert(effect, epoch);
                } else if adopts_unknown {
                    strange.insert(effect, epoch);
                }
            }
        }
        if strange.len() > FOUND_MAX {
            let words = format!(
                "the backend lists {} versions without a value of ours: the first {FOUND_MAX} are taken up, the others by a later sweep, once these are gone there",
                strange.len()
            );
            let row = entry(ENGINE, "found_many", &format!("credential/{}", self.name), &words);
            means.store.audit(row).await.ok()?;
        }
        found.extend(strange.into_iter().take(FOUND_MAX));
        Some(found)
    }

    fn generators(&self) -> impl Iterator<Item = &Arc<dyn Generator>> {
        self.places.iter().filter_map(|place| match place {
            Brings::Generator(generator) => Some(generator),
            Brings::Source(_) => None,
        })
    }
}
