//! Loopback ports that stay reserved.
//!
//! A port from the kernel (bind to port 0) is in the range of outgoing connections. While its
//! server is down, another connection may take the port; even a client that keeps dialing it can
//! end up connected to itself. Tests restart servers on the same port, so ports are chosen below
//! that range and reserved in this process.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::random::Random;

const LOWEST: u16 = 15_000;
const TRIES: usize = 1_000;

/// A loopback address; nothing else in this process uses its port until this is dropped.
#[derive(Debug)]
pub struct Reserved(SocketAddr);

impl Reserved {
    /// The address.
    pub fn address(&self) -> SocketAddr {
        self.0
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        reserved().taken.remove(&self.0.port());
    }
}

/// Reserves a free port.
pub fn reserve() -> Reserved {
    let mut reserved = reserved();
    let ports = u64::from(first_ephemeral() - LOWEST);
    for _ in 0..TRIES {
        let port = LOWEST + u16::try_from(reserved.random.below(ports)).expect("below a u16");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if !reserved.taken.contains(&port) && TcpListener::bind(address).is_ok() {
            reserved.taken.insert(port);
            return Reserved(address);
        }
    }
    panic!("no free port found in {TRIES} tries");
}

/// Reserves two free, consecutive ports, as nsqd's are.
pub fn reserve_two() -> (Reserved, Reserved) {
    for _ in 0..TRIES {
        let first = reserve();
        let next = SocketAddr::from((Ipv4Addr::LOCALHOST, first.0.port() + 1));
        let mut reserved = reserved();
        if TcpListener::bind(next).is_ok() && reserved.taken.insert(next.port()) {
            return (first, Reserved(next));
        }
    }
    panic!("no two free ports found in {TRIES} tries");
}

struct Reservations {
    taken: HashSet<u16>,
    random: Random,
}

fn reserved() -> MutexGuard<'static, Reservations> {
    static RESERVED: OnceLock<Mutex<Reservations>> = OnceLock::new();
    let new = || {
        // Test programs that run in parallel should not try the same ports in the same order.
        let time =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        let random = Random::new(time ^ u64::from(std::process::id()) << 32);
        Mutex::new(Reservations { taken: HashSet::new(), random })
    };
    RESERVED.get_or_init(new).lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Returns the first port of outgoing connections.
fn first_ephemeral() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|&first| first > LOWEST + 1_000)
        .unwrap_or(32_768)
}
