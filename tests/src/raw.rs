//! The wire protocol spoken by hand: copies of requests, late and early, that no client would send.

use std::collections::HashMap;
use std::io::{Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use onlyonce_wire::client::{
    Answer, ClientFrame, Execute, ExecuteId, Goodbye, Hello, Operation, Outcome, Read as ReadOf,
    Refusal, Request, ServerFrame, Welcome, Write,
};
use onlyonce_wire::frame::{self, PREAMBLE_BYTES, Port};
use onlyonce_wire::limits::CLIENT_FRAME_BYTES_MAX;
use onlyonce_wire::{CallId, ClusterId, Incarnation, Seq, Session, SessionId, codec};

use crate::cluster::BOUND;
use crate::wait::wait_for;

/// How long one answer may take before the connection is given up.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// A connection to the client port of a node.
pub struct RawConnection {
    stream: TcpStream,
    buffer: BytesMut,
    next: u64,
    /// Answers that came before they were asked for.
    answers: HashMap<CallId, Answer>,
    /// What the node said of itself.
    pub welcome: Welcome,
}

impl RawConnection {
    /// Connects and introduces itself.
    ///
    /// # Errors
    /// When the node is not there or says goodbye.
    pub fn open(address: SocketAddr) -> Result<Self, String> {
        Self::open_for(address, None)
    }

    /// As [`open`](Self::open), for a node of one cluster.
    ///
    /// # Errors
    /// When the node is not there or says goodbye.
    pub fn open_for(address: SocketAddr, cluster: Option<ClusterId>) -> Result<Self, String> {
        let mut first = BytesMut::from(&frame::preamble(Port::Client)[..]);
        frame::put_frame(&mut first, &codec::encode(&ClientFrame::Hello(Hello { cluster })));
        let mut stream = connect(address)?;
        stream.write_all(&first).map_err(|error| error.to_string())?;
        let mut buffer = BytesMut::new();
        while buffer.len() < PREAMBLE_BYTES {
            fill(&mut stream, &mut buffer)?;
        }
        let preamble = buffer.split_to(PREAMBLE_BYTES);
        let preamble = preamble.first_chunk().expect("a preamble's length");
        frame::check_preamble(preamble, Port::Client).map_err(|error| error.to_string())?;
        let welcome = match next_frame(&mut stream, &mut buffer)? {
            ServerFrame::Welcome(welcome) => welcome,
            other => return Err(format!("{other:?}")),
        };
        Ok(Self { stream, buffer, next: 1, answers: HashMap::new(), welcome })
    }

    /// Sends a call and does not wait.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, request: &Request) -> Result<CallId, String> {
        let call = CallId(self.next);
        self.next += 1;
        let mut bytes = BytesMut::new();
        let frame = ClientFrame::Call { call, request: request.clone() };
        frame::put_frame(&mut bytes, &codec::encode(&frame));
        self.stream.write_all(&bytes).map_err(|error| error.to_string())?;
        Ok(call)
    }

    /// Waits for the answer to a call.
    ///
    /// # Errors
    /// When the connection ends, or the answer takes longer than 3 s.
    pub fn receive(&mut self, wanted: CallId) -> Result<Answer, String> {
        loop {
            if let Some(answer) = self.answers.remove(&wanted) {
                return Ok(answer);
            }
            match next_frame(&mut self.stream, &mut self.buffer)? {
                ServerFrame::Reply { call, answer } => {
                    self.answers.insert(call, answer);
                }
                other => return Err(format!("{other:?}")),
            }
        }
    }

    /// Sends a call and waits for its answer.
    ///
    /// # Errors
    /// As [`send`](Self::send) and [`receive`](Self::receive).
    pub fn call(&mut self, request: &Request) -> Result<Answer, String> {
        let call = self.send(request)?;
        self.receive(call)
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let connect = || {
        let stream = TcpStream::connect_timeout(&address, ANSWER_LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        Ok(stream)
    };
    connect().map_err(|error: std::io::Error| format!("{address}: {error}"))
}

fn fill(stream: &mut TcpStream, buffer: &mut BytesMut) -> Result<(), String> {
    let mut bytes = [0; 16 << 10];
    match stream.read(&mut bytes) {
        Ok(0) => Err("the node closed the connection".to_owned()),
        Ok(count) => {
            buffer.extend_from_slice(&bytes[..count]);
            Ok(())
        }
        Err(error) => Err(format!("no answer: {error}")),
    }
}

fn next_frame(stream: &mut TcpStream, buffer: &mut BytesMut) -> Result<ServerFrame, String> {
    loop {
        let taken =
            frame::take_frame(buffer, CLIENT_FRAME_BYTES_MAX).map_err(|error| error.to_string())?;
        if let Some(payload) = taken {
            return codec::decode::<ServerFrame, CLIENT_FRAME_BYTES_MAX>(&payload)
                .map_err(|error| error.to_string());
        }
        fill(stream, buffer)?;
    }
}

/// Sends `bytes` to any port and returns everything that comes back until the other side closes.
///
/// # Errors
/// When it cannot be reached, or neither answers nor closes for long.
pub fn send_bytes(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut stream = connect(address)?;
    stream.set_read_timeout(Some(BOUND)).map_err(|error| error.to_string())?;
    // A refused sender may find the connection closed before all is sent.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if answer.is_empty() => Err(format!("{address}: {error}")),
        Ok(_) | Err(_) => Ok(answer),
    }
}

/// The goodbye in what a client port answered, after its preamble and perhaps a welcome.
#[must_use]
pub fn goodbye(answer: &[u8]) -> Option<Goodbye> {
    let mut buffer = BytesMut::from(answer.get(PREAMBLE_BYTES..)?);
    while let Ok(Some(payload)) = frame::take_frame(&mut buffer, CLIENT_FRAME_BYTES_MAX) {
        if let Ok(ServerFrame::Goodbye(goodbye)) =
            codec::decode::<ServerFrame, CLIENT_FRAME_BYTES_MAX>(&payload)
        {
            return Some(goodbye);
        }
    }
    None
}

/// Asks the nodes in turn until one gives an answer that is one: not `NotPrimary`, `AskAgain` or
/// "busy". The request's bytes are the same each time.
///
/// # Panics
/// When none does for long.
#[track_caller]
#[must_use]
pub fn ask(nodes: &[SocketAddr], request: &Request) -> Answer {
    wait_for(&format!("an answer to {request:?}"), BOUND, || {
        let mut said = Vec::new();
        for &address in nodes {
            let answer = RawConnection::open(address).and_then(|mut node| node.call(request));
            match answer {
                Ok(
                    answer @ (Answer::NotPrimary { .. }
                    | Answer::AskAgain
                    | Answer::Refused(Refusal::Busy(_))),
                ) => said.push(format!("{address}: {answer:?}")),
                Ok(answer) => return Ok(answer),
                Err(error) => said.push(format!("{address}: {error}")),
            }
        }
        Err(said.join("; "))
    })
}

/// A session whose requests are made by hand.
#[derive(Clone, Debug)]
pub struct RawSession {
    /// The incarnation in which it was opened.
    pub incarnation: Incarnation,
    /// The session.
    pub session: Session,
}

impl RawSession {
    /// Opens a session with a random id at the node that serves.
    ///
    /// # Panics
    /// When it cannot be opened.
    #[track_caller]
    #[must_use]
    pub fn open(nodes: &[SocketAddr]) -> Self {
        Self::open_id(nodes, SessionId(rand::random()))
    }

    /// Opens the session with this id, or finds it open.
    ///
    /// # Panics
    /// When it cannot be opened.
    #[track_caller]
    #[must_use]
    pub fn open_id(nodes: &[SocketAddr], id: SessionId) -> Self {
        let incarnation = incarnation(nodes);
        match ask(nodes, &Request::Open { incarnation, session: id }) {
            Answer::Opened { opened_at } => {
                Self { incarnation, session: Session { id, opened_at } }
            }
            other => panic!("{other:?} to the opening of a session"),
        }
    }

    /// The request `seq`, of which all below `first_unacked` are acknowledged.
    #[must_use]
    pub fn request(&self, seq: u64, first_unacked: u64, operation: &Operation) -> Request {
        let id = ExecuteId::Session {
            session: self.session,
            seq: Seq(seq),
            first_unacked: Seq(first_unacked),
        };
        let operation = codec::encode(operation).into();
        Request::Execute(Execute { incarnation: self.incarnation, id, operation })
    }
}

/// The incarnation that the nodes know.
///
/// # Panics
/// When none of them tells.
#[track_caller]
#[must_use]
pub fn incarnation(nodes: &[SocketAddr]) -> Incarnation {
    wait_for("an incarnation", BOUND, || {
        let known = nodes.iter().find_map(|&address| {
            let welcome = RawConnection::open(address).ok()?.welcome;
            (welcome.incarnation > Incarnation(0)).then_some(welcome.incarnation)
        });
        known.ok_or_else(|| "no node knows one".to_owned())
    })
}

/// A put.
#[must_use]
pub fn put(key: &str, value: &str) -> Operation {
    let (key, value) = (text(key), text(value));
    Operation::Write(Write::Put { key, value })
}

/// An append.
#[must_use]
pub fn append(key: &str, value: &str) -> Operation {
    let (key, value) = (text(key), text(value));
    Operation::Write(Write::Append { key, value })
}

/// An increment by one.
#[must_use]
pub fn incr(key: &str) -> Operation {
    Operation::Write(Write::Incr { key: text(key), by: 1 })
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Reads a key at the node that serves.
///
/// # Panics
/// When no node answers.
#[track_caller]
#[must_use]
pub fn get(nodes: &[SocketAddr], key: &str) -> Option<String> {
    match ask(nodes, &Request::Read(ReadOf::Get { key: text(key) })) {
        Answer::Read(Outcome::Value(value)) => {
            value.map(|value| String::from_utf8_lossy(&value).into_owned())
        }
        other => panic!("{other:?} to a read of {key:?}"),
    }
}

/// The reply's bytes, and whether they answer a duplicate.
///
/// # Panics
/// When the answer is not one to an executed request.
#[track_caller]
pub fn executed(answer: Answer) -> (Bytes, bool) {
    match answer {
        Answer::Executed { reply, replayed, .. } => (reply, replayed),
        other => panic!("not executed: {other:?}"),
    }
}
