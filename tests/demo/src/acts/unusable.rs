//! Act 3: a credential that the server accepts and one application cannot use.

use std::time::Duration;

use anyhow::Context;
use lifecycle::Version;
use protocol::api::{CredentialDetail, DeliveryPhase, RolloutPhase, VersionPhase};

use super::rotation::begin;
use crate::control::CREDENTIAL;
use crate::examples::Changes;
use crate::host::{CAST, HOSTS};
use crate::login::Login;
use crate::scene::{STEP, Scene, change_credential, phase};
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
    let changes = Changes { password: Some(WITH_PERCENT), ..Changes::default() };
    change_credential(&scene.control, &scene.protected, changes)?;
    scene
        .terminal
        .say(Tone::Sabotage, format!("passwords hold a character now that {} cannot parse", canary.name));
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
    let unusable = login_of(scene, &detail, bad)?;
    scene.must_be_accepted(
        &unusable,
        &format!("the server accepts version {bad}: only {} cannot use it", canary.name),
    )?;
    scene.control.esoctl(&["rollout", "abort", CREDENTIAL, "--reason", "one application cannot parse it"])?;
    scene.terminal.say(Tone::Person, format!("esoctl rollout abort {CREDENTIAL} --reason ..."));
    scene.until_retired(bad)?;
    let active = scene.control.credential(CREDENTIAL)?;
    scene.promise(
        phase(&active, before) == Some(VersionPhase::Active),
        format!("version {before} is active, and version {bad} is revoked"),
    );
    scene.must_be_refused(&unusable, &format!("version {bad}"))?;
    let seen = seen_elsewhere(scene, &active, bad)?;
    scene.promise(!seen, format!("no application but {} ever read version {bad}", canary.name));
    scene.protected.until_all_log_in()?;
    let gap = span(Duration::from_millis(scene.protected.was_away(canary.source())?));
    scene.terminal.say(Tone::Plain, format!("the price: {} alone was away, for {gap}", canary.name));
    change_credential(&scene.control, &scene.protected, Changes::default())?;
    scene.tell_logins()
}

/// What the canary's application read, showed, and could not parse: nobody else ever had it.
fn login_of(scene: &Scene, detail: &CredentialDetail, version: Version) -> anyhow::Result<Login> {
    let effect = effect_of(detail, version)?;
    let shown = scene.hosts[CAST[0].host].shown(&CAST[0])?;
    let login = shown.into_iter().find(|login| login.username().ends_with(&effect));
    login.with_context(|| format!("{} never read version {version}", CAST[0].name))
}

fn effect_of(detail: &CredentialDetail, version: Version) -> anyhow::Result<String> {
    let known = detail.versions.iter().find(|known| known.version == version);
    Ok(known.and_then(|known| known.effect).context("the version has no effect")?.to_string())
}

/// Whether an application beside the canary's ever showed a login of that version.
fn seen_elsewhere(scene: &Scene, detail: &CredentialDetail, version: Version) -> anyhow::Result<bool> {
    let effect = effect_of(detail, version)?;
    for cast in &CAST[1..] {
        let shown = scene.hosts[cast.host].shown(cast)?;
        if shown.iter().any(|login| login.username().ends_with(&effect)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn delivery(detail: &CredentialDetail, version: Version, host: &str) -> Option<DeliveryPhase> {
    let known = detail.versions.iter().find(|known| known.version == version)?;
    known.deliveries.iter().find(|delivery| delivery.name == host).map(|delivery| delivery.phase)
}
