//! `eso-vm-server`: reads its configuration, gives up what it does not need, and runs.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use eso_vm_server::arguments::{self, Arguments, ArgumentsError};
use eso_vm_server::run::{Progress, run, writable};
use eso_vm_server::{confine, identity};
use host_policy::{Daemon, HostPolicy};
use protocol::report::Means;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

fn main() -> ExitCode {
    let arguments = match arguments::parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(ArgumentsError::Clap(error)) => error.exit(),
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> anyhow::Result<()> {
    let mut daemon = HostPolicy::load(&arguments.config)?.daemon;
    if let Some(port) = arguments.port {
        daemon.listen.set_port(port);
    }
    if arguments.check {
        return Ok(());
    }
    start_log();
    keep_memory_private()?;
    transport::install_provider();
    let means = give_up(arguments, &daemon)?;
    // One thread: there is little to do, and each thread costs memory.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(serve(&daemon, means))
}

/// Neither a core file nor a debugger of the same user may show a key.
fn keep_memory_private() -> anyhow::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable))
        .context("failed to forbid core dumps")
}

/// To standard error, which a supervisor keeps. `ESO_LOG=debug` says more, of our own parts only.
fn start_log() {
    let level = std::env::var("ESO_LOG").ok().and_then(|level| level.parse().ok());
    let level = level.unwrap_or(LevelFilter::INFO);
    let ours = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_targets([("eso_vm_server", level), ("transport", level)]);
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false);
    tracing_subscriber::registry().with(lines).with(ours).init();
}

/// Landlock permits what exists, so the directories are made first. Threads inherit what this one gave up.
fn give_up(arguments: &Arguments, daemon: &Daemon) -> anyhow::Result<Vec<Means>> {
    let writable = writable(daemon);
    for directory in &writable {
        identity::StateDir::open(directory.clone())?;
    }
    let means = confine::confine(std::slice::from_ref(&arguments.config), &writable);
    for one in &means {
        tracing::info!(means = one.name, in_use = one.in_use, "{}", one.detail);
    }
    Ok(means)
}

async fn serve(daemon: &Daemon, means: Vec<Means>) -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
    let stop = async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
        tracing::info!("stopping");
        tell(&[NotifyState::Stopping]);
    };
    let watchdog = tokio::spawn(watchdog());
    let progress = |progress| match progress {
        Progress::WaitingForEnrolment => {
            tell(&[NotifyState::Ready, NotifyState::Status("waiting for enrolment")]);
        }
        Progress::Serving(address) => {
            tracing::info!(%address, "taking orders");
            tell(&[NotifyState::Ready, NotifyState::Status(&format!("taking orders on {address}"))]);
        }
    };
    let result = run(daemon, means, progress, stop).await;
    watchdog.abort();
    Ok(result?)
}

/// Shows that the one thread still turns.
async fn watchdog() {
    let Some(every) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval((every / 2).max(Duration::from_millis(100)));
    loop {
        ticks.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

/// Without a supervisor there is nobody to tell.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "failed to tell the supervisor");
    }
}
