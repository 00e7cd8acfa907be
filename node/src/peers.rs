//! Messages between nodes: one connection for each direction, carrying only its dialler's messages.
//!
//! ```text
//! dialler                                   listener
//! preamble, PeerHello  ───────────────────▶  checks cluster and incarnation
//!     checks that it reached that store  ◀── preamble, PeerHello
//! PeerMessage, PeerMessage, ...  ─────────▶  events of the core
//! ```
//! Messages may be lost: the core repeats what matters, and `PeerConnected` tells it when to begin.
//! So a queue is bounded by dropping the newest, and is emptied when its connection is lost: what
//! waited in it is stale by the time there is another.
//! Heartbeats and echoes overtake whatever waits, or megabytes of records would cost the lease.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use onlyonce_replica::{Event, PeerHello, PeerMessage};
use onlyonce_storage::failpoints::{Point, failpoint};
use onlyonce_wire::StoreId;
use onlyonce_wire::authority::Member;
use onlyonce_wire::codec;
use onlyonce_wire::frame::{Port, preamble, put_frame};
use onlyonce_wire::limits::{FIRST_FRAME_TIMEOUT, NAME_BYTES_MAX, PEER_FRAME_BYTES_MAX};
use onlyonce_wire::status::NodeStatus;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::core_thread::CoreQueue;
use crate::counters::Counters;
use crate::faults::Faults;
use crate::frames::{FrameReader, ReadError};
use crate::rate_limit::RateLimit;

/// The most bytes that wait for one peer.
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// What a message takes beside its records, and a record beside its bytes.
const MESSAGE_BYTES: usize = 512;
const RECORD_BYTES: usize = 32;
/// The most stores that are known at once: replicas, learners, and those they replaced.
const PEERS_MAX: usize = 1_024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a peer may take to accept one write, or the network to acknowledge it.
const WRITE_STALL: Duration = Duration::from_secs(5);
/// How long a dialler may say nothing: a primary sends heartbeats many times a second.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How much is encoded for one write: what a heartbeat waits for at most.
const WRITE_BYTES: usize = 256 << 10;
const BACKOFF_MIN: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// A connection that lived this long was a good one: the next failure begins a new backoff.
const GOOD_CONNECTION: Duration = Duration::from_secs(1);
const WARN_INTERVAL: Duration = Duration::from_secs(5);

// A message of the longest frame fits an empty queue.
const _: () = assert!(QUEUE_BYTES_MAX >= PEER_FRAME_BYTES_MAX + MESSAGE_BYTES, "one frame");

/// The other nodes, as this one knows them.
pub struct Peers {
    me: Member,
    alone: bool,
    known: RwLock<HashMap<StoreId, Arc<Peer>>>,
    core: Arc<CoreQueue>,
    status: watch::Receiver<NodeStatus>,
    counters: Arc<Counters>,
    faults: Arc<Faults>,
    runtime: Handle,
    warnings: RateLimit,
}

/// One other node.
struct Peer {
    store: StoreId,
    addresses: Mutex<Addresses>,
    queue: Mutex<Queue>,
    wake: Notify,
}

/// Where a peer is said to be. What it says itself is newer than what the register says of it.
struct Addresses {
    told: Option<Member>,
    heard: Option<Member>,
}

impl Addresses {
    fn name(&self) -> &str {
        self.heard.as_ref().or(self.told.as_ref()).map_or("?", |member| member.name.as_str())
    }

    /// The address for the `attempt`-th attempt to connect.
    fn pick(&self, attempt: usize) -> Option<String> {
        let mut all: Vec<_> = self.heard.iter().chain(&self.told).collect();
        all.dedup_by(|one, other| one.peer_address == other.peer_address);
        let count = all.len().max(1);
        all.get(attempt % count).map(|member| member.peer_address.clone())
    }
}

#[derive(Default)]
struct Queue {
    urgent: VecDeque<PeerMessage>,
    other: VecDeque<PeerMessage>,
    bytes: usize,
}

impl Queue {
    fn push(&mut self, message: PeerMessage) -> bool {
        let bytes = message_bytes(&message);
        if self.bytes + bytes > QUEUE_BYTES_MAX {
            return false;
        }
        self.bytes += bytes;
        match &message {
            PeerMessage::Heartbeat { .. } | PeerMessage::Echo { .. } => {
                self.urgent.push_back(message);
            }
            PeerMessage::Append { .. }
            | PeerMessage::AppendOk { .. }
            | PeerMessage::AppendMismatch { .. }
            | PeerMessage::HoldsCommitted { .. }
            | PeerMessage::Differs { .. }
            | PeerMessage::Join { .. }
            | PeerMessage::FetchTail { .. }
            | PeerMessage::Tail { .. }
            | PeerMessage::Snapshot { .. }
            | PeerMessage::SnapshotOk { .. }
            | PeerMessage::NewerView { .. } => self.other.push_back(message),
        }
        true
    }

    fn pop(&mut self) -> Option<PeerMessage> {
        let message = self.urgent.pop_front().or_else(|| self.other.pop_front())?;
        self.bytes -= message_bytes(&message);
        Some(message)
    }
}

/// About what a message takes in memory and on the wire.
fn message_bytes(message: &PeerMessage) -> usize {
    let records = match message {
        PeerMessage::Append { records, .. } | PeerMessage::Tail { records, .. } => {
            records.iter().map(|record| record.len() + RECORD_BYTES).sum()
        }
        PeerMessage::Snapshot { piece, .. } => piece.bytes(),
        PeerMessage::Heartbeat { .. }
        | PeerMessage::Echo { .. }
        | PeerMessage::SnapshotOk { .. }
        | PeerMessage::AppendOk { .. }
        | PeerMessage::AppendMismatch { .. }
        | PeerMessage::HoldsCommitted { .. }
        | PeerMessage::Differs { .. }
        | PeerMessage::Join { .. }
        | PeerMessage::FetchTail { .. }
        | PeerMessage::NewerView { .. } => 0,
    };
    MESSAGE_BYTES + records
}

impl Peer {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn addresses(&self) -> MutexGuard<'_, Addresses> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self) -> String {
        self.addresses().name().to_owned()
    }

    fn is_idle(&self) -> bool {
        let queue = self.queue();
        queue.urgent.is_empty() && queue.other.is_empty()
    }
}

impl Peers {
    /// Nobody is known yet; `me` is who this node says it is, `alone` that it has no authority.
    pub fn new(
        me: Member,
        alone: bool,
        core: Arc<CoreQueue>,
        status: watch::Receiver<NodeStatus>,
        counters: Arc<Counters>,
        faults: Arc<Faults>,
        runtime: Handle,
    ) -> Self {
        let (known, warnings) = (RwLock::default(), RateLimit::new(WARN_INTERVAL));
        Self { me, alone, known, core, status, counters, faults, runtime, warnings }
    }

    /// From now on `member` can be sent to.
    pub fn know(self: &Arc<Self>, member: Member) {
        let Some(peer) = self.peer(member.store) else { return };
        let (store, same_name) = (member.store, member.name == self.me.name);
        let known = peer.addresses().told.replace(member).is_some();
        if same_name && !known {
            tracing::warn!(
                "another store of this cluster, {store}, has this node's name {} too: give each \
                 node a name of its own (unless that is the store that this node had before)",
                self.me.name
            );
        }
    }

    /// Whether there can be another node called `name`: a node alone has no peers.
    pub fn possible(&self, name: &str) -> bool {
        !self.alone && name != self.me.name
    }

    /// Whether a node called `name` is known.
    pub fn knows(&self, name: &str) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().any(|peer| peer.addresses().name() == name)
    }

    /// Queues a message for a peer that is known. Never waits; may lose it.
    pub fn send(&self, to: StoreId, message: PeerMessage) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let Some(peer) = known.get(&to) else {
            tracing::debug!("no address is known of store {to}: a message to it is dropped");
            self.counters.peer_messages_dropped.add(1);
            return;
        };
        if self.faults.cut(peer.addresses().name()) || !peer.queue().push(message) {
            self.counters.peer_messages_dropped.add(1);
            return;
        }
        peer.wake.notify_one();
    }

    fn peer(self: &Arc<Self>, store: StoreId) -> Option<Arc<Peer>> {
        if store == self.me.store {
            return None;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = known.get(&store) {
            return Some(Arc::clone(peer));
        }
        if known.len() == PEERS_MAX {
            tracing::warn!("over {PEERS_MAX} other stores are known: store {store} is ignored");
            return None;
        }
        let peer = Arc::new(Peer {
            store,
            addresses: Mutex::new(Addresses { told: None, heard: None }),
            queue: Mutex::default(),
            wake: Notify::new(),
        });
        known.insert(store, Arc::clone(&peer));
        self.runtime.spawn(Arc::clone(self).deliver(Arc::clone(&peer)));
        Some(peer)
    }

    fn hello(&self) -> Option<PeerHello> {
        let status = self.status.borrow();
        let (cluster, incarnation) = (status.cluster?, status.incarnation);
        Some(PeerHello { cluster, incarnation, member: self.me.clone() })
    }

    /// Connects whenever there is something to send, and sends it.
    async fn deliver(self: Arc<Self>, peer: Arc<Peer>) {
        let mut failures = 0;
        loop {
            while peer.is_idle() {
                peer.wake.notified().await;
            }
            let ended = match self.dial(&peer, failures).await {
                Ok((address, stream)) => {
                    tracing::info!("connected to {} at {address}", peer.name());
                    let since = Instant::now();
                    self.core.send(Event::PeerConnected(peer.store));
                    let ended = self.write(&peer, stream).await;
                    if since.elapsed() >= GOOD_CONNECTION {
                        failures = 0;
                    }
                    format!("the connection to {} at {address} ended: {ended}", peer.name())
                }
                Err(error) => format!("cannot reach {}: {error}", peer.name()),
            };
            if self.warnings.pass() {
                tracing::warn!("{ended}");
            } else {
                tracing::debug!("{ended}");
            }
            *peer.queue() = Queue::default();
            let ceiling = BACKOFF_MIN.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX);
            failures += 1;
            tokio::time::sleep(ceiling.mul_f64(rand::random_range(0.5..1.0))).await;
        }
    }

    /// Connects to `peer` and makes sure that it is who is meant.
    async fn dial(&self, peer: &Peer, attempt: usize) -> Result<(String, Stream), String> {
        let (address, name) = {
            let addresses = peer.addresses();
            (addresses.pick(attempt).ok_or("no address is known")?, addresses.name().to_owned())
        };
        if self.faults.cut(&name) {
            return Err("cut off by POST /fault/partition".to_owned());
        }
        let mine = self.hello().ok_or("this node does not know its cluster yet")?;
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(&address)).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(format!("{address}: {error}")),
            Err(_) => return Err(format!("{address}: no answer within {CONNECT_TIMEOUT:?}")),
        };
        let greeting = async {
            tune(&stream)?;
            let (read, mut write) = stream.into_split();
            write.write_all(&opening(&mine)).await?;
            let mut reader = FrameReader::new(read, PEER_FRAME_BYTES_MAX);
            let theirs = read_hello(&mut reader).await?;
            Ok::<_, PeerError>(((reader, write), theirs))
        };
        let (stream, theirs) = match timeout(HELLO_TIMEOUT, greeting).await {
            Ok(greeted) => greeted.map_err(|error| format!("{address}: {error}"))?,
            Err(_) => return Err(format!("{address}: no hello within {HELLO_TIMEOUT:?}")),
        };
        compare(&mine, &theirs).map_err(|error| format!("{address}: {error}"))?;
        if theirs.member.store != peer.store {
            return Err(format!(
                "{address} is {} with store {} now, and not store {}",
                theirs.member.name, theirs.member.store, peer.store
            ));
        }
        Ok((address, stream))
    }

    /// Sends what is queued until the connection ends; says why it did.
    async fn write(&self, peer: &Peer, (mut reader, mut stream): Stream) -> String {
        let mut buffer = BytesMut::new();
        loop {
            self.fill(peer, &mut buffer);
            if !buffer.is_empty() {
                match timeout(WRITE_STALL, stream.write_all(&buffer)).await {
                    Ok(Ok(())) => self.counters.peer_bytes_sent.add(buffer.len() as u64),
                    Ok(Err(error)) => return error.to_string(),
                    Err(_) => return format!("it took nothing for {WRITE_STALL:?}"),
                }
                failpoint(Point::PeerWritten);
                buffer.clear();
                continue;
            }
            tokio::select! {
                () = peer.wake.notified() => {}
                read = reader.frame() => return match read {
                    Ok(None) => "it closed the connection".to_owned(),
                    Ok(Some(_)) => "it spoke where it should only listen".to_owned(),
                    Err(error) => error.to_string(),
                },
            }
        }
    }

    /// Encodes what one write carries: what is urgent, then what fits.
    fn fill(&self, peer: &Peer, buffer: &mut BytesMut) {
        let cut = self.faults.cut(peer.addresses().name());
        while buffer.len() < WRITE_BYTES {
            let Some(message) = peer.queue().pop() else { break };
            let payload = codec::encode(&message);
            if cut || payload.len() > PEER_FRAME_BYTES_MAX {
                if !cut {
                    tracing::error!("a peer message of {} bytes is dropped", payload.len());
                }
                self.counters.peer_messages_dropped.add(1);
                continue;
            }
            put_frame(buffer, &payload);
        }
    }

    /// Accepts other nodes' connections for ever.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let room = Arc::new(tokio::sync::Semaphore::new(PEERS_MAX));
        loop {
            let place = Arc::clone(&room).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, address)) => {
                    let peers = Arc::clone(&self);
                    tokio::spawn(async move {
                        peers.listen(stream, address).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!("cannot accept a peer: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn listen(self: Arc<Self>, stream: TcpStream, address: SocketAddr) {
        let Err(error) = self.hear(stream).await else { return };
        if self.warnings.pass() {
            tracing::warn!("closed the peer connection from {address}: {error}");
        } else {
            tracing::debug!("closed the peer connection from {address}: {error}");
        }
    }

    /// Takes a dialler's messages until it leaves.
    async fn hear(self: &Arc<Self>, stream: TcpStream) -> Result<(), PeerError> {
        tune(&stream)?;
        let (read, mut write) = stream.into_split();
        let mut reader = FrameReader::new(read, PEER_FRAME_BYTES_MAX);
        let Ok(theirs) = timeout(FIRST_FRAME_TIMEOUT, read_hello(&mut reader)).await else {
            return Err(PeerError::NoHello);
        };
        let theirs = match theirs {
            Err(error) => {
                let _ = write.write_all(&preamble(Port::Peer)).await;
                reader.linger().await;
                return Err(error);
            }
            Ok(theirs) => theirs,
        };
        let mine = self.hello().ok_or(PeerError::NoCluster)?;
        write.write_all(&opening(&mine)).await?;
        compare(&mine, &theirs)?;
        let from = theirs.member.store;
        let name = theirs.member.name.clone();
        if !self.faults.cut(&name)
            && let Some(peer) = self.peer(from)
        {
            peer.addresses().heard = Some(theirs.member);
        }
        loop {
            let Ok(frame) = timeout(SILENCE_MAX, reader.frame()).await else {
                return Err(PeerError::Silent);
            };
            let Some(payload) = frame? else { return Ok(()) };
            self.counters.peer_bytes_received.add(payload.len() as u64);
            if self.faults.cut(&name) {
                continue;
            }
            let message = codec::decode::<PeerMessage, PEER_FRAME_BYTES_MAX>(&payload)?;
            let bytes = payload.len();
            self.core.send_peer(Event::Peer { from, message }, bytes).await;
        }
    }
}

type Stream = (FrameReader<OwnedReadHalf>, OwnedWriteHalf);

/// Why a connection with a peer was ended by this side.
#[derive(Debug, thiserror::Error)]
enum PeerError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
    #[error("no hello within {FIRST_FRAME_TIMEOUT:?}")]
    NoHello,
    #[error("it said nothing for {SILENCE_MAX:?}")]
    Silent,
    #[error("this node does not know its cluster yet")]
    NoCluster,
    #[error("it closed the connection before its hello (it may not know its cluster yet)")]
    Closed,
    #[error("its name or an address is longer than {NAME_BYTES_MAX} bytes")]
    LongName,
    #[error("it says that it is this node's own store {0}: was a data folder copied?")]
    Myself(StoreId),
    #[error("{name} is of cluster {theirs}, and this node of cluster {mine}")]
    OtherCluster { name: String, mine: onlyonce_wire::ClusterId, theirs: onlyonce_wire::ClusterId },
    #[error("{name} is in incarnation {theirs}, and this node in incarnation {mine}")]
    OtherIncarnation {
        name: String,
        mine: onlyonce_wire::Incarnation,
        theirs: onlyonce_wire::Incarnation,
    },
}

/// Checks that two nodes belong together.
fn compare(mine: &PeerHello, theirs: &PeerHello) -> Result<(), PeerError> {
    let name = theirs.member.name.clone();
    if theirs.cluster != mine.cluster {
        let (mine, theirs) = (mine.cluster, theirs.cluster);
        return Err(PeerError::OtherCluster { name, mine, theirs });
    }
    if theirs.incarnation != mine.incarnation {
        let (mine, theirs) = (mine.incarnation, theirs.incarnation);
        return Err(PeerError::OtherIncarnation { name, mine, theirs });
    }
    if theirs.member.store == mine.member.store {
        return Err(PeerError::Myself(mine.member.store));
    }
    Ok(())
}

fn opening(hello: &PeerHello) -> BytesMut {
    let mut bytes = BytesMut::from(&preamble(Port::Peer)[..]);
    put_frame(&mut bytes, &codec::encode(hello));
    bytes
}

async fn read_hello(reader: &mut FrameReader<OwnedReadHalf>) -> Result<PeerHello, PeerError> {
    reader.preamble(Port::Peer).await?;
    let payload: Bytes = reader.frame().await?.ok_or(PeerError::Closed)?;
    let hello = codec::decode::<PeerHello, PEER_FRAME_BYTES_MAX>(&payload)?;
    let Member { name, client_address, peer_address, .. } = &hello.member;
    if [name, client_address, peer_address].iter().any(|label| label.len() > NAME_BYTES_MAX) {
        return Err(PeerError::LongName);
    }
    Ok(hello)
}

fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    // Without it, a healed partition would wait for the kernel's own, ever longer, retries.
    let stall_ms = WRITE_STALL.as_millis() as u32;
    rustix::net::sockopt::set_tcp_user_timeout(stream, stall_ms)?;
    Ok(())
}
