//! Reports: whole snapshots, numbered, signed, sent until they are acknowledged.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lifecycle::host::HostEvent;
use lifecycle::{Evidence, SetName, SetReport, Version};
use protocol::report::{Means, Receipt, Report};
use protocol::{FileName, Frame, FrameDigest, KeyedDigest, UnixMillis, ack};

use crate::applier::Applier;
use crate::clock;
use crate::keep::Keeper;

/// How many numbers are reserved with one record of the journal.
const NUMBERS_RESERVED: u64 = 256;
/// The shortest time between two reports that nobody asked for.
const PAUSE: Duration = Duration::from_millis(20);
/// How long the first acknowledgement is waited for before the report is sent again; the wait doubles.
const RESEND: Duration = Duration::from_secs(2);
/// How long it takes until a report is tried again that could not be made: the journal has no number for it.
const UNNUMBERED: Duration = Duration::from_secs(1);
/// The longest wait.
const RESEND_MAX: Duration = Duration::from_mins(1);

/// The report that was sent last.
pub(crate) struct Sent {
    sequence: u64,
    digest: FrameDigest,
    frame: Frame,
    acknowledged: bool,
    at: Instant,
    wait: Duration,
}

impl Applier {
    /// A signed report with these receipts; none when it cannot be made, which is said in the log.
    pub(crate) fn report(&mut self, receipts: Vec<Receipt>) -> Option<Frame> {
        let old = clock::boot().since(self.tools.view.table.taken).0 > 1_000;
        if old && self.sets.values().any(crate::set::Set::has_to_look) {
            self.observe();
        }
        let sequence = self.next_number()?;
        let mut sets = BTreeMap::new();
        let names: Vec<SetName> = self.sets.keys().cloned().collect();
        for name in names {
            if let Some(report) = self.set_report(&name, sequence) {
                sets.insert(name, report);
            }
        }
        let report = Report {
            installation: self.anchor.installation,
            host: self.tools.host,
            epoch: self.host.epoch,
            sequence,
            boot_id: self.tools.witness.boot_id.clone(),
            taken_at: UnixMillis::now(),
            up_ms: clock::boot().0,
            acknowledged: self.host.acknowledged.clone(),
            sets,
            digests: self.digests(),
            receipts,
            means: self.means(),
            notices: self.tools.notices(sequence),
        };
        let frame = match report.sign(&self.identity.reports) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::error!(%error, "the report is too large to be sent");
                return None;
            }
        };
        self.tools.changed = false;
        self.sent = Some(Sent {
            sequence,
            digest: frame.digest(),
            frame: frame.clone(),
            acknowledged: false,
            at: Instant::now(),
            wait: RESEND,
        });
        Some(frame)
    }

    fn next_number(&mut self) -> Option<u64> {
        // Early, so that a journal without room for a while keeps no report from being made.
        if self.next_sequence + NUMBERS_RESERVED / 2 >= self.host.reports_below {
            self.reserve_numbers();
        }
        if self.next_sequence >= self.host.reports_below {
            return None;
        }
        let number = self.next_sequence;
        self.next_sequence += 1;
        Some(number)
    }

    /// Has the journal know that numbers up to a limit may have been used.
    pub(crate) fn reserve_numbers(&mut self) {
        let before = self.host.reports_below;
        self.host.reports_below = self.next_sequence + NUMBERS_RESERVED;
        if let Err(error) = self.keep_host() {
            self.host.reports_below = before;
            self.tools.notice("journal", "host", error.to_string());
        }
    }

    fn set_report(&mut self, name: &SetName, sequence: u64) -> Option<SetReport> {
        let set = self.sets.get_mut(name)?;
        let (named, faults) = (set.record.evidence.clone(), set.record.place_faults.clone());
        let holders = set.record.evidence.all_holders();
        let gaps = set.record.evidence.gaps(sequence, &self.tools.view.table);
        let places = set.faults(sequence);
        let newly_named = named != set.record.evidence || faults != set.record.place_faults;
        if newly_named || set.unkept {
            // A name that is not kept is given to nothing else: it has the report's number in it.
            let _ = set.keep(&mut self.tools);
        }
        // What is not in the journal is not said of the machine. Of who holds what, more than it has may be said.
        let mut report = set.kept.report();
        report.sequence = sequence;
        report.epoch = self.host.epoch;
        report.evidence = evidence_of(set);
        report.flipped = set.record.flipped.filter(|flipped| Some(flipped.version) == report.current);
        (report.holders, report.gaps, report.places) = (holders, gaps, places);
        Some(report)
    }

    fn digests(&self) -> BTreeMap<SetName, BTreeMap<Version, BTreeMap<FileName, KeyedDigest>>> {
        let of_set = |set: &crate::set::Set| {
            let present = set.kept.present();
            let digests = set.record.digests.iter().filter(|(version, _)| present.contains(version));
            digests.map(|(version, digests)| (*version, digests.clone())).collect()
        };
        self.sets.iter().map(|(name, set)| (name.clone(), of_set(set))).collect()
    }

    fn means(&self) -> Vec<Means> {
        let mean = |name: &str, in_use: bool, detail: String| Means { name: name.to_owned(), in_use, detail };
        let kernel = self.tools.witness.kind() == Evidence::Kernel;
        let seen = if kernel { "opens and reads are seen by the kernel" } else { self.tools.witness.why() };
        let kept = match self.keeper {
            Keeper::SystemdCreds => "keys are sealed by systemd-creds".to_owned(),
            Keeper::KeyFile => {
                "systemd-creds does not work here: keys lie in a file of mode 0600, the weaker form"
                    .to_owned()
            }
        };
        let stored = if self.tools.witness.stored {
            "the group of opens is kept over our restarts".to_owned()
        } else if kernel {
            "nobody keeps the group of opens: a restart of the applier is a gap".to_owned()
        } else {
            "there is no group of opens to keep".to_owned()
        };
        let supervisor = self.tools.tasks.supervisor().kind();
        let systemd = supervisor == units::Kind::Systemd;
        let asked = if systemd {
            "consumers are asked over D-Bus"
        } else {
            "consumers are asked by pid file and signals"
        };
        let mut means = vec![
            mean("fanotify", kernel, seen.to_owned()),
            mean("descriptor_store", self.tools.witness.stored, stored),
            mean("systemd", systemd, asked.to_owned()),
            mean("sealed_copies", self.keeper == Keeper::SystemdCreds, kept),
        ];
        if let Some(exact) = &self.tools.witness.exact {
            means.push(mean("exact", self.tools.witness.is_exact(), exact.told.clone()));
        }
        for (name, mounted) in &self.tools.mounts {
            let why = mounted.why.as_deref().map_or_else(String::new, |why| {
                let weaker = if kernel { ", so its evidence is `declared` only" } else { "" };
                format!(": {why}{weaker}")
            });
            let detail = format!("{name} lies on a {}{why}", mounted.backing.word());
            means.push(mean("tmpfs", mounted.backing != sets::Backing::Directory, detail));
        }
        means.extend(self.network_means.iter().cloned());
        means.truncate(protocol::limit::NOTICES_MAX);
        means
    }

    /// Sends what has changed, or again what was not acknowledged.
    pub(crate) fn send_reports(&mut self) {
        if self.reports.is_none() {
            return;
        }
        let now = Instant::now();
        if now < self.next_report {
            return;
        }
        let due = match &self.sent {
            None => true,
            Some(sent) => {
                let every = Duration::from_millis(self.tools.daemon.report_ms);
                let paused = now.duration_since(sent.at) >= PAUSE;
                (self.tools.changed && paused) || now.duration_since(sent.at) >= every
            }
        };
        if due {
            if !self.tools.changed {
                // Who ended meanwhile is told of by nobody.
                self.observe();
            }
            match self.report(Vec::new()) {
                Some(frame) => self.hand_over(frame),
                None => self.next_report = now + UNNUMBERED,
            }
            return;
        }
        let Some(sent) = self.sent.as_mut().filter(|sent| !sent.acknowledged) else { return };
        if now.duration_since(sent.at) >= sent.wait {
            sent.wait = (sent.wait * 2).min(RESEND_MAX);
            let frame = sent.frame.clone();
            self.hand_over(frame);
        }
    }

    fn hand_over(&mut self, frame: Frame) {
        if self.reports.as_ref().is_some_and(|reports| reports.send(Some(frame)).is_err()) {
            self.reports = None;
        }
    }

    /// When [`Self::send_reports`] has something to do.
    pub(crate) fn report_due(&self) -> Option<Instant> {
        self.reports.as_ref()?;
        let Some(sent) = &self.sent else { return Some(self.next_report) };
        let every = Duration::from_millis(self.tools.daemon.report_ms);
        let wait = if self.tools.changed { PAUSE } else { every };
        let resend = (!sent.acknowledged).then_some(sent.wait);
        Some(self.next_report.max(sent.at + resend.map_or(wait, |resend| resend.min(wait))))
    }

    /// The network half is there (again): it gets the newest report.
    pub(crate) fn connected(
        &mut self,
        reports: tokio::sync::watch::Sender<Option<Frame>>,
        means: Vec<Means>,
    ) {
        self.reports = Some(reports);
        self.network_means = means;
        self.tools.changed = true;
    }

    /// The control plane has a report, and says which versions are dead.
    pub(crate) fn acknowledged(&mut self, frame: &Frame) {
        let ack = match ack::verify(frame, &self.anchor, self.tools.host) {
            Ok(ack) => ack,
            Err(error) => {
                tracing::warn!(%error, "an acknowledgement is not believed");
                return;
            }
        };
        if self.host.epoch.is_some_and(|mine| mine.counter > ack.epoch.counter) {
            tracing::warn!("an acknowledgement of an epoch that has ended is not believed");
            return;
        }
        self.sender_clock.heard(ack.acknowledged_at, clock::boot());
        if let Some(sent) = self.sent.as_mut().filter(|sent| sent.sequence == ack.sequence) {
            sent.acknowledged = sent.digest == ack.report;
        }
        if ack.sequence > self.host.acknowledged_sequence && ack.sequence < self.next_sequence {
            let before = (self.host.acknowledged.replace(frame.clone()), self.host.acknowledged_sequence);
            self.host.acknowledged_sequence = ack.sequence;
            match self.keep_host() {
                Ok(()) => self.tools.heard(ack.sequence),
                Err(error) => {
                    // No report shows what a next life of ours would not know of.
                    (self.host.acknowledged, self.host.acknowledged_sequence) = before;
                    self.tools.notice("journal", "host", error.to_string());
                }
            }
        }
        for (name, dead) in ack.dead {
            if self.sets.contains_key(&name) {
                let told = HostEvent::Acknowledged { epoch: ack.epoch, dead };
                if let Err(error) = self.give(&name, told) {
                    self.tools.notice("journal", name.as_str(), error.to_string());
                }
            }
        }
    }
}

/// The kind of evidence that all consumers of the set have. Where the kernel does not count the set's inodes, a
/// descriptor in other hands may be overlooked: that is no more than what policy declares.
fn evidence_of(set: &crate::set::Set) -> Evidence {
    let uncounted = set.dir.is_some() && set.pins.own_device.is_none();
    let kind = set.record.evidence.kind();
    let kind = if uncounted { kind.min(Evidence::Declared) } else { kind };
    let consumers = set.policy.as_ref().map(|policy| policy.consumers.as_slice()).unwrap_or_default();
    let all_speak = !consumers.is_empty() && consumers.iter().all(|consumer| consumer.trust_reported);
    if kind == Evidence::Declared && all_speak { Evidence::Reported } else { kind }
}
