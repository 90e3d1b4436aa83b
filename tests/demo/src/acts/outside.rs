//! Act 4: a value that somebody else rotates, in a directory: noticed, distributed, the old one forgotten everywhere.

use std::path::Path;

use lifecycle::Version;
use protocol::api::DeliveryPhase;

use crate::host::{HOSTS, KEYS};
use crate::narrator::Narrator;
use crate::scene::{STEP, Scene, phase};
use crate::terminal::Tone;

/// The file that somebody else replaces.
const FIELD: &str = "key";

/// Changes the value outside and sees it arrive.
pub fn play(scene: &mut Scene) -> anyhow::Result<()> {
    scene
        .terminal
        .say(Tone::Heading, "act 4: a value changes outside, in a directory that somebody else keeps");
    let source = scene.directory().join("kept-by-others");
    std::fs::create_dir_all(&source)?;
    replace(&source, "the first key of somebody else")?;
    write_resources(scene, &source)?;
    let mut narrator = Narrator::new(scene.terminal.clone(), KEYS);
    let first = wait_for(scene, &mut narrator, None)?;
    replace(&source, "the second key of somebody else")?;
    scene.terminal.say(Tone::Sabotage, "somebody replaces the file in the source");
    let second = wait_for(scene, &mut narrator, Some(first))?;
    narrator.until(&scene.control, "the first value is forgotten", STEP, |detail| {
        phase(detail, first).is_some_and(|phase| phase == protocol::api::VersionPhase::Erased)
    })?;
    let everywhere = scene.hosts.iter().all(|host| {
        std::fs::read_to_string(host.keys()).is_ok_and(|content| content == "the second key of somebody else")
    });
    scene.promise(everywhere, format!("version {second} is on all hosts, version {first} is gone from all"));
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
    detail.summary.current.ok_or_else(|| anyhow::anyhow!("no version is active"))
}

fn replace(source: &Path, content: &str) -> anyhow::Result<()> {
    let unfinished = source.join(".new");
    std::fs::write(&unfinished, content)?;
    std::fs::rename(unfinished, source.join(FIELD))?;
    Ok(())
}

fn write_resources(scene: &Scene, source: &Path) -> anyhow::Result<()> {
    let text = format!(
        r"apiVersion: sources.external-secrets.io/v1alpha1
kind: Directory
metadata: {{ name: {KEYS} }}
spec: {{ path: {} }}
---
apiVersion: eso.external-secrets.io/v1alpha1
kind: Credential
metadata: {{ name: {KEYS} }}
spec:
  source: {{ kind: Directory, name: {KEYS} }}
  targets: {{ hosts: {{ matchLabels: {{ app: orders }} }} }}
  policy: {{ barrier: 10s, flipIn: 1s, grace: 1s, sampleEvery: 1s }}
",
        source.display()
    );
    let unfinished = scene.control.resources().join(".keys.yaml.new");
    std::fs::write(&unfinished, text)?;
    std::fs::rename(unfinished, scene.control.resources().join("keys.yaml"))?;
    Ok(())
}
