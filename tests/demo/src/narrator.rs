//! Tells what the control plane does, by looking at it again and again and saying what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::bail;
use lifecycle::Version;
use protocol::api::view::Figures;
use protocol::api::{Clause, CredentialDetail, DeliveryPhase, PendingVersion, RolloutPhase, VersionPhase};

use crate::control::ControlPlane;
use crate::footer::Versions;
use crate::terminal::{Terminal, Tone, fold, span};

/// How often the control plane is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The login that the applications use.
    Login,
    /// A value that lies on the hosts and that nobody here logs in with.
    Key,
}

/// What was said last of one credential.
pub struct Narrator {
    terminal: Terminal,
    credential: String,
    subject: Subject,
    phases: BTreeMap<Version, VersionPhase>,
    deliveries: BTreeMap<(Version, String), DeliveryPhase>,
    rollout: Option<(Version, RolloutPhase)>,
    blockers: BTreeMap<Version, Vec<String>>,
    figures: BTreeMap<Version, Figures>,
    users: Versions,
}

impl Narrator {
    /// Tells of this credential.
    pub fn new(terminal: Terminal, credential: &str, subject: Subject) -> Self {
        Self {
            terminal,
            subject,
            credential: credential.to_owned(),
            phases: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            rollout: None,
            blockers: BTreeMap::new(),
            figures: BTreeMap::new(),
            users: Versions::default(),
        }
    }

    /// Which version each effect minted, as far as it was seen.
    pub fn users(&self) -> Versions {
        self.users.clone()
    }

    /// What was measured of each version.
    pub const fn figures(&self) -> &BTreeMap<Version, Figures> {
        &self.figures
    }

    /// Looks once and says what changed. `None` while the control plane is away.
    pub fn look(&mut self, control: &ControlPlane) -> Option<CredentialDetail> {
        let detail = control.credential(&self.credential).ok()?;
        for version in &detail.versions {
            self.figures.insert(version.version, version.figures);
            if let Some(effect) = version.effect {
                let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
                users.insert(effect.to_string(), version.version);
            }
        }
        self.tell_rollout(&detail);
        self.tell_versions(&detail, |phase| phase == VersionPhase::Sealing);
        self.tell_deliveries(&detail);
        self.tell_versions(&detail, |_| true);
        Some(detail)
    }

    /// Looks once, and says also what keeps old versions alive.
    pub fn follow(&mut self, control: &ControlPlane) {
        self.look(control);
        self.tell_blockers(control);
    }

    /// Looks until `done` says so, or fails at the deadline with what keeps it.
    pub fn until(
        &mut self,
        control: &ControlPlane,
        what: &str,
        within: Duration,
        mut done: impl FnMut(&CredentialDetail) -> bool,
    ) -> anyhow::Result<CredentialDetail> {
        let deadline = Instant::now() + within;
        loop {
            crate::interrupt::check()?;
            let detail = self.look(control);
            if let Some(detail) = detail.filter(|detail| done(detail)) {
                return Ok(detail);
            }
            self.tell_blockers(control);
            if Instant::now() > deadline {
                let shown = control.esoctl(&["credential", "show", &self.credential]).unwrap_or_default();
                let pending = control.esoctl(&["pending"]).unwrap_or_default();
                bail!("waited {} s in vain until {what}\n{shown}\n{pending}", within.as_secs());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn tell_rollout(&mut self, detail: &CredentialDetail) {
        let now = detail.rollout.as_ref().map(|rollout| (rollout.version, rollout.phase));
        if let Some((version, phase)) = now.filter(|_| now != self.rollout) {
            let reason = detail.rollout.as_ref().and_then(|rollout| rollout.reason.as_ref());
            let reason = reason.map(|reason| format!("\n{}", with_names(reason, detail)));
            let tone = if phase == RolloutPhase::Halted { Tone::Stop } else { Tone::Plain };
            let words = format!("{}{}", of_rollout(phase), reason.unwrap_or_default());
            self.tell(tone, version, &word(&phase), &words);
        }
        self.rollout = now;
    }

    /// What changed on hosts, those that came equally far in one line.
    fn tell_deliveries(&mut self, detail: &CredentialDetail) {
        let newest = detail.versions.iter().map(|version| version.version).max();
        for version in &detail.versions {
            let mut changed: BTreeMap<DeliveryPhase, BTreeSet<&str>> = BTreeMap::new();
            for delivery in &version.deliveries {
                let key = (version.version, delivery.name.clone());
                if self.deliveries.insert(key, delivery.phase) != Some(delivery.phase) {
                    changed.entry(delivery.phase).or_default().insert(&delivery.name);
                }
            }
            for (phase, hosts) in changed.into_iter().rev() {
                let words = of_delivery(phase, self.subject);
                // An older version that is no longer current is not on its way anywhere.
                let told = Some(version.version) == newest || phase == DeliveryPhase::Sealed;
                if told && !words.is_empty() {
                    let hosts = hosts.into_iter().collect::<Vec<_>>().join(", ");
                    self.tell(Tone::Plain, version.version, "", &format!("{hosts}: {words}"));
                }
            }
        }
    }

    fn tell_versions(&mut self, detail: &CredentialDetail, told: impl Fn(VersionPhase) -> bool) {
        for version in detail.versions.iter().filter(|version| told(version.phase)) {
            let before = self.phases.insert(version.version, version.phase);
            let words = of_version(version.phase, version.aborted, self.subject);
            if before == Some(version.phase) || words.is_empty() {
                continue;
            }
            let after = version
                .figures
                .last_holder_to_revoked_ms
                .filter(|_| matches!(version.phase, VersionPhase::Retired | VersionPhase::Erased));
            let after = after.map_or_else(String::new, |ms| {
                format!(", {} after its last holder let go", span(Duration::from_millis(ms)))
            });
            self.tell(Tone::Plain, version.version, &word(&version.phase), &format!("{words}{after}"));
        }
    }

    /// Names what keeps an old version alive, when that changed.
    fn tell_blockers(&mut self, control: &ControlPlane) {
        let Ok(pending) = control.pending() else { return };
        for pending in pending.iter().filter(|pending| pending.why.credential.as_str() == self.credential) {
            let why = why(pending);
            let said = self.blockers.insert(pending.why.version, why.clone());
            if !why.is_empty() && said.as_ref() != Some(&why) {
                self.tell(Tone::Plain, pending.why.version, "lives on", &why.join("\n"));
            }
        }
    }

    fn tell(&self, tone: Tone, version: Version, what: &str, words: &str) {
        let subject = match self.subject {
            Subject::Login => "version",
            Subject::Key => "value",
        };
        let words: Vec<String> = words.lines().flat_map(|line| fold(line, 76, "")).collect();
        let words = words.join(&format!("\n{:23}", ""));
        self.terminal.say(tone, format!("{:10} {what:10}  {words}", format!("{subject} {version}")));
    }
}

/// Hosts are called as people call them.
fn with_names(reason: &str, detail: &CredentialDetail) -> String {
    let deliveries = detail.versions.iter().flat_map(|version| &version.deliveries);
    deliveries
        .fold(reason.to_owned(), |text, delivery| text.replace(delivery.target.as_str(), &delivery.name))
}

/// Who holds an old version, and what else it waits for.
fn why(pending: &PendingVersion) -> Vec<String> {
    let mut parts = Vec::new();
    for holder in &pending.holders {
        let who = holder.consumer.as_ref().map_or_else(|| holder.id.clone(), ToString::to_string);
        parts.push(format!("{who} on {} still has it ({})", holder.name, word(&holder.evidence)));
    }
    let clauses: BTreeSet<Clause> = pending.why.blockers.iter().map(|blocker| blocker.clause).collect();
    let words: Vec<&str> = clauses.into_iter().map(of_clause).filter(|words| !words.is_empty()).collect();
    if !words.is_empty() {
        parts.push(words.join("; "));
    }
    parts
}

const fn of_rollout(phase: RolloutPhase) -> &'static str {
    match phase {
        RolloutPhase::Preflight => "may it be minted, and may it be revoked? both are tried first",
        RolloutPhase::Minting => "the server is asked for a new login",
        RolloutPhase::Staging => "its files go to every host, where no application sees them yet",
        RolloutPhase::Verifying => "the new login is tried at the server",
        RolloutPhase::Canaries => "the canary goes first and must stay healthy; the others wait",
        RolloutPhase::Arming => "the others agree on one instant",
        RolloutPhase::Adopting => "applications take it up",
        RolloutPhase::Halted => "stopped; nobody else gets it",
        RolloutPhase::Aborting => "given up; everybody goes back",
    }
}

const fn of_delivery(phase: DeliveryPhase, subject: Subject) -> &'static str {
    match phase {
        DeliveryPhase::Adopted if matches!(subject, Subject::Key) => "readers find it now",
        DeliveryPhase::Pending => "",
        DeliveryPhase::Staged => "has it, invisible",
        DeliveryPhase::Armed => "ready to flip at the agreed instant",
        DeliveryPhase::Activated => "flipped: readers find it now",
        DeliveryPhase::Adopted => "its applications run on it, healthy",
        DeliveryPhase::Sealed => "forgotten for ever",
        DeliveryPhase::RolledBack => "went back by itself",
        DeliveryPhase::Refused => "does not take it",
        DeliveryPhase::Unreachable => "does not answer",
    }
}

const fn of_version(phase: VersionPhase, aborted: bool, subject: Subject) -> &'static str {
    match phase {
        VersionPhase::Superseded if matches!(subject, Subject::Key) => "replaced; a host may still have it",
        VersionPhase::Minting | VersionPhase::Minted | VersionPhase::Rolling => "",
        VersionPhase::Active => "the one that is used",
        VersionPhase::Superseded if aborted => "given up; it dies as every version does",
        VersionPhase::Superseded => "still works, until nobody can have it any more",
        VersionPhase::Sealing => "nobody has it: every host forgets it for ever, and looks once more",
        VersionPhase::Retiring => "is being revoked at the server",
        VersionPhase::Retired => "revoked, and the server refuses it",
        VersionPhase::Erased => "forgotten by us, safe to delete where it came from",
        VersionPhase::Stuck => "needs an operator",
    }
}

const fn of_clause(clause: Clause) -> &'static str {
    match clause {
        Clause::Replaced => "not replaced on every host",
        Clause::Adopted => "the new one is not taken up everywhere",
        Clause::NoRollback => "a host could still go back to it",
        Clause::Disarmed => "a host could still flip to it",
        Clause::Covered => "not everything was seen",
        // The holders are named.
        Clause::NoHolder => "",
        Clause::BackendQuiet => "the server shows sessions of it",
        Clause::Evidence => "the evidence is too weak",
        Clause::Grace => "the grace time runs",
        Clause::NoHold => "an operator holds it",
        Clause::Fresh => "a fresh report of every host is awaited",
        Clause::Sealed => "not forgotten on every host",
    }
}

/// The word that the API uses.
pub fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}
