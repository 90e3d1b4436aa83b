//! Act 3: a credential that the server accepts and one application cannot use.

use anyhow::Context;
use protocol::api::{AuditPage, DeliveryPhase, RolloutPhase, VersionPhase};

use super::rotation::begin;
use crate::control::{CREDENTIAL, ControlPlane};
use crate::host::{CAST, HOSTS};
use crate::scene::{STEP, Scene, phase, write_credential};
use crate::terminal::{Tone, span};

/// Passwords with a character that begins an escape in a URL.
const WITH_PERCENT: &str = "{ length: 32, symbols: 4, symbolCharacters: \"%\", allowRepeat: true }";

/// Rotates to a version that the canary's application cannot parse.
pub fn play(scene: &mut Scene) -> anyhow::Result<()> {
    scene.terminal.say(Tone::Heading, "act 3: a credential that one application cannot use");
    scene.terminal.say(
        Tone::Why,
        "The server takes the new password, one application does not: it puts it into a URL, which then does not \
         parse, and it exits before it logs in. It runs on the canary, which goes back by itself; nobody else ever \
         sees that version.",
    );
    scene.protected.start_act()?;
    let canary = CAST[0];
    let good = scene.login_on(0)?;
    let before = changes_of(&scene.control)?;
    write_credential(&scene.control, &scene.protected, Some(WITH_PERCENT))?;
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
    scene.promise(untouched, "it became current on no host but the canary");
    let same = scene.until_login_is(0, &good)?;
    scene.promise(same, format!("the canary went back to version {before} by itself"));
    scene.control.esoctl(&["rollout", "abort", CREDENTIAL, "--reason", "one application cannot parse it"])?;
    scene.terminal.say(Tone::Person, format!("esoctl rollout abort {CREDENTIAL}"));
    scene.until_retired(bad)?;
    let active = scene.control.credential(CREDENTIAL)?;
    scene.promise(
        phase(&active, before) == Some(VersionPhase::Active),
        format!("version {before} is active, and version {bad} is revoked"),
    );
    let seen = seen_elsewhere(scene, &active, bad)?;
    scene.promise(!seen, format!("no application but {} ever read version {bad}", canary.name));
    let gap = scene.protected.tally(canary.source())?.gap_ms_max;
    let gap = span(std::time::Duration::from_millis(gap));
    scene.terminal.say(Tone::Plain, format!("the price: {} alone was away, for {gap}", canary.name));
    write_credential(&scene.control, &scene.protected, None)?;
    scene.tell_logins()
}

/// Whether an application beside the canary's ever showed a login of that version.
fn seen_elsewhere(
    scene: &Scene,
    detail: &protocol::api::CredentialDetail,
    version: lifecycle::Version,
) -> anyhow::Result<bool> {
    let known = detail.versions.iter().find(|known| known.version == version);
    let effect = known.and_then(|known| known.effect).context("the version has no effect")?.to_string();
    for cast in &CAST[1..] {
        let shown = scene.hosts[cast.host].shown(cast)?;
        if shown.iter().any(|login| login.username().ends_with(&effect)) {
            return Ok(true);
        }
    }
    Ok(false)
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
