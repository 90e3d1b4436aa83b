//! Looks for every value that was used in everything that was written meanwhile. A value may lie where it belongs, and
//! these places are named; anywhere else it is a broken promise.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tests_canary::{Canaries, Leak};

use crate::host::CAST;
use crate::scene::Scene;
use crate::terminal::Tone;

/// Searches logs, states, databases, audit, metrics and what `esoctl` and the demo itself said.
pub fn everywhere(scene: &mut Scene) -> anyhow::Result<()> {
    let values = values(scene)?;
    let count = values.len();
    let canaries = Canaries::new(values).map_err(|error| anyhow::anyhow!("{error}"))?;
    let audit = scene.control.esoctl(&["audit", "-o", "json"])?;
    let metrics = scene.control.metrics()?;
    let mut leaks = canaries.in_bytes("the audit log", audit);
    leaks.extend(canaries.in_bytes("the metrics", metrics));
    leaks.extend(canaries.in_bytes("the output of esoctl", scene.control.printed()));
    leaks.extend(canaries.in_bytes("the output of the demo", scene.terminal.said()));
    leaks.extend(in_tree(&canaries, scene.directory(), &legitimate(scene))?);
    leaks.extend(in_tree(&canaries, scene.protected.directory(), &[])?);
    if let Some(bao) = &scene.bao {
        leaks.extend(in_tree(&canaries, &bao.log(), &[])?);
    }
    for host in &mut scene.hosts {
        for (program, process) in host.processes()? {
            for what in ["cmdline", "environ"] {
                let place = format!("{what} of {program} on {}", host.name);
                // A process that ended meanwhile shows nothing any more, nor does one that hides it from us.
                let Ok(bytes) = std::fs::read(format!("/proc/{process}/{what}")) else { continue };
                leaks.extend(canaries.in_bytes(place, bytes));
            }
        }
    }
    for leak in &leaks {
        scene.promise(false, leak.to_string());
    }
    let what = format!(
        "{count} values were looked for in every log, state, database, environment, audit row, metric and output: raw, base64, hex, URL-escaped, UTF-16: {}",
        if leaks.is_empty() { "none is there" } else { "found" }
    );
    scene.promise(leaks.is_empty(), what);
    scene.terminal.say(
        Tone::Why,
        "left out, since values belong there: the sets and copies on the hosts, what applications show the demo, the \
         directory that is a source, and the secrets of the control plane's own logins",
    );
    Ok(())
}

/// Everything that applications logged in with, and what was planted.
fn values(scene: &Scene) -> anyhow::Result<Vec<(String, String)>> {
    let mut values = scene.planted.clone();
    for cast in &CAST {
        for login in scene.hosts[cast.host].shown(cast)? {
            values.push((format!("the password of {}", login.username()), login.password().to_owned()));
        }
    }
    values.sort();
    values.dedup();
    Ok(values)
}

/// Where values lie because they belong there.
fn legitimate(scene: &Scene) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = scene.hosts.iter().flat_map(crate::host::Host::places_of_values).collect();
    places.push(scene.control.secrets());
    places.extend(scene.kept_by_others().filter(|path| path.exists()));
    places
}

fn in_tree(canaries: &Canaries, root: &Path, except: &[PathBuf]) -> anyhow::Result<Vec<Leak>> {
    let except: Vec<&Path> = except.iter().map(PathBuf::as_path).collect();
    canaries.in_tree(root, &except).with_context(|| format!("failed to search {}", root.display()))
}
