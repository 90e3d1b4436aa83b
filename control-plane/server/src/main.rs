//! `eso-control-plane`: see the library.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use clap::Parser as _;
use eso_control_plane::settings::{Cli, Command, LogFormat};
use eso_control_plane::{Ready, backup, init, restore, serve};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    log_to_stderr(&cli)?;
    keep_memory_private()?;
    transport::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(run(cli.command))
}

/// Neither a core file nor a debugger of the same user may show a value.
fn keep_memory_private() -> anyhow::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable))
        .context("failed to forbid core dumps")
}

fn log_to_stderr(cli: &Cli) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&cli.log)
        .with_context(|| format!("failed to read the log filter {:?}", cli.log))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match cli.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init(settings) => {
            println!("{}", init(&settings).await?);
            Ok(())
        }
        Command::Serve(settings) => {
            let mut terminate = signal(SignalKind::terminate()).context("failed to watch for SIGTERM")?;
            let mut interrupt = signal(SignalKind::interrupt()).context("failed to watch for SIGINT")?;
            let stop = async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                // systemd need not listen; a missing socket is no error.
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
            };
            serve(&settings, announce, stop).await?;
            Ok(())
        }
        Command::Backup(settings) => {
            backup(&settings).await?;
            println!("{}", settings.to.display());
            Ok(())
        }
        Command::Restore(settings) => {
            let epoch = restore(&settings).await?;
            println!("restored; epoch {} begins: every older version starts held", epoch.counter);
            println!(
                "Next: start the control plane, look at `esoctl pending`, then `esoctl credential unhold`."
            );
            Ok(())
        }
    }
}

/// One line on stdout, for people and for whoever started us; and systemd.
fn announce(ready: &Ready) {
    println!("ready listen={} url={} installation={}", ready.listen, ready.url, ready.installation);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}
