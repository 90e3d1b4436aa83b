//! What hosts say: verified, in order, and without contradiction.

use lifecycle::SetReport;
use lifecycle::credential::Event;
use protocol::order::OrderIdentity;
use protocol::report::{self, VerifiedReport};
use protocol::{Frame, HostId, UnixMillis};
use store::HostProgress;

use crate::figures::ClockBound;
use crate::handle::HandleError;
use crate::run::{Batch, Turn};
use crate::world::World;

/// Digests of how many reports are remembered for telling a resent one from a contradiction.
const DIGESTS_KEPT: usize = 64;
/// A report that newer ones overtook on the way is not older than this many of them.
const OVERTAKEN_MAX: u64 = 64;
/// Notices of one host that the audit log takes between two starts of ours; the newest ones are shown all the same.
const NOTICES_AUDITED_MAX: usize = 1_000;
/// The same of its contradictions.
const CONTRADICTIONS_AUDITED_MAX: usize = 100;
/// The same of orders that it refuses.
const REFUSALS_AUDITED_MAX: usize = 1_000;

/// How a report stands to what the host said before.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    /// Newer than everything before.
    Newer,
    /// Said before, in these very words, or overtaken by a newer one.
    Known,
    /// It contradicts what was acknowledged: a reverted or cloned machine.
    Contradiction(String),
}

impl World {
    /// Takes a report in. The acknowledgement may be sent once the batch is committed.
    pub(crate) fn take_report(
        &mut self,
        turn: &mut Turn,
        batch: &mut Batch,
        frame: &Frame,
        peer: Option<HostId>,
    ) -> Result<Frame, HandleError> {
        let refused = |code, message: String| HandleError::Report { code, message };
        let claimed = report::claimed_host(frame).map_err(|error| refused("malformed", error.to_string()))?;
        if peer.is_some_and(|peer| peer != claimed) {
            return Err(refused("other_host", format!("sent by one host in the name of {claimed}")));
        }
        let host = self.hosts.get(&claimed).filter(|host| host.is_active());
        let host = host.ok_or_else(|| refused("unknown_host", format!("host {claimed} is not enrolled")))?;
        let verified = report::verify(frame, self.installation, &host.report_key, &self.own_keys)
            .map_err(|error| refused(error.code(), error.to_string()))?;
        if let Some(counter) = self.newer_life(host.progress(), &verified) {
            batch.new_epoch = Some(batch.new_epoch.unwrap_or(0).max(counter));
        }
        // One that was sent again says nothing twice.
        let said = host.progress().digests.get(&verified.report().sequence);
        let again = said.is_some_and(|digest| *digest == verified.frame().to_string());
        self.judge(turn, batch, claimed, &verified);
        if !again {
            self.note_receipts(batch, claimed, &verified);
            self.note_notices(batch, claimed, &verified);
        }
        self.acknowledge(claimed, &verified)
    }

    /// Our own signature on an acknowledgement that this store never gave: the store was reverted behind our back.
    fn newer_life(&self, progress: &HostProgress, verified: &VerifiedReport) -> Option<u32> {
        let ack = verified.acknowledged()?;
        let ours = self.epoch;
        let stranger = ack.epoch.counter > ours.counter
            || (ack.epoch.counter == ours.counter && ack.epoch.id != ours.id);
        // Not the newest report: a host that contradicts itself counts anew, and must not begin an epoch by that.
        let known = progress.acknowledged_max.max(progress.sequence);
        let unknown = ack.epoch == ours && ack.sequence > known;
        (stranger || unknown).then_some(ack.epoch.counter)
    }

    fn judge(&mut self, turn: &mut Turn, batch: &mut Batch, id: HostId, verified: &VerifiedReport) {
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let digest = verified.frame().to_string();
        let shown = verified.acknowledged().map(|ack| ack.sequence);
        let report = verified.report();
        let standing = standing(&host.row.progress, report.sequence, &digest, shown);
        let name = host.row.host.name.clone();
        let now = UnixMillis::now();
        host.clock = Some(ClockBound::learn(host.clock, report.taken_at, now));
        let progress = &mut host.row.progress;
        let contradiction = match standing {
            Standing::Known => {
                self.metrics.report("known");
                return;
            }
            Standing::Newer => None,
            Standing::Contradiction(words) => Some(words),
        };
        if let Some(words) = &contradiction {
            // The core goes by growing numbers: what this machine says from now on is newer than all before.
            progress.lead = progress.lead.saturating_add(progress.sequence).saturating_add(1);
            progress.digests.clear();
            progress.digests_from =
                progress.acknowledged_max.max(progress.sequence).max(report.sequence).saturating_add(1);
            progress.shown = 0;
            progress.incomplete = Some(words.clone());
            if let Some(rest) = host.contradictions_told.one_more(CONTRADICTIONS_AUDITED_MAX) {
                let (actor, subject) = (format!("host:{id}"), format!("host/{id}"));
                let detail = format!("{words}{rest}");
                batch.audit.push(crate::audit::entry(&actor, "contradiction", &subject, &detail));
            }
            tracing::warn!(host = %id, %name, %words, "a host contradicts itself");
        } else if progress.incomplete.is_some() && progress.digests.len() >= 2 {
            progress.incomplete = None;
        }
        progress.acknowledged_max = progress.acknowledged_max.max(progress.sequence).max(report.sequence);
        progress.sequence = report.sequence;
        progress.shown = progress.shown.max(shown.unwrap_or(0));
        progress.digests.insert(report.sequence, digest);
        while progress.digests.len() > DIGESTS_KEPT {
            if let Some((dropped, _)) = progress.digests.pop_first() {
                progress.digests_from = progress.digests_from.max(dropped.saturating_add(1));
            }
        }
        progress.boot_id = Some(report.boot_id.clone());
        progress.reported_ms = now.0;
        let lead = progress.lead;
        batch.hosts.insert(id);
        self.metrics.report(if contradiction.is_some() { "contradiction" } else { "taken" });
        self.tell(turn, batch, id, verified, lead, contradiction.is_some());
    }

    fn tell(
        &mut self,
        turn: &mut Turn,
        batch: &mut Batch,
        id: HostId,
        verified: &VerifiedReport,
        lead: u64,
        contradicted: bool,
    ) {
        let target = id.target();
        // That it speaks is no proof that it can be spoken to: the road finds that out.
        if self.hosts.get(&id).is_some_and(|host| !host.reachable) {
            self.post.road.nudge(&id);
        }
        for (set, snapshot) in &verified.report().sets {
            let Some(name) = self.sets.get(set).cloned() else { continue };
            let report = SetReport { sequence: snapshot.sequence.saturating_add(lead), ..snapshot.clone() };
            self.note_flip(&name, &target, &report);
            self.reported(turn, batch, &name, &target, report);
            if contradicted {
                self.apply_or_log(turn, batch, &name, Event::Incomplete { target: target.clone() });
            }
        }
    }

    /// Every refused order is counted, and told once in the audit log.
    fn note_receipts(&mut self, batch: &mut Batch, id: HostId, verified: &VerifiedReport) {
        for receipt in &verified.report().receipts {
            let report::Outcome::Refused { code, message } = &receipt.outcome else { continue };
            self.metrics.order_refused(code);
            let order = receipt.order.as_ref();
            tracing::info!(host = %id, %code, %message, ?order, "a host refused an order");
            let (subject, what) = match order {
                Some(OrderIdentity::Set { set, generation, kind, version, .. }) => match self.sets.get(set) {
                    Some(name) => (format!("credential/{name}"), format!("{kind} {version} of {generation}")),
                    None => (format!("host/{id}"), format!("{kind} of a set that is not ours")),
                },
                Some(OrderIdentity::Ask { .. }) => (format!("host/{id}"), "a question".to_owned()),
                Some(OrderIdentity::Rekey { .. }) => (format!("host/{id}"), "a new key".to_owned()),
                None => (format!("host/{id}"), "what it could not read".to_owned()),
            };
            let Some(host) = self.hosts.get_mut(&id) else { continue };
            let news = format!("{what}: {code}");
            if host.refused.get(&subject) == Some(&news) {
                continue;
            }
            if let Some(rest) = host.refusals_told.one_more(REFUSALS_AUDITED_MAX) {
                let detail = format!("{news}: {message}{rest}");
                batch.audit.push(crate::audit::entry(
                    &format!("host:{id}"),
                    "order_refused",
                    &subject,
                    &detail,
                ));
            }
            host.refused.insert(subject, news);
        }
    }

    /// What an operator should know: a place that was repaired, a policy that was refused. Audited once each time that it
    /// appears.
    fn note_notices(&mut self, batch: &mut Batch, id: HostId, verified: &VerifiedReport) {
        let report = verified.report();
        let Some(host) = self.hosts.get_mut(&id) else { return };
        for notice in report.notices.iter().filter(|notice| !host.notices.contains(notice)) {
            tracing::info!(host = %id, code = %notice.code, message = %notice.message, "a host gives notice");
            let Some(rest) = host.notices_told.one_more(NOTICES_AUDITED_MAX) else { continue };
            let detail = format!("{}: {}{rest}", notice.code, notice.message);
            let (actor, subject) = (format!("host:{id}"), format!("host/{id}"));
            batch.audit.push(crate::audit::entry(&actor, "host_notice", &subject, &detail));
        }
        host.means.clone_from(&report.means);
        host.notices.clone_from(&report.notices);
    }

    /// Who was let in and says what we cannot take is named, once for each reason.
    pub(crate) fn note_refused_report(
        &mut self,
        batch: &mut Batch,
        peer: Option<HostId>,
        code: &str,
        message: &str,
    ) {
        let Some((id, host)) = peer.and_then(|id| Some((id, self.hosts.get_mut(&id)?))) else { return };
        if host.refused.insert(format!("report: {code}"), String::new()).is_some() {
            return;
        }
        let (actor, subject) = (format!("host:{id}"), format!("host/{id}"));
        batch.audit.push(crate::audit::entry(
            &actor,
            "report_refused",
            &subject,
            &format!("{code}: {message}"),
        ));
    }

    fn acknowledge(&self, id: HostId, verified: &VerifiedReport) -> Result<Frame, HandleError> {
        let (sets, target) = (verified.report().sets.keys(), id.target());
        let dead = sets.filter_map(|set| {
            let owned = self.sets.get(set).and_then(|name| self.owned.get(name))?;
            Some((set.clone(), owned.dead(&target)))
        });
        let ack = protocol::ack::Ack {
            installation: self.installation,
            epoch: self.epoch,
            host: id,
            sequence: verified.report().sequence,
            report: verified.frame(),
            acknowledged_at: UnixMillis::now(),
            dead: dead.filter(|(_, dead)| !dead.is_empty()).collect(),
        };
        ack.sign(&self.post.order_key).map_err(|error| HandleError::Invalid(error.to_string()))
    }
}

fn standing(progress: &HostProgress, sequence: u64, digest: &str, shown: Option<u64>) -> Standing {
    if let Some(known) = progress.digests.get(&sequence) {
        return if known == digest {
            Standing::Known
        } else {
            Standing::Contradiction(format!("two different reports have the number {sequence}"))
        };
    }
    if sequence <= progress.sequence {
        let overtaken = sequence >= progress.digests_from && progress.sequence - sequence < OVERTAKEN_MAX;
        // Overtaken on the way: the newer one said all of it.
        return if overtaken {
            Standing::Known
        } else {
            Standing::Contradiction(format!(
                "it had come to report {}, and now sends number {sequence}",
                progress.sequence
            ))
        };
    }
    match shown {
        Some(shown) if shown < progress.shown => Standing::Contradiction(format!(
            "it showed our acknowledgement of report {}, and now only that of {shown}",
            progress.shown
        )),
        None if progress.shown > 0 => Standing::Contradiction(format!(
            "it showed our acknowledgement of report {}, and now none",
            progress.shown
        )),
        _ => Standing::Newer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> HostProgress {
        let digests = [(7, "seven".to_owned()), (8, "eight".to_owned())].into();
        HostProgress { sequence: 8, digests, shown: 6, ..HostProgress::default() }
    }

    #[test]
    fn a_resent_or_overtaken_report_is_no_contradiction() {
        assert_eq!(standing(&progress(), 8, "eight", Some(6)), Standing::Known);
        assert_eq!(standing(&progress(), 7, "seven", Some(5)), Standing::Known);
        assert_eq!(standing(&progress(), 5, "five", Some(4)), Standing::Known);
        assert_eq!(standing(&progress(), 9, "nine", Some(8)), Standing::Newer);
        assert_eq!(standing(&progress(), 12, "twelve", Some(6)), Standing::Newer);
    }

    #[test]
    fn a_reverted_or_cloned_machine_contradicts_itself() {
        for (sequence, digest, shown) in [(8, "other", Some(7)), (9, "nine", Some(5)), (9, "nine", None)] {
            let standing = standing(&progress(), sequence, digest, shown);
            assert!(matches!(standing, Standing::Contradiction(_)), "{sequence} {shown:?}: {standing:?}");
        }
    }

    #[test]
    fn a_machine_that_was_reverted_far_is_not_taken_for_one_that_sends_again() {
        let far = HostProgress { sequence: 200, digests_from: 137, shown: 199, ..HostProgress::default() };
        for sequence in [1, 100, 136] {
            let standing = standing(&far, sequence, "other", Some(sequence - 1));
            assert!(matches!(standing, Standing::Contradiction(_)), "{sequence}: {standing:?}");
        }
        assert_eq!(standing(&far, 199, "overtaken", Some(190)), Standing::Known);
        // After a contradiction the numbers begin anew, and what is older than that is one again.
        let anew = HostProgress { sequence: 50, digests_from: 50, ..HostProgress::default() };
        assert!(matches!(standing(&anew, 40, "other", None), Standing::Contradiction(_)));
    }
}
