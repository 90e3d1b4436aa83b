//! One half of a host in a process of its own: `fleet-host network|applier DIR`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use eso_vm_applier::Noticing;
use host_policy::HostPolicy;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let mut words = std::env::args().skip(1);
    let half = words.next().context("which half?")?;
    let config = PathBuf::from(words.next().context("which directory?")?);
    let never = std::future::pending();
    match half.as_str() {
        "network" => {
            transport::install_provider();
            let daemon = HostPolicy::load(&config)?.daemon;
            eso_vm_server::run::run(&daemon, Vec::new(), |_| {}, never).await?;
        }
        "applier" => eso_vm_applier::run_noticing(&config, Noticing::AtIntervals, || {}, never).await?,
        other => bail!("{other} is no half of a host"),
    }
    Ok(())
}
