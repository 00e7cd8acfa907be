//! Ports that a process gets back after a restart.
//!
//! A port that the system chose (port 0) lies in the range from which it also takes the ports of
//! outgoing connections: while its owner is down, any connection of another process may be given
//! it. So what must listen at the same address again is given a free port below that range.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

use rand::Rng;

const LOWEST: u16 = 10_000;

/// The ports that this process has given away.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A free loopback address, below the range of outgoing connections and never given twice.
///
/// # Panics
/// When none is found.
#[must_use]
pub fn free_address() -> SocketAddr {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..1_000 {
        let port = rand::rng().random_range(LOWEST..first_outgoing_port());
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() && given.insert(port) {
            return address;
        }
    }
    panic!("no free port between {LOWEST} and {}", first_outgoing_port());
}

fn first_outgoing_port() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let first = range.ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
    first.filter(|first| *first > LOWEST).unwrap_or(32_768)
}
