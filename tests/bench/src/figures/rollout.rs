//! How long one version takes to reach a whole fleet.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use lifecycle::{Millis, OrderKind, Version};
use protocol::enrol::{PENDING_FILE, PendingEnrolment, RegisteredKeys};
use protocol::{Frame, UnixMillis};
use tests_fleet::{ControlPlane, Crowd, Farm, Host, Kind, Site, Spec};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::bare::exchange::{BareClient, BareConnection};
use crate::desk::{Desk, SET, set, version};
use crate::figure::{Aim, Figure};
use crate::figures::Scale;
use crate::figures::apply::orders;
use crate::process;
use crate::samples::{Samples, progress};

/// How long a rollout, or the start of a fleet, may take at most.
const PATIENCE: Duration = Duration::from_mins(5);
/// As many exchanges at the same time as the control plane allows itself.
const AT_ONCE: usize = 256;

/// To two hundred hosts.
pub fn measure_200(scale: Scale) -> anyhow::Result<Vec<Figure>> {
    measure(scale.of(200, 4), scale.of(5, 1), Duration::from_secs(if scale.smoke { 1 } else { 4 }))
}

/// To a thousand.
pub fn measure_1000(scale: Scale) -> anyhow::Result<Vec<Figure>> {
    measure(scale.of(1000, 8), scale.of(2, 1), Duration::from_secs(if scale.smoke { 1 } else { 15 }))
}

fn measure(hosts: usize, rounds: usize, lead: Duration) -> anyhow::Result<Vec<Figure>> {
    let bar = progress(&format!("rollout {hosts}"), rounds + 3);
    let runtime = tests_fleet::farm::runtime(16)?;
    let ours = Ours::start(hosts, lead, &runtime)?;
    bar.inc(1);
    let mut bare = runtime.block_on(Bare::start(hosts, &runtime))?;
    bar.inc(1);
    let (mut times, mut floor) = (Samples::default(), Samples::default());
    // The first is not counted: everything is new then.
    for round in 0..=rounds {
        let time = ours.roll_out()?;
        let least = runtime.block_on(bare.roll_out())?;
        if round > 0 {
            times.push(time);
            floor.push(least);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let words = format!(
        "from `rotate` to adopted by all, without the {} s from the agreement to the instant: the control plane in a process of its own, the hosts' own code in others, real TLS and sockets; against a client that signs, seals and exchanges `stage` and `adopt` with as many such hosts over open connections ({rounds} times, median)",
        lead.as_secs()
    );
    let figure =
        Figure::new(format!("rollout to {hosts} hosts"), times.median_ms(), "ms", Some(floor.median_ms()));
    Ok(vec![figure.aim(Aim::Ratio(1.3)).meaning(words)])
}

/// The control plane and its fleet.
struct Ours {
    _crowd: Crowd,
    control: ControlPlane,
    lead: Duration,
    _directories: [tempfile::TempDir; 2],
}

impl Ours {
    fn start(hosts: usize, lead: Duration, runtime: &Runtime) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("eso-bench-").tempdir()?;
        let places = tests_fleet::farm::directory()?;
        let program = process::path("eso-control-plane")?;
        let mut control = ControlPlane::init(&program, directory.path(), runtime.handle())?;
        control.start()?;
        let labels = Arc::new(|_: &Site| [("app".to_owned(), SET.to_owned())].into());
        let spec = Spec { labels, ..Spec::plain(hosts, places.path().to_owned(), SET) };
        let farm = Farm::enrol(&spec, &control, runtime.handle())?;
        let crowd = crowd(&farm.configs(), directory.path())?;
        control.until_connected(hosts, PATIENCE)?;
        control.write_resource("bench.yaml", &resource(hosts, lead))?;
        let ours = Self { _crowd: crowd, control, lead, _directories: [directory, places] };
        ours.until_settled(Version::new(1, 1))?;
        Ok(ours)
    }

    /// From the wish to the last host's adoption, without the time to the instant.
    fn roll_out(&self) -> anyhow::Result<Duration> {
        let before = self.current()?.context("there is a first version")?;
        let began = Instant::now();
        self.control.rotate(SET)?;
        let next = Version::new(before.epoch, before.number + 1);
        while self.current()? != Some(next) || self.is_rolling()? {
            if began.elapsed() > PATIENCE {
                bail!("the rollout does not end: {:?}", self.control.credential(SET)?.rollout);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let time = began.elapsed();
        self.until_settled(next)?;
        Ok(time.saturating_sub(self.lead))
    }

    fn summary(&self) -> anyhow::Result<Option<protocol::api::CredentialSummary>> {
        let all: Vec<protocol::api::CredentialSummary> = self.control.get("/v1/credentials")?;
        Ok(all.into_iter().find(|one| one.name.as_str() == SET))
    }

    fn current(&self) -> anyhow::Result<Option<Version>> {
        Ok(self.summary()?.and_then(|summary| summary.current))
    }

    fn is_rolling(&self) -> anyhow::Result<bool> {
        Ok(self.summary()?.is_none_or(|summary| summary.rolling.is_some()))
    }

    /// Everybody is on this version. The old ones stay through their grace time: how they end is not measured here.
    fn until_settled(&self, wanted: Version) -> anyhow::Result<()> {
        self.control.until(PATIENCE, &format!("{wanted} is adopted by all"), |_| {
            let Some(summary) = self.summary()? else { return Ok(false) };
            let settled = summary.current == Some(wanted) && summary.rolling.is_none();
            Ok(settled && summary.adopted == summary.targets)
        })
    }
}

fn resource(hosts: usize, lead: Duration) -> String {
    format!(
        "apiVersion: generators.external-secrets.io/v1alpha1
kind: Password
metadata: {{name: bench}}
spec: {{}}
---
apiVersion: eso.external-secrets.io/v1alpha1
kind: Credential
metadata: {{name: {SET}}}
spec:
  generator: {{kind: Password, name: bench}}
  targets:
    hosts:
      matchLabels: {{app: {SET}}}
  files:
    one: \"{{{{ .password }}}}\"
    two: \"two {{{{ .password }}}}\"
    three: \"three {{{{ .password }}}}\"
  policy:
    wave: {hosts}
    flipIn: {}ms
    grace: 1h
    liveVersionsMax: 16
",
        lead.as_millis()
    )
}

/// Hosts of the same kind, and nothing above them.
struct Bare {
    desk: Arc<Desk>,
    _crowd: Crowd,
    lines: Vec<Line>,
    round: u32,
    _places: tempfile::TempDir,
}

/// The connection to one host.
struct Line {
    keys: RegisteredKeys,
    open: BareConnection,
}

impl Bare {
    async fn start(count: usize, runtime: &Runtime) -> anyhow::Result<Self> {
        let desk = Arc::new(Desk::new()?);
        let (port, _serving) = desk.listen().await?;
        let places = tests_fleet::farm::directory()?;
        let mut hosts = Vec::with_capacity(count);
        let mut lines = Vec::with_capacity(count);
        for number in 0..count {
            let (handle, desk, place) = (runtime.handle().clone(), desk.clone(), places.path().to_owned());
            let (host, keys) =
                tokio::task::spawn_blocking(move || enrol(number, &place, &desk, port, &handle)).await??;
            hosts.push((host.site().config(), host.address()));
            lines.push(keys);
        }
        let (configs, addresses): (Vec<_>, Vec<_>) = hosts.into_iter().unzip();
        let crowd = crowd(&configs, places.path())?;
        let client = Arc::new(BareClient::of(&desk)?);
        let mut open = Vec::with_capacity(count);
        for (address, keys) in addresses.iter().zip(lines) {
            let deadline = Instant::now() + PATIENCE;
            let connection = loop {
                match client.connect(&address.to_string()).await {
                    Ok(connection) => break connection,
                    Err(error) if Instant::now() > deadline => return Err(error),
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            };
            open.push(Line { keys, open: connection });
        }
        let mut bare = Self { desk, _crowd: crowd, lines: open, round: 0, _places: places };
        bare.until_answering().await?;
        Ok(bare)
    }

    /// Both halves of each host have found each other.
    async fn until_answering(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for line in &mut self.lines {
            let to = (line.keys.host(), &line.keys.sealing_key);
            // About a version that nobody has: refused, and so answered.
            let order = self.desk.order(to, 0, OrderKind::Discard { version: version(0) })?;
            while line.open.ask(Bytes::from(order.to_bytes())).await.is_err() {
                ensure!(Instant::now() < deadline, "a host does not answer");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Ok(())
    }

    /// Delivered to all, agreed upon, and once the instant is over adopted by all. The time is that of the first and
    /// the last.
    async fn roll_out(&mut self) -> anyhow::Result<Duration> {
        self.round += 1;
        let round = self.round;
        let began = Instant::now();
        self.all(move |_| orders(round).0).await?;
        let staged = began.elapsed();
        let lead = Duration::from_secs(5);
        let at = UnixMillis::now().plus_ms(u64::try_from(lead.as_millis())?);
        let instant = Instant::now() + lead;
        self.all(move |now| OrderKind::Arm {
            version: version(round),
            in_ms: Millis(at.ms_since(now)),
            answers: None,
        })
        .await?;
        tokio::time::sleep_until((instant + Duration::from_secs(1)).into()).await;
        let began = Instant::now();
        self.all(move |_| OrderKind::Adopt { version: version(round) }).await?;
        let adopted = began.elapsed();
        Ok(staged + adopted)
    }

    async fn all(
        &mut self,
        kind: impl Fn(UnixMillis) -> OrderKind + Clone + Send + 'static,
    ) -> anyhow::Result<()> {
        let room = Arc::new(Semaphore::new(AT_ONCE));
        let mut under_way = JoinSet::new();
        for mut line in self.lines.drain(..) {
            let (room, desk, round, kind) = (room.clone(), self.desk.clone(), self.round, kind.clone());
            under_way.spawn(async move {
                let _permit = room.acquire().await?;
                let to = (line.keys.host(), &line.keys.sealing_key);
                let order = desk.order(to, round, kind(UnixMillis::now()))?;
                let answer = line.open.ask(Bytes::from(order.to_bytes())).await?;
                let frame = Frame::parse(&answer, protocol::limit::REPORT_BYTES_MAX)?;
                ensure!(
                    line.keys.report_key.accepts(protocol::frame::Domain::Report, &frame),
                    "a report is not signed by its host"
                );
                anyhow::Ok((line, frame))
            });
        }
        while let Some(done) = under_way.join_next().await {
            let (line, frame) = done??;
            crate::network_half::accepted(&frame)?;
            self.lines.push(line);
        }
        Ok(())
    }
}

/// The hosts' processes.
fn crowd(configs: &[PathBuf], directory: &Path) -> anyhow::Result<Crowd> {
    Crowd::start(&process::path("fleet-host")?, configs, &directory.join("hosts.log"))
}

/// Enrols one host.
fn enrol(
    number: usize,
    places: &Path,
    desk: &Desk,
    control_plane: u16,
    runtime: &tokio::runtime::Handle,
) -> anyhow::Result<(Host, RegisteredKeys)> {
    let name = format!("vm-{number}");
    let site = Site { number, directory: places.join(&name), name };
    let listen = tests_fleet::port::free();
    let config = format!(
        "[daemon]\nstate_dir = \"{0}/state\"\nrun_dir = \"{0}/run\"\nlisten = \"{listen}\"\nadvertise = \"{listen}\"\nsupervisor = \"none\"\nmount = \"directory\"\nevidence = \"declared\"\n\n[set.{1}]\nrefresh_ms = 60000\n",
        site.directory.display(),
        set()
    );
    let state: PathBuf = site.directory.join("state/server");
    let bundle = desk.bundle(&format!("https://127.0.0.1:{control_plane}"));
    let host = Host::enrol(site, Kind::Tasks, listen, &config, &bundle, runtime)?;
    let pending = PendingEnrolment::from_json(&std::fs::read(state.join(PENDING_FILE))?)?;
    let keys = desk.keys(&pending.registration)?;
    Ok((host, keys))
}
