//! How long the privileged program needs for a set of three files: order in, files laid down, current, answer out.

use std::time::{Duration, Instant};

use lifecycle::{EffectId, OrderKind};
use protocol::OpeningKey;

use crate::bare::apply::{BareApply, Delivery};
use crate::desk::{Desk, FILES, SET, version};
use crate::figure::{Aim, Figure};
use crate::figures::Scale;
use crate::host::Host;
use crate::network_half::{self, NetworkHalf};
use crate::samples::{Samples, progress};

/// The bytes of a journal record of a set with one version.
pub const RECORD_BYTES: usize = 2048;

/// Between two rounds: what the seal before left to do is done then.
pub const QUIET: Duration = Duration::from_millis(50);
/// A consumer that does not run: it is looked for all the same.
pub const CONSUMER: &str = "\n[[set.bench.consumers]]\nname = \"app\"\npidfile = \"/run/eso-bench/none.pid\"\nexe = \"/bin/false\"\nadopt = \"restart\"\n";

/// Measures it.
pub fn measure(scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let rounds = scale.of(200, 4);
    let (ours, floor) = in_turns(scale, "", rounds)?;
    let (looking, its_floor) = in_turns(scale, CONSUMER, rounds / 2)?;
    let words = format!(
        "stage and activate of three files ({rounds} times), from the private socket and back, against the same system calls (a durable sealed copy among them), one signature check, one HPKE open and one journal write"
    );
    Ok(vec![
        Figure::new("apply, median", ours.median_ms(), "ms", Some(floor.median_ms()))
            .aim(Aim::Ratio(1.5))
            .meaning(words),
        Figure::new("apply, p99", ours.p99_ms(), "ms", Some(floor.p99_ms())),
        Figure::new("  with a consumer, median", looking.median_ms(), "ms", Some(its_floor.median_ms())).meaning(
            format!(
                "the same and one look at all processes of this machine ({} now), written down before anybody is restarted",
                processes()
            ),
        ),
    ])
}

fn processes() -> usize {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        .count()
}

/// The real thing and its floor, one after the other.
fn in_turns(scale: Scale, policy: &str, rounds: usize) -> anyhow::Result<(Samples, Samples)> {
    let desk = Desk::new()?;
    let host = Host::new("", SET, policy)?;
    let pending = host.enrol(&desk.bundle("https://localhost:1"))?;
    let keys = desk.keys(&pending.registration)?;
    let listener = network_half::listen(&host)?;
    let _applier = host.start("eso-vm-applier")?;
    let mut half = NetworkHalf::accept(&listener, keys.host())?;
    let to = (keys.host(), &keys.sealing_key);

    let own_key = OpeningKey::generate()?;
    let plain = vec![b'x'; FILES.iter().map(|(_, length)| length).sum()];
    let place = BarePlace::beside(&host)?;
    let mut bare = BareApply::new(&place.sets, &place.state, RECORD_BYTES, desk.order_key.public())?;

    let warm = scale.of(20, 2);
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    let bar = progress("apply", rounds);
    for round in 1..=u32::try_from(warm + rounds)? {
        let counts = round as usize > warm;
        let (stage, flip) = orders(round);
        let stage = desk.order(to, round, stage)?;
        let frames = vec![stage.clone(), desk.order(to, round, flip)?];
        std::thread::sleep(QUIET);
        let began = Instant::now();
        half.send(frames)?;
        let answer = half.answer()?;
        let time = began.elapsed();
        half.acknowledge(&desk, &answer)?;
        if round > 1 {
            half.push(&desk, vec![desk.order(to, round, sealed(round - 1))?])?;
        }
        let delivery = Delivery::new(stage, &plain, &own_key)?;
        let name = format!("v1.{round}");
        let began = Instant::now();
        bare.apply(&delivery, &name, &FILES)?;
        let least = began.elapsed();
        bare.tidy(&name, &FILES)?;
        if counts {
            ours.push(time);
            floor.push(least);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok((ours, floor))
}

/// The orders of one round: deliver, make current.
pub fn orders(round: u32) -> (OrderKind, OrderKind) {
    let version = version(round);
    let stage = OrderKind::Stage { version, effect: EffectId(u128::from(round)) };
    (stage, OrderKind::Activate { version, answers: None })
}

/// The order that a version shall be gone.
pub fn sealed(number: u32) -> OrderKind {
    OrderKind::Seal { version: version(number), cleared: [].into(), cleared_gaps: [].into(), withdraw: false }
}

/// Where the floor writes: on file systems like those of a host.
pub struct BarePlace {
    /// For sets.
    pub sets: std::path::PathBuf,
    /// For copies and journal.
    pub state: std::path::PathBuf,
    _directories: [tempfile::TempDir; 2],
}

impl BarePlace {
    /// State beside the host's. Sets in memory where the host's are; that is where it runs as root.
    pub fn beside(host: &Host) -> anyhow::Result<Self> {
        let state = tempfile::tempdir_in(host.root())?;
        let memory = rustix::process::geteuid().is_root().then(|| tempfile::tempdir_in("/dev/shm"));
        let sets = match memory {
            Some(Ok(memory)) => memory,
            _ => tempfile::tempdir_in(host.root())?,
        };
        Ok(Self { sets: sets.path().to_owned(), state: state.path().to_owned(), _directories: [sets, state] })
    }
}
