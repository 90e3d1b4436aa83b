//! How far a rotation has come: from what the control plane says to one line and, in the end, an outcome.

use std::collections::BTreeSet;

use lifecycle::Version;
use protocol::api::{
    CredentialDetail, DeliveryPhase, DeliveryView, RolloutPhase, VersionDetail, VersionPhase,
};

use crate::cli::Until;
use crate::exit::Exit;
use crate::table::{plain, word};

/// What is being watched: the version that one wish brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// The newest version that is known to be none of ours.
    foreign: Option<Version>,
    /// What ours replaces: each version that was active since the wish.
    replaced: BTreeSet<Version>,
    /// The new version, once it is known.
    version: Option<Version>,
    /// Until when.
    until: Until,
}

impl Watched {
    /// A wish that is made, or was made just now, of a credential that looked like this before.
    pub fn new(before: &CredentialDetail, until: Until) -> Self {
        let mut watched = Self { foreign: None, replaced: BTreeSet::new(), version: None, until };
        watched.leave_out(before);
        watched
    }

    /// The new version's number is known.
    #[must_use]
    pub fn of(mut self, version: Option<Version>) -> Self {
        self.version = version;
        self
    }

    /// Whatever is known now is none of ours, and neither is the version of a rollout under way.
    fn leave_out(&mut self, detail: &CredentialDetail) {
        let known = detail.versions.iter().map(|row| row.version);
        let rolling = detail.rollout.as_ref().map(|rollout| rollout.version);
        self.foreign = known.chain(rolling).chain(self.foreign).max();
        self.replaced.extend(detail.summary.current);
    }

    /// Learns the number as soon as there is one. While a wish waits, ours does: what rolls is somebody else's.
    fn learn(&mut self, detail: &CredentialDetail) {
        if self.version.is_some() {
            return;
        }
        if detail.pending_wish.is_some() {
            return self.leave_out(detail);
        }
        // Not the number that the rollout shows: during its preflight that is a guess.
        let candidates = [detail.summary.rolling, detail.summary.current];
        self.version = candidates.into_iter().flatten().filter(|version| Some(*version) > self.foreign).min();
        self.replaced.extend(detail.summary.current.filter(|current| Some(*current) != self.version));
    }
}

/// How far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// How many targets adopted it.
    pub done: u64,
    /// Of how many.
    pub all: u64,
    /// In words.
    pub line: String,
    /// Set once it ended.
    pub end: Option<Exit>,
}

/// How far the watched rotation has come. Learns the new version's number as soon as there is one.
pub fn progress(watched: &mut Watched, detail: &CredentialDetail) -> Progress {
    let name = &detail.summary.name;
    watched.learn(detail);
    let Some(version) = watched.version else {
        let (line, end) = waiting(detail);
        return Progress { done: 0, all: u64::from(detail.summary.targets), line, end };
    };
    let row = detail.versions.iter().find(|row| row.version == version);
    let deliveries = row.map(|row| row.deliveries.as_slice()).unwrap_or_default();
    let adopted = deliveries.iter().filter(|delivery| delivery.phase == DeliveryPhase::Adopted).count();
    let (done, all) = (adopted as u64, deliveries.len() as u64);
    let end = |line: String, exit| Progress { done, all, line, end: Some(exit) };
    let going = |line: String| Progress { done, all, line, end: None };

    if let Some(stuck) = detail.stuck.iter().find(|stuck| stuck.version.is_none_or(|v| v == version)) {
        let line = format!("{name}@{version}: stuck: {}; {}", plain(&stuck.reason), plain(&stuck.action));
        return end(line, Exit::Stopped);
    }
    if let Some(rollout) = detail.rollout.as_ref().filter(|rollout| rollout.version == version) {
        let why = rollout.reason.as_deref().map(|why| format!(": {}", plain(why))).unwrap_or_default();
        let line = format!("{name}@{version}: {}{why} ({done}/{all} adopted)", word(&rollout.phase));
        return match rollout.phase {
            RolloutPhase::Halted | RolloutPhase::Aborting => end(line, Exit::Stopped),
            _ => going(line),
        };
    }
    match row.map(|row| (row.phase, row.aborted)) {
        Some((_, true)) => end(format!("{name}@{version}: aborted"), Exit::Stopped),
        Some((VersionPhase::Active, _)) => active(watched, detail, version, done, all),
        Some((VersionPhase::Superseded | VersionPhase::Sealing | VersionPhase::Retiring, _)) => {
            end(format!("{name}@{version}: superseded by a later version"), Exit::Done)
        }
        Some((VersionPhase::Retired | VersionPhase::Erased, _)) => {
            end(format!("{name}@{version}: retired"), Exit::Done)
        }
        Some((phase, _)) => going(format!("{name}@{version}: {}", word(&phase))),
        None => going(format!("{name}@{version}: waiting to begin")),
    }
}

/// How it looks before there is a version: in words, and how it ended where it has.
fn waiting(detail: &CredentialDetail) -> (String, Option<Exit>) {
    let name = &detail.summary.name;
    let stuck = detail.stuck.iter().find(|stuck| stuck.version.is_none());
    match (&detail.pending_wish, &detail.rollout, stuck) {
        (Some(_), Some(other), _) if other.phase == RolloutPhase::Halted => {
            let line = format!(
                "{name}: waits for version {}, which is halted: resume or abort that rollout",
                other.version
            );
            (line, Some(Exit::Stopped))
        }
        (Some(_), Some(other), _) => {
            (format!("{name}: waits for the end of the rollout of version {}", other.version), None)
        }
        (None, None, Some(stuck)) => {
            let line = format!("{name}: stuck: {}; {}", plain(&stuck.reason), plain(&stuck.action));
            (line, Some(Exit::Stopped))
        }
        (None, Some(rollout), _) => {
            let why = rollout.reason.as_deref().map(|why| format!(": {}", plain(why))).unwrap_or_default();
            (format!("{name}: whether we may mint and revoke is tried{why}"), None)
        }
        _ => (format!("{name}: waiting to begin"), None),
    }
}

fn active(watched: &Watched, detail: &CredentialDetail, version: Version, done: u64, all: u64) -> Progress {
    let name = &detail.summary.name;
    let is_left = |row: &&VersionDetail| {
        watched.replaced.contains(&row.version)
            && !matches!(row.phase, VersionPhase::Retired | VersionPhase::Erased)
    };
    let left = detail.versions.iter().find(is_left);
    if let (Until::Retired, Some(old)) = (watched.until, left) {
        let line = format!(
            "{name}@{version}: active; {name}@{} is {}: see `esoctl why {name}@{}`",
            old.version,
            word(&old.phase),
            old.version
        );
        return Progress { done, all, line, end: None };
    }
    let line = format!("{name}@{version}: active{}", left_out(detail, version));
    Progress { done, all, line, end: Some(Exit::Done) }
}

/// The first target that did not take the version, and why.
fn left_out(detail: &CredentialDetail, version: Version) -> String {
    let row = detail.versions.iter().find(|row| row.version == version);
    let deliveries = row.map(|row| row.deliveries.as_slice()).unwrap_or_default();
    let without = |delivery: &&DeliveryView| {
        matches!(delivery.phase, DeliveryPhase::Refused | DeliveryPhase::Unreachable)
    };
    let Some(first) = deliveries.iter().find(without) else { return String::new() };
    let others = deliveries.iter().filter(without).count() - 1;
    let why = first.reason.clone().unwrap_or_else(|| word(&first.phase));
    let more = if others > 0 { format!(", and {others} more") } else { String::new() };
    format!("; not on {}{more}: {}", plain(&first.name), plain(&why))
}
