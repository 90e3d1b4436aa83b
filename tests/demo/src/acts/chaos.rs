//! Act 2: a rotation while things die: the control plane, a frozen host (while staging, and while armed), a daemon.

use std::time::Duration;

use nix::sys::signal::Signal;
use protocol::api::{DeliveryPhase, RolloutPhase};

use super::rotation::{begin, by_hand};
use crate::host::HOSTS;
use crate::scene::{STEP, Scene};
use crate::terminal::Tone;

/// The host that is frozen.
const FROZEN: usize = 1;

/// Rotates while things die.
pub fn play(scene: &mut Scene) -> anyhow::Result<()> {
    scene.terminal.say(Tone::Heading, "act 2: the same, while things die");
    scene.terminal.say(
        Tone::Why,
        "A host is frozen, once while it is given the new version and once when it has agreed on the instant; the \
         control plane is killed, and a daemon. No application may notice. What is not known counts as in use: the \
         frozen host keeps the old version alive, by name, and all of it ends by itself once the host is back.",
    );
    scene.protected.start_act()?;
    frozen_while_staging(scene)?;
    frozen_while_armed(scene)?;
    scene.tell_logins()
}

fn frozen_while_staging(scene: &mut Scene) -> anyhow::Result<()> {
    let name = HOSTS[FROZEN];
    let old = scene.login_on(0)?;
    scene.hosts[FROZEN].freeze()?;
    scene.terminal.say(Tone::Sabotage, format!("both daemons of {name} are frozen; its applications go on"));
    let (before, after) = begin(scene)?;
    scene.narrator.until(&scene.control, "the rollout goes on without the frozen host", STEP, |detail| {
        detail.rollout.as_ref().is_none_or(|rollout| {
            matches!(rollout.phase, RolloutPhase::Canaries | RolloutPhase::Arming | RolloutPhase::Adopting)
        })
    })?;
    scene.control.kill()?;
    scene.terminal.say(Tone::Sabotage, "the control plane is killed");
    scene.control.start_again()?;
    scene.terminal.say(Tone::Plain, "the control plane is back");
    scene.narrator.until(&scene.control, "the others have the new version", STEP, |detail| {
        let version = detail.versions.iter().find(|known| known.version == after);
        version.is_some_and(|version| {
            version
                .deliveries
                .iter()
                .filter(|delivery| delivery.name != name)
                .all(|delivery| matches!(delivery.phase, DeliveryPhase::Activated | DeliveryPhase::Adopted))
        })
    })?;
    scene.restart_by_hand(&by_hand())?;
    let blamed = wait_until_blamed(scene, name)?;
    scene.promise(blamed, format!("{name} is named as the reason that version {before} lives"));
    scene.must_be_accepted(&old, &format!("version {before} still works for the frozen host"))?;
    scene.hosts[FROZEN].thaw()?;
    scene.terminal.say(Tone::Person, format!("{name} is thawed"));
    scene.until_retired(before)?;
    scene.must_be_refused(&old, &format!("version {before}"))
}

fn frozen_while_armed(scene: &mut Scene) -> anyhow::Result<()> {
    let name = HOSTS[FROZEN];
    let old = scene.login_on(0)?;
    let (before, _) = begin(scene)?;
    scene.narrator.until(&scene.control, "the hosts are armed", STEP, |detail| {
        detail
            .versions
            .iter()
            .flat_map(|version| &version.deliveries)
            .any(|delivery| delivery.name == name && delivery.phase == DeliveryPhase::Armed)
    })?;
    scene.hosts[FROZEN].freeze()?;
    scene.terminal.say(Tone::Sabotage, format!("{name} is frozen while it is armed"));
    scene.hosts[2].signal("eso-vm-applier", Signal::SIGKILL)?;
    scene.terminal.say(Tone::Sabotage, format!("the applier of {} is killed", HOSTS[2]));
    scene.terminal.say(Tone::Plain, "the agreed instant passes without it");
    // Longer than the agreed instant is away: the frozen host misses it.
    let missed = std::time::Instant::now() + Duration::from_secs(4);
    scene
        .narrator
        .until(&scene.control, "the instant has passed", STEP, |_| std::time::Instant::now() > missed)?;
    scene.hosts[FROZEN].thaw()?;
    scene.terminal.say(Tone::Person, format!("{name} is thawed"));
    scene.narrator.until(
        &scene.control,
        "the manual application is all that is waited for",
        STEP,
        |detail| {
            detail.versions.iter().max_by_key(|known| known.version).is_some_and(|newest| {
                newest
                    .deliveries
                    .iter()
                    .filter(|delivery| delivery.name != HOSTS[2])
                    .all(|delivery| delivery.phase == DeliveryPhase::Adopted)
                    && newest.deliveries.iter().any(|delivery| {
                        delivery.name == HOSTS[2]
                            && matches!(delivery.phase, DeliveryPhase::Activated | DeliveryPhase::Adopted)
                    })
            })
        },
    )?;
    scene.restart_by_hand(&by_hand())?;
    scene.until_retired(before)?;
    scene.must_be_refused(&old, &format!("version {before}"))
}

fn wait_until_blamed(scene: &mut Scene, host: &str) -> anyhow::Result<bool> {
    let mut blamed = false;
    let control = &scene.control;
    scene.narrator.follow(control);
    scene.narrator.until(control, &format!("{host} is named as the reason"), STEP, |_| {
        let pending = control.pending().unwrap_or_default();
        blamed = pending
            .iter()
            .flat_map(|pending| &pending.why.blockers)
            .any(|blocker| blocker.name.as_deref() == Some(host) || blocker.who.contains(host));
        blamed
    })?;
    Ok(blamed)
}
