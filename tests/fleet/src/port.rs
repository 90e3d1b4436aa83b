//! Ports that keep their meaning while nobody listens on them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which the system takes ports for outgoing connections: one of those could sit on the port of
/// a program that is being restarted.
const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;

/// A port of the loopback interface that nobody listens on now, and that this process gives away once.
pub fn free() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes that run beside each other begin at different places.
    let begin = u16::try_from(std::process::id().wrapping_mul(7919) % u32::from(COUNT)).unwrap_or_default();
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (begin.wrapping_add(step)) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
