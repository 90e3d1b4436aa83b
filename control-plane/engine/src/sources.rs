//! Watching sources: what somebody else rotated is stored, then told to the loop.

use std::sync::Arc;
use std::time::Duration;

use backends::{Notice, SecretValue, Snapshot, Source};
use futures_util::StreamExt as _;
use lifecycle::{CredentialName, EffectId};
use protocol::FileName;
use resources::Template;
use store::ValueDigest;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::effects::Means;
use crate::handle::Message;
use crate::inside::Inside;
use crate::origin::Origin;
use crate::value::{Content, ContentError};

/// The pause before a value that could not be kept, or that the credential could not take, is told again.
const AGAIN: Duration = Duration::from_secs(1);

/// One watched source. Ends with its handle.
pub(crate) struct Watch(tokio::task::JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a watch knows of the value that its source brought last: the same one is not told again, also when it was given
/// up and erased since.
pub(crate) enum Known {
    /// There was none.
    Nothing,
    /// What tells it apart.
    Digest(ValueDigest),
    /// Where it is kept, if it still is.
    Kept(EffectId),
}

impl Watch {
    pub(crate) fn start(
        means: Arc<Means>,
        name: CredentialName,
        source: Arc<dyn Source>,
        origin: Origin,
        files: std::collections::BTreeMap<FileName, Template>,
        known: Known,
    ) -> Self {
        Self(tokio::spawn(run(Watcher { means, name, origin, files }, source, known)))
    }
}

struct Watcher {
    means: Arc<Means>,
    name: CredentialName,
    origin: Origin,
    files: std::collections::BTreeMap<FileName, Template>,
}

async fn run(watcher: Watcher, source: Arc<dyn Source>, known: Known) {
    let mut last = watcher.last(known).await;
    let mut changes = source.changes();
    // A source tells a value only once. Until it is kept and taken it waits here, whatever fails meanwhile.
    let mut waiting: Option<Waiting> = None;
    loop {
        let notice = tokio::select! {
            notice = changes.next() => notice,
            () = pause(waiting.as_ref()), if waiting.is_some() => {
                let Some(told) = waiting.as_mut() else { continue };
                match watcher.tell(told).await {
                    Told::Taken => last = waiting.take().map(|told| told.digest),
                    Told::Later => told.again = Instant::now() + AGAIN,
                    Told::Nobody => return,
                }
                continue;
            }
        };
        match notice {
            Some(Notice::Value(snapshot)) => {
                watcher.fault(None).await;
                if let Some(overtaken) = waiting.take() {
                    watcher.forget(overtaken).await;
                }
                let digest = watcher.digest(&snapshot.value).await;
                if last.as_ref() != Some(&digest) {
                    waiting = Some(Waiting { snapshot, digest, kept: None, again: Instant::now() });
                }
            }
            Some(Notice::Available) => watcher.fault(None).await,
            Some(Notice::Unavailable(failure)) => watcher.fault(Some(failure.to_string())).await,
            None => return,
        }
    }
}

/// A value on its way to the credential.
struct Waiting {
    snapshot: Snapshot,
    digest: ValueDigest,
    /// Where it is stored, once it is.
    kept: Option<EffectId>,
    /// When it is tried, for the first time or again.
    again: Instant,
}

/// What came of telling a value.
enum Told {
    Taken,
    Later,
    /// The engine has ended.
    Nobody,
}

async fn pause(waiting: Option<&Waiting>) {
    if let Some(waiting) = waiting {
        tokio::time::sleep_until(waiting.again).await;
    }
}

impl Watcher {
    async fn last(&self, known: Known) -> Option<ValueDigest> {
        match known {
            Known::Nothing => None,
            Known::Digest(digest) => Some(digest),
            Known::Kept(effect) => Some(self.digest(&self.kept(effect).await?).await),
        }
    }

    /// A store that does not answer is asked until it does: what is taken for news would become a version.
    async fn kept(&self, effect: EffectId) -> Option<SecretValue> {
        loop {
            match Content::find(&self.means.store, &self.name, effect).await {
                Ok(kept) => return kept.map(|content| content.value),
                Err(ContentError::Store(_)) => tokio::time::sleep(AGAIN).await,
                Err(_) => return None,
            }
        }
    }

    /// The same, of telling a value apart.
    async fn digest(&self, value: &SecretValue) -> ValueDigest {
        loop {
            match self.means.store.value_digest(&self.name, value.expose_encoded().into()).await {
                Ok(digest) => return digest,
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    async fn fault(&self, fault: Option<String>) {
        let told = Message::inside(Inside::SourceFault { name: self.name.clone(), fault });
        drop(self.means.loop_.send(told).await);
    }

    /// Stores the value, then tells it.
    async fn tell(&self, waiting: &mut Waiting) -> Told {
        let value = match waiting.kept {
            Some(kept) => kept,
            None => match self.keep(&waiting.snapshot.value).await {
                Ok(kept) => *waiting.kept.insert(kept),
                Err(error) => {
                    self.fault(Some(error.to_string())).await;
                    return Told::Later;
                }
            },
        };
        let (reply, answer) = oneshot::channel();
        let told = Inside::Noticed {
            name: self.name.clone(),
            value,
            digest: waiting.digest.clone(),
            revision: waiting.snapshot.revision,
            origin: self.origin.clone(),
            reply,
        };
        if self.means.loop_.send(Message::inside(told)).await.is_err() {
            return Told::Nobody;
        }
        match answer.await {
            Ok(true) => Told::Taken,
            Ok(false) => Told::Later,
            Err(_) => Told::Nobody,
        }
    }

    async fn keep(&self, value: &SecretValue) -> Result<EffectId, ContentError> {
        let effect = random_effect().ok_or(ContentError::Random(protocol::key::RandomFailed))?;
        let content = Content::new(value.clone(), &self.files)?;
        content.render()?;
        content.keep(&self.means.store, &self.name, effect).await?;
        self.fault(None).await;
        Ok(effect)
    }

    /// A newer value came before the credential took this one.
    async fn forget(&self, waiting: Waiting) {
        let Some(kept) = waiting.kept else { return };
        if let Err(error) = self.means.store.erase_value(&self.name, kept).await {
            tracing::warn!(credential = %self.name, %error, "failed to erase a value that nobody took");
        }
    }
}

/// Drawn at random; none when the system gives no randomness.
pub(crate) fn random_effect() -> Option<EffectId> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(EffectId(u128::from_be_bytes(bytes)))
}
