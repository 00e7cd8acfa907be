//! The requests of clients and the answers of nodes.
//!
//! A client that waits longer than it likes sends **the same bytes under the same id** again, to
//! this node or another, as often as it takes. What an answer allows it to conclude is a property
//! of the answer: [`Answer`] separates results, definite refusals and invitations to ask again, and
//! [`Refusal::consequence`] says of each refusal which it is.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{
    CallId, ClusterId, IdempotencyKey, Incarnation, OpenedAt, Seq, Session, SessionId, StoreId,
    View,
};
use crate::status::NodeStatus;

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
    /// Tell about the node itself; any node answers.
    Status,
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

/// The id of an operation.
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
}

/// A read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Read {
    /// The value of a key: [`Outcome::Value`].
    Get {
        /// The key.
        key: Bytes,
    },
    /// Rows in key order: [`Outcome::Rows`].
    Scan {
        /// The first key, included.
        start: Bytes,
        /// The end, excluded; none is the end of all keys.
        end: Option<Bytes>,
        /// The most rows to return.
        limit: u32,
    },
}

/// What can be executed. Every effect is atomic with its duplicate row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// One write.
    Write(Write),
    /// Set `key` to `value` if it now holds `expected` (none: is absent): [`Outcome::Compared`].
    Cas {
        /// The key.
        key: Bytes,
        /// What it must hold.
        expected: Option<Bytes>,
        /// What it will hold.
        value: Bytes,
    },
    /// Compares, then writes, all or nothing, on any keys: [`Outcome::Txn`].
    Txn {
        /// All must hold.
        compares: Vec<Compare>,
        /// Carried out in order, each seeing those before it.
        writes: Vec<Write>,
    },
}

/// A write to one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Write {
    /// Set the value: [`Outcome::Done`].
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
    /// Add to the end of the value (absent: empty): [`Outcome::Length`].
    Append {
        /// The key.
        key: Bytes,
        /// What is added.
        value: Bytes,
    },
    /// Add to the value, a decimal integer (absent: 0): [`Outcome::Integer`].
    Incr {
        /// The key.
        key: Bytes,
        /// How much; may be negative.
        by: i64,
    },
    /// Remove the key: [`Outcome::Deleted`].
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Read the value within a transaction: [`Outcome::Value`].
    Get {
        /// The key.
        key: Bytes,
    },
}

/// A condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// The key.
    pub key: Bytes,
    /// What must be true of it.
    pub condition: Condition,
}

/// What a compare can demand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// It holds exactly this value.
    Equals(Bytes),
    /// It exists.
    Present,
    /// It does not exist.
    Absent,
}

/// What an execution or a read came to. An execution's outcome is saved with its effects, and a
/// duplicate gets the very same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Of a put.
    Done,
    /// Of a get; none where the key is absent.
    Value(Option<Bytes>),
    /// Of an append: the value's new length in bytes.
    Length(u64),
    /// Of an increment: the new value.
    Integer(i64),
    /// Of a delete: whether the key existed.
    Deleted(bool),
    /// Of a compare-and-set.
    Compared {
        /// Whether it held, and the value was set.
        swapped: bool,
        /// What the key held before.
        actual: Option<Bytes>,
    },
    /// Of a scan.
    Rows {
        /// Keys and values in key order.
        rows: Vec<(Bytes, Bytes)>,
        /// Where to go on, when a limit ended the scan early.
        next: Option<Bytes>,
    },
    /// Of a transaction.
    Txn(TxnOutcome),
    /// The operation was executed, found impossible, and changed nothing.
    Failed(Failure),
}

/// What a transaction came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TxnOutcome {
    /// Every compare held; the outcomes of its writes in order.
    Committed(Vec<Outcome>),
    /// This compare (counted from 0) did not hold; nothing was written.
    CompareFailed(u32),
    /// This write (counted from 0) was impossible; nothing was written.
    WriteFailed(u32, Failure),
}

/// Why an operation changed nothing: a result, saved and repeated like any other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// An increment of a value that is not a decimal integer of 64 bits.
    #[error("the value is not a decimal 64-bit integer, so it cannot be incremented")]
    NotAnInteger,
    /// An increment beyond 64 bits.
    #[error("the increment would overflow a 64-bit integer")]
    Overflow,
    /// An append beyond the longest value.
    #[error("the value would be {bytes} bytes long; at most {limit} are allowed")]
    ValueTooLong {
        /// The length it would have.
        bytes: u64,
        /// The most that is allowed.
        limit: u64,
    },
    /// A transaction whose appends would write more than one entry may.
    #[error("the transaction would write {bytes} bytes of rows; at most {limit} are allowed")]
    EntryTooLong {
        /// What it would write.
        bytes: u64,
        /// The most that is allowed.
        limit: u64,
    },
    /// A transaction whose outcomes exceed the longest reply.
    #[error("the reply would be {bytes} bytes long; at most {limit} are allowed")]
    ReplyTooLong {
        /// The length it would have.
        bytes: u64,
        /// The most that is allowed.
        limit: u64,
    },
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
    },
    /// To `Read`.
    Read(Outcome),
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
}

/// Why a request was not executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Its reply was acknowledged by the client before: it ran, and its reply is forgotten.
    #[error(
        "request is older than the session's first unacknowledged one, {first_unacked}: its reply was acknowledged and is forgotten"
    )]
    Stale {
        /// The session's watermark.
        first_unacked: Seq,
    },
    /// The id belongs to a request with other bytes.
    #[error(
        "this id was already used for a request with other content; the new content was not executed"
    )]
    Mismatch,
    /// The request was cancelled: it never ran and never will.
    #[error("the request was cancelled: it never ran and never will")]
    Cancelled,
    /// The idempotency key was remembered once, but is not any more.
    #[error("the idempotency key is too old to be known: whether it ran cannot be told")]
    Forgotten,
    /// The session is not known: closed, expired, or never opened.
    #[error("the session is not known (it was closed, or idle for too long)")]
    SessionExpired,
    /// The cluster's history was cut or restored; ids of another incarnation mean nothing in it.
    #[error("the cluster is now in incarnation {current}; ids of an earlier one are void")]
    OtherIncarnation {
        /// The incarnation now.
        current: Incarnation,
    },
    /// The session has too many requests outstanding.
    #[error(
        "request is too far ahead of the session's first unacknowledged one, {first_unacked}: at most {window} may be outstanding"
    )]
    WindowFull {
        /// The session's watermark.
        first_unacked: Seq,
        /// The limit.
        window: u64,
    },
    /// A limit of the server is reached; try later.
    #[error("the server is busy: {0}")]
    Busy(Limit),
    /// Some part of the request is too long.
    #[error("the {what} is too large: {size} {}, at most {limit} are allowed", .what.unit())]
    TooLarge {
        /// Which part.
        what: Part,
        /// Its size, in [`Part::unit`]s.
        size: u64,
        /// The most that is allowed.
        limit: u64,
    },
    /// The request makes no sense; the text says why.
    #[error("bad request: {0}")]
    Invalid(String),
}

/// What a client may conclude from a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// No copy of the request ever ran under this id, and none will.
    NeverRuns,
    /// No copy will run from now on, but an earlier one may have: a client that had sent the
    /// request before reports it as unresolved, and one that had not may use a new id.
    IdVoid,
    /// True of this copy alone. A client that had sent the request before goes on asking.
    ThisCopy,
    /// As `ThisCopy`, and worth trying again after a while.
    TryLater,
}

impl Refusal {
    /// What the client may conclude.
    #[must_use]
    pub fn consequence(&self) -> Consequence {
        match self {
            Self::Mismatch | Self::Cancelled => Consequence::NeverRuns,
            Self::Stale { .. }
            | Self::Forgotten
            | Self::SessionExpired
            | Self::OtherIncarnation { .. } => Consequence::IdVoid,
            Self::TooLarge { .. } | Self::Invalid(_) => Consequence::ThisCopy,
            Self::WindowFull { .. } | Self::Busy(_) => Consequence::TryLater,
        }
    }

    /// The refusal's short name, for scripts.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Stale { .. } => "stale",
            Self::Mismatch => "mismatch",
            Self::Cancelled => "cancelled",
            Self::Forgotten => "forgotten",
            Self::SessionExpired => "session-expired",
            Self::OtherIncarnation { .. } => "other-incarnation",
            Self::WindowFull { .. } => "window-full",
            Self::Busy(_) => "busy",
            Self::TooLarge { .. } => "too-large",
            Self::Invalid(_) => "invalid",
        }
    }
}

/// A limit of the server that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Limit {
    /// Too many sessions are open.
    #[error("too many open sessions")]
    Sessions,
    /// The session's saved replies take too much room; acknowledge some.
    #[error("the session has too many bytes of unacknowledged replies")]
    SavedReplies,
    /// Too many idempotency keys are remembered.
    #[error("too many idempotency keys are remembered")]
    IdempotencyKeys,
    /// Too many requests wait to be executed or written.
    #[error("too much work is queued")]
    Queue,
}

/// A part of a request that has a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Part {
    /// A key, in bytes.
    #[error("key")]
    Key,
    /// A value, in bytes.
    #[error("value")]
    Value,
    /// The whole operation, in bytes.
    #[error("operation")]
    Operation,
    /// A transaction's compares, or its writes, in number.
    #[error("transaction")]
    Transaction,
}

impl Part {
    /// What its size counts.
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Key | Self::Value | Self::Operation => "bytes",
            Self::Transaction => "operations",
        }
    }
}

/// Tells two requests under one id apart: a 128-bit hash of the operation's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint(pub u128);

impl Fingerprint {
    /// The fingerprint of an encoded operation (XXH3, 128 bits).
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
