//! The requests of clients and the answers of nodes.
//!
//! A client that waits longer than it likes sends **the same bytes under the same id** again, to
//! this node or another, as often as it takes. What an answer allows it to conclude is a property
//! of the answer: [`Answer`] separates results, definite refusals and invitations to ask again, and
//! [`Refusal::consequence`] says of each refusal which it is.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::backup::BackupRecord;
use crate::ids::{
    CallId, ClusterId, IdempotencyKey, Incarnation, OpenedAt, Seq, Session, SessionId, StoreId,
    View,
};
use crate::status::NodeStatus;

mod operation;
mod refusal;
mod size;

pub use operation::{Compare, Condition, Failure, Operation, Outcome, Read, TxnOutcome, Write};
pub use refusal::{Consequence, Limit, Part, Refusal};

/// A frame from a client to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientFrame {
    /// The first frame of a connection.
    Hello(Hello),
    /// A call. Its answer carries the same call id; answers come in any order.
    Call {
        /// Pairs the answer with the call on this connection.
        call: CallId,
        /// What is asked.
        request: Request,
    },
}

/// Introduces a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster that it means to talk to, when it knows. Another cluster says goodbye.
    pub cluster: Option<ClusterId>,
}

/// A frame from a node to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerFrame {
    /// Answers `Hello`.
    Welcome(Welcome),
    /// The connection cannot go on; the text names the reason and what to do. Nothing that came
    /// after the last answer was executed *because of this connection*.
    Goodbye(Goodbye),
    /// Answers a call.
    Reply {
        /// The call.
        call: CallId,
        /// The answer.
        answer: Answer,
    },
}

/// Introduces a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The node's cluster; none while it has joined none.
    pub cluster: Option<ClusterId>,
    /// The cluster's incarnation as the node knows it.
    pub incarnation: Incarnation,
    /// The node's store.
    pub store: StoreId,
    /// The node's name.
    pub name: String,
    /// How long a session may be idle before it is expired, in milliseconds.
    pub session_idle_ms: u64,
    /// How long the node remembers the named key of a request that it executes, in milliseconds.
    pub key_retention_ms: u64,
}

/// Why a node ends a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goodbye {
    /// The client asked for another cluster.
    OtherCluster {
        /// The node's own.
        cluster: Option<ClusterId>,
    },
    /// The node is shutting down: ask another.
    ShuttingDown,
    /// The node has as many connections as it takes.
    TooManyConnections {
        /// The limit.
        limit: usize,
    },
    /// The bytes that came were not understood; the text says why.
    Protocol(String),
}

/// What a client can ask of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Open the session with this id. Asked again, it returns the same session.
    Open {
        /// The incarnation that the client knows.
        incarnation: Incarnation,
        /// Drawn at random by the client.
        session: SessionId,
    },
    /// Close a session and forget its replies. Asked again, the answer is `SessionExpired`.
    Close {
        /// The incarnation that the client knows.
        incarnation: Incarnation,
        /// The session.
        session: Session,
    },
    /// Keep a session from expiring.
    KeepAlive {
        /// The incarnation that the client knows.
        incarnation: Incarnation,
        /// The session.
        session: Session,
    },
    /// Execute an operation exactly once.
    Execute(Execute),
    /// Read, linearizably. Has no id: repeating it is harmless.
    Read(Read),
    /// Ask what became of a request: [`Answer::Fate`]. Changes nothing.
    Outcome(Question),
    /// See to it that a request that has not run never will: [`Answer::Fate`], which is never
    /// [`Fate::NeverSeen`].
    Cancel(Question),
    /// Some of the open sessions, in the order of their ids: [`Answer::Sessions`].
    Sessions {
        /// Those after this one; none begins with the first.
        after: Option<SessionId>,
        /// The most to tell of.
        limit: u32,
    },
    /// One session, and what the cluster remembers of its requests: [`Answer::Session`].
    Session(SessionId),
    /// Tell about the node itself; any node answers.
    Status,
    /// The next piece of a backup: [`Answer::Backup`], when it is there. Its number is the one of the
    /// piece before and one more, or the same again; 0 begins a backup.
    Backup {
        /// Drawn at random by the client, for each backup that it begins.
        id: u128,
        /// Which piece.
        number: u64,
    },
}

impl Request {
    /// The incarnation in which its ids mean something; none if it has no ids.
    #[must_use]
    pub fn incarnation(&self) -> Option<Incarnation> {
        match self {
            Self::Open { incarnation, .. }
            | Self::Close { incarnation, .. }
            | Self::KeepAlive { incarnation, .. }
            | Self::Execute(Execute { incarnation, .. })
            | Self::Outcome(Question { incarnation, .. })
            | Self::Cancel(Question { incarnation, .. }) => Some(*incarnation),
            Self::Read(_)
            | Self::Sessions { .. }
            | Self::Session(_)
            | Self::Status
            | Self::Backup { .. } => None,
        }
    }
}

/// An operation and the id under which it takes effect exactly once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execute {
    /// The incarnation that the client knows.
    pub incarnation: Incarnation,
    /// The id.
    pub id: ExecuteId,
    /// An encoded [`Operation`], sent again as the very same bytes.
    pub operation: Bytes,
}

/// The id that an operation is sent under.
///
/// ```
/// # use onlyonce_wire::client::ExecuteId;
/// # use onlyonce_wire::{OpenedAt, Seq, Session, SessionId};
/// let session = Session { id: SessionId(0xfeed), opened_at: OpenedAt(7) };
/// let at = |first_unacked| ExecuteId::Session { session, seq: Seq(9), first_unacked };
/// // Two copies of one request: what the client has seen meanwhile names no other.
/// assert_eq!(at(Seq(3)).request(), at(Seq(9)).request());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExecuteId {
    /// The `seq`-th request of a session.
    Session {
        /// The session, matched exactly.
        session: Session,
        /// The request's place in it.
        seq: Seq,
        /// The client has seen all replies below this one (at most `seq`): they may be forgotten.
        first_unacked: Seq,
    },
    /// A key, outside any session.
    Key(IdempotencyKey),
    /// None: **not** exactly once. It runs as often as a copy of it arrives; for those who want to
    /// see what an id is for, and what it costs.
    Anonymous,
}

impl ExecuteId {
    /// What names the request in the duplicate table; none for an anonymous one.
    ///
    /// ```
    /// # use onlyonce_wire::IdempotencyKey;
    /// # use onlyonce_wire::client::{ExecuteId, RequestId};
    /// let key = IdempotencyKey::new("order-1234").expect("it is short");
    /// assert_eq!(ExecuteId::Key(key.clone()).request(), Some(RequestId::Key(key)));
    /// assert_eq!(ExecuteId::Anonymous.request(), None);
    /// ```
    #[must_use]
    pub fn request(&self) -> Option<RequestId> {
        match self {
            Self::Session { session, seq, first_unacked: _ } => {
                Some(RequestId::Seq { session: *session, seq: *seq })
            }
            Self::Key(key) => Some(RequestId::Key(key.clone())),
            Self::Anonymous => None,
        }
    }
}

/// What names a request for ever: the id under which its copies were, or will be, sent.
///
/// ```
/// # use onlyonce_wire::client::RequestId;
/// # use onlyonce_wire::{OpenedAt, Seq, Session, SessionId};
/// // A session that was opened again under its old id is another one: its requests are others.
/// let first_of = |opened_at| {
///     let session = Session { id: SessionId(0xfeed), opened_at: OpenedAt(opened_at) };
///     RequestId::Seq { session, seq: Seq(1) }
/// };
/// assert_ne!(first_of(7), first_of(900));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RequestId {
    /// The `seq`-th request of a session.
    Seq {
        /// The session.
        session: Session,
        /// The request's place in it.
        seq: Seq,
    },
    /// A key, outside any session.
    Key(IdempotencyKey),
}

/// Names a request that somebody asks about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The incarnation in which the id means something.
    pub incarnation: Incarnation,
    /// The request.
    pub id: RequestId,
    /// In a session: its client has seen all replies below this one (at most the request's `seq`), as
    /// far as the asker knows; `Seq(1)` claims nothing. A cancel needs room in the session's window.
    pub first_unacked: Seq,
    /// Its content, if known: another request under the same id is then told apart
    /// ([`Refusal::Mismatch`]).
    pub fingerprint: Option<Fingerprint>,
}

/// What a node answers to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To `Open`.
    Opened {
        /// Completes the session's identity.
        opened_at: OpenedAt,
    },
    /// To `Close`.
    Closed,
    /// To `KeepAlive`.
    Alive,
    /// To `Execute`.
    Executed {
        /// The encoded [`Outcome`], byte for byte as it was first saved.
        reply: Bytes,
        /// Whether this answers a duplicate.
        replayed: bool,
        /// How long the key will be remembered at least, in milliseconds since the request came:
        /// until then it may be sent again. None without a key.
        kept_for_ms: Option<u64>,
    },
    /// To `Read`.
    Read(Outcome),
    /// To `Outcome` and `Cancel`.
    Fate {
        /// What became of the request.
        fate: Fate,
        /// As in `Executed`.
        kept_for_ms: Option<u64>,
    },
    /// To `Sessions`.
    Sessions {
        /// In the order of their ids.
        sessions: Vec<SessionStatus>,
        /// Whether there are more after the last one.
        more: bool,
    },
    /// To `Session`; none is open under this id.
    Session(Option<SessionDetail>),
    /// To `Status`.
    Status(Box<NodeStatus>),
    /// Not executed now; [`Refusal::consequence`] says what that means.
    Refused(Refusal),
    /// This node is not the primary: it did nothing.
    NotPrimary {
        /// The newest view that it knows.
        view: View,
        /// The primary's client address in that view, if there is one to try.
        primary: Option<String>,
    },
    /// This node cannot say what became of the request: ask again.
    AskAgain,
    /// To `Backup`; none if this node does not know that backup, any more or at all: another one is to
    /// be begun.
    Backup(Option<BackupRecord>),
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It ran, once.
    Done {
        /// The encoded [`Outcome`], as it was first saved.
        reply: Bytes,
    },
    /// The primary runs it at this moment. That may still come to nothing, if the primary dies.
    Pending,
    /// Nobody has seen it. It may still arrive, and run: only a cancel rules that out.
    NeverSeen,
    /// It never ran and never will.
    Cancelled,
}

/// An open session.
///
/// ```
/// # use onlyonce_wire::client::SessionStatus;
/// # use onlyonce_wire::{OpenedAt, Seq, Session, SessionId};
/// let session = Session { id: SessionId(0xfeed), opened_at: OpenedAt(7) };
/// let status = SessionStatus { session, first_unacked: Seq(42), saved_bytes: 0, idle_ms: 20 };
/// // 41 replies were seen and are forgotten.
/// assert_eq!(status.first_unacked.0 - 1, 41);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// The session.
    pub session: Session,
    /// Its watermark: its client has seen every reply below.
    pub first_unacked: Seq,
    /// The bytes of its saved replies.
    pub saved_bytes: u64,
    /// How long it has not been used, in milliseconds.
    pub idle_ms: u64,
}

/// An open session, and what is remembered of its requests.
///
/// ```
/// # use onlyonce_wire::client::{SavedRequest, SessionDetail};
/// # fn example(session: &SessionDetail) {
/// // A watermark that stays while replies pile up: an early request of this client is unresolved.
/// let SessionDetail { status, saved } = session;
/// println!("{} saved replies from {} on", saved.len(), status.first_unacked);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionDetail {
    /// The session itself.
    pub status: SessionStatus,
    /// Its saved replies, in the order of their seqs.
    pub saved: Vec<SavedRequest>,
}

/// A request of a session that was executed, or cancelled.
///
/// ```
/// # use onlyonce_wire::Seq;
/// # use onlyonce_wire::client::SavedRequest;
/// // A cancel is remembered in the place of the reply.
/// let cancelled = SavedRequest { seq: Seq(8), reply_bytes: None };
/// let ran = SavedRequest { seq: Seq(9), reply_bytes: Some(12) };
/// assert!(cancelled.reply_bytes.is_none() && ran.reply_bytes.is_some());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedRequest {
    /// Its place in the session.
    pub seq: Seq,
    /// The bytes of its reply; none if it was cancelled.
    pub reply_bytes: Option<u64>,
}

/// Tells two requests under one id apart: a 128-bit hash of the operation's bytes.
///
/// ```
/// # use onlyonce_wire::client::{Fingerprint, Operation, Write};
/// # use onlyonce_wire::codec;
/// // A reused key is told by it: one more is another request.
/// let incr = |by| codec::encode(&Operation::Write(Write::Incr { key: "n".into(), by }));
/// assert_ne!(Fingerprint::of(&incr(1)), Fingerprint::of(&incr(2)));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint(pub u128);

impl Fingerprint {
    /// The fingerprint of an encoded operation (XXH3, 128 bits).
    ///
    /// ```
    /// # use onlyonce_wire::client::Fingerprint;
    /// // The hash is the same on every machine and in every release.
    /// assert_eq!(format!("{:?}", Fingerprint::of(b"")), "Fingerprint(99aa06d3014798d86001c324468d497f)");
    /// ```
    #[must_use]
    pub fn of(operation: &[u8]) -> Self {
        Self(twox_hash::XxHash3_128::oneshot(operation))
    }
}

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fingerprint({:032x})", self.0)
    }
}
