//! What the two programs of a host take: of its disk, of its memory, of its sleep.

use std::time::Duration;

use crate::bare::exchange::BareServer;
use crate::figure::{Aim, Figure};
use crate::figures::Scale;
use crate::figures::apply::{orders, sealed};
use crate::figures::pair::{Pair, runtime};
use crate::network_half::accepted;
use crate::process;
use crate::samples::progress;

const MIB: f64 = 1024.0 * 1024.0;

/// The programs as they are installed.
pub fn measure_binaries(_: Scale) -> anyhow::Result<Vec<Figure>> {
    #[allow(clippy::cast_precision_loss, reason = "a program has fewer bytes than that")]
    let size = |name: &str| -> anyhow::Result<f64> {
        Ok(std::fs::metadata(process::path(name)?)?.len() as f64 / MIB)
    };
    let floor = size("bench-bare")?;
    let figure = |name: &str| -> anyhow::Result<Figure> {
        Ok(Figure::new(format!("binary {name}"), size(name)?, "MiB", Some(floor)).aim(Aim::Value(6.0)))
    };
    Ok(vec![
        figure("eso-vm-server")?.meaning("the stripped program, against one that has rustls and hyper alone"),
        figure("eso-vm-applier")?,
    ])
}

/// After a thousand pushes.
pub fn measure_memory(scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let what = "the bench's figure for memory: our programs let nobody but root look into theirs";
    if !tests_needs::is_there(rustix::process::geteuid().is_root(), what) {
        return Ok(Vec::new());
    }
    let pushes = scale.of(1000, 5);
    let (ours, floor) = runtime()?.block_on(async {
        let mut pair = Pair::start().await?;
        let bare = BareServer::start()?;
        let mut open = bare.connect().await?;
        let bar = progress("memory", pushes);
        let mut done = 0;
        while done < pushes {
            // Three of them: deliver, make current, have the version before gone.
            let round = pair.next();
            let (stage, flip) = orders(round);
            let mut kinds = vec![stage, flip];
            kinds.extend((round > 1).then(|| sealed(round - 1)));
            for kind in kinds {
                let (body, wanted) = pair.push_one(round, kind).await?;
                open.exchange(body, wanted).await?;
                done += 1;
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        let ours = [pair.server.memory()?, pair.applier.memory()?];
        anyhow::Ok((ours, bare.process.memory()?))
    })?;
    let [server, applier] = ours;
    let both = server + applier;
    let words = format!(
        "eso-vm-server and eso-vm-applier after {pushes} pushes, against one process with rustls and hyper alone after as many exchanges"
    );
    let figure =
        |name: &str, value: f64, floor: f64| Figure::new(name, value / MIB, "MiB", Some(floor / MIB));
    Ok(vec![
        figure("memory of both, proportional", both.proportional, floor.proportional)
            .aim(Aim::Value(9.0))
            .meaning(words),
        figure("memory of both, resident", both.resident, floor.resident),
        figure("  eso-vm-server, proportional", server.proportional, floor.proportional),
        figure("  eso-vm-applier, proportional", applier.proportional, floor.proportional),
    ])
}

/// With nothing to do, the control plane's connection open.
pub fn measure_idle(scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let window = Duration::from_secs(if scale.smoke { 1 } else { 40 });
    let (ours, floor) = runtime()?.block_on(async {
        let mut pair = Pair::start().await?;
        let (_, answer) = pair.push().await?;
        accepted(&answer)?;
        pair.tidy_newest().await?;
        let bare = BareServer::start()?;
        let _open = bare.connect().await?;
        // What the start and the push left to do is done.
        tokio::time::sleep(Duration::from_secs(if scale.smoke { 1 } else { 5 })).await;
        let count = || -> anyhow::Result<(u64, u64)> {
            Ok((pair.server.sleeps()? + pair.applier.sleeps()?, bare.process.sleeps()?))
        };
        let before = count()?;
        tokio::time::sleep(window).await;
        let after = count()?;
        anyhow::Ok((after.0 - before.0, after.1 - before.1))
    })?;
    #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
    let per_minute = |count: u64| count as f64 * 60.0 / window.as_secs_f64();
    let figure = Figure::new("wake-ups of both, idle", per_minute(ours), "/min", Some(per_minute(floor)));
    Ok(vec![figure.meaning(format!(
        "voluntary context switches of both programs in {} s without an order, the control plane's connection open (it asks every 20 s whether it still is), against the bare server with such a connection",
        window.as_secs()
    ))])
}
