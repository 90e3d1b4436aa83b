//! The demo's own server to log in to. Started by the demo, not by hand.

use std::path::PathBuf;

use clap::Parser;

#[derive(Parser)]
struct Arguments {
    /// Where the bearer token stands, and where it writes address, authority and log.
    directory: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tests_demo::login_server::run(Arguments::parse().directory))
}
