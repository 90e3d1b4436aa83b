//! What is shown on real systemd hosts.

use lifecycle::Version;
use protocol::api::{AuditPage, DeliveryPhase, PendingVersion, RolloutPhase, VersionPhase};

use super::{Stage, host};
use crate::control::{CREDENTIAL, ControlPlane};
use crate::host::{CAST, HOSTS};
use crate::scene::{STEP, phase, write_credential};
use crate::terminal::Tone;

/// Passwords with a character that begins an escape in a URL.
const WITH_PERCENT: &str = "{ length: 32, symbols: 4, symbolCharacters: \"%\", allowRepeat: true }";

/// A rotation, and a `cat` in a start script that keeps the old version alive.
pub(super) fn rotation(stage: &mut Stage) -> anyhow::Result<()> {
    stage.terminal.say(Tone::Heading, "act 1: a rotation");
    stage.terminal.say(
        Tone::Why,
        "Units are restarted and reloaded over D-Bus. ledger.service never opens the file itself: its start script\n\
         does, with a `cat` that was gone in a moment. Its unit counts as a holder all the same.",
    );
    stage.protected.start_act()?;
    let ledger = CAST[3];
    let old = stage.hosts[ledger.host].login(&ledger)?;
    let (before, _) = stage.rotate()?;
    let life = format!("unit:{}:{}", host::unit(&ledger), stage.hosts[ledger.host].invocation(&ledger)?);
    let control = &stage.control;
    stage.narrator.until(control, "only ledger.service keeps the old version alive", STEP, |_| {
        let holders = control.pending().map(|pending| holders_of(&pending, before)).unwrap_or_default();
        holders == [life.clone()]
    })?;
    stage.promise(true, format!("version {before} is held by {life}, and by nobody else"));
    stage.must_be(true, &old, &format!("version {before} while ledger.service has it"))?;
    let lives = lives(stage)?;
    for host in &stage.hosts {
        host.restart_ours()?;
        host.install(&stage.package)?;
    }
    stage.terminal.say(Tone::Person, "our programs are restarted, and the package is upgraded, on all hosts");
    let unchanged = self::lives(stage)? == lives;
    stage.promise(unchanged, "our own restart and upgrade restarted no unit");
    stage.terminal.say(Tone::Person, "a person restarts ledger.service");
    stage.hosts[ledger.host].restart(&ledger)?;
    stage.until_retired(before)?;
    stage.must_be(false, &old, &format!("version {before} is revoked"))?;
    stage.tell_logins()
}

/// A version that the server accepts and the canary's unit cannot start with.
pub(super) fn unusable(stage: &mut Stage) -> anyhow::Result<()> {
    stage.terminal.say(Tone::Heading, "act 3: a credential that one application cannot use");
    stage.terminal.say(
        Tone::Why,
        "orders.service exits before it logs in, systemd starts it again until its start limit. The canary goes back\n\
         by itself, past that limit; no other host ever makes that version current.",
    );
    stage.protected.start_act()?;
    let orders = CAST[0];
    let good = stage.hosts[orders.host].login(&orders)?;
    let changes = changes_of(&stage.control)?;
    write_credential(&stage.control, &stage.protected, Some(WITH_PERCENT))?;
    stage.terminal.say(Tone::Sabotage, "passwords hold a character now that orders.service cannot parse");
    let control = &stage.control;
    stage.narrator.until(control, "the changed generator is taken", STEP, |_| {
        changes_of(control).is_ok_and(|now| now > changes)
    })?;
    let (before, bad) = stage.rotate()?;
    let detail = stage.narrator.until(&stage.control, "the canary is back", STEP, |detail| {
        delivery(detail, bad, HOSTS[0]) == Some(DeliveryPhase::RolledBack)
            && detail.rollout.as_ref().is_some_and(|rollout| rollout.phase == RolloutPhase::Halted)
    })?;
    let untouched = HOSTS[1..].iter().all(|host| {
        matches!(delivery(&detail, bad, host), None | Some(DeliveryPhase::Pending | DeliveryPhase::Staged))
    });
    stage.promise(untouched, "it became current on no host but the canary");
    let host = &stage.hosts[orders.host];
    stage.narrator.until(&stage.control, "orders.service logs in again", STEP, |_| {
        host.login(&orders).is_ok_and(|login| login.username() == good.username())
    })?;
    stage.promise(true, format!("orders.service runs on version {before} again"));
    stage.control.esoctl(&["rollout", "abort", CREDENTIAL, "--reason", "one application cannot parse it"])?;
    stage.terminal.say(Tone::Person, format!("esoctl rollout abort {CREDENTIAL}"));
    stage.until_retired(bad)?;
    let active = stage.control.credential(CREDENTIAL)?;
    stage.promise(
        phase(&active, before) == Some(VersionPhase::Active),
        format!("version {before} is active, and version {bad} is revoked"),
    );
    write_credential(&stage.control, &stage.protected, None)?;
    stage.tell_logins()
}

/// Who holds a version, by id.
fn holders_of(pending: &[PendingVersion], version: Version) -> Vec<String> {
    let of_version = pending.iter().filter(|pending| pending.why.version == version);
    of_version.flat_map(|pending| &pending.holders).map(|holder| holder.id.clone()).collect()
}

/// The present lives of all applications' units.
fn lives(stage: &Stage) -> anyhow::Result<Vec<String>> {
    CAST.iter().map(|cast| stage.hosts[cast.host].invocation(cast)).collect()
}

fn delivery(detail: &protocol::api::CredentialDetail, version: Version, host: &str) -> Option<DeliveryPhase> {
    let known = detail.versions.iter().find(|known| known.version == version)?;
    known.deliveries.iter().find(|delivery| delivery.name == host).map(|delivery| delivery.phase)
}

/// The control plane notices a changed file by itself, and its audit log says so.
fn changes_of(control: &ControlPlane) -> anyhow::Result<usize> {
    let page: AuditPage = control.ask(&["audit"])?;
    Ok(page.entries.iter().filter(|entry| entry.action == "changed").count())
}
