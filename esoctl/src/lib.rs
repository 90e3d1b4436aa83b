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

use clap::Parser as _;

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

/// Runs one command line, the program's name first. Never ends the process.
pub async fn run(arguments: impl IntoIterator<Item = OsString>, streams: &mut Streams<'_>) -> Exit {
    let cli = match cli::Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
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
