//! How far a rotation has come: from what the control plane says to one line and, in the end, an outcome.

use lifecycle::Version;
use protocol::api::{CredentialDetail, CredentialPhase, DeliveryPhase, RolloutPhase, VersionPhase};

use crate::cli::Until;
use crate::exit::Exit;
use crate::table::{plain, word};

/// What is being watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    /// The active version before.
    pub before: Option<Version>,
    /// The new version, once it is known.
    pub version: Option<Version>,
    /// Until when.
    pub until: Until,
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
    learn(watched, detail);
    let Some(version) = watched.version else {
        let (line, end) = match (detail.summary.phase, detail.stuck.first()) {
            (CredentialPhase::Stuck, Some(stuck)) => {
                let line = format!("{name}: stuck: {}; {}", plain(&stuck.reason), plain(&stuck.action));
                (line, Some(Exit::Stopped))
            }
            _ => (format!("{name}: waiting to begin"), None),
        };
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

/// The new version's number, once something newer than the one before is under way.
fn learn(watched: &mut Watched, detail: &CredentialDetail) {
    if watched.version.is_none() {
        let candidates = [
            detail.rollout.as_ref().map(|rollout| rollout.version),
            detail.summary.rolling,
            detail.summary.current,
        ];
        watched.version = candidates.into_iter().flatten().find(|version| Some(*version) > watched.before);
    }
}

fn active(watched: &Watched, detail: &CredentialDetail, version: Version, done: u64, all: u64) -> Progress {
    let name = &detail.summary.name;
    let old = watched.before.and_then(|before| detail.versions.iter().find(|row| row.version == before));
    let left = old.filter(|old| !matches!(old.phase, VersionPhase::Retired | VersionPhase::Erased));
    match (watched.until, left) {
        (Until::Retired, Some(old)) => {
            let line = format!(
                "{name}@{version}: active; {name}@{} is {}: see `esoctl why {name}@{}`",
                old.version,
                word(&old.phase),
                old.version
            );
            Progress { done, all, line, end: None }
        }
        _ => Progress { done, all, line: format!("{name}@{version}: active"), end: Some(Exit::Done) },
    }
}
