//! `--keep`: everything stays, a person plays, the narrator goes on.

use std::path::Path;
use std::time::Duration;

use crate::control::CREDENTIAL;
use crate::examples;
use crate::host::{CAST, HOSTS};
use crate::scene::Scene;
use crate::terminal::Tone;

/// How often the control plane is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Our own programs on a host.
const OURS: [&str; 2] = ["eso-vm-server", "eso-vm-applier"];
/// The application that waits for a person.
const SLOW: &str = CAST[3].name;

/// Says what can be done, then tells what happens until Ctrl-C.
pub fn running(scene: &mut Scene) -> anyhow::Result<()> {
    scene.terminal.say(Tone::Heading, "it is yours now; Ctrl-C ends it and leaves nothing");
    let commands = commands(scene)?;
    scene.terminal.say(Tone::Plain, commands);
    scene.terminal.say(Tone::Heading, "what happens");
    scene.protected.start_act()?;
    let mut failed = CAST.map(|_| 0);
    while !crate::interrupt::asked() {
        scene.narrator.follow(&scene.control);
        for (cast, known) in CAST.iter().zip(&mut failed) {
            let tally = scene.protected.tally(cast.source())?;
            if tally.failed > *known {
                let line = format!("{} on {}: {}", cast.name, HOSTS[cast.host], tally.in_words());
                scene.terminal.say(Tone::Bad, line);
                // Each time ten times as many.
                *known = tally.failed.saturating_mul(10);
            }
        }
        std::thread::sleep(LOOK);
    }
    scene.terminal.say(Tone::Heading, "while it was yours, by the protected server's own log");
    for cast in CAST {
        let tally = scene.protected.tally(cast.source())?;
        let tone = if tally.failed == 0 { Tone::Plain } else { Tone::Bad };
        scene.terminal.say(tone, format!("{} on {}: {}", cast.name, HOSTS[cast.host], tally.in_words()));
    }
    scene.terminal.say(Tone::Plain, "everything is being ended");
    Ok(())
}

fn commands(scene: &mut Scene) -> anyhow::Result<String> {
    let mut lines = vec!["in another terminal:".to_owned()];
    let esoctl = scene.control.esoctl_program().to_owned();
    let folder = esoctl.parent().unwrap_or(&esoctl).display().to_string();
    lines.push(format!("  export ESOCTL_CONFIG={}", scene.control.esoctl_config().display()));
    lines.push(format!("  export PATH={folder}:$PATH"));
    for command in [
        "esoctl status".to_owned(),
        format!("esoctl credential rotate {CREDENTIAL} --watch --until retired"),
        "esoctl pending --watch".to_owned(),
        "esoctl holders list".to_owned(),
        format!("esoctl credential show {CREDENTIAL}"),
        "esoctl host show vm-b".to_owned(),
        "esoctl audit".to_owned(),
    ] {
        lines.push(format!("  {command}"));
    }
    lines.push(
        "sabotage it, and look what becomes of it (a process that is started again has another id):"
            .to_owned(),
    );
    for host in &mut scene.hosts {
        let (name, processes) = (host.name, host.processes()?);
        let ours: Vec<&u32> = OURS.iter().filter_map(|program| processes.get(*program)).collect();
        let ours = ours.into_iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        lines.push(format!("  kill -STOP {ours}    # {name} is silent; kill -CONT {ours} ends that"));
        lines.push(format!("  kill -KILL {ours}    # our daemons on {name} die, and are started again"));
        if let Some(process) = processes.get(SLOW) {
            lines.push(format!(
                "  kill -TERM {process}    # a person restarts {SLOW}: it lets go of the old version"
            ));
        }
    }
    if let Some(process) = scene.control.process()? {
        lines.push(format!(
            "  kill -STOP {process}    # so is the control plane; kill -CONT {process} ends that"
        ));
    }
    lines.push("what differs from the documented examples:".to_owned());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("/")).display();
    let credential = scene.control.resources().join("orders-db.yaml");
    lines.push(format!("  diff {root}/{} {}", examples::CREDENTIAL, credential.display()));
    for host in &scene.hosts {
        let policy = host.directory().join("etc/conf.d/orders-db.toml");
        lines.push(format!("  diff {root}/{} {}", examples::POLICY, policy.display()));
    }
    Ok(lines.join("\n"))
}
