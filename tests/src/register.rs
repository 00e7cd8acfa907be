//! A counter that only grows, read at every node by hand: whoever still answers reads after another
//! node acknowledged a higher value is caught.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_wire::client::{Answer, Outcome, Read, Refusal, Request};
use onlyonce_wire::codec;

use crate::cluster::BOUND;
use crate::raw::{RawConnection, RawSession, executed, incr};
use crate::wait::{moment, poll, wait_more};

/// Between two reads at a node that serves none.
const NEXT: Duration = Duration::from_millis(2);

/// The register: one thread increments it, one a node reads it there, as fast as they can.
pub struct Register {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    nodes: Vec<SocketAddr>,
    key: String,
    stop: AtomicBool,
    /// The highest value that an acknowledgement or an answer told of.
    highest: AtomicI64,
    /// Reads that were answered with a value.
    served: AtomicU64,
    violations: Mutex<Vec<String>>,
}

impl Register {
    /// Starts the threads.
    #[must_use]
    pub fn start(nodes: Vec<SocketAddr>, key: &str) -> Self {
        let shared = Arc::new(Shared {
            nodes,
            key: key.to_owned(),
            stop: AtomicBool::new(false),
            highest: AtomicI64::new(0),
            served: AtomicU64::new(0),
            violations: Mutex::default(),
        });
        let writer = Arc::clone(&shared);
        let mut threads = vec![std::thread::spawn(move || writer.write())];
        for &node in &shared.nodes {
            let reader = Arc::clone(&shared);
            threads.push(std::thread::spawn(move || reader.read(node)));
        }
        Self { shared, threads }
    }

    /// The highest value known so far.
    #[must_use]
    pub fn highest(&self) -> i64 {
        self.shared.highest.load(Ordering::SeqCst)
    }

    /// Waits until so many more increments were acknowledged.
    ///
    /// # Panics
    /// When that takes longer than [`BOUND`].
    #[track_caller]
    pub fn progress(&self, increments: u64) {
        let highest = || self.highest().cast_unsigned();
        wait_more("increments of the register", BOUND, increments, highest);
    }

    /// A connection to `node` whose reads can be sent while the node stands still.
    ///
    /// # Panics
    /// When the node cannot be reached.
    #[must_use]
    pub fn early_reader(&self, node: SocketAddr) -> EarlyReader {
        let connection =
            poll(BOUND, || RawConnection::open(node)).expect("the node can be reached");
        EarlyReader { shared: Arc::clone(&self.shared), node, connection, sent: Vec::new() }
    }

    /// Ends the threads.
    ///
    /// # Panics
    /// When a read was stale, or none was answered at all.
    #[track_caller]
    pub fn finish(self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a reader or the writer panicked");
        }
        let violations = self.shared.violations();
        let served = self.shared.served.load(Ordering::SeqCst);
        println!("register {}, {served} reads", self.shared.highest.load(Ordering::SeqCst));
        assert!(violations.is_empty(), "stale reads:\n{}", violations.join("\n"));
        assert!(served > 0, "no read was answered");
    }
}

impl Shared {
    fn violations(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&self) -> Request {
        Request::Read(Read::Get { key: Bytes::copy_from_slice(self.key.as_bytes()) })
    }

    fn write(&self) {
        let session = RawSession::open(&self.nodes);
        // The node that took the last one is asked first: another may stand still.
        let (mut place, mut connection) = (0, None);
        for seq in 1.. {
            let request = session.request(seq, seq, &incr(&self.key));
            let answer = loop {
                if self.stop.load(Ordering::SeqCst) {
                    return;
                }
                match exchange(&mut connection, self.nodes[place], &request) {
                    Some(answer) => break answer,
                    None => place = (place + 1) % self.nodes.len(),
                }
            };
            let reply = codec::decode::<Outcome, 1024>(&executed(answer).0);
            if reply.as_ref().ok() != Some(&Outcome::Integer(seq.cast_signed())) {
                self.violations().push(format!("{reply:?} to increment {seq}"));
            }
            self.highest.fetch_max(seq.cast_signed(), Ordering::SeqCst);
        }
    }

    fn read(&self, node: SocketAddr) {
        let mut connection = None;
        while !self.stop.load(Ordering::SeqCst) {
            let floor = self.highest.load(Ordering::SeqCst);
            match exchange(&mut connection, node, &self.request()) {
                Some(answer) => self.judge(node, floor, answer),
                // Not to take all the processor's time from those that serve.
                None => moment(NEXT),
            }
        }
    }

    /// A read that was sent when `floor` was known must not show less.
    fn judge(&self, node: SocketAddr, floor: i64, answer: Answer) {
        let Answer::Read(Outcome::Value(value)) = answer else { return };
        let text = value.as_deref().map_or("0".into(), String::from_utf8_lossy);
        self.served.fetch_add(1, Ordering::SeqCst);
        match text.parse::<i64>() {
            Ok(value) if value >= floor => {
                self.highest.fetch_max(value, Ordering::SeqCst);
            }
            _ => self.violations().push(format!(
                "{node} answered a read with {text:?}, sent after {floor} was acknowledged"
            )),
        }
    }
}

/// Asks one node; none when another one is to be asked.
fn exchange(
    connection: &mut Option<RawConnection>,
    node: SocketAddr,
    request: &Request,
) -> Option<Answer> {
    if connection.is_none() {
        *connection = RawConnection::open(node).ok();
    }
    match connection.as_mut()?.call(request) {
        Ok(Answer::NotPrimary { .. } | Answer::AskAgain | Answer::Refused(Refusal::Busy(_)))
        | Err(_) => {
            *connection = None;
            None
        }
        Ok(answer) => Some(answer),
    }
}

/// Reads that wait in the sockets of a node that stands still.
pub struct EarlyReader {
    shared: Arc<Shared>,
    node: SocketAddr,
    connection: RawConnection,
    sent: Vec<(onlyonce_wire::CallId, i64)>,
}

impl EarlyReader {
    /// Sends a read and does not wait.
    ///
    /// # Panics
    /// When the connection is gone.
    pub fn send(&mut self) {
        let floor = self.shared.highest.load(Ordering::SeqCst);
        let call = self.connection.send(&self.shared.request()).expect("the socket takes it");
        self.sent.push((call, floor));
    }

    /// Takes the answers, as far as the node gives any. A stale one fails the register at its end.
    /// Returns how many came.
    #[must_use]
    pub fn receive(mut self) -> usize {
        let mut count = 0;
        for (call, floor) in std::mem::take(&mut self.sent) {
            let Ok(answer) = self.connection.receive(call) else { break };
            count += 1;
            self.shared.judge(self.node, floor, answer);
        }
        count
    }
}
