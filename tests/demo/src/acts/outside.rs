//! Act 4: values that somebody else rotates, in a directory and in OpenBao: noticed, distributed, the old ones forgotten
//! everywhere.

use std::path::Path;

use anyhow::Context;
use lifecycle::Version;
use protocol::api::{DeliveryPhase, VersionPhase};
use tests_services::OpenBao;

use crate::host::{HOSTS, KEYS};
use crate::narrator::{Narrator, Subject};
use crate::protected::random;
use crate::scene::{STEP, Scene, phase, write_resource};
use crate::terminal::Tone;

/// The field that somebody else replaces.
const FIELD: &str = "key";

/// Changes the values outside and sees them arrive.
pub fn play(scene: &mut Scene) -> anyhow::Result<()> {
    scene.terminal.say(Tone::Heading, "act 4: a value changes outside");
    scene.terminal.say(
        Tone::Why,
        "Somebody else rotates a key, in a directory and in OpenBao. The change is noticed and distributed in the same \
         way; the old value cannot be revoked by us, so it is forgotten everywhere and named as safe to delete.",
    );
    scene.protected.start_act()?;
    let ended = scene.ended();
    let [in_directory, in_bao] = KEYS;
    let directory = scene.directory().join("kept-by-others");
    std::fs::create_dir_all(&directory)?;
    let spec = format!(
        "kind: Directory\nmetadata: {{ name: {in_directory} }}\nspec: {{ path: {} }}",
        directory.display()
    );
    changes(scene, in_directory, &spec, "replaces the file", &|_, value| replace(&directory, value))?;
    if start_bao(scene)? {
        let bao = scene.bao.as_ref().context("OpenBao is not there")?;
        let spec = format!(
            "kind: VaultKv\nmetadata: {{ name: {in_bao} }}\nspec:\n  server: {}\n  path: {in_bao}\n  pollSeconds: 1\n  auth: {{ tokenSecretRef: {{ file: {} }} }}\n  tls: {{ caFile: {} }}",
            bao.url(),
            bao.token_file().display(),
            bao.ca_file().display(),
        );
        changes(scene, in_bao, &spec, "runs `bao kv put`", &|scene, value| put(scene, in_bao, value))?;
    }
    scene.promise_ended(ended, 0);
    scene.tell_logins()
}

/// Whether OpenBao is there. Where everything has to be shown its absence is an error.
fn start_bao(scene: &mut Scene) -> anyhow::Result<bool> {
    match OpenBao::start() {
        Ok(bao) => {
            scene.terminal.say(Tone::Plain, format!("a private OpenBao on {}", bao.url()));
            scene.bao = Some(bao);
            Ok(true)
        }
        Err(error) if crate::programs::is_ci() => Err(error.context("CI=true requires OpenBao")),
        Err(error) => {
            scene.terminal.say(Tone::Plain, format!("left out: the same in OpenBao: {error:#}"));
            Ok(false)
        }
    }
}

/// Two values after each other, put there by `set`: both arrive, and the first one ends.
fn changes(
    scene: &mut Scene,
    name: &str,
    source: &str,
    how: &str,
    set: &dyn Fn(&Scene, &str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let values = [random()?, random()?];
    for (place, value) in values.iter().enumerate() {
        scene.planted.push((format!("value {} of {name}", place + 1), value.clone()));
    }
    set(scene, &values[0])?;
    write_resource(&scene.control, &format!("{name}.yaml"), &resource(name, source))?;
    let mut narrator = Narrator::new(scene.terminal.clone(), name, Subject::Key);
    let first = wait_for(scene, &mut narrator, None)?;
    set(scene, &values[1])?;
    scene.terminal.say(Tone::Sabotage, format!("somebody else {how}: {name} has another value"));
    let second = wait_for(scene, &mut narrator, Some(first))?;
    narrator.until(&scene.control, "the first value is forgotten", STEP, |detail| {
        phase(detail, first) == Some(VersionPhase::Erased)
    })?;
    let everywhere = scene
        .hosts
        .iter()
        .all(|host| std::fs::read_to_string(host.key(name)).is_ok_and(|content| content == values[1]));
    scene.promise(
        everywhere,
        format!("{name}: version {second} is on all hosts, version {first} is gone from all"),
    );
    Ok(())
}

/// The newest version, once all hosts adopted it.
fn wait_for(scene: &Scene, narrator: &mut Narrator, after: Option<Version>) -> anyhow::Result<Version> {
    let detail = narrator.until(&scene.control, "all hosts have the value", STEP, |detail| {
        detail.summary.current > after
            && detail.versions.iter().filter(|known| Some(known.version) == detail.summary.current).any(
                |known| {
                    known.deliveries.len() == HOSTS.len()
                        && known.deliveries.iter().all(|delivery| delivery.phase == DeliveryPhase::Adopted)
                },
            )
    })?;
    detail.summary.current.context("no version is active")
}

fn replace(source: &Path, content: &str) -> anyhow::Result<()> {
    let unfinished = source.join(".new");
    std::fs::write(&unfinished, content)?;
    Ok(std::fs::rename(unfinished, source.join(FIELD))?)
}

fn put(scene: &Scene, path: &str, content: &str) -> anyhow::Result<()> {
    let bao = scene.bao.as_ref().context("OpenBao is not there")?;
    bao.run(&["kv", "put", "-mount=secret", path, &format!("{FIELD}={content}")])?;
    Ok(())
}

fn resource(name: &str, source: &str) -> String {
    let kind = source.split_whitespace().nth(1).unwrap_or_default();
    format!(
        r"apiVersion: sources.external-secrets.io/v1alpha1
{source}
---
apiVersion: eso.external-secrets.io/v1alpha1
kind: Credential
metadata: {{ name: {name} }}
spec:
  source: {{ kind: {kind}, name: {name} }}
  targets: {{ hosts: {{ matchLabels: {{ app: orders }} }} }}
  policy: {{ barrier: 5s, startWait: 5s, flipIn: 1s, grace: 1s, sampleEvery: 1s }}
"
    )
}
