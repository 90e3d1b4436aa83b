//! Everything as people and programs are told it.

use std::collections::BTreeMap;

use lifecycle::credential::view::{
    Delivery, Held, Phase, RolloutView as CoreRollout, TargetView, VersionView,
};
use lifecycle::credential::{Clause as CoreClause, IllegalEvent, Stage, Word};
use lifecycle::{CredentialName, Evidence, SetReport, TargetId, Version};
use protocol::api::AuditPage;
use protocol::api::view::{
    AuditEntry, Blocker, Clause, CredentialDetail, CredentialPhase, CredentialSummary, DeliveryPhase,
    DeliveryView, DryRun, HeldBy, HolderView, HostDetail, HostPhase, HostSummary, PendingVersion, Refusal,
    ResourceFault, RolloutPhase, RolloutView, Rotated, Status, Stuck, VersionDetail, VersionPhase, Why,
};
use protocol::{HostId, UnixMillis};
use store::Store;

use crate::handle::{HandleError, from_store};
use crate::world::{Host, Owned, World};

/// How many characters of a host's id name it, where no other id begins with them.
const ID_CHARS_MIN: usize = 8;

/// Rows of the audit log that one page has at most.
const AUDIT_ROWS_MAX: u32 = 1000;

/// The core's word as an error of the API.
pub(crate) fn refusal(illegal: &IllegalEvent) -> HandleError {
    let (code, action) = match illegal {
        IllegalEvent::Starting => ("starting", "try again in a moment"),
        IllegalEvent::TooManyLive { .. } => {
            ("too_many_live", "`esoctl pending` says what holds the older ones, and how to end it")
        }
        IllegalEvent::UnknownVersion(_) => ("unknown_version", "see `esoctl credential show`"),
        IllegalEvent::UnknownTarget(_) => ("unknown_target", "see `esoctl host list`"),
        IllegalEvent::UnknownHolder { .. } => ("unknown_holder", "see `esoctl holders list`"),
        IllegalEvent::HoldsCurrent { .. } => ("holds_current", "rotate first, or wait until it ends"),
        IllegalEvent::UnknownGap { .. } => ("unknown_gap", "see `esoctl holders list`"),
        IllegalEvent::NoRollout => ("no_rollout", "see `esoctl rollout show`"),
        IllegalEvent::NothingToResume => ("nothing_to_resume", "see `esoctl rollout show`"),
        IllegalEvent::NothingToReturnTo => ("nothing_to_return_to", "rotate instead"),
        IllegalEvent::Held { .. } => ("held", "unhold it first"),
        IllegalEvent::InUse(_) => ("in_use", "rotate first"),
        IllegalEvent::Ended(_) => ("ended", "nothing is left to do for it"),
        IllegalEvent::Deleted => ("deleted", "wait until it is gone"),
        IllegalEvent::Orphaned => {
            ("orphaned", "put its resource back (see its faults in `esoctl status`), then rotate")
        }
        IllegalEvent::Interrupts => ("interrupts", "set `policy.interruption: allow` in the resource"),
        IllegalEvent::NotEmpty => ("not_empty", "import into a new credential"),
        IllegalEvent::OldEpoch { .. } => ("old_epoch", "restore a newer backup"),
    };
    let message = illegal.to_string();
    match illegal {
        IllegalEvent::UnknownVersion(_)
        | IllegalEvent::UnknownTarget(_)
        | IllegalEvent::UnknownHolder { .. }
        | IllegalEvent::UnknownGap { .. } => HandleError::Unknown { code, message, action },
        _ => HandleError::Refused { code: code.to_owned(), message, action: action.to_owned() },
    }
}

pub(crate) async fn audit_page(
    store: &Store,
    after: u64,
    limit: u32,
    subject: Option<String>,
) -> Result<AuditPage, HandleError> {
    let limit = limit.clamp(1, AUDIT_ROWS_MAX);
    let rows = store.audit_rows(after, limit, subject).await.map_err(from_store)?;
    let full = rows.len() == limit as usize;
    let next = rows.last().filter(|_| full).map(|row| row.sequence);
    Ok(AuditPage { entries: rows.into_iter().map(audit_entry).collect(), next, previous: None })
}

pub(crate) async fn audit_page_before(
    store: &Store,
    before: Option<u64>,
    limit: u32,
    subject: Option<String>,
) -> Result<AuditPage, HandleError> {
    let limit = limit.clamp(1, AUDIT_ROWS_MAX);
    let rows = store.audit_rows_before(before, limit, subject).await.map_err(from_store)?;
    let full = rows.len() == limit as usize;
    let previous = rows.first().filter(|_| full).map(|row| row.sequence);
    Ok(AuditPage { entries: rows.into_iter().map(audit_entry).collect(), next: None, previous })
}

fn audit_entry(row: store::AuditRow) -> AuditEntry {
    AuditEntry {
        sequence: row.sequence,
        at: UnixMillis(row.entry.at_ms),
        actor: row.entry.actor,
        action: row.entry.action,
        subject: row.entry.subject,
        detail: row.entry.detail,
        link: row.link,
    }
}

impl World {
    fn find(&self, name: &CredentialName) -> Result<&Owned, HandleError> {
        self.owned.get(name).ok_or_else(|| {
            let refused = match self.resources.faults.len() {
                0 => String::new(),
                1 => " (a resource was refused: see `esoctl status`)".to_owned(),
                some => format!(" ({some} resources were refused: see `esoctl status`)"),
            };
            HandleError::Missing(format!("credential {name}{refused}"))
        })
    }

    pub(crate) fn status(&self) -> Status {
        let mut credentials = BTreeMap::new();
        let (mut stuck, mut refusals) = (Vec::new(), Vec::new());
        for (name, owned) in &self.owned {
            *credentials.entry(phase(owned)).or_insert(0) += 1;
            stuck.extend(stuck_of(name, owned));
            refusals.extend(self.refusals(name, owned));
        }
        let mut hosts = BTreeMap::new();
        for host in self.hosts.values() {
            *hosts.entry(host_phase(host)).or_insert(0) += 1;
        }
        let pending: usize =
            self.owned.values().map(|owned| owned.kept.state.pending(self.clock.now()).len()).sum();
        Status {
            installation: self.installation,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.epoch,
            starting: self.owned.values().any(|owned| owned.kept.state.is_starting()),
            credentials,
            hosts,
            pending_versions: u32::try_from(pending).unwrap_or(u32::MAX),
            stuck,
            refusals,
            resource_faults: self.resource_faults(),
        }
    }

    /// Targets that should have a version, do not take it, and were not excused.
    fn refusals(&self, name: &CredentialName, owned: &Owned) -> Vec<Refusal> {
        let state = &owned.kept.state;
        let rolling = state.rollout().and_then(|rollout| rollout.version);
        let Some(version) = rolling.or(state.active()) else { return Vec::new() };
        let counts = |target: &TargetView| {
            target.delivery == Some(Delivery::Refused)
                && target.selected
                && !target.retired
                && !target.excused.contains(&version)
        };
        let one = |target: TargetView| {
            let said = state.report(&target.target).and_then(|report| report.refused.as_ref());
            let reason = said.map(|refused| format!("{}: {}", refused.code, refused.message));
            Refusal {
                credential: name.clone(),
                version,
                name: self.target_name(&target.target),
                reason: reason.or(target.note).unwrap_or_else(|| "no reason is known".to_owned()),
            }
        };
        state.targets().filter(counts).map(one).collect()
    }

    fn resource_faults(&self) -> Vec<ResourceFault> {
        let faults = self.resources.faults.iter().map(|fault| ResourceFault {
            file: fault.file.display().to_string(),
            line: fault.line,
            message: fault.message.clone(),
        });
        let sources = self.owned.iter().filter_map(|(name, owned)| {
            let words = owned.source_fault.as_ref()?;
            let file = owned.kept.plan.credential.backing.reference().to_string();
            Some(ResourceFault { file, line: None, message: format!("the source of {name}: {words}") })
        });
        let audit = self.audit_broken.iter().map(|words| ResourceFault {
            file: "the audit log".to_owned(),
            line: None,
            message: format!("{words}: compare it with a backup"),
        });
        audit.chain(faults).chain(sources).collect()
    }

    pub(crate) fn summaries(&self) -> Vec<CredentialSummary> {
        self.owned.iter().map(|(name, owned)| summary(name, owned)).collect()
    }

    pub(crate) fn detail(&self, name: &CredentialName) -> Result<CredentialDetail, HandleError> {
        let owned = self.find(name)?;
        let state = &owned.kept.state;
        let mut versions: Vec<VersionDetail> =
            state.versions().map(|view| self.version(owned, view)).collect();
        versions.reverse();
        Ok(CredentialDetail {
            summary: summary(name, owned),
            policy: state.policy().clone(),
            versions,
            rollout: self.rollout(name)?,
            pending_wish: state.has_wish().then(|| "waiting".to_owned()),
            stuck: stuck_of(name, owned),
        })
    }

    fn version(&self, owned: &Owned, view: VersionView) -> VersionDetail {
        let since = Some(self.clock.told(view.since));
        let holds = view.holds.iter().map(|by| HeldBy { by: by.clone(), since: None });
        VersionDetail {
            version: view.version,
            phase: version_phase(&view),
            aborted: view.aborted.is_some(),
            compromised: view.compromised,
            holds: holds.collect(),
            effect: Some(view.minted_by),
            since,
            deliveries: self.deliveries(owned, view.version),
            figures: owned.figures(view.version),
        }
    }

    fn deliveries(&self, owned: &Owned, version: Version) -> Vec<DeliveryView> {
        let targets = owned.kept.state.targets().filter(|target| !target.retired);
        let mut deliveries: Vec<DeliveryView> =
            targets.map(|target| self.delivery(owned, target, version)).collect();
        deliveries.sort_by(|a, b| (!a.canary, &a.name).cmp(&(!b.canary, &b.name)));
        deliveries
    }

    fn delivery(&self, owned: &Owned, target: TargetView, version: Version) -> DeliveryView {
        let delivery = owned.kept.state.delivery(&target.target, version).unwrap_or(Delivery::Pending);
        DeliveryView {
            name: self.target_name(&target.target),
            phase: match delivery {
                Delivery::Pending => DeliveryPhase::Pending,
                Delivery::Unreachable => DeliveryPhase::Unreachable,
                Delivery::Refused => DeliveryPhase::Refused,
                Delivery::Staged => DeliveryPhase::Staged,
                Delivery::Armed => DeliveryPhase::Armed,
                Delivery::Activated => DeliveryPhase::Activated,
                Delivery::Adopted => DeliveryPhase::Adopted,
                Delivery::RolledBack => DeliveryPhase::RolledBack,
                Delivery::Sealed => DeliveryPhase::Sealed,
            },
            canary: target.canary,
            generation: Some(target.generation).filter(|generation| generation.number > 0),
            reason: target.note,
            excused: target.excused.contains(&version),
            flipped: self.flip_on(owned, &target.target, version),
            target: target.target,
        }
    }

    pub(crate) fn rollout(&self, name: &CredentialName) -> Result<Option<RolloutView>, HandleError> {
        let owned = self.find(name)?;
        let Some(rollout) = owned.kept.state.rollout() else { return Ok(None) };
        let version = rollout.version.unwrap_or_else(|| next_version(owned));
        let missing: Vec<String> = rollout.missing.iter().map(|target| self.target_name(target)).collect();
        let missing = (!missing.is_empty()).then(|| format!("goes on without {}", missing.join(", ")));
        let refusals = self.refusals(name, owned);
        let refusals =
            refusals.into_iter().map(|refusal| format!("{} refused: {}", refusal.name, refusal.reason));
        let waits: Vec<String> = missing.into_iter().chain(refusals).collect();
        let waits = (!waits.is_empty()).then(|| waits.join("; "));
        Ok(Some(RolloutView {
            credential: name.clone(),
            version,
            phase: rollout_phase(&rollout),
            reason: rollout.halted.clone().or_else(|| owned.waits_for_backend()).or(waits),
            started_at: Some(self.clock.told(rollout.since)),
            deliveries: self.deliveries(owned, version),
            figures: owned.figures(version),
        }))
    }

    pub(crate) fn pending(&self) -> Vec<PendingVersion> {
        let now = self.clock.now();
        let mut pending = Vec::new();
        for (name, owned) in &self.owned {
            for (version, blockers) in owned.kept.state.pending(now) {
                let Some(view) = owned.kept.state.version(version) else { continue };
                pending.push(PendingVersion {
                    since: Some(self.clock.told(view.since)),
                    why: Why {
                        credential: name.clone(),
                        version,
                        phase: version_phase(&view),
                        aborted: view.aborted.is_some(),
                        blockers: self.blockers(name, version, blockers),
                    },
                    holders: self.holders_of(name, owned, version),
                });
            }
        }
        pending
    }

    pub(crate) fn why(&self, name: &CredentialName, version: Version) -> Result<Why, HandleError> {
        let state = &self.find(name)?.kept.state;
        let view = state.version(version);
        let view = view.ok_or_else(|| HandleError::Missing(format!("version {version} of {name}")))?;
        let blockers = self.blockers(name, version, state.why_not(version, self.clock.now()));
        let (phase, aborted) = (version_phase(&view), view.aborted.is_some());
        Ok(Why { credential: name.clone(), version, phase, aborted, blockers })
    }

    fn blockers(
        &self,
        credential: &CredentialName,
        version: Version,
        blockers: Vec<lifecycle::credential::Blocker>,
    ) -> Vec<Blocker> {
        let one = |blocker: lifecycle::credential::Blocker| Blocker {
            clause: clause(blocker.clause),
            name: blocker.target.as_ref().map(|target| self.target_name(target)),
            remedy: self.remedy(credential, version, &blocker),
            who: blocker.target.as_ref().map_or_else(|| blocker.who.clone(), ToString::to_string),
            detail: Some(blocker.who),
            since: Some(self.clock.told(blocker.since)),
        };
        blockers.into_iter().map(one).collect()
    }

    /// The command of esoctl that ends it.
    fn remedy(
        &self,
        credential: &CredentialName,
        version: Version,
        blocker: &lifecycle::credential::Blocker,
    ) -> Option<String> {
        let target = || Some(quoted(&self.target_name(blocker.target.as_ref()?)));
        let credential = quoted(credential.as_str());
        Some(match blocker.word.as_ref()? {
            Word::Clear(id) => {
                format!("esoctl holders clear {credential} {} {} --reason WHY", target()?, quoted(id))
            }
            Word::Unhold => format!("esoctl credential unhold {credential}@{version}"),
            Word::Excuse => format!("esoctl host excuse {} {credential}@{version} --reason WHY", target()?),
        })
    }

    pub(crate) fn holders(&self, name: Option<&CredentialName>) -> Vec<HolderView> {
        let owned = self.owned.iter().filter(|(owner, _)| name.is_none_or(|name| name == *owner));
        let mut holders = Vec::new();
        for (owner, owned) in owned {
            for view in owned.kept.state.versions() {
                holders.extend(self.holders_of(owner, owned, view.version));
            }
        }
        holders
    }

    fn holders_of(&self, name: &CredentialName, owned: &Owned, version: Version) -> Vec<HolderView> {
        let view = |held: lifecycle::credential::view::HolderView| {
            let (kind, id, consumer, evidence, description) = match held.what {
                Held::Holder(holder) => {
                    ("holder", holder.id.to_string(), holder.consumer, holder.evidence, holder.description)
                }
                Held::Gap(gap) => ("gap", gap.id.to_string(), None, Evidence::Unknown, gap.description),
                Held::Place(place) => {
                    ("place", place.id.to_string(), None, Evidence::Unknown, place.description)
                }
            };
            HolderView {
                credential: name.clone(),
                version,
                name: self.target_name(&held.target),
                target: held.target,
                kind: kind.to_owned(),
                id,
                consumer,
                evidence,
                description: if held.cleared { format!("cleared: {description}") } else { description },
            }
        };
        owned.kept.state.holders(version).into_iter().map(view).collect()
    }

    pub(crate) fn host_summaries(&self) -> Vec<HostSummary> {
        self.hosts.iter().map(|(id, host)| self.host_summary(*id, host)).collect()
    }

    fn host_summary(&self, id: HostId, host: &Host) -> HostSummary {
        let reports = self.reports(&host.target);
        let (row, progress) = (&host.row.host, host.progress());
        HostSummary {
            id,
            name: row.name.clone(),
            address: row.address.clone(),
            labels: row.labels.clone(),
            phase: host_phase(host),
            reason: progress.incomplete.clone(),
            enrolled_at: UnixMillis(host.row.enrolled_ms),
            reported_at: (progress.reported_ms > 0).then_some(UnixMillis(progress.reported_ms)),
            sets: u32::try_from(reports.len()).unwrap_or(u32::MAX),
            evidence: reports.values().map(|report| report.evidence).min().unwrap_or_default(),
        }
    }

    fn reports(&self, target: &TargetId) -> BTreeMap<lifecycle::SetName, SetReport> {
        let reports = self.owned.values().filter_map(|owned| {
            owned.kept.state.report(target).map(|report| (owned.set().clone(), report.clone()))
        });
        reports.collect()
    }

    pub(crate) fn host_detail(&self, wanted: &str) -> Result<HostDetail, HandleError> {
        let by_id = wanted.parse().ok().and_then(|id: HostId| self.hosts.get(&id).map(|host| (id, host)));
        let (id, host) = match by_id {
            Some(found) => found,
            None => self.host_by_name(wanted)?,
        };
        Ok(HostDetail {
            summary: self.host_summary(id, host),
            reports: self.reports(&host.target),
            means: host.means.clone(),
            notices: host.notices.clone(),
        })
    }

    /// A target that is no host and that any credential has, or had.
    pub(crate) fn store_target(&self, named: &str) -> Result<TargetId, HandleError> {
        let full = format!("store:{}", named.strip_prefix("store:").unwrap_or(named));
        let targets = self.owned.values().flat_map(|owned| owned.kept.state.targets());
        let found = targets.map(|view| view.target).find(|target| target.as_str() == full);
        found.ok_or_else(|| HandleError::Missing(format!("a host or store target {named}")))
    }

    fn host_by_name(&self, wanted: &str) -> Result<(HostId, &Host), HandleError> {
        let mut named: Vec<(HostId, &Host)> = self
            .hosts
            .iter()
            .filter(|(_, host)| host.row.host.name == wanted)
            .map(|(id, host)| (*id, host))
            .collect();
        if named.len() > 1 {
            named.retain(|(_, host)| host.is_active());
        }
        // Else the beginning of an id, as lists show it.
        if named.is_empty() && wanted.len() >= ID_CHARS_MIN {
            let begins = |(id, _): &(&HostId, &Host)| id.to_string().starts_with(wanted);
            named.extend(self.hosts.iter().filter(begins).map(|(id, host)| (*id, host)));
        }
        match named[..] {
            [one] => Ok(one),
            [] => Err(HandleError::Missing(format!("host {wanted}"))),
            _ => Err(HandleError::Invalid(format!("{wanted} means several hosts; name one by its whole id"))),
        }
    }

    pub(crate) fn rotated(&self, name: &CredentialName) -> Result<Rotated, HandleError> {
        let state = &self.find(name)?.kept.state;
        let version = state.rollout().and_then(|rollout| rollout.version);
        let message = match version {
            Some(version) if state.has_wish() => {
                format!("a rotation waits for the end of the rollout of version {version}")
            }
            Some(version) => format!("version {version} is on its way"),
            None if state.is_starting() => "accepted; it begins when the targets have answered".to_owned(),
            None => "accepted; whether we may mint and revoke is tried first".to_owned(),
        };
        Ok(Rotated { version: version.filter(|_| !state.has_wish()), message })
    }

    pub(crate) fn dry_run(&self, name: &CredentialName, compromised: bool) -> Result<DryRun, HandleError> {
        use lifecycle::credential::{Event, Input, Rotate, RotateReason};
        let owned = self.find(name)?;
        let reason =
            if compromised { RotateReason::Compromised { deadline_ms: None } } else { RotateReason::Demand };
        let fresh = crate::sources::random_effect().unwrap_or(lifecycle::EffectId(0));
        let input = Input { now: self.clock.now(), fresh };
        let mut state = owned.kept.state.clone();
        let mut reasons = Vec::new();
        let accepted = match state.apply(input, Event::Rotate(Rotate { reason })) {
            Ok(_) => true,
            Err(illegal) => {
                reasons.push(refusal(&illegal).problem().to_string());
                false
            }
        };
        let refused = self.mints_nothing(name, compromised);
        let accepted = accepted && refused.is_none();
        if let Some(HandleError::Refused { message, action, .. }) = refused {
            reasons.push(format!("{message}: {action}"));
        }
        if owned.kept.state.is_starting() {
            reasons.push("it would wait until the targets have answered".to_owned());
        }
        if let Some(version) = owned.kept.state.rollout().map(|rollout| rollout.version) {
            let what =
                version.map_or_else(|| "another version".to_owned(), |version| format!("version {version}"));
            reasons.push(format!("it would wait for the end of the rollout of {what}"));
        }
        if owned.equipment.is_none() {
            reasons.push("its backend cannot be used: see the resource faults in `esoctl status`".to_owned());
        }
        let targets = self.deliveries(owned, next_version(owned));
        Ok(DryRun { accepted, reasons, targets })
    }

    // --- figures ---

    /// The gauges, after a commit.
    pub(crate) fn figures(&self) {
        let mut credentials: BTreeMap<&'static str, i64> = CREDENTIAL_PHASES.map(|word| (word, 0)).into();
        let mut hosts: BTreeMap<&'static str, i64> = HOST_PHASES.map(|word| (word, 0)).into();
        let (mut pending, mut stuck, mut silent) = (0, 0, 0);
        for (name, owned) in &self.owned {
            *credentials.entry(phase_word(phase(owned))).or_default() += 1;
            pending += owned
                .kept
                .state
                .versions()
                .filter(|view| matches!(view.phase, Phase::Superseded | Phase::Sealing | Phase::Retiring))
                .count();
            stuck += stuck_of(name, owned).len();
            silent += i64::from(owned.source_fault.is_some());
        }
        for host in self.hosts.values() {
            *hosts.entry(host_word(host_phase(host))).or_default() += 1;
        }
        for (word, count) in credentials {
            self.metrics.credentials(word, count);
        }
        for (word, count) in hosts {
            self.metrics.hosts(word, count);
        }
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.totals(count(pending), count(stuck), count(self.resources.faults.len()), silent);
    }
}

const CREDENTIAL_PHASES: [&str; 7] =
    ["empty", "active", "rolling", "halted", "stuck", "orphaned", "deleting"];
const HOST_PHASES: [&str; 4] = ["connected", "silent", "incomplete", "retired"];

const fn phase_word(phase: CredentialPhase) -> &'static str {
    match phase {
        CredentialPhase::Empty => "empty",
        CredentialPhase::Active => "active",
        CredentialPhase::Rolling => "rolling",
        CredentialPhase::Halted => "halted",
        CredentialPhase::Stuck => "stuck",
        CredentialPhase::Orphaned => "orphaned",
        CredentialPhase::Deleting => "deleting",
    }
}

const fn host_word(phase: HostPhase) -> &'static str {
    match phase {
        HostPhase::Connected => "connected",
        HostPhase::Silent => "silent",
        HostPhase::Incomplete => "incomplete",
        HostPhase::Retired => "retired",
    }
}

fn host_phase(host: &Host) -> HostPhase {
    match () {
        () if !host.is_active() => HostPhase::Retired,
        () if host.progress().incomplete.is_some() => HostPhase::Incomplete,
        () if host.reachable => HostPhase::Connected,
        () => HostPhase::Silent,
    }
}

fn phase(owned: &Owned) -> CredentialPhase {
    let state = &owned.kept.state;
    let rollout = state.rollout();
    match () {
        () if state.is_deleted() => CredentialPhase::Deleting,
        () if state.stuck().is_some() || state.versions().any(|view| view.stuck.is_some()) => {
            CredentialPhase::Stuck
        }
        () if rollout.as_ref().is_some_and(|rollout| rollout.halted.is_some()) => CredentialPhase::Halted,
        () if rollout.is_some() => CredentialPhase::Rolling,
        () if state.is_orphaned() => CredentialPhase::Orphaned,
        () if state.active().is_none() => CredentialPhase::Empty,
        () => CredentialPhase::Active,
    }
}

fn summary(name: &CredentialName, owned: &Owned) -> CredentialSummary {
    let state = &owned.kept.state;
    let rolling = state.rollout().and_then(|rollout| rollout.version);
    let newest = rolling.or(state.active());
    let targets: Vec<TargetView> =
        state.targets().filter(|target| target.selected && !target.retired).collect();
    let adopted = targets.iter().filter(|target| newest.is_some() && target.adopted == newest).count();
    let live = state.versions().filter(|view| !view.phase.is_ended()).count();
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let every = owned.kept.plan.credential.every;
    CredentialSummary {
        name: name.clone(),
        phase: phase(owned),
        current: state.active(),
        rolling,
        live_versions: count(live),
        targets: count(targets.len()),
        adopted: count(adopted),
        next_rotation_at: every.map(|every| owned.kept.rotated_at.plus_ms(every.0)),
    }
}

/// As one word for a shell: names of units may have a backslash, and what a host names must run nothing.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/@+,=".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn stuck_of(name: &CredentialName, owned: &Owned) -> Vec<Stuck> {
    let state = &owned.kept.state;
    let whole = state.stuck().map(|stuck| (None, stuck.clone()));
    let versions = state.versions().filter_map(|view| Some((Some(view.version), view.stuck?)));
    let one = |(version, stuck): (Option<Version>, lifecycle::credential::Stuck)| Stuck {
        credential: name.clone(),
        version,
        reason: stuck.reason,
        action: stuck.advice,
    };
    whole.into_iter().chain(versions).map(one).collect()
}

fn version_phase(view: &VersionView) -> VersionPhase {
    if view.stuck.is_some() {
        return VersionPhase::Stuck;
    }
    match view.phase {
        Phase::Minting => VersionPhase::Minting,
        Phase::Minted => VersionPhase::Minted,
        Phase::Rolling => VersionPhase::Rolling,
        Phase::Active => VersionPhase::Active,
        Phase::Superseded => VersionPhase::Superseded,
        Phase::Sealing => VersionPhase::Sealing,
        Phase::Retiring => VersionPhase::Retiring,
        Phase::Retired => VersionPhase::Retired,
        Phase::Erased => VersionPhase::Erased,
    }
}

fn rollout_phase(rollout: &CoreRollout) -> RolloutPhase {
    if rollout.halted.is_some() {
        return RolloutPhase::Halted;
    }
    match rollout.stage {
        Stage::Preflight | Stage::AwaitGate => RolloutPhase::Preflight,
        Stage::Mint => RolloutPhase::Minting,
        Stage::Verify => RolloutPhase::Verifying,
        Stage::Staging => RolloutPhase::Staging,
        Stage::Canary => RolloutPhase::Canaries,
        Stage::Flip { .. } if rollout.activated < rollout.targets => RolloutPhase::Arming,
        Stage::Flip { .. } => RolloutPhase::Adopting,
    }
}

const fn clause(clause: CoreClause) -> Clause {
    match clause {
        CoreClause::Replaced => Clause::Replaced,
        CoreClause::Adopted => Clause::Adopted,
        CoreClause::NoRollback => Clause::NoRollback,
        CoreClause::Disarmed => Clause::Disarmed,
        CoreClause::Covered => Clause::Covered,
        CoreClause::NoHolder => Clause::NoHolder,
        CoreClause::BackendQuiet => Clause::BackendQuiet,
        CoreClause::Evidence => Clause::Evidence,
        CoreClause::Grace => Clause::Grace,
        CoreClause::NoHold => Clause::NoHold,
        CoreClause::Fresh => Clause::Fresh,
    }
}

/// The number that the next version will have.
fn next_version(owned: &Owned) -> Version {
    let state = &owned.kept.state;
    let epoch = state.epoch().counter;
    let newest = state.versions().map(|view| view.version).filter(|version| version.epoch == epoch).max();
    Version::new(epoch, newest.map_or(1, |version| version.number + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code and what to do stand beside the message wherever it is told.
    #[test]
    fn a_refusal_says_nothing_twice() {
        let version = Version::new(1, 7);
        for illegal in [
            IllegalEvent::TooManyLive { live: 4, max: 4 },
            IllegalEvent::Held { version, by: "import".to_owned() },
            IllegalEvent::UnknownVersion(version),
            IllegalEvent::InUse(version),
            IllegalEvent::Orphaned,
            IllegalEvent::Interrupts,
            IllegalEvent::Starting,
            IllegalEvent::NothingToReturnTo,
        ] {
            let problem = refusal(&illegal).problem();
            let told = problem.to_string();
            // Advice in the detail is the action itself, which is not told again then.
            let advice = problem.detail.rsplit_once("; ").map(|(_, advice)| advice);
            assert!(advice.is_none_or(|advice| advice == problem.action), "{told}");
            assert!(!problem.detail.starts_with(&problem.code), "{told}");
            assert!(!told.contains("--compromised"), "a limit is not there to be gone round: {told}");
        }
    }

    #[test]
    fn what_a_host_names_is_one_word_of_a_command() {
        assert_eq!(quoted("unit:orders.service:3f9c"), "unit:orders.service:3f9c");
        assert_eq!(quoted(r"unit:a\x2db.service"), r"'unit:a\x2db.service'");
        assert_eq!(quoted("a; $(rm -r b)"), "'a; $(rm -r b)'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted("~"), "'~'");
    }
}
