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
///
/// ```
/// # use onlyonce_wire::client::{Operation, Part, Refusal, Write};
/// # use onlyonce_wire::limits::VALUE_BYTES_MAX;
/// let put = |bytes| Operation::Write(Write::Put { key: "k".into(), value: vec![0; bytes].into() });
/// assert_eq!(put(VALUE_BYTES_MAX).check(), Ok(()));
/// let refused = put(VALUE_BYTES_MAX + 1).check();
/// assert!(matches!(refused, Err(Refusal::TooLarge { what: Part::Value, .. })));
/// ```
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
///
/// ```
/// # use onlyonce_wire::client::{Operation, Write};
/// // One alone is an operation; several, in their order, are a transaction.
/// let writes = vec![
///     Write::Incr { key: "visits".into(), by: 1 },
///     Write::Append { key: "log".into(), value: "a visit\n".into() },
/// ];
/// let both = Operation::Txn { compares: vec![], writes };
/// assert_eq!(both.check(), Ok(()));
/// ```
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
///
/// ```
/// # use onlyonce_wire::client::{Compare, Condition, Operation};
/// // Compares without writes ask whether all of this is so at one moment.
/// let free = |key: &'static str| Compare { key: key.into(), condition: Condition::Absent };
/// let ask = Operation::Txn { compares: vec![free("seat/7"), free("seat/8")], writes: vec![] };
/// assert_eq!(ask.check(), Ok(()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// The key.
    pub key: Bytes,
    /// What must be true of it.
    pub condition: Condition,
}

/// What a compare can demand.
///
/// ```
/// # use onlyonce_wire::client::Condition;
/// // An empty value is a value: a key that holds it is present.
/// assert_ne!(Condition::Equals("".into()), Condition::Absent);
/// ```
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
///
/// ```
/// # use onlyonce_wire::client::{Failure, Outcome};
/// /// Whether it left anything changed.
/// fn changed(outcome: &Outcome) -> bool {
///     match outcome {
///         Outcome::Done | Outcome::Length(_) | Outcome::Integer(_) => true,
///         Outcome::Deleted(existed) => *existed,
///         Outcome::Compared { swapped, .. } => *swapped,
///         Outcome::Value(_) | Outcome::Rows { .. } | Outcome::Failed(_) => false,
///         Outcome::Txn(txn) => matches!(txn, onlyonce_wire::client::TxnOutcome::Committed(_)),
///     }
/// }
/// assert!(!changed(&Outcome::Failed(Failure::Overflow)));
/// ```
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
///
/// ```
/// # use onlyonce_wire::client::{Outcome, TxnOutcome};
/// // An outcome for each write, in their order: here of a put and an increment.
/// let came_to = TxnOutcome::Committed(vec![Outcome::Done, Outcome::Integer(13)]);
/// let TxnOutcome::Committed(outcomes) = came_to else { panic!("nothing was written") };
/// assert_eq!(outcomes[1], Outcome::Integer(13));
/// ```
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
///
/// ```
/// # use onlyonce_wire::client::Failure;
/// // It is a result: a copy of the request gets it too, even if it would be possible by then.
/// assert_eq!(Failure::Overflow.to_string(), "the increment would overflow a 64-bit integer");
/// ```
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
