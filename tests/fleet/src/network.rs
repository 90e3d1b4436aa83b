//! A network that fails on purpose: each way of a host goes through a proxy that delays, cuts, half opens and
//! swallows connections, as a seed says.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

use crate::luck::Luck;

/// What becomes of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is left alone.
    Well,
    /// Every piece is late by up to so many milliseconds.
    Delayed(u64),
    /// Both ends lose it after so many bytes.
    Cut(u64),
    /// After so many bytes it is silent, and neither end is told.
    HalfOpen(u64),
    /// It is accepted, and nothing else ever happens.
    Swallowed,
}

/// All ways, and the weather on them.
#[derive(Clone)]
pub struct Network {
    seed: u64,
    runtime: Handle,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Connections fail.
    bad: AtomicBool,
    ways: AtomicU64,
    /// Connections by fate.
    well: AtomicU64,
    delayed: AtomicU64,
    cut: AtomicU64,
    half_open: AtomicU64,
    swallowed: AtomicU64,
}

impl Network {
    /// A network that is well at first.
    pub fn new(seed: u64, runtime: &Handle) -> Self {
        Self { seed, runtime: runtime.clone(), shared: Arc::default() }
    }

    /// From now on connections fail: new ones, and old ones as they are used.
    pub fn spoil(&self) {
        self.shared.bad.store(true, Ordering::SeqCst);
    }

    /// From now on connections are left alone. Of one that was silent both ends learn as soon as either speaks.
    pub fn heal(&self) {
        self.shared.bad.store(false, Ordering::SeqCst);
    }

    /// A way to this address. It lasts as long as the runtime.
    pub fn way(&self, target: SocketAddr) -> anyhow::Result<SocketAddr> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let _inside = self.runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        let way = self.shared.ways.fetch_add(1, Ordering::SeqCst);
        let (shared, luck) = (self.shared.clone(), Luck::of(self.seed, way));
        self.runtime.spawn(carry_all(shared, listener, target, luck));
        Ok(address)
    }

    /// How many connections met which fate, in words.
    pub fn told(&self) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let shared = &self.shared;
        format!(
            "connections: {} left alone, {} delayed, {} cut, {} half open, {} swallowed",
            count(&shared.well),
            count(&shared.delayed),
            count(&shared.cut),
            count(&shared.half_open),
            count(&shared.swallowed),
        )
    }
}

impl Shared {
    fn is_bad(&self) -> bool {
        self.bad.load(Ordering::SeqCst)
    }

    fn fate(&self, luck: &mut Luck) -> Fate {
        let (dice, amount) = (luck.below(100), luck.next());
        let (fate, counter) = match dice {
            0..40 => (Fate::Well, &self.well),
            40..60 => (Fate::Delayed(amount % 150), &self.delayed),
            // A handshake is some five thousand bytes: some die in it, some after a few pushes.
            60..85 => (Fate::Cut(amount % 40_000), &self.cut),
            85..95 => (Fate::HalfOpen(amount % 40_000), &self.half_open),
            _ => (Fate::Swallowed, &self.swallowed),
        };
        counter.fetch_add(1, Ordering::SeqCst);
        fate
    }
}

async fn carry_all(shared: Arc<Shared>, listener: TcpListener, target: SocketAddr, mut luck: Luck) {
    loop {
        let Ok((near, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        // Drawn also in good weather: the connections that are open when it turns have theirs.
        let fate = shared.fate(&mut luck);
        tokio::spawn(carry(shared.clone(), near, target, fate, Luck::of(luck.next(), 1)));
    }
}

/// Carries one connection. Both ends are closed when it returns.
async fn carry(shared: Arc<Shared>, mut near: TcpStream, target: SocketAddr, fate: Fate, luck: Luck) {
    if fate == Fate::Swallowed && shared.is_bad() {
        swallow(&shared, &mut near).await;
        return;
    }
    // The near end learns of a refusal by the end of its own connection.
    let Ok(far) = TcpStream::connect(target).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_reads, near_writes) = near.into_split();
    let (far_reads, far_writes) = far.into_split();
    let carried = Arc::new(AtomicU64::new(0));
    let there = pump(shared.clone(), near_reads, far_writes, fate, carried.clone(), luck.clone());
    let back = pump(shared, far_reads, near_writes, fate, carried, luck);
    // One direction that ends takes the other along: nobody here lives on with half a connection.
    tokio::select! { () = there => {}, () = back => {} }
}

async fn pump(
    shared: Arc<Shared>,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    fate: Fate,
    carried: Arc<AtomicU64>,
    mut luck: Luck,
) {
    let mut piece = vec![0; 16 * 1024];
    // Silence is a state: who was left in it is not told before somebody speaks in good weather.
    let mut silent = false;
    loop {
        let Ok(count @ 1..) = from.read(&mut piece).await else {
            if silent && shared.is_bad() {
                // The end of the other is not seen either.
                std::future::pending::<()>().await;
            }
            return;
        };
        let so_far = carried.fetch_add(count as u64, Ordering::SeqCst) + count as u64;
        if silent && !shared.is_bad() {
            return;
        }
        match fate {
            Fate::Cut(after) if shared.is_bad() && so_far > after => return,
            Fate::HalfOpen(after) if shared.is_bad() && so_far > after => silent = true,
            Fate::Delayed(up_to) if shared.is_bad() => {
                tokio::time::sleep(Duration::from_millis(luck.below(up_to + 1))).await;
            }
            _ => {}
        }
        if !silent && to.write_all(&piece[..count]).await.is_err() {
            return;
        }
    }
}

/// Takes everything and gives nothing, until somebody speaks in good weather or gives up.
async fn swallow(shared: &Shared, near: &mut TcpStream) {
    let mut piece = vec![0; 16 * 1024];
    while let Ok(1..) = near.read(&mut piece).await {
        if !shared.is_bad() {
            return;
        }
    }
}
