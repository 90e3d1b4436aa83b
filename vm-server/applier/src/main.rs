//! `eso-vm-applier`: the privileged half of a host.

mod boot_order;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use eso_vm_applier::enroll::{self, Word};
use eso_vm_applier::{Keeper, run};
use host_policy::HostPolicy;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Applies what the control plane orders, as far as this host's policy allows it.
#[derive(Parser)]
#[command(name = "eso-vm-applier", version)]
struct Arguments {
    /// The policy's directory: `config.toml` and `conf.d/*.toml`.
    #[arg(long, global = true, value_name = "DIR", default_value = "/etc/eso-vm-server")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run (the default).
    Run,
    /// Make this machine a host of an installation.
    Enroll {
        /// The file that `esoctl host enroll-token` wrote.
        #[arg(long, value_name = "FILE")]
        bundle: PathBuf,
    },
    /// Read the policy and say what is wrong with it.
    Check,
    /// Have systemd start consumers after us. Asked by systemd itself.
    #[command(hide = true)]
    BootOrder {
        /// Where systemd takes units from that were made for this boot.
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    // A unit that was started for a probe asks and ends; it needs nothing of what follows.
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some((_, words)) = words.split_first().filter(|(first, _)| *first == "probe") {
        return match units::probe::run_as_program(words) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("{why}");
                ExitCode::FAILURE
            }
        };
    }
    // The two processes of the exact mode do that and nothing else.
    let of_exact_mode = match words.as_slice() {
        [word] if word == eso_vm_applier::EXACT_RESPONDER => Some(opens::exact::respond_on_stdio()),
        [word] if word == eso_vm_applier::EXACT_WATCHER => Some(opens::exact::watch_on_stdio()),
        _ => None,
    };
    if let Some(ended) = of_exact_mode {
        return match ended {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let arguments = Arguments::parse();
    start_log();
    match carry_out(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("eso-vm-applier: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Neither a core file nor a debugger of the same user may show a value.
fn keep_memory_private() -> anyhow::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable))
        .context("failed to forbid core dumps")
}

/// To standard error, which a supervisor keeps. `ESO_LOG=debug` says more; `ESO_LOG=info,eso_vm_applier=debug` says it
/// of our own parts only.
fn start_log() {
    let said = std::env::var("ESO_LOG").ok().and_then(|said| said.parse().ok());
    let said = said.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines).with(said).init();
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn carry_out(arguments: Arguments) -> anyhow::Result<()> {
    keep_memory_private()?;
    match arguments.command {
        Some(Command::Enroll { bundle }) => {
            let policy = HostPolicy::load(&arguments.config)?;
            let enrolled = enroll::enroll(&policy.daemon, &bundle)?;
            let keys = if enrolled.again { "keeps its keys" } else { "has keys" };
            println!("host {} {keys}", enrolled.host);
            if enrolled.keeper == Keeper::KeyFile {
                println!("its keys lie in a file of mode 0600, since systemd-creds does not work here");
            }
            tell(&enroll::ask_control_plane(&policy.daemon))
        }
        Some(Command::Check) => {
            let policy = HostPolicy::load(&arguments.config)?;
            println!("{} in {}", counted(policy.sets.len(), "set"), counted(policy.files.len(), "file"));
            Ok(())
        }
        Some(Command::BootOrder { directory }) => {
            boot_order::write(&HostPolicy::load(&arguments.config)?, &directory)
                .with_context(|| format!("failed to write into {}", directory.display()))
        }
        Some(Command::Run) | None => start(&arguments.config),
    }
}

fn tell(word: &Word) -> anyhow::Result<()> {
    match word {
        Word::Taken => println!("eso-vm-server says that the control plane took it: see `esoctl host list`"),
        Word::NobodyAsked => println!(
            "start eso-vm-applier, which has keys now, and start or restart eso-vm-server, which tells the control plane"
        ),
        Word::Refused(why) => {
            anyhow::bail!("eso-vm-server says: {why}; it tries on")
        }
        Word::None => anyhow::bail!(
            "the control plane has not answered yet; eso-vm-server tries on, see `journalctl -u eso-vm-server`"
        ),
    }
    Ok(())
}

fn start(config: &std::path::Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(async {
        let mut term = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
        let mut int = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
        let stop = async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        };
        let ready = || {
            // Nobody may be listening, as in a container.
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
            tracing::info!("ready");
        };
        run(config, ready, stop).await?;
        Ok(())
    })
}
