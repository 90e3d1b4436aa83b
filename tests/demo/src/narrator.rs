//! Tells what the control plane does, by looking at it again and again and saying what changed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use lifecycle::Version;
use protocol::api::{CredentialDetail, DeliveryPhase, RolloutPhase, VersionPhase};

use crate::control::ControlPlane;
use crate::terminal::{Terminal, Tone};

/// How often the control plane is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What was said last of one credential.
pub struct Narrator {
    terminal: Terminal,
    credential: String,
    versions: BTreeMap<Version, VersionPhase>,
    deliveries: BTreeMap<(Version, String), DeliveryPhase>,
    rollout: Option<(Version, RolloutPhase)>,
    blockers: Vec<String>,
}

impl Narrator {
    /// Tells of this credential.
    pub fn new(terminal: Terminal, credential: &str) -> Self {
        Self {
            terminal,
            credential: credential.to_owned(),
            versions: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            rollout: None,
            blockers: Vec::new(),
        }
    }

    /// Looks once and says what changed. `None` while the control plane is away.
    pub fn look(&mut self, control: &ControlPlane) -> Option<CredentialDetail> {
        let detail = control.credential(&self.credential).ok()?;
        self.tell_rollout(&detail);
        self.tell_deliveries(&detail);
        self.tell_versions(&detail);
        Some(detail)
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
            let detail = self.look(control);
            if let Some(detail) = detail.filter(|detail| done(detail)) {
                return Ok(detail);
            }
            self.tell_blockers(control);
            if crate::interrupt::asked() {
                bail!("interrupted");
            }
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
            let reason = detail.rollout.as_ref().and_then(|rollout| rollout.reason.clone());
            let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            let tone = if phase == RolloutPhase::Halted { Tone::Bad } else { Tone::Plain };
            self.terminal.say(tone, format!("rollout of version {version}: {}{reason}", word(&phase)));
        }
        self.rollout = now;
    }

    fn tell_deliveries(&mut self, detail: &CredentialDetail) {
        for version in &detail.versions {
            for delivery in &version.deliveries {
                let key = (version.version, delivery.name.clone());
                let before = self.deliveries.insert(key, delivery.phase);
                if before != Some(delivery.phase) && delivery.phase != DeliveryPhase::Pending {
                    let reason =
                        delivery.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
                    self.terminal.say(
                        Tone::Plain,
                        format!(
                            "  {}: version {} {}{reason}",
                            delivery.name,
                            version.version,
                            word(&delivery.phase)
                        ),
                    );
                }
            }
        }
    }

    fn tell_versions(&mut self, detail: &CredentialDetail) {
        for version in &detail.versions {
            let before = self.versions.insert(version.version, version.phase);
            if before != Some(version.phase) {
                self.terminal
                    .say(Tone::Plain, format!("version {} is {}", version.version, word(&version.phase)));
            }
        }
    }

    /// Names what keeps an old version alive, when that changed.
    fn tell_blockers(&mut self, control: &ControlPlane) {
        let Ok(pending) = control.pending() else { return };
        let mut lines = Vec::new();
        for pending in pending.iter().filter(|pending| pending.why.credential.as_str() == self.credential) {
            for holder in &pending.holders {
                let who = holder.consumer.as_ref().map_or_else(|| holder.id.clone(), ToString::to_string);
                lines.push(format!(
                    "version {} is kept alive by {who} on {} ({})",
                    pending.why.version,
                    holder.name,
                    word(&holder.evidence)
                ));
            }
            for blocker in &pending.why.blockers {
                lines.push(format!("version {} waits for: {}", pending.why.version, word(&blocker.clause)));
            }
        }
        lines.sort();
        lines.dedup();
        for line in lines.iter().filter(|line| !self.blockers.contains(line)) {
            self.terminal.say(Tone::Plain, line);
        }
        self.blockers = lines;
    }
}

/// The word that the API uses.
pub fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}
