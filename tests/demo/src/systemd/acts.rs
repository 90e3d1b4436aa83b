//! What is shown on real systemd hosts.

use std::time::Duration;

use anyhow::Context;
use lifecycle::Version;
use protocol::api::{CredentialDetail, DeliveryPhase, PendingVersion, RolloutPhase, VersionPhase};

use super::{Stage, host};
use crate::acts::rotation::canary_first;
use crate::control::CREDENTIAL;
use crate::examples::Changes;
use crate::host::{CAST, HOSTS};
use crate::login::Login;
use crate::scene::{STEP, change_credential, phase};
use crate::terminal::{Tone, span};

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
    let (held, what) = canary_first(&mut stage.protected, &old)?;
    stage.promise(held, what);
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
    let changes = Changes { password: Some(WITH_PERCENT), ..Changes::default() };
    change_credential(&stage.control, &stage.protected, changes)?;
    stage.terminal.say(Tone::Sabotage, "passwords hold a character now that orders.service cannot parse");
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
    let unusable = login_of(stage, &detail, bad)?;
    stage.must_be(true, &unusable, &format!("version {bad}, which only orders.service cannot use"))?;
    stage.control.esoctl(&["rollout", "abort", CREDENTIAL, "--reason", "one application cannot parse it"])?;
    stage.terminal.say(Tone::Person, format!("esoctl rollout abort {CREDENTIAL} --reason ..."));
    stage.until_retired(bad)?;
    let active = stage.control.credential(CREDENTIAL)?;
    stage.promise(
        phase(&active, before) == Some(VersionPhase::Active),
        format!("version {before} is active, and version {bad} is revoked"),
    );
    stage.must_be(false, &unusable, &format!("version {bad} is revoked"))?;
    stage.protected.until_all_log_in()?;
    let gap = span(Duration::from_millis(stage.protected.was_away(orders.source())?));
    stage.terminal.say(Tone::Plain, format!("the price: orders.service alone was away, for {gap}"));
    change_credential(&stage.control, &stage.protected, Changes::default())?;
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

fn delivery(detail: &CredentialDetail, version: Version, host: &str) -> Option<DeliveryPhase> {
    let known = detail.versions.iter().find(|known| known.version == version)?;
    known.deliveries.iter().find(|delivery| delivery.name == host).map(|delivery| delivery.phase)
}

/// What orders.service read, showed, and could not parse: nobody else ever had it.
fn login_of(stage: &Stage, detail: &CredentialDetail, version: Version) -> anyhow::Result<Login> {
    let known = detail.versions.iter().find(|known| known.version == version);
    let effect = known.and_then(|known| known.effect).context("the version has no effect")?.to_string();
    let shown = stage.hosts[CAST[0].host].shown(&CAST[0])?;
    let login = shown.into_iter().find(|login| login.username().ends_with(&effect));
    login.with_context(|| format!("orders.service never read version {version}"))
}
