//! What operators are told.

use std::collections::BTreeMap;

use lifecycle::credential::Policy;
use lifecycle::{
    ConsumerName, CredentialName, EffectId, Epoch, Evidence, Generation, SetName, SetReport, TargetId,
    Version,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::enrol::Bundle;
use crate::id::{HostId, InstallationId};
use crate::report::{Means, Notice};

/// What somebody may do. Each role may do what the ones before it may, but for `scraper`, which stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads `/metrics` and nothing else.
    Scraper,
    /// Reads everything but values, which nobody reads.
    Viewer,
    /// Rotates, halts, holds, clears and excuses.
    Operator,
    /// Decides who gets values: issues enrolment tokens, labels hosts, imports. Overrides the gate, deletes, retires
    /// hosts, makes operators and backups.
    Admin,
}

/// Who is asking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Whoami {
    /// Their name.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Until when.
    pub expires_at: UnixMillis,
}

/// The whole installation at one look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Which installation.
    pub installation: InstallationId,
    /// The program's version.
    pub program: String,
    /// The life of the store in force.
    pub epoch: Epoch,
    /// Whether the control plane still waits for reachable targets after its start: nothing goes out meanwhile.
    pub starting: bool,
    /// Credentials by phase.
    pub credentials: BTreeMap<CredentialPhase, u32>,
    /// Hosts by phase.
    pub hosts: BTreeMap<HostPhase, u32>,
    /// Superseded versions that are not retired yet.
    pub pending_versions: u32,
    /// What cannot go on without an operator.
    pub stuck: Vec<Stuck>,
    /// Targets that do not take the version that they should have.
    #[serde(default)]
    pub refusals: Vec<Refusal>,
    /// Resources that were not taken; the last good ones stay in force.
    pub resource_faults: Vec<ResourceFault>,
}

/// Something that cannot go on without an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stuck {
    /// Of which credential.
    pub credential: CredentialName,
    /// Which version, where it is one.
    pub version: Option<Version>,
    /// Why, without values.
    pub reason: String,
    /// What the operator does.
    pub action: String,
}

/// A target that does not take a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// Of which credential.
    pub credential: CredentialName,
    /// Which version.
    pub version: Version,
    /// What people call the target.
    pub name: String,
    /// The target's stable word and what it says.
    pub reason: String,
}

/// A resource that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResourceFault {
    /// The file, or the object.
    pub file: String,
    /// The line, where it is known.
    pub line: Option<u32>,
    /// Why, with the key and the nearest known one.
    pub message: String,
}

/// Where a credential is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CredentialPhase {
    /// No version yet.
    Empty,
    /// One version is active everywhere, nothing is under way.
    Active,
    /// A new version is on its way.
    Rolling,
    /// Its rollout was stopped.
    Halted,
    /// An operator is needed.
    Stuck,
    /// Its resource vanished: still served, never retired.
    Orphaned,
    /// It is being withdrawn everywhere.
    Deleting,
}

/// One credential in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CredentialSummary {
    /// Its name.
    pub name: CredentialName,
    /// Where it is.
    pub phase: CredentialPhase,
    /// The active version.
    pub current: Option<Version>,
    /// The version that is on its way.
    pub rolling: Option<Version>,
    /// How many versions the backend holds.
    pub live_versions: u32,
    /// How many targets count.
    pub targets: u32,
    /// How many of them adopted the newest version.
    pub adopted: u32,
    /// When its schedule rotates it next.
    pub next_rotation_at: Option<UnixMillis>,
}

/// One credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CredentialDetail {
    /// As in the list.
    #[serde(flatten)]
    pub summary: CredentialSummary,
    /// What people decided about it.
    pub policy: Policy,
    /// Every version that is known, newest first.
    pub versions: Vec<VersionDetail>,
    /// The rollout under way.
    pub rollout: Option<RolloutView>,
    /// The wish that waits for the end of this rollout: `schedule`, `demand`, `compromised` or `noticed`.
    pub pending_wish: Option<String>,
    /// What cannot go on without an operator.
    pub stuck: Vec<Stuck>,
}

/// Where a version is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VersionPhase {
    /// The backend is asked for it.
    Minting,
    /// The backend has it.
    Minted,
    /// On its way to the targets.
    Rolling,
    /// The one that is used.
    Active,
    /// A later one is used; its gate is not passed yet.
    Superseded,
    /// Its gate is passed; the targets forget it.
    Sealing,
    /// It is being revoked.
    Retiring,
    /// Revoked, and that was proved.
    Retired,
    /// Forgotten by us; safe to delete where it came from.
    Erased,
    /// An operator is needed.
    Stuck,
}

/// One version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VersionDetail {
    /// Its number.
    pub version: Version,
    /// Where it is.
    pub phase: VersionPhase,
    /// Whether it was given up before it became active.
    pub aborted: bool,
    /// Whether it is in foreign hands.
    pub compromised: bool,
    /// Who holds it alive.
    pub holds: Vec<HeldBy>,
    /// The effect that minted it: names at the backend are made from it.
    pub effect: Option<EffectId>,
    /// Since when it is in this phase.
    pub since: Option<UnixMillis>,
    /// How far it has come on each target.
    pub deliveries: Vec<DeliveryView>,
    /// What was measured on its road.
    pub figures: Figures,
}

/// What was measured on a version's road. For people: nothing is decided by it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Figures {
    /// Milliseconds between the first and the last flip of the targets that flipped at the common instant, canaries
    /// and latecomers left out. By the targets' own clocks, put right as far as they are known to differ from ours.
    pub flip_skew_ms: Option<u64>,
    /// How many targets that is made from.
    pub flipped_together: u32,
    /// Milliseconds from the moment at which the gate found no holder any more to the call that revokes it.
    pub last_holder_to_revoke_ms: Option<u64>,
    /// To the proof that it is revoked.
    pub last_holder_to_revoked_ms: Option<u64>,
}

/// When a version became current on a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlipView {
    /// By the target's own clock, put right by `clock_ahead_ms`.
    pub at: UnixMillis,
    /// By how much the target's clock is ahead of ours, as far as that is certain; 0 where they may agree.
    pub clock_ahead_ms: i64,
    /// Whether it was at an agreed instant, as against at once.
    pub at_instant: bool,
}

/// A word that a version must stay alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeldBy {
    /// Who: `operator:alice: reason`, `epoch`, `import`.
    pub by: String,
    /// Since when.
    pub since: Option<UnixMillis>,
}

/// Where a version is on one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryPhase {
    /// Not there yet.
    Pending,
    /// There, invisible.
    Staged,
    /// The instant is agreed.
    Armed,
    /// Readers find it.
    Activated,
    /// Its consumers took it up and stayed healthy.
    Adopted,
    /// Gone there for ever.
    Sealed,
    /// The target went back by itself.
    RolledBack,
    /// The target did not take it.
    Refused,
    /// The target does not answer.
    Unreachable,
}

/// How far a version has come on one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeliveryView {
    /// Which target.
    pub target: TargetId,
    /// What people call it.
    pub name: String,
    /// How far.
    pub phase: DeliveryPhase,
    /// Whether it goes first.
    pub canary: bool,
    /// The intent.
    pub generation: Option<Generation>,
    /// Why it does not go on, in words.
    pub reason: Option<String>,
    /// An operator's word that this target does not count for this version.
    pub excused: bool,
    /// When it became current there, while it is.
    pub flipped: Option<FlipView>,
}

/// Where a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutPhase {
    /// May we mint and revoke?
    Preflight,
    /// The backend is asked for a version.
    Minting,
    /// It is put on the targets, invisible.
    Staging,
    /// It is tried at the backend.
    Verifying,
    /// The canaries adopt it.
    Canaries,
    /// The instant for all others is agreed.
    Arming,
    /// All others adopt it, in waves.
    Adopting,
    /// Stopped; whoever has not adopted goes back.
    Halted,
    /// Given up; everybody goes back.
    Aborting,
}

/// One version on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutView {
    /// Of which credential.
    pub credential: CredentialName,
    /// Which version.
    pub version: Version,
    /// Where it is.
    pub phase: RolloutPhase,
    /// Why it was stopped, or what it waits for.
    pub reason: Option<String>,
    /// Since when.
    pub started_at: Option<UnixMillis>,
    /// Each target.
    pub deliveries: Vec<DeliveryView>,
    /// What was measured so far.
    pub figures: Figures,
}

/// The clauses of the gate before every revocation, by the names of the design.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Clause {
    /// Another verified version is current on every target that counts.
    Replaced,
    /// That version is adopted and settled by every consumer that policy names.
    Adopted,
    /// No target is rolling back to it, or could still.
    NoRollback,
    /// No target may still flip to it.
    Disarmed,
    /// Evidence covers the whole time, or each gap healed or was cleared.
    Covered,
    /// Nobody is left that may have it.
    NoHolder,
    /// The backend shows no session of it.
    BackendQuiet,
    /// Evidence is of the kind that the credential demands.
    Evidence,
    /// The grace time and the tail have passed.
    Grace,
    /// Nobody holds it.
    NoHold,
    /// Every target that counts has reported since all this first held.
    Fresh,
    /// Every target said that it is gone there.
    Sealed,
}

/// What keeps a version alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Blocker {
    /// Which clause does not hold.
    pub clause: Clause,
    /// For whom: a target, a consumer, an operator.
    pub who: String,
    /// What people call the target, where it is one.
    pub name: Option<String>,
    /// In words.
    pub detail: Option<String>,
    /// Since when.
    pub since: Option<UnixMillis>,
    /// The command that ends it, where an operator's word can: for who knows that it is so.
    #[serde(default)]
    pub remedy: Option<String>,
}

/// Why a version is not retired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Why {
    /// Of which credential.
    pub credential: CredentialName,
    /// Which version.
    pub version: Version,
    /// Where it is.
    pub phase: VersionPhase,
    /// Whether it was given up.
    #[serde(default)]
    pub aborted: bool,
    /// What keeps it alive; empty when nothing does.
    pub blockers: Vec<Blocker>,
}

/// A superseded version that is not retired yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PendingVersion {
    /// Why.
    #[serde(flatten)]
    pub why: Why,
    /// Since when it is superseded.
    pub since: Option<UnixMillis>,
    /// Who may still have it.
    pub holders: Vec<HolderView>,
}

/// Somebody who may have a version, or a gap that hides somebody, or a place that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HolderView {
    /// Of which credential.
    pub credential: CredentialName,
    /// Which version.
    pub version: Version,
    /// On which target.
    pub target: TargetId,
    /// What people call the target.
    pub name: String,
    /// `holder`, `gap` or `place`; a gap or place is cleared as a gap.
    pub kind: String,
    /// Names it in `holders clear`.
    pub id: String,
    /// The consumer, where policy names it.
    pub consumer: Option<ConsumerName>,
    /// How this is known.
    pub evidence: Evidence,
    /// The process or unit and how it was seen.
    pub description: String,
}

/// Where a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostPhase {
    /// It answers.
    Connected,
    /// It does not answer.
    Silent,
    /// It contradicted itself, or two live hosts have its identity: what it says is incomplete.
    Incomplete,
    /// Gone for good, on an operator's word.
    Retired,
}

/// One host in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostSummary {
    /// The fingerprint of its applier's key.
    pub id: HostId,
    /// What people call it.
    pub name: String,
    /// Where its push API listens.
    pub address: String,
    /// What selectors match.
    pub labels: BTreeMap<String, String>,
    /// Where it is.
    pub phase: HostPhase,
    /// Why it is incomplete, where it is.
    pub reason: Option<String>,
    /// When it enrolled.
    pub enrolled_at: UnixMillis,
    /// When its newest report was committed.
    pub reported_at: Option<UnixMillis>,
    /// How many sets it has.
    pub sets: u32,
    /// The weakest evidence among its sets.
    pub evidence: Evidence,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostDetail {
    /// As in the list.
    #[serde(flatten)]
    pub summary: HostSummary,
    /// The newest snapshot of each set.
    pub reports: BTreeMap<SetName, SetReport>,
    /// By which means the host works, and what each means when it is missing.
    #[serde(default)]
    pub means: Vec<Means>,
    /// What an operator should know of it.
    #[serde(default)]
    pub notices: Vec<Notice>,
}

/// A token was issued.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EnrolTokenIssued {
    /// Names the token in the audit log.
    pub token: String,
    /// Until when it is good.
    pub expires_at: UnixMillis,
    /// What root carries to the host. It holds secrets and is shown once.
    pub bundle: Bundle,
}

/// Something was accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Done {
    /// What follows from it, in words.
    pub message: String,
}

/// A rotation was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rotated {
    /// The version that is on its way; none while the wish waits for another rollout's end, or for the start.
    pub version: Option<Version>,
    /// What follows, in words.
    pub message: String,
}

/// What a rotation would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DryRun {
    /// Whether it would be accepted now.
    pub accepted: bool,
    /// Why not, or what it would wait for.
    pub reasons: Vec<String>,
    /// The targets that it would go to, canaries first.
    pub targets: Vec<DeliveryView>,
}

/// A value was imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Imported {
    /// As which version.
    pub version: Version,
    /// What follows, in words.
    pub message: String,
}

/// One row of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditEntry {
    /// Counts from 1 without holes.
    pub sequence: u64,
    /// When.
    pub at: UnixMillis,
    /// Who: `operator:alice`, `host:ID`, `engine`.
    pub actor: String,
    /// What, as one stable word.
    pub action: String,
    /// To what: `credential/orders-db`, `host/ID`.
    pub subject: String,
    /// More, without values.
    pub detail: String,
    /// The keyed link over this row and the one before it.
    pub link: String,
}

/// Rows of the audit log, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditPage {
    /// The rows.
    pub entries: Vec<AuditEntry>,
    /// Give this as `after` for the next page; none at the end.
    pub next: Option<u64>,
    /// Where `last` was asked for: give this as `before` for the page before; none at the beginning.
    #[serde(default)]
    pub previous: Option<u64>,
}

/// Somebody who may use the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OperatorView {
    /// Random.
    pub id: String,
    /// Their name.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// `certificate` or `token`.
    pub proof: String,
    /// Since when.
    pub created_at: UnixMillis,
    /// Until when.
    pub expires_at: UnixMillis,
    /// When it was revoked.
    pub revoked_at: Option<UnixMillis>,
}

/// Somebody may use the API from now on.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct OperatorIssued {
    /// Who.
    pub operator: OperatorView,
    /// Their certificate chain (PEM), where they asked for one.
    pub certificate: Option<String>,
    /// Their token, where they asked for one. It is shown once.
    pub token: Option<String>,
}

/// The token may not be shown.
impl std::fmt::Debug for OperatorIssued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OperatorIssued({:?})", self.operator)
    }
}

/// How often something was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Changes {
    /// Grows with every commit, from 0 at the control plane's start.
    pub commits: u64,
}

/// A copy of the store was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackedUp {
    /// The file on the control plane's machine. Values in it stay encrypted; the key file is not in it.
    pub file: String,
}
