//! Ports that keep their meaning while nobody listens on them.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Below the range from which the system takes ports for outgoing connections: one of those could sit on the port of
/// a program that is being restarted.
const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;

/// A port of the loopback interface that nobody listens on now, and that this process gives away once.
pub fn free() -> SocketAddr {
    // Test processes that run beside each other begin at different places; by chance, since in namespaces of their own
    // all of them have the same process id.
    static NEXT: LazyLock<AtomicU64> =
        LazyLock::new(|| AtomicU64::new(RandomState::new().hash_one(0_u8) >> 1));
    loop {
        let step = u16::try_from(NEXT.fetch_add(1, Ordering::Relaxed) % u64::from(COUNT)).unwrap_or_default();
        let port = FIRST + step;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
