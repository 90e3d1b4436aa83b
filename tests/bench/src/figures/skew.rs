//! How far apart many hosts make a version current that agreed on one instant.

use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use lifecycle::{Millis, OrderKind};
use protocol::UnixMillis;
use protocol::enrol::RegisteredKeys;

use crate::desk::{Desk, SET, version};
use crate::figure::{Aim, Figure};
use crate::figures::Scale;
use crate::figures::apply::{CONSUMER, orders};
use crate::host::Host;
use crate::network_half::{self, NetworkHalf};
use crate::process::{self, Running};
use crate::samples::{Samples, progress};

/// From the agreement to the instant.
const LEAD: Duration = Duration::from_millis(1500);
/// From the instant to the look at when each flipped.
const AFTER: Duration = Duration::from_millis(700);

/// Measures it.
pub fn measure(scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let (hosts, looking, rounds) = (scale.of(200, 4), scale.of(20, 2), scale.of(10, 1));
    let (skew, floor) = apart(hosts, "", rounds)?;
    let (looking_skew, looking_floor) = apart(looking, CONSUMER, rounds)?;
    let words = format!(
        "how long after the first of {hosts} appliers (processes of their own, all on this machine) each one flipped, over {rounds} rounds; against as many bare processes that sleep until the instant and do the same rename; by the kernel's own time stamp of each rename"
    );
    Ok(vec![
        Figure::new(
            format!("skew of the flip, {hosts} hosts, p99"),
            skew.p99_ms(),
            "ms",
            Some(floor.p99_ms()),
        )
        .aim(Aim::Value(20.0))
        .meaning(words),
        Figure::new("  the same against the timers", skew.p99_ms(), "ms", Some(floor.p99_ms()))
            .aim(Aim::Ratio(2.0)),
        Figure::new("  median", skew.median_ms(), "ms", Some(floor.median_ms())),
        Figure::new(
            format!("  {looking} hosts with a consumer each, p99"),
            looking_skew.p99_ms(),
            "ms",
            Some(looking_floor.p99_ms()),
        )
        .meaning("after the instant each of them looks at all processes of this one machine"),
    ])
}

/// How far apart so many hosts with this policy flip, and how far apart as many timers.
fn apart(hosts: usize, policy: &str, rounds: usize) -> anyhow::Result<(Samples, Samples)> {
    let warm = 1;
    let bar = progress("skew", hosts + rounds);
    let desk = Desk::new()?;
    let mut ours = Vec::with_capacity(hosts);
    for _ in 0..hosts {
        ours.push(Flipping::start(&desk, policy)?);
        bar.inc(1);
    }
    let places = tempfile::tempdir()?;
    let mut timers = Vec::with_capacity(hosts);
    for number in 0..hosts {
        timers.push(Timer::start(places.path().join(number.to_string()))?);
    }
    let (mut skew, mut floor) = (Samples::default(), Samples::default());
    for round in 1..=u32::try_from(warm + rounds)? {
        let counts = round as usize > warm;
        let apart = flip_hosts(&desk, &mut ours, round)?;
        let bare = flip_timers(&mut timers, round)?;
        if counts {
            skew.extend(apart);
            floor.extend(bare);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok((skew, floor))
}

/// An applier without a network half.
struct Flipping {
    half: NetworkHalf,
    keys: RegisteredKeys,
    _applier: Running,
    host: Host,
    _listener: UnixListener,
}

impl Flipping {
    fn start(desk: &Desk, policy: &str) -> anyhow::Result<Self> {
        let host = Host::new("evidence = \"declared\"\n", SET, policy)?;
        let pending = host.enrol(&desk.bundle("https://localhost:1"))?;
        let keys = desk.keys(&pending.registration)?;
        let listener = network_half::listen(&host)?;
        let applier = host.start("eso-vm-applier")?;
        let half = NetworkHalf::accept(&listener, keys.host())?;
        Ok(Self { half, keys, _applier: applier, host, _listener: listener })
    }

    fn order(&mut self, desk: &Desk, round: u32, kind: OrderKind) -> anyhow::Result<()> {
        let order = desk.order((self.keys.host(), &self.keys.sealing_key), round, kind)?;
        self.half.push(desk, vec![order])?;
        Ok(())
    }
}

/// One round of all: delivered, agreed, flipped.
fn flip_hosts(desk: &Desk, hosts: &mut [Flipping], round: u32) -> anyhow::Result<Vec<Duration>> {
    for host in hosts.iter_mut() {
        host.order(desk, round, orders(round).0)?;
    }
    let at = UnixMillis::now().plus_ms(u64::try_from(LEAD.as_millis())?);
    for host in hosts.iter_mut() {
        let in_ms = Millis(at.ms_since(UnixMillis::now()));
        host.order(desk, round, OrderKind::Arm { version: version(round), in_ms, answers: None })?;
    }
    let places = hosts.iter().map(|host| host.host.set_dir()).collect();
    flipped(places, UNIX_EPOCH + Duration::from_millis(at.0))
}

/// A bare process that renames at an instant.
struct Timer {
    process: Child,
    orders: ChildStdin,
    place: PathBuf,
}

impl Timer {
    fn start(place: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir(&place)?;
        let mut process = Command::new(process::path("bench-bare")?)
            .arg("--timer")
            .arg(&place)
            .stdin(Stdio::piped())
            .spawn()?;
        let orders = process.stdin.take().context("it has a standard input")?;
        Ok(Self { process, orders, place })
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn flip_timers(timers: &mut [Timer], round: u32) -> anyhow::Result<Vec<Duration>> {
    let at = SystemTime::now() + LEAD;
    let nanos = at.duration_since(UNIX_EPOCH)?.as_nanos();
    for timer in timers.iter_mut() {
        writeln!(timer.orders, "{nanos} v1.{round}")?;
        timer.orders.flush()?;
    }
    flipped(timers.iter().map(|timer| timer.place.clone()).collect(), at)
}

/// Looks at each directory before the instant, so that the kernel stamps the next change of it finely, and again
/// afterwards. Gives how long after the first change each one came.
fn flipped(places: Vec<PathBuf>, at: SystemTime) -> anyhow::Result<Vec<Duration>> {
    let changed =
        |place: &PathBuf| -> anyhow::Result<SystemTime> { Ok(std::fs::metadata(place)?.modified()?) };
    for place in &places {
        changed(place)?;
    }
    std::thread::sleep(at.duration_since(SystemTime::now()).unwrap_or_default() + AFTER);
    let times: anyhow::Result<Vec<SystemTime>> = places.iter().map(changed).collect();
    let times = times?;
    let first = times.iter().min().copied().context("nobody flipped")?;
    let earliest = at - Duration::from_millis(50);
    anyhow::ensure!(first >= earliest, "somebody did not flip, or long before the instant");
    Ok(times.into_iter().map(|time| time.duration_since(first).unwrap_or_default()).collect())
}
