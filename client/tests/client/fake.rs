//! A server to test clients against: it speaks the real protocol over a real socket, executes against
//! a small model with an honest duplicate table, and misbehaves on command.
//!
//! Several [`FakeNode`]s may share one [`Model`], as the nodes of a cluster would. The model fails the
//! test when a client breaks a rule: a seq beyond the window, a watermark that passes an open request.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use onlyonce_wire::client::{
    Answer, ClientFrame, Execute, ExecuteId, Failure, Fate, Fingerprint, Goodbye, Operation,
    Outcome, Question, Read, Refusal, Request, RequestId, ServerFrame, Welcome, Write,
};
use onlyonce_wire::frame::{self, PREAMBLE_BYTES, Port};
use onlyonce_wire::limits::{CLIENT_FRAME_BYTES_MAX, OPERATION_BYTES_MAX, WINDOW};
use onlyonce_wire::status::{NodeStatus, Role};
use onlyonce_wire::{CallId, ClusterId, Incarnation, OpenedAt, Seq, Session, StoreId, View, codec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

pub const CLUSTER: ClusterId = ClusterId(0xc1);
/// How long the model says that it keeps a key.
pub const KEPT_FOR_MS: u64 = 77_000;

/// What to do with a request.
pub enum Reaction {
    /// Execute and answer.
    Serve,
    /// Execute and lose the answer.
    LoseAnswer,
    /// Execute and close the connection instead of answering.
    ServeAndCut,
    /// Close the connection without executing.
    Cut,
    /// Neither execute nor answer.
    Ignore,
    /// Execute, and keep the answer until [`FakeNode::release`].
    Hold,
    /// Answer this, without executing.
    Answer(Answer),
    /// Say goodbye and close, without executing.
    Goodbye(Goodbye),
}

/// Treats each request to execute something as told, everything else well.
pub fn executes(mut react: impl FnMut() -> Reaction) -> impl FnMut(&Received) -> Reaction {
    move |received| match received.execute() {
        Some(_) => react(),
        None => Reaction::Serve,
    }
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// Which connection of this node it came over, from 0.
    pub connection: usize,
    /// The request's own bytes, without the call id.
    pub bytes: Bytes,
    pub request: Request,
}

impl Received {
    pub fn execute(&self) -> Option<&Execute> {
        match &self.request {
            Request::Execute(execute) => Some(execute),
            _ => None,
        }
    }

    /// Its session, seq and watermark.
    pub fn place(&self) -> Option<(Session, Seq, Seq)> {
        match self.execute()?.id {
            ExecuteId::Session { session, seq, first_unacked } => {
                Some((session, seq, first_unacked))
            }
            ExecuteId::Key(_) | ExecuteId::Anonymous => None,
        }
    }
}

/// What a whole cluster would know.
#[derive(Default)]
pub struct Model {
    pub values: BTreeMap<Bytes, Bytes>,
    pub sessions: HashMap<Session, Watermark>,
    /// Each request that ran, and its reply. Never forgotten here, to catch a second run.
    ran: HashMap<String, (Fingerprint, Bytes)>,
    cancelled: BTreeSet<String>,
    pub executed: usize,
    pub closed: BTreeSet<Session>,
    opened: HashMap<u128, Session>,
    pub incarnation: Incarnation,
}

#[derive(Clone, Copy, Debug)]
pub struct Watermark {
    pub first_unacked: Seq,
}

impl Model {
    pub fn shared() -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { incarnation: Incarnation(1), ..Self::default() }))
    }

    fn answer(&mut self, request: &Request) -> Answer {
        match request {
            Request::Open { session, .. } => {
                let index = OpenedAt(100 + self.opened.len() as u64);
                let opened = Session { id: *session, opened_at: index };
                let opened = *self.opened.entry(session.0).or_insert(opened);
                self.sessions.insert(opened, Watermark { first_unacked: Seq(1) });
                Answer::Opened { opened_at: opened.opened_at }
            }
            Request::Close { session, .. } => match self.sessions.remove(session) {
                Some(_) => {
                    self.closed.insert(*session);
                    Answer::Closed
                }
                None => Answer::Refused(Refusal::SessionExpired),
            },
            Request::KeepAlive { session, .. } => match self.sessions.get(session) {
                Some(_) => Answer::Alive,
                None => Answer::Refused(Refusal::SessionExpired),
            },
            Request::Execute(execute) => self.execute(execute),
            Request::Read(Read::Get { key }) => {
                Answer::Read(Outcome::Value(self.values.get(key).cloned()))
            }
            Request::Read(Read::Scan { .. }) => {
                let rows = self.values.clone().into_iter().collect();
                Answer::Read(Outcome::Rows { rows, next: None })
            }
            Request::Outcome(question) => self.fate(question, false),
            Request::Cancel(question) => self.fate(question, true),
            Request::Sessions { .. } | Request::Session(_) | Request::Backup { .. } => {
                panic!("nobody asks the model that: {request:?}")
            }
            Request::Status => Answer::Status(Box::new(status())),
        }
    }

    fn execute(&mut self, execute: &Execute) -> Answer {
        if execute.incarnation != self.incarnation {
            let current = self.incarnation;
            return Answer::Refused(Refusal::OtherIncarnation { current });
        }
        let name = match execute.id.request() {
            Some(request) => format!("{request:?}"),
            // No two are the same.
            None => format!("anonymous {}", self.executed),
        };
        match &execute.id {
            ExecuteId::Key(_) | ExecuteId::Anonymous => {}
            ExecuteId::Session { session, seq, first_unacked } => {
                let Some(watermark) = self.sessions.get_mut(session) else {
                    return Answer::Refused(Refusal::SessionExpired);
                };
                watermark.first_unacked = watermark.first_unacked.max(*first_unacked);
                assert!(first_unacked <= seq, "{execute:?}");
                assert!(seq.0 < watermark.first_unacked.0 + WINDOW, "beyond the window: {seq}");
                assert!(*seq >= watermark.first_unacked, "{seq} was acknowledged before it ended");
            }
        }
        let kept_for_ms = matches!(execute.id, ExecuteId::Key(_)).then_some(KEPT_FOR_MS);
        if self.cancelled.contains(&name) {
            return Answer::Refused(Refusal::Cancelled);
        }
        if let Some((fingerprint, reply)) = self.ran.get(&name) {
            if *fingerprint != Fingerprint::of(&execute.operation) {
                return Answer::Refused(Refusal::Mismatch);
            }
            return Answer::Executed { reply: reply.clone(), replayed: true, kept_for_ms };
        }
        let operation = codec::decode::<Operation, OPERATION_BYTES_MAX>(&execute.operation);
        let outcome = self.apply(operation.expect("an operation"));
        let reply = Bytes::from(codec::encode(&outcome));
        self.ran.insert(name, (Fingerprint::of(&execute.operation), reply.clone()));
        self.executed += 1;
        Answer::Executed { reply, replayed: false, kept_for_ms }
    }

    fn fate(&mut self, question: &Question, cancel: bool) -> Answer {
        let Question { incarnation, id, first_unacked, fingerprint } = question;
        if *incarnation != self.incarnation {
            let current = self.incarnation;
            return Answer::Refused(Refusal::OtherIncarnation { current });
        }
        if let RequestId::Seq { session, seq } = id {
            let Some(watermark) = self.sessions.get(session) else {
                return Answer::Refused(Refusal::SessionExpired);
            };
            let first_unacked = watermark.first_unacked.max(*first_unacked);
            assert!(first_unacked <= *seq, "{question:?}");
            assert!(!cancel || seq.0 < first_unacked.0 + WINDOW, "beyond the window: {seq}");
        }
        let name = format!("{id:?}");
        let fate = match self.ran.get(&name) {
            Some((ran, _)) if fingerprint.is_some_and(|asked| asked != *ran) => {
                return Answer::Refused(Refusal::Mismatch);
            }
            Some((_, reply)) => Fate::Done { reply: reply.clone() },
            None if cancel || self.cancelled.contains(&name) => {
                self.cancelled.insert(name);
                Fate::Cancelled
            }
            None => Fate::NeverSeen,
        };
        let kept_for_ms = matches!(id, RequestId::Key(_)).then_some(KEPT_FOR_MS);
        Answer::Fate { fate, kept_for_ms }
    }

    fn apply(&mut self, operation: Operation) -> Outcome {
        match operation {
            Operation::Write(Write::Put { key, value }) => {
                self.values.insert(key, value);
                Outcome::Done
            }
            Operation::Write(Write::Incr { key, by }) => {
                let text = self.values.get(&key).cloned().unwrap_or_else(|| "0".into());
                let Ok(before) = String::from_utf8_lossy(&text).parse::<i64>() else {
                    return Outcome::Failed(Failure::NotAnInteger);
                };
                self.values.insert(key, (before + by).to_string().into());
                Outcome::Integer(before + by)
            }
            other => panic!("the model knows no {other:?}"),
        }
    }
}

fn status() -> NodeStatus {
    NodeStatus {
        name: "fake".to_owned(),
        store: StoreId(7),
        cluster: Some(CLUSTER),
        incarnation: Incarnation(1),
        role: Role::Primary,
        serving: true,
        view: View(1),
        primary: None,
        primary_address: None,
        backups: Vec::new(),
        learners: Vec::new(),
        prepared: 3,
        committed: 2,
        applied: 1,
        sessions: 0,
        idempotency_keys: 0,
        timed_keys_refused_ms: 0,
        logged_bytes: 0,
    }
}

type Script = Box<dyn FnMut(&Received) -> Reaction + Send>;

struct Shared {
    model: Arc<Mutex<Model>>,
    script: Mutex<Script>,
    received: Mutex<Vec<Received>>,
    connections: Mutex<Vec<AbortHandle>>,
    held: Mutex<Vec<(mpsc::UnboundedSender<ServerFrame>, ServerFrame)>>,
    welcome: Mutex<Result<Welcome, Goodbye>>,
}

/// A node that does as it is told.
pub struct FakeNode {
    pub address: String,
    shared: Arc<Shared>,
    listener: AbortHandle,
}

impl FakeNode {
    /// Serves `model` on a free port; `script` decides about each request.
    pub async fn start(
        model: &Arc<Mutex<Model>>,
        script: impl FnMut(&Received) -> Reaction + Send + 'static,
    ) -> Self {
        Self::start_at("127.0.0.1:0", model, script).await
    }

    pub async fn start_at(
        address: &str,
        model: &Arc<Mutex<Model>>,
        script: impl FnMut(&Received) -> Reaction + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let shared = Arc::new(Shared {
            model: Arc::clone(model),
            script: Mutex::new(Box::new(script)),
            received: Mutex::default(),
            connections: Mutex::default(),
            held: Mutex::default(),
            welcome: Mutex::new(Ok(Welcome {
                cluster: Some(CLUSTER),
                incarnation: lock(model).incarnation,
                store: StoreId(7),
                name: "fake".to_owned(),
                session_idle_ms: 60_000,
                key_retention_ms: 86_400_000,
            })),
        });
        let accepting = accept(listener, Arc::clone(&shared));
        let listener = tokio::spawn(accepting).abort_handle();
        Self { address, shared, listener }
    }

    /// What a newcomer is told from now on.
    pub fn greet_with(&self, change: impl FnOnce(&mut Result<Welcome, Goodbye>)) {
        change(&mut lock(&self.shared.welcome));
    }

    pub fn script(&self, script: impl FnMut(&Received) -> Reaction + Send + 'static) {
        *lock(&self.shared.script) = Box::new(script);
    }

    pub fn received(&self) -> Vec<Received> {
        lock(&self.shared.received).clone()
    }

    /// The executes that came so far.
    pub fn executes(&self) -> Vec<Received> {
        self.received().into_iter().filter(|received| received.execute().is_some()).collect()
    }

    pub fn connections(&self) -> usize {
        lock(&self.shared.connections).len()
    }

    /// Sends the held answers, in the order that `order` puts them.
    pub fn release(&self, order: impl FnOnce(&mut Vec<ServerFrame>)) {
        let held = std::mem::take(&mut *lock(&self.shared.held));
        let Some((connection, _)) = held.first() else { return };
        let connection = connection.clone();
        let mut frames: Vec<_> = held.into_iter().map(|(_, frame)| frame).collect();
        order(&mut frames);
        for frame in frames {
            let _ = connection.send(frame);
        }
    }

    pub fn held(&self) -> usize {
        lock(&self.shared.held).len()
    }

    /// As kill -9 would: the port closes, and every connection.
    pub fn kill(&self) {
        self.listener.abort();
        self.cut_all();
    }

    /// Closes every connection.
    pub fn cut_all(&self) {
        for connection in lock(&self.shared.connections).iter() {
            connection.abort();
        }
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.kill();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("the model found a broken rule")
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let mut connections = lock(&shared.connections);
        let number = connections.len();
        let serving = tokio::spawn(serve(stream, number, Arc::clone(&shared)));
        connections.push(serving.abort_handle());
    }
}

async fn serve(mut stream: TcpStream, connection: usize, shared: Arc<Shared>) -> Option<()> {
    stream.write_all(&frame::preamble(Port::Client)).await.ok()?;
    stream.read_exact(&mut [0; PREAMBLE_BYTES]).await.ok()?;
    let (mut read, mut write) = stream.into_split();
    let mut buffer = BytesMut::new();
    let ClientFrame::Hello(hello) = decode(&next(&mut read, &mut buffer).await?) else {
        panic!("the first frame was no hello")
    };
    let greeting = lock(&shared.welcome).clone();
    let greeting = match (greeting, hello.cluster) {
        (Ok(welcome), Some(wanted)) if welcome.cluster != Some(wanted) => {
            ServerFrame::Goodbye(Goodbye::OtherCluster { cluster: welcome.cluster })
        }
        (Ok(welcome), _) => ServerFrame::Welcome(welcome),
        (Err(goodbye), _) => ServerFrame::Goodbye(goodbye),
    };
    send(&mut write, &greeting).await?;
    // The node keeps a sender of its own, so that the outbox never ends.
    let (answers, mut outbox) = mpsc::unbounded_channel();
    loop {
        let payload = tokio::select! {
            payload = next(&mut read, &mut buffer) => payload?,
            answer = outbox.recv() => {
                send(&mut write, &answer?).await?;
                continue;
            }
        };
        let ClientFrame::Call { call, request } = decode(&payload) else {
            panic!("a second hello")
        };
        let bytes = payload.slice(codec::encode(&(1u32, call)).len()..);
        let received = Received { connection, bytes, request };
        let reaction = (lock(&shared.script))(&received);
        lock(&shared.received).push(received.clone());
        match react(&shared, reaction, call, &received.request, &answers) {
            Next::GoOn => {}
            Next::Say(answer) => {
                send(&mut write, &ServerFrame::Reply { call, answer }).await?;
            }
            Next::Close => return None,
            Next::Part(goodbye) => {
                send(&mut write, &ServerFrame::Goodbye(goodbye)).await?;
                return None;
            }
        }
    }
}

enum Next {
    GoOn,
    Say(Answer),
    Close,
    Part(Goodbye),
}

fn react(
    shared: &Shared,
    reaction: Reaction,
    call: CallId,
    request: &Request,
    answers: &mpsc::UnboundedSender<ServerFrame>,
) -> Next {
    let execute = || lock(&shared.model).answer(request);
    match reaction {
        Reaction::Serve => Next::Say(execute()),
        Reaction::LoseAnswer => {
            execute();
            Next::GoOn
        }
        Reaction::ServeAndCut => {
            execute();
            Next::Close
        }
        Reaction::Cut => Next::Close,
        Reaction::Ignore => Next::GoOn,
        Reaction::Hold => {
            let reply = ServerFrame::Reply { call, answer: execute() };
            lock(&shared.held).push((answers.clone(), reply));
            Next::GoOn
        }
        Reaction::Answer(answer) => Next::Say(answer),
        Reaction::Goodbye(goodbye) => Next::Part(goodbye),
    }
}

async fn next(read: &mut OwnedReadHalf, buffer: &mut BytesMut) -> Option<Bytes> {
    loop {
        let taken = frame::take_frame(buffer, CLIENT_FRAME_BYTES_MAX).expect("whole frames");
        if taken.is_some() {
            return taken;
        }
        if read.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

fn decode(payload: &[u8]) -> ClientFrame {
    codec::decode::<_, CLIENT_FRAME_BYTES_MAX>(payload).expect("a frame of the protocol")
}

async fn send(write: &mut OwnedWriteHalf, frame: &ServerFrame) -> Option<()> {
    let mut bytes = BytesMut::new();
    frame::put_frame(&mut bytes, &codec::encode(frame));
    write.write_all(&bytes).await.ok()
}

/// Waits until `condition` holds, and fails the test when it does not come to hold.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    assert!(waited.is_ok(), "{what} did not come to hold");
}
