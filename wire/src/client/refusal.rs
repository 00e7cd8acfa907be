//! Why a request was not executed, and what its client may conclude.

use serde::{Deserialize, Serialize};

use crate::ids::{Incarnation, Seq};

/// Why a request was not executed.
///
/// ```
/// # use onlyonce_wire::client::{Limit, Refusal};
/// assert_eq!(Refusal::Busy(Limit::Queue).to_string(), "the server is busy: too much work is queued");
/// ```
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
        "this id or key was already used for a request with other content; the new content was not executed"
    )]
    Mismatch,
    /// The request was cancelled: it never ran and never will.
    #[error("the request was cancelled: it never ran and never will")]
    Cancelled,
    /// A timed key so old that it may have been forgotten, or from before the incarnation, whether it
    /// was ever seen or not: it may have run.
    #[error("the idempotency key is so old that it may have been forgotten: it may have run")]
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
///
/// ```
/// # use onlyonce_wire::client::{Consequence, Refusal};
/// // Of the two, only the first says that the request did nothing.
/// assert_eq!(Refusal::Cancelled.consequence(), Consequence::NeverRuns);
/// assert_eq!(Refusal::SessionExpired.consequence(), Consequence::IdVoid);
/// ```
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
    ///
    /// ```
    /// # use onlyonce_wire::client::{Consequence, Limit, Refusal};
    /// // That one node is busy now says nothing about a copy that was sent before.
    /// assert_eq!(Refusal::Busy(Limit::Queue).consequence(), Consequence::TryLater);
    /// ```
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
    ///
    /// ```
    /// # use onlyonce_wire::client::Refusal;
    /// assert_eq!(Refusal::SessionExpired.name(), "session-expired");
    /// ```
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
///
/// ```
/// # use onlyonce_wire::client::Limit;
/// // Unlike a `Part` that is too large, it passes by itself.
/// assert_eq!(Limit::Sessions.to_string(), "too many open sessions");
/// ```
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
    /// Another client makes a backup.
    #[error("another backup is under way")]
    Backups,
}

/// A part of a request that has a limit.
///
/// ```
/// # use onlyonce_wire::client::{Part, Refusal};
/// let refusal = Refusal::TooLarge { what: Part::Transaction, size: 200, limit: 128 };
/// let text = "the transaction is too large: 200 operations, at most 128 are allowed";
/// assert_eq!(refusal.to_string(), text);
/// ```
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
    ///
    /// ```
    /// # use onlyonce_wire::client::Part;
    /// assert_eq!((Part::Value.unit(), Part::Transaction.unit()), ("bytes", "operations"));
    /// ```
    #[must_use]
    pub fn unit(self) -> &'static str {
        match self {
            Self::Key | Self::Value | Self::Operation => "bytes",
            Self::Transaction => "operations",
        }
    }
}
