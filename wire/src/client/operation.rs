//! What can be asked of the key/value service, and what that comes to.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

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
