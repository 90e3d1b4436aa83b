//! Act 3: a credential that the server accepts and one application cannot use.

use protocol::api::{AuditPage, DeliveryPhase, RolloutPhase, VersionPhase};

use super::rotation::begin;
use crate::control::{CREDENTIAL, ControlPlane};
use crate::host::{CAST, HOSTS};
use crate::scene::{STEP, Scene, phase, write_resources};
use crate::terminal::Tone;

/// Passwords with a character that a URL cannot hold.
const WITH_PERCENT: &str =
    "    password: { length: 32, symbols: 4, symbolCharacters: \"%\", allowRepeat: true }\n";

/// Rotates to a version that the canary's application cannot parse.
pub fn play(scene: &mut Scene) -> anyhow::Result<()> {
    scene.terminal.say(Tone::Heading, "act 3: a credential that one application cannot use");
    scene.protected.start_act()?;
    let canary = CAST[0];
    let good = scene.login_on(0)?;
    let before = changes_of(&scene.control)?;
    write_resources(&scene.control, &scene.protected, WITH_PERCENT)?;
    scene
        .terminal
        .say(Tone::Sabotage, format!("passwords hold a character now that {} cannot parse", canary.name));
    let control = &scene.control;
    scene.narrator.until(control, "the changed generator is taken", STEP, |_| {
        changes_of(control).is_ok_and(|changes| changes > before)
    })?;
    let (before, bad) = begin(scene)?;
    scene.narrator.until(&scene.control, "the rollout halts", STEP, |detail| {
        detail.rollout.as_ref().is_some_and(|rollout| rollout.phase == RolloutPhase::Halted)
    })?;
    let detail = scene.narrator.until(&scene.control, "the canary is back", STEP, |detail| {
        delivery(detail, bad, HOSTS[0]) == Some(DeliveryPhase::RolledBack)
    })?;
    let untouched = HOSTS[1..].iter().all(|host| {
        matches!(delivery(&detail, bad, host), None | Some(DeliveryPhase::Pending | DeliveryPhase::Staged))
    });
    scene.promise(untouched, "nobody but the canary ever saw it");
    let same = scene.login_on(0)?.username() == good.username();
    scene.promise(same, format!("the canary went back to version {before} by itself"));
    scene.control.esoctl(&["rollout", "abort", CREDENTIAL, "--reason", "one application cannot parse it"])?;
    scene.until_retired(bad)?;
    let active = scene.control.credential(CREDENTIAL)?;
    scene.promise(
        phase(&active, before) == Some(VersionPhase::Active),
        format!("version {before} is active, and version {bad} is revoked"),
    );
    let gap = scene.protected.tally(canary.source())?.gap_ms_max;
    scene.terminal.say(Tone::Plain, format!("the price: {} was away for {gap} ms", canary.name));
    write_resources(&scene.control, &scene.protected, "")?;
    scene.tell_logins()
}

fn delivery(
    detail: &protocol::api::CredentialDetail,
    version: lifecycle::Version,
    host: &str,
) -> Option<DeliveryPhase> {
    let known = detail.versions.iter().find(|known| known.version == version)?;
    known.deliveries.iter().find(|delivery| delivery.name == host).map(|delivery| delivery.phase)
}

/// The control plane notices a changed file by itself, and its audit log says so.
fn changes_of(control: &ControlPlane) -> anyhow::Result<usize> {
    let page: AuditPage = control.ask(&["audit"])?;
    Ok(page.entries.iter().filter(|entry| entry.action == "changed").count())
}
