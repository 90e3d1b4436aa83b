//! The network half's end of the private socket, for appliers that run without one.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use protocol::local::{self, FromApplier, LOCAL_VERSION, ToApplier};
use protocol::report::{Outcome, Report};
use protocol::{Frame, HostId};

use crate::desk::{Desk, payload};
use crate::host::Host;

/// How long an applier has for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// One applier, connected.
pub struct NetworkHalf {
    stream: UnixStream,
    host: HostId,
    pushes: u64,
}

/// The socket, before the applier calls.
pub fn listen(host: &Host) -> anyhow::Result<UnixListener> {
    let directory = host.root().join("run/private");
    std::fs::create_dir_all(&directory)?;
    Ok(UnixListener::bind(directory.join("applier.sock"))?)
}

impl NetworkHalf {
    /// Waits for the applier's call.
    pub fn accept(listener: &UnixListener, host: HostId) -> anyhow::Result<Self> {
        listener.set_nonblocking(true)?;
        let deadline = Instant::now() + PATIENCE;
        let mut stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            if Instant::now() > deadline {
                bail!("the applier does not call");
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let hello = ToApplier::Hello { version: LOCAL_VERSION, means: Vec::new() };
        stream.write_all(&hello.to_bytes()?)?;
        let mut half = Self { stream, host, pushes: 0 };
        match half.read()? {
            FromApplier::Hello { .. } => Ok(half),
            other => bail!("instead of hello the applier said {other:?}"),
        }
    }

    /// Hands orders over without waiting.
    pub fn send(&mut self, frames: Vec<Frame>) -> anyhow::Result<()> {
        self.pushes += 1;
        let message = ToApplier::Orders { push: self.pushes, frames };
        Ok(self.stream.write_all(&message.to_bytes()?)?)
    }

    /// Waits for the answer to the newest orders; each must have been accepted.
    pub fn answer(&mut self) -> anyhow::Result<Frame> {
        loop {
            match self.read().context("the applier does not answer")? {
                FromApplier::Answer { push, report } if push == self.pushes => return Ok(report),
                FromApplier::Answer { .. } | FromApplier::Report { .. } => {}
                other @ FromApplier::Hello { .. } => bail!("{other:?}"),
            }
        }
    }

    /// Both, and the acknowledgement of the answer.
    pub fn push(&mut self, desk: &Desk, frames: Vec<Frame>) -> anyhow::Result<Report> {
        self.send(frames)?;
        let frame = self.answer()?;
        self.acknowledge(desk, &frame)
    }

    /// Reads a report, which must show that every order was accepted, and acknowledges it.
    pub fn acknowledge(&mut self, desk: &Desk, frame: &Frame) -> anyhow::Result<Report> {
        let report = accepted(frame)?;
        let ack = desk.ack(self.host, report.sequence, frame.digest())?;
        self.stream.write_all(&ToApplier::Acknowledged { ack }.to_bytes()?)?;
        Ok(report)
    }

    fn read(&mut self) -> anyhow::Result<FromApplier> {
        let mut header = [0; 4];
        self.stream.read_exact(&mut header)?;
        let mut json = vec![0; local::length(header)?];
        self.stream.read_exact(&mut json)?;
        Ok(FromApplier::from_json(&json)?)
    }
}

/// The report in a frame; an error when one of the orders that it answers was refused.
pub fn accepted(frame: &Frame) -> anyhow::Result<Report> {
    let report: Report = serde_json::from_slice(payload(&frame.to_bytes()))?;
    for receipt in &report.receipts {
        if let Outcome::Refused { code, message } = &receipt.outcome {
            bail!("an order was refused as {code}: {message}");
        }
    }
    Ok(report)
}
