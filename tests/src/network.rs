//! A network that can be broken: proxies on loopback between the nodes of a cluster of two, between
//! each node and the authority, and between clients and nodes.
//!
//! The processes know nothing of it. Each is told to connect to proxies: nodes advertise those in
//! front of their ports, and reach the authority through one of their own. So a link has two ends,
//! and what goes each way can flow, come late, wait, or vanish while the connections stay open.
//!
//! TCP mends what a network loses, so the ways to break it differ:
//! - bytes that [wait](Traffic::Waits) arrive when the link is mended, as TCP sends again what was
//!   lost: late messages, out of another time;
//! - bytes that [vanish](Traffic::Vanishes) never do. The other direction goes on, and nobody is told.
//!   When the link is mended, connections with such a hole end, as nothing can be made of them.
//!
//! Where one direction does not flow, no new connection is made in either (both are needed for that),
//! and no end of a connection is noticed across it.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::client::runtime;
use crate::wait::pass;

/// The most bytes that are carried at once.
const PIECE: usize = 64 << 10;

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// The node at this place of its cluster.
    Node(usize),
    /// The authority.
    Authority,
    /// All clients.
    Clients,
}

/// What becomes of what is sent one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Traffic {
    /// It arrives.
    #[default]
    Flows,
    /// It arrives, but no sooner than this.
    Late(Duration),
    /// It waits until the link is mended.
    Waits,
    /// It never arrives.
    Vanishes,
}

impl Traffic {
    fn passes(self) -> bool {
        matches!(self, Self::Flows | Self::Late(_))
    }
}

/// The proxies, and how each link is.
pub struct Network {
    links: Arc<watch::Sender<Links>>,
    /// Bytes that vanished.
    vanished: Arc<AtomicU64>,
    runtime: Runtime,
}

#[derive(Default)]
struct Links {
    /// By where it goes from and to; what is not named flows.
    traffic: HashMap<(Place, Place), Traffic>,
    /// How often the connections between two places were ended.
    resets: HashMap<(Place, Place), u64>,
}

impl Links {
    fn traffic(&self, from: Place, to: Place) -> Traffic {
        self.traffic.get(&(from, to)).copied().unwrap_or_default()
    }

    fn resets(&self, from: Place, to: Place) -> u64 {
        self.resets.get(&(from, to)).copied().unwrap_or_default()
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Network {
    /// A network in which everything flows.
    ///
    /// # Panics
    /// When the system has no threads left.
    #[must_use]
    pub fn new() -> Self {
        let links = Arc::new(watch::Sender::default());
        Self { links, vanished: Arc::default(), runtime: runtime(2) }
    }

    /// A proxy by which `from` reaches `to`, which listens at `target` or will; returns its address.
    ///
    /// # Panics
    /// When the system has no ports left.
    #[must_use]
    pub fn proxy(&self, from: Place, to: Place, target: SocketAddr) -> SocketAddr {
        let listening = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listener = self.runtime.block_on(listening).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (links, vanished) = (Arc::clone(&self.links), Arc::clone(&self.vanished));
        self.runtime.spawn(async move {
            loop {
                let Ok((accepted, _)) = listener.accept().await else { continue };
                let link =
                    Link { from, to, links: links.subscribe(), vanished: Arc::clone(&vanished) };
                tokio::spawn(link.carry(accepted, target));
            }
        });
        address
    }

    /// From now on this becomes of what `from` sends to `to`.
    pub fn set(&self, from: Place, to: Place, traffic: Traffic) {
        self.links.send_modify(|links| {
            links.traffic.insert((from, to), traffic);
        });
    }

    /// The same in both directions.
    pub fn set_both(&self, one: Place, other: Place, traffic: Traffic) {
        self.links.send_modify(|links| {
            links.traffic.extend([((one, other), traffic), ((other, one), traffic)]);
        });
    }

    /// Everything flows again.
    pub fn mend(&self) {
        self.links.send_modify(|links| links.traffic.clear());
    }

    /// Ends all connections between two places.
    pub fn reset(&self, one: Place, other: Place) {
        self.links.send_modify(|links| {
            for ends in [(one, other), (other, one)] {
                *links.resets.entry(ends).or_default() += 1;
            }
        });
    }

    /// How many bytes vanished so far.
    #[must_use]
    pub fn vanished(&self) -> u64 {
        self.vanished.load(Ordering::Relaxed)
    }
}

/// A connection from one place to another.
#[derive(Clone)]
struct Link {
    from: Place,
    to: Place,
    links: watch::Receiver<Links>,
    vanished: Arc<AtomicU64>,
}

impl Link {
    fn reversed(&self) -> Self {
        Self { from: self.to, to: self.from, ..self.clone() }
    }

    fn traffic(&mut self) -> Traffic {
        self.links.borrow_and_update().traffic(self.from, self.to)
    }

    /// Waits until the links are as wanted; for ever when the network is gone.
    async fn wait(&mut self, wanted: impl FnMut(&Links) -> bool) {
        if self.links.wait_for(wanted).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until what `from` sends, its silence and its end included, gets to `to`.
    async fn passes(&mut self) {
        let (from, to) = (self.from, self.to);
        self.wait(|links| links.traffic(from, to).passes()).await;
    }

    async fn carry(mut self, accepted: TcpStream, target: SocketAddr) {
        let (from, to) = (self.from, self.to);
        let resets = self.links.borrow().resets(from, to);
        let mut watching = self.clone();
        let carried = async {
            let both =
                |links: &Links| [(from, to), (to, from)].map(|(a, b)| links.traffic(a, b).passes());
            self.wait(|links| both(links) == [true, true]).await;
            let Ok(connected) = TcpStream::connect(target).await else { return };
            if accepted.set_nodelay(true).and(connected.set_nodelay(true)).is_err() {
                return;
            }
            let (there, back) = (self.clone(), self.reversed());
            let (from_read, from_write) = accepted.into_split();
            let (to_read, to_write) = connected.into_split();
            tokio::select! {
                () = there.pump(from_read, to_write) => {}
                () = back.pump(to_read, from_write) => {}
            }
        };
        tokio::select! {
            () = carried => {}
            () = watching.wait(|links| links.resets(from, to) != resets) => {}
        }
    }

    /// Carries what goes one way, until the connection is to end.
    async fn pump(mut self, mut read: OwnedReadHalf, mut write: OwnedWriteHalf) {
        let mut piece = vec![0; PIECE];
        let mut has_hole = false;
        loop {
            let traffic = self.traffic();
            if traffic == Traffic::Waits {
                self.passes().await;
            } else if has_hole && traffic.passes() {
                return;
            }
            let bytes = tokio::select! {
                changed = self.links.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                bytes = read.read(&mut piece) => bytes.unwrap_or(0),
            };
            if bytes == 0 {
                // It ended; that is news, which travels like anything else.
                return self.passes().await;
            }
            match self.traffic() {
                Traffic::Flows => {}
                Traffic::Late(delay) => pass(delay).await,
                Traffic::Waits => self.passes().await,
                Traffic::Vanishes => {
                    has_hole = true;
                    self.vanished.fetch_add(bytes as u64, Ordering::Relaxed);
                    continue;
                }
            }
            if write.write_all(&piece[..bytes]).await.is_err() {
                // The other side is gone; that is news in the other direction.
                return self.reversed().passes().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;
    use crate::cluster::BOUND;
    use crate::wait::wait_for;

    const ONE: Place = Place::Node(0);
    const OTHER: Place = Place::Node(1);

    /// A connection through a proxy: both of its ends.
    fn connect(network: &Network) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = network.proxy(ONE, OTHER, listener.local_addr().expect("bound"));
        let dialled = TcpStream::connect(address).expect("the proxy listens");
        let (accepted, _) = listener.accept().expect("the proxy connects");
        for stream in [&dialled, &accepted] {
            stream.set_read_timeout(Some(BOUND)).expect("a limit");
        }
        (dialled, accepted)
    }

    #[track_caller]
    fn send(from: &mut TcpStream, text: &str) {
        from.write_all(text.as_bytes()).expect("sent");
    }

    #[track_caller]
    fn expect(at: &mut TcpStream, text: &str) {
        let mut bytes = vec![0; text.len()];
        at.read_exact(&mut bytes).expect("it arrives");
        assert_eq!(String::from_utf8_lossy(&bytes), text);
    }

    /// The end of the connection is seen, and nothing before it.
    #[track_caller]
    fn expect_end(at: &mut TcpStream) {
        let mut bytes = [0];
        assert!(matches!(at.read(&mut bytes), Ok(0) | Err(_)), "{bytes:?} arrived");
    }

    /// What vanishes never arrives, the other direction goes on, and mending ends the connection.
    #[test]
    fn one_direction_vanishes() {
        let network = Network::new();
        let (mut one, mut other) = connect(&network);
        send(&mut one, "before");
        expect(&mut other, "before");
        network.set(ONE, OTHER, Traffic::Vanishes);
        send(&mut one, "lost");
        wait_for("bytes to vanish", BOUND, || match network.vanished() {
            4 => Ok(()),
            other => Err(format!("{other} did")),
        });
        send(&mut other, "still");
        expect(&mut one, "still");
        network.mend();
        expect_end(&mut other);
        expect_end(&mut one);
    }

    /// What waits arrives once the link is mended, the end of the connection too.
    #[test]
    fn what_waits_arrives() {
        let network = Network::new();
        let (mut one, mut other) = connect(&network);
        network.set_both(ONE, OTHER, Traffic::Waits);
        send(&mut one, "patience");
        one.shutdown(Shutdown::Write).expect("shut");
        other.set_read_timeout(Some(Duration::from_millis(50))).expect("a limit");
        let early = other.read(&mut [0]).expect_err("nothing may arrive");
        assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock);
        network.mend();
        other.set_read_timeout(Some(BOUND)).expect("a limit");
        expect(&mut other, "patience");
        expect_end(&mut other);
    }

    /// What is late arrives, and no sooner.
    #[test]
    fn what_is_late_arrives() {
        let network = Network::new();
        let (mut one, mut other) = connect(&network);
        let delay = Duration::from_millis(50);
        network.set(ONE, OTHER, Traffic::Late(delay));
        let sent = std::time::Instant::now();
        send(&mut one, "late");
        expect(&mut other, "late");
        assert!(sent.elapsed() >= delay, "{:?}", sent.elapsed());
    }

    /// Where one direction is cut no connection is made, until it is mended.
    #[test]
    fn no_connection_is_made_across_a_cut() {
        let network = Network::new();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let address = network.proxy(ONE, OTHER, listener.local_addr().expect("bound"));
        network.set(OTHER, ONE, Traffic::Vanishes);
        let mut dialled = TcpStream::connect(address).expect("the proxy listens");
        send(&mut dialled, "hello");
        // A second one through a link that flows: by then the first was looked at.
        let (mut one, mut other) = {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
            let through = listener.local_addr().expect("bound");
            let address = network.proxy(ONE, Place::Authority, through);
            let dialled = TcpStream::connect(address).expect("the proxy listens");
            (dialled, listener.accept().expect("the proxy connects").0)
        };
        send(&mut one, "flows");
        expect(&mut other, "flows");
        assert!(listener.accept().is_err(), "a connection was made");
        network.mend();
        let mut accepted = wait_for("the connection", BOUND, || {
            listener.accept().map(|(stream, _)| stream).map_err(|error| error.to_string())
        });
        accepted.set_nonblocking(false).expect("a socket that blocks");
        expect(&mut accepted, "hello");
    }

    /// A reset ends the connections between two places.
    #[test]
    fn a_reset_ends_connections() {
        let network = Network::new();
        let (mut one, mut other) = connect(&network);
        network.reset(OTHER, ONE);
        expect_end(&mut one);
        expect_end(&mut other);
    }
}
