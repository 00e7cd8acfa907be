//! One connection to one node, shared by all calls to it.
//!
//! A caller appends its frame to the connection's buffer and wakes the writer task, which writes all
//! that has gathered with one system call; the reader task hands each answer to the call whose id it
//! carries. When either finds the connection over, every waiting call learns so at once.
//!
//! - A call is entered in `waiting` before a byte of it can leave, and removed exactly once: by its
//!   answer, by its caller's giving up, or by the end of the connection.
//! - `over` is set once; nothing is appended after it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use onlyonce_wire::client::{Answer, ClientFrame, Goodbye, Hello, ServerFrame, Welcome};
use onlyonce_wire::frame::{self, FrameError, PREAMBLE_BYTES, Port};
use onlyonce_wire::limits::CLIENT_FRAME_BYTES_MAX;
use onlyonce_wire::{CallId, ClusterId, codec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use crate::errors::{ConnectError, describe};

/// The most bytes that may gather before the writer gets to them; beyond it, callers wait.
const GATHERED_BYTES_MAX: usize = 4 << 20;
/// How much room the reader offers the socket at least.
const READ_BYTES: usize = 64 << 10;
/// How long a node of another version is given for its last words.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(200);

/// An open connection to a node that said welcome. Dropping it closes it.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    welcome: Welcome,
    tasks: [AbortHandle; 2],
}

struct Shared {
    state: Mutex<State>,
    /// Wakes the writer.
    gathered: Notify,
    /// Wakes callers that wait for the buffer to drain.
    drained: Notify,
    /// Counts what came in, to tell a slow node from a silent one.
    received: AtomicU64,
    /// Counts writes that had to wait for the other side to take earlier bytes: a slow network moves.
    uploaded: AtomicU64,
}

#[derive(Default)]
struct State {
    gathered: BytesMut,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    last_call: u64,
    over: Option<Arc<str>>,
}

/// Why a call on a connection has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoReply {
    /// The connection was over before a byte of the call left.
    NotSent(Arc<str>),
    /// The connection ended; the call may have arrived.
    Lost(Arc<str>),
    /// Time is up; the call may have arrived. `silent`: nothing at all came meanwhile.
    TimedOut { silent: bool },
}

impl Connection {
    /// Connects to `address` and waits for its welcome, all within `limit`.
    pub(crate) async fn open(
        address: &str,
        cluster: Option<ClusterId>,
        limit: Duration,
    ) -> Result<Self, ConnectError> {
        let opening = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let mut buffer = BytesMut::with_capacity(READ_BYTES);
            let welcome = shake_hands(&mut stream, &mut buffer, cluster).await?;
            Ok::<_, ConnectError>((stream, buffer, welcome))
        };
        let (stream, buffer, welcome) = match tokio::time::timeout(limit, opening).await {
            Ok(opened) => opened?,
            Err(_) => return Err(ConnectError::TimedOut(limit)),
        };
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            gathered: Notify::new(),
            drained: Notify::new(),
            received: AtomicU64::new(0),
            uploaded: AtomicU64::new(0),
        });
        let (read, write) = stream.into_split();
        let reader = tokio::spawn(read_all(Arc::clone(&shared), read, buffer));
        let writer = tokio::spawn(write_all(Arc::clone(&shared), write));
        let tasks = [reader.abort_handle(), writer.abort_handle()];
        Ok(Self { shared, welcome, tasks })
    }

    /// What the node said of itself.
    pub(crate) fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Sends an encoded request and waits for its answer, within `limit`; longer only while bytes
    /// are still on their way to a node that takes them slowly, where a copy would but queue up.
    ///
    /// `in_flight` is set as soon as the request may leave, so that a caller whose future is dropped
    /// half-way still learns it.
    pub(crate) async fn call(
        &self,
        request: &[u8],
        limit: Duration,
        in_flight: &mut bool,
    ) -> Result<Answer, NoReply> {
        let received = self.shared.received.load(Ordering::Relaxed);
        let mut uploaded = self.shared.uploaded.load(Ordering::Relaxed);
        let answering = async {
            let (entry, answer) = self.send(request).await.map_err(NoReply::NotSent)?;
            *in_flight = true;
            let answer = answer.await;
            entry.resolved();
            answer.map_err(|_| NoReply::Lost(self.shared.over_reason()))
        };
        tokio::pin!(answering);
        loop {
            if let Ok(answer) = tokio::time::timeout(limit, &mut answering).await {
                return answer;
            }
            let moved = self.shared.uploaded.load(Ordering::Relaxed);
            if std::mem::replace(&mut uploaded, moved) == moved {
                let silent = received == self.shared.received.load(Ordering::Relaxed);
                return Err(NoReply::TimedOut { silent });
            }
        }
    }

    /// Appends the call to the buffer, as soon as there is room.
    async fn send(
        &self,
        request: &[u8],
    ) -> Result<(WaitingEntry<'_>, oneshot::Receiver<Answer>), Arc<str>> {
        loop {
            let drained = self.shared.drained.notified();
            {
                let mut state = self.shared.lock();
                if let Some(reason) = &state.over {
                    return Err(Arc::clone(reason));
                }
                if state.gathered.len() < GATHERED_BYTES_MAX {
                    state.last_call += 1;
                    let call = state.last_call;
                    let (sender, receiver) = oneshot::channel();
                    state.waiting.insert(call, sender);
                    put_call(&mut state.gathered, CallId(call), request);
                    drop(state);
                    self.shared.gathered.notify_one();
                    return Ok((WaitingEntry { shared: &self.shared, call }, receiver));
                }
            }
            drained.await;
        }
    }

    /// Ends the connection: every waiting call learns `reason`.
    pub(crate) fn end(&self, reason: &str) {
        self.shared.end(reason);
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.end("the client was dropped");
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the lock")
    }

    fn end(&self, reason: &str) {
        let waiting = {
            let mut state = self.lock();
            state.over.get_or_insert_with(|| reason.into());
            std::mem::take(&mut state.waiting)
        };
        drop(waiting);
        self.gathered.notify_one();
        self.drained.notify_waiters();
    }

    fn over_reason(&self) -> Arc<str> {
        self.lock().over.clone().unwrap_or_else(|| "connection closed".into())
    }
}

/// A call's place among the waiting; removed when its caller gives up.
struct WaitingEntry<'a> {
    shared: &'a Shared,
    call: u64,
}

impl WaitingEntry<'_> {
    /// Whoever resolved the call has removed it already.
    fn resolved(self) {
        std::mem::forget(self);
    }
}

impl Drop for WaitingEntry<'_> {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(&self.call);
    }
}

/// Appends the frame of [`ClientFrame::Call`] around an already encoded request: the variant's
/// index, the call id, and the request's own bytes.
fn put_call(buffer: &mut BytesMut, call: CallId, request: &[u8]) {
    const CALL_VARIANT: u32 = 1;
    frame::put_frame_parts(buffer, &[&codec::encode(&(CALL_VARIANT, call)), request]);
}

async fn shake_hands(
    stream: &mut TcpStream,
    buffer: &mut BytesMut,
    cluster: Option<ClusterId>,
) -> Result<Welcome, ConnectError> {
    let mut first = BytesMut::from(&frame::preamble(Port::Client)[..]);
    frame::put_frame(&mut first, &codec::encode(&ClientFrame::Hello(Hello { cluster })));
    // A node that objects to the preamble closes at once, which can fail this write: its last words
    // are more telling than the error.
    let written = stream.write_all(&first).await;
    let mut theirs = [0; PREAMBLE_BYTES];
    if let Err(error) = stream.read_exact(&mut theirs).await {
        return Err(match written {
            Err(error) => error.into(),
            Ok(()) if error.kind() == std::io::ErrorKind::UnexpectedEof => ConnectError::Mute,
            Ok(()) => error.into(),
        });
    }
    match frame::check_preamble(&theirs, Port::Client) {
        Ok(()) => {}
        Err(FrameError::Version { theirs }) => {
            let last_words = next_frame(stream, buffer);
            let said = match tokio::time::timeout(LAST_WORDS_TIMEOUT, last_words).await {
                Ok(Ok(ServerFrame::Goodbye(Goodbye::Protocol(text)))) => Some(text),
                _ => None,
            };
            return Err(ConnectError::Version { theirs, said });
        }
        Err(error) => return Err(ConnectError::Foreign(error)),
    }
    match next_frame(stream, buffer).await? {
        ServerFrame::Welcome(welcome) => Ok(welcome),
        ServerFrame::Goodbye(goodbye) => Err(refused(goodbye, cluster)),
        ServerFrame::Reply { .. } => Err(ConnectError::Broken("a reply before welcome".into())),
    }
}

fn refused(goodbye: Goodbye, wanted: Option<ClusterId>) -> ConnectError {
    match (goodbye, wanted) {
        (Goodbye::OtherCluster { cluster: theirs }, Some(wanted)) => {
            ConnectError::OtherCluster { theirs, wanted }
        }
        (Goodbye::OtherCluster { .. }, None) => {
            ConnectError::Broken("objects to a cluster that was not named".into())
        }
        (Goodbye::ShuttingDown, _) => ConnectError::ShuttingDown,
        (Goodbye::TooManyConnections { limit }, _) => ConnectError::TooManyConnections { limit },
        (Goodbye::Protocol(text), _) => ConnectError::Broken(text),
    }
}

async fn next_frame(
    stream: &mut TcpStream,
    buffer: &mut BytesMut,
) -> Result<ServerFrame, ConnectError> {
    loop {
        if let Some(payload) = take(buffer).map_err(ConnectError::Broken)? {
            return Ok(payload);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(ConnectError::Unreachable("connection closed".into()));
        }
    }
}

fn take(buffer: &mut BytesMut) -> Result<Option<ServerFrame>, String> {
    let payload: Option<Bytes> =
        frame::take_frame(buffer, CLIENT_FRAME_BYTES_MAX).map_err(|error| error.to_string())?;
    payload
        .map(|payload| codec::decode::<ServerFrame, CLIENT_FRAME_BYTES_MAX>(&payload))
        .transpose()
        .map_err(|error| error.to_string())
}

/// The reader task: hands out answers until the connection is over.
async fn read_all(shared: Arc<Shared>, mut read: OwnedReadHalf, mut buffer: BytesMut) {
    let reason = loop {
        if let Err(reason) = dispatch(&shared, &mut buffer) {
            break reason;
        }
        buffer.reserve(READ_BYTES);
        match read.read_buf(&mut buffer).await {
            Ok(0) => break "connection closed".to_owned(),
            Ok(_) => drop(shared.received.fetch_add(1, Ordering::Relaxed)),
            Err(error) => break describe(&error),
        }
    };
    shared.end(&reason);
}

/// Hands every whole frame of `buffer` to its call. The error is the reason to end the connection.
fn dispatch(shared: &Shared, buffer: &mut BytesMut) -> Result<(), String> {
    let mut answers = Vec::new();
    let ended = loop {
        match take(buffer) {
            Ok(None) => break Ok(()),
            Ok(Some(ServerFrame::Reply { call, answer })) => answers.push((call, answer)),
            Ok(Some(ServerFrame::Goodbye(goodbye))) => {
                break Err(refused(goodbye, None).to_string());
            }
            Ok(Some(ServerFrame::Welcome(_))) => break Err("said welcome twice".to_owned()),
            Err(reason) => break Err(reason),
        }
    };
    if !answers.is_empty() {
        let mut state = shared.lock();
        let found: Vec<_> = answers
            .into_iter()
            .filter_map(|(call, answer)| Some((state.waiting.remove(&call.0)?, answer)))
            .collect();
        drop(state);
        for (sender, answer) in found {
            // The caller may have given up in this moment: then nobody needs the answer.
            let _ = sender.send(answer);
        }
    }
    ended
}

/// The writer task: writes what has gathered until the connection is over.
async fn write_all(shared: Arc<Shared>, mut write: OwnedWriteHalf) {
    let mut batch = BytesMut::new();
    loop {
        shared.gathered.notified().await;
        // Callers that are ready to run append their frames first: one write for all of them.
        tokio::task::yield_now().await;
        {
            let mut state = shared.lock();
            if state.over.is_some() {
                return;
            }
            std::mem::swap(&mut batch, &mut state.gathered);
        }
        shared.drained.notify_waiters();
        if let Err(error) = write_batch(&shared, &mut write, &batch).await {
            return shared.end(&describe(&error));
        }
        batch.clear();
    }
}

async fn write_batch(
    shared: &Shared,
    write: &mut OwnedWriteHalf,
    mut batch: &[u8],
) -> std::io::Result<()> {
    loop {
        match write.write(batch).await? {
            0 if !batch.is_empty() => return Err(std::io::ErrorKind::WriteZero.into()),
            written => batch = &batch[written..],
        }
        if batch.is_empty() {
            return Ok(());
        }
        // What follows fits only after the other side took some.
        shared.uploaded.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use onlyonce_wire::client::{Read, Request};

    use super::*;

    /// A call's frame is byte for byte what encoding the whole `ClientFrame` gives.
    #[test]
    fn calls_are_framed_as_the_protocol_says() {
        for call in [1, 250, 251, 70_000, u64::MAX] {
            let request = Request::Read(Read::Get { key: Bytes::from_static(b"key") });
            let mut framed = BytesMut::new();
            put_call(&mut framed, CallId(call), &codec::encode(&request));
            let mut expected = BytesMut::new();
            let whole = ClientFrame::Call { call: CallId(call), request };
            frame::put_frame(&mut expected, &codec::encode(&whole));
            assert_eq!(framed, expected, "call {call}");
        }
    }
}
