//! Act 1: a rotation, and the slow holder that keeps the old version alive until a person restarts it.

use std::time::Duration;

use lifecycle::Version;
use protocol::api::{CredentialDetail, VersionPhase};

use crate::control::CREDENTIAL;
use crate::host::{CAST, Cast};
use crate::login::Login;
use crate::protected::Protected;
use crate::scene::{STEP, Scene, phase};
use crate::terminal::{Tone, span};

/// How long an application must be healthy on a new version: the `settle_ms` of the demo's policies.
const SETTLE: Duration = Duration::from_secs(1);

/// The application that keeps its value until a person restarts it.
pub fn by_hand() -> Cast {
    CAST[3]
}

/// Rotates once and sees the old version die.
pub fn play(scene: &mut Scene) -> anyhow::Result<()> {
    scene.terminal.say(Tone::Heading, "act 1: a rotation");
    scene.terminal.say(
        Tone::Why,
        "A new password for everybody, while everybody works. It is minted, put on all hosts unseen, tried on the \
         canary, and made current on the others at one instant. The old one dies when nobody has it any more: \
         ledger keeps it in memory until a person restarts it.",
    );
    scene.protected.start_act()?;
    let (old, ended) = (scene.login_on(0)?, scene.ended());
    let (before, after) = begin(scene)?;
    let holder = by_hand();
    let slow = holder.name;
    scene.narrator.until(
        &scene.control,
        &format!("only {slow} keeps version {before} alive"),
        STEP,
        |detail| {
            phase(detail, before) == Some(VersionPhase::Superseded) || adopted_but(detail, after, holder.host)
        },
    )?;
    let named = wait_until_named(scene, slow)?;
    scene.promise(named, format!("{slow} is named as the one that keeps version {before} alive"));
    scene.must_be_accepted(&old, &format!("version {before} still works while {slow} has it"))?;
    scene.restart_by_hand(&holder)?;
    scene.until_retired(before)?;
    scene.must_be_refused(&old, &format!("version {before}"))?;
    let (held, what) = canary_first(&mut scene.protected, &old)?;
    scene.promise(held, what);
    tell_table(scene)?;
    scene.promise_ended(ended, 1);
    scene.tell_logins()
}

/// By the server's own log the canary's application logged in with the new version before any other, and was healthy on it
/// for its settle time first.
pub fn canary_first(protected: &mut Protected, old: &Login) -> anyhow::Result<(bool, String)> {
    let mut first = Vec::new();
    for cast in &CAST {
        let users = protected.users(cast.source())?;
        let newer = users.into_iter().find(|(user, _)| user != old.username());
        first.push(newer.map(|(_, at_ms)| at_ms));
    }
    let canary = first[0];
    let others = first[1..].iter().copied().collect::<Option<Vec<u64>>>();
    let ahead = canary.zip(others.and_then(|others| others.into_iter().min()));
    let ahead = ahead.and_then(|(canary, next)| next.checked_sub(canary)).map(Duration::from_millis);
    let held = ahead.is_some_and(|ahead| ahead >= SETTLE);
    let ahead = ahead.map_or_else(|| "not".to_owned(), span);
    Ok((
        held,
        format!(
            "the canary was first: {} logged in with the new version {ahead} before any other",
            CAST[0].name
        ),
    ))
}

/// What one version made, the next can alter: all versions act as one owner.
fn tell_table(scene: &mut Scene) -> anyhow::Result<()> {
    let cast = CAST[0];
    let Some(table) = cast.table else { return Ok(()) };
    match scene.protected.table(table)? {
        Some((owner, columns)) => scene.promise(
            owner == "orders_owner" && columns >= 2,
            format!(
                "{} made a table with the old version and altered it with the new one; {owner} owns it",
                cast.name
            ),
        ),
        None => {
            scene.terminal.say(Tone::Plain, "left out: a login server has no tables to make and to alter");
        }
    }
    Ok(())
}

/// Asks for a rotation; the versions before and after.
pub fn begin(scene: &mut Scene) -> anyhow::Result<(Version, Version)> {
    let detail = scene.control.credential(CREDENTIAL)?;
    let before = detail.summary.current.ok_or_else(|| anyhow::anyhow!("no version is active"))?;
    scene.control.esoctl(&["credential", "rotate", CREDENTIAL])?;
    scene.terminal.say(Tone::Person, format!("esoctl credential rotate {CREDENTIAL}"));
    let detail = scene.narrator.until(&scene.control, "a new version is minted", STEP, |detail| {
        detail.versions.iter().any(|known| known.version > before)
    })?;
    let after = detail.versions.iter().map(|known| known.version).max().unwrap_or(before);
    Ok((before, after))
}

/// Whether every target but one adopted the version.
fn adopted_but(detail: &CredentialDetail, version: Version, host: usize) -> bool {
    let Some(known) = detail.versions.iter().find(|known| known.version == version) else { return false };
    let adopted = |name: &str| {
        known
            .deliveries
            .iter()
            .any(|delivery| delivery.name == name && delivery.phase == protocol::api::DeliveryPhase::Adopted)
    };
    crate::host::HOSTS.iter().enumerate().filter(|(place, _)| *place != host).all(|(_, name)| adopted(name))
}

fn wait_until_named(scene: &mut Scene, consumer: &str) -> anyhow::Result<bool> {
    let mut named = false;
    let control = &scene.control;
    scene.narrator.follow(control);
    scene.narrator.until(control, &format!("{consumer} is named as a holder"), STEP, |_| {
        let pending = control.pending().unwrap_or_default();
        named = pending.iter().any(|pending| {
            pending.holders.iter().any(|holder| {
                holder.consumer.as_ref().is_some_and(|name| name.as_str() == consumer)
                    || holder.description.contains(consumer)
            }) || pending.why.blockers.iter().any(|blocker| {
                blocker.who.contains(consumer)
                    || blocker.detail.as_ref().is_some_and(|detail| detail.contains(consumer))
            })
        });
        named
    })?;
    Ok(named)
}
