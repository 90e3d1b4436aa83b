//! What every handler can reach.

use std::path::PathBuf;
use std::sync::Arc;

use engine::Handle;
use identity::Identities;
use protocol::UnixMillis;
use store::{Audit, Store};
use tokio::sync::watch;

use crate::denials::Denials;
use crate::figures::Figures;
use crate::readiness::Readiness;

/// What every handler can reach. Cloning is cheap.
#[derive(Clone)]
pub struct App(Arc<Parts>, Figures, Arc<Denials>, Arc<Readiness>);

/// The parts of a running control plane.
pub struct Parts {
    /// Answers about credentials and hosts, and does what is asked.
    pub handle: Handle,
    /// Knows who is who.
    pub identities: Arc<Identities>,
    /// For the audit log and backups.
    pub store: Store,
    /// Where hosts call us; it stands in enrolment bundles.
    pub url: String,
    /// Where backups go.
    pub backups: PathBuf,
    /// Becomes true when we are to end: whoever waits for something is answered at once.
    pub stopping: watch::Receiver<bool>,
}

impl App {
    /// From its parts.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts), Figures::new(), Arc::default(), Arc::default())
    }

    pub(crate) fn figures(&self) -> &Figures {
        &self.1
    }

    pub(crate) fn denials(&self) -> &Denials {
        &self.2
    }

    pub(crate) fn readiness(&self) -> &Readiness {
        &self.3
    }

    /// Writes one entry to the audit log; a failure is logged, since the answer is given already.
    pub(crate) async fn audit(&self, actor: &str, action: &str, subject: &str, detail: &str) {
        let entry = Audit {
            at_ms: UnixMillis::now().0,
            actor: actor.to_owned(),
            action: action.to_owned(),
            subject: subject.to_owned(),
            detail: detail.to_owned(),
        };
        if let Err(error) = self.store.audit(entry).await {
            tracing::error!(%error, action, subject, "failed to write the audit log");
        }
    }
}

impl std::ops::Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}
