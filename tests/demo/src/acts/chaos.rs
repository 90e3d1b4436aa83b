//! Act 2: a rotation while things die: the control plane, a frozen host (while staging, and while armed), a daemon.

use lifecycle::Version;
use nix::sys::signal::Signal;
use protocol::api::{CredentialDetail, DeliveryPhase, RolloutPhase};

use super::rotation::{begin, by_hand};
use crate::examples::Changes;
use crate::host::{CAST, HOSTS};
use crate::scene::{STEP, Scene, change_credential};
use crate::terminal::Tone;

/// The host that is frozen.
const FROZEN: usize = 1;
/// Long enough that everybody sees hosts which are armed and have not flipped yet, also on a busy machine.
const ARMED_FOR: &str = "10s";

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
    let ended = scene.ended();
    frozen_while_staging(scene)?;
    let armed_longer = Changes { flip_in: ARMED_FOR, ..Changes::default() };
    change_credential(&scene.control, &scene.protected, armed_longer)?;
    frozen_while_armed(scene)?;
    change_credential(&scene.control, &scene.protected, Changes::default())?;
    scene.promise_ended(ended, 2);
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
    let (before, after) = begin(scene)?;
    let armed = |detail: &CredentialDetail| phase_on(detail, after, name) == Some(DeliveryPhase::Armed);
    scene.narrator.until(&scene.control, "the hosts are armed", STEP, armed)?;
    scene.hosts[FROZEN].freeze()?;
    scene.terminal.say(Tone::Sabotage, format!("{name} is frozen while it is armed"));
    let other = HOSTS[2];
    scene.hosts[2].signal("eso-vm-applier", Signal::SIGKILL)?;
    scene.terminal.say(Tone::Sabotage, format!("the applier of {other} is killed"));
    let detail = scene.narrator.until(&scene.control, "the instant has passed", STEP, |detail| {
        matches!(phase_on(detail, after, other), Some(DeliveryPhase::Activated | DeliveryPhase::Adopted))
    })?;
    scene.protected.until_all_log_in()?;
    // The application that follows the set by itself would log in with the new version if its host had flipped.
    let follows = CAST[2];
    let newest = scene.protected.users(follows.source())?.pop();
    let missed = armed(&detail) && newest.is_some_and(|(user, _)| user == old.username());
    scene.promise(
        missed,
        format!(
            "the agreed instant passed: {other} flipped to version {after}, {name} is armed and did not; {} is on version {before}",
            follows.name
        ),
    );
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

/// How far a version is on a host.
fn phase_on(detail: &CredentialDetail, version: Version, host: &str) -> Option<DeliveryPhase> {
    let known = detail.versions.iter().find(|known| known.version == version)?;
    known.deliveries.iter().find(|delivery| delivery.name == host).map(|delivery| delivery.phase)
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
