//! What the API speaks to: views of everything, one verb per wish, and the reports of hosts.

use std::collections::BTreeMap;

use backends::SecretValue;
use lifecycle::{CredentialName, GapId, HolderId, Millis, TargetId, Version};
use protocol::api::{
    AuditPage, CredentialDetail, CredentialSummary, DryRun, HolderView, HostDetail, HostSummary, Imported,
    PendingVersion, Problem, RolloutView, Rotated, Status, Why,
};
use protocol::{Frame, HostId, InstallationId, TrustAnchor};
use store::Store;
use tokio::sync::{mpsc, oneshot, watch};

use crate::metrics::Metrics;
use crate::world::World;

/// How many wishes and outcomes may wait for the engine before senders wait too.
pub(crate) const QUEUE_MAX: usize = 4096;

/// A handle on the running engine. Cloning is cheap; every answer is given after what it tells of was committed.
#[derive(Clone)]
pub struct Handle {
    pub(crate) messages: mpsc::Sender<Message>,
    pub(crate) changes: watch::Receiver<u64>,
    pub(crate) metrics: Metrics,
    pub(crate) store: Store,
    pub(crate) anchor: TrustAnchor,
}

/// Why the engine did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// Nothing of that name.
    #[error("{0} does not exist")]
    Missing(String),
    /// The core refuses it in this state. `code` is a stable word such as `too_many_live`.
    #[error("{message}")]
    Refused {
        /// A stable word for programs.
        code: String,
        /// Why, with the object.
        message: String,
        /// What to do next.
        action: String,
    },
    /// The credential has no such part. `code` is a stable word such as `unknown_version`.
    #[error("{message}")]
    Unknown {
        /// A stable word for programs.
        code: &'static str,
        /// What is not there.
        message: String,
        /// Where it is said what is.
        action: &'static str,
    },
    /// A host's report was not taken. `code` is a stable word such as `foreign_key`.
    #[error("refused a report: {message}")]
    Report {
        /// A stable word for programs.
        code: &'static str,
        /// Why.
        message: String,
    },
    /// What was asked for cannot be meant.
    #[error("{0}")]
    Invalid(String),
    /// The database did not take it; nothing was changed.
    #[error("{0}")]
    Store(String),
    /// The engine has ended.
    #[error("the engine is not running")]
    Ended,
}

impl HandleError {
    /// The same as an error of the API.
    pub fn problem(&self) -> Problem {
        let text = self.to_string();
        match self {
            Self::Missing(_) => Problem::new(
                404,
                "not_found",
                text,
                "compare the name with `esoctl credential list` and `esoctl host list`",
            ),
            Self::Refused { code, action, .. } => Problem::new(409, code.clone(), text, action.clone()),
            Self::Unknown { code, action, .. } => Problem::new(404, *code, text, *action),
            Self::Report { code, .. } => {
                Problem::new(403, *code, text, "see the host's log, and enrol it again if its key changed")
            }
            Self::Invalid(_) => Problem::new(422, "invalid", text, "correct the request"),
            Self::Store(_) => Problem::new(503, "store", text, "see the control plane's log, then try again"),
            Self::Ended => Problem::new(503, "ended", text, "try again once the control plane is up"),
        }
    }
}

/// One verb about one credential, as an operator says it.
#[derive(Debug)]
pub(crate) enum Verb {
    Rotate { compromised: bool, deadline: Option<Millis> },
    Halt { reason: String },
    Resume,
    Abort { reason: String },
    Hold { version: Version, reason: String },
    Unhold { version: Version },
    Excuse { target: TargetId, version: Version, reason: String },
    ClearHolder { target: TargetId, holder: HolderId, reason: String },
    ClearGap { target: TargetId, gap: GapId, reason: String },
    Delete { reason: String },
    Force { version: Version, reason: String },
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, HandleError>>;
pub(crate) type View = Box<dyn FnOnce(&World) + Send>;

/// What reaches the loop from outside of it.
pub(crate) enum Message {
    /// Look at everything as it is committed.
    View(View),
    /// Do something to one credential.
    Verb { actor: String, name: CredentialName, verb: Verb, reply: Reply<()> },
    /// Take a value as version 0.
    Import { actor: String, name: CredentialName, value: SecretValue, reply: Reply<Version> },
    /// Ask the sources again.
    Refresh { actor: String, name: Option<CredentialName>, reply: Reply<u32> },
    /// A report frame; `pushed` when it is the answer to a push of ours.
    Report { frame: Frame, peer: Option<HostId>, reply: Reply<Frame> },
    /// A host enrolled, or its row in the store changed.
    HostChanged { host: HostId, reply: Reply<()> },
    /// A host is gone for good.
    RetireHost { actor: String, host: HostId, reason: String, reply: Reply<()> },
    /// A store target is gone for good.
    RetireStore { actor: String, target: TargetId, reason: String, reply: Reply<()> },
    /// Something inside happened.
    Inside(Box<crate::inside::Inside>),
}

impl Message {
    pub(crate) fn inside(inside: crate::inside::Inside) -> Self {
        Self::Inside(Box::new(inside))
    }
}

impl Handle {
    /// Which installation this is.
    pub const fn installation(&self) -> InstallationId {
        self.anchor.installation
    }

    /// What a new host is to trust: installation and order key.
    pub const fn trust_anchor(&self) -> &TrustAnchor {
        &self.anchor
    }

    /// The metrics, for `/metrics`.
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Counts commits: wait on it for `--watch`, then ask for the views again.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Comes back once the engine's loop has taken what was asked of it before, and costs it nothing.
    pub async fn answers(&self) -> Result<(), HandleError> {
        self.view(|_| ()).await
    }

    /// The whole installation at one look.
    pub async fn status(&self) -> Result<Status, HandleError> {
        self.view(World::status).await
    }

    /// All credentials, by name.
    pub async fn credentials(&self) -> Result<Vec<CredentialSummary>, HandleError> {
        self.view(World::summaries).await
    }

    /// One credential.
    pub async fn credential(&self, name: &CredentialName) -> Result<CredentialDetail, HandleError> {
        let name = name.clone();
        self.view(move |world| world.detail(&name)).await?
    }

    /// The rollout under way; none when nothing rolls.
    pub async fn rollout(&self, name: &CredentialName) -> Result<Option<RolloutView>, HandleError> {
        let name = name.clone();
        self.view(move |world| world.rollout(&name)).await?
    }

    /// Superseded versions that are not retired yet, with what keeps them.
    pub async fn pending(&self) -> Result<Vec<PendingVersion>, HandleError> {
        self.view(World::pending).await
    }

    /// Who may have what; of one credential if it is named.
    pub async fn holders(&self, name: Option<&CredentialName>) -> Result<Vec<HolderView>, HandleError> {
        let name = name.cloned();
        self.view(move |world| world.holders(name.as_ref())).await
    }

    /// What keeps a version alive.
    pub async fn why(&self, name: &CredentialName, version: Version) -> Result<Why, HandleError> {
        let name = name.clone();
        self.view(move |world| world.why(&name, version)).await?
    }

    /// All hosts that ever enrolled.
    pub async fn hosts(&self) -> Result<Vec<HostSummary>, HandleError> {
        self.view(World::host_summaries).await
    }

    /// One host with its newest reports, by its id or by its name where only one host that is not retired has it.
    pub async fn host(&self, id_or_name: &str) -> Result<HostDetail, HandleError> {
        let wanted = id_or_name.to_owned();
        self.view(move |world| world.host_detail(&wanted)).await?
    }

    /// At most `limit` rows of the audit log after row `after`, oldest first; of one subject
    /// (`credential/orders-db`, `host/ID`) if it is named.
    pub async fn audit(
        &self,
        after: u64,
        limit: u32,
        subject: Option<String>,
    ) -> Result<AuditPage, HandleError> {
        crate::views::audit_page(&self.store, after, limit, subject).await
    }

    /// The newest `limit` rows of the audit log before row `before`, or of all, oldest first; of one subject if it is
    /// named.
    pub async fn audit_before(
        &self,
        before: Option<u64>,
        limit: u32,
        subject: Option<String>,
    ) -> Result<AuditPage, HandleError> {
        crate::views::audit_page_before(&self.store, before, limit, subject).await
    }

    /// Mint a new version and roll it out. `deadline` only with `compromised`.
    pub async fn rotate(
        &self,
        actor: &str,
        name: &CredentialName,
        compromised: bool,
        deadline: Option<Millis>,
    ) -> Result<Rotated, HandleError> {
        self.verb(actor, name, Verb::Rotate { compromised, deadline }).await?;
        let name = name.clone();
        self.view(move |world| world.rotated(&name)).await?
    }

    /// Whether [`Handle::rotate`] would be accepted, and where the version would go. Changes nothing.
    pub async fn rotate_dry_run(
        &self,
        name: &CredentialName,
        compromised: bool,
    ) -> Result<DryRun, HandleError> {
        let name = name.clone();
        self.view(move |world| world.dry_run(&name, compromised)).await?
    }

    /// Stop the rollout and flip back who has not adopted.
    pub async fn halt(&self, actor: &str, name: &CredentialName, reason: &str) -> Result<(), HandleError> {
        self.verb(actor, name, Verb::Halt { reason: reason.to_owned() }).await
    }

    /// Go on with a halted rollout; answers the targets' own rollbacks.
    pub async fn resume(&self, actor: &str, name: &CredentialName) -> Result<(), HandleError> {
        self.verb(actor, name, Verb::Resume).await
    }

    /// Give the new version up: everybody flips back, also who had adopted.
    pub async fn abort(&self, actor: &str, name: &CredentialName, reason: &str) -> Result<(), HandleError> {
        self.verb(actor, name, Verb::Abort { reason: reason.to_owned() }).await
    }

    /// A version must stay alive.
    pub async fn hold(
        &self,
        actor: &str,
        name: &CredentialName,
        version: Version,
        reason: &str,
    ) -> Result<(), HandleError> {
        self.verb(actor, name, Verb::Hold { version, reason: reason.to_owned() }).await
    }

    /// The end of every hold on a version, also of one that a restore or an import made.
    pub async fn unhold(
        &self,
        actor: &str,
        name: &CredentialName,
        version: Version,
    ) -> Result<(), HandleError> {
        self.verb(actor, name, Verb::Unhold { version }).await
    }

    /// One target does not count for one version, until it reports again.
    pub async fn excuse(
        &self,
        actor: &str,
        name: &CredentialName,
        target: TargetId,
        version: Version,
        reason: &str,
    ) -> Result<(), HandleError> {
        self.verb(actor, name, Verb::Excuse { target, version, reason: reason.to_owned() }).await
    }

    /// One holder is gone, on an operator's word.
    pub async fn clear_holder(
        &self,
        actor: &str,
        name: &CredentialName,
        target: TargetId,
        holder: HolderId,
        reason: &str,
    ) -> Result<(), HandleError> {
        self.verb(actor, name, Verb::ClearHolder { target, holder, reason: reason.to_owned() }).await
    }

    /// One gap or lost place is gone, on an operator's word.
    pub async fn clear_gap(
        &self,
        actor: &str,
        name: &CredentialName,
        target: TargetId,
        gap: GapId,
        reason: &str,
    ) -> Result<(), HandleError> {
        self.verb(actor, name, Verb::ClearGap { target, gap, reason: reason.to_owned() }).await
    }

    /// Withdraw a credential everywhere and retire its versions. Its resource must be gone first.
    pub async fn delete(&self, actor: &str, name: &CredentialName, reason: &str) -> Result<(), HandleError> {
        self.verb(actor, name, Verb::Delete { reason: reason.to_owned() }).await
    }

    /// Retire a version without waiting for the gate.
    pub async fn force(
        &self,
        actor: &str,
        name: &CredentialName,
        version: Version,
        reason: &str,
    ) -> Result<(), HandleError> {
        self.verb(actor, name, Verb::Force { version, reason: reason.to_owned() }).await
    }

    /// Take an existing value as version 0, which starts held.
    pub async fn import(
        &self,
        actor: &str,
        name: &CredentialName,
        fields: SecretValue,
    ) -> Result<Imported, HandleError> {
        let (actor, name) = (actor.to_owned(), name.clone());
        let version = self.ask(|reply| Message::Import { actor, name, value: fields, reply }).await?;
        let message = format!("imported as version {version}; it is held until `esoctl credential unhold`");
        Ok(Imported { version, message })
    }

    /// Look at the sources now, whatever the waiting; of one credential if it is named. How many were asked.
    pub async fn refresh(&self, actor: &str, name: Option<&CredentialName>) -> Result<u32, HandleError> {
        let (actor, name) = (actor.to_owned(), name.cloned());
        self.ask(|reply| Message::Refresh { actor, name, reply }).await
    }

    /// Takes a report frame, as it came over the connection of `peer`. Answers with the acknowledgement once
    /// everything that it changed is committed.
    pub async fn report(&self, frame: Frame, peer: HostId) -> Result<Frame, HandleError> {
        self.ask(|reply| Message::Report { frame, peer: Some(peer), reply }).await
    }

    /// A host enrolled, or its labels, address or keys changed in the store.
    pub async fn host_changed(&self, host: HostId) -> Result<(), HandleError> {
        self.ask(|reply| Message::HostChanged { host, reply }).await
    }

    /// Replaces a host's labels, which selectors match.
    pub async fn label_host(
        &self,
        actor: &str,
        host: HostId,
        labels: BTreeMap<String, String>,
    ) -> Result<(), HandleError> {
        let words: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let audit = crate::audit::entry(actor, "label_host", &format!("host/{host}"), &words.join(","));
        self.store.set_host_labels(&host.to_string(), labels, audit).await.map_err(from_store)?;
        self.host_changed(host).await
    }

    /// The host is gone for good: covers all versions of all credentials.
    pub async fn retire_host(&self, actor: &str, host: HostId, reason: &str) -> Result<(), HandleError> {
        let (actor, reason) = (actor.to_owned(), reason.to_owned());
        self.ask(|reply| Message::RetireHost { actor, host, reason, reply }).await
    }

    /// A target that is no host, by its name as `esoctl` shows it (`store:VaultKv/apps`), with or without `store:`.
    pub async fn store_target(&self, named: &str) -> Result<TargetId, HandleError> {
        let named = named.to_owned();
        self.view(move |world| world.store_target(&named)).await?
    }

    /// A store target is gone for good: covers all versions of all credentials. Refused while a resource names it.
    pub async fn retire_store(&self, actor: &str, target: TargetId, reason: &str) -> Result<(), HandleError> {
        let (actor, reason) = (actor.to_owned(), reason.to_owned());
        self.ask(|reply| Message::RetireStore { actor, target, reason, reply }).await
    }

    async fn verb(&self, actor: &str, name: &CredentialName, verb: Verb) -> Result<(), HandleError> {
        let (actor, name) = (actor.to_owned(), name.clone());
        self.ask(|reply| Message::Verb { actor, name, verb, reply }).await
    }

    async fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T, HandleError> {
        let (reply, answer) = oneshot::channel();
        self.messages.send(message(reply)).await.map_err(|_| HandleError::Ended)?;
        answered(&self.messages, answer).await.ok_or(HandleError::Ended)?
    }

    async fn view<T: Send + 'static>(
        &self,
        look: impl FnOnce(&World) -> T + Send + 'static,
    ) -> Result<T, HandleError> {
        let (reply, answer) = oneshot::channel();
        let look: View = Box::new(unless_gone(reply, look));
        self.messages.send(Message::View(look)).await.map_err(|_| HandleError::Ended)?;
        answered(&self.messages, answer).await.ok_or(HandleError::Ended)
    }
}

/// The answer to a message, or `None` once nobody is left to give it. A message that is sent in the moment in which
/// its receiver is dropped stays in the channel, and the place for its answer in it, for as long as there are senders:
/// whoever waits for the answer alone and is a sender waits for ever.
async fn answered<M, T>(messages: &mpsc::Sender<M>, mut answer: oneshot::Receiver<T>) -> Option<T> {
    tokio::select! {
        answer = &mut answer => answer.ok(),
        // It may have been given between the two looks.
        () = messages.closed() => answer.try_recv().ok(),
    }
}

/// Looks and answers, unless whoever asked has gone: what they asked for may be large.
fn unless_gone<W: ?Sized, T>(reply: oneshot::Sender<T>, look: impl FnOnce(&W) -> T) -> impl FnOnce(&W) {
    move |world| {
        if !reply.is_closed() {
            drop(reply.send(look(world)));
        }
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("installation", &self.anchor.installation).finish_non_exhaustive()
    }
}

pub(crate) fn from_store(error: store::StoreError) -> HandleError {
    match error {
        store::StoreError::Missing(what) => HandleError::Missing(what),
        other => HandleError::Store(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_worked_out_for_who_has_gone() {
        let (reply, answer) = oneshot::channel();
        drop(answer);
        unless_gone(reply, |(): &()| panic!("worked out for nobody"))(&());
        let (reply, mut answer) = oneshot::channel();
        unless_gone(reply, |(): &()| 7)(&());
        assert_eq!(answer.try_recv(), Ok(7));
    }

    #[tokio::test]
    async fn who_asks_in_the_moment_in_which_the_engine_ends_is_told_so() {
        let (messages, inbox) = mpsc::channel(1);
        let asking = messages.reserve().await.unwrap();
        drop(inbox);
        let (reply, answer) = oneshot::channel::<()>();
        asking.send(reply);
        assert_eq!(answered(&messages, answer).await, None);
    }

    #[tokio::test]
    async fn an_answer_that_was_given_before_the_engine_ended_is_heard() {
        let (messages, inbox) = mpsc::channel::<()>(1);
        let (reply, answer) = oneshot::channel();
        reply.send(7).unwrap();
        drop(inbox);
        assert_eq!(answered(&messages, answer).await, Some(7));
    }
}
