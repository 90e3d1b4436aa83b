//! Halves of hosts in a process of their own: `fleet-host network|applier DIR`, or `fleet-host crowd` for both halves
//! of each host whose directory stands in a line of standard input.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use eso_vm_applier::Noticing;
use host_policy::HostPolicy;
use tests_fleet::farm;

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    transport::install_provider();
    let mut words = std::env::args().skip(1);
    let half = words.next().context("which half?")?;
    if half == "crowd" {
        let configs: Vec<PathBuf> =
            std::io::stdin().lines().map(|line| line.map(PathBuf::from)).collect::<Result<_, _>>()?;
        return farm::runtime(configs.len())?.block_on(crowd(configs));
    }
    let config = PathBuf::from(words.next().context("which directory?")?);
    farm::runtime(1)?.block_on(async {
        match half.as_str() {
            "network" => network(&config).await,
            "applier" => applier(&config).await,
            other => bail!("{other} is no half of a host"),
        }
    })
}

async fn network(config: &Path) -> anyhow::Result<()> {
    let daemon = HostPolicy::load(config)?.daemon;
    Ok(eso_vm_server::run::run(&daemon, Vec::new(), |_| {}, std::future::pending()).await?)
}

async fn applier(config: &Path) -> anyhow::Result<()> {
    Ok(eso_vm_applier::run_noticing(config, Noticing::AtIntervals, || {}, std::future::pending()).await?)
}

/// Ends when one of them does: none may.
async fn crowd(configs: Vec<PathBuf>) -> anyhow::Result<()> {
    let mut halves = tokio::task::JoinSet::new();
    for config in configs {
        let other = config.clone();
        halves.spawn(async move { network(&config).await });
        halves.spawn(async move { applier(&other).await });
    }
    halves.join_next().await.context("there is no host")??
}
