//! `esoctl`: see the library.

use std::io::IsTerminal as _;
use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    transport::install_provider();
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let terminal = err.is_terminal();
    let mut streams = esoctl::Streams { out: &mut out, err: &mut err, terminal };
    esoctl::run(std::env::args_os(), &mut streams).await.into()
}
