//! `--keep`: everything stays, a person plays, the narrator goes on.

use std::time::Duration;

use crate::control::CREDENTIAL;
use crate::examples;
use crate::scene::Scene;
use crate::terminal::Tone;

/// How often the control plane is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Says what can be done, then tells what happens until Ctrl-C.
pub fn running(scene: &mut Scene) -> anyhow::Result<()> {
    scene.terminal.say(Tone::Heading, "it is yours now; Ctrl-C ends it and leaves nothing");
    let commands = commands(scene)?;
    scene.terminal.say(Tone::Plain, commands);
    scene.terminal.say(Tone::Heading, "what happens");
    while !crate::interrupt::asked() {
        scene.narrator.follow(&scene.control);
        std::thread::sleep(LOOK);
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
    lines.push("sabotage, and look what becomes of it:".to_owned());
    for host in &mut scene.hosts {
        let processes = host.processes()?;
        let name = host.name;
        let daemons: Vec<String> = processes
            .iter()
            .filter(|(name, _)| name.starts_with("eso-"))
            .map(|(_, id)| id.to_string())
            .collect();
        let daemons = daemons.join(" ");
        lines.push(format!("  kill -STOP {daemons}    # freeze {name}; kill -CONT {daemons} thaws it"));
        for (program, process) in processes {
            let what = match program.as_str() {
                "eso-vm-server" | "eso-vm-applier" => {
                    format!("{program} of {name} dies, and is started again")
                }
                "ledger" => "a person restarts ledger, which lets go of the old version".to_owned(),
                _ => format!("{program} on {name} is restarted"),
            };
            let signal = if program.starts_with("eso-") { "-KILL" } else { "-TERM" };
            lines.push(format!("  kill {signal} {process}    # {what}"));
        }
    }
    if let Some(process) = scene.control.process()? {
        lines.push(format!(
            "  kill -STOP {process}    # the control plane freezes; kill -CONT {process} thaws it"
        ));
    }
    lines.push("the documented examples, and what differs here:".to_owned());
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let resources = scene.control.resources();
    lines.push(format!(
        "  diff {root}/{} {}",
        examples::CREDENTIAL,
        resources.join("orders-db.yaml").display()
    ));
    for host in &scene.hosts {
        let policy = host.directory().join("etc/conf.d/orders-db.toml");
        lines.push(format!("  diff {root}/{} {}", examples::POLICY, policy.display()));
    }
    Ok(lines.join("\n"))
}
