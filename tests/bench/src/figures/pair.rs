//! A host as it is installed: both programs, enrolled, with a control plane that pushes over the real fleet client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use fleet::{Fleet, HostAddress, Settings};
use lifecycle::OrderKind;
use protocol::Frame;
use protocol::enrol::RegisteredKeys;

use crate::desk::Desk;
use crate::figures::apply::{orders, sealed};
use crate::host::{Host, free_port};
use crate::network_half::accepted;
use crate::process::Running;

/// How long the two programs have to be there.
const PATIENCE: Duration = Duration::from_secs(30);

/// The host and whoever pushes to it.
pub struct Pair {
    /// The control plane.
    pub desk: Arc<Desk>,
    /// The directories.
    pub host: Host,
    /// The half that faces the network.
    pub server: Running,
    /// The half that has the privilege.
    pub applier: Running,
    /// The host's keys.
    pub keys: RegisteredKeys,
    /// Where it is.
    pub address: HostAddress,
    /// Keeps a connection open.
    pub fleet: Fleet,
    round: u32,
}

impl Pair {
    /// Starts everything and waits until orders are taken.
    pub async fn start() -> anyhow::Result<Self> {
        let desk = Arc::new(Desk::new()?);
        let (reports, _serving) = desk.listen().await?;
        let port = free_port()?;
        let host =
            Host::plain(&format!("listen = \"127.0.0.1:{port}\"\nadvertise = \"127.0.0.1:{port}\"\n"))?;
        let pending = host.enrol(&desk.bundle(&format!("https://127.0.0.1:{reports}")))?;
        let keys = desk.keys(&pending.registration)?;
        let server = host.start("eso-vm-server")?;
        let applier = host.start("eso-vm-applier")?;
        let deadline = Instant::now() + PATIENCE;
        while !host.log("eso-vm-server").contains("taking orders")
            || !host.log("eso-vm-applier").contains("connected with the network half")
        {
            if Instant::now() > deadline {
                bail!("the host does not start: {}", host.log("eso-vm-server"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let spki = desk.enrolled(keys.host()).context("the host has not enrolled")?;
        let address = HostAddress { host: keys.host(), address: format!("127.0.0.1:{port}"), spki };
        let fleet = new_fleet(&desk)?;
        let mut pair = Self { desk, host, server, applier, keys, address, fleet, round: 0 };
        pair.push().await?;
        Ok(pair)
    }

    /// The next version.
    pub const fn next(&mut self) -> u32 {
        self.round += 1;
        self.round
    }

    /// An order for this host.
    pub fn order(&self, generation: u32, kind: OrderKind) -> anyhow::Result<Frame> {
        self.desk.order((self.keys.host(), &self.keys.sealing_key), generation, kind)
    }

    /// Delivers the next version and makes it current; gives the orders and the answer.
    pub async fn push(&mut self) -> anyhow::Result<(Vec<Frame>, Frame)> {
        let round = self.next();
        self.push_by(&self.fleet, round).await
    }

    /// Pushes one order; gives what was sent, and how long the answer was.
    pub async fn push_one(&self, round: u32, kind: OrderKind) -> anyhow::Result<(Bytes, usize)> {
        let frame = self.order(round, kind)?;
        let answer = self.fleet.push(&self.address, std::slice::from_ref(&frame)).await?;
        accepted(&answer)?;
        Ok((Bytes::from(frame.to_bytes()), answer.to_bytes().len()))
    }

    /// The same over this fleet.
    pub async fn push_by(&self, fleet: &Fleet, round: u32) -> anyhow::Result<(Vec<Frame>, Frame)> {
        let (stage, flip) = orders(round);
        let frames = vec![self.order(round, stage)?, self.order(round, flip)?];
        let answer = fleet.push(&self.address, &frames).await?;
        Ok((frames, answer))
    }

    /// Has the version before the newest one gone.
    pub async fn tidy_newest(&self) -> anyhow::Result<()> {
        self.tidy(self.round).await
    }

    /// Has the version before a round gone.
    pub async fn tidy(&self, round: u32) -> anyhow::Result<()> {
        if round > 1 {
            let frames = vec![self.order(round, sealed(round - 1))?];
            accepted(&self.fleet.push(&self.address, &frames).await?)?;
        }
        Ok(())
    }
}

/// The control plane's way to hosts.
pub fn new_fleet(desk: &Desk) -> anyhow::Result<Fleet> {
    let (fleet, notices) =
        Fleet::new(desk.installation, desk.identity()?, desk.authority.trust()?, Settings::default());
    drop(notices);
    Ok(fleet)
}

/// A runtime for the side of the control plane.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}
