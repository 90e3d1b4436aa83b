//! The operator's command line.
//!
//! It asks the control plane's API and prints what it is told: tables for people, JSON or YAML for programs. It
//! decides nothing, keeps nothing, and never sees a credential's value but the one that `credential import` sends.
//! What a host wrote is printed without control characters, since hosts are not trusted with a terminal.

mod act;
pub mod cli;
mod client;
mod exit;
mod follow;
mod print;
pub mod progress;
mod settings;
pub mod table;

use std::ffi::OsString;
use std::io::Write;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory as _, Parser as _};

pub use client::ClientError;
pub use exit::Exit;
pub use settings::SettingsError;

/// Where a run writes to.
pub struct Streams<'a> {
    /// What was asked for.
    pub out: &'a mut (dyn Write + Send),
    /// Everything else.
    pub err: &'a mut (dyn Write + Send),
    /// Whether a person watches: progress is drawn, not written line by line.
    pub terminal: bool,
}

/// What is set by the environment counts as given, and would stand in the usage as if it were needed.
fn leave_out_globals(error: &mut clap::Error) {
    let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) else { return };
    let mut usage = usage.to_string();
    let mut command = cli::Cli::command();
    command.build();
    for argument in command.get_arguments().filter(|argument| argument.is_global_set()) {
        usage = usage.replace(&format!(" {argument}"), "");
    }
    error.insert(ContextKind::Usage, ContextValue::StyledStr(usage.into()));
}

/// Runs one command line, the program's name first. Never ends the process.
pub async fn run(arguments: impl IntoIterator<Item = OsString>, streams: &mut Streams<'_>) -> Exit {
    let cli = match cli::Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(mut error) => {
            leave_out_globals(&mut error);
            let (stream, exit): (&mut (dyn Write + Send), _) =
                if error.use_stderr() { (streams.err, Exit::Usage) } else { (streams.out, Exit::Done) };
            // Nowhere left to tell it if this fails.
            let _ = write!(stream, "{error}");
            return exit;
        }
    };
    match act::act(cli, streams).await {
        Ok(exit) => exit,
        Err(failure) => {
            let _ = writeln!(streams.err, "esoctl: {failure}");
            failure.exit()
        }
    }
}
