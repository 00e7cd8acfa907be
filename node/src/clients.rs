//! The client port: connections, their requests to the core, and the core's answers back.
//!
//! A connection is two tasks. The reader checks and queues requests; the writer sends the answers
//! that are ready in one write, in whatever order they came. Between core and writer stands an
//! [`Outbox`] that never makes the core wait:
//!
//! - A connection whose answers wait, or whose outstanding calls are many, is not read from.
//! - An answer that finds its outbox over [`OUTBOX_BYTES_MAX`], or all outboxes together over
//!   [`ANSWER_BYTES_MAX`], becomes `AskAgain`: honest for reads and executed requests alike.
//! - A client that takes nothing for [`WRITE_STALL`] is disconnected.
//!
//! The node itself never repeats a request, and never drops one that the core has taken.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use onlyonce_replica::{Event, ReplyTo};
use onlyonce_storage::failpoints::{Point, failpoint};
use onlyonce_wire::CallId;
use onlyonce_wire::client::{
    Answer, ClientFrame, Goodbye, Hello, Limit, Refusal, ServerFrame, Welcome,
};
use onlyonce_wire::codec;
use onlyonce_wire::frame::{Port, preamble, put_frame};
use onlyonce_wire::limits::{
    CLIENT_FRAME_BYTES_MAX, CONNECTIONS_MAX, FIRST_FRAME_TIMEOUT, IDLE_TIMEOUT,
};
use onlyonce_wire::status::NodeStatus;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::core_thread::CoreQueue;
use crate::counters::Counters;
use crate::frames::{FrameReader, ReadError};
use crate::rate_limit::RateLimit;
use crate::warm::Warmer;

/// The most bytes of answers that wait on one connection.
const OUTBOX_BYTES_MAX: usize = 32 << 20;
/// The most bytes of answers that wait on all connections together.
const ANSWER_BYTES_MAX: usize = 512 << 20;
/// The most calls of one connection that are not answered and written yet.
const CALLS_MAX: usize = 8_192;
/// The most bytes in one write.
const WRITE_BYTES: usize = 256 << 10;
/// How long a client may take to accept one write.
const WRITE_STALL: Duration = Duration::from_secs(30);

/// What the client port needs of the node.
pub struct Clients {
    pub connections: Arc<Connections>,
    pub core: Arc<CoreQueue>,
    pub counters: Arc<Counters>,
    pub status: watch::Receiver<NodeStatus>,
    pub session_idle: Duration,
    pub key_retention: Duration,
    pub warmer: Warmer,
    pub refusals: RateLimit,
}

/// Every open connection, for the core's answers.
pub struct Connections {
    open: RwLock<HashMap<u64, Arc<Outbox>>>,
    next: AtomicU64,
    counters: Arc<Counters>,
    answer_bytes: Arc<AtomicUsize>,
}

impl Connections {
    /// None yet.
    pub fn new(counters: Arc<Counters>) -> Self {
        Self {
            open: RwLock::default(),
            next: AtomicU64::new(1),
            counters,
            answer_bytes: Arc::default(),
        }
    }

    /// Hands an answer to its connection, if that is still there. Never waits.
    pub fn reply(&self, to: ReplyTo, answer: Answer) {
        self.counters.replies.add(1);
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(outbox) = open.get(&to.connection) {
            outbox.answer(to.call, answer);
        }
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.open.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn add(self: &Arc<Self>) -> Registered {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let outbox = Arc::new(Outbox {
            queue: Mutex::default(),
            wake: Notify::new(),
            room: Notify::new(),
            total_bytes: Arc::clone(&self.answer_bytes),
        });
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.insert(number, Arc::clone(&outbox));
        self.counters.connections_accepted.add(1);
        Registered { connections: Arc::clone(self), number, outbox }
    }
}

/// A connection's place among the open ones, until dropped.
struct Registered {
    connections: Arc<Connections>,
    number: u64,
    outbox: Arc<Outbox>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut open = self.connections.open.write().unwrap_or_else(PoisonError::into_inner);
        open.remove(&self.number);
    }
}

/// Answers on their way to one client.
struct Outbox {
    queue: Mutex<OutboxQueue>,
    /// There is something to write.
    wake: Notify,
    /// A call was answered, or answers were written.
    room: Notify,
    total_bytes: Arc<AtomicUsize>,
}

#[derive(Default)]
struct OutboxQueue {
    frames: Vec<(ServerFrame, usize)>,
    /// Of `frames`, and of what the writer has taken but not written.
    bytes: usize,
    /// As `bytes`, in frames.
    unwritten: usize,
    /// Calls that the core has not answered.
    outstanding: usize,
    /// Nothing follows the frames that are queued.
    closed: bool,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, OutboxQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, call: CallId, answer: Answer) {
        let mut queue = self.lock();
        let bytes = answer.bytes();
        let full = queue.bytes + bytes > OUTBOX_BYTES_MAX
            || self.total_bytes.load(Ordering::Relaxed) + bytes > ANSWER_BYTES_MAX;
        let (answer, bytes) =
            if full { (Answer::AskAgain, Answer::BYTES_MIN) } else { (answer, bytes) };
        queue.outstanding = queue.outstanding.saturating_sub(1);
        self.put(queue, ServerFrame::Reply { call, answer }, bytes);
        self.room.notify_one();
    }

    fn say(&self, frame: ServerFrame) {
        self.put(self.lock(), frame, Answer::BYTES_MIN);
    }

    fn put(&self, mut queue: MutexGuard<'_, OutboxQueue>, frame: ServerFrame, bytes: usize) {
        if queue.closed {
            return;
        }
        queue.bytes += bytes;
        queue.unwritten += 1;
        queue.frames.push((frame, bytes));
        drop(queue);
        self.total_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// Nothing follows what is queued; with a last word, if there is one.
    fn close(&self, last: Option<Goodbye>) {
        if let Some(goodbye) = last {
            self.say(ServerFrame::Goodbye(goodbye));
        }
        self.lock().closed = true;
        self.wake.notify_one();
    }

    fn written(&self, frames: usize, bytes: usize) {
        let mut queue = self.lock();
        queue.bytes -= bytes;
        queue.unwritten -= frames;
        drop(queue);
        self.total_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.room.notify_one();
    }

    fn outstanding(&self) -> usize {
        self.lock().outstanding
    }

    /// Waits until another call may be taken.
    async fn has_room(&self) {
        loop {
            {
                let queue = self.lock();
                let calls = queue.outstanding + queue.unwritten;
                if queue.closed || (calls < CALLS_MAX && queue.bytes < OUTBOX_BYTES_MAX / 2) {
                    return;
                }
            }
            self.room.notified().await;
        }
    }

    /// Writes what is queued until nothing follows or the client is gone.
    async fn write_to(&self, mut stream: OwnedWriteHalf) {
        let mut buffer = BytesMut::from(&preamble(Port::Client)[..]);
        loop {
            let (frames, closed) = {
                let mut queue = self.lock();
                (std::mem::take(&mut queue.frames), queue.closed)
            };
            let (count, bytes) = (frames.len(), frames.iter().map(|(_, bytes)| bytes).sum());
            let mut written = Ok(());
            for (frame, _) in frames {
                put_frame(&mut buffer, &codec::encode(&frame));
                if buffer.len() >= WRITE_BYTES {
                    written = written.and(write(&mut stream, &mut buffer).await);
                }
            }
            let written = written.and(write(&mut stream, &mut buffer).await);
            if count > 0 {
                failpoint(Point::ReplyWritten);
            }
            self.written(count, bytes);
            if written.is_err() || closed {
                self.lock().closed = true;
                let _ = stream.shutdown().await;
                return;
            }
            self.wake.notified().await;
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let bytes = self.lock().bytes;
        self.total_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

async fn write(stream: &mut OwnedWriteHalf, buffer: &mut BytesMut) -> Result<(), ()> {
    for chunk in buffer.chunks(WRITE_BYTES) {
        match timeout(WRITE_STALL, stream.write_all(chunk)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Err(()),
        }
    }
    buffer.clear();
    Ok(())
}

/// Why a connection ended.
enum End {
    /// The client left, or fell silent.
    Gone,
    /// It gets a last word.
    Goodbye(Goodbye),
}

impl From<ReadError> for End {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Frame(error) => Self::Goodbye(Goodbye::Protocol(error.to_string())),
            ReadError::Torn | ReadError::Silent | ReadError::Io(_) => Self::Gone,
        }
    }
}

/// What a client did that the operator should know of, when it is told `goodbye`.
fn refusal(goodbye: &Goodbye) -> Option<String> {
    match goodbye {
        Goodbye::Protocol(text) => Some(text.clone()),
        Goodbye::OtherCluster { cluster: Some(mine) } => {
            Some(format!("it wants another cluster, and this node is of cluster {mine}"))
        }
        Goodbye::OtherCluster { cluster: None } => {
            Some("it wants a certain cluster, and this node does not know its own yet".to_owned())
        }
        Goodbye::ShuttingDown | Goodbye::TooManyConnections { .. } => None,
    }
}

fn protocol(text: impl Into<String>) -> End {
    End::Goodbye(Goodbye::Protocol(text.into()))
}

impl Clients {
    /// Accepts connections until `closing` becomes true.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, mut closing: watch::Receiver<bool>) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = set(&mut closing) => return,
            };
            match accepted {
                Ok((stream, address)) => {
                    let clients = Arc::clone(&self);
                    tokio::spawn(clients.connection(stream, address, closing.clone()));
                }
                Err(error) => {
                    tracing::warn!("cannot accept a client: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        address: SocketAddr,
        closing: watch::Receiver<bool>,
    ) {
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let registered = self.connections.add();
        let outbox = Arc::clone(&registered.outbox);
        let (read, write) = stream.into_split();
        let writing = Arc::clone(&outbox);
        let mut writer = tokio::spawn(async move { writing.write_to(write).await });
        let mut reader = FrameReader::new(read, CLIENT_FRAME_BYTES_MAX);
        let crowded = self.connections.count() > CONNECTIONS_MAX;
        let end = if crowded {
            End::Goodbye(Goodbye::TooManyConnections { limit: CONNECTIONS_MAX })
        } else {
            tokio::select! {
                end = self.talk(&mut reader, &registered, closing) => match end {
                    Ok(end) | Err(end) => end,
                },
                _ = &mut writer => return,
            }
        };
        match end {
            End::Gone => {
                outbox.close(None);
                writer.abort();
            }
            End::Goodbye(goodbye) => {
                if let Some(reason) = refusal(&goodbye)
                    && self.refusals.pass()
                {
                    tracing::warn!("closed the client connection from {address}: {reason}");
                }
                outbox.close(Some(goodbye));
                let _ = timeout(WRITE_STALL, writer).await;
                reader.linger().await;
            }
        }
    }

    /// The conversation until it ends.
    async fn talk(
        &self,
        reader: &mut FrameReader<OwnedReadHalf>,
        registered: &Registered,
        mut closing: watch::Receiver<bool>,
    ) -> Result<End, End> {
        let outbox = &registered.outbox;
        match timeout(FIRST_FRAME_TIMEOUT, self.greet(reader, outbox)).await {
            Ok(greeted) => greeted?,
            Err(_) => return Err(protocol(format!("no hello within {FIRST_FRAME_TIMEOUT:?}"))),
        }
        loop {
            outbox.has_room().await;
            if let Some(payload) = reader.buffered().map_err(ReadError::from)? {
                self.call(registered, &payload)?;
                continue;
            }
            let payload = tokio::select! {
                read = timeout(IDLE_TIMEOUT, reader.frame()) => match read {
                    Ok(payload) => payload?,
                    Err(_) if outbox.outstanding() > 0 => continue,
                    Err(_) => return Ok(End::Gone),
                },
                () = set(&mut closing) => {
                    while outbox.outstanding() > 0 {
                        outbox.room.notified().await;
                    }
                    return Ok(End::Goodbye(Goodbye::ShuttingDown));
                }
            };
            let Some(payload) = payload else { return Ok(End::Gone) };
            self.call(registered, &payload)?;
        }
    }

    async fn greet(
        &self,
        reader: &mut FrameReader<OwnedReadHalf>,
        outbox: &Outbox,
    ) -> Result<(), End> {
        reader.preamble(Port::Client).await?;
        let Some(payload) = reader.frame().await? else { return Err(End::Gone) };
        let Hello { cluster: wanted } = match decode(&payload)? {
            ClientFrame::Hello(hello) => hello,
            ClientFrame::Call { .. } => return Err(protocol("the first frame must be a hello")),
        };
        let status = self.status.borrow().clone();
        if wanted.is_some() && wanted != status.cluster {
            return Err(End::Goodbye(Goodbye::OtherCluster { cluster: status.cluster }));
        }
        outbox.say(ServerFrame::Welcome(Welcome {
            cluster: status.cluster,
            incarnation: status.incarnation,
            store: status.store,
            name: status.name,
            session_idle_ms: self.session_idle.as_millis() as u64,
            key_retention_ms: self.key_retention.as_millis() as u64,
        }));
        Ok(())
    }

    fn call(&self, registered: &Registered, payload: &Bytes) -> Result<(), End> {
        let (call, request) = match decode(payload)? {
            ClientFrame::Call { call, request } => (call, request),
            ClientFrame::Hello(_) => return Err(protocol("a second hello")),
        };
        self.counters.requests.add(1);
        self.warmer.warm(&request);
        registered.outbox.lock().outstanding += 1;
        let from = ReplyTo { connection: registered.number, call };
        let event = Event::Request { from, request };
        if self.core.try_send_request(event, payload.len()).is_err() {
            self.counters.busy.add(1);
            let answer = Answer::Refused(Refusal::Busy(Limit::Queue));
            registered.outbox.answer(call, answer);
        }
        Ok(())
    }
}

/// Waits until `flag` is true.
async fn set(flag: &mut watch::Receiver<bool>) {
    // An error means that nobody can set it any more: the process is ending all the same.
    let _ = flag.wait_for(|set| *set).await;
}

fn decode(payload: &[u8]) -> Result<ClientFrame, End> {
    codec::decode::<ClientFrame, CLIENT_FRAME_BYTES_MAX>(payload)
        .map_err(|error| protocol(format!("{error}: nothing of it was executed")))
}
