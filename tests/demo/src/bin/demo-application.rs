//! An application of the demo. Started by the demo's launcher, not by hand.

use clap::Parser;
use tests_demo::application::{Settings, run};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    settings: Settings,
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(Arguments::parse().settings))
}
