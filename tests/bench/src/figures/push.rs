//! How long a push takes: sealed and signed, over the wire, through both programs, applied, and the answer back.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fleet::Fleet;
use protocol::{Frame, OpeningKey};

use crate::bare::apply::{self, BareApply, Delivery};
use crate::bare::exchange::{BareConnection, BareServer};
use crate::desk::FILES;
use crate::figure::{Aim, Figure};
use crate::figures::Scale;
use crate::figures::apply::{BarePlace, QUIET, RECORD_BYTES};
use crate::figures::pair::{Pair, new_fleet, runtime};
use crate::network_half::accepted;
use crate::samples::{Samples, progress};

/// On a connection that is open.
pub fn measure_open(scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let words = "seal, sign, push to both programs, apply, answer, on an open connection; against a bare rustls and hyper exchange of the same bytes, one HPKE seal and the floor of the apply";
    runtime()?.block_on(measure(scale, "push, open connection", Connection::Open, words))
}

/// With a handshake first.
pub fn measure_new(scale: Scale) -> anyhow::Result<Vec<Figure>> {
    let words =
        "the same with TCP, TLS 1.3 with both certificates and HTTP/2 begun anew for each; the floor's too";
    runtime()?.block_on(measure(scale, "push, new connection", Connection::New, words))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Connection {
    Open,
    New,
}

async fn measure(
    scale: Scale,
    name: &str,
    connection: Connection,
    words: &str,
) -> anyhow::Result<Vec<Figure>> {
    let mut pair = Pair::start().await?;
    let mut bare = Bare::start(&pair).await?;
    let (warm, rounds) = (scale.of(10, 1), scale.of(150, 4));
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    let bar = progress(name, rounds);
    for count in 0..warm + rounds {
        let round = pair.next();
        tokio::time::sleep(QUIET).await;
        let began = Instant::now();
        let fleet: Fleet = match connection {
            Connection::Open => pair.fleet.clone(),
            Connection::New => new_fleet_of(&pair)?,
        };
        let prepared = began.elapsed();
        let (frames, answer) = pair.push_by(&fleet, round).await?;
        let time = began.elapsed().saturating_sub(prepared);
        accepted(&answer)?;
        drop(fleet);
        pair.tidy(round).await?;
        let least = bare.once(connection, &frames, &answer, round).await?;
        if count >= warm {
            ours.push(time);
            floor.push(least);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(vec![
        Figure::new(format!("{name}, median"), ours.median_ms(), "ms", Some(floor.median_ms()))
            .aim(Aim::Ratio(1.3))
            .meaning(words),
        Figure::new(format!("{name}, p99"), ours.p99_ms(), "ms", Some(floor.p99_ms())),
    ])
}

/// One that has no connection yet. Its certificate is made beforehand.
fn new_fleet_of(pair: &Pair) -> anyhow::Result<Fleet> {
    new_fleet(&pair.desk)
}

/// The floor.
struct Bare {
    server: BareServer,
    open: BareConnection,
    apply: BareApply,
    key: OpeningKey,
    plain: Vec<u8>,
    _place: BarePlace,
}

impl Bare {
    async fn start(pair: &Pair) -> anyhow::Result<Self> {
        let place = BarePlace::beside(&pair.host)?;
        let apply = BareApply::new(&place.sets, &place.state, RECORD_BYTES, pair.desk.order_key.public())?;
        let server = BareServer::start()?;
        let open = server.connect().await?;
        let plain = vec![b'x'; FILES.iter().map(|(_, length)| length).sum()];
        Ok(Self { server, open, apply, key: OpeningKey::generate()?, plain, _place: place })
    }

    async fn once(
        &mut self,
        connection: Connection,
        frames: &[Frame],
        answer: &Frame,
        round: u32,
    ) -> anyhow::Result<Duration> {
        let body = Bytes::from(Frame::join(frames));
        let wanted = answer.to_bytes().len();
        let stage = frames.first().cloned().ok_or_else(|| anyhow::anyhow!("a push has orders"))?;
        let delivery = Delivery::new(stage, &self.plain, &self.key)?;
        let name = format!("v1.{round}");
        let began = Instant::now();
        apply::seal(&self.plain, &self.key)?;
        match connection {
            Connection::Open => self.open.exchange(body, wanted).await?,
            Connection::New => self.server.connect().await?.exchange(body, wanted).await?,
        }
        self.apply.apply(&delivery, &name, &FILES)?;
        let time = began.elapsed();
        self.apply.tidy(&name, &FILES)?;
        Ok(time)
    }
}
