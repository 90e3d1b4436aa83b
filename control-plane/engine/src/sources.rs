//! Watching sources: what somebody else rotated is stored, then told to the loop.

use std::sync::Arc;
use std::time::Duration;

use backends::{Notice, SecretValue, Snapshot, Source};
use futures_util::StreamExt as _;
use lifecycle::{CredentialName, EffectId};
use protocol::FileName;
use resources::Template;
use tokio::sync::oneshot;

use crate::effects::Means;
use crate::handle::Message;
use crate::inside::Inside;
use crate::origin::Origin;
use crate::value::Content;

/// The pause before a value that the credential could not take is told again.
const AGAIN: Duration = Duration::from_secs(1);

/// One watched source. Ends with its handle.
pub(crate) struct Watch(tokio::task::JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Watch {
    /// `newest` is where the newest value that is known is stored: the same value is not told again.
    pub(crate) fn start(
        means: Arc<Means>,
        name: CredentialName,
        source: Arc<dyn Source>,
        origin: Origin,
        files: std::collections::BTreeMap<FileName, Template>,
        newest: Option<EffectId>,
    ) -> Self {
        Self(tokio::spawn(run(Watcher { means, name, origin, files }, source, newest)))
    }
}

struct Watcher {
    means: Arc<Means>,
    name: CredentialName,
    origin: Origin,
    files: std::collections::BTreeMap<FileName, Template>,
}

async fn run(watcher: Watcher, source: Arc<dyn Source>, newest: Option<EffectId>) {
    let mut last = match newest {
        Some(effect) => {
            let kept = Content::find(&watcher.means.store, &watcher.name, effect).await;
            kept.ok().flatten().map(|content| content.value)
        }
        None => None,
    };
    let mut changes = source.changes();
    while let Some(notice) = changes.next().await {
        match notice {
            Notice::Value(snapshot) => {
                watcher.fault(None).await;
                if last.as_ref().is_none_or(|last| !last.same_as(&snapshot.value)) {
                    last = Some(snapshot.value.clone());
                    watcher.tell(snapshot).await;
                }
            }
            Notice::Available => watcher.fault(None).await,
            Notice::Unavailable(failure) => watcher.fault(Some(failure.to_string())).await,
        }
    }
}

impl Watcher {
    async fn fault(&self, fault: Option<String>) {
        let told = Message::inside(Inside::SourceFault { name: self.name.clone(), fault });
        drop(self.means.loop_.send(told).await);
    }

    /// Stores the value, and tells it until the credential takes it.
    async fn tell(&self, snapshot: Snapshot) {
        let Some(effect) = self.keep(&snapshot.value).await else { return };
        loop {
            let (reply, answer) = oneshot::channel();
            let told = Inside::Noticed {
                name: self.name.clone(),
                value: effect,
                revision: snapshot.revision,
                origin: self.origin.clone(),
                reply,
            };
            if self.means.loop_.send(Message::inside(told)).await.is_err() {
                return;
            }
            match answer.await {
                Ok(false) => tokio::time::sleep(AGAIN).await,
                Ok(true) | Err(_) => return,
            }
        }
    }

    async fn keep(&self, value: &SecretValue) -> Option<EffectId> {
        let effect = random_effect()?;
        let content = Content::new(value.clone(), &self.files);
        let kept = match &content {
            Ok(content) => match content.render() {
                Ok(_) => content.keep(&self.means.store, &self.name, effect).await,
                Err(error) => Err(error),
            },
            Err(_) => return None,
        };
        match kept {
            Ok(()) => Some(effect),
            Err(error) => {
                self.fault(Some(error.to_string())).await;
                None
            }
        }
    }
}

/// Drawn at random; none when the system gives no randomness.
pub(crate) fn random_effect() -> Option<EffectId> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(EffectId(u128::from_be_bytes(bytes)))
}
